//! Copies: reflinks, sparse files, whole trees.

mod attributes;
mod data;
mod entry;
mod links;
mod tree;
mod unnamed;

pub(crate) use tree::between;
pub use tree::tree;
pub use unnamed::reflink_unnamed;

use crate::{durable, sys::io_fault};
use larder_model::{Cx, Fault, Result};
use rustix::{
    fs::{AtFlags, CWD, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// Extended attribute of the root of a tree that is being copied: the id of the boot.
const MARK: &str = "user.larder.copying";

/// How the contents of files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Shared blocks; a file system that cannot is an error.
    Reflink,
    /// Real copies that keep holes.
    Copy,
    /// Shared blocks where possible, real copies otherwise.
    Auto,
}

/// How a tree is copied.
#[derive(Debug, Clone, Copy)]
pub struct TreeOptions {
    /// How contents are copied.
    pub mode: Mode,
    /// How many files at a time; 0: as many as the machine has processors, at most 8.
    pub threads: usize,
    /// Where blocks cannot be shared, the file system is asked to copy (`copy_file_range`): a server does
    /// without sending anything. It may share blocks by doing so. Not with [`Mode::Copy`].
    pub offload: bool,
    /// How it is known what an earlier attempt has completed.
    pub trust: Trust,
}

/// How a copy that is repeated tells what is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// By a mark that the copy carries itself, where the file system knows extended attributes.
    Mark,
    /// What looks complete is: the caller removes what an earlier boot has left.
    All,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { mode: Mode::Auto, threads: 0, offload: false, trust: Trust::Mark }
    }
}

/// What a copy of a tree did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeReport {
    /// Files, directories, links and special files that are there now.
    pub entries: u64,
    /// Files whose blocks are shared.
    pub reflinked: u64,
    /// Bytes that were really copied.
    pub bytes: u64,
}

/// Makes `to` a file that shares all blocks of `from` (`FICLONE`); false where the file system
/// cannot, and nothing is left then. `to` must not exist. The new file is durable and has mode 0600;
/// it appears whole or not at all where the file system knows files without names.
///
/// # Errors
/// `Conflict` when `to` exists; `Exhausted`; see [`Fault::io`].
pub fn reflink(from: &Path, to: &Path) -> Result<bool> {
    match reflink_hidden(from, to)? {
        Some(hidden) => hidden.publish().map(|()| true),
        None => Ok(false),
    }
}

/// The first half of [`reflink`]: the copy is complete, but has no name and is not durable yet. So
/// writers need not be held back while it is written to disk. Dropped, it leaves nothing.
///
/// # Errors
/// As [`reflink`].
pub fn reflink_hidden(from: &Path, to: &Path) -> Result<Option<Hidden>> {
    let what = format!("share the blocks of {} with {}", from.display(), to.display());
    let source = open_source(from, &|| what.clone())?;
    let new = NewFile::create(to, &|| what.clone())?;
    match rustix::fs::ioctl_ficlone(&new.file, &source) {
        Ok(()) => Ok(Some(Hidden { new, what })),
        Err(e) if cannot_share(e) => Ok(None),
        Err(e) => Err(io_fault(what, e)),
    }
}

/// A copy without a name.
#[derive(Debug)]
#[must_use = "dropping this removes the copy"]
pub struct Hidden {
    new: NewFile,
    what: String,
}

impl Hidden {
    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// As [`reflink`].
    pub fn publish(self) -> Result<()> {
        let Self { new, what } = self;
        new.publish(&|| what.clone())
    }
}

/// Copies the file `from` to a new file `to`, keeping holes, durably (mode 0600). The copy owns all
/// of its blocks. Progress in bytes goes to `cx`. On failure nothing is left.
///
/// # Errors
/// `Conflict` when `to` exists; `Exhausted`; `Corrupt` when `from` shrinks meanwhile; see
/// [`Fault::io`].
pub fn sparse(from: &Path, to: &Path, cx: &Cx) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    let source = open_source(from, &what)?;
    let new = NewFile::create(to, &what)?;
    let meta = source.metadata().map_err(|e| Fault::io(what(), e))?;
    cx.expect(meta.len().min(std::os::unix::fs::MetadataExt::blocks(&meta) * 512));
    new.file.set_len(meta.len()).map_err(|e| Fault::io(what(), e))?;
    data::copy(&source, &new.file, meta.len(), &mut |n| cx.advance(n)).map_err(|e| {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            Fault::corrupt(format!("{}: the source became shorter meanwhile", what()))
        } else {
            Fault::io(what(), e)
        }
    })?;
    new.publish(&what)
}

/// Whether files in directory `dir` can share blocks; tried out with two files without names.
///
/// # Errors
/// See [`Fault::io`].
pub fn reflink_supported(dir: &Path) -> Result<bool> {
    let what = || format!("try whether files in {} can share blocks", dir.display());
    let file = || tempfile::tempfile_in(dir).map_err(|e| Fault::io(what(), e));
    let (source, copy) = (file()?, file()?);
    std::os::unix::fs::FileExt::write_all_at(&source, &[1; 4096], 0)
        .map_err(|e| Fault::io(what(), e))?;
    match rustix::fs::ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(true),
        Err(e) if cannot_share(e) => Ok(false),
        Err(e) => Err(io_fault(what(), e)),
    }
}

/// What the kernel answers where blocks cannot be shared: another file system, one without the
/// feature, or (`EINVAL`) files that differ in what forbids it (nodatacow on btrfs).
fn cannot_share(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL)
}

fn open_source(from: &Path, what: &impl Fn() -> String) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    // A file without a name is read through /proc, whose links are no ordinary ones.
    let flags = if from.starts_with("/proc/self/fd") { flags - OFlags::NOFOLLOW } else { flags };
    let file = rustix::fs::openat(CWD, from, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(what(), e))?;
    if file.metadata().map_err(|e| Fault::io(what(), e))?.is_file() {
        Ok(file)
    } else {
        Err(Fault::precondition(format!("{}: the source is no ordinary file", what())))
    }
}

/// A file that gets its name when it is complete. Dropped before, it leaves nothing.
#[derive(Debug)]
struct NewFile {
    file: File,
    to: PathBuf,
    /// It has its name already: the file system knows no files without one.
    named: bool,
}

impl NewFile {
    fn create(to: &Path, what: &impl Fn() -> String) -> Result<Self> {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let conflict = || Err(Fault::conflict(format!("{}: the name is taken", what())));
        if std::fs::symlink_metadata(to).is_ok() {
            return conflict();
        }
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, parent(to), flags, mode) {
            Ok(fd) => return Ok(Self { file: fd.into(), to: to.to_owned(), named: false }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(e) => return Err(io_fault(what(), e)),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, to, flags, mode) {
            Ok(fd) => Ok(Self { file: fd.into(), to: to.to_owned(), named: true }),
            Err(Errno::EXIST) => conflict(),
            Err(e) => Err(io_fault(what(), e)),
        }
    }

    fn publish(mut self, what: &impl Fn() -> String) -> Result<()> {
        let synced = crate::durable::reach().and_then(|()| self.file.sync_all());
        synced.map_err(|e| Fault::io(what(), e))?;
        if !self.named {
            let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(CWD, descriptor, CWD, &self.to, flags).map_err(|e| match e {
                Errno::EXIST => Fault::conflict(format!("{}: the name is taken", what())),
                _ => io_fault(what(), e),
            })?;
        }
        // From here on the name is not taken back.
        self.named = false;
        durable::sync_dir(parent(&self.to))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.named {
            let _ = std::fs::remove_file(&self.to);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
