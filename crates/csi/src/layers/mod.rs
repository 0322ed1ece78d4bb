//! What happens to every call, whatever it asks for.
//!
//! ```text
//! connection ─▶ Observe ─▶ Known ─▶ Admit ─▶ Complete ─▶ tonic service
//!                 │          │        │          └ runs to its end on the tracker, whoever waits;
//!                 │          │        │            panics become INTERNAL; deadlines are kept
//!                 │          │        └ so many at a time, so many waiting; more are UNAVAILABLE
//!                 │          └ what no protocol defines is UNIMPLEMENTED
//!                 └ one span and one measurement per call
//! ```

mod admit;
mod complete;
mod known;
mod observe;

pub use admit::{Admit, AdmitLayer};
pub use complete::{Complete, CompleteLayer};
pub use known::{Known, KnownLayer};
pub use observe::{CallMetrics, Observe, ObserveLayer};

use std::{future::Future, pin::Pin};

/// A request as tonic's services take it.
pub type Request = http::Request<tonic::body::Body>;
/// An answer as tonic's services give it.
pub type Response = http::Response<tonic::body::Body>;
/// The future of a layered service.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The last two parts of a gRPC path: `("Node", "NodeStageVolume")` of
/// `/csi.v1.Node/NodeStageVolume`.
pub(crate) fn service_and_method(path: &str) -> (&str, &str) {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let service = parts.next().unwrap_or_default();
    (service.rsplit('.').next().unwrap_or_default(), parts.next().unwrap_or_default())
}
