//! Run to completion.
//!
//! tonic drops a handler mid-way when its caller gives up, and callers of CSI do that all day: their
//! deadline is not the operation's. Here the inner call runs as a task of its own on a tracker; the
//! caller only waits for it. When the caller leaves, or its `grpc-timeout` passes, the work goes on,
//! and the next equal call joins it (see `larder_volumes::claims`). Shutdown drains the tracker.

use super::{BoxFuture, Request, Response, admit::Place};
use std::{
    task::{Context, Poll},
    time::Duration,
};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tower::{Layer, Service};
use tracing::Instrument;

/// Makes [`Complete`] services.
#[derive(Debug, Clone)]
pub struct CompleteLayer {
    tracker: TaskTracker,
    longest: Duration,
}

impl CompleteLayer {
    /// Work runs on `tracker`. A caller that sets no deadline is answered after `longest`.
    pub fn new(tracker: TaskTracker, longest: Duration) -> Self {
        Self { tracker, longest }
    }
}

impl<S> Layer<S> for CompleteLayer {
    type Service = Complete<S>;
    fn layer(&self, inner: S) -> Complete<S> {
        Complete { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Complete<S> {
    inner: S,
    layer: CompleteLayer,
}

impl<S> Service<Request> for Complete<S>
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let deadline = timeout(request.headers()).unwrap_or(self.layer.longest);
        // The service that was polled ready is the one to call; its clone takes its place.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let span = tracing::Span::current();
        let place = request.extensions_mut().remove::<Place>();
        let work = larder_volumes::claims::holding(place, async move { ready.call(request).await });
        let work = self.layer.tracker.spawn(work.instrument(span));
        Box::pin(async move {
            match tokio::time::timeout(deadline, work).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(failed)) => {
                    tracing::error!(error = %failed, "the call panicked");
                    Ok(Status::internal("finish the call: it panicked (hint: this is a bug of Larder; its log has the place)").into_http())
                }
                Err(_) => Ok(Status::deadline_exceeded(
                    "finish within the caller's deadline: the work goes on (hint: repeat the same call to get its result)",
                )
                .into_http()),
            }
        })
    }
}

/// The caller's deadline: `grpc-timeout: 1500m` (hours H, minutes M, seconds S, then m, u, n).
fn timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
    use tower::ServiceExt;

    fn request(timeout: Option<&str>) -> Request {
        let mut request = http::Request::new(tonic::body::Body::empty());
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        request
    }

    fn code(answer: &Response) -> &str {
        answer.headers()["grpc-status"].to_str().unwrap()
    }

    #[tokio::test]
    async fn work_ends_although_its_caller_gave_up() {
        let tracker = TaskTracker::new();
        let finished = Arc::new(AtomicU32::new(0));
        let count = finished.clone();
        let slow = tower::service_fn(move |_: Request| {
            let count = count.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                count.fetch_add(1, Ordering::SeqCst);
                Ok::<_, std::convert::Infallible>(Response::default())
            }
        });
        let service = CompleteLayer::new(tracker.clone(), Duration::from_secs(60)).layer(slow);
        // One caller hangs up, one has a deadline.
        let hung_up =
            tokio::time::timeout(Duration::from_millis(50), service.clone().oneshot(request(None)))
                .await;
        assert!(hung_up.is_err());
        let late = service.oneshot(request(Some("50m"))).await.unwrap();
        assert_eq!(code(&late), "4");
        tracker.close();
        tracker.wait().await;
        assert_eq!(finished.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn work_whose_caller_gave_up_keeps_its_place() {
        let (tracker, running) = (TaskTracker::new(), Arc::new(AtomicU32::new(0)));
        let (now, go) = (running.clone(), Arc::new(tokio::sync::Notify::new()));
        let wait = go.clone();
        let slow = tower::service_fn(move |_: Request| {
            let (now, wait) = (now.clone(), wait.clone());
            async move {
                now.fetch_add(1, Ordering::SeqCst);
                wait.notified().await;
                Ok::<_, std::convert::Infallible>(Response::default())
            }
        });
        let service = tower::ServiceBuilder::new()
            .layer(super::super::AdmitLayer::new(2, 100))
            .layer(CompleteLayer::new(tracker.clone(), Duration::from_secs(60)))
            .service(slow);
        for _ in 0..20 {
            let call = service.clone().oneshot(request(None));
            let _ = tokio::time::timeout(Duration::from_millis(5), call).await;
        }
        assert_eq!(running.load(Ordering::SeqCst), 2);
        go.notify_waiters();
    }

    #[tokio::test]
    async fn a_panic_is_one_callers_internal_error() {
        let broken = tower::service_fn(|_: Request| async {
            assert!(std::hint::black_box(false), "a bug");
            Ok::<_, std::convert::Infallible>(Response::default())
        });
        let service = CompleteLayer::new(TaskTracker::new(), Duration::from_secs(60)).layer(broken);
        let answer = service.oneshot(request(None)).await.unwrap();
        assert_eq!(code(&answer), "13");
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text| timeout(request(Some(text)).headers());
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        for wrong in ["", "S", "5", "123456789S", "-1S", "1x"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
