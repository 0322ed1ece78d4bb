//! btrfs subvolumes, snapshots and qgroups.
//!
//! A subvolume looks like a directory (its root has inode 256) but is a tree of files of its own: it
//! can be snapshotted at one moment, and its *qgroup* (`0/ID`) counts and limits the bytes that it
//! refers to. A snapshot stops at subvolumes that are nested in the one that is cut: they appear as
//! empty directories in it, see [`nested`].
//!
//! All by ioctl: the `btrfs` program is not needed. Names on the way to nested subvolumes are chosen
//! by workloads, so they are reached by [`crate::beneath`] only.

mod sys;

use crate::{
    Usage,
    beneath::{self, Mounts as OnTheWay},
    mounts::{Mounts, RealMounts},
    sys::io_fault,
};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// `f_type` of statfs(2).
const MAGIC: u64 = 0x9123_683e;

/// Whether `dir` lies on btrfs.
///
/// # Errors
/// See [`Fault::io`].
pub fn is_btrfs(dir: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(dir)
        .map_err(|e| io_fault(format!("look at the file system of {}", dir.display()), e))?;
    Ok(is_magic(stat.f_type))
}

/// The field's type and sign differ between machines.
fn is_magic(f_type: impl TryInto<i64>) -> bool {
    f_type.try_into().is_ok_and(|t| t.cast_unsigned() & 0xffff_ffff == MAGIC)
}

fn open(path: &Path) -> Result<OwnedFd> {
    open_with(path, OFlags::empty())
}

fn open_with(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| io_fault(format!("open {}", path.display()), e))
}

/// Opens the root of a subvolume; a symlink to one is none.
fn open_subvolume(path: &Path) -> Result<OwnedFd> {
    let fd = open_with(path, OFlags::NOFOLLOW)?;
    let what = || format!("look at {}", path.display());
    let stat = rustix::fs::fstat(&fd).map_err(|e| io_fault(what(), e))?;
    let fs = rustix::fs::fstatfs(&fd).map_err(|e| io_fault(what(), e))?;
    if stat.st_ino == sys::FIRST_FREE && is_magic(fs.f_type) {
        return Ok(fd);
    }
    Err(Fault::precondition(format!("use {} as a btrfs subvolume: it is none", path.display())))
}

/// The open parent directory, and the name in it.
fn parent(path: &Path) -> Result<(OwnedFd, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((open(parent)?, name))
        }
        _ => Err(Fault::invalid(format!("use {} as a subvolume", path.display()))),
    }
}

/// Makes an empty subvolume. The parent directory exists.
///
/// # Errors
/// `Conflict` when the name is taken.
pub fn create_subvolume(path: &Path) -> Result<()> {
    let (parent, name) = parent(path)?;
    sys::create(&parent, name).map_err(|e| made_fault("make subvolume", path, e))
}

/// Snapshots subvolume `from` at `to`. Subvolumes nested in it appear as empty directories.
///
/// # Errors
/// `Conflict` when `to` exists; `Precondition` when `from` is no subvolume.
pub fn snapshot(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let source = open_subvolume(from)?;
    let (parent, name) = parent(to)?;
    sys::snapshot(&parent, name, &source, read_only).map_err(|e| made_fault("make snapshot", to, e))
}

fn made_fault(what: &str, path: &Path, error: Errno) -> Fault {
    let fault = io_fault(format!("{what} {}", path.display()), error);
    match error {
        Errno::EXIST => fault.with_kind(Kind::Conflict),
        Errno::XDEV => fault.with_kind(Kind::Precondition).hint("both must be on one file system"),
        Errno::NOTTY | Errno::OPNOTSUPP => {
            fault.with_kind(Kind::Precondition).hint("the file system is no btrfs")
        }
        _ => fault,
    }
}

/// Deletes a subvolume and the subvolumes in it, with all data; absent: done. Its qgroup goes too.
///
/// # Errors
/// `Precondition` when it is no subvolume or something is mounted in it.
pub fn delete_subvolume(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    let id = sys::subvolume_id(open_subvolume(path)?)
        .map_err(|e| io_fault(format!("look at subvolume {}", path.display()), e))?;
    // The kernel would silently detach mounts in what it deletes.
    let real = resolved(path);
    if let Some(mount) = RealMounts::new().table()?.iter().find(|m| m.target.starts_with(&real)) {
        return Err(Fault::precondition(format!(
            "delete subvolume {}: {} is a mount point",
            path.display(),
            mount.target.display()
        ))
        .hint("unmount it first"));
    }
    // A round deletes the inner ones first; a subvolume made meanwhile is found by the next round.
    for _ in 0..8 {
        let inner = nested(path)?;
        if inner.is_empty() {
            break;
        }
        make_writable(path)?;
        for relative in &inner {
            make_nested_writable(path, relative)?;
        }
        for relative in inner.iter().rev() {
            delete_nested(path, relative)?;
        }
    }
    let (parent, name) = parent(path)?;
    match sys::destroy(&parent, name) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(Errno::NOTEMPTY) => {
            return Err(io_fault(format!("delete subvolume {}", path.display()), Errno::NOTEMPTY)
                .with_kind(Kind::Precondition)
                .hint("something goes on making subvolumes in it"));
        }
        Err(e) => return Err(io_fault(format!("delete subvolume {}", path.display()), e)),
    }
    forget_qgroup(&parent, id);
    Ok(())
}

/// Waits until the space of deleted subvolumes is given back, which the kernel does in the background
/// and as late as half a minute later; `goes_on` waits a moment and says whether to look again. False:
/// it did not. Not on btrfs there is nothing to wait for.
///
/// # Errors
/// See [`Fault::io`].
pub fn clean(dir: &Path, mut goes_on: impl FnMut() -> bool) -> Result<bool> {
    if !is_btrfs(dir)? {
        return Ok(true);
    }
    let what = || format!("wait for deleted subvolumes of {}", dir.display());
    let fd = open(dir)?;
    loop {
        let waits = sys::has_deleted(&fd).map_err(|e| io_fault(what(), e))?;
        // Also when none is left: what they held is free from the next commit on.
        sys::sync(&fd).map_err(|e| io_fault(what(), e))?;
        if !waits {
            return Ok(true);
        }
        if !goes_on() {
            return Ok(false);
        }
    }
}

/// Newer kernels remove the qgroup of a deleted subvolume themselves, once its data is gone (and say
/// EBUSY until then); older ones leave it for ever.
fn forget_qgroup(dir: &OwnedFd, id: u64) {
    if let Err(e) = sys::change_qgroup(dir, id, false) {
        tracing::debug!("qgroup 0/{id} is not removed now: {e}");
    }
}

/// Inside a read-only subvolume nothing can be deleted. What a workload moved meanwhile is skipped.
fn make_writable(path: &Path) -> Result<()> {
    let Ok(fd) = open_subvolume(path) else { return Ok(()) };
    let change = || {
        if sys::is_read_only(&fd)? { sys::set_read_only(&fd, false) } else { Ok(()) }
    };
    change().map_err(|e| io_fault(format!("make subvolume {} writable", path.display()), e))
}

fn make_nested_writable(root: &Path, relative: &Path) -> Result<()> {
    nested_place(root, relative)?.map_or(Ok(()), |inner| make_writable(&inner.path()))
}

/// Opens a directory that workloads may move; None when it is not there any more.
fn nested_place(root: &Path, relative: &Path) -> Result<Option<beneath::Beneath>> {
    match beneath::directory(root, relative, OnTheWay::Refused) {
        Ok(dir) => Ok(Some(dir)),
        Err(fault) if matches!(fault.kind(), Kind::NotFound | Kind::Precondition) => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn delete_nested(root: &Path, relative: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
        return Ok(());
    };
    let Some(dir) = nested_place(root, parent)? else { return Ok(()) };
    let id = open_subvolume(&dir.path().join(name)).ok().and_then(|fd| sys::subvolume_id(fd).ok());
    let dir = dir.into_fd();
    match sys::destroy(&dir, name) {
        Ok(()) => {
            if let Some(id) = id {
                forget_qgroup(&dir, id);
            }
            Ok(())
        }
        // Moved, or replaced by something else: the next round sees.
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::INVAL | Errno::NOTDIR) => Ok(()),
        Err(e) => Err(io_fault(format!("delete subvolume {}", root.join(relative).display()), e)),
    }
}

fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The subvolumes nested in subvolume `path` at any depth (workloads can make them), as paths
/// relative to it, outer ones before those inside them. No walk through the tree: the file system
/// keeps a list.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn nested(path: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("list the subvolumes in {}", path.display());
    let mut found: Vec<PathBuf> = Vec::new();
    let mut todo: Vec<(PathBuf, OwnedFd)> = vec![(PathBuf::new(), open_subvolume(path)?)];
    while let Some((outer, fd)) = todo.pop() {
        for inner in sys::nested(&fd).map_err(|e| io_fault(what(), e))? {
            let relative = match sys::place_of(&fd, inner) {
                Ok(place) => outer.join(place),
                // Deleted or moved since it was listed.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(io_fault(what(), e)),
            };
            match beneath::directory(path, &relative, OnTheWay::Refused) {
                Ok(dir) if is_subvolume(&dir.path())? => {
                    todo.push((relative.clone(), dir.into_fd()))
                }
                Ok(_) => continue,
                Err(f) if matches!(f.kind(), Kind::NotFound | Kind::Precondition) => continue,
                Err(fault) => return Err(fault),
            }
            found.push(relative);
        }
    }
    // An outer path is a prefix of its inner ones, and prefixes sort first.
    found.sort_unstable();
    Ok(found)
}

/// Whether `path` is the root of a subvolume. An absent path is none.
///
/// # Errors
/// See [`Fault::io`].
pub fn is_subvolume(path: &Path) -> Result<bool> {
    let what = || format!("look at {}", path.display());
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(io_fault(what(), e)),
    };
    let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
    Ok(is_dir && stat.st_ino == sys::FIRST_FREE && is_btrfs(path)?)
}

/// Makes a subvolume read-only or writable.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn set_read_only(path: &Path, read_only: bool) -> Result<()> {
    sys::set_read_only(open_subvolume(path)?, read_only)
        .map_err(|e| io_fault(format!("change subvolume {}", path.display()), e))
}

/// Whether the subvolume is read-only.
///
/// # Errors
/// `Precondition` when it is no subvolume.
pub fn is_read_only(path: &Path) -> Result<bool> {
    sys::is_read_only(open_subvolume(path)?)
        .map_err(|e| io_fault(format!("look at subvolume {}", path.display()), e))
}

/// Turns quota accounting on for the file system of `dir`; on already: done.
///
/// # Errors
/// See [`Fault::io`].
pub fn enable_quota(dir: &Path) -> Result<()> {
    sys::enable_quota(open(dir)?)
        .map_err(|e| io_fault(format!("turn quota on for {}", dir.display()), e))
}

/// Whether quota accounting is on.
///
/// # Errors
/// See [`Fault::io`].
pub fn quota_enabled(dir: &Path) -> Result<bool> {
    match sys::qgroup(open(dir)?, 0) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(io_fault(format!("ask for the quota of {}", dir.display()), e)),
    }
}

/// Limits the bytes that subvolume `path` refers to; None lifts the limit.
///
/// # Errors
/// `Precondition` while quota accounting is off.
pub fn set_limit(path: &Path, bytes: Option<Bytes>) -> Result<()> {
    let what = || format!("limit the size of {}", path.display());
    let fd = open_subvolume(path)?;
    let id = sys::subvolume_id(&fd).map_err(|e| io_fault(what(), e))?;
    let limit = || sys::limit_qgroup(&fd, id, bytes.map(Bytes::get));
    let result = match limit() {
        // Made while accounting was off, by a kernel that does not catch up.
        Err(Errno::NOENT) => sys::change_qgroup(&fd, id, true).and_then(|()| limit()),
        other => other,
    };
    result.map_err(|e| quota_fault(what(), e))
}

fn quota_fault(what: String, error: Errno) -> Fault {
    match error {
        Errno::NOTCONN | Errno::NOENT => io_fault(what, error)
            .with_kind(Kind::Precondition)
            .hint("quota accounting is off: run `btrfs quota enable` on the file system"),
        _ => io_fault(what, error),
    }
}

/// How full subvolume `path` is, as its qgroup counted at the last commit (at most half a minute
/// ago, see `commit=` in btrfs(5)). `total` is its limit, or the size of the file system.
///
/// # Errors
/// `Precondition` while quota accounting is off.
pub fn usage(path: &Path) -> Result<Usage> {
    let what = || format!("measure subvolume {}", path.display());
    let fd = open_subvolume(path)?;
    let id = sys::subvolume_id(&fd).map_err(|e| io_fault(what(), e))?;
    let qgroup = sys::qgroup(&fd, id).and_then(|found| found.ok_or(Errno::NOENT));
    let qgroup = qgroup.map_err(|e| quota_fault(what(), e))?;
    let fs = rustix::fs::fstatvfs(&fd).map_err(|e| io_fault(what(), e))?;
    let whole = Bytes::new(fs.f_blocks.saturating_mul(fs.f_frsize));
    let free = Bytes::new(fs.f_bavail.saturating_mul(fs.f_frsize));
    let used = Bytes::new(qgroup.referenced);
    let (total, available) = match qgroup.limit.map(Bytes::new) {
        Some(limit) => (limit, limit.saturating_sub(used).min(free)),
        None => (whole, free),
    };
    Ok(Usage { total, available, used, ..Usage::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoopRequest, MountRequest, Unmount};

    #[test]
    fn what_became_a_symlink_meanwhile_leads_a_deletion_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [image, pool] = ["image", "pool"].map(|name| dir.path().join(name));
        std::fs::create_dir(&pool).unwrap();
        crate::image::create_sparse(&image, Bytes::mib(128)).unwrap();
        let host = crate::Host::real();
        let request = LoopRequest {
            image,
            read_only: false,
            autoclear: true,
            direct_io: false,
            sector_size: 512,
        };
        let device = host.loops.attach(&request).unwrap();
        host.filesystems.make(&device.path, larder_model::FsType::Btrfs, &[]).unwrap();
        let mount = MountRequest {
            fs_type: "btrfs".into(),
            source: device.path.display().to_string(),
            target: pool.clone(),
            ..Default::default()
        };
        host.mounts.mount(&mount).unwrap();
        drop(device);
        let read_only = std::panic::catch_unwind(|| {
            for path in ["v", "w", "w/sub"] {
                create_subvolume(&pool.join(path)).unwrap();
            }
            set_read_only(&pool.join("w/sub"), true).unwrap();
            std::os::unix::fs::symlink("../w", pool.join("v/a")).unwrap();
            make_nested_writable(&pool.join("v"), Path::new("a/sub")).unwrap();
            is_read_only(&pool.join("w/sub")).unwrap()
        });
        host.mounts.unmount(&pool, Unmount::Lazy).unwrap();
        assert!(read_only.unwrap(), "a neighbour was made writable");
    }
}
