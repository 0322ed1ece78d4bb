//! Who owns a pool.
//!
//! One process at a time works in a pool that is not shared: it holds `.larder/lock` (`flock`, so
//! the kernel lets go of it when the process ends, however it ends) and writes into it who it is. The
//! note is for people and for the CLI, which talks to the owner instead of working behind its back;
//! only the lock itself decides anything.

use crate::layout::owner_lock;
use larder_host::lock::{self, FileLock, Holder};
use larder_model::{Fault, Result};
use serde::Serialize;
use std::{fmt, path::Path};

/// Who serves a pool, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerNote {
    /// Its process id, in its own process namespace.
    pub pid: u32,
    /// The driver.
    pub driver: String,
    /// Where the driver listens.
    pub endpoint: Option<String>,
}

impl OwnerNote {
    /// This process, serving `driver` at `endpoint`.
    pub fn this(driver: impl Into<String>, endpoint: Option<String>) -> Self {
        Self { pid: std::process::id(), driver: driver.into(), endpoint }
    }
}

impl fmt::Display for OwnerNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process");
        }
        write!(f, "process {}", self.pid)?;
        if !self.driver.is_empty() {
            write!(f, " ({})", self.driver)?;
        }
        Ok(())
    }
}

/// Takes the pool; says whether the last owner has left it with [`leave`]. `Err(note)` when
/// somebody else has it.
pub(crate) fn take(
    pool: &Path,
    note: &OwnerNote,
) -> Result<std::result::Result<(FileLock, bool), Option<OwnerNote>>> {
    let path = owner_lock(pool);
    let Some(lock) = FileLock::try_exclusive(&path)? else { return Ok(Err(read_note(&path))) };
    let clean = says_clean(&path);
    let announced = lock.announce(&Holder {
        pid: note.pid,
        endpoint: note.endpoint.clone(),
        what: note.driver.clone(),
        mount_namespace: None,
    });
    // A full disk must not keep a pool from being served, and emptied.
    if let Err(fault) = announced {
        tracing::warn!(pool = %pool.display(), "cannot note the owner in the lock: {fault}");
    }
    match without_clean_note(lock)? {
        Some(lock) => Ok(Ok((lock, clean))),
        None => Ok(Err(read_note(&path))),
    }
}

/// Whether the last owner's note says that it went in order.
fn says_clean(path: &Path) -> bool {
    lock::holder(path).is_some_and(|holder| holder == Holder::default())
}

/// Makes sure that "left in order" does not stand in the lock while somebody works in the pool: were
/// that one killed, the next start would trust what no fsync has made durable. None: somebody else
/// took the lock.
fn without_clean_note(lock: FileLock) -> Result<Option<FileLock>> {
    if !says_clean(lock.path()) {
        return Ok(Some(lock));
    }
    lock.renew().map_err(|fault| {
        fault
            .during("take back the note that the pool was left in order")
            .hint("make the pool writable; it cannot be served safely before")
    })
}

/// Notes that the owner goes, with everything done and durable.
pub(crate) fn leave(lock: &FileLock) {
    if let Err(fault) = lock.announce(&Holder::default()) {
        tracing::warn!("cannot note that the pool was left in order: {fault}");
    }
}

fn read_note(lock: &Path) -> Option<OwnerNote> {
    let Holder { pid, endpoint, what, .. } = lock::holder(lock)?;
    Some(OwnerNote { pid, driver: what, endpoint })
}

/// The process that owns the pool in `path` just now; None: nobody does (or it is shared).
///
/// # Errors
/// `Unavailable`: there is no pool. I/O.
pub fn owner(path: &Path) -> Result<Option<OwnerNote>> {
    if crate::identity::read(path)?.is_none() {
        return Err(crate::identity::missing(path));
    }
    let file = owner_lock(path);
    match std::fs::exists(&file) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(e) => return Err(Fault::io(format!("look at {}", file.display()), e)),
    }
    match FileLock::try_shared(&file) {
        Ok(Some(_free)) => Ok(None),
        Ok(None) => Ok(Some(read_note(&file).unwrap_or_default())),
        // Nobody can hold a lock there.
        Err(_) if larder_host::filesystems::is_read_only(path).unwrap_or(false) => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_could_not_be_replaced_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        // As a former owner left it. That writing over it failed is all the same to what follows.
        let lock = FileLock::try_exclusive(&path).unwrap().unwrap();
        leave(&lock);
        drop(lock);
        let lock = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(says_clean(&path));
        let held = without_clean_note(lock).unwrap().unwrap();
        assert!(!says_clean(&path), "a kill from here on must not look like an orderly stop");
        assert!(FileLock::try_exclusive(&path).unwrap().is_none(), "it is still held");
        drop(held);
    }

    #[test]
    fn the_note_of_an_owner_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".larder")).unwrap();
        let note = OwnerNote::this("some.driver", None);
        let (lock, clean) = take(dir.path(), &note).unwrap().unwrap();
        assert!(!clean);
        assert_eq!(read_note(lock.path()), Some(note.clone()));
        leave(&lock);
        drop(lock);
        let (lock, clean) = take(dir.path(), &note).unwrap().unwrap();
        assert!(clean && !says_clean(lock.path()));
    }
}
