//! Giving a volume's files to a group (CSI `volume_mount_group`, Kubernetes `fsGroup`).
//!
//! Every file gets the group and lets it read and write (execute, where somebody may); every
//! directory also hands the group on (set-group-id) and has a default ACL that lets the group write
//! whatever is made in it, also under a umask of 022. Symlinks change their group and are never
//! followed, mounts below are left alone.
//!
//! Invariants:
//! - a workload may be using, and rearranging, the tree meanwhile: every directory is reached
//!   through [`crate::beneath`], every file is changed through a descriptor of that very file, so
//!   nothing outside the volume can be put in the way;
//! - the root changes last. A root that is right proves that the whole tree was done, which is how a
//!   second call, for another pod or after a restart, ends after one look (Kubernetes calls that
//!   `OnRootMismatch`).

use crate::{
    beneath::{self, Mounts},
    sys::io_fault,
};
use larder_model::{Fault, Result};
use rustix::{
    fd::{AsFd, AsRawFd},
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    ffi::{CStr, OsStr},
    fs::File,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};
use xattr::FileExt;

/// What [`give`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    /// The root was right already, so nothing was looked at.
    pub skipped: bool,
    /// Files and directories that were changed.
    pub changed: u64,
    /// Files and directories that refused (immutable ones); they are left as they are.
    pub refused: u64,
}

const DEFAULT_ACL: &str = "system.posix_acl_default";
const SET_GROUP_ID: u32 = 0o2000;
/// Walkers. The work is waiting for metadata, not computing.
const THREADS: usize = 4;

/// Gives the tree at `root` (a directory) to `group`.
///
/// # Errors
/// `Precondition` on a read-only file system; `NotFound`; see [`Fault::io`]. What a workload removes
/// meanwhile is no error.
pub fn give(root: &Path, group: u32) -> Result<Given> {
    let top = beneath::directory(root, Path::new(""), Mounts::Refused)?;
    let top = File::from(top.into_fd());
    let meta = top.metadata().map_err(|e| Fault::io(format!("look at {}", root.display()), e))?;
    if is_right(&top, meta.gid(), meta.mode(), group) {
        return Ok(Given { skipped: true, ..Given::default() });
    }
    let walk =
        Walk { root, group, device: meta.dev(), state: Mutex::default(), turn: Condvar::new() };
    walk.state().waiting.push(PathBuf::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| walk.work());
        }
    });
    let state = walk.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(fault) = state.fault {
        return Err(fault);
    }
    let mut given = state.given;
    // Only now may the root say that everything below it is done.
    if change_directory(&top, meta.gid(), meta.mode(), group)
        .map_err(|e| Fault::io(format!("give {} to group {group}", root.display()), e))?
    {
        given.changed += 1;
    }
    Ok(given)
}

struct Walk<'a> {
    root: &'a Path,
    group: u32,
    device: u64,
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Default)]
struct State {
    /// Directories to go through, below the root.
    waiting: Vec<PathBuf>,
    /// Walkers that may still find more.
    busy: usize,
    given: Given,
    fault: Option<Fault>,
}

impl Walk<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<PathBuf> {
        let mut state = self.state();
        loop {
            if state.fault.is_some() {
                return None;
            }
            if let Some(directory) = state.waiting.pop() {
                state.busy += 1;
                return Some(directory);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(directory) = self.next() {
            let done = self.directory(&directory);
            let mut state = self.state();
            state.busy -= 1;
            match done {
                Ok((given, below)) => {
                    state.given.changed += given.changed;
                    state.given.refused += given.refused;
                    state.waiting.extend(below);
                }
                // Moved or removed while we came.
                Err(fault) if fault.kind() == larder_model::Kind::NotFound => {}
                Err(fault) => state.fault = Some(fault),
            }
            self.turn.notify_all();
        }
    }

    /// Changes what is in `directory`; returns the directories in it.
    fn directory(&self, directory: &Path) -> Result<(Given, Vec<PathBuf>)> {
        let what = || format!("give {} to group {}", directory.display(), self.group);
        let opened = match beneath::directory(self.root, directory, Mounts::Refused) {
            Ok(opened) => opened,
            // A symlink or a mount that somebody put there meanwhile.
            Err(fault) if fault.kind() == larder_model::Kind::Precondition => {
                return Ok(Default::default());
            }
            Err(fault) => return Err(fault),
        };
        let mut given = Given::default();
        let mut below = Vec::new();
        let mut entries = Dir::read_from(&opened).map_err(|e| io_fault(what(), e))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|e| io_fault(what(), e))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match self.entry(&opened, name) {
                Ok((changed, is_directory)) => {
                    given.changed += u64::from(changed);
                    if is_directory {
                        below.push(directory.join(OsStr::from_bytes(name.to_bytes())));
                    }
                }
                Err(Errno::NOENT) => {}
                Err(Errno::PERM) => given.refused += 1,
                Err(e) => return Err(io_fault(what(), e)),
            }
        }
        Ok((given, below))
    }

    /// Changes one file. Returns whether anything had to be, and whether it is a directory to go
    /// into.
    fn entry(&self, directory: &impl AsFd, name: &CStr) -> rustix::io::Result<(bool, bool)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let meta: Stat = rustix::fs::fstat(&file)?;
        if meta.st_dev != self.device {
            return Ok((false, false)); // Something else is mounted there.
        }
        match FileType::from_raw_mode(meta.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
                let meta = rustix::fs::fstat(&open)?;
                if meta.st_dev != self.device {
                    return Ok((false, false));
                }
                let changed = change_directory(&open, meta.st_gid, meta.st_mode, self.group)
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
                Ok((changed, true))
            }
            kind => {
                let chown = meta.st_gid != self.group;
                if chown {
                    let gid = Some(Gid::from_raw(self.group));
                    rustix::fs::chownat(&file, c"", None, gid, AtFlags::EMPTY_PATH)?;
                }
                if kind == FileType::Symlink {
                    return Ok((chown, false));
                }
                let mode = permissions(meta.st_mode);
                let mut wanted = mode | 0o060;
                if mode & 0o111 != 0 {
                    wanted |= 0o010;
                }
                // A new group ends what set-group-id gave to the former one; the kernel also
                // clears set-user-id, which still means the same user.
                if chown && wanted & 0o010 != 0 {
                    wanted &= !SET_GROUP_ID;
                }
                let chmod = wanted != mode || (chown && mode & 0o6000 != 0);
                if chmod {
                    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(wanted), AtFlags::empty())?;
                }
                Ok((chown || chmod, false))
            }
        }
    }
}

fn permissions(mode: u32) -> u32 {
    mode & 0o7777
}

fn is_right(directory: &File, gid: u32, mode: u32, group: u32) -> bool {
    let wanted = SET_GROUP_ID | 0o070;
    gid == group && mode & wanted == wanted && has_default_acl(directory).unwrap_or(false)
}

/// Whether there is a default ACL. One that somebody set is theirs and stays. File systems without
/// ACLs have, for this purpose, all that they can have.
fn has_default_acl(directory: &File) -> std::io::Result<bool> {
    match directory.get_xattr(DEFAULT_ACL) {
        Ok(found) => Ok(found.is_some()),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => Ok(true),
        Err(e) => Err(e),
    }
}

/// Returns whether anything had to be changed. The group changes last: it says "done".
fn change_directory(directory: &File, gid: u32, mode: u32, group: u32) -> std::io::Result<bool> {
    if is_right(directory, gid, mode, group) {
        return Ok(false);
    }
    let wanted = permissions(mode) | SET_GROUP_ID | 0o070;
    if !has_default_acl(directory)? {
        directory.set_xattr(DEFAULT_ACL, &default_acl(wanted))?;
    }
    if gid != group {
        // Before the mode: while it is the former group's, set-group-id would hand that on.
        rustix::fs::fchown(directory, None, Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(directory, Mode::from_raw_mode(wanted))?;
    Ok(true)
}

/// `user::rwx,group::rwx,other::…` in the kernel's form (`posix_acl_xattr.h`): a version and, per
/// entry, tag, permissions and id, all little-endian. It stands in for the umask of whoever makes a
/// file in the directory.
fn default_acl(mode: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const USER: u16 = 0x01;
    const GROUP: u16 = 0x04;
    const OTHER: u16 = 0x20;
    const NOBODY: u32 = u32::MAX;
    let other = u16::try_from(mode & 7).unwrap_or(0);
    let mut acl = VERSION.to_le_bytes().to_vec();
    for (tag, permissions) in [(USER, 7u16), (GROUP, 7), (OTHER, other)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(NOBODY.to_le_bytes());
    }
    acl
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    const GROUP: u32 = 4321;

    fn mode(path: &Path) -> u32 {
        permissions(fs::symlink_metadata(path).unwrap().mode())
    }
    fn gid(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().gid()
    }
    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_file_is_the_groups_and_the_second_call_looks_only_at_the_root() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        set(outside.path(), 0o600);
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::write(at("a/plain"), "x").unwrap();
        set(&at("a/plain"), 0o600);
        fs::write(at("a/b/program"), "x").unwrap();
        set(&at("a/b/program"), 0o4700);
        symlink(outside.path(), at("a/link")).unwrap();
        symlink("/etc", at("etc")).unwrap();
        for n in 0..300 {
            fs::create_dir(at(&format!("a/b/c/d{n}"))).unwrap();
            fs::write(at(&format!("a/b/c/d{n}/f")), "").unwrap();
        }
        let given = give(root.path(), GROUP).unwrap();
        // The root, a, b, c, plain, program, two links, 300 directories with a file each.
        assert_eq!(given, Given { skipped: false, changed: 8 + 600, refused: 0 });
        assert_eq!(mode(&at("a/plain")), 0o660);
        assert_eq!(mode(&at("a/b/program")), 0o4770);
        for name in ["", "a", "a/b", "a/b/c", "a/b/c/d7"] {
            assert_eq!(mode(&at(name)) & 0o2070, 0o2070, "{name}");
        }
        for name in ["", "a", "a/b/c/d299/f", "a/link", "etc", "a/plain"] {
            assert_eq!(gid(&at(name)), GROUP, "{name}");
        }
        assert_eq!((mode(outside.path()), gid(outside.path())), (0o600, 0));
        assert_eq!(gid(Path::new("/etc")), 0);

        assert!(give(root.path(), GROUP).unwrap().skipped);
        let again = give(root.path(), GROUP + 1).unwrap();
        assert!(!again.skipped && gid(&at("a/b/c/d7/f")) == GROUP + 1);
    }

    #[test]
    fn what_is_made_later_is_the_groups_to_write_whatever_the_umask() {
        let root = tempfile::tempdir().unwrap();
        give(root.path(), GROUP).unwrap();
        let old = rustix::process::umask(Mode::from_raw_mode(0o022));
        fs::write(root.path().join("new"), "x").unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        fs::write(root.path().join("dir/new"), "x").unwrap();
        rustix::process::umask(old);
        for name in ["new", "dir/new"] {
            let path = root.path().join(name);
            assert_eq!((gid(&path), mode(&path) & 0o060), (GROUP, 0o060), "{name}");
        }
        assert_eq!(mode(&root.path().join("dir")) & 0o2070, 0o2070);
    }

    #[test]
    fn a_walk_that_was_cut_is_done_again_because_the_root_changes_last() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        give(root.path(), GROUP).unwrap();
        // As if it had been cut before the root and before the file.
        rustix::fs::chown(root.path(), None, Some(Gid::ROOT)).unwrap();
        rustix::fs::chown(root.path().join("file"), None, Some(Gid::ROOT)).unwrap();
        assert!(!give(root.path(), GROUP).unwrap().skipped);
        assert_eq!(gid(&root.path().join("file")), GROUP);
    }

    #[test]
    fn an_acl_that_somebody_set_stays() {
        let root = tempfile::tempdir().unwrap();
        let acl = default_acl(0o750);
        File::open(root.path()).unwrap().set_xattr(DEFAULT_ACL, &acl).unwrap();
        give(root.path(), GROUP).unwrap();
        let there = File::open(root.path()).unwrap().get_xattr(DEFAULT_ACL).unwrap().unwrap();
        assert_eq!(there, acl);
    }
}
