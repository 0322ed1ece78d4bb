//! Bounded concurrency.
//!
//! A caller that floods the driver must not exhaust memory or threads for the others. Beyond the
//! bound calls wait; beyond as many waiting again they are refused with UNAVAILABLE, which callers
//! repeat with back-off. (RESOURCE_EXHAUSTED would make a provisioner move the volume elsewhere.)
//!
//! The place travels with the request and is held by the work, not by the caller: one who gives up
//! and asks again does not get a second place for the same work, and one who joins an operation that
//! runs already gives its place up (see `larder_volumes::claims::holding`). An operation that hangs
//! takes one place and not, repeat by repeat, all of them.
//!
//! Calls that ask who the driver is, whether it lives and what it is doing need no place: a busy
//! driver must not be taken for a dead one.

use super::{BoxFuture, Request, Response, service_and_method};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tower::{Layer, Service};

/// A place among the running calls. Whoever does the work takes it out of the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Place(#[allow(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// Services whose calls need no place.
const ALWAYS: [&str; 3] = ["Identity", "Admin", "Registration"];

/// Makes [`Admit`] services that share one bound.
#[derive(Debug, Clone)]
pub struct AdmitLayer {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
}

impl AdmitLayer {
    /// At most `running` calls at a time and `queue` waiting.
    pub fn new(running: usize, queue: usize) -> Self {
        Self { running: Arc::new(Semaphore::new(running)), waiting: Arc::default(), queue }
    }
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;
    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Admit<S> {
    inner: S,
    layer: AdmitLayer,
}

/// Counts a waiting call for as long as it waits, also when its caller leaves.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Service<Request> for Admit<S>
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
        if ALWAYS.contains(&service_and_method(request.uri().path()).0) {
            return Box::pin(self.inner.call(request));
        }
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let AdmitLayer { running, waiting, queue } = self.layer.clone();
        Box::pin(async move {
            let permit = if let Ok(permit) = running.clone().try_acquire_owned() {
                permit
            } else {
                let before = waiting.fetch_add(1, Ordering::Relaxed);
                let _waiting = Waiting(waiting);
                if before >= queue {
                    return Ok(Status::unavailable(format!(
                        "take the call: {queue} calls are waiting already (hint: repeat it later)"
                    ))
                    .into_http());
                }
                match running.acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => {
                        return Ok(Status::unavailable("take the call: shutting down").into_http());
                    }
                }
            };
            request.extensions_mut().insert(Place(Arc::new(permit)));
            ready.call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_flood_is_bounded_and_the_rest_is_told_to_come_back() {
        let most = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let (m, n) = (most.clone(), now.clone());
        let slow = tower::service_fn(move |request: Request| {
            let (most, now) = (m.clone(), n.clone());
            async move {
                let _request = request;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, std::convert::Infallible>(Response::default())
            }
        });
        let service = AdmitLayer::new(2, 3).layer(slow);
        let calls = (0..10)
            .map(|_| service.clone().oneshot(http::Request::new(tonic::body::Body::empty())));
        let answers = futures::future::join_all(calls).await;
        let refused = answers
            .iter()
            .filter(|a| a.as_ref().unwrap().headers().get("grpc-status").is_some_and(|c| c == "14"))
            .count();
        assert_eq!((most.load(Ordering::SeqCst), refused), (2, 5));
    }
}
