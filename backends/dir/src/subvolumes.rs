//! Whole copies of btrfs subvolumes.
//!
//! A snapshot of a subvolume is made at one moment. But it stops at subvolumes that are nested in
//! it (any workload may make them, with `btrfs subvolume create`, container runtimes and `machinectl`
//! do so by themselves): in the snapshot they are empty directories. Leaving them so would lose
//! data without a word, therefore each is snapshotted into its place. A volume without nested
//! subvolumes is copied at one moment; with them, each subvolume is.
//!
//! The nested ones are reached while the workload goes on renaming things, so no symlink is followed
//! on the way and nothing outside the volume can be reached.

use larder_host::{
    beneath::{self, Mounts},
    btrfs,
};
use larder_model::{Cx, Fault, Kind, Result};
use std::{
    fs::{File, FileTimes},
    path::Path,
};

/// Copies subvolume `from`, with what is nested in it, to the new name `to`.
///
/// # Errors
/// `Precondition` when `from` is no subvolume; I/O. What was made under `to` is left to be removed
/// by the caller.
pub(crate) fn copy(from: &Path, to: &Path, read_only: bool, cx: &Cx) -> Result<()> {
    let nested = btrfs::nested(from)?;
    if nested.is_empty() {
        return btrfs::snapshot(from, to, read_only);
    }
    btrfs::snapshot(from, to, false)?;
    let mut copied = Vec::with_capacity(nested.len());
    for path in &nested {
        cx.step("copy a nested subvolume")?;
        if copy_nested(from, to, path)? {
            copied.push(path);
        }
    }
    if read_only {
        // Inner ones first: nothing can be changed below a read-only one any more.
        for path in copied.iter().rev() {
            let inner = beneath::directory(to, path, Mounts::Refused)?;
            btrfs::set_read_only(&inner.path(), true)?;
        }
        btrfs::set_read_only(to, true)?;
    }
    Ok(())
}

/// Puts a snapshot of `from/path` in place of the empty directory `to/path`. False: the workload
/// has deleted or moved it since it was listed, or had not yet made it when `to` was cut.
fn copy_nested(from: &Path, to: &Path, path: &Path) -> Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    // A symlink or something else stands there now: it is not the subvolume any more.
    let moved = |fault: &Fault| matches!(fault.kind(), Kind::NotFound | Kind::Precondition);
    let source = match beneath::directory(from, path, Mounts::Refused) {
        Ok(source) => source,
        Err(fault) if moved(&fault) => return Ok(false),
        Err(fault) => return Err(fault),
    };
    if !btrfs::is_subvolume(&source.path())? {
        return Ok(false);
    }
    let place = match beneath::directory(to, parent, Mounts::Refused) {
        Ok(place) => place,
        Err(fault) if moved(&fault) => return Ok(false),
        Err(fault) => return Err(fault),
    };
    let what = || format!("copy the nested subvolume {}", from.join(path).display());
    let held = File::open(place.path()).map_err(|e| Fault::io(what(), e))?;
    let before = held.metadata().map_err(|e| Fault::io(what(), e))?;
    let target = place.path().join(name);
    // The kernel leaves an empty directory in its place; it is removed only when it is empty.
    match std::fs::remove_dir(&target) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Fault::io(what(), e)),
    }
    btrfs::snapshot(&source.path(), &target, false)?;
    let times = FileTimes::new()
        .set_accessed(before.accessed().map_err(|e| Fault::io(what(), e))?)
        .set_modified(before.modified().map_err(|e| Fault::io(what(), e))?);
    held.set_times(times).map_err(|e| Fault::io(what(), e))?;
    Ok(true)
}
