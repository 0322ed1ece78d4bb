//! Files that survive a power cut, and removal of trees.
//!
//! ```text
//!  write:  temporary file beside it ─ fsync ─ rename over the name ─ fsync of the directory
//! ```
//! After a crash at any point the name holds the old contents or the new, whole. Temporary files
//! that a crash leaves behind are called `.NAME.tmp-…`; they never count as records and
//! [`sweep_temporary`] removes them.
//!
//! [`remove_tree`] works with directory descriptors: it cannot be led elsewhere by a symlink that
//! is put in its way, and it never leaves the mount it starts in.

mod points;
mod tree;

pub(crate) use points::reach;
pub(crate) use tree::{remove_at, remove_at_while};
pub use tree::{remove_tree, remove_tree_while};

use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Part of the name of every temporary file made here.
const TEMPORARY: &str = ".tmp-";

/// Writes `contents` under `path` (mode 0600), replacing what is there. The directory must exist.
///
/// # Errors
/// `Exhausted` for a full disk, with the old contents untouched; see [`Fault::io`].
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let dir = parent(path)?;
    let temporary = temporary_name(path)?;
    let attempt = || -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &temporary, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(fd);
        reach()?;
        file.write_all(contents)?;
        reach()?;
        file.sync_all()?;
        reach()?;
        std::fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Fault::io(format!("write {}", path.display()), e)
    })?;
    sync_dir(dir)
}

/// Writes `value` as JSON under `path`, as [`write`] does.
///
/// # Errors
/// As [`write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| {
        Fault::internal(format!("put the record {} into words", path.display())).because(e)
    })?;
    text.push(b'\n');
    write(path, &text)
}

/// Reads JSON from `path`; None when there is no such file.
///
/// # Errors
/// `Corrupt` when it is not what is expected; see [`Fault::io`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fault::io(format!("read {}", path.display()), e)),
    };
    json(path, &text).map(Some)
}

/// Understands `text`, which is what is at `path`.
///
/// # Errors
/// `Corrupt` when it is not what is expected.
pub fn json<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| {
        Fault::corrupt(format!("understand the record {}", path.display())).because(e).hint(
            "it was damaged or written by a newer version; restore it from a backup or remove it \
             once its volume has been looked at",
        )
    })
}

/// Makes the names in directory `dir` durable.
///
/// # Errors
/// See [`Fault::io`].
pub fn sync_dir(dir: &Path) -> Result<()> {
    reach()
        .and_then(|()| File::open(dir))
        .and_then(|d| d.sync_all())
        .map_err(|e| Fault::io(format!("make directory {} durable", dir.display()), e))
}

/// Makes the contents of `path` (a file or directory) durable.
///
/// # Errors
/// See [`Fault::io`].
pub fn sync_file(path: &Path) -> Result<()> {
    reach()
        .and_then(|()| File::open(path))
        .and_then(|f| f.sync_all())
        .map_err(|e| Fault::io(format!("make {} durable", path.display()), e))
}

/// Makes everything that was written to the file system of `path` durable (`syncfs`).
///
/// # Errors
/// See [`Fault::io`].
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let what = || format!("make the file system of {} durable", path.display());
    let file = reach().and_then(|()| File::open(path)).map_err(|e| Fault::io(what(), e))?;
    rustix::fs::syncfs(&file).map_err(|e| io_fault(what(), e))
}

/// Renames and makes it durable on both sides. An existing file (or empty directory) at `to` is
/// replaced.
///
/// # Errors
/// See [`Fault::io`]; across file systems `Precondition`.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("rename {} to {}", from.display(), to.display());
    reach().map_err(|e| Fault::io(what(), e))?;
    rustix::fs::rename(from, to).map_err(|e| rename_fault(what(), e))?;
    sync_both(from, to)
}

/// As [`rename`], but refuses to replace anything at `to`.
///
/// # Errors
/// `Conflict` when `to` exists; see [`Fault::io`].
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    rename_new_unsynced(from, to)?;
    sync_both(from, to)
}

/// As [`rename_new`], without making it durable: for callers that fsync the directory themselves,
/// outside of a lock.
///
/// # Errors
/// As [`rename_new`].
pub fn rename_new_unsynced(from: &Path, to: &Path) -> Result<()> {
    use rustix::{fs::RenameFlags, io::Errno};
    let what = || format!("rename {} to {}", from.display(), to.display());
    reach().map_err(|e| Fault::io(what(), e))?;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS has no such rename. There a plain one still never replaces a directory that holds
        // anything.
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::lstat(to) {
            Ok(_) => Err(rename_fault(what(), Errno::EXIST)),
            Err(_) => rustix::fs::rename(from, to).map_err(|e| rename_fault(what(), e)),
        },
        other => other.map_err(|e| rename_fault(what(), e)),
    }
}

/// Writes a file that must not exist yet (mode 0600), durably but for its name: a crash leaves it
/// whole, in part or not at all. For folders that become visible only when they are complete.
///
/// # Errors
/// `Conflict` when it exists; see [`Fault::io`].
pub fn write_new(path: &Path, contents: &[u8]) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(fd);
        reach()?;
        file.write_all(contents)?;
        reach()?;
        file.sync_all()
    };
    attempt().map_err(|e| {
        let exists = e.kind() == ErrorKind::AlreadyExists;
        let fault = Fault::io(format!("write {}", path.display()), e);
        if exists { fault.with_kind(Kind::Conflict) } else { fault }
    })
}

fn rename_fault(what: String, error: rustix::io::Errno) -> Fault {
    match error {
        rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY => {
            io_fault(what, error).with_kind(Kind::Conflict)
        }
        rustix::io::Errno::XDEV => io_fault(what, error)
            .with_kind(Kind::Precondition)
            .hint("both must be on one file system"),
        _ => io_fault(what, error),
    }
}

fn sync_both(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (parent(from)?, parent(to)?);
    sync_dir(to)?;
    if from == to { Ok(()) } else { sync_dir(from) }
}

/// Removes the file `path` durably; an absent one is a success.
///
/// # Errors
/// See [`Fault::io`].
pub fn remove_file(path: &Path) -> Result<()> {
    match reach().and_then(|()| std::fs::remove_file(path)) {
        Ok(()) => sync_dir(parent(path)?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Fault::io(format!("remove {}", path.display()), e)),
    }
}

/// Makes directory `path` with `mode` (exact, whatever the umask), durably. It exists already: done,
/// its mode is left alone. Parents must exist.
///
/// # Errors
/// `Precondition` when something else has the name; see [`Fault::io`].
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    let what = || format!("make directory {}", path.display());
    reach().map_err(|e| Fault::io(what(), e))?;
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())
                .map_err(|e| io_fault(what(), e))?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).map_err(|e| io_fault(what(), e))?;
            sync_dir(parent(path)?)
        }
        Err(rustix::io::Errno::EXIST) => {
            let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| io_fault(what(), e))?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                Ok(())
            } else {
                Err(Fault::precondition(format!("{}: the name is taken by a file", what())))
            }
        }
        Err(e) => Err(io_fault(what(), e)),
    }
}

/// Removes temporary files that crashes of [`write`] left in `dir`. Only the process that owns the
/// directory may call it, with no write under way.
///
/// # Errors
/// See [`Fault::io`].
pub fn sweep_temporary(dir: &Path) -> Result<usize> {
    sweep_temporary_of(dir, "")
}

/// As [`sweep_temporary`], but only those of files whose names end with `ending`: for directories in
/// which others keep files of their own.
///
/// # Errors
/// See [`Fault::io`].
pub fn sweep_temporary_of(dir: &Path, ending: &str) -> Result<usize> {
    let what = || format!("look for left-overs in {}", dir.display());
    let mut removed = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| Fault::io(what(), e))? {
        let entry = entry.map_err(|e| Fault::io(what(), e))?;
        let name = entry.file_name();
        let ours = name.to_str().and_then(written).is_some_and(|kept| kept.ends_with(ending));
        if ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove_file(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// As [`sweep_temporary`] for a directory in which several processes write: only what a process left that
/// is gone, or one before us that had our number. With no write of this process under way. Where a
/// process of another container is taken for gone, its write fails and changes nothing.
///
/// # Errors
/// See [`Fault::io`].
pub fn sweep_abandoned(dir: &Path) -> Result<()> {
    let what = || format!("look for left-overs in {}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(|e| Fault::io(what(), e))? {
        let entry = entry.map_err(|e| Fault::io(what(), e))?;
        let name = entry.file_name();
        let Some((_, writer)) = name.to_str().and_then(temporary) else { continue };
        let ours = writer == u128::from(std::process::id());
        if ours || !Path::new("/proc").join(writer.to_string()).exists() {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// What [`temporary_name`] kept of the name that was to be written; None for names it never gives.
fn written(name: &str) -> Option<&str> {
    temporary(name).map(|(kept, _)| kept)
}

/// The same with the process that was writing.
fn temporary(name: &str) -> Option<(&str, u128)> {
    let (kept, numbers) = name.strip_prefix('.')?.rsplit_once(TEMPORARY)?;
    let mut numbers = numbers.split('-');
    let mut number = |radix| u128::from_str_radix(numbers.next()?, radix).ok();
    let (process, _count, _time) = (number(10)?, number(10)?, number(16)?);
    numbers.next().is_none().then_some((kept, process))
}

fn parent(path: &Path) -> Result<&Path> {
    match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(p) => Ok(p),
        None => Err(Fault::invalid(format!("use {} as a file", path.display()))),
    }
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| Fault::invalid(format!("use {} as a file", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    // A record's name may be as long as a file name can be: the temporary one keeps its end, which
    // tells what kind of file it is.
    let name = name.to_string_lossy();
    hidden.push(name.char_indices().rev().nth(47).map_or(&*name, |(at, _)| &name[at..]));
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    hidden.push(format!("{TEMPORARY}{}-{n}-{nanos:x}", std::process::id()));
    Ok(parent(path)?.join(hidden))
}
