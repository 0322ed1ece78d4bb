//! What callers ask for and what exists.

use crate::{
    bytes::{Bytes, CapacityRange},
    capability::{AccessMode, FsType, Uses, VolumeCapability},
    encryption::Encryption,
    fault::{Fault, Result},
    id::{NodeName, RequestedName, SnapshotId, VolumeId},
    limits::Limits,
    secrets::Secrets,
    topology::{Segments, TopologyRequirement},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Text attributes (parameters, volume context).
pub type Attributes = BTreeMap<String, String>;

/// Keys of the volume context that the node engine reads, whichever backend wrote them (or an
/// administrator, in a PersistentVolume).
pub mod context {
    /// The file system to make and mount where the capability names none: `ext4`, `xfs`, `btrfs`.
    pub const FS: &str = "fs";
    /// Further arguments for mkfs, separated by blanks: `-m 0 -E lazy_itable_init=1`.
    pub const MKFS_OPTIONS: &str = "mkfsOptions";
}

/// Where the data of a new volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ContentSource {
    /// A snapshot to restore.
    Snapshot(SnapshotId),
    /// A volume to clone.
    Volume(VolumeId),
}

impl std::fmt::Display for ContentSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Volume(id) => write!(f, "volume {id}"),
        }
    }
}

/// A volume that shall exist.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// The id it will have; its native part derives from `name`.
    pub id: VolumeId,
    /// The name as the caller wrote it. Stored with the volume: two names with one native form are
    /// told apart by it.
    pub name: RequestedName,
    /// The sizes that are accepted.
    pub capacity: CapacityRange,
    /// Every way in which it must be usable; at least one.
    pub capabilities: Vec<VolumeCapability>,
    /// Parameters without `pool` and without the reserved keys. The backend refuses unknown ones.
    pub parameters: Attributes,
    /// Parameters that may be changed later; they win over `parameters`.
    pub mutable_parameters: Attributes,
    /// How the node shall encrypt it. The backend keeps [`Encryption::context`] in the volume's context,
    /// makes room for the header, and refuses copies that [`FormatState::check_copy`] refuses.
    pub encryption: Option<Encryption>,
    /// What the caller says of who wants it: the reserved keys, such as the names of claim and namespace.
    /// They are no property of the volume; names may be made from them.
    pub about: Attributes,
    /// Where its first data comes from.
    pub source: Option<ContentSource>,
    /// Where it must be usable.
    pub topology: Option<TopologyRequirement>,
    /// Credentials for the storage.
    pub secrets: Secrets,
    /// It lives as long as one pod (CSI inline volume).
    pub ephemeral: bool,
}

impl VolumeSpec {
    /// Whether only raw block access is asked for.
    pub fn is_block(&self) -> bool {
        self.capabilities.iter().all(VolumeCapability::is_block)
    }
    /// Whether raw block access is among what is asked for.
    pub fn wants_block(&self) -> bool {
        self.capabilities.iter().any(VolumeCapability::is_block)
    }
}

/// A volume that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The name it was asked for under; the native name where nobody asked (static volumes).
    pub name: String,
    /// Its size.
    pub capacity: Bytes,
    /// Handed back by callers at stage and publish. Immutable, not secret.
    pub context: Attributes,
    /// Where its first data came from.
    pub source: Option<ContentSource>,
    /// The places it can be used from; empty: everywhere.
    pub topology: Vec<Segments>,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// It was put there by an administrator, not created through us: never deleted by us.
    pub is_static: bool,
    /// It lives as long as one pod.
    pub ephemeral: bool,
    /// What it was made for.
    pub uses: Uses,
    /// How fast it may be used, as its record says now.
    pub limits: Limits,
}

/// A snapshot that shall exist.
#[derive(Debug, Clone)]
pub struct SnapshotSpec {
    /// The id it will have, in the source's pool.
    pub id: SnapshotId,
    /// The name as the caller wrote it.
    pub name: RequestedName,
    /// The volume to cut.
    pub source: VolumeId,
    /// VolumeSnapshotClass parameters without the reserved keys.
    pub parameters: Attributes,
    /// Credentials for the storage.
    pub secrets: Secrets,
}

/// A snapshot that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The name it was asked for under.
    pub name: String,
    /// The volume it was cut from (which may be gone).
    pub source: VolumeId,
    /// The least size of a volume made from it.
    pub size: Bytes,
    /// When it was cut.
    pub created: jiff::Timestamp,
    /// Whether a volume can be made from it now.
    pub ready: bool,
    /// The group it was cut with; it cannot be deleted alone then.
    pub group: Option<String>,
    /// The places where volumes made from it can live; empty: everywhere.
    pub topology: Vec<Segments>,
}

/// A group of snapshots cut at one point of the write stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its members.
    pub snapshots: Vec<Snapshot>,
    /// When it was cut.
    pub created: jiff::Timestamp,
    /// Whether all members are ready.
    pub ready: bool,
}

/// A run of bytes of a block volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, above zero.
    pub length: u64,
}

/// How much more can be made in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// What can still be provisioned.
    pub available: Bytes,
    /// The largest single volume, where it differs.
    pub largest: Option<Bytes>,
    /// The least volume.
    pub smallest: Option<Bytes>,
}

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeUsage {
    /// Its size.
    pub total: Bytes,
    /// What can still be written.
    pub available: Bytes,
    /// What is used.
    pub used: Bytes,
    /// The most files and directories; 0 where they are not counted.
    pub inodes: u64,
    /// How many more can be made.
    pub inodes_free: u64,
    /// How many there are.
    pub inodes_used: u64,
}

/// A part of a listing: at most `max` items after the item named `after`, in the order of ids.
///
/// The order never changes while volumes come and go, so a walk through pages sees every volume
/// that existed during the whole walk exactly once.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The last id of the page before; None: from the beginning.
    pub after: Option<String>,
    /// The most items; None: all.
    pub max: Option<usize>,
}

/// Items in the order of their ids, and whether more follow.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether a page after the last item would hold more.
    pub more: bool,
}

/// What is wrong with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthStatus {
    /// It works, but not as it should.
    Degraded,
    /// It cannot be used from here.
    Inaccessible,
    /// Data is, or is strongly suspected to be, lost for good.
    DataLoss,
}

/// One finding about a volume. Status and reason are unique together per volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEntry {
    /// How bad it is.
    pub status: HealthStatus,
    /// CamelCase, for programs: `ImageMissing`.
    pub reason: &'static str,
    /// For people: what was found and what to do.
    pub message: String,
}

/// One finding about the storage behind a driver on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageHealth {
    /// Whether it cannot be reached at all (otherwise: degraded).
    pub unreachable: bool,
    /// CamelCase: `PoolReadOnly`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What the record kept with a volume says of the file system on its device.
///
/// ```text
///   Unformatted ──record──▶ Formatting ──mkfs, record──▶ Formatted
///        ▲ only when blank ┘      │ crash: mkfs again, the record proves that it was ours
///
///   Unformatted, Formatting, Foreign ──handed out as a raw block device──▶ Raw
///
///   Unformatted ──record──▶ Encrypting ──luksFormat, record──▶ Encrypted: the same, inside
/// ```
/// An earlier release cannot read a record with one of the two last, and so never hands out the
/// encrypted device as if it were the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum FormatState {
    /// Created by us and never given a file system. It is still probed before it is formatted.
    Unformatted,
    /// Our mkfs was started; whatever a probe finds now is its remains.
    Formatting {
        /// What mkfs was asked to make.
        fs: FsType,
    },
    /// It holds a file system with data. Never formatted again, whatever a probe finds.
    Formatted {
        /// What was made, or was found.
        fs: FsType,
    },
    /// Nothing is known (a static volume, or a file in the place of the one that the record is
    /// about): whatever is on it was put there by others. Formatted only when all of it is zeros.
    Foreign,
    /// It was handed to a workload as a raw block device. What is on it is the workload's, and may
    /// lie where no probe looks, so it is never formatted, however blank it seems. A file system
    /// that the workload made on it can be mounted.
    Raw,
    /// Our luksFormat was started: whatever a probe finds now is its remains, and nothing is in it.
    Encrypting {
        /// The header's UUID.
        luks: Uuid,
    },
    /// It is encrypted. The header is never made again, whatever a probe finds.
    Encrypted {
        /// The header's UUID. Copies have that of their source.
        luks: Uuid,
        /// What is known of the device that opening it gives.
        inside: Inside,
    },
}

/// What the record says of the inside of an encrypted device.
///
/// It never is blank: what was never written reads as noise. So the record alone tells that nothing is in
/// it yet: `Formatting` is written before the device is opened for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Inside {
    /// As [`FormatState::Formatting`].
    Formatting {
        /// What mkfs was asked to make.
        fs: FsType,
    },
    /// As [`FormatState::Formatted`].
    Formatted {
        /// What was made, or was found.
        fs: FsType,
    },
    /// As [`FormatState::Foreign`].
    Foreign,
    /// As [`FormatState::Raw`].
    Raw,
}

impl From<Inside> for FormatState {
    fn from(inside: Inside) -> Self {
        match inside {
            Inside::Formatting { fs } => Self::Formatting { fs },
            Inside::Formatted { fs } => Self::Formatted { fs },
            Inside::Foreign => Self::Foreign,
            Inside::Raw => Self::Raw,
        }
    }
}

impl FormatState {
    /// What is known of the file system, on the device or inside its encryption.
    pub fn inside(self) -> Self {
        match self {
            Self::Encrypted { inside, .. } => inside.into(),
            state => state,
        }
    }

    /// The file system that it holds, or that is being made.
    pub fn file_system(self) -> Option<FsType> {
        match self.inside() {
            Self::Formatting { fs } | Self::Formatted { fs } => Some(fs),
            _ => None,
        }
    }

    /// Something of ours is being made on it: until that is done, it permits to make it again, and a
    /// copy would hold a piece of it.
    pub fn is_begun(self) -> bool {
        matches!(self.inside(), Self::Formatting { .. } | Self::Encrypting { .. })
    }

    /// Refuses to copy data in this state to a volume that shall, or shall not, be encrypted: a copy has
    /// its source's bytes, encrypted or not.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_copy(self, encryption: Option<&Encryption>) -> Result<()> {
        match (self, encryption) {
            (Self::Encrypted { .. } | Self::Encrypting { .. }, None) => {
                Err(Fault::invalid("copy an encrypted volume to one that is not encrypted")
                    .hint("ask for encryption: luks2, and use the source's secret"))
            }
            (Self::Formatting { .. } | Self::Formatted { .. } | Self::Raw, Some(_)) => {
                Err(Fault::invalid("copy a volume that is not encrypted to an encrypted one").hint(
                    "make an empty encrypted volume and copy the files; leave encryption out otherwise",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// A pool as people see it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is: a directory, a volume group, an export.
    pub location: String,
    /// The unique id in its identity.
    pub identity: Option<String>,
    /// The kind of file system or storage below.
    pub storage: String,
    /// Size of the storage below.
    pub total: Bytes,
    /// Free there.
    pub free: Bytes,
    /// Sum of the sizes of its volumes.
    pub provisioned: Bytes,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// What it cannot do and what that means: sizes not enforced, no reflink.
    pub warnings: Vec<String>,
    /// Why it cannot be used now.
    pub fault: Option<String>,
}

/// What a backend says of itself once and for all.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where a volume can be used.
    pub scope: Scope,
    /// The access modes that are accepted.
    pub access_modes: Vec<AccessMode>,
    /// Raw block volumes are possible.
    pub block: bool,
    /// Mounted volumes are possible.
    pub mount: bool,
    /// File systems that may be asked for; empty: the volume has none of its own.
    pub file_systems: Vec<FsType>,
    /// Size of a volume when the caller asks for none.
    pub default_size: Bytes,
    /// The least volume.
    pub min_size: Bytes,
    /// Sizes are multiples of this.
    pub size_step: Bytes,
    /// Volumes must be attached by the control plane before a node can use them
    /// (CSIDriver.spec.attachRequired, PUBLISH_UNPUBLISH_VOLUME).
    pub attach_required: bool,
    /// CSIDriver.spec.fsGroupPolicy: `File`, `ReadWriteOnceWithFSType` or `None`.
    pub fs_group_policy: &'static str,
    /// The node can make new files belong to a group at mount time (VOLUME_MOUNT_GROUP).
    pub mount_group: bool,
    /// A published volume can grow.
    pub online_expansion: bool,
    /// Growing needs a step on the node (file system, device size).
    pub node_expansion: bool,
    /// Volumes that live as long as a pod are possible.
    pub ephemeral: bool,
    /// Callers may choose where a snapshot can be used (SNAPSHOT_ACCESSIBILITY_CONSTRAINTS).
    pub snapshot_topology: bool,
    /// The most volumes a node can use; None: no statement.
    pub max_volumes_per_node: Option<u32>,
}

/// Where a volume can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// On the node that made it. The topology key is [`NODE_TOPOLOGY_KEY`].
    Node(NodeName),
    /// Everywhere; no topology is announced.
    Everywhere,
}

/// Topology key of node-local storage; its value is the node's name.
pub const NODE_TOPOLOGY_KEY: &str = "topology.larder.dev/node";

impl Scope {
    /// The place of this driver's volumes, empty for everywhere.
    pub fn segments(&self) -> Option<Segments> {
        match self {
            Self::Node(node) => Some(Segments::one(NODE_TOPOLOGY_KEY, node.as_str())),
            Self::Everywhere => None,
        }
    }
}
