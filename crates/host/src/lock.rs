//! Locks between processes.
//!
//! A [`FileLock`] is a `flock(2)` on a file that stays in place: the
//! kernel lets go of it when the last holder's descriptor closes, also at `kill -9`, so no lock can
//! be left behind and none is ever broken by age. The file's text says who holds it, for people and
//! for the CLI that wants to talk to the owner; the text is never trusted to decide anything.

mod work;

pub use work::AtWork;

use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Who holds a lock, as written by the holder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Where it can be talked to, where it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// Its mount namespace, as [`mount_namespace`](crate::mount_namespace) tells it; None: of a release
    /// that did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_namespace: Option<String>,
}

/// A held lock; let go by dropping it.
#[derive(Debug)]
#[must_use = "the lock is let go when this is dropped"]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock for one holder alone; None while somebody else has it.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        attempt(path, FlockOperation::NonBlockingLockExclusive, OFlags::CREATE)
    }

    /// Takes the lock together with other sharers; None while somebody has it alone.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub fn try_shared(path: &Path) -> Result<Option<Self>> {
        attempt(path, FlockOperation::NonBlockingLockShared, OFlags::CREATE)
    }

    /// As [`FileLock::try_exclusive`] for a file that must exist already.
    ///
    /// # Errors
    /// `NotFound`; see [`Fault::io`].
    pub(crate) fn try_existing(path: &Path) -> Result<Option<Self>> {
        attempt(path, FlockOperation::NonBlockingLockExclusive, OFlags::empty())
    }

    /// Waits for the lock for one holder alone until `deadline`.
    ///
    /// # Errors
    /// `Unavailable` naming the holder when the time is over; see [`Fault::io`].
    pub fn exclusive_wait(path: &Path, deadline: Instant) -> Result<Self> {
        wait(path, FlockOperation::NonBlockingLockExclusive, deadline)
    }

    /// Waits for the shared lock until `deadline`.
    ///
    /// # Errors
    /// As [`FileLock::exclusive_wait`].
    pub fn shared_wait(path: &Path, deadline: Instant) -> Result<Self> {
        wait(path, FlockOperation::NonBlockingLockShared, deadline)
    }

    /// Writes who we are into the lock file.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub fn announce(&self, holder: &Holder) -> Result<()> {
        let what = || format!("write the holder into {}", self.path.display());
        let text = serde_json::to_vec(holder).map_err(|e| Fault::internal(what()).because(e))?;
        self.file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(&text, 0))
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Fault::io(what(), e))
    }

    /// Puts a new, empty file in the place of the lock file, and holds that; None when somebody else
    /// took it first. Whoever waits for the former one notices that it was removed.
    ///
    /// # Errors
    /// See [`Fault::io`]; the lock is let go then.
    pub fn renew(self) -> Result<Option<Self>> {
        std::fs::remove_file(&self.path)
            .map_err(|e| Fault::io(format!("make {} anew", self.path.display()), e))?;
        Self::try_exclusive(&self.path)
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the present or last holder wrote into the lock file; None when nothing readable is there.
pub fn holder(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn attempt(path: &Path, how: FlockOperation, create: OFlags) -> Result<Option<FileLock>> {
    let what = || format!("lock {}", path.display());
    loop {
        let flags = OFlags::RDWR | create | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| io_fault(what(), e))?;
        match rustix::fs::flock(&file, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(io_fault(what(), e)),
        }
        // Whoever removes lock files does it while holding them: the file that we locked may no
        // longer be the one under this name. Then a lock on it keeps nobody out.
        let held = file.metadata().map_err(|e| Fault::io(what(), e))?;
        match std::fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                return Ok(Some(FileLock { file, path: path.to_owned() }));
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Fault::io(what(), e)),
        }
    }
}

fn wait(path: &Path, how: FlockOperation, deadline: Instant) -> Result<FileLock> {
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(lock) = attempt(path, how, OFlags::CREATE)? {
            return Ok(lock);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let who = holder(path).map_or_else(
                || "an unknown process".to_owned(),
                |h| format!("process {} {}", h.pid, h.what).trim().to_owned(),
            );
            return Err(Fault::unavailable(format!("lock {}: {who} has it", path.display()))
                .hint("wait for it to end, or stop it"));
        }
        crate::sys::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
