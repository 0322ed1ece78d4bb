//! Looking at a pool from outside: what is in it, without opening, locking or changing it.
//!
//! For `larder doctor`, which works beside a running owner, and `larder adopt`, which has nothing but the
//! directory. The owner goes on meanwhile, so what is seen of several files need not fit together: who
//! concludes something from it looks twice.

use crate::{
    catalog::read_record,
    identity::{self, Identity},
    layout::{
        CREATING, DELETING, FOLDERS, IDENTITY, RECORD, SCRATCH, STATIC, STATIC_RECORD, Shelf,
        TRASH, parse_grave, parse_work,
    },
    record::{SnapshotRecord, VolumeRecord},
};
pub use crate::{
    groups::{GroupItem, GroupMember},
    trash::{TrashFault, TrashItem},
};
use larder_host::{Backing, filesystems::is_read_only, lock::AtWork};
use larder_model::{Fault, Native, Result};
use std::{
    fs::Metadata,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How a medium calls its data; see [`crate::Medium::data_name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataNames {
    /// Of a volume or snapshot, in its folder.
    pub data: &'static str,
    /// What follows the name of a static volume.
    pub static_suffix: &'static str,
    /// The data is a directory, not a file.
    pub is_dir: bool,
    /// How names of the medium's other files in that folder begin; empty: there are none.
    pub notes: &'static str,
}

/// What was seen of a pool.
#[derive(Debug)]
pub struct Look {
    /// Its identity.
    pub identity: Identity,
    /// Its file system, or this mount of it, refuses writing.
    pub read_only: bool,
    /// Volumes, by name.
    pub volumes: Vec<Item<VolumeRecord>>,
    /// Snapshots, by name.
    pub snapshots: Vec<Item<SnapshotRecord>>,
    /// Groups of snapshots, by name.
    pub groups: Vec<GroupItem>,
    /// What is under construction, or was.
    pub unfinished: Vec<Work>,
    /// What is being removed, or was.
    pub deleted: Vec<Work>,
    /// What is wrong in the trash.
    pub trash: Vec<TrashItem>,
    /// Temporary files.
    pub scratch: Vec<PathBuf>,
    /// What an administrator put there.
    pub statics: Vec<StaticItem>,
    /// What has no place in a pool.
    pub foreign: Vec<PathBuf>,
    /// Folders and files of ours that others than their owner can reach.
    pub open: Vec<Open>,
}

/// A volume's or snapshot's folder.
#[derive(Debug)]
pub struct Item<R> {
    /// Its name.
    pub native: Native,
    /// The folder.
    pub folder: PathBuf,
    /// Where its data is, or should be.
    pub data: PathBuf,
    /// What is there; None: nothing.
    pub found: Option<Found>,
    /// Its record; None: there is no such file.
    pub record: Option<Result<R>>,
    /// What else is in the folder.
    pub strays: Vec<PathBuf>,
}

/// What has the name of a volume's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// It is what the medium works with: a directory, or an ordinary file.
    pub is_right: bool,
    /// Its size as a file.
    pub size: u64,
    /// Which file it is.
    pub file: Backing,
}

/// A folder in `creating` or `deleting`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The folder.
    pub path: PathBuf,
    /// `volume`, `snapshot` or `group`.
    pub what: &'static str,
    /// The name that was or shall be.
    pub native: Native,
    /// How long nothing has changed at it.
    pub age: Duration,
    /// Somebody is at work in it.
    pub held: bool,
    /// The data in it, as far as there is any.
    pub data: Option<Found>,
}

/// Something in `static`.
#[derive(Debug)]
pub struct StaticItem {
    /// Where.
    pub path: PathBuf,
    /// Its name as a volume; the reason why it cannot be one.
    pub native: std::result::Result<Native, &'static str>,
    /// What it is.
    pub found: Found,
    /// Its record, where it has one.
    pub record: Option<Result<VolumeRecord>>,
}

/// Permissions that are too wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// What.
    pub path: PathBuf,
    /// As they are.
    pub mode: u32,
    /// As they should be.
    pub right: u32,
    /// Who has it, where that is somebody else than this process's user.
    pub stranger: Option<u32>,
}

/// Looks at the pool in `path`.
///
/// # Errors
/// `Unavailable`: there is no pool. `Corrupt`; I/O.
pub fn look(path: &Path, names: DataNames) -> Result<Look> {
    let identity = identity::read(path)?.ok_or_else(|| identity::missing(path))?;
    let mut foreign = Vec::new();
    strays_of_pool(path, &mut foreign)?;
    let mut open = Vec::new();
    wide(path, 0o022, &mut open)?;
    wide(&path.join(IDENTITY), 0o022, &mut open)?;
    for folder in FOLDERS {
        wide(&path.join(folder), if folder == STATIC { 0o022 } else { 0o077 }, &mut open)?;
    }
    let volumes = items::<VolumeRecord>(path, names, &mut foreign, &mut open)?;
    let snapshots = items::<SnapshotRecord>(path, names, &mut foreign, &mut open)?;
    let groups = groups(path, &mut foreign)?;
    Ok(Look {
        identity,
        read_only: is_read_only(path)?,
        volumes,
        snapshots,
        groups,
        unfinished: works(&path.join(CREATING), names, parse_work, &mut foreign)?,
        deleted: works(&path.join(DELETING), names, parse_grave, &mut foreign)?,
        trash: crate::trash::look::look(&path.join(TRASH), names.data, &mut foreign)?,
        scratch: list(&path.join(SCRATCH))?,
        statics: statics(path, names)?,
        foreign,
        open,
    })
}

/// The names in a folder, sorted; an absent one is empty.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Fault::io(format!("list {}", folder.display()), e);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
    };
    let mut paths: Vec<_> =
        entries.map(|entry| entry.map(|e| e.path()).map_err(io)).collect::<Result<_>>()?;
    paths.sort_unstable();
    Ok(paths)
}

/// What is at `path`, no symlink followed; None: nothing any more.
pub(crate) fn stat(path: &Path) -> Result<Option<Metadata>> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Fault::io(format!("look at {}", path.display()), e)),
    }
}

pub(crate) fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether `name` is of a writer that was killed: `.record.json.tmp-…`.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(".tmp-")
}

/// How long nothing has changed at it.
pub(crate) fn age(meta: &Metadata) -> Duration {
    let changed = u64::try_from(meta.ctime()).map(Duration::from_secs).unwrap_or_default();
    (SystemTime::UNIX_EPOCH + changed).elapsed().unwrap_or_default()
}

/// What stands beside our folders.
fn strays_of_pool(pool: &Path, foreign: &mut Vec<PathBuf>) -> Result<()> {
    // `lost+found` comes with ext4.
    let ours = |name: &str| {
        FOLDERS.contains(&name)
            || matches!(name, IDENTITY | "lost+found")
            || name.starts_with(".larder-pool-new.")
    };
    foreign.extend(list(pool)?.into_iter().filter(|path| !ours(name_of(path))));
    Ok(())
}

/// Notes `path` where it grants one of the bits in `forbidden`, or belongs to a stranger.
fn wide(path: &Path, forbidden: u32, open: &mut Vec<Open>) -> Result<()> {
    let Some(meta) = stat(path)?.filter(|meta| !meta.is_symlink()) else { return Ok(()) };
    let mode = meta.mode() & 0o7777;
    let me = larder_host::user_id();
    let stranger = (meta.uid() != me).then_some(meta.uid());
    if mode & forbidden != 0 || stranger.is_some() {
        open.push(Open { path: path.to_owned(), mode, right: mode & !forbidden, stranger });
    }
    Ok(())
}

/// The folders of a shelf; what cannot be one is foreign.
fn shelf(
    pool: &Path,
    shelf: Shelf,
    found: &mut Vec<(Native, PathBuf)>,
    foreign: &mut Vec<PathBuf>,
) -> Result<()> {
    for path in list(&shelf.folder(pool))? {
        let native = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        match (native, stat(&path)?) {
            (Some(native), Some(meta)) if meta.is_dir() => found.push((native, path)),
            (_, None) => {}
            _ => foreign.push(path),
        }
    }
    Ok(())
}

fn groups(pool: &Path, foreign: &mut Vec<PathBuf>) -> Result<Vec<GroupItem>> {
    let mut folders = Vec::new();
    shelf(pool, Shelf::Groups, &mut folders, foreign)?;
    let mut items = Vec::new();
    for (native, folder) in folders {
        items.extend(GroupItem::look(native, folder, list)?);
    }
    Ok(items)
}

fn items<R: crate::catalog::Record>(
    pool: &Path,
    names: DataNames,
    foreign: &mut Vec<PathBuf>,
    open: &mut Vec<Open>,
) -> Result<Vec<Item<R>>> {
    let mut folders = Vec::new();
    shelf(pool, R::SHELF, &mut folders, foreign)?;
    let mut items = Vec::new();
    for (native, folder) in folders {
        let data = folder.join(names.data);
        let found = found(&data, names)?;
        wide(&folder, 0o077, open)?;
        wide(&folder.join(RECORD), 0o077, open)?;
        if !names.is_dir {
            // A directory's permissions are its workload's business.
            wide(&data, 0o077, open)?;
        }
        let record = match stat(&folder.join(RECORD))? {
            None => None,
            // Gone between the two looks: no volume any more.
            Some(_) => match read_record::<R>(&folder) {
                Ok(None) => continue,
                Ok(Some((record, _))) => Some(Ok(record)),
                Err(fault) => Some(Err(fault)),
            },
        };
        let ours = |name: &str| {
            name == RECORD
                || name == names.data
                || is_temporary(name)
                || (!names.notes.is_empty() && name.starts_with(names.notes))
        };
        let strays = list(&folder)?.into_iter().filter(|path| !ours(name_of(path))).collect();
        items.push(Item { native, folder, data, found, record, strays });
    }
    Ok(items)
}

fn found(data: &Path, names: DataNames) -> Result<Option<Found>> {
    Ok(stat(data)?.map(|meta| what_is(&meta, names)))
}

fn what_is(meta: &Metadata, names: DataNames) -> Found {
    Found {
        is_right: if names.is_dir { meta.is_dir() } else { meta.is_file() },
        size: meta.len(),
        file: Backing { device: meta.dev(), inode: meta.ino() },
    }
}

fn works(
    folder: &Path,
    names: DataNames,
    parse: fn(&str) -> Option<(Shelf, Native)>,
    foreign: &mut Vec<PathBuf>,
) -> Result<Vec<Work>> {
    let mut works = Vec::new();
    for path in list(folder)? {
        let Some(meta) = stat(&path)? else { continue };
        let Some((shelf, native)) = parse(name_of(&path)) else {
            foreign.push(path);
            continue;
        };
        let age = age(&meta);
        let data = found(&path.join(names.data), names)?;
        let held = AtWork::is_on(&path);
        works.push(Work { path, what: shelf.word(), native, age, held, data });
    }
    Ok(works)
}

fn statics(pool: &Path, names: DataNames) -> Result<Vec<StaticItem>> {
    let mut items = Vec::new();
    for path in list(&pool.join(STATIC))? {
        let Some(meta) = stat(&path)? else { continue };
        let name = name_of(&path);
        if name.ends_with(STATIC_RECORD) || is_temporary(name) || name == "lost+found" {
            continue;
        }
        let what = what_is(&meta, names);
        let stem = name.strip_suffix(names.static_suffix);
        let native = match stem.map(str::parse::<Native>) {
            _ if meta.is_symlink() => {
                Err("it is a symlink, and volumes never lie outside of a pool")
            }
            _ if !what.is_right && names.is_dir => Err("it is no directory"),
            _ if !what.is_right => Err("it is no ordinary file"),
            None => Err("its name does not end in .img"),
            Some(Err(_)) => {
                Err("its name cannot be a volume's: use small letters, digits, - and .")
            }
            Some(Ok(native)) => Ok(native),
        };
        let record = match &native {
            Ok(native) => {
                crate::statics::read_record(&crate::pool::static_record(pool, native)).transpose()
            }
            Err(_) => None,
        };
        items.push(StaticItem { path, native, found: what, record });
    }
    Ok(items)
}
