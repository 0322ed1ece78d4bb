//! An open pool.
//!
//! ```text
//!            identity proven, owned, loaded
//!   away ────────────────────────────────────▶ open ──┐ each call: is the identity still that file?
//!    ▲                                           │     │
//!    └── identity missing, other, not mounted ───┘ ◀───┘
//! ```
//! While a pool is away every call for its volumes answers `Unavailable`, also deletion: an unmounted
//! pool shows an empty directory, and nothing may conclude from it that volumes are gone. When the
//! pool comes back it is opened again by the next call. If it comes back as the same file system
//! (the owner lock is still ours), what is in memory still holds; otherwise it is loaded anew, and
//! operations that began before can no longer commit into it (`retire`).
//!
//! Nothing outside `volumes`, `snapshots`, `groups`, `creating`, `deleting`, `trash`, `static` and `.larder` is ever
//! written, and those folders are made only after the identity was proven. Work that is surprised by
//! the pool going away therefore fails with "no such directory" instead of filling the mount point.

use crate::{
    catalog::{Catalog, Record},
    config::{MountRule, PoolConfig},
    entry::{Entry, SnapshotEntry},
    identity::{self, FileId, Identity},
    layout::{FOLDERS, IDENTITY, RECORD, SCRATCH, STATIC, STATIC_RECORD, Shelf, owner_lock},
    medium::{Medium, PoolTraits},
    owner::{self, OwnerNote},
    record::{FileMark, SnapshotRecord, VolumeRecord},
    trash::{Bin, Stop, Yielding},
};
use larder_host::{Host, durable, filesystems::is_read_only, lock::FileLock};
use larder_model::{Fault, Kind, Native, PoolName, Result, SnapshotId, VolumeId};
use std::{
    collections::HashSet,
    ffi::OsString,
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How long a call waits for another node's hold on a volume of a shared pool.
const SHARED_WAIT: Duration = Duration::from_secs(2);

/// An open pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    name: PoolName,
    config: PoolConfig,
    identity: Identity,
    traits: PoolTraits,
    data_name: &'static str,
    read_only: bool,
    host: Host,
    /// The file that held the identity when it was last proven.
    seen: Mutex<FileId>,
    /// None: shared or read-only.
    owner: Option<(FileLock, FileId)>,
    catalog: Catalog,
    /// False when another opening has taken this one's place.
    current: RwLock<bool>,
    /// Held over reading, changing and writing one record; by hash of the name.
    records: [Mutex<()>; 64],
    promised: Mutex<crate::room::Promised>,
    /// What is just being removed from `deleting`.
    removing: Mutex<HashSet<OsString>>,
    bin: Bin,
    yielding: Yielding,
    /// Told when the pool is let go: long removals end where they are.
    stopping: Stop,
}

/// Proves that the pool's file system answers, before anything in it is touched: whoever waits for a
/// dead server waits for ever.
///
/// # Errors
/// `Unavailable`: which pool, and since when.
pub(crate) fn answers(host: &Host, name: &PoolName, path: &Path) -> Result<()> {
    host.filesystems.answers(path).map_err(|fault| fault.during(format!("use pool {name}")))
}

/// What became of an attempt to open a pool.
pub(crate) enum Opening {
    Open(Pool),
    /// Another process owns it.
    Busy(Option<OwnerNote>),
}

/// What opening a pool needs.
pub(crate) struct Opener<'a, M> {
    pub(crate) medium: &'a M,
    pub(crate) host: &'a Host,
    pub(crate) note: &'a OwnerNote,
    pub(crate) name: &'a PoolName,
    pub(crate) config: &'a PoolConfig,
}

impl<M: Medium> Opener<'_, M> {
    /// Proves that the pool is there: mounted where it must be, with our identity.
    pub(crate) fn prove(&self, known: Option<Uuid>, create: bool) -> Result<(Identity, FileId)> {
        let path = &self.config.path;
        self.config.is_mounted(self.host, self.name)?;
        let kind = self.medium.kind();
        let mut found = identity::read_file(path)?;
        if found.is_none() && create {
            identity::init(path, kind, false)?;
            found = identity::read_file(path)?;
        }
        let (identity, file) = found.ok_or_else(|| identity::missing(path))?;
        if identity.backend != kind {
            return Err(Fault::unavailable(format!(
                "use pool {} at {}: it belongs to backend {}, not {kind}",
                self.name,
                path.display(),
                identity.backend
            ))
            .hint("correct `path` or `backend` in the configuration"));
        }
        if let Some(known) = known.filter(|known| *known != identity.id) {
            return Err(Fault::unavailable(format!(
                "use pool {}: {} holds pool {}, it was {known} before",
                self.name,
                path.display(),
                identity.id
            ))
            .hint("mount the former one, or restart the driver to accept the new one"));
        }
        Ok((identity, file))
    }

    /// Opens a pool whose identity was proven.
    pub(crate) fn open(&self, identity: Identity, file: FileId) -> Result<Opening> {
        let path = &self.config.path;
        let read_only = is_read_only(path)?;
        let mut owner = None;
        let mut clean = false;
        if !read_only {
            durable::create_dir(&path.join(FOLDERS[0]), 0o700)?;
            if !self.config.shared {
                let lock = match owner::take(path, self.note)? {
                    Ok((lock, left_clean)) => {
                        clean = left_clean;
                        lock
                    }
                    Err(note) => return Ok(Opening::Busy(note)),
                };
                let file = file_id(lock.path())?;
                owner = Some((lock, file));
            }
            for folder in &FOLDERS[1..] {
                durable::create_dir(&path.join(folder), 0o700)?;
            }
        }
        if !clean {
            // The last owner may have been killed between a rename and its fsync. What is seen from
            // now on is acted upon (a volume is acknowledged, a device is not formatted because its
            // record says that it was), so it must not be undone by a power cut.
            durable::sync_filesystem(path)?;
        }
        let traits = self.medium.inspect(self.name, self.config)?;
        let catalog = if self.config.shared || read_only {
            Catalog::shared(path)
        } else {
            Catalog::load(path)?
        };
        let bin = Bin::load(path, !read_only && !self.config.shared)?;
        Ok(Opening::Open(Pool(Arc::new(Inner {
            name: self.name.clone(),
            config: self.config.clone(),
            identity,
            traits,
            data_name: self.medium.data_name(),
            read_only,
            host: self.host.clone(),
            seen: Mutex::new(file),
            owner,
            catalog,
            current: RwLock::new(true),
            records: [const { Mutex::new(()) }; 64],
            promised: Mutex::default(),
            removing: Mutex::default(),
            bin,
            yielding: Yielding::default(),
            stopping: Stop::default(),
        }))))
    }
}

impl Pool {
    /// Its name in the configuration.
    pub fn name(&self) -> &PoolName {
        &self.0.name
    }
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0.config.path
    }
    /// Its configuration.
    pub fn config(&self) -> &PoolConfig {
        &self.0.config
    }
    /// The unique id in its identity.
    pub fn id(&self) -> Uuid {
        self.0.identity.id
    }
    /// What [`Medium::inspect`] found.
    pub fn traits(&self) -> &PoolTraits {
        &self.0.traits
    }
    /// A folder in the pool for temporary files. What a crash leaves there is removed when the pool
    /// is opened again.
    pub fn scratch(&self) -> PathBuf {
        self.0.config.scratch()
    }

    /// Changes a volume's record, durably; returns the volume as it is now. `change` sees the
    /// record as it is at that moment. Two changes of one volume never overlap.
    ///
    /// # Errors
    /// `NotFound` (it was deleted meanwhile), `Exhausted`, `Unavailable`, I/O; nothing is changed.
    pub fn update_record(
        &self,
        volume: &Entry,
        change: impl FnOnce(&mut VolumeRecord) -> Result<()>,
    ) -> Result<Entry> {
        let native = volume.id.native();
        let _alone = self.record_mutex(native);
        let _shared = self.shared_lock(Shelf::Volumes, native, "record", true)?;
        let path = if volume.is_static {
            static_record(self.path(), native)
        } else {
            volume.folder.join(RECORD)
        };
        let mark = volume.is_static.then(|| FileMark::of(&volume.data)).transpose()?;
        let current = if volume.is_static {
            // What was noted of another file that had the name is nothing known of this one.
            let noted = crate::statics::read_record(&path)?;
            let is_of_it = |r: &VolumeRecord| r.noted_of.is_none_or(|noted| Some(noted) == mark);
            Some(noted.filter(is_of_it).unwrap_or_else(|| volume.record.clone()))
        } else {
            self.catalog().get::<VolumeRecord>(native)?
        };
        let mut record = current.filter(|r| r.id == volume.record.id).ok_or_else(|| {
            Fault::not_found(format!("change the record of volume {}: it is gone", volume.id))
        })?;
        let before = record.clone();
        change(&mut record)?;
        if record != before && volume.is_static {
            record.noted_of = mark;
        }
        if record != before {
            let text = text_of(&record)?;
            if !volume.is_static {
                // Of a killed write. The folder of static volumes is everybody's.
                durable::sweep_temporary(&volume.folder)?;
            }
            self.while_current(|| durable::write(&path, &text))?;
            if !volume.is_static {
                self.catalog().put(native, &record, text);
            }
        }
        Ok(Entry { record, ..volume.clone() })
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }
    pub(crate) fn host(&self) -> &Host {
        &self.0.host
    }
    pub(crate) fn promised(&self) -> MutexGuard<'_, crate::room::Promised> {
        self.0.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn removing(&self) -> MutexGuard<'_, HashSet<OsString>> {
        self.0.removing.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn bin(&self) -> &Bin {
        &self.0.bin
    }
    pub(crate) fn yielding(&self) -> &Yielding {
        &self.0.yielding
    }
    pub(crate) fn stopping(&self) -> &Stop {
        &self.0.stopping
    }
    pub(crate) fn was_read_only(&self) -> bool {
        self.0.read_only
    }
    pub(crate) fn is_read_only(&self) -> bool {
        is_read_only(self.path()).unwrap_or(false)
    }

    pub(crate) fn refuse_read_only(&self) -> Result<()> {
        if self.is_read_only() {
            return Err(Fault::precondition(format!(
                "write to pool {}: {} is read-only",
                self.name(),
                self.path().display()
            ))
            .hint("remount it writable; if the kernel made it read-only, its log says why"));
        }
        Ok(())
    }

    /// Removes the lock files of what was just deleted; `held` is its lock.
    pub(crate) fn forget_locks(&self, shelf: Shelf, native: &Native, held: Option<FileLock>) {
        let Some(held) = held else { return };
        let record = shelf.lock(self.path(), native, "record");
        // Whoever waits for one of them notices that its file was removed, and takes a new one.
        if let Ok(Some(lock)) = FileLock::try_exclusive(&record) {
            let _ = std::fs::remove_file(lock.path());
        }
        let _ = std::fs::remove_file(held.path());
    }

    /// The volume `native` that was created through us.
    pub(crate) fn volume(&self, native: &Native) -> Result<Option<Entry>> {
        let record = self.catalog().get::<VolumeRecord>(native)?;
        self.refuse_false_absence(record.is_some())?;
        Ok(record.map(|record| self.entry(native.clone(), record)))
    }

    pub(crate) fn entry(&self, native: Native, record: VolumeRecord) -> Entry {
        let folder = Shelf::Volumes.place(self.path(), &native);
        let data = folder.join(self.0.data_name);
        let id = VolumeId::new(self.name().clone(), native);
        Entry { id, record, folder, data, is_static: false }
    }

    pub(crate) fn snapshot(&self, native: &Native) -> Result<Option<SnapshotEntry>> {
        let record = self.catalog().get::<SnapshotRecord>(native)?;
        self.refuse_false_absence(record.is_some())?;
        Ok(record.map(|record| self.snapshot_entry(native.clone(), record)))
    }

    pub(crate) fn snapshot_entry(&self, native: Native, record: SnapshotRecord) -> SnapshotEntry {
        let folder = Shelf::Snapshots.place(self.path(), &native);
        let data = folder.join(self.0.data_name);
        let id = SnapshotId::new(self.name().clone(), native);
        SnapshotEntry { id, record, folder, data }
    }

    /// What was not found in the directory may be in the pool that went away in this moment.
    pub(crate) fn refuse_false_absence(&self, found: bool) -> Result<()> {
        if found || self.catalog().in_memory() || self.still_there() {
            return Ok(());
        }
        Err(Fault::unavailable(format!("look into pool {}: it went away", self.name()))
            .hint("ask again when it is back"))
    }

    /// Whether the pool answers, is where and what it was, and ours; a few system calls, unless it is
    /// on a network.
    pub(crate) fn still_there(&self) -> bool {
        let config = self.config();
        if answers(&self.0.host, self.name(), &config.path).is_err() {
            return false;
        }
        if self.0.read_only && !self.is_read_only() {
            // Writable now: it must be locked and mended first.
            return false;
        }
        file_id(&config.path.join(IDENTITY)).is_ok_and(|file| file == *self.seen())
            && self.is_owner()
            && (config.mount == MountRule::Optional
                || self.0.host.mounts.is_mount_point(&config.path).unwrap_or(false))
    }

    fn seen(&self) -> MutexGuard<'_, FileId> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the lock that we hold is the one that others would take: somebody may have removed
    /// its file. True for shared and read-only pools, which have none.
    fn is_owner(&self) -> bool {
        self.0.owner.as_ref().is_none_or(|(_, held)| {
            file_id(&owner_lock(self.path())).is_ok_and(|there| there == *held)
        })
    }

    /// Accepts that the pool came back as `file`, when it is still ours alone (or shared).
    pub(crate) fn accept(&self, file: FileId) -> bool {
        let same = !self.0.read_only && self.is_owner();
        if same {
            *self.seen() = file;
        }
        same
    }

    /// Lets go of the pool in an orderly way, unless something still works in it: the next owner
    /// finds nothing to mend.
    pub(crate) fn close(self) {
        if let Some(inner) = Arc::into_inner(self.0)
            && let Some((lock, _)) = inner.owner
        {
            owner::leave(&lock);
        }
    }

    /// From now on nothing commits through this opening of the pool.
    pub(crate) fn retire(&self) {
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// A fault of work in this pool: whatever failed after the pool went away failed because of it.
    pub(crate) fn explain(&self, fault: Fault) -> Fault {
        let current = *self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        if fault.is_simulated_crash() || (current && self.still_there()) {
            return fault;
        }
        fault
            .with_kind(Kind::Unavailable)
            .during(format!("pool {} went away meanwhile", self.name()))
            .hint("ask again when it is back")
    }

    /// Runs a short piece of work that makes something visible, unless the pool was opened anew.
    pub(crate) fn while_current<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        if !*current {
            return Err(Fault::unavailable(format!(
                "go on in pool {}: it went away and came back meanwhile",
                self.name()
            ))
            .hint("ask again"));
        }
        work()
    }

    fn record_mutex(&self, native: &Native) -> MutexGuard<'_, ()> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        native.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % 64).unwrap_or_default();
        self.0.records[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Pool::shared_lock`] for a use alone, without waiting.
    pub(crate) fn shared_lock_now(
        &self,
        shelf: Shelf,
        native: &Native,
    ) -> Result<Option<FileLock>> {
        if !self.0.config.shared {
            return Ok(None);
        }
        let lock = FileLock::try_exclusive(&shelf.lock(self.path(), native, "use"))?;
        lock.map(Some).ok_or_else(|| Fault::unavailable(format!("use {shelf} {native} alone")))
    }

    /// In a shared pool, keeps other processes off one name. `purpose`: the operation as a whole
    /// (`use`), or one change of its record (`record`), which may happen within another's use.
    pub(crate) fn shared_lock(
        &self,
        shelf: Shelf,
        native: &Native,
        purpose: &str,
        alone: bool,
    ) -> Result<Option<FileLock>> {
        if !self.0.config.shared {
            return Ok(None);
        }
        let path = shelf.lock(self.path(), native, purpose);
        let deadline = Instant::now() + SHARED_WAIT;
        let lock = if alone {
            FileLock::exclusive_wait(&path, deadline)
        } else {
            FileLock::shared_wait(&path, deadline)
        };
        lock.map(Some).map_err(|fault| match fault.kind() {
            // Not ABORTED: that promises who works on it, for how long and at what, which other nodes
            // do not tell.
            Kind::Unavailable => Fault::unavailable(format!(
                "work on {shelf} {}/{native}: another node works on it",
                self.name()
            ))
            .because(fault)
            .hint("repeat the call when that has ended"),
            _ => fault,
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {} at {}", self.name(), self.path().display())
    }
}

impl PoolConfig {
    /// A folder in the pool for temporary files; see [`Pool::scratch`]. It exists when
    /// [`Medium::inspect`] is called, unless the pool is read-only.
    pub fn scratch(&self) -> PathBuf {
        self.path.join(SCRATCH)
    }
}

/// A record as it is written.
pub(crate) fn text_of<R: Record>(record: &R) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(record)
        .map_err(|e| Fault::internal(format!("write down a {}", R::SHELF)).because(e))?;
    text.push(b'\n');
    Ok(text)
}

/// Where the record of a static volume is.
pub(crate) fn static_record(pool: &Path, native: &Native) -> PathBuf {
    pool.join(STATIC).join(format!("{native}{STATIC_RECORD}"))
}

fn file_id(path: &Path) -> Result<FileId> {
    let meta = std::fs::symlink_metadata(path)
        .map_err(|e| Fault::io(format!("look at {}", path.display()), e))?;
    Ok((meta.dev(), meta.ino()))
}
