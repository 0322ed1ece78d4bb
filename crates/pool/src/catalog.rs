//! Which volumes and snapshots a pool holds.
//!
//! The directory is the truth. The process that owns a pool alone keeps the records in memory as
//! well (their text, not their parsed form: about 700 bytes a volume), so that a page of a list, a
//! repeated create or a capacity question touches no disk however many volumes there are. In a
//! shared pool others change the directory at any time, so it is read each time.
//!
//! A record that cannot be read makes its own volume answer `Corrupt`; the others go on. It is read
//! again at each use, so a restored record works without a restart.

use crate::{
    groups::GroupRecord,
    layout::{IDENTITY, RECORD, Shelf},
    record::{SnapshotRecord, Versioned, VolumeRecord, parse},
};
use larder_model::{Bytes, Fault, Native, Result};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What is common to both sorts of records.
pub(crate) trait Record: Serialize + Versioned {
    const SHELF: Shelf;
    fn size(&self) -> Bytes;
    /// The volume it was cut from.
    fn cut_from(&self) -> Option<&Native>;
}

impl Record for VolumeRecord {
    const SHELF: Shelf = Shelf::Volumes;
    fn size(&self) -> Bytes {
        self.size
    }
    fn cut_from(&self) -> Option<&Native> {
        None
    }
}

impl Record for SnapshotRecord {
    const SHELF: Shelf = Shelf::Snapshots;
    fn size(&self) -> Bytes {
        self.size
    }
    fn cut_from(&self) -> Option<&Native> {
        Some(&self.source)
    }
}

/// How much there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) volumes: u64,
    pub(crate) snapshots: u64,
    /// Sum of the volumes' sizes.
    pub(crate) provisioned: Bytes,
    /// What cannot be read, in words, the first few.
    pub(crate) broken: Vec<String>,
}

pub(crate) struct Catalog {
    pool: PathBuf,
    /// None: shared pool.
    memory: Option<Memory>,
}

#[derive(Default)]
struct Memory {
    volumes: Mutex<Rows>,
    snapshots: Mutex<Rows>,
    groups: Mutex<Rows>,
}

#[derive(Default)]
struct Rows {
    rows: BTreeMap<Native, Row>,
    size: u64,
}

enum Row {
    Whole { text: Box<[u8]>, size: Bytes, cut_from: Option<Box<Native>> },
    Broken(Box<Fault>),
}

impl Row {
    fn size(&self) -> u64 {
        match self {
            Self::Whole { size, .. } => size.get(),
            Self::Broken(_) => 0,
        }
    }
}

impl Rows {
    fn put(&mut self, native: Native, row: Row) {
        self.size = self.size.saturating_add(row.size());
        if let Some(old) = self.rows.insert(native, row) {
            self.size = self.size.saturating_sub(old.size());
        }
    }
}

impl Catalog {
    /// Of a shared pool.
    pub(crate) fn shared(pool: &Path) -> Self {
        Self { pool: pool.to_owned(), memory: None }
    }

    /// Of a pool that this process owns: reads every record.
    pub(crate) fn load(pool: &Path) -> Result<Self> {
        let memory = Memory {
            volumes: Mutex::new(load_shelf::<VolumeRecord>(pool)?),
            snapshots: Mutex::new(load_shelf::<SnapshotRecord>(pool)?),
            groups: Mutex::new(load_shelf::<GroupRecord>(pool)?),
        };
        Ok(Self { pool: pool.to_owned(), memory: Some(memory) })
    }

    /// Whether answers come from memory.
    pub(crate) fn in_memory(&self) -> bool {
        self.memory.is_some()
    }

    fn rows(&self, shelf: Shelf) -> Option<MutexGuard<'_, Rows>> {
        let memory = self.memory.as_ref()?;
        let rows = match shelf {
            Shelf::Volumes => &memory.volumes,
            Shelf::Snapshots => &memory.snapshots,
            Shelf::Groups => &memory.groups,
        };
        Some(rows.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The record of `native`; None: there is no such volume or snapshot.
    ///
    /// # Errors
    /// `Corrupt`; I/O in shared pools.
    pub(crate) fn get<R: Record>(&self, native: &Native) -> Result<Option<R>> {
        let place = R::SHELF.place(&self.pool, native);
        if let Some(rows) = self.rows(R::SHELF) {
            match rows.rows.get(native) {
                None => return Ok(None),
                Some(Row::Whole { text, .. }) => {
                    let text = text.clone();
                    drop(rows);
                    return parse(&place.join(RECORD), &text).map(Some);
                }
                Some(Row::Broken(_)) => {}
            }
        }
        match read_record::<R>(&place) {
            Ok(Some((record, text))) => {
                self.put(native, &record, text);
                Ok(Some(record))
            }
            other => other.map(|_| None),
        }
    }

    /// Whether the name is taken, by something whole or broken.
    pub(crate) fn contains(&self, shelf: Shelf, native: &Native) -> bool {
        match self.rows(shelf) {
            Some(rows) => rows.rows.contains_key(native),
            None => shelf.place(&self.pool, native).symlink_metadata().is_ok(),
        }
    }

    /// Takes note of what was written as `text`.
    pub(crate) fn put<R: Record>(&self, native: &Native, record: &R, text: Vec<u8>) {
        if let Some(mut rows) = self.rows(R::SHELF) {
            rows.put(native.clone(), whole(record, text));
        }
    }

    /// Takes note that it is gone.
    pub(crate) fn remove(&self, shelf: Shelf, native: &Native) {
        if let Some(mut rows) = self.rows(shelf)
            && let Some(old) = rows.rows.remove(native)
        {
            rows.size = rows.size.saturating_sub(old.size());
        }
    }

    /// Up to `max` readable records after `after`, in the order of names; only snapshots of
    /// `cut_from` where given.
    pub(crate) fn page<R: Record>(
        &self,
        after: Option<&Native>,
        max: usize,
        cut_from: Option<&Native>,
    ) -> Result<Vec<(Native, R)>> {
        let path = |native: &Native| R::SHELF.place(&self.pool, native);
        let mut page = Vec::new();
        if let Some(rows) = self.rows(R::SHELF) {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let texts: Vec<(Native, Box<[u8]>)> = rows
                .rows
                .range::<Native, _>((from, Bound::Unbounded))
                .filter_map(|(native, row)| match row {
                    Row::Whole { text, cut_from: source, .. }
                        if cut_from.is_none() || cut_from == source.as_deref() =>
                    {
                        Some((native.clone(), text.clone()))
                    }
                    _ => None,
                })
                .take(max)
                .collect();
            drop(rows);
            for (native, text) in texts {
                let record = parse(&path(&native).join(RECORD), &text)?;
                page.push((native, record));
            }
            return Ok(page);
        }
        let mut names = names(&R::SHELF.folder(&self.pool))?;
        names.retain(|name| after.is_none_or(|after| name > after));
        names.sort_unstable();
        for native in names {
            if page.len() == max {
                break;
            }
            match read_record::<R>(&path(&native)) {
                Ok(Some((record, _))) if cut_from.is_none() || cut_from == record.cut_from() => {
                    page.push((native, record));
                }
                Ok(_) => {}
                Err(fault) => tracing::warn!("leave a {} out of a list: {fault}", R::SHELF),
            }
        }
        Ok(page)
    }

    /// Sum of the volumes' sizes.
    pub(crate) fn provisioned(&self) -> Result<Bytes> {
        match self.rows(Shelf::Volumes) {
            Some(rows) => Ok(Bytes::new(rows.size)),
            None => Ok(Bytes::new(load_shelf::<VolumeRecord>(&self.pool)?.size)),
        }
    }

    /// Numbers and sizes.
    pub(crate) fn totals(&self) -> Result<Totals> {
        if let (Some(volumes), Some(snapshots), Some(groups)) = (
            self.rows(Shelf::Volumes).map(count),
            self.rows(Shelf::Snapshots).map(count),
            self.rows(Shelf::Groups).map(count),
        ) {
            let broken = volumes.2.into_iter().chain(snapshots.2).chain(groups.2).collect();
            return Ok(Totals {
                volumes: volumes.0,
                provisioned: volumes.1,
                snapshots: snapshots.0,
                broken,
            });
        }
        let volumes = count_lock(&load_shelf::<VolumeRecord>(&self.pool)?);
        let snapshots = names(&Shelf::Snapshots.folder(&self.pool))?.len() as u64;
        let groups = count_lock(&load_shelf::<GroupRecord>(&self.pool)?);
        let broken = volumes.2.into_iter().chain(groups.2).collect();
        Ok(Totals { volumes: volumes.0, provisioned: volumes.1, snapshots, broken })
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("pool", &self.pool).finish_non_exhaustive()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the lock ends here")]
fn count(rows: MutexGuard<'_, Rows>) -> (u64, Bytes, Vec<String>) {
    count_lock(&rows)
}

fn count_lock(rows: &Rows) -> (u64, Bytes, Vec<String>) {
    let broken = rows.rows.values().filter_map(|row| match row {
        Row::Broken(fault) => Some(fault.to_string()),
        Row::Whole { .. } => None,
    });
    (rows.rows.len() as u64, Bytes::new(rows.size), broken.take(10).collect())
}

fn whole<R: Record>(record: &R, text: Vec<u8>) -> Row {
    Row::Whole {
        size: record.size(),
        cut_from: record.cut_from().cloned().map(Box::new),
        text: text.into_boxed_slice(),
    }
}

/// The record in the folder `place`; None when there is no such folder.
pub(crate) fn read_record<R: Record>(place: &Path) -> Result<Option<(R, Vec<u8>)>> {
    let path = place.join(RECORD);
    match read_small(&path) {
        Ok(text) => Ok(Some((parse(&path, &text)?, text))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            match place.symlink_metadata() {
                Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(None),
                _ => Err(Fault::corrupt(format!("read the record {}", path.display()))
                    .because(e)
                    .hint("the data beside it is untouched; restore the record from a backup")),
            }
        }
        Err(e) => Err(Fault::corrupt(format!("read the record {}", path.display())).because(e)),
    }
}

/// The contents of a file that is small: four system calls, where [`std::fs::read`] makes six.
fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 8192];
    let mut file = File::open(path)?;
    let mut n = 0;
    // To its end: some file systems in user space give less than there is.
    while n < buffer.len() {
        match file.read(&mut buffer[n..]) {
            Ok(0) => return Ok(buffer[..n].to_vec()),
            Ok(more) => n += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    std::fs::read(path)
}

/// The names on a shelf. What cannot be a name of ours is not our business.
pub(crate) fn names(folder: &Path) -> Result<Vec<Native>> {
    let io = |e| Fault::io(format!("list {}", folder.display()), e);
    let mut names = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        // A pool that was never opened for writing has no such folder.
        Err(e) if e.kind() == ErrorKind::NotFound && has_identity(folder) => return Ok(names),
        entries => entries.map_err(io)?,
    };
    for entry in entries {
        if let Some(Ok(native)) = entry.map_err(io)?.file_name().to_str().map(str::parse) {
            names.push(native);
        }
    }
    Ok(names)
}

/// Whether the pool that should hold `folder` is there.
fn has_identity(folder: &Path) -> bool {
    folder.parent().is_some_and(|pool| pool.join(IDENTITY).exists())
}

/// Threads that read a pool's records, more than processors: after a boot each waits for the disk,
/// which serves many at once.
const READERS: usize = 16;

/// Reads all records of a shelf, in several threads: one open and read each is all there is to do.
fn load_shelf<R: Record>(pool: &Path) -> Result<Rows> {
    let mut names = names(&R::SHELF.folder(pool))?;
    names.sort_unstable();
    let share = names.len().div_ceil(READERS).max(64);
    let load = |names: &[Native]| -> Vec<(Native, Row)> {
        let row = |native: &Native| match read_record::<R>(&R::SHELF.place(pool, native)) {
            Ok(Some((record, text))) => Some(whole(&record, text)),
            Ok(None) => None,
            Err(fault) => {
                tracing::warn!(pool = %pool.display(), "{} {native}: {fault}", R::SHELF);
                Some(Row::Broken(Box::new(fault)))
            }
        };
        names.iter().filter_map(|native| Some((native.clone(), row(native)?))).collect()
    };
    let load = &load;
    let parts: Vec<std::thread::Result<Vec<(Native, Row)>>> = std::thread::scope(|scope| {
        let start = |part| std::thread::Builder::new().spawn_scoped(scope, move || load(part));
        let running: Vec<_> = names.chunks(share).map(|part| (part, start(part).ok())).collect();
        // Where no more threads can be had, this one does their part.
        let end = |(part, running): (_, Option<std::thread::ScopedJoinHandle<'_, _>>)| {
            running.map_or_else(|| Ok(load(part)), std::thread::ScopedJoinHandle::join)
        };
        running.into_iter().map(end).collect()
    });
    let mut rows = Rows::default();
    for part in parts {
        let part = part.map_err(|_| Fault::internal(format!("read {}", pool.display())))?;
        rows.size = part.iter().fold(rows.size, |sum, (_, row)| sum.saturating_add(row.size()));
        rows.rows.extend(part);
    }
    Ok(rows)
}
