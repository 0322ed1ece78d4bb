//! Removal of whole trees.

use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
};
use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Removes `path` and everything below it; absent: done. A tree that was removed half-way is removed
/// by the next call.
///
/// Symlinks are removed, never followed. A directory that is a mount point stops it before anything
/// inside is touched, also for bind mounts of the same file system. Directories without write
/// permission are made writable. btrfs subvolumes inside are deleted as the directories they are.
///
/// # Errors
/// `Precondition` when something is mounted inside or a file is immutable (`chattr +i`); see
/// [`Fault::io`]. What was removed before stays removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    let _ = path;
    Err(Fault::unsupported("remove a tree"))
}
