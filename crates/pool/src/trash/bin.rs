//! What is in the trash of an open pool.
//!
//! ```text
//! trash/volume-x.<id>.json    the record, written first
//! trash/volume-x.<id>/        the volume's folder as it was in volumes/
//! ```
//! A record without its folder says nothing: the deletion was cut before its commit, or the folder has
//! left. A folder without a record was put there by somebody else and is left alone.

use super::record::TrashRecord;
use crate::{layout::TRASH, pool::Pool, record::parse};
use larder_host::{clock::Moment, durable};
use larder_model::{Bytes, Fault, Native, Result};
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub(super) const RECORD: &str = ".json";

/// What is in the trash of one pool.
#[derive(Debug, Default)]
pub(crate) struct Bin {
    items: Mutex<BTreeMap<String, Item>>,
    /// So many are just removed.
    removals: AtomicUsize,
    /// What is not as it should be, in words.
    broken: Vec<String>,
}

#[derive(Debug)]
struct Item {
    record: TrashRecord,
    /// Somebody restores or removes it.
    taken: bool,
}

/// Something in the trash that nobody else works on while this lives.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    pool: &'a Pool,
    pub(super) record: TrashRecord,
}

impl Taken<'_> {
    /// It has left the trash.
    pub(super) fn gone(&self) {
        self.pool.bin().items().remove(&self.record.id);
    }
    /// Where it is.
    pub(super) fn folder(&self) -> PathBuf {
        self.pool.path().join(TRASH).join(self.record.folder())
    }
    /// Refuses what its folder does not prove to be what was deleted: that is not removed. No folder:
    /// it has left, or was removed by hand.
    pub(super) fn refuse_another(&self) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Found {
            id: uuid::Uuid,
        }
        let folder = self.folder();
        let refusal = |why: &str| {
            Fault::corrupt(format!("remove {}: {why}", folder.display()))
                .hint("look at it, and move it away by hand")
        };
        let unread = "its record cannot be read, so nothing proves what it is";
        let text = match std::fs::read(folder.join(crate::layout::RECORD)) {
            Err(e) if e.kind() == ErrorKind::NotFound && is_absent(&folder) => return Ok(()),
            text => text.map_err(|e| refusal(unread).because(e))?,
        };
        match serde_json::from_slice::<Found>(&text) {
            Ok(found) if found.id == self.record.record => Ok(()),
            Ok(_) => Err(refusal("it is not what was deleted")),
            Err(e) => Err(refusal(unread).because(e)),
        }
    }
    /// Removes its record, durably.
    pub(super) fn forget(&self) -> Result<()> {
        durable::remove_file(&record_path(self.pool.path(), &self.record))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(item) = self.pool.bin().items().get_mut(&self.record.id) {
            item.taken = false;
        }
    }
}

/// See [`Bin::removal`].
#[derive(Debug)]
pub(super) struct Removal<'a>(&'a Bin);

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.0.removals.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Nothing is there; what cannot be looked at is not absent.
pub(super) fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

pub(super) fn record_path(pool: &Path, record: &TrashRecord) -> PathBuf {
    pool.join(TRASH).join(format!("{}{RECORD}", record.folder()))
}

impl Bin {
    /// Reads what is in the trash of the pool at `path`. `mend`: what a killed process left is removed.
    pub(crate) fn load(path: &Path, mend: bool) -> Result<Self> {
        let trash = path.join(TRASH);
        let io = |e| Fault::io(format!("list {}", trash.display()), e);
        let entries = match std::fs::read_dir(&trash) {
            // A pool that was never opened for writing by a release that has a trash.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.map_err(io)?,
        };
        let mut folders = std::collections::BTreeSet::new();
        let mut records = Vec::new();
        // What is wrong with one entry is that entry's: the pool opens without it.
        let mut broken = Vec::new();
        if mend && let Err(fault) = durable::sweep_temporary(&trash) {
            broken.push(fault.to_string());
        }
        for entry in entries {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_suffix(RECORD) {
                Some(folder) => records.push((folder.to_owned(), entry.path())),
                None if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    folders.insert(name);
                }
                None => {}
            }
        }
        let mut items = BTreeMap::new();
        for (folder, path) in records {
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => {
                    folders.remove(&folder);
                    broken.push(Fault::io(format!("read {}", path.display()), e).to_string());
                    continue;
                }
            };
            match parse::<TrashRecord>(&path, &text) {
                Ok(record) if record.folder() != folder => {
                    broken.push(format!("{} is not the record of that name", path.display()));
                }
                Ok(record) if folders.remove(&folder) => {
                    items.insert(record.id.clone(), Item { record, taken: false });
                }
                Ok(_) if mend => {
                    if let Err(fault) = durable::remove_file(&path) {
                        broken.push(fault.to_string());
                    }
                }
                Ok(_) => {}
                Err(fault) => {
                    folders.remove(&folder);
                    broken.push(fault.to_string());
                }
            }
        }
        let lost = folders.into_iter().map(|folder| trash.join(folder));
        broken.extend(lost.map(|path| format!("{} has no record of its deletion", path.display())));
        for broken in &broken {
            tracing::warn!("leave a part of the trash alone: {broken}");
        }
        Ok(Self { items: Mutex::new(items), removals: AtomicUsize::default(), broken })
    }

    fn items(&self) -> MutexGuard<'_, BTreeMap<String, Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is not as it should be.
    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }

    /// What all of it takes, as far as is known.
    pub(crate) fn allocated(&self) -> Bytes {
        self.items().values().map(|item| item.record.allocated).sum()
    }

    /// The most that it can give: blocks that clones share count with each. None: of some of it
    /// nobody knows.
    pub(super) fn most(&self) -> Option<Bytes> {
        let items = self.items();
        let known = items.values().all(|item| item.record.allocated > Bytes::ZERO);
        known.then(|| items.values().map(|item| item.record.allocated).sum())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items().is_empty()
    }

    /// Whether something in it is just removed, so that there will be more room.
    pub(super) fn is_removing(&self) -> bool {
        self.removals.load(Ordering::Relaxed) > 0
    }

    /// Counts a removal as long as what is returned lives.
    pub(super) fn removal(&self) -> Removal<'_> {
        self.removals.fetch_add(1, Ordering::Relaxed);
        Removal(self)
    }

    /// Whether something has that id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.items().contains_key(id)
    }

    /// Whether something of that name is in it.
    pub(super) fn holds(&self, sort: super::TrashSort, native: &Native) -> bool {
        self.items().values().any(|i| i.record.sort == sort && i.record.native == *native)
    }

    pub(super) fn add(&self, record: TrashRecord) {
        self.items().insert(record.id.clone(), Item { record, taken: false });
    }

    /// All of it, the oldest first.
    pub(super) fn all(&self, now: &Moment) -> Vec<TrashRecord> {
        let mut all: Vec<_> = self.items().values().map(|item| item.record.clone()).collect();
        all.sort_by_cached_key(|record| (std::cmp::Reverse(record.age(now)), record.deleted));
        all
    }
}

impl Pool {
    /// Takes something in the trash to work on it alone; None: it is not there.
    ///
    /// # Errors
    /// `Aborted` while somebody else has it.
    pub(super) fn take_from_trash(&self, id: &str) -> Result<Option<Taken<'_>>> {
        let mut items = self.bin().items();
        let Some(item) = items.get_mut(id) else { return Ok(None) };
        if item.taken {
            let busy = format!("use {id} in the trash: it is being restored or removed");
            return Err(Fault::aborted(busy).hint("look again when that has ended"));
        }
        item.taken = true;
        Ok(Some(Taken { pool: self, record: item.record.clone() }))
    }
}

/// Tells those who wait to stop.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
    pub(crate) fn is_told(&self) -> bool {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Waits for `time`, or until told to stop; whether that was so.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, time, |told| !*told);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
