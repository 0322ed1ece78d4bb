//! Copies of everything that is no directory.

use super::{
    Mode,
    attributes::{At, Attributes, identity, stat},
    cannot_share, data,
    links::Links,
};
use crate::durable;
use larder_model::Cx;
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, OFlags, Statx, StatxAttributes},
    io::Errno,
};
use std::{
    ffi::CStr,
    fs::File,
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// How often a file may be replaced while it is copied.
const TRIES: usize = 64;

/// What all threads of one copy share.
pub(super) struct Shared<'a> {
    pub(super) cx: &'a Cx,
    pub(super) mode: Mode,
    /// Files that look complete are: they were copied since this machine booted.
    pub(super) trusting: bool,
    /// Set once the file system has shown that it cannot share blocks.
    pub(super) no_sharing: AtomicBool,
    /// Set when nobody wants it, or once the file system has shown that it cannot copy by itself.
    pub(super) no_offload: AtomicBool,
    pub(super) links: Links,
    pub(super) entries: AtomicU64,
    pub(super) reflinked: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// Where an entry is and where its copy shall be.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) from: At<'a>,
    pub(super) to: At<'a>,
}

impl Shared<'_> {
    /// Copies one entry. The source may be in use: what vanishes meanwhile is no error, and what is
    /// replaced meanwhile is copied again.
    pub(super) fn copy(&self, entry: Entry<'_>, path: impl Fn() -> Vec<u8>) -> io::Result<()> {
        for _ in 0..TRIES {
            let found = match stat(entry.from.directory, entry.from.name) {
                Ok(found) => found,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let kind = FileType::from_raw_mode(found.stx_mode.into());
            if kind == FileType::Directory {
                // It came where a file was when the directory was read: as one that came under a
                // name which the walk had passed.
                return Ok(durable::remove_at(entry.to.directory, entry.to.name)?);
            }
            let copied = if found.stx_nlink > 1 {
                let number = u64::from(found.stx_nlink);
                self.links.once(identity(&found), number, &path, |first| match first {
                    None => self.make(entry, kind, &found),
                    Some((directory, name)) => link(&directory, &name, entry.to),
                })
            } else {
                self.make(entry, kind, &found)
            };
            match (copied, stat(entry.from.directory, entry.from.name)) {
                (Ok(()), Ok(now)) if identity(&now) == identity(&found) => {
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    // A tree of empty files moves on, too.
                    self.cx.advance(1);
                    return Ok(());
                }
                (Err(e), Ok(now)) if identity(&now) == identity(&found) => return Err(e),
                (_, Err(Errno::NOENT)) => {
                    return Ok(durable::remove_at(entry.to.directory, entry.to.name)?);
                }
                (_, Err(e)) => return Err(e.into()),
                // Another file has the name now.
                (_, Ok(_)) => {}
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is replaced again and again"))
    }

    fn make(&self, entry: Entry<'_>, kind: FileType, found: &Statx) -> io::Result<()> {
        let attributes = Attributes::new(found);
        if let Ok(copy) = stat(entry.to.directory, entry.to.name) {
            let complete = kind == FileType::RegularFile
                && self.trusting
                && attributes.matches(&copy)
                && copy.stx_size == found.stx_size;
            if complete {
                return Ok(());
            }
            durable::remove_at(entry.to.directory, entry.to.name)?;
        }
        match kind {
            FileType::RegularFile => self.file(entry, found)?,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(entry.from.directory, entry.from.name, vec![])?;
                rustix::fs::symlinkat(text, entry.to.directory, entry.to.name)?;
            }
            _ => {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                let device = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
                rustix::fs::mknodat(entry.to.directory, entry.to.name, kind, mode, device)?;
            }
        }
        attributes.apply(entry.from, entry.to, kind == FileType::Symlink)
    }

    fn file(&self, entry: Entry<'_>, found: &Statx) -> io::Result<()> {
        let create = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let new = || rustix::fs::openat(entry.to.directory, entry.to.name, create, mode);
        if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            // What is mounted over a file is not in this tree.
            new()?;
            return Ok(());
        }
        let source = open_source(entry.from)?;
        if !source.metadata()?.is_file() {
            // Something else has the name by now; the caller sees.
            return Err(Errno::NOENT.into());
        }
        let copy = File::from(new()?);
        // Not what `found` says: it may have grown since.
        let size = source.metadata()?.len();
        if size == 0 {
            return Ok(());
        }
        if self.mode != Mode::Copy && !self.no_sharing.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(&copy, &source) {
                Ok(()) => {
                    self.reflinked.fetch_add(1, Ordering::Relaxed);
                    self.cx.advance(size);
                    return Ok(());
                }
                Err(e) if cannot_share(e) && self.mode == Mode::Auto => {
                    // EINVAL is about this one file.
                    if e != Errno::INVAL {
                        self.no_sharing.store(true, Ordering::Relaxed);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        copy.set_len(size)?;
        let mut progress = |n| {
            self.bytes.fetch_add(n, Ordering::Relaxed);
            self.cx.advance(n);
        };
        let copied = match self.no_offload.load(Ordering::Relaxed) {
            true => data::copy(&source, &copy, size, &mut progress),
            false => match data::offload(&source, &copy, size, &mut progress) {
                Err(e) if data::cannot_offload(&e) => {
                    self.no_offload.store(true, Ordering::Relaxed);
                    data::copy(&source, &copy, size, &mut progress)
                }
                result => result,
            },
        };
        match copied {
            // Truncated by its user meanwhile; so is the copy.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                copy.set_len(source.metadata()?.len().min(size))
            }
            result => result,
        }
    }
}

/// Opens a file for reading without changing its access time where that is allowed.
fn open_source(from: At<'_>) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = rustix::fs::Mode::empty();
    match rustix::fs::openat(from.directory, from.name, flags | OFlags::NOATIME, mode) {
        Err(Errno::PERM) => rustix::fs::openat(from.directory, from.name, flags, mode),
        result => result,
    }
    .map(File::from)
}

fn link(directory: &OwnedFd, name: &CStr, to: At<'_>) -> io::Result<()> {
    let attempt = || rustix::fs::linkat(directory, name, to.directory, to.name, AtFlags::empty());
    match attempt() {
        Err(Errno::EXIST) => {
            let first = stat(directory, name)?;
            let there = stat(to.directory, to.name)?;
            if identity(&first) == identity(&there) {
                return Ok(());
            }
            durable::remove_at(to.directory, to.name)?;
            attempt().map_err(Into::into)
        }
        result => result.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_a_directory_since_it_was_listed_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.join("sub")).unwrap();
            OwnedFd::from(File::open(path).unwrap())
        };
        let (from, to) = (open("from"), open("to"));
        std::fs::create_dir(dir.path().join("from/x")).unwrap();
        // Of an earlier attempt, when it was a file.
        std::fs::write(dir.path().join("to/x"), "old").unwrap();
        let cx = Cx::new();
        let shared = Shared {
            cx: &cx,
            mode: Mode::Auto,
            trusting: true,
            no_sharing: AtomicBool::new(false),
            no_offload: AtomicBool::new(true),
            links: Links::new(to.try_clone().unwrap()),
            entries: AtomicU64::new(0),
            reflinked: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let at = |directory| At { directory, name: c"x" };
        shared.copy(Entry { from: at(&from), to: at(&to) }, || b"x".to_vec()).unwrap();
        assert!(!dir.path().join("to/x").exists());
        assert_eq!(shared.entries.into_inner(), 0);
    }
}
