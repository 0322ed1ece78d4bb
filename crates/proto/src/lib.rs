//! The gRPC protocols that Larder speaks, generated at build time from
//! `proto/*.proto` without `protoc`:
//!
//! | module | package | spoken between |
//! |---|---|---|
//! | [`csi`] | `csi.v1` | orchestrator and driver: the union of revisions 1.12 and 1.13 |
//! | [`larder`] | `larder.v1` | Larder's own tools and driver |
//! | [`pluginregistration`] | `pluginregistration` | kubelet and driver |
//! | [`snapshotmetadata`] | `snapshotmetadata` | backup software and the cluster |
//!
//! # Invariants
//! - **No credential reaches a log.** `Debug` of every type here hides the
//!   fields that carry the `csi_secret` option, mount flags, security tokens
//!   and service account tokens; map keys stay visible. It is generated from
//!   the descriptors, so a new secret field is hidden as soon as it is marked.
//! - **The wire is the specification's.** A test compares the descriptors with
//!   tables of the specification's numbers, in both directions.
//! - Maps are ordered (`BTreeMap`), so an equal message always prints and
//!   encodes equally.
//!
//! Every server method has a default that answers UNIMPLEMENTED, and takes
//! `self: Arc<Self>` so that it can go on when its caller has gone.

mod capabilities;
mod method;
mod redact;

pub use method::Method;

/// All files of this crate and their imports, as an encoded
/// `google.protobuf.FileDescriptorSet`: for gRPC reflection and for tests.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What stands in `Debug` output in the place of a secret.
pub const STRIPPED: &str = "***stripped***";

/// The Container Storage Interface, package `csi.v1`.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: proto/csi.proto is the documentation"
)]
pub mod csi {
    include!(concat!(env!("OUT_DIR"), "/csi.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/csi.v1.debug.rs"));
    include!(concat!(env!("OUT_DIR"), "/csi.v1.methods.rs"));
}

/// What Larder's own tools ask of a running driver.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: proto/larder.proto is the documentation"
)]
pub mod larder {
    include!(concat!(env!("OUT_DIR"), "/larder.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/larder.v1.debug.rs"));
    include!(concat!(env!("OUT_DIR"), "/larder.v1.methods.rs"));
}

/// How a driver makes itself known to kubelet.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: proto/pluginregistration.proto is the documentation"
)]
pub mod pluginregistration {
    /// [`PluginInfo::type`](PluginInfo) of a CSI driver.
    pub const CSI_PLUGIN: &str = "CSIPlugin";

    include!(concat!(env!("OUT_DIR"), "/pluginregistration.rs"));
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.debug.rs"));
    include!(concat!(env!("OUT_DIR"), "/pluginregistration.methods.rs"));
}

/// The changed-block service for clients inside a cluster.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated: proto/snapshotmetadata.proto is the documentation"
)]
pub mod snapshotmetadata {
    include!(concat!(env!("OUT_DIR"), "/snapshotmetadata.rs"));
    include!(concat!(env!("OUT_DIR"), "/snapshotmetadata.debug.rs"));
    include!(concat!(env!("OUT_DIR"), "/snapshotmetadata.methods.rs"));
}
