//! A sign on a directory that somebody works in it, for whoever looks from another process: a lock, so
//! that it goes with the process, however that ends.

use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{os::fd::OwnedFd, path::Path, time::Duration};

/// Held as long as the work goes on.
#[derive(Debug)]
pub struct AtWork {
    _directory: Option<OwnedFd>,
}

impl AtWork {
    /// Puts up the sign. Without one, where the directory cannot be locked, the work is done all the same.
    pub fn on(directory: &Path) -> Self {
        for _ in 0..10 {
            let Some(open) = open(directory) else { break };
            match rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Self { _directory: Some(open) },
                // Somebody looks for the sign just now.
                Err(Errno::WOULDBLOCK) => crate::sys::sleep(Duration::from_millis(1)),
                Err(_) => break,
            }
        }
        Self { _directory: None }
    }

    /// Whether somebody has put it up.
    pub fn is_on(directory: &Path) -> bool {
        open(directory).is_some_and(|open| {
            rustix::fs::flock(open, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
        })
    }
}

fn open(directory: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, directory, flags, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_as_long_as_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!AtWork::is_on(dir.path()));
        let work = AtWork::on(dir.path());
        assert!(AtWork::is_on(dir.path()));
        drop(work);
        assert!(!AtWork::is_on(dir.path()));
        assert!(!AtWork::is_on(&dir.path().join("absent")));
    }
}
