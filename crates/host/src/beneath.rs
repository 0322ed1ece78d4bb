//! Directories that are reached without leaving a root.
//!
//! A path of several components can be led elsewhere by whoever may replace one of them with a
//! symlink. [`directory`] opens the whole path in one system call (`openat2`) in which the kernel
//! follows no symlink at all and never goes above the root. [`Beneath::path`] names what was
//! opened, whatever happens to the names that led to it.

use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::path::{Component, Path, PathBuf};

/// A directory that was opened without following a symlink.
#[derive(Debug)]
pub struct Beneath(OwnedFd);

impl Beneath {
    /// A path to this very directory, good as long as this value lives, in this process only.
    pub fn path(&self) -> PathBuf {
        // The dot makes it a path *through* the magic link, so that callers which refuse symlinks
        // as the last component accept it.
        PathBuf::from(format!("/proc/self/fd/{}/.", self.0.as_raw_fd()))
    }

    /// The descriptor, opened for reading.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What may lie on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// Mounts on the way are gone through.
    Allowed,
    /// A mount on the way is refused: the directory is on the mount of the root.
    Refused,
}

/// Opens directory `relative` below `root`. The root itself may be reached through symlinks; nothing
/// below it is. An empty `relative` is the root.
///
/// # Errors
/// `NotFound`; `Precondition` when a component is a symlink, no directory, or a mount point that is
/// refused; `Invalid` for an absolute path or one with `..`.
pub fn directory(root: &Path, relative: &Path, mounts: Mounts) -> Result<Beneath> {
    let what = || format!("open {} in {}", relative.display(), root.display());
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(plain) {
        return Err(Fault::invalid(format!("{}: it leads out of it", what())));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let base = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|e| io_fault(format!("open {}", root.display()), e))?;
    if relative.as_os_str().is_empty() {
        return Ok(Beneath(base));
    }
    let mut resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if mounts == Mounts::Refused {
        resolve |= ResolveFlags::NO_XDEV;
    }
    loop {
        let refused =
            |why: &str, e| io_fault(format!("{}: {why}", what()), e).with_kind(Kind::Precondition);
        return match rustix::fs::openat2(&base, relative, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Beneath(fd)),
            Err(Errno::LOOP) => Err(refused("there is a symlink on the way", Errno::LOOP)
                .hint("symlinks are never followed here; put the directory itself there")),
            Err(Errno::XDEV) => Err(refused("something is mounted on the way", Errno::XDEV)),
            Err(Errno::NOTDIR) => Err(refused("it is no directory", Errno::NOTDIR)),
            // The kernel's answer to a rename during the walk.
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(e) => Err(io_fault(what(), e)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_directory_is_opened_and_named_whatever_happens_to_its_path() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), "x").unwrap();
        let opened = directory(root.path(), Path::new("a/b"), Mounts::Refused).unwrap();
        fs::rename(root.path().join("a"), root.path().join("moved")).unwrap();
        assert_eq!(fs::read(opened.path().join("file")).unwrap(), b"x");
        assert!(fs::symlink_metadata(opened.path()).unwrap().is_dir());
    }

    #[test]
    fn symlinks_files_and_ways_out_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        symlink("/etc", at("link")).unwrap();
        symlink("a", at("inner")).unwrap();
        fs::write(at("file"), "").unwrap();
        let kind = |path: &str| {
            directory(root.path(), Path::new(path), Mounts::Allowed).unwrap_err().kind()
        };
        for path in ["link", "inner", "inner/b", "link/ssl", "file", "file/x"] {
            assert_eq!(kind(path), Kind::Precondition, "{path}");
        }
        for path in ["../etc", "/etc", "a/../b"] {
            assert_eq!(kind(path), Kind::Invalid, "{path}");
        }
        assert_eq!(kind("absent"), Kind::NotFound);
    }

    #[test]
    fn a_mount_on_the_way_can_be_refused() {
        let root = Path::new("/");
        let proc = Path::new("proc");
        assert!(directory(root, proc, Mounts::Allowed).is_ok());
        let fault = directory(root, proc, Mounts::Refused).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    }
}
