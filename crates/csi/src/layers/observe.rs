//! One span and one measurement per call.
//!
//! The metric is the one that drivers of the Go world publish, so dashboards go on working:
//! `csi_plugin_operations_seconds{driver_name, method_name, grpc_status_code}`.

use super::{BoxFuture, Request, Response, service_and_method};
use crate::status;
use larder_proto::Method;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};
use tonic::Code;
use tower::{Layer, Service};
use tracing::Instrument;

/// Upper bounds in seconds, those of the Go libraries with finer ones below: local storage answers
/// in milliseconds.
const BUCKETS: [f64; 18] = [
    0.0005, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0,
    120.0, 300.0, 600.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    driver_name: Arc<str>,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriverLabels {
    driver_name: Arc<str>,
}

/// The measurements of all calls of a process.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
    running: Family<DriverLabels, Gauge>,
}

impl CallMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics =
            Self { seconds: Family::new_with_constructor(new), running: Family::default() };
        registry.register_with_unit(
            "csi_plugin_operations",
            "Time of CSI calls by driver, method and gRPC code",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "larder_calls_running",
            "CSI calls that are being worked on",
            metrics.running.clone(),
        );
        metrics
    }
}

/// Makes [`Observe`] services of one driver.
#[derive(Debug, Clone)]
pub struct ObserveLayer {
    driver: Arc<str>,
    node: Arc<str>,
    metrics: CallMetrics,
}

impl ObserveLayer {
    /// For the driver of that name on that node.
    pub fn new(driver: &str, node: &str, metrics: CallMetrics) -> Self {
        Self { driver: driver.into(), node: node.into(), metrics }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;
    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: self.clone() }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

/// Decrements the gauge also when the caller leaves.
struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<S> Service<Request> for Observe<S>
where
    S: Service<Request, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let ObserveLayer { driver, node, metrics } = self.layer.clone();
        // A caller cannot invent labels.
        let path = Method::by_path(request.uri().path()).map_or("unknown", |method| method.path);
        let (_, method) = service_and_method(path);
        // Handlers fill in the volume once they have parsed it.
        let span = tracing::info_span!("rpc", driver = %driver, rpc = %method, node = %node, volume = tracing::field::Empty);
        let running =
            metrics.running.get_or_create(&DriverLabels { driver_name: driver.clone() }).clone();
        running.inc();
        let running = Running(running);
        let start = Instant::now();
        let inner = {
            let _entered = span.enter();
            self.inner.call(request)
        };
        Box::pin(
            async move {
                let answer = inner.await;
                drop(running);
                let elapsed = start.elapsed();
                let status =
                    answer.as_ref().ok().and_then(|a| tonic::Status::from_header_map(a.headers()));
                let code = match (&answer, &status) {
                    (Err(_), _) => "unknown-non-grpc",
                    (Ok(_), None) => status::name(Code::Ok),
                    (Ok(_), Some(status)) => status::name(status.code()),
                };
                match status.filter(|s| s.code() != Code::Ok) {
                    // Callers ask for what a driver may not have; it is no trouble of anybody's.
                    Some(status) if status.code() == Code::Unimplemented => {
                        tracing::debug!(code, ?elapsed, message = status.message(), "call failed")
                    }
                    Some(status) => {
                        tracing::warn!(code, ?elapsed, message = status.message(), "call failed")
                    }
                    None => tracing::debug!(code, ?elapsed, "call done"),
                }
                let labels =
                    CallLabels { driver_name: driver, method_name: path, grpc_status_code: code };
                metrics.seconds.get_or_create(&labels).observe(elapsed.as_secs_f64());
                answer
            }
            .instrument(span),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[tokio::test]
    async fn every_call_is_counted_with_its_code() {
        let mut registry = Registry::default();
        let metrics = CallMetrics::register(&mut registry);
        let service = ObserveLayer::new("loop.test", "n1", metrics).layer(tower::service_fn(
            |r: Request| async move {
                Ok::<_, std::convert::Infallible>(if r.uri().path().ends_with("Probe") {
                    Response::default()
                } else {
                    tonic::Status::not_found("no").into_http()
                })
            },
        ));
        for path in ["/csi.v1.Identity/Probe", "/csi.v1.Node/NodeStageVolume", "/a/b", "/c/d"] {
            let request =
                http::Request::builder().uri(path).body(tonic::body::Body::empty()).unwrap();
            service.clone().oneshot(request).await.unwrap();
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for wanted in [
            r#"csi_plugin_operations_seconds_count{driver_name="loop.test",method_name="/csi.v1.Identity/Probe",grpc_status_code="OK"} 1"#,
            r#"method_name="/csi.v1.Node/NodeStageVolume",grpc_status_code="NotFound"} 1"#,
            r#"method_name="unknown",grpc_status_code="NotFound"} 2"#,
            r#"larder_calls_running{driver_name="loop.test"} 0"#,
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }
}
