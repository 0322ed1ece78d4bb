//! What an RPC is, for layers that see only its path (spans, metrics, limits).

use crate::{csi, larder, pluginregistration, snapshotmetadata};

/// One RPC of one of the services in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method {
    /// The path of the HTTP/2 request: `/csi.v1.Controller/CreateVolume`.
    pub path: &'static str,
    /// The full name of the service: `csi.v1.Controller`.
    pub service: &'static str,
    /// The name alone: `CreateVolume`.
    pub name: &'static str,
    /// The request's message, without its package: `CreateVolumeRequest`.
    pub request: &'static str,
    /// The response's message, without its package: `CreateVolumeResponse`.
    pub response: &'static str,
    /// Whether the answer is a stream of messages.
    pub server_streaming: bool,
}

impl Method {
    /// The method that a request path means; none for anything that this crate
    /// does not define, so that a caller cannot invent metric labels.
    #[must_use]
    pub fn by_path(path: &str) -> Option<&'static Self> {
        [csi::METHODS, larder::METHODS, pluginregistration::METHODS, snapshotmetadata::METHODS]
            .into_iter()
            .flatten()
            .find(|method| method.path == path)
    }
}
