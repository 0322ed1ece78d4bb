//! This backend's part of the records that the pool keeps. Fields may be added; those that an older
//! release does not know, it ignores.

use crate::project::Limit;
use larder_model::{Bytes, Fault, Result};
use serde::{Deserialize, Serialize};

/// What holds a volume to its size, as its record says: what it was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Quota {
    /// Project quota; the id is in the marker file beside the data.
    Project,
    /// The qgroup of its subvolume.
    Qgroup,
    /// Nothing.
    None,
}

/// This backend's part of a volume's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Value {
    /// What holds it to its size.
    pub(crate) quota: Quota,
    /// The most files and directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inodes: Option<u64>,
    /// Permissions, owner and group of the top directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) top: Option<Top>,
}

/// Permissions, owner and group of the top directory of a new volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Top {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Value {
    /// What the volume is held to when it is `size` large.
    pub(crate) fn limit(self, size: Bytes) -> Limit {
        Limit { bytes: size, inodes: self.inodes }
    }
}

/// This backend's part of a snapshot's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotValue {
    /// What it is a picture of.
    pub(crate) consistency: Consistency,
}

/// What a snapshot of a volume that is being written is a picture of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Consistency {
    /// The whole volume at one moment.
    Volume,
    /// Each file at one moment, different files at different moments.
    File,
    /// Neither: a file that is written meanwhile may be part old, part new.
    None,
}

/// One of these, for a record.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|e| Fault::internal("put a volume's record into words").because(e))
}
