//! Size limits for directories.

use crate::Usage;
use larder_model::{Bytes, Fault, Result};
use std::{collections::BTreeSet, path::Path};

/// How the size of a directory can be limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforcement {
    /// By project quota (ext4, xfs).
    Project,
    /// By the qgroup of a subvolume (btrfs).
    BtrfsQgroup,
    /// Not at all.
    None {
        /// Why, and what an administrator could do.
        why: String,
    },
}

/// How directories in `dir` can be limited.
///
/// # Errors
/// See [`Fault::io`].
pub fn detect(_dir: &Path) -> Result<Enforcement> {
    Err(Fault::unsupported("quota"))
}

/// Gives directory `dir` and everything in it the project `id`, inherited by what is made later.
/// Repeating it completes a call that was cut.
///
/// # Errors
/// `Precondition` where the file system has no projects.
pub fn set_project(_dir: &Path, _id: u32) -> Result<()> {
    Err(Fault::unsupported("quota"))
}

/// Limits project `id` on the file system of `dir`; None lifts that limit.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn limit_project(
    _dir: &Path,
    _id: u32,
    _bytes: Option<Bytes>,
    _inodes: Option<u64>,
) -> Result<()> {
    Err(Fault::unsupported("quota"))
}

/// How full project `id` is. `total` is its limit, or the size of the file system.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn project_usage(_dir: &Path, _id: u32) -> Result<Usage> {
    Err(Fault::unsupported("quota"))
}

/// The project of directory or file `path`; None for none (0).
///
/// # Errors
/// See [`Fault::io`].
pub fn project_of(_path: &Path) -> Result<Option<u32>> {
    Err(Fault::unsupported("quota"))
}

/// The project ids that already have limits or usage on the file system of `dir`.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn used_ids(_dir: &Path) -> Result<BTreeSet<u32>> {
    Err(Fault::unsupported("quota"))
}

/// Whether nothing on the file system of `dir` has the project `id`: neither usage nor a limit.
/// One look-up, where [`used_ids`] lists all.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn is_free(_dir: &Path, _id: u32) -> Result<bool> {
    Err(Fault::unsupported("quota"))
}
