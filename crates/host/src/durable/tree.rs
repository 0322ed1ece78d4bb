//! Removal of whole trees.

use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxAttributes,
        StatxFlags,
    },
    io::Errno,
};
use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Directories deeper than this are first moved up, so that neither descriptors nor stack run out.
const DEEPEST: usize = 64;

/// Removes `path` and everything below it; absent: done. A tree that was removed half-way is removed
/// by the next call. The removal is durable.
///
/// Symlinks are removed, never followed. A directory or file that is a mount point stops it, also
/// for bind mounts of the same file system; nothing behind a mount is ever touched. Directories
/// without write permission are made writable. btrfs subvolumes inside are removed with their
/// contents, like the directories they look like (the kernel allows `rmdir` of an empty one).
///
/// # Errors
/// `Precondition` when something is mounted inside or a file is immutable (`chattr +i`); see
/// [`Fault::io`]. What was removed before stays removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    remove_tree_while(path, &|| true)
}

/// As [`remove_tree`], looking before each entry whether to go on: trees may hold millions.
///
/// # Errors
/// `Unavailable` when it was told to stop; as [`remove_tree`].
pub fn remove_tree_while(path: &Path, goes_on: &dyn Fn() -> bool) -> Result<()> {
    let what = || format!("remove the tree {}", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::invalid(format!("{}: it has no name", what())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(e) => return Err(io_fault(what(), e)),
    };
    let name = CString::new(name.as_bytes())
        .map_err(|_| Fault::invalid(format!("{}: its name holds a NUL", what())))?;
    let mut removal = Removal { root: None, moved: 0, goes_on };
    removal
        .entry(&directory, &name, 0)
        .and_then(|()| rustix::fs::fsync(&directory).map_err(|e| At::new("", e)))
        .map_err(|failed| failed.fault(what()))
}

/// Removes the entry `name` of an open directory, with everything below it; absent: done.
pub(crate) fn remove_at(directory: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<()> {
    let mut removal = Removal { root: None, moved: 0, goes_on: &|| true };
    removal.entry(directory, &name.to_owned(), 0).map_err(|failed| failed.why)
}

/// As [`remove_tree_while`] for the entry `name` of an open directory.
pub(crate) fn remove_at_while(
    directory: &OwnedFd,
    name: &std::ffi::CStr,
    goes_on: &dyn Fn() -> bool,
) -> Result<()> {
    let mut removal = Removal { root: None, moved: 0, goes_on };
    removal
        .entry(directory, &name.to_owned(), 0)
        .and_then(|()| rustix::fs::fsync(directory).map_err(|e| At::new("", e)))
        .map_err(|failed| failed.fault("remove it".to_owned()))
}

struct Removal<'a> {
    /// The top directory of the tree: deep ones are moved here.
    root: Option<OwnedFd>,
    moved: u64,
    goes_on: &'a dyn Fn() -> bool,
}

/// Where below the tree an error was met.
struct At {
    path: Vec<u8>,
    why: Errno,
    mounted: bool,
}

impl At {
    fn new(name: impl AsRef<[u8]>, why: Errno) -> Self {
        Self { path: name.as_ref().to_vec(), why, mounted: false }
    }
    fn inside(mut self, directory: &[u8]) -> Self {
        if self.path.len() < 512 {
            let mut path = directory.to_vec();
            path.push(b'/');
            path.extend_from_slice(&self.path);
            self.path = path;
        }
        self
    }
    fn fault(self, what: String) -> Fault {
        let at = OsStr::from_bytes(&self.path).to_string_lossy().into_owned();
        let fault = io_fault(format!("{what}: at {at}"), self.why);
        match self.why {
            _ if self.mounted => Fault::precondition(format!("{what}: {at} is a mount point"))
                .hint("unmount it first; nothing behind a mount is ever removed"),
            Errno::CANCELED => Fault::unavailable(format!("{what}: it was stopped at {at}"))
                .hint("it is continued by the next start"),
            Errno::BUSY | Errno::XDEV => {
                fault.with_kind(Kind::Precondition).hint("something is mounted there")
            }
            Errno::PERM => fault
                .with_kind(Kind::Precondition)
                .hint("it may be immutable: look with lsattr, and use chattr -i"),
            _ => fault,
        }
    }
}

impl Removal<'_> {
    /// Removes the entry `name` of `directory`.
    fn entry(&mut self, directory: &OwnedFd, name: &CString, depth: usize) -> Result<(), At> {
        if !(self.goes_on)() {
            return Err(At::new(name.as_bytes(), Errno::CANCELED));
        }
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = match rustix::fs::statx(directory, name, at, StatxFlags::TYPE) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(At::new(name.as_bytes(), e)),
        };
        // An automount point shows a file system of its server as soon as it is entered.
        let mount = StatxAttributes::MOUNT_ROOT | StatxAttributes::AUTOMOUNT;
        if stat.stx_attributes.intersects(mount) {
            return Err(At { mounted: true, ..At::new(name.as_bytes(), Errno::BUSY) });
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
            return unlink(directory, name, AtFlags::empty());
        }
        if depth >= DEEPEST
            && let Some(root) = &self.root
        {
            let root = root.try_clone().map_err(|_| At::new(name.as_bytes(), Errno::MFILE))?;
            return self.move_up(directory, name, &root).map_err(|e| At::new(name.as_bytes(), e));
        }
        self.directory(directory, name, depth)
    }

    /// Its contents come back as an entry of the top directory, seen by the loop there. A removal
    /// that was cut has left such entries, and a workload may give such names.
    fn move_up(
        &mut self,
        from: &OwnedFd,
        name: &CString,
        root: &OwnedFd,
    ) -> rustix::io::Result<()> {
        loop {
            let moved = format!(".larder-removing-{}-{}", std::process::id(), self.moved);
            self.moved += 1;
            let flags = RenameFlags::NOREPLACE;
            let result = match rustix::fs::renameat_with(from, name, root, moved.as_str(), flags) {
                // The file system cannot: then it replaces an empty directory, at most.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    rustix::fs::renameat(from, name, root, moved.as_str())
                }
                result => result,
            };
            match result {
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                // Gone since it was looked at.
                Err(Errno::NOENT) => return Ok(()),
                result => return result,
            }
        }
    }

    fn directory(&mut self, parent: &OwnedFd, name: &CString, depth: usize) -> Result<(), At> {
        let failed = |e| At::new(name.as_bytes(), e);
        let Some(directory) = open_writable(parent, name).map_err(failed)? else { return Ok(()) };
        if depth == 0 {
            self.root = Some(directory.try_clone().map_err(|_| failed(Errno::MFILE))?);
        }
        // The list may change under our hands (deep directories come up): until nothing is left.
        loop {
            let names = list(&directory).map_err(failed)?;
            if names.is_empty() {
                break;
            }
            for entry in &names {
                self.entry(&directory, entry, depth + 1).map_err(|e| e.inside(name.as_bytes()))?;
            }
        }
        drop(directory);
        if depth == 0 {
            self.root = None;
        }
        unlink(parent, name, AtFlags::REMOVEDIR)
    }
}

fn unlink(directory: &OwnedFd, name: &CString, flags: AtFlags) -> Result<(), At> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(At::new(name.as_bytes(), e)),
    }
}

/// Opens a directory and sees to it that we may remove what is in it. None: it is gone.
fn open_writable(parent: &OwnedFd, name: &CString) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Something may have been mounted there since it was looked at.
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let open = || loop {
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    };
    let directory = match open() {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ACCESS) => {
            // Not readable even for its owner; a symlink put in its place is not followed by open.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        Err(e) => return Err(e),
    };
    let stat = rustix::fs::fstat(&directory)?;
    if stat.st_mode & 0o700 != 0o700 {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    Ok(Some(directory))
}

/// Up to a few thousand names of a directory, without `.` and `..`.
fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
            if names.len() >= 4096 {
                break;
            }
        }
    }
    Ok(names)
}
