//! Walks through a tree whose names others may change meanwhile.
//!
//! All access is relative to open directories: nothing that is renamed, or replaced by a symlink,
//! leads the walk out of its tree, and neither depth nor the length of paths is limited. Directories
//! far up the way are closed, and opened again on the way back.

use larder_model::{Fault, Result};
use rustix::{
    fd::OwnedFd,
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::ffi::{CStr, CString};

/// Directories on the way down that are kept open.
const KEPT_OPEN: usize = 24;

/// One directory on the way down.
struct Level {
    /// None while the walk is far below.
    fd: Option<OwnedFd>,
    id: (u64, u64),
    /// The directories in it that are left to do.
    left: Vec<CString>,
}

/// Calls `enter` for `root` and for every directory below it, outer ones first; it returns the names
/// of those directories in it that shall be gone into. What is gone by then, is no directory any
/// more, or has something mounted over it, is left out.
pub(crate) fn descend(
    root: OwnedFd,
    failed: &dyn Fn(Errno) -> Fault,
    enter: &mut dyn FnMut(&OwnedFd) -> Result<Vec<CString>>,
) -> Result<()> {
    let mut step = |fd: OwnedFd| -> Result<Level> {
        let left = enter(&fd)?;
        Ok(Level { id: identity(&fd).map_err(failed)?, fd: Some(fd), left })
    };
    let mut levels = vec![step(root)?];
    while let Some(level) = levels.last_mut() {
        let Some(fd) = &level.fd else { return Err(failed(Errno::BADF)) };
        if let Some(name) = level.left.pop() {
            if let Some(inner) = open(fd, &name, OFlags::DIRECTORY).map_err(failed)? {
                levels.push(step(inner)?);
                if levels.len() > KEPT_OPEN {
                    let far = levels.len() - KEPT_OPEN - 1;
                    levels[far].fd = None;
                }
            }
            continue;
        }
        let done = levels.pop().and_then(|level| level.fd);
        if let (Some(outer), Some(inner)) = (levels.last_mut(), done)
            && outer.fd.is_none()
        {
            let flags = flags() | OFlags::DIRECTORY;
            let fd = rustix::fs::openat(&inner, c"..", flags, Mode::empty()).map_err(failed)?;
            if identity(&fd).map_err(failed)? != outer.id {
                let moved = "a directory in it was moved meanwhile".to_owned();
                return Err(failed(Errno::BUSY)
                    .with_kind(larder_model::Kind::Unavailable)
                    .during(moved)
                    .hint("try again"));
            }
            outer.fd = Some(fd);
        }
    }
    Ok(())
}

fn identity(fd: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

pub(crate) fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK
}

/// Opens what is called `name` in `dir`; None when it is gone or has become something else.
pub(crate) fn open(
    dir: &OwnedFd,
    name: &CStr,
    more: OFlags,
) -> rustix::io::Result<Option<OwnedFd>> {
    // What is mounted inside, also by a bind mount of this very file system, is somebody else's.
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, name, flags() | more, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::XDEV | Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Calls `each` for every name in a directory but `.` and `..`; one that was removed has none.
pub(crate) fn names(
    directory: &OwnedFd,
    failed: &dyn Fn(Errno) -> Fault,
    each: &mut dyn FnMut(&CStr) -> Result<()>,
) -> Result<()> {
    let entries = match Dir::read_from(directory) {
        Err(Errno::NOENT) => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(entry) => each(entry.file_name())?,
            Err(Errno::NOENT) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}
