//! Size limits for directories.
//!
//! ext4 and xfs count *projects*: every inode has a project number, a directory hands its own down to
//! what is made in it, and a limit for the number bounds them all together. Nothing registers the
//! numbers: they are shared by everything on the file system. btrfs counts subvolumes instead
//! ([`crate::btrfs`]).
//!
//! What project quota does not do, by the kernel's design:
//! - ext4 lets processes with `CAP_SYS_RESOURCE` (root outside of containers) pass their limits; xfs
//!   does not;
//! - the owner of a file may change its project (`chattr -p`) outside of user namespaces;
//! - symlinks, pipes and sockets that existed before a directory got its project keep counting for
//!   the former one: they cannot be opened to be changed.

mod sys;
mod tree;

use crate::{Usage, btrfs, sys::io_fault};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

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
pub fn detect(dir: &Path) -> Result<Enforcement> {
    let none = |why: &str| Ok(Enforcement::None { why: why.to_owned() });
    let fs = rustix::fs::statfs(dir)
        .map_err(|e| io_fault(format!("look at the file system of {}", dir.display()), e))?;
    let is = |magic: u64| u64::try_from(fs.f_type).is_ok_and(|t| t & 0xffff_ffff == magic);
    if btrfs::is_btrfs(dir)? {
        return match (btrfs::quota_enabled(dir), crate::sys::may(crate::sys::SYS_ADMIN)) {
            (Ok(true), true) => Ok(Enforcement::BtrfsQgroup),
            (Ok(false), _) => none("btrfs counts nothing; run `btrfs quota enable` on it"),
            // Looking into the quota tree takes the same rights as setting a limit.
            (Ok(true), false) | (Err(_), _) => none(NOT_ALLOWED),
        };
    }
    let (ext4, xfs) = (is(0xef53), is(0x5846_5342));
    let hint = match (ext4, xfs) {
        (true, _) => {
            "ext4 without project quota; unmount it, run `tune2fs -O project,quota -Q prjquota \
             DEVICE`, and mount it with -o prjquota"
        }
        (_, true) => "xfs without project quota; unmount it and mount it with -o prjquota",
        _ => return none("the file system has no limits for directories; use ext4, xfs or btrfs"),
    };
    match sys::state(open(dir)?) {
        Ok((true, true)) if crate::sys::may(crate::sys::SYS_ADMIN) => Ok(Enforcement::Project),
        Ok((true, true)) => none(NOT_ALLOWED),
        Ok((true, false)) => {
            none("project quota is counted, but not enforced; mount it with -o prjquota")
        }
        Ok((false, _)) => none(hint),
        Err(Errno::NOSYS) if !kernel_has_quota() => none("this kernel was built without quota"),
        // No quota of any kind is on.
        Err(Errno::NOSYS | Errno::SRCH | Errno::INVAL | Errno::OPNOTSUPP) => none(hint),
        Err(e) => Err(io_fault(format!("ask for the quota of {}", dir.display()), e)),
    }
}

const NOT_ALLOWED: &str =
    "setting limits takes CAP_SYS_ADMIN outside of user namespaces, which this process has not";

/// ext4 and xfs answer `ENOSYS` both when quota is off and when the kernel has none.
fn kernel_has_quota() -> bool {
    Path::new("/proc/sys/fs/quota").is_dir()
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| io_fault(format!("open {}", path.display()), e))
}

fn quota_fault(what: String, error: Errno) -> Fault {
    match error {
        Errno::NOSYS | Errno::SRCH | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY => {
            io_fault(what, error)
                .with_kind(Kind::Precondition)
                .hint("project quota is not in force on this file system")
        }
        Errno::PERM => io_fault(what, error).with_kind(Kind::Precondition).hint(NOT_ALLOWED),
        _ => io_fault(what, error),
    }
}

/// Gives directory `dir` and everything in it the project `id`, inherited by what is made later.
/// Repeating it completes a call that was cut. Symlinks are not followed and other file systems
/// mounted inside are not entered.
///
/// # Errors
/// `Precondition` where the file system has no projects.
pub fn set_project(dir: &Path, id: u32) -> Result<()> {
    tree::set_project(dir, id)
}

/// Limits project `id` on the file system of `dir`; None lifts that limit. Bytes are counted in
/// whole KiB, rounded up.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn limit_project(dir: &Path, id: u32, bytes: Option<Bytes>, inodes: Option<u64>) -> Result<()> {
    let blocks = bytes.map_or(0, |bytes| bytes.get().div_ceil(sys::BLOCK).max(1));
    sys::set(open(dir)?, id, blocks, inodes.map_or(0, |n| n.max(1)))
        .map_err(|e| quota_fault(format!("limit project {id} at {}", dir.display()), e))
}

/// How full project `id` is. `total` is its limit, or the size of the file system.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn project_usage(dir: &Path, id: u32) -> Result<Usage> {
    let what = || format!("measure project {id} at {}", dir.display());
    let fd = open(dir)?;
    let quota = sys::get(&fd, id).map_err(|e| quota_fault(what(), e))?;
    let fs = rustix::fs::fstatvfs(&fd).map_err(|e| io_fault(what(), e))?;
    // When `dir` itself is in a project, statfs shows that project's limit; it is smaller than the
    // file system, so a free figure taken from it is too careful at worst.
    let free = Bytes::new(fs.f_bavail.saturating_mul(fs.f_frsize));
    let used = Bytes::new(quota.space);
    let (total, available) = match quota.blocks_hard {
        0 => (Bytes::new(fs.f_blocks.saturating_mul(fs.f_frsize)), free),
        hard => {
            let total = Bytes::new(hard.saturating_mul(sys::BLOCK));
            (total, total.saturating_sub(used).min(free))
        }
    };
    let (inodes, inodes_free) = match quota.inodes_hard {
        0 => (fs.f_files, fs.f_favail),
        hard => (hard, hard.saturating_sub(quota.inodes).min(fs.f_favail)),
    };
    Ok(Usage { total, available, used, inodes, inodes_free, inodes_used: quota.inodes })
}

/// The project of directory or file `path`; None for none (0). A symlink is not followed.
///
/// # Errors
/// `NotFound`; see [`Fault::io`].
pub fn project_of(path: &Path) -> Result<Option<u32>> {
    match sys::attributes(open(path)?) {
        Ok(attributes) => Ok(Some(attributes.project).filter(|id| *id != 0)),
        // File systems without such attributes have no projects.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(None),
        Err(e) => Err(io_fault(format!("ask for the project of {}", path.display()), e)),
    }
}

/// The project ids that already have limits or usage on the file system of `dir`.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn used_ids(dir: &Path) -> Result<BTreeSet<u32>> {
    let fd = open(dir)?;
    let mut ids = BTreeSet::new();
    let mut from = 1;
    let what = || format!("list the projects at {}", dir.display());
    while let Some(quota) = sys::next(&fd, from).map_err(|e| quota_fault(what(), e))? {
        if !quota.is_empty() {
            ids.insert(quota.id);
        }
        match quota.id.checked_add(1) {
            Some(next) if next > from => from = next,
            _ => break,
        }
    }
    Ok(ids)
}

/// Waits until no inode has the project `id`, for `patience` at most: xfs frees the inodes of removed
/// files in the background, and counts them until then.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn wait_until_unused(dir: &Path, id: u32, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    while project_usage(dir, id)?.inodes_used > 0 && Instant::now() < end {
        crate::sys::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether nothing on the file system of `dir` has the project `id`: neither usage nor a limit.
/// One look-up, where [`used_ids`] lists all.
///
/// # Errors
/// `Precondition` where project quota is not in force.
pub fn is_free(dir: &Path, id: u32) -> Result<bool> {
    let quota = sys::get(open(dir)?, id)
        .map_err(|e| quota_fault(format!("look for project {id} at {}", dir.display()), e))?;
    Ok(quota.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_limits_says_what_to_use_instead() {
        let Enforcement::None { why } = detect(Path::new("/proc")).unwrap() else {
            panic!("procfs limits nothing")
        };
        assert!(why.contains("use ext4, xfs or btrfs"), "{why}");
        assert_eq!(project_of(Path::new("/proc")).unwrap(), None);
    }

    #[test]
    fn an_absent_directory_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        for fault in [
            detect(&absent).unwrap_err(),
            project_of(&absent).unwrap_err(),
            set_project(&absent, 7).unwrap_err(),
        ] {
            assert_eq!(fault.kind(), Kind::NotFound);
        }
    }
}
