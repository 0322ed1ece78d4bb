//! Giving a whole tree its project.

use super::{quota_fault, sys};
use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{ffi::CString, path::Path};

/// One directory on the way down: its descriptor and the directories in it that are left to do.
struct Level {
    fd: OwnedFd,
    left: Vec<CString>,
}

/// Gives `root` and everything in it project `id`. Works with descriptors: nothing that is renamed
/// or replaced by a symlink meanwhile leads it elsewhere. A directory gets its project before what
/// is in it is looked at, so that nothing made meanwhile is missed.
pub(super) fn set_project(root: &Path, id: u32) -> Result<()> {
    let what = || format!("give {} to project {id}", root.display());
    let fd = rustix::fs::openat(CWD, root, flags() | OFlags::DIRECTORY, Mode::empty())
        .map_err(|e| io_fault(what(), e))?;
    let mut levels = vec![enter(fd, id, &what)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.left.pop() else {
            levels.pop();
            continue;
        };
        if let Some(fd) = open(&level.fd, &name, OFlags::DIRECTORY, &what)? {
            levels.push(enter(fd, id, &what)?);
        }
    }
    Ok(())
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK
}

/// Opens what is called `name` in `dir`; None when it is gone or has become something else.
fn open(
    dir: &OwnedFd,
    name: &CString,
    more: OFlags,
    what: &impl Fn() -> String,
) -> Result<Option<OwnedFd>> {
    // What is mounted inside, also by a bind mount of this very file system, is somebody else's.
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, name.as_c_str(), flags() | more, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::XDEV | Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(Errno::MFILE) => Err(io_fault(what(), Errno::MFILE)
            .hint("it has more levels of directories than files may be open")),
        Err(e) => Err(io_fault(what(), e)),
    }
}

fn set(file: impl AsFd, id: u32, is_dir: bool, what: &impl Fn() -> String) -> Result<()> {
    sys::set_project(file, id, is_dir).map_err(|e| quota_fault(what(), e))
}

/// Sets a directory and the files in it, and lists the directories in it.
fn enter(fd: OwnedFd, id: u32, what: &impl Fn() -> String) -> Result<Level> {
    set(&fd, id, true, what)?;
    let io = |e: Errno| -> Fault { io_fault(what(), e) };
    let mut left = Vec::new();
    for entry in Dir::read_from(&fd).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(io(e)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => left.push(name.to_owned()),
            FileType::RegularFile => {
                if let Some(file) = open(&fd, &name.to_owned(), OFlags::empty(), what)? {
                    // It may have been replaced since it was looked at: opening a pipe or device
                    // for reading without waiting does no harm, and it is then left alone.
                    let now = rustix::fs::fstat(&file).map_err(io)?;
                    if FileType::from_raw_mode(now.st_mode) == FileType::RegularFile {
                        set(&file, id, false, what)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Level { fd, left })
}
