//! Checks of requests, for `tests/fuzz`.

#![allow(missing_docs, missing_debug_implementations, reason = "no part of the product")]

use crate::request::Check;
use larder_model::{Fault, Result};
use prost::Message;
use std::fmt::Debug;

/// What a request is by its bytes.
pub struct Seen {
    /// The message, encoded again.
    pub encoded: Vec<u8>,
    /// The message as a log shows it.
    pub shown: String,
    /// What engines are handed, as a log shows it.
    pub typed: std::result::Result<String, Fault>,
}

/// Every request that has fields: its name, and what its bytes are; None: no such message.
pub type Request = (&'static str, fn(&[u8]) -> Option<Seen>);

fn see<R: Check + Message + Default + Debug>(bytes: &[u8]) -> Option<Seen>
where
    R::Typed: Debug,
{
    let message = R::decode(bytes).ok()?;
    let (encoded, shown) = (message.encode_to_vec(), format!("{message:?}"));
    let typed: Result<_> = message.check().map(|typed| format!("{typed:?}"));
    Some(Seen { encoded, shown, typed })
}

macro_rules! requests {
    ($($name:ident)*) => {
        &[$((stringify!($name), see::<larder_proto::csi::$name> as fn(&[u8]) -> _)),*]
    };
}

pub const REQUESTS: &[Request] = requests! {
    CreateVolumeRequest
    DeleteVolumeRequest
    ControllerPublishVolumeRequest
    ControllerUnpublishVolumeRequest
    ValidateVolumeCapabilitiesRequest
    ListVolumesRequest
    ControllerListVolumeHealthRequest
    ControllerGetVolumeRequest
    ControllerGetVolumeHealthRequest
    ControllerModifyVolumeRequest
    GetCapacityRequest
    CreateSnapshotRequest
    DeleteSnapshotRequest
    GetSnapshotRequest
    ListSnapshotsRequest
    ControllerExpandVolumeRequest
    CreateVolumeGroupSnapshotRequest
    DeleteVolumeGroupSnapshotRequest
    GetVolumeGroupSnapshotRequest
    GetMetadataAllocatedRequest
    GetMetadataDeltaRequest
    NodeStageVolumeRequest
    NodeUnstageVolumeRequest
    NodePublishVolumeRequest
    NodeUnpublishVolumeRequest
    NodeGetVolumeStatsRequest
    NodeExpandVolumeRequest
    NodeGetVolumeHealthRequest
    NodeGetStorageHealthRequest
};
