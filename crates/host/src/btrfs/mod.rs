//! btrfs subvolumes, snapshots and qgroups.

use crate::Usage;
use larder_model::{Bytes, Fault, Result};
use std::path::{Path, PathBuf};

/// Whether `dir` lies on btrfs.
///
/// # Errors
/// See [`Fault::io`].
pub fn is_btrfs(_dir: &Path) -> Result<bool> {
    Err(Fault::unsupported("btrfs"))
}

/// Makes an empty subvolume. The parent directory exists.
///
/// # Errors
/// `Conflict` when the name is taken.
pub fn create_subvolume(_path: &Path) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// Snapshots subvolume `from` at `to`. Subvolumes nested in it appear as empty directories.
///
/// # Errors
/// `Conflict` when `to` exists; `Precondition` when `from` is no subvolume.
pub fn snapshot(_from: &Path, _to: &Path, _read_only: bool) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// Deletes a subvolume and the subvolumes in it, with all data; absent: done.
///
/// # Errors
/// `Precondition` when it is no subvolume or something is mounted in it.
pub fn delete_subvolume(_path: &Path) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// The subvolumes nested in subvolume `path` at any depth (workloads can make them), as paths
/// relative to it, outer ones before those inside them. No walk through the tree: the file system
/// keeps a list.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn nested(_path: &Path) -> Result<Vec<PathBuf>> {
    Err(Fault::unsupported("btrfs"))
}

/// Whether `path` is the root of a subvolume. An absent path is none.
///
/// # Errors
/// See [`Fault::io`].
pub fn is_subvolume(_path: &Path) -> Result<bool> {
    Err(Fault::unsupported("btrfs"))
}

/// Makes a subvolume read-only or writable.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn set_read_only(_path: &Path, _read_only: bool) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// Whether the subvolume is read-only.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn is_read_only(_path: &Path) -> Result<bool> {
    Err(Fault::unsupported("btrfs"))
}

/// Turns quota accounting on for the file system of `dir`; on already: done.
///
/// # Errors
/// See [`Fault::io`].
pub fn enable_quota(_dir: &Path) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// Whether quota accounting is on.
///
/// # Errors
/// See [`Fault::io`].
pub fn quota_enabled(_dir: &Path) -> Result<bool> {
    Err(Fault::unsupported("btrfs"))
}

/// Limits the bytes that subvolume `path` refers to; None lifts the limit.
///
/// # Errors
/// `Precondition` while quota accounting is off.
pub fn set_limit(_path: &Path, _bytes: Option<Bytes>) -> Result<()> {
    Err(Fault::unsupported("btrfs"))
}

/// How full subvolume `path` is, as its qgroup counts. `total` is its limit, or the size of the file
/// system.
///
/// # Errors
/// `Precondition` while quota accounting is off.
pub fn usage(_path: &Path) -> Result<Usage> {
    Err(Fault::unsupported("btrfs"))
}
