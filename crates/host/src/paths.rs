//! Paths that come from outside.

use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
};
use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

/// A place where a caller wants a volume: absolute, normal, below the root.
///
/// The caller's orchestrator owns the directories above it (kubelet's tree may itself be reached
/// through a symlink); the last component is ours: it is never followed when it is a symlink.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPath(PathBuf);

impl TargetPath {
    /// Reads a path from a request. `field` names it in faults: `target_path`.
    ///
    /// # Errors
    /// `Invalid` when it is empty, relative, `/` itself, longer than 4095 bytes, or holds `..` or NUL.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        let wrong = |why: &str| Fault::invalid(format!("accept {field} {text:?}: {why}"));
        if text.is_empty() {
            return Err(Fault::invalid(format!("accept {field}: it is empty")));
        }
        if text.len() > 4095 {
            return Err(Fault::invalid(format!("accept {field}: it is longer than 4095 bytes")));
        }
        if text.contains('\0') {
            return Err(wrong("it holds a NUL"));
        }
        if !text.starts_with('/') {
            return Err(wrong("it is not absolute"));
        }
        let mut path = PathBuf::from("/");
        for component in text.split('/') {
            match component {
                "" | "." => {}
                ".." => return Err(wrong("it holds \"..\"")),
                name if name.len() > 255 => {
                    return Err(wrong("a name in it is longer than 255 bytes"));
                }
                name => path.push(name),
            }
        }
        if path == Path::new("/") {
            return Err(wrong("it is the root directory"));
        }
        Ok(Self(path))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Makes it an (empty) directory, mode 0750, with parents that are missing. It is a directory
    /// already (also one on which something is mounted): done.
    ///
    /// # Errors
    /// `Precondition` when it is a symlink or anything but a directory; see [`Fault::io`].
    pub fn prepare_dir(&self) -> Result<()> {
        self.prepare(|parent, name| rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o750)))?;
        self.expect(|kind| kind == FileType::Directory, "directory")
    }

    /// Makes it an (empty) file, mode 0600, as the place for a block device. It is a file or block
    /// device already: done.
    ///
    /// # Errors
    /// `Precondition` when it is a symlink or a directory; see [`Fault::io`].
    pub fn prepare_file(&self) -> Result<()> {
        self.prepare(|parent, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)).map(drop)
        })?;
        let fits = |kind| matches!(kind, FileType::RegularFile | FileType::BlockDevice);
        self.expect(fits, "file")
    }

    /// Removes what `prepare_…` made: an empty directory or an empty file. Absent: done.
    ///
    /// # Errors
    /// `Precondition` when it is not empty, a symlink, or something is mounted on it.
    pub fn remove(&self) -> Result<()> {
        let what = || format!("remove {self}");
        let Some(parent) = self.open_parent(false)? else { return Ok(()) };
        let name = self.name();
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat = match rustix::fs::statx(&parent, name, at, StatxFlags::TYPE | StatxFlags::SIZE) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(io_fault(what(), e)),
        };
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(Fault::precondition(format!("{}: something is mounted on it", what())));
        }
        let removed = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if stat.stx_size == 0 => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())
            }
            _ => {
                return Err(Fault::precondition(format!(
                    "{}: it is neither an empty file nor a directory",
                    what()
                ))
                .hint("somebody put something there; move it away"));
            }
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e @ (Errno::NOTEMPTY | Errno::EXIST)) => Err(io_fault(what(), e)
                .with_kind(Kind::Precondition)
                .hint("it holds files that are in no volume; move them away")),
            Err(e @ Errno::BUSY) => Err(io_fault(what(), e).with_kind(Kind::Precondition)),
            Err(e) => Err(io_fault(what(), e)),
        }
    }

    fn name(&self) -> &OsStr {
        // `parse` refuses what has no last component.
        self.0.file_name().unwrap_or_default()
    }

    fn prepare(&self, make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<()>) -> Result<()> {
        let what = || format!("make {self}");
        let Some(parent) = self.open_parent(true)? else {
            return Err(Fault::not_found(format!("{}: its parent directory is absent", what())));
        };
        match make(&parent, self.name()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(io_fault(what(), e)),
        }
    }

    fn expect(&self, fits: impl Fn(FileType) -> bool, wanted: &str) -> Result<()> {
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat = match rustix::fs::statx(CWD, &self.0, at, StatxFlags::TYPE) {
            Ok(stat) => stat,
            // A dead mount on it: it was prepared, and is in use.
            Err(Errno::NOTCONN | Errno::STALE | Errno::IO) => return Ok(()),
            Err(e) => return Err(io_fault(format!("look at {self}"), e)),
        };
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        if fits(kind) {
            return Ok(());
        }
        Err(Fault::precondition(format!("use {self} as a {wanted}: it is {}", name_of(kind)))
            .hint("move away what is there; it is never removed or followed"))
    }

    /// Opens the directory that holds the last component. Missing directories are made one by one,
    /// and what was just made is not followed through a symlink.
    fn open_parent(&self, make: bool) -> Result<Option<OwnedFd>> {
        let what = || format!("open the directory of {self}");
        let Some(parent) = self.0.parent() else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut missing = Vec::new();
        let mut at = parent;
        let mut directory = loop {
            match rustix::fs::openat(CWD, at, flags, Mode::empty()) {
                Ok(fd) => break fd,
                Err(Errno::NOENT) if make => match (at.parent(), at.file_name()) {
                    (Some(above), Some(name)) => {
                        missing.push(name);
                        at = above;
                    }
                    _ => return Ok(None),
                },
                Err(Errno::NOENT | Errno::NOTDIR) if !make => return Ok(None),
                Err(e @ (Errno::NOTDIR | Errno::LOOP)) => {
                    return Err(io_fault(what(), e).with_kind(Kind::Precondition));
                }
                Err(e) => return Err(io_fault(what(), e)),
            }
        };
        for name in missing.into_iter().rev() {
            match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o750)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(io_fault(what(), e)),
            }
            directory =
                rustix::fs::openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(|e| match e {
                        // A dangling symlink was met on the way down.
                        Errno::LOOP | Errno::NOTDIR => {
                            io_fault(what(), e).with_kind(Kind::Precondition)
                        }
                        _ => io_fault(what(), e),
                    })?;
        }
        Ok(Some(directory))
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "a symlink",
        FileType::Directory => "a directory",
        FileType::RegularFile => "a file",
        FileType::BlockDevice => "a block device",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::Unknown => "of an unknown kind",
    }
}

impl AsRef<Path> for TargetPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl fmt::Debug for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn target(path: &Path) -> TargetPath {
        TargetPath::parse(path.to_str().unwrap(), "target_path").unwrap()
    }

    #[test]
    fn paths_that_are_not_plain_and_absolute_are_refused() {
        let long = format!("/{}", "a/".repeat(2048));
        let name = format!("/{}", "a".repeat(256));
        for wrong in ["", "a", "./a", "/", "//", "/.", "/a/../b", "/..", "/a\0b", &long, &name] {
            let fault = TargetPath::parse(wrong, "target_path").unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{wrong:?}");
            assert!(fault.to_string().contains("target_path"));
        }
        for (text, path) in [("/a//b/./c/", "/a/b/c"), ("/a\nb", "/a\nb"), ("/..a", "/..a")] {
            assert_eq!(TargetPath::parse(text, "x").unwrap().as_path(), Path::new(path));
        }
    }

    #[test]
    fn a_target_is_made_with_its_parents_and_removed_again_as_often_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let directory = target(&dir.path().join("a/b/c"));
        directory.prepare_dir().unwrap();
        directory.prepare_dir().unwrap();
        let file = target(&dir.path().join("a/b/c/f"));
        file.prepare_file().unwrap();
        file.prepare_file().unwrap();
        assert_eq!(directory.prepare_file().unwrap_err().kind(), Kind::Precondition);
        assert_eq!(file.prepare_dir().unwrap_err().kind(), Kind::Precondition);
        assert_eq!(directory.remove().unwrap_err().kind(), Kind::Precondition);
        file.remove().unwrap();
        file.remove().unwrap();
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert!(dir.path().join("a/b").exists());
        target(&dir.path().join("x/y/z")).remove().unwrap();
    }

    #[test]
    fn data_at_a_target_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "data").unwrap();
        assert_eq!(target(&file).remove().unwrap_err().kind(), Kind::Precondition);
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn a_symlink_at_a_target_is_neither_followed_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        for result in
            [target(&link).prepare_dir(), target(&link).prepare_file(), target(&link).remove()]
        {
            assert_eq!(result.unwrap_err().kind(), Kind::Precondition);
        }
        // A symlink further up belongs to the orchestrator, unless it leads nowhere.
        target(&link.join("x")).prepare_dir().unwrap();
        assert!(real.join("x").is_dir());
        symlink(dir.path().join("gone"), dir.path().join("dangling")).unwrap();
        let fault = target(&dir.path().join("dangling/x")).prepare_dir().unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(!dir.path().join("gone").exists());
    }
}
