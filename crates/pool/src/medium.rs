//! What a backend of file-based pools implements.
//!
//! A [`Medium`] knows one thing: what the data of one volume is (a directory, an image file), and
//! how that is made, filled, cut, grown, removed and connected to this machine. Names, records,
//! locks, idempotency, paging, capacity, undo and recovery are the pool's.
//!
//! Every method is plain blocking code: the pool runs a whole operation in one blocking task, so a
//! creation costs one hop to another thread and no medium can block the runtime by mistake.
//!
//! ```text
//! plan ──▶ folder creating/volume-x made ──▶ create | fill ──▶ record written ──▶ renamed: exists
//!                                               │ fails or dies: remove, later or at the next start
//! cut: the same with creating/snapshot-x
//! delete: in_use? ──▶ renamed to deleting/… : gone ──▶ remove
//! ```
//!
//! **Durability.** `create`, `fill` and `cut` return only when the *contents* they made would
//! survive a power cut (an fsync of the image; of each copied file). The names on the way to them
//! are made durable by the pool, which writes the record after them.
//!
//! **Repeats.** `create`, `fill` and `cut` always start with a folder that is empty and new, made
//! by the pool with mode 0700. `grow`, `remove` and `disconnect` may be repeated after a crash at
//! any point. Steps are marked with [`Cx::step`]; progress of long copies with [`Cx::advance`].

use crate::{
    config::PoolConfig,
    entry::{Entry, SnapshotEntry},
    pool::Pool,
    record::medium_value,
};
use larder_model::{
    Bytes, Cx, Fault, Params, PoolName, Result, VolumeId,
    backend::{Attachment, ConnectRequest, FoundExtents, Parameter, Source},
    volume::{Attributes, Facts, FormatState, HealthEntry, VolumeSpec, VolumeUsage},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{any::Any, fmt, path::Path, sync::Arc};

/// What volumes of a pool are made of. See the module's text for the order of calls.
pub trait Medium: Send + Sync + 'static {
    /// The kind, as configured: `dir`, `loop`.
    fn kind(&self) -> &'static str;

    /// Static facts.
    fn facts(&self) -> &Facts;

    /// The StorageClass parameters, for help and docs.
    fn parameters(&self) -> &'static [Parameter];

    /// The name of the data inside a volume's or snapshot's folder: `data`, `image`.
    fn data_name(&self) -> &'static str;

    /// What follows a static volume's name in the pool's `static` folder: nothing, or `.img`.
    fn static_suffix(&self) -> &'static str {
        ""
    }

    /// Looks at a pool when it is opened (its identity is proven then): what its file system can
    /// do, and what people should be warned of.
    ///
    /// # Errors
    /// `Precondition` when this medium cannot work there at all; otherwise warn.
    fn inspect(&self, name: &PoolName, config: &PoolConfig) -> Result<PoolTraits>;

    /// Refuses parameters that [`Medium::plan`] would refuse, without a pool.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    fn check_parameters(&self, parameters: &Attributes) -> Result<()>;

    /// Refuses unknown VolumeSnapshotClass parameters. By default there are none.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    fn check_snapshot_parameters(&self, parameters: &Attributes) -> Result<()> {
        Params::new(parameters).finish()
    }

    /// Whether `pool` can hold volumes with these parameters at all, however much is free: where
    /// not, its capacity for them is zero, so that schedulers look elsewhere. By default: yes.
    ///
    /// # Errors
    /// What [`Medium::plan`] would say there.
    fn suits(&self, pool: &Pool, parameters: &Attributes) -> Result<()> {
        let _ = (pool, parameters);
        Ok(())
    }

    /// Decides what a new volume will be, without effects. [`PlanRequest::size`] picks the size.
    ///
    /// # Errors
    /// `Invalid` (parameters, capabilities), `OutOfRange` (size).
    fn plan(&self, pool: &Pool, request: &PlanRequest<'_>) -> Result<Plan>;

    /// Makes the data of a new, empty volume in `folder`. It never shows data of former volumes.
    ///
    /// # Errors
    /// `Exhausted`, I/O. What was made is removed by the pool through [`Medium::remove`].
    fn create(&self, pool: &Pool, folder: &Path, plan: &Plan, cx: &Cx) -> Result<()>;

    /// Makes the data of a new volume in `folder` from `origin`, which stays as it is and may be in
    /// use (and in another pool of this driver). `plan.size` may be above the origin's size.
    ///
    /// # Errors
    /// `Exhausted`, I/O, `Precondition` (a live origin cannot be made consistent).
    fn fill(&self, pool: &Pool, origin: &Origin, folder: &Path, plan: &Plan, cx: &Cx)
    -> Result<()>;

    /// Makes a snapshot of `volume` in `folder`, consistent also while it is mounted.
    ///
    /// # Errors
    /// `Exhausted`, I/O, `Precondition` (writes cannot be held back).
    fn cut(&self, pool: &Pool, volume: &Entry, folder: &Path, cx: &Cx) -> Result<SnapshotFacts>;

    /// Whether a volume is a device of its own, whose throughput the node can limit; if so, the driver
    /// takes [`larder_model::limits`], also as modifications, and the pool keeps them.
    fn has_limits(&self) -> bool {
        false
    }

    /// Whether [`Medium::cut_together`] is possible; if so, the driver offers group snapshots.
    fn cuts_together(&self) -> bool {
        false
    }

    /// Makes snapshots of several volumes, each in its own folder, at one point of all their write
    /// streams; says for each, in the order of `parts`, what [`Medium::cut`] would say.
    ///
    /// # Errors
    /// As [`Medium::cut`]; `Precondition` where the writes of one of them cannot be held back.
    fn cut_together(&self, pool: &Pool, parts: &[Part<'_>], cx: &Cx) -> Result<Vec<SnapshotFacts>> {
        let _ = (pool, parts, cx);
        Err(Fault::unsupported(format!("cut {} volumes together", self.kind())))
    }

    /// Whether [`Medium::blocks`] is possible; if so, the driver tells the blocks of snapshots.
    fn tracks_blocks(&self) -> bool {
        false
    }

    /// [`larder_model::backend::ChangedBlocks::extents`] of snapshots of one volume. The offset is
    /// within the record's size, but may be beyond what is told of.
    ///
    /// # Errors
    /// See there.
    fn blocks(
        &self,
        pool: &Pool,
        base: Option<&SnapshotEntry>,
        target: &SnapshotEntry,
        wanted: Blocks,
    ) -> Result<FoundExtents> {
        let _ = (pool, base, target, wanted);
        Err(Fault::unsupported(format!("tell the blocks of {} snapshots", self.kind())))
    }

    /// Makes the volume's data `size` large, above its recorded size; the record follows. After an
    /// error the data has its former size.
    ///
    /// # Errors
    /// `Exhausted`, `Precondition` (in use, and only offline growth is possible).
    fn grow(&self, pool: &Pool, volume: &Entry, size: Bytes, cx: &Cx) -> Result<()>;

    /// The space that growing to `size` takes at once (preallocated images); what the pool does not
    /// have free is refused before [`Medium::grow`] is called.
    fn growth_allocates(&self, pool: &Pool, volume: &Entry, size: Bytes) -> Bytes {
        let _ = (pool, volume, size);
        Bytes::ZERO
    }

    /// Who uses the volume on this machine, in words, for refusing its deletion. None: nobody.
    ///
    /// # Errors
    /// Where that cannot be found out.
    fn in_use(&self, pool: &Pool, volume: &Entry) -> Result<Option<String>>;

    /// Lets go of the data in `folder`, a volume's or snapshot's that was renamed aside or never
    /// finished (so anything in it may be missing or half-made): quota ids, subvolumes, devices.
    /// The pool then removes what is left of the folder, without leaving its file system. Nothing
    /// to do by default.
    ///
    /// # Errors
    /// I/O. It is called again then.
    fn remove(&self, pool: &Pool, folder: &Path, cx: &Cx) -> Result<()> {
        let _ = (pool, folder, cx);
        Ok(())
    }

    /// Looks at data that an administrator put into `static`. It is no symlink.
    ///
    /// # Errors
    /// `Precondition`: not what this medium works with (a file where a directory is needed).
    fn look(&self, pool: &Pool, data: &Path) -> Result<StaticFacts>;

    /// The bytes that `data` takes on the pool's file system.
    ///
    /// # Errors
    /// `NotFound`, I/O.
    fn allocated(&self, pool: &Pool, data: &Path) -> Result<Bytes>;

    /// As [`Medium::allocated`], of what is being deleted: quickly, so that it may be less.
    ///
    /// # Errors
    /// I/O.
    fn takes(&self, pool: &Pool, data: &Path) -> Result<Bytes> {
        self.allocated(pool, data)
    }

    /// The data that was `data` has gone into the trash: what is remembered of that path is void.
    fn moved(&self, data: &Path) {
        let _ = data;
    }

    /// What is wrong with the volume's data; that it exists was checked. Empty: nothing known.
    /// `attachment`: how it is connected, where that is known and saves looking for it.
    fn health(
        &self,
        pool: &Pool,
        volume: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        let _ = (pool, volume, attachment);
        Vec::new()
    }

    /// The largest volume that the pool's file system can hold, however much is free; None: no
    /// such bound.
    fn max_size(&self, pool: &Pool) -> Option<Bytes> {
        let _ = pool;
        None
    }

    /// [`larder_model::Connect::connect`].
    ///
    /// # Errors
    /// See there.
    fn connect(
        &self,
        pool: &Pool,
        volume: &Entry,
        request: &ConnectRequest,
        cx: &Cx,
    ) -> Result<(Source, Attachment)>;

    /// [`larder_model::Connect::find`].
    ///
    /// # Errors
    /// See there.
    fn find(&self, pool: &Pool, volume: &Entry) -> Result<Option<(Source, Attachment)>>;

    /// [`larder_model::Connect::disconnect`]. `volume` is None when it or its pool is gone; then
    /// `attachment` is all there is (never are both None).
    ///
    /// # Errors
    /// See there.
    fn disconnect(
        &self,
        id: &VolumeId,
        volume: Option<&Entry>,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()>;

    /// [`larder_model::Connect::is_connected`].
    ///
    /// # Errors
    /// See there.
    fn is_connected(
        &self,
        id: &VolumeId,
        volume: Option<&Entry>,
        attachment: &Attachment,
    ) -> Result<bool>;

    /// [`larder_model::Connect::refresh_size`].
    ///
    /// # Errors
    /// See there.
    fn refresh_size(
        &self,
        pool: &Pool,
        volume: &Entry,
        attachment: &Attachment,
        cx: &Cx,
    ) -> Result<Bytes>;

    /// [`larder_model::Connect::node_health`]: what this node sees beyond [`Medium::health`].
    fn node_health(
        &self,
        pool: &Pool,
        volume: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        let _ = (pool, volume, attachment);
        Vec::new()
    }

    /// [`larder_model::Connect::usage`]: None where statfs of a mount tells.
    ///
    /// # Errors
    /// See there.
    fn usage(&self, pool: &Pool, volume: &Entry) -> Result<Option<VolumeUsage>> {
        let _ = (pool, volume);
        Ok(None)
    }

    /// [`larder_model::Connect::copies_share_uuid`].
    fn copies_share_uuid(&self) -> bool {
        true
    }
}

/// What a pool's file system can do.
#[derive(Clone)]
pub struct PoolTraits {
    /// Its kind, for people: `xfs with reflink`.
    pub storage: String,
    /// What it cannot do and what that means, one sentence each.
    pub warnings: Vec<String>,
    /// The medium's own findings.
    detail: Arc<dyn Any + Send + Sync>,
}

impl PoolTraits {
    /// Traits with the medium's own `detail`.
    pub fn new<T: Any + Send + Sync>(storage: impl Into<String>, detail: T) -> Self {
        Self { storage: storage.into(), warnings: Vec::new(), detail: Arc::new(detail) }
    }
    /// Adds a warning.
    #[must_use]
    pub fn warning(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(text.into());
        self
    }
    /// The medium's own findings; None when `T` is not what it put there.
    pub fn detail<T: Any>(&self) -> Option<&T> {
        (*self.detail).downcast_ref()
    }
}

impl fmt::Debug for PoolTraits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolTraits")
            .field("storage", &self.storage)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

/// What [`Medium::plan`] decides about.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// What the caller asked for.
    pub spec: &'a VolumeSpec,
    /// Where the first data comes from.
    pub origin: Option<&'a Origin>,
}

impl PlanRequest<'_> {
    /// The size to make: what was asked (or the origin's size, or `default`), not below the
    /// origin's size or `min`, in whole `step`s.
    ///
    /// # Errors
    /// `OutOfRange` where that lands above the caller's limit.
    pub fn size(&self, default: Bytes, min: Bytes, step: Bytes) -> Result<Bytes> {
        let range = self.spec.capacity;
        let Some(origin) = self.origin else { return range.pick(default, min, step) };
        let least = origin.size();
        if least == Bytes::ZERO {
            // A static directory that nothing holds to a size.
            return range.pick(default, min, step);
        }
        if let Some(limit) = range.limit.filter(|limit| *limit < least) {
            return Err(Fault::out_of_range(format!(
                "make volume {} from {}: that has {least}, above the limit {limit}",
                self.spec.id,
                origin.describe()
            ))
            .hint("ask for at least the size of the source"));
        }
        range.pick(least, min.max(least), step)
    }
}

/// A volume about to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its size.
    pub size: Bytes,
    /// Its volume context: not secret, immutable.
    pub context: Attributes,
    /// The medium's own part of the record.
    pub medium: Value,
    /// What the record says of the file system of an *empty* volume: `Some(Unformatted)` for media
    /// with devices. A copy inherits its origin's state.
    pub file_system: Option<FormatState>,
    /// The space it takes at once (preallocation, a copy without reflink); what the pool does not
    /// have free is refused before anything is made.
    pub allocates: Bytes,
}

impl Plan {
    /// The medium's own part, typed.
    ///
    /// # Errors
    /// `Corrupt`, when `T` is not what it put there.
    pub fn medium<T: DeserializeOwned>(&self) -> Result<T> {
        medium_value(&self.medium, Path::new("a new volume"))
    }
}

/// One of several volumes that are cut at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The volume.
    pub volume: &'a Entry,
    /// Where its snapshot is made: a folder that is empty and new.
    pub folder: &'a Path,
}

/// Which extents are wanted of [`Medium::blocks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Those that end after this byte.
    pub offset: u64,
    /// So many at most.
    pub max: usize,
}

/// What [`Medium::cut`] made.
#[derive(Debug, Clone)]
pub struct SnapshotFacts {
    /// The least size of a volume made from it.
    pub size: Bytes,
    /// The medium's own part of the record.
    pub medium: Value,
}

/// What [`Medium::look`] found.
#[derive(Debug, Clone)]
pub struct StaticFacts {
    /// Size; zero where there is none (a directory without quota).
    pub size: Bytes,
    /// The volume context.
    pub context: Attributes,
    /// The medium's own part of the record.
    pub medium: Value,
    /// `Some(Foreign)` for media with devices.
    pub file_system: Option<FormatState>,
}

/// Where the first data of a volume comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A snapshot, which nobody changes.
    Snapshot(Pool, SnapshotEntry),
    /// A volume, which may be in use.
    Volume(Pool, Entry),
}

impl Origin {
    /// The pool it is in.
    pub fn pool(&self) -> &Pool {
        match self {
            Self::Snapshot(pool, _) | Self::Volume(pool, _) => pool,
        }
    }
    /// Its data.
    pub fn data(&self) -> &Path {
        match self {
            Self::Snapshot(_, entry) => &entry.data,
            Self::Volume(_, entry) => &entry.data,
        }
    }
    /// The least size of a copy.
    pub fn size(&self) -> Bytes {
        match self {
            Self::Snapshot(_, entry) => entry.record.size,
            Self::Volume(_, entry) => entry.record.size,
        }
    }
    /// What is known of the file system on it.
    pub fn file_system(&self) -> Option<FormatState> {
        match self {
            Self::Snapshot(_, entry) => entry.record.file_system,
            Self::Volume(_, entry) => entry.record.file_system,
        }
    }
    /// The medium's value of the (source) volume: what the copy's data was made as.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn volume_medium<T: DeserializeOwned>(&self) -> Result<T> {
        match self {
            Self::Snapshot(_, entry) => medium_value(&entry.record.source_medium, &entry.folder),
            Self::Volume(_, entry) => medium_value(&entry.record.medium, &entry.folder),
        }
    }
    /// In words: `snapshot default/s1`.
    pub fn describe(&self) -> String {
        match self {
            Self::Snapshot(_, entry) => format!("snapshot {}", entry.id),
            Self::Volume(_, entry) => format!("volume {}", entry.id),
        }
    }
}
