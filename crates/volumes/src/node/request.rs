//! What callers ask of the node engine, and what it answers.
//!
//! Volume ids are the caller's text: an inline volume's id (`csi-<hash>`) is no handle of ours, and
//! giving back what cannot be ours is a success. The engine parses them. Paths are the caller's too;
//! the engine refuses what is not absolute, has `..`, or ends in a symlink.

use larder_model::{
    Bytes, CapacityRange, Secrets, VolumeCapability,
    topology::Segments,
    volume::{Attributes, HealthEntry},
};
use std::path::PathBuf;

/// NodeStageVolume: makes a volume ready on this node, once for all its workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// An existing directory, made by the caller.
    pub staging_path: PathBuf,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// `volume_context`.
    pub context: Attributes,
    /// `publish_context`, from the control plane's attach.
    pub publish_context: Attributes,
    /// Credentials. Not compared between repeated calls.
    pub secrets: Secrets,
}

/// NodeUnstageVolume: takes [`StageRequest`] back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnstageRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it was staged.
    pub staging_path: PathBuf,
}

/// NodePublishVolume: shows a volume to one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it was staged. None: a `Precondition`, unless the volume is an inline one
    /// (`csi.storage.k8s.io/ephemeral` is `true` in `context`).
    pub staging_path: Option<PathBuf>,
    /// What the engine makes: a directory, or for a block volume a file. Its parent exists.
    pub target_path: PathBuf,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// This workload only reads.
    pub readonly: bool,
    /// `volume_context`, with whatever Kubernetes added.
    pub context: Attributes,
    /// `publish_context`.
    pub publish_context: Attributes,
    /// Credentials. Not compared between repeated calls.
    pub secrets: Secrets,
}

/// NodeUnpublishVolume: takes [`PublishRequest`] back and removes the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpublishRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it was published.
    pub target_path: PathBuf,
}

/// NodeGetVolumeStats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it is staged or published, or any other path that shows the same volume.
    pub volume_path: PathBuf,
}

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStats {
    /// A mounted volume.
    Mounted {
        /// Bytes.
        bytes: Usage,
        /// Inodes; all zero where the file system does not count them (btrfs).
        inodes: Usage,
    },
    /// A block device: only its size is known.
    Block {
        /// Its size.
        total: Bytes,
    },
}

/// One line of [`VolumeStats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The whole.
    pub total: u64,
    /// What ordinary users can still take.
    pub available: u64,
    /// What is taken.
    pub used: u64,
}

/// NodeExpandVolume: makes growth by the control plane visible here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it is staged or published.
    pub volume_path: PathBuf,
    /// Where it is staged, when the caller says.
    pub staging_path: Option<PathBuf>,
    /// The size that must be reached; all zero: whatever the device has now.
    pub range: CapacityRange,
    /// How it is used, when the caller says.
    pub capability: Option<VolumeCapability>,
    /// Credentials.
    pub secrets: Secrets,
}

/// NodeGetVolumeHealth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthRequest {
    /// The volume's id, as the caller wrote it.
    pub volume: String,
    /// Where it is (or should be) published; None: every place that is recorded.
    pub publish_path: Option<PathBuf>,
    /// Where it is (or should be) staged; None: the recorded place.
    pub staging_path: Option<PathBuf>,
}

/// What was found wrong with a volume on this node; empty: nothing known.
pub type VolumeHealth = Vec<HealthEntry>;

/// What NodeGetCapabilities announces. Derived from the backend, so it cannot lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCapabilities {
    /// STAGE_UNSTAGE_VOLUME: always.
    pub stage_unstage: bool,
    /// GET_VOLUME_STATS: always.
    pub volume_stats: bool,
    /// EXPAND_VOLUME: the backend can grow volumes and that needs a step here.
    pub expand: bool,
    /// SINGLE_NODE_MULTI_WRITER: the backend accepts the two modes that it stands for.
    pub single_node_multi_writer: bool,
    /// VOLUME_MOUNT_GROUP.
    pub mount_group: bool,
    /// GET_VOLUME_HEALTH: always.
    pub volume_health: bool,
    /// GET_STORAGE_HEALTH: always.
    pub storage_health: bool,
}

/// NodeGetInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// The node's id within the driver.
    pub node_id: String,
    /// The most volumes that this node can use; None: no statement.
    pub max_volumes: Option<u32>,
    /// This node's place; None: only volumes without a place can be used.
    pub topology: Option<Segments>,
}

/// What the start-up scan did, for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Volumes that are staged or published here and were left as they are.
    pub live: usize,
    /// What was mended, one sentence each.
    pub mended: Vec<String>,
    /// What could not be mended now and is tried again when the volume is next touched.
    pub left: Vec<String>,
}
