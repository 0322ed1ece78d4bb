//! What callers ask of the control engine and what it answers.
//!
//! Ids, names and tokens are still text as the caller wrote it: the engine parses them, because
//! what a malformed one means differs by operation (deleted already, not found, nothing listed).
//! Sizes and capabilities are types already. Every field named after a CSI field means the same.

use futures::stream::BoxStream;
use larder_model::{
    Bytes, CapacityRange, Result, Secrets, VolumeCapability, VolumeId,
    topology::{Segments, TopologyRequirement},
    volume::{Attributes, Extent, HealthEntry, Snapshot, Volume},
};

/// Where the data of a new volume comes from, as the caller wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceId {
    /// A snapshot's id.
    Snapshot(String),
    /// A volume's id.
    Volume(String),
}

/// CreateVolume.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    /// The name; creation is idempotent by it.
    pub name: String,
    /// The accepted sizes; the default where the caller gave none.
    pub capacity: CapacityRange,
    /// Every way in which the volume must be usable; at least one.
    pub capabilities: Vec<VolumeCapability>,
    /// Parameters as the caller wrote them, `pool` and reserved keys included.
    pub parameters: Attributes,
    /// Parameters that can be changed later.
    pub mutable_parameters: Attributes,
    /// Where its first data comes from.
    pub source: Option<SourceId>,
    /// Where it must be usable.
    pub topology: Option<TopologyRequirement>,
    /// Credentials for the storage.
    pub secrets: Secrets,
    /// It lives as long as one pod (CSI inline volume). False for CreateVolume itself.
    pub ephemeral: bool,
}

/// ValidateVolumeCapabilities.
#[derive(Debug, Clone, Default)]
pub struct ValidateVolume {
    /// The volume.
    pub volume_id: String,
    /// The context it was created with; empty: not checked.
    pub context: Attributes,
    /// The capabilities in question; at least one.
    pub capabilities: Vec<VolumeCapability>,
    /// Parameters in question.
    pub parameters: Attributes,
    /// Mutable parameters in question.
    pub mutable_parameters: Attributes,
}

/// The answer to [`ValidateVolume`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Validated {
    /// Everything asked for holds. CSI wants what was checked repeated in the answer.
    Confirmed,
    /// Something does not; the text says what.
    Refused(String),
}

/// Which part of a listing.
#[derive(Debug, Clone, Default)]
pub struct Paging {
    /// The most entries; 0: all. Negative is refused.
    pub max_entries: i32,
    /// `next_token` of the page before; empty: from the beginning.
    pub starting_token: String,
}

/// A volume with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// The volume.
    pub volume: Volume,
    /// The nodes it is attached to. Always empty where the control plane does not attach.
    pub published_nodes: Vec<String>,
}

/// A page of volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePage {
    /// In the order of their ids.
    pub volumes: Vec<VolumeEntry>,
    /// Names the next page; empty: this was the last.
    pub next_token: String,
}

/// GetCapacity.
#[derive(Debug, Clone, Default)]
pub struct QueryCapacity {
    /// What the volumes must be usable for; empty: anything.
    pub capabilities: Vec<VolumeCapability>,
    /// Parameters of the volumes.
    pub parameters: Attributes,
    /// Where the volumes must be usable.
    pub topology: Option<Segments>,
}

/// ControllerExpandVolume.
#[derive(Debug, Clone, Default)]
pub struct ExpandVolume {
    /// The volume.
    pub volume_id: String,
    /// The accepted sizes; at least one bound.
    pub capacity: CapacityRange,
    /// How it is used, where the caller says.
    pub capability: Option<VolumeCapability>,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// The answer to [`ExpandVolume`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expanded {
    /// The size now.
    pub capacity: Bytes,
    /// The node must do its part (device size, file system).
    pub node_expansion_required: bool,
}

/// ControllerModifyVolume.
#[derive(Debug, Clone, Default)]
pub struct ModifyVolume {
    /// The volume.
    pub volume_id: String,
    /// The keys to change; others stay as they are.
    pub mutable_parameters: Attributes,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// ControllerPublishVolume.
#[derive(Debug, Clone)]
pub struct AttachVolume {
    /// The volume.
    pub volume_id: String,
    /// The node, as NodeGetInfo named it.
    pub node_id: String,
    /// How it will be used there.
    pub capability: VolumeCapability,
    /// Nothing will be written.
    pub readonly: bool,
    /// The context it was created with.
    pub context: Attributes,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// ControllerUnpublishVolume.
#[derive(Debug, Clone, Default)]
pub struct DetachVolume {
    /// The volume.
    pub volume_id: String,
    /// The node; empty: all nodes.
    pub node_id: String,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// CreateSnapshot.
#[derive(Debug, Clone, Default)]
pub struct CreateSnapshot {
    /// The name; creation is idempotent by it.
    pub name: String,
    /// The volume to cut.
    pub source_volume_id: String,
    /// Parameters as the caller wrote them.
    pub parameters: Attributes,
    /// Where volumes made from it must be able to live.
    pub topology: Option<TopologyRequirement>,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// ListSnapshots.
#[derive(Debug, Clone, Default)]
pub struct ListSnapshots {
    /// Which part.
    pub paging: Paging,
    /// Only those cut from this volume; empty: all.
    pub source_volume_id: String,
    /// Only this one; empty: all.
    pub snapshot_id: String,
}

/// A page of snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPage {
    /// In the order of their ids.
    pub snapshots: Vec<Snapshot>,
    /// Names the next page; empty: this was the last.
    pub next_token: String,
}

/// CreateVolumeGroupSnapshot.
#[derive(Debug, Clone, Default)]
pub struct CreateGroup {
    /// The name; creation is idempotent by it.
    pub name: String,
    /// The volumes to cut, as a set; at least one.
    pub source_volume_ids: Vec<String>,
    /// Parameters as the caller wrote them.
    pub parameters: Attributes,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// DeleteVolumeGroupSnapshot and GetVolumeGroupSnapshot: the group and its members.
#[derive(Debug, Clone, Default)]
pub struct GroupMembers {
    /// The group.
    pub group_snapshot_id: String,
    /// Its members, as a set; at least one.
    pub snapshot_ids: Vec<String>,
}

/// GetMetadataAllocated and GetMetadataDelta.
#[derive(Debug, Clone, Default)]
pub struct QueryBlocks {
    /// The snapshot to compare with; None: all allocated blocks.
    pub base_snapshot_id: Option<String>,
    /// The snapshot whose blocks are wanted.
    pub snapshot_id: String,
    /// The first byte of interest.
    pub starting_offset: i64,
    /// The most extents in a page; 0: the engine decides. Negative is refused.
    pub max_results: i32,
}

/// Some changed or allocated extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockPage {
    /// The volume's size, the same in every page of a stream.
    pub volume_capacity: Bytes,
    /// Ascending over the whole stream, without overlap, of varying length.
    pub extents: Vec<Extent>,
}

/// Pages until the end or the first fault. Only a clean end proves completeness.
pub type BlockStream = BoxStream<'static, Result<BlockPage>>;

/// What is known to be wrong with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHealth {
    /// The volume.
    pub volume_id: VolumeId,
    /// Findings; status and reason are unique together. Empty: nothing known.
    pub findings: Vec<HealthEntry>,
}

/// A page of volumes that something is wrong with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthPage {
    /// In the order of their ids; healthy ones are left out.
    pub volumes: Vec<VolumeHealth>,
    /// Names the next page; empty: this was the last.
    pub next_token: String,
}
