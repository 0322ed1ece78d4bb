//! Whole trees.
//!
//! One thread walks the source, depth first, and makes the directories; others copy what is in them.
//! All access is relative to open directories, so that neither depth nor the length of paths is
//! limited and no symlink can lead elsewhere; directories far up the walk are closed and reopened on
//! the way back. A directory gets its attributes when everything in it is there. Memory does not
//! grow with the tree, but for the names of subdirectories along the walk and hard links.
//!
//! A copy that was cut is completed by being repeated. While a copy is under way its root carries the
//! id of the boot: after a reboot what looks complete may have lost its data, and is copied anew.

use super::{
    MARK, Mode, TreeOptions, TreeReport, Trust,
    attributes::{At, Attributes, identity, stat},
    entry::{Entry, Shared},
    links::Links,
};
use crate::{durable, sys::io_fault};
use larder_model::{Cx, Fault, Result};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Dir, FileType, OFlags, StatxAttributes},
    io::Errno,
};
use std::{
    ffi::{CString, OsStr},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

/// Directories on the way down that are kept open.
const KEPT_OPEN: usize = 24;
/// Entries that one thread takes at a time, and how many such batches may wait.
const BATCH: usize = 32;
const WAITING: usize = 16;

/// Copies everything in directory `from` into directory `to` (made when absent), including the
/// attributes of `from` itself, durably. Repeating a copy that was cut completes it; what is in `to`
/// and not in `from` is removed.
///
/// Kept: holes, owners, modes, ACLs and other extended attributes, hard links, times, symlinks,
/// fifos, sockets, devices. Mount points inside appear as empty directories and files. The source
/// may be in use: what vanishes meanwhile is left out.
///
/// # Errors
/// `Exhausted`; `Precondition` where blocks cannot be shared ([`Mode::Reflink`]), attributes cannot
/// be kept, or `to` is no directory; see [`Fault::io`].
pub fn tree(from: &Path, to: &Path, options: TreeOptions, cx: &Cx) -> Result<TreeReport> {
    let what = || format!("copy the tree {} to {}", from.display(), to.display());
    let failed = |e: Errno| io_fault(what(), e);
    let source = open_directory(CWD, from).map_err(failed)?;
    match rustix::fs::mkdir(to, rustix::fs::Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let copy = open_directory(CWD, to).map_err(failed)?;
    between(source, copy, &what, options, cx)
}

/// As [`tree`] for two directories that are open.
pub(crate) fn between(
    source: OwnedFd,
    copy: OwnedFd,
    what: &dyn Fn() -> String,
    options: TreeOptions,
    cx: &Cx,
) -> Result<TreeReport> {
    let failed = |e: Errno| io_fault(what(), e);
    let kept = copy.try_clone().map_err(|e| Fault::io(what(), e))?;
    let root = Path::new("/proc/self/fd").join(rustix::fd::AsRawFd::as_raw_fd(&kept).to_string());
    let root = root.join(".");
    let trusting = options.trust == Trust::All || is_of_this_boot(&copy, &root).map_err(failed)?;
    let shared = Shared {
        cx,
        mode: options.mode,
        trusting,
        no_sharing: AtomicBool::new(false),
        no_offload: AtomicBool::new(!options.offload || options.mode == Mode::Copy),
        links: Links::new(copy.try_clone().map_err(|e| Fault::io(what(), e))?),
        entries: AtomicU64::new(0),
        reflinked: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let found = stat(&source, c".").map_err(failed)?;
    let target = identity(&stat(&copy, c".").map_err(failed)?);
    if identity(&found) == target {
        return Err(Fault::precondition(format!("{}: they are one", what())));
    }
    let walk = Walk { shared, failure: Mutex::new(None), target };
    walk.run(source, copy, Attributes::new(&found), threads(options.threads));
    let Walk { shared, failure, .. } = walk;
    if let Some((path, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let path = OsStr::from_bytes(&path).to_string_lossy().into_owned();
        return Err(copy_fault(format!("{}: at {path}", what()), error, options.mode));
    }
    durable::sync_filesystem(&root).map_err(|fault| fault.during(what()))?;
    match xattr::remove(&root, MARK) {
        _ if options.trust == Trust::All => {}
        Ok(()) => {}
        // There never was one.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {}
        Err(e) => return Err(Fault::io(what(), e)),
    }
    // Removing the mark does not touch times; the root has those of the source.
    durable::sync_dir(&root).map_err(|fault| fault.during(what()))?;
    Ok(TreeReport {
        entries: shared.entries.into_inner(),
        reflinked: shared.reflinked.into_inner(),
        bytes: shared.bytes.into_inner(),
    })
}

/// Whether the copy was begun since this machine booted, by its mark; from now on it has one. Where the mark
/// cannot be made, nothing is trusted.
fn is_of_this_boot(copy: &OwnedFd, root: &Path) -> rustix::io::Result<bool> {
    let boot = crate::boot_id();
    match xattr::get(root, MARK).ok().flatten() {
        Some(mark) if mark == boot.as_bytes() => return Ok(true),
        // All of it goes before the mark is ours: an attempt of this boot that is cut halfway would leave
        // files of the former one, which the next attempt trusted.
        Some(_) => {
            for entry in Dir::read_from(copy)? {
                let entry = entry?;
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    durable::remove_at(copy, entry.file_name())?;
                }
            }
        }
        None => {}
    }
    let _ = xattr::set(root, MARK, boot.as_bytes());
    Ok(false)
}

fn copy_fault(what: String, error: io::Error, mode: Mode) -> Fault {
    let code = error.raw_os_error();
    // Ours, not the kernel's EBUSY: nobody has to do anything but to repeat the call.
    let moved = code.is_none() && error.kind() == io::ErrorKind::ResourceBusy;
    let fault = Fault::io(what, error);
    let kind = larder_model::Kind::Precondition;
    match code {
        _ if moved => fault.with_kind(larder_model::Kind::Unavailable).hint("try again"),
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL) if mode == Mode::Reflink => {
            fault.with_kind(kind).hint("the file system cannot share blocks; allow a real copy")
        }
        Some(libc::EPERM | libc::EACCES) => fault
            .with_kind(kind)
            .hint("owners, devices and all attributes can be copied by root only"),
        Some(libc::EMFILE | libc::ENFILE) => {
            fault.hint("too many files are open; raise the limit of open files (ulimit -n)")
        }
        _ => fault,
    }
}

fn threads(wanted: usize) -> usize {
    let machine = || std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    if wanted == 0 { machine().clamp(2, 8) } else { wanted.min(32) }
}

fn open_directory(
    at: impl rustix::fd::AsFd,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty())
}

/// A directory and its copy, open.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

/// A directory whose contents are being copied. Whoever finishes the last part of it gives it its
/// attributes.
struct Unfinished {
    parts: AtomicUsize,
    attributes: Attributes,
    /// Path below the root, ending in a slash unless empty.
    path: Vec<u8>,
}

/// A directory on the way down.
struct Level {
    /// None while it is closed because the walk is far below.
    pair: Option<Arc<Pair>>,
    unfinished: Arc<Unfinished>,
    /// Subdirectories that are still to be walked.
    left: Vec<CString>,
    from: (u32, u32, u64),
    to: (u32, u32, u64),
}

struct Batch {
    pair: Arc<Pair>,
    unfinished: Arc<Unfinished>,
    names: Vec<CString>,
}

struct Walk<'a> {
    shared: Shared<'a>,
    /// The first error, and where.
    failure: Mutex<Option<(Vec<u8>, io::Error)>>,
    /// The root of the copy: not copied into itself when it lies in the source.
    target: (u32, u32, u64),
}

impl Walk<'_> {
    fn run(&self, from: OwnedFd, to: OwnedFd, attributes: Attributes, threads: usize) {
        let (give, take) = sync_channel::<Batch>(WAITING);
        let take = Mutex::new(take);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.work(&take));
            }
            if let Err((path, error)) = self.descend(Pair { from, to }, attributes, &give) {
                self.fail(path, error);
            }
            drop(give);
        });
    }

    fn fail(&self, path: Vec<u8>, error: io::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert((path, error));
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn work(&self, take: &Mutex<Receiver<Batch>>) {
        loop {
            let batch = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = batch else { return };
            for name in &batch.names {
                if self.has_failed() {
                    break;
                }
                let path = || [batch.unfinished.path.as_slice(), name.as_bytes()].concat();
                let entry = Entry {
                    from: At { directory: &batch.pair.from, name },
                    to: At { directory: &batch.pair.to, name },
                };
                if let Err(error) = self.shared.copy(entry, path) {
                    self.fail(path(), error);
                }
            }
            self.finish_part(&batch.unfinished, &batch.pair);
        }
    }

    fn finish_part(&self, unfinished: &Unfinished, pair: &Pair) {
        if unfinished.parts.fetch_sub(1, Ordering::AcqRel) != 1 || self.has_failed() {
            return;
        }
        match unfinished.attributes.apply_to_directory(&pair.from, &pair.to) {
            Ok(()) => {
                self.shared.entries.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.fail(unfinished.path.clone(), error),
        }
    }

    fn descend(
        &self,
        root: Pair,
        attributes: Attributes,
        give: &SyncSender<Batch>,
    ) -> Result<(), (Vec<u8>, io::Error)> {
        let first = self.enter(root, attributes, Vec::new(), give)?;
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            if self.has_failed() {
                return Ok(());
            }
            let at = |e: io::Error| (level.unfinished.path.clone(), e);
            let Some(pair) = level.pair.clone() else {
                return Err(at(io::Error::other("a closed directory on top of the walk")));
            };
            if let Some(name) = level.left.pop() {
                let path = [level.unfinished.path.as_slice(), name.as_bytes(), b"/"].concat();
                let here = |e: Errno| (path.clone(), io::Error::from(e));
                if let Some((pair, attributes)) = self.make(&pair, &name).map_err(here)? {
                    let inner = self.enter(pair, attributes, path, give)?;
                    levels.push(inner);
                    if levels.len() > KEPT_OPEN {
                        let far = levels.len() - KEPT_OPEN - 1;
                        levels[far].pair = None;
                    }
                }
                continue;
            }
            let finished = level.unfinished.clone();
            levels.pop();
            // Before the inner one gets its attributes: they may forbid going through it.
            if let Some(outer) = levels.last_mut()
                && outer.pair.is_none()
            {
                let reopened = reopen(outer, &pair);
                outer.pair = Some(reopened.map_err(|e| (outer.unfinished.path.clone(), e))?);
            }
            self.finish_part(&finished, &pair);
        }
        Ok(())
    }

    /// Makes the copy of subdirectory `name`. None: it is gone, or not to be walked.
    fn make(&self, outer: &Pair, name: &CString) -> rustix::io::Result<Option<(Pair, Attributes)>> {
        let found = match stat(&outer.from, name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        if identity(&found) == self.target {
            return Ok(None);
        }
        match rustix::fs::mkdirat(&outer.to, name, rustix::fs::Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = stat(&outer.to, name)?;
                if FileType::from_raw_mode(there.stx_mode.into()) != FileType::Directory {
                    durable::remove_at(&outer.to, name)?;
                    rustix::fs::mkdirat(&outer.to, name, rustix::fs::Mode::RWXU)?;
                }
            }
            Err(e) => return Err(e),
        }
        let to = open_directory(&outer.to, name)?;
        // An automount point shows another file system of its server as soon as it is entered.
        let mount = StatxAttributes::MOUNT_ROOT | StatxAttributes::AUTOMOUNT;
        if found.stx_attributes.intersects(mount) {
            return Ok(None);
        }
        let from = match open_directory(&outer.from, name) {
            Ok(from) => from,
            // Gone, or replaced by something else, since it was listed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Of the directory that was opened, which need not be the one that was looked at.
        let attributes = Attributes::new(&stat(&from, c".")?);
        Ok(Some((Pair { from, to }, attributes)))
    }

    /// Hands out the entries of a directory and remembers its subdirectories.
    fn enter(
        &self,
        pair: Pair,
        attributes: Attributes,
        path: Vec<u8>,
        give: &SyncSender<Batch>,
    ) -> Result<Level, (Vec<u8>, io::Error)> {
        let at = |e: Errno| (path.clone(), io::Error::from(e));
        let from = identity(&stat(&pair.from, c".").map_err(at)?);
        let to = identity(&stat(&pair.to, c".").map_err(at)?);
        remove_others(&pair, self.shared.cx).map_err(at)?;
        let pair = Arc::new(pair);
        // One part is the walk itself.
        let unfinished =
            Arc::new(Unfinished { parts: AtomicUsize::new(1), attributes, path: path.clone() });
        let mut left = Vec::new();
        let mut names = Vec::with_capacity(BATCH);
        let hand_out = |names: &mut Vec<CString>| {
            if names.is_empty() {
                return;
            }
            unfinished.parts.fetch_add(1, Ordering::AcqRel);
            let names = std::mem::take(names);
            let (pair, unfinished) = (pair.clone(), unfinished.clone());
            // Fails only when all workers are gone, which they are not before this ends.
            let _ = give.send(Batch { pair, unfinished, names });
        };
        for entry in Dir::read_from(&pair.from).map_err(at)? {
            let entry = entry.map_err(at)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match stat(&pair.from, name) {
                    Ok(found) => FileType::from_raw_mode(found.stx_mode.into()),
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(at(e)),
                },
                kind => kind,
            };
            if kind == FileType::Directory {
                left.push(name.to_owned());
                continue;
            }
            names.push(name.to_owned());
            if names.len() == BATCH {
                hand_out(&mut names);
            }
        }
        hand_out(&mut names);
        Ok(Level { pair: Some(pair), unfinished, left, from, to })
    }
}

/// Removes from the copy what is not in the source (any more).
fn remove_others(pair: &Pair, cx: &Cx) -> rustix::io::Result<()> {
    for entry in Dir::read_from(&pair.to)? {
        let entry = entry?;
        let name = entry.file_name();
        cx.advance(1);
        if !matches!(name.to_bytes(), b"." | b"..")
            && matches!(stat(&pair.from, name), Err(Errno::NOENT))
        {
            durable::remove_at(&pair.to, name)?;
        }
    }
    Ok(())
}

/// Opens a closed directory again, from one that is in it.
fn reopen(outer: &Level, inner: &Pair) -> io::Result<Arc<Pair>> {
    let from = open_directory(&inner.from, c"..")?;
    let to = open_directory(&inner.to, c"..")?;
    let same =
        identity(&stat(&from, c".")?) == outer.from && identity(&stat(&to, c".")?) == outer.to;
    if same {
        Ok(Arc::new(Pair { from, to }))
    } else {
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it was moved while it was copied"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    #[test]
    fn what_a_workload_moves_about_is_worth_another_try() {
        let moved = io::Error::new(io::ErrorKind::ResourceBusy, "it is replaced again and again");
        assert_eq!(copy_fault("copy".to_owned(), moved, Mode::Auto).kind(), Kind::Unavailable);
        let mounted = io::Error::from_raw_os_error(libc::EBUSY);
        assert_eq!(copy_fault("copy".to_owned(), mounted, Mode::Auto).kind(), Kind::Precondition);
    }
}
