//! Only what is defined is routed, and only what can be read is a request.
//!
//! A path that none of our protocols defines is answered here, with a message (the routers below
//! answer without one, and CSI wants one), and before it takes a slot or makes a metric label. A
//! message that is too large or no message at all is the caller's fault, and is told so.

use super::{BoxFuture, Request, Response};
use larder_model::id::quoted;
use larder_proto::Method;
use std::task::{Context, Poll};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Makes [`Known`] services.
#[derive(Debug, Clone, Copy, Default)]
pub struct KnownLayer;

impl<S> Layer<S> for KnownLayer {
    type Service = Known<S>;
    fn layer(&self, inner: S) -> Known<S> {
        Known(inner)
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Known<S>(S);

impl<S> Service<Request> for Known<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let path = request.uri().path();
        if Method::by_path(path).is_some() {
            let answer = self.0.call(request);
            return Box::pin(async move { Ok(callers_fault(answer.await?)) });
        }
        let message = format!("find method {}: this version does not define it", quoted(path));
        Box::pin(async move { Ok(Status::unimplemented(message).into_http()) })
    }
}

/// What tonic says of requests that it could not read, with codes that mean something else to
/// callers of CSI: a provisioner takes OUT_OF_RANGE for a size.
const UNREADABLE: [(Code, &str); 2] = [
    (Code::OutOfRange, "Error, decoded message length too large"),
    (Code::Internal, "failed to decode Protobuf message"),
];

/// A request that cannot be read is INVALID_ARGUMENT.
fn callers_fault(answer: Response) -> Response {
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    let unreadable =
        |(code, text): &(Code, &str)| status.code() == *code && status.message().starts_with(text);
    if !UNREADABLE.iter().any(unreadable) {
        return answer;
    }
    Status::invalid_argument(format!("read the request: {}", status.message())).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[tokio::test]
    async fn what_no_protocol_defines_is_unimplemented_with_a_message() {
        let reached = tower::service_fn(async |_: Request| {
            Ok::<_, std::convert::Infallible>(Response::default())
        });
        let call = async |path: &str| {
            let request = http::Request::builder().uri(path);
            let request = request.body(tonic::body::Body::empty()).unwrap();
            let answer = KnownLayer.layer(reached).oneshot(request).await.unwrap();
            Status::from_header_map(answer.headers())
        };
        assert!(call("/csi.v1.Identity/Probe").await.is_none());
        for path in ["/csi.v1.Identity/Prob", "/grpc.reflection.v1.ServerReflection/Info", "/"] {
            let status = call(path).await.unwrap();
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            assert!(status.message().contains(path), "{status:?}");
        }
    }
}
