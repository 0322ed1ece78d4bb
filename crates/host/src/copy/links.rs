//! Hard links: the one thing whose memory grows with the tree.

use super::attributes::{identity, stat};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

/// Device and inode.
type Identity = (u32, u32, u64);

/// A file that has several names.
#[derive(Default)]
struct Linked {
    /// Path of its first copy below the root, and which file that is; None until that is complete.
    first: Option<(Vec<u8>, Identity)>,
    seen: u64,
}

/// Files with several names that were met and whose other names are still to come.
pub(super) struct Links {
    root: OwnedFd,
    met: Mutex<HashMap<Identity, Arc<Mutex<Linked>>>>,
}

impl Links {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, met: Mutex::default() }
    }

    /// Calls `copy` with None for the first name of a file, and with the place of its copy for all
    /// others, which wait for the first.
    pub(super) fn once(
        &self,
        file: Identity,
        names: u64,
        path: impl FnOnce() -> Vec<u8>,
        copy: impl FnOnce(Option<(OwnedFd, CString)>) -> io::Result<()>,
    ) -> io::Result<()> {
        let known = self.lock().entry(file).or_default().clone();
        let mut linked = known.lock().unwrap_or_else(PoisonError::into_inner);
        // The source may be in use: the first name can have been given to another file since, and
        // its copy replaced.
        let first = linked.first.as_ref().and_then(|(path, copy)| {
            let (directory, name) = self.open(path).ok()?;
            let there = stat(&directory, &name).ok()?;
            (identity(&there) == *copy).then_some((directory, name))
        });
        match first {
            Some(first) => copy(Some(first))?,
            None => {
                copy(None)?;
                let path = path();
                let (directory, name) = self.open(&path)?;
                let made = identity(&stat(&directory, &name)?);
                linked.first = Some((path, made));
            }
        }
        linked.seen += 1;
        if linked.seen >= names {
            self.lock().remove(&file);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Identity, Arc<Mutex<Linked>>>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of a copy, and its name there. Component by component: a path may be longer
    /// than the kernel takes at once.
    fn open(&self, path: &[u8]) -> io::Result<(OwnedFd, CString)> {
        let mut components = path.split(|b| *b == b'/').filter(|c| !c.is_empty()).peekable();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut directory = rustix::fs::openat(self.root.as_fd(), c".", flags, Mode::empty())?;
        while let Some(component) = components.next() {
            if components.peek().is_none() {
                return Ok((directory, CString::new(component)?));
            }
            directory = rustix::fs::openat(&directory, component, flags, Mode::empty())?;
        }
        Err(Errno::NOENT.into())
    }
}
