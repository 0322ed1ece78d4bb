//! Looking at recorded freezes without touching them.

use super::{
    record::{GRACE, Record, SUFFIX, millis, now},
    watchdog,
};
use crate::lock::FileLock;
use larder_model::{Fault, Result};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// A recorded freeze.
#[derive(Debug)]
pub struct Recorded {
    /// The record.
    pub path: PathBuf,
    /// The mounts that it is about; why it cannot be read.
    pub mounts: Result<Vec<PathBuf>>,
    /// It was made in this boot of the machine. A reboot thaws.
    pub this_boot: bool,
    /// Its watchdog should have thawed and removed it by now, or is gone.
    pub overdue: bool,
}

/// Whether no watchdog holds the record, although there has been time for one to start.
fn is_unwatched(path: &Path) -> bool {
    let written = path.symlink_metadata().and_then(|meta| meta.modified()).ok();
    let age = written.and_then(|written| written.elapsed().ok()).unwrap_or_default();
    age > watchdog::START && matches!(FileLock::try_existing(path), Ok(Some(_)))
}

/// The freezes that are recorded in `dir`, which may be absent. Those that are neither overdue nor of
/// another boot may be at work just now.
///
/// # Errors
/// See [`Fault::io`].
pub fn recorded(dir: &Path) -> Result<Vec<Recorded>> {
    let what = || format!("look for freezes in {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Fault::io(what(), e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Fault::io(what(), e))?.path();
        if !path.to_str().is_some_and(|p| p.ends_with(SUFFIX)) {
            continue;
        }
        let seen = match Record::read(&path) {
            // Thawed between the two looks.
            Ok(None) => continue,
            Ok(Some(record)) => Recorded {
                this_boot: record.boot == crate::boot_id(),
                overdue: now() > record.until.saturating_add(millis(GRACE)) || is_unwatched(&path),
                mounts: Ok(record.mounts.into_iter().map(|mount| mount.target).collect()),
                path,
            },
            Err(fault) => Recorded { path, mounts: Err(fault), this_boot: true, overdue: true },
        };
        found.push(seen);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
