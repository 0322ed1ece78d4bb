//! What a kind of storage implements.
//!
//! A backend is two halves. [`Provision`] is the control plane: it makes and deletes volumes.
//! [`Connect`] is the node's half: it makes a volume's data reachable on this machine and says
//! where; it never formats and never mounts, because the node engine does that once for all.
//! Optional abilities are accessors that answer `None` unless overridden; the CSI capabilities that
//! a driver announces are derived from them, so they cannot lie.
//!
//! Promises that every method keeps:
//! - **Repeatable.** `ensure_*` returns the existing match and `Conflict` where it differs; `delete_*`
//!   of an absent thing succeeds; any method that was cut by a crash is completed or taken back by
//!   its next call or by [`Backend::start`].
//! - **Alone on its object.** The engines hold a claim per volume and snapshot: two mutating calls
//!   for one object never overlap in this process. Other processes are kept out by the backend
//!   (pool locks).
//! - **Cancellation.** Methods are run to completion: a caller that gives up does not stop them.
//! - **Errors.** `Invalid` only for what the caller wrote; `Unavailable` when the pool or server
//!   cannot be reached (never "gone"); `Exhausted` for no space, with nothing left behind.

use crate::{
    bytes::{Bytes, CapacityRange},
    capability::VolumeCapability,
    cx::Cx,
    fault::{Fault, Result},
    id::{Handle, PoolName, SnapshotId, VolumeId},
    secrets::Secrets,
    trash::Trash,
    volume::{
        Attributes, Capacity, Extent, Facts, FormatState, GroupSnapshot, HealthEntry, Listed, Page,
        PoolStatus, Snapshot, SnapshotSpec, StorageHealth, Volume, VolumeSpec, VolumeUsage,
    },
};
use async_trait::async_trait;
use std::{fmt, path::PathBuf};

/// One configured driver's storage.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The kind, as configured: `dir`, `loop`.
    fn kind(&self) -> &'static str;

    /// Static facts.
    fn facts(&self) -> &Facts;

    /// The configured pools, in the order of their names.
    fn pools(&self) -> Vec<PoolName>;

    /// Whether a handle of this pool is to be answered here. By default its pools are the configured ones;
    /// volumes that others made may be in none.
    fn has_pool(&self, pool: &PoolName) -> bool {
        self.pools().contains(pool)
    }

    /// The pool of a request that names none.
    ///
    /// # Errors
    /// `Invalid` where several exist and none is called `default`.
    fn default_pool(&self) -> Result<PoolName> {
        let pools = self.pools();
        let default = pools.iter().find(|p| p.as_str() == "default");
        match (default, pools.as_slice()) {
            (Some(pool), _) | (None, [pool]) => Ok(pool.clone()),
            _ => Err(Fault::invalid("choose a pool: none is called default").hint(format!(
                "set parameter pool to one of {}",
                pools.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Reads a volume or snapshot id. Personas override this with their own form.
    ///
    /// # Errors
    /// `NotFound` for what cannot be an id of this driver.
    fn parse_handle(&self, text: &str) -> Result<Handle> {
        text.parse()
    }

    /// The parameters that StorageClasses may set, for help, docs and `driver info`.
    fn parameters(&self) -> &'static [Parameter];

    /// Takes possession (waiting for a predecessor to let go), loads what exists and mends what a
    /// killed process left half-done. Called once, before anything else; the driver answers Probe
    /// with "not ready" until it returns. A pool that cannot be used now does not fail the start:
    /// its volumes answer `Unavailable` until it comes back.
    ///
    /// # Errors
    /// Only what an administrator must mend before this driver can serve at all.
    async fn start(&self, cx: &Cx) -> Result<()>;

    /// Lets go of the pools. No method is called afterwards. Never unmounts.
    async fn stop(&self);

    /// Whether the driver can work (CSI Probe).
    ///
    /// # Errors
    /// `Precondition` that says what is missing.
    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    /// The pools as people see them. Never fails: what is wrong stands in the status.
    async fn pool_status(&self) -> Vec<PoolStatus>;

    /// What is wrong with the storage as this node sees it; empty: nothing known.
    async fn storage_health(&self) -> Vec<StorageHealth> {
        Vec::new()
    }

    /// Where deleted volumes and snapshots are kept for a while, if there is such a thing.
    fn trash(&self) -> Option<&dyn Trash> {
        None
    }

    /// The control plane.
    fn provision(&self) -> &dyn Provision;

    /// The node's half.
    fn connect(&self) -> &dyn Connect;
}

/// A StorageClass parameter, described for people.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// What it does, one sentence.
    pub what: &'static str,
    /// Its default as text.
    pub default: &'static str,
}

/// The control plane of a backend.
#[async_trait]
pub trait Provision: Send + Sync {
    /// Makes the volume, or returns the one that was made for an equal spec.
    ///
    /// Guarantees: on success everything needed to find, use and delete it survives a power cut.
    /// New volumes never show data of former ones. On failure nothing is left behind.
    ///
    /// # Errors
    /// `Conflict` (name exists with other properties, says which), `Invalid` (parameter or
    /// capability), `OutOfRange` (size), `NotFound` (source), `Exhausted` (space), `Unavailable`.
    async fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume>;

    /// Deletes the volume and its data; an absent one is a success.
    ///
    /// # Errors
    /// `Precondition` while it is in use or is static, `Unavailable`.
    async fn delete_volume(&self, id: &VolumeId, secrets: &Secrets, cx: &Cx) -> Result<()>;

    /// The volume.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt` (its record cannot be read).
    async fn get_volume(&self, id: &VolumeId) -> Result<Volume>;

    /// The volume, as whoever asks knows it: `context` are its attributes, from its creation or as an
    /// administrator wrote them. By default they tell nothing that the id does not; of a volume that others
    /// made on a server they tell all, and what names its place need not be looked up.
    ///
    /// # Errors
    /// As [`Provision::get_volume`]; `Invalid` for attributes that no volume has.
    async fn describe_volume(&self, id: &VolumeId, context: &Attributes) -> Result<Volume> {
        let _ = context;
        self.get_volume(id).await
    }

    /// Refuses parameters that `ensure_volume` would refuse, without effects (for
    /// ValidateVolumeCapabilities and GetCapacity).
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    fn check_parameters(&self, parameters: &Attributes) -> Result<()>;

    /// LIST_VOLUMES.
    fn list(&self) -> Option<&dyn ListVolumes> {
        None
    }
    /// GET_CAPACITY.
    fn capacity(&self) -> Option<&dyn GetCapacity> {
        None
    }
    /// EXPAND_VOLUME.
    fn expand(&self) -> Option<&dyn Expand> {
        None
    }
    /// MODIFY_VOLUME.
    fn modify(&self) -> Option<&dyn Modify> {
        None
    }
    /// PUBLISH_UNPUBLISH_VOLUME.
    fn attach(&self) -> Option<&dyn Attach> {
        None
    }
    /// CREATE_DELETE_SNAPSHOT, LIST_SNAPSHOTS, GET_SNAPSHOT.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
    /// CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT.
    fn groups(&self) -> Option<&dyn Groups> {
        None
    }
    /// SNAPSHOT_METADATA_SERVICE.
    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        None
    }
    /// GET_VOLUME_HEALTH and LIST_VOLUME_HEALTH.
    fn health(&self) -> Option<&dyn Health> {
        None
    }
    /// CLONE_VOLUME: `ensure_volume` accepts a volume as source.
    fn clones(&self) -> bool {
        false
    }
}

/// Volumes in pages.
#[async_trait]
pub trait ListVolumes: Send + Sync {
    /// One page over all pools, in the order of ids.
    ///
    /// # Errors
    /// `Unavailable` when a pool that the page would show is away: what is missing in a list counts as
    /// gone.
    async fn list_volumes(&self, page: &Page) -> Result<Listed<Volume>>;
}

/// Free capacity.
#[async_trait]
pub trait GetCapacity: Send + Sync {
    /// What can still be provisioned in `pool` with these parameters.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn capacity(&self, pool: &PoolName, parameters: &Attributes) -> Result<Capacity>;
}

/// Growth.
#[async_trait]
pub trait Expand: Send + Sync {
    /// Makes the volume at least `range.required` large and returns its size. Never shrinks.
    ///
    /// # Errors
    /// `OutOfRange`, `NotFound`, `Exhausted` (nothing changed), `Precondition` (in use, and only
    /// offline growth is possible).
    async fn expand_volume(
        &self,
        id: &VolumeId,
        range: CapacityRange,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Bytes>;
}

/// Changes while in use (VolumeAttributesClass).
///
/// Only the volume's record is changed here, durably. The node that uses the volume takes what it says
/// when it stages the volume, when it starts, and when it is told: the control engine tells the node
/// engine of its own process right after the change.
#[async_trait]
pub trait Modify: Send + Sync {
    /// Refuses mutable parameters that no volume has, without effects.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    fn check_mutable(&self, parameters: &Attributes) -> Result<()>;

    /// Notes the keys that are present, with the volume; all or nothing.
    ///
    /// # Errors
    /// `Invalid` promises that nothing was changed.
    async fn modify_volume(
        &self,
        id: &VolumeId,
        parameters: &Attributes,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()>;
}

/// Attachment by the control plane.
#[async_trait]
pub trait Attach: Send + Sync {
    /// Makes the volume reachable for `node`; returns the publish context.
    ///
    /// # Errors
    /// `Precondition` (attached elsewhere; names the node), `Conflict`, `NotFound`, `Exhausted`.
    async fn attach_volume(
        &self,
        id: &VolumeId,
        node: &str,
        capability: &VolumeCapability,
        readonly: bool,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Attributes>;

    /// Takes that back; `None`: from all nodes. Not attached is a success.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn detach_volume(
        &self,
        id: &VolumeId,
        node: Option<&str>,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()>;

    /// The nodes it is attached to.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn attached_nodes(&self, id: &VolumeId) -> Result<Vec<String>>;
}

/// Snapshots.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Cuts the snapshot, or returns the one with that name and source. A mounted file system is
    /// made consistent first (frozen, or by the storage's own means).
    ///
    /// # Errors
    /// `Conflict` (name exists for another source), `NotFound` (source), `Exhausted` (nothing left
    /// behind), `Precondition` (writes cannot be held back).
    async fn ensure_snapshot(&self, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot>;

    /// Deletes it; an absent one is a success.
    ///
    /// # Errors
    /// `Invalid` (member of a group), `Precondition` (in use), `Unavailable`.
    async fn delete_snapshot(&self, id: &SnapshotId, secrets: &Secrets, cx: &Cx) -> Result<()>;

    /// The snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot>;

    /// One page, in the order of ids; only those of `source` where given.
    ///
    /// # Errors
    /// `Unavailable` only when no pool can be read.
    async fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        page: &Page,
    ) -> Result<Listed<Snapshot>>;
}

/// Group snapshots.
#[async_trait]
pub trait Groups: Send + Sync {
    /// Cuts all members at one point of the write stream, or makes nothing.
    ///
    /// # Errors
    /// `Precondition` (cannot be cut together), `Conflict`, `NotFound`, `Exhausted`.
    async fn ensure_group(
        &self,
        id: &SnapshotId,
        name: &str,
        members: &[SnapshotSpec],
        cx: &Cx,
    ) -> Result<GroupSnapshot>;

    /// Deletes the group with all members; `members` must be its members.
    ///
    /// # Errors
    /// `Invalid` (other members), `Precondition` (in use).
    async fn delete_group(&self, id: &SnapshotId, members: &[SnapshotId], cx: &Cx) -> Result<()>;

    /// The group.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get_group(&self, id: &SnapshotId) -> Result<GroupSnapshot>;
}

/// Changed block tracking between snapshots of block volumes.
#[async_trait]
pub trait ChangedBlocks: Send + Sync {
    /// Up to `max` extents that hold data (or differ from `base`) and end after `offset`. Never misses a
    /// change; may report more. Looks for seconds at most and tells how far it came: a caller that has
    /// gone must not keep storage busy for hours.
    ///
    /// # Errors
    /// `NotFound`, `OutOfRange` (offset), `Precondition` (not tracked: back up in full).
    async fn extents(
        &self,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        offset: u64,
        max: usize,
    ) -> Result<FoundExtents>;
}

/// What [`ChangedBlocks::extents`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundExtents {
    /// Ascending, not overlapping.
    pub extents: Vec<Extent>,
    /// The volume's size.
    pub size: Bytes,
    /// All before this byte is told of; the volume's size at the end. Always beyond the `offset` that
    /// was asked for, but at the end.
    pub next: u64,
}

/// Health as the control plane sees it.
#[async_trait]
pub trait Health: Send + Sync {
    /// What is wrong with the volume; empty: nothing known.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn volume_health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>>;

    /// The same of several volumes, in their order. Lists ask this way, so that a backend can look at
    /// what they have in common once; one whose looks take long looks at them side by side.
    async fn volumes_health(&self, ids: &[VolumeId]) -> Vec<Result<Vec<HealthEntry>>> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.push(self.volume_health(id).await);
        }
        found
    }
}

/// What the node engine asks of a backend.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// The volume.
    pub id: VolumeId,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// Nothing will be written.
    pub readonly: bool,
    /// Attributes of the volume, as returned at creation or written by an administrator.
    pub context: Attributes,
    /// From the control plane's attach.
    pub publish_context: Attributes,
    /// Credentials.
    pub secrets: Secrets,
}

/// A volume's data on this machine.
pub enum Source {
    /// A block device.
    Device {
        /// Its node under /dev.
        path: PathBuf,
        /// Keeps the device from going away until the engine has mounted it (for loop devices with
        /// autoclear: an open descriptor). Dropped after the mount.
        hold: Option<std::os::fd::OwnedFd>,
    },
    /// A directory that is bind-mounted.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A file system that is mounted (network file systems).
    FileSystem {
        /// The kernel's name: `nfs4`.
        fs_type: String,
        /// As in mount(2).
        source: String,
        /// Mount options.
        options: Vec<String>,
    },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { path, .. } => write!(f, "device {}", path.display()),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            // Options may hold credentials.
            Self::FileSystem { fs_type, source, .. } => write!(f, "{fs_type} {source}"),
        }
    }
}

/// What [`Connect::connect`] leaves for the node's record: enough to prove, after a restart, that
/// a device is still the one that was connected (for a loop device: number and backing inode).
pub type Attachment = Attributes;

/// The node's half of a backend.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Makes the volume's data reachable here. Repeated: finds what is connected already.
    ///
    /// # Errors
    /// `NotFound`, `Precondition` (capability not possible, image damaged), `Exhausted` (no free
    /// device), `Unavailable`.
    async fn connect(&self, request: &ConnectRequest, cx: &Cx) -> Result<(Source, Attachment)>;

    /// What is connected for this volume already, as `connect` would return it; None: nothing is. Only
    /// looks: whoever lost the node's records asks this about mounts that workloads use, so nothing is
    /// made, changed or let go, and a device is not held.
    ///
    /// # Errors
    /// `NotFound`; `Precondition` where it cannot be told (several devices); `Unavailable`.
    async fn find(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>>;

    /// The kinds of network file systems as which the volume is mounted, as the mount table names them;
    /// empty: it is none. Where the node's records are lost, a mount of such a kind at the very path that
    /// a caller names for the volume is let go as the volume's: its server may be silent, and of a
    /// volume that was made elsewhere nobody but the caller knows.
    fn mounted_as(&self, _id: &VolumeId) -> &'static [&'static str] {
        &[]
    }

    /// Takes it back. `attachment` is what `connect` left, None when the node was killed before
    /// that could be recorded: then whatever is connected for this volume is found and released.
    /// Called only when nothing uses the source any more. Not connected, or no such volume, is a
    /// success.
    ///
    /// # Errors
    /// `Precondition` (still in use), `Unavailable`.
    async fn disconnect(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()>;

    /// Whether the attachment still stands: the device exists and is still the recorded one. What does
    /// not stand is taken back, so a device that is there stands although its data lost its name or
    /// cannot be looked at now; [`Connect::node_health`] tells of that.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn is_connected(&self, id: &VolumeId, attachment: &Attachment) -> Result<bool>;

    /// What the record kept with the volume says of its file system. Only asked of devices.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    async fn format_state(&self, id: &VolumeId) -> Result<FormatState>;

    /// Writes that record, durably, with the volume.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Exhausted`.
    async fn set_format_state(&self, id: &VolumeId, state: FormatState) -> Result<()>;

    /// After growth by the control plane: makes the connected source have the new size here and
    /// returns it (loop: LOOP_SET_CAPACITY; iSCSI: rescan). For a directory: its quota.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn refresh_size(&self, id: &VolumeId, attachment: &Attachment, cx: &Cx) -> Result<Bytes>;

    /// What is wrong with the volume as this node sees it (image gone, loop device lost).
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn node_health(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<HealthEntry>>;

    /// How full the volume is, where statfs of its mount does not tell: a directory whose size is
    /// limited by a btrfs qgroup, or by nothing, shows the figures of the whole file system there.
    /// None: statfs tells. Cheap enough for kubelet's stats rhythm.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn usage(&self, id: &VolumeId) -> Result<Option<VolumeUsage>> {
        let _ = id;
        Ok(None)
    }

    /// Whether file systems made from copies share their UUID, so that mounting needs `nouuid`
    /// (xfs clones).
    fn copies_share_uuid(&self) -> bool {
        true
    }
}
