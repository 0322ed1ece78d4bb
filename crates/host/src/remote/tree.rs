//! What is done in a tree: every path is resolved beneath its root, and no symlink is ever followed.

use super::{TEMPORARY, Thing};
use crate::{
    Usage,
    copy::{self, TreeOptions, TreeReport, Trust},
    durable, filesystems,
    sys::io_fault,
};
use larder_model::{Cx, Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
};

/// Files that are copied at a time: it is the server that works.
const COPIED_AT_ONCE: usize = 8;
/// No record is longer.
const LONGEST: u64 = 1 << 20;

/// A tree.
pub(super) struct Tree {
    pub(super) root: OwnedFd,
    /// Its server copies files by itself.
    pub(super) copies: bool,
}

/// A failed call on `path`. Who is refused by a server needs other advice than who is by a disk.
fn failed(error: Errno) -> Fault {
    let fault = io_fault("work on its server", error);
    match error {
        Errno::ACCESS | Errno::PERM => fault.with_kind(Kind::Precondition).hint(
            "the server does not let this machine's root do that: export it with no_root_squash, or \
             give the directory to the user that root is squashed to",
        ),
        Errno::ROFS => fault
            .with_kind(Kind::Precondition)
            .hint("the server exports it read-only: export it with rw"),
        Errno::LOOP | Errno::XDEV | Errno::NOTDIR => fault.with_kind(Kind::Precondition).hint(
            "a symlink, a file or another file system of the server is on the way; none is ever followed",
        ),
        Errno::STALE | Errno::IO | Errno::TIMEDOUT | Errno::NOTCONN => {
            fault.with_kind(Kind::Unavailable)
        }
        _ => fault,
    }
}

fn parts(path: &str) -> Result<(&str, &str)> {
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let clean = !matches!(name, "" | "." | "..") && !above.is_empty();
    if clean { Ok((above, name)) } else { Err(Fault::invalid(format!("use the path {path:?}"))) }
}

/// Gives the file `temporary` the name `name` as well, which nothing may have.
fn link_new(directory: &OwnedFd, temporary: &str, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::linkat(directory, temporary, directory, name, AtFlags::empty()) {
        // A server that restarts may get the message twice: then it is our own file that is there.
        Err(Errno::EXIST) => {
            let inode = |name: &str| {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                rustix::io::Result::Ok((stat.st_dev, stat.st_ino))
            };
            if inode(temporary)? == inode(name)? { Ok(()) } else { Err(Errno::EXIST) }
        }
        linked => linked,
    }
}

/// What the errno of a fault means here, where many files were worked on.
fn explained(fault: Fault) -> Fault {
    let errno = fault.os_error().map(Errno::from_raw_os_error);
    match errno.map(failed) {
        // What a server's answer means, it knows better.
        Some(known) if known.kind() == Kind::Unavailable => fault.with_kind(known.kind()),
        Some(known) if known.kind() == Kind::Precondition => {
            let hint = known.hint_text().unwrap_or_default().to_owned();
            fault.with_kind(Kind::Precondition).hint(hint)
        }
        _ => fault,
    }
}

impl Tree {
    fn open(&self, path: &str, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            // EAGAIN: something was renamed meanwhile, and it cannot be told whether it led outside.
            match rustix::fs::openat2(&self.root, path, flags, Mode::from_raw_mode(mode), resolve) {
                Err(Errno::AGAIN) => {}
                opened => return opened,
            }
        }
    }

    fn directory(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)
    }

    pub(super) fn look(&self, path: &str) -> Result<Option<Thing>> {
        match self.look_type(path) {
            Ok(Some(FileType::Directory)) => Ok(Some(Thing::Directory)),
            Ok(Some(_)) | Err(Errno::LOOP) => Ok(Some(Thing::Other)),
            Ok(None) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    pub(super) fn is_empty(&self, path: &str) -> Result<bool> {
        let directory = self.directory(path).map_err(failed)?;
        // Not all of what a directory with millions of entries has.
        for entry in Dir::read_from(&directory).map_err(failed)?.take(3) {
            if !matches!(entry.map_err(failed)?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn read(&self, path: &str) -> Result<Option<String>> {
        let file = match self.open(path, OFlags::RDONLY, 0) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = Vec::new();
        let read = file.take(LONGEST).read_to_end(&mut text);
        read.map_err(|e| failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        String::from_utf8(text).map(Some).map_err(|e| Fault::corrupt("understand it").because(e))
    }

    pub(super) fn names(&self, path: &str) -> Result<Vec<String>> {
        let directory = match self.directory(path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if !matches!(&*name, "." | "..") {
                names.push(name.into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn write(&self, path: &str, text: &[u8], new: bool) -> Result<()> {
        let (above, name) = parts(path)?;
        let directory = self.directory(above).map_err(failed)?;
        let nanos = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let temporary = format!("{TEMPORARY}{}-{nanos:x}", std::process::id());
        let attempt = || -> rustix::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            let mut file = File::from(rustix::fs::openat(&directory, &temporary, flags, mode)?);
            let io = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
            file.write_all(text).and_then(|()| file.sync_all()).map_err(io)?;
            // A server may tell of a full disk only now.
            drop(file);
            if new {
                // One of several that try at once wins, on every version of NFS.
                link_new(&directory, &temporary, name)?;
                let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
            } else {
                match rustix::fs::renameat(&directory, &temporary, &directory, name) {
                    // A server that restarts may get the message twice.
                    Err(Errno::NOENT)
                        if self
                            .read(path)
                            .is_ok_and(|now| now.is_some_and(|now| now.as_bytes() == text)) => {}
                    renamed => renamed?,
                }
            }
            rustix::fs::fsync(&directory)
        };
        attempt().map_err(|e| {
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
            let fault = failed(e);
            if e == Errno::EXIST { fault.with_kind(Kind::Conflict) } else { fault }
        })
    }

    pub(super) fn make_dir(&self, path: &str, mode: u32, above: u32) -> Result<bool> {
        let mut made = false;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let (there, name) = parts(&path[..end])?;
            let directory = self.directory(there).map_err(failed)?;
            let mode = if end == path.len() { mode } else { above };
            made = match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(mode)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(failed(e)),
            };
            if made {
                // Whatever the umask is.
                self.set_mode(&path[..end], mode)?;
                rustix::fs::fsync(&directory).map_err(failed)?;
            } else if !matches!(
                self.look_type(&path[..end]).map_err(failed)?,
                Some(FileType::Directory)
            ) {
                return Err(Fault::precondition(format!(
                    "make it: {} is no directory",
                    &path[..end]
                ))
                .hint("look at it, and choose another name or move it away"));
            }
        }
        Ok(made)
    }

    fn look_type(&self, path: &str) -> rustix::io::Result<Option<FileType>> {
        match self.open(path, OFlags::PATH, 0) {
            Ok(fd) => Ok(Some(FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn set_mode(&self, path: &str, mode: u32) -> Result<()> {
        let directory = self.directory(path).map_err(failed)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(failed)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<bool> {
        let ((from_above, from_name), (to_above, to_name)) = (parts(from)?, parts(to)?);
        let open = |above| match self.directory(above) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(e)),
        };
        let Some(from_dir) = open(from_above)? else { return Ok(false) };
        let to_dir = self.directory(to_above).map_err(failed)?;
        let exists = |directory: &OwnedFd, name: &str| match rustix::fs::statat(
            directory,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(failed(e)),
        };
        if !exists(&from_dir, from_name)? {
            return Ok(false);
        }
        // NFS has no rename that never replaces; a plain one replaces an empty directory at most.
        if exists(&to_dir, to_name)? {
            return Err(failed(Errno::EXIST).with_kind(Kind::Conflict));
        }
        match rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name) {
            // A server that restarts may get the message twice.
            Err(Errno::NOENT) if exists(&to_dir, to_name)? => {}
            renamed => renamed.map_err(failed)?,
        }
        rustix::fs::fsync(&to_dir).and_then(|()| rustix::fs::fsync(&from_dir)).map_err(failed)?;
        Ok(true)
    }

    pub(super) fn remove_file(&self, path: &str) -> Result<()> {
        let (above, name) = parts(path)?;
        let directory = match self.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => rustix::fs::fsync(&directory).map_err(failed),
            Err(e) => Err(failed(e)),
        }
    }

    pub(super) fn remove_dir(&self, path: &str) -> Result<bool> {
        let (above, name) = parts(path)?;
        let directory = match self.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(true),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    pub(super) fn remove_tree(&self, path: &str, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let (above, name) = parts(path)?;
        let directory = match self.directory(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        let name = CString::new(name)
            .map_err(|_| Fault::invalid(format!("remove {path:?}: it holds a NUL")))?;
        durable::remove_at_while(&directory, &name, goes_on).map_err(explained)
    }

    /// Goes on with a copy that was cut; the directory `to` and those above it are ours.
    pub(super) fn copy_tree(&self, from: &str, to: &str, cx: &Cx) -> Result<TreeReport> {
        let source = self.directory(from).map_err(failed)?;
        self.make_dir(to, 0o700, 0o700)?;
        let copy = self.directory(to).map_err(failed)?;
        let options = TreeOptions {
            threads: COPIED_AT_ONCE,
            offload: self.copies,
            trust: Trust::All,
            ..TreeOptions::default()
        };
        let what = || "copy all files".to_owned();
        copy::between(source, copy, &what, options, cx).map_err(explained)
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        let root = self.directory(".").map_err(failed)?;
        let stat = rustix::fs::fstatvfs(&root).map_err(failed)?;
        Ok(filesystems::usage::from_statvfs(&stat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn directory(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_name_that_our_own_file_has_already_is_no_conflict_and_anothers_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("temporary"), "ours").unwrap();
        fs::write(dir.path().join("other"), "theirs").unwrap();
        let open = directory(dir.path());
        link_new(&open, "temporary", "name").unwrap();
        link_new(&open, "temporary", "name").unwrap();
        assert_eq!(link_new(&open, "temporary", "other"), Err(Errno::EXIST));
        assert_eq!(fs::read_to_string(dir.path().join("other")).unwrap(), "theirs");
    }
}
