//! Giving a whole tree its project.

use super::{quota_fault, sys};
use crate::{
    descend::{self, flags, open},
    sys::io_fault,
};
use larder_model::{Fault, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{ffi::CString, path::Path};

/// Gives `root` and everything in it project `id`. A directory gets its project before what is in it
/// is looked at, so that nothing made meanwhile is missed.
pub(super) fn set_project(root: &Path, id: u32) -> Result<()> {
    let what = || format!("give {} to project {id}", root.display());
    let failed = |e: Errno| -> Fault { io_fault(what(), e) };
    let fd = rustix::fs::openat(CWD, root, flags() | OFlags::DIRECTORY, Mode::empty())
        .map_err(failed)?;
    descend::descend(fd, &failed, &mut |directory| enter(directory, id, &what))
}

fn set(file: impl AsFd, id: u32, is_dir: bool, what: &impl Fn() -> String) -> Result<()> {
    sys::set_project(file, id, is_dir).map_err(|e| quota_fault(what(), e))
}

/// Sets a directory and the files in it, and lists the directories in it.
fn enter(fd: &OwnedFd, id: u32, what: &impl Fn() -> String) -> Result<Vec<CString>> {
    set(fd, id, true, what)?;
    let io = |e: Errno| -> Fault { io_fault(what(), e) };
    let mut left = Vec::new();
    descend::names(fd, &io, &mut |name| {
        let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(io(e)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => left.push(name.to_owned()),
            FileType::RegularFile => {
                if let Some(file) = open(fd, name, OFlags::empty()).map_err(io)? {
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
        Ok(())
    })?;
    Ok(left)
}
