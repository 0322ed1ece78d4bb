//! Owner, mode, extended attributes and times of one file.

use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{AtFlags, Gid, Mode, Statx, Timespec, Timestamps, Uid},
};
use std::{
    ffi::{CStr, OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

/// A file by its name in an open directory: never followed when it is a symlink.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) directory: &'a OwnedFd,
    pub(super) name: &'a CStr,
}

impl At<'_> {
    /// The same as a path, for calls that take no directory. The name is the last component, so that
    /// calls which do not follow see the file itself, however deep the directory is.
    pub(super) fn path(&self) -> PathBuf {
        let directory = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        PathBuf::from(directory).join(OsStr::from_bytes(self.name.to_bytes()))
    }
}

/// What an inode says of itself, ready to be given to its copy.
#[derive(Clone)]
pub(super) struct Attributes {
    owner: u32,
    group: u32,
    mode: u16,
    times: Timestamps,
}

impl Attributes {
    pub(super) fn new(stat: &Statx) -> Self {
        let time = |t: &rustix::fs::StatxTimestamp| Timespec {
            tv_sec: t.tv_sec,
            tv_nsec: i64::from(t.tv_nsec),
        };
        Self {
            owner: stat.stx_uid,
            group: stat.stx_gid,
            mode: stat.stx_mode,
            times: Timestamps {
                last_access: time(&stat.stx_atime),
                last_modification: time(&stat.stx_mtime),
            },
        }
    }

    /// Gives them to `to`, with the extended attributes of `from`. The order matters: a new owner
    /// clears set-user-id and capabilities, an ACL changes the mode, and everything changes times.
    /// Times come last; they are also what tells a repeated copy that this file is complete.
    pub(super) fn apply(&self, from: At<'_>, to: At<'_>, is_symlink: bool) -> io::Result<()> {
        let (owner, group) = (Uid::from_raw(self.owner), Gid::from_raw(self.group));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(to.directory, to.name, Some(owner), Some(group), nofollow)?;
        copy_xattrs(from, to)?;
        if !is_symlink {
            let mode = Mode::from_raw_mode((self.mode & 0o7777).into());
            rustix::fs::chmodat(to.directory, to.name, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(to.directory, to.name, &self.times, nofollow)?;
        Ok(())
    }

    /// As [`Attributes::apply`] for an open directory and its copy.
    pub(super) fn apply_to_directory(&self, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        let (owner, group) = (Uid::from_raw(self.owner), Gid::from_raw(self.group));
        rustix::fs::fchown(to, Some(owner), Some(group))?;
        copy_xattrs(At { directory: from, name: c"." }, At { directory: to, name: c"." })?;
        rustix::fs::fchmod(to, Mode::from_raw_mode((self.mode & 0o7777).into()))?;
        rustix::fs::futimens(to, &self.times)?;
        Ok(())
    }

    /// Whether `copy` already is what a complete copy of this would be. Times are the last thing
    /// that a copy gets.
    pub(super) fn matches(&self, copy: &Statx) -> bool {
        let other = Self::new(copy);
        let times = |a: &Timestamps| (a.last_modification.tv_sec, a.last_modification.tv_nsec);
        (self.owner, self.group, self.mode) == (other.owner, other.group, other.mode)
            && times(&self.times) == times(&other.times)
    }
}

/// Makes the extended attributes (ACLs and capabilities among them) of `to` those of `from`.
fn copy_xattrs(from: At<'_>, to: At<'_>) -> io::Result<()> {
    let (from, to) = (from.path(), to.path());
    let names = list(&from)?;
    for name in &names {
        // Removed meanwhile: nothing to copy.
        let Some(value) = xattr::get(&from, name)? else { continue };
        if let Err(e) = xattr::set(&to, name, &value)
            && !(is_foreign(name) && is_refusal(&e))
        {
            let name = name.to_string_lossy();
            return Err(io::Error::new(e.kind(), format!("extended attribute {name}: {e}")));
        }
    }
    // An inherited default ACL, or what an earlier attempt copied from an earlier state.
    for name in list(&to)?.iter().filter(|n| !names.contains(n)) {
        if let Err(e) = xattr::remove(&to, name)
            && e.raw_os_error() != Some(libc::ENODATA)
            && !(is_foreign(name) && is_refusal(&e))
        {
            return Err(e);
        }
    }
    Ok(())
}

fn list(path: &std::path::Path) -> io::Result<Vec<OsString>> {
    match xattr::list(path) {
        Ok(names) => Ok(names.filter(|n| n != super::MARK && !is_raw_acl(n)).collect()),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// xfs lists its own form of an ACL beside the one that everybody knows: setting or removing one does
/// so with the other.
fn is_raw_acl(name: &OsStr) -> bool {
    name == "trusted.SGI_ACL_FILE" || name == "trusted.SGI_ACL_DEFAULT"
}

/// What belongs to a security module or to one kind of file system, not to the data: labels are given
/// by the machine that the copy is on.
fn is_foreign(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let data: [&[u8]; 4] = [b"user.", b"trusted.", b"security.capability", b"system.posix_acl_"];
    !data.iter().any(|prefix| name.starts_with(prefix))
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EPERM | libc::EACCES | libc::EINVAL)
    )
}

/// Everything about one file, symlinks not followed.
pub(super) fn stat(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<Statx> {
    let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, at, rustix::fs::StatxFlags::BASIC_STATS)
}

/// Device and inode.
pub(super) fn identity(stat: &Statx) -> (u32, u32, u64) {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
}
