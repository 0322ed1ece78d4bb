//! Where a path leads, as far as that can be told without asking anybody.
//!
//! A network or FUSE file system may never answer, and whoever waits for it waits in the kernel,
//! where a thread cannot be stopped. So paths are walked component by component; the walk touches
//! nothing but file systems of this machine, and stops at the root of any other kind.

use crate::mounts::{MountEntry, parse_mountinfo};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags},
    io::Errno,
};
use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// With so many helpers stuck in the kernel no further one is started.
pub(crate) const MOST_STUCK: usize = 16;
/// File systems whose `statfs` asks nobody else.
const LOCAL: [&str; 22] = [
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "f2fs",
    "bcachefs",
    "zfs",
    "tmpfs",
    "ramfs",
    "devtmpfs",
    "overlay",
    "vfat",
    "exfat",
    "ntfs3",
    "erofs",
    "squashfs",
    "iso9660",
    "proc",
    "sysfs",
    "rootfs",
    "hugetlbfs",
];
/// As many as the kernel follows.
const MOST_SYMLINKS: u32 = 40;

/// How a walk ended.
pub(crate) enum End {
    /// At the path itself.
    There,
    /// At the root of a file system that may not answer.
    Foreign,
    /// At the last directory before something that cannot be reached.
    Failed(Errno),
}

/// Opens `path` (`O_PATH`) if only local file systems lie on the way; None otherwise.
pub(crate) fn walk(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    if path.is_relative() {
        return Ok(None);
    }
    match far(path)? {
        (place, End::There) => Ok(Some(place)),
        (_, End::Foreign) => Ok(None),
        (_, End::Failed(e)) => Err(e),
    }
}

/// Opens (`O_PATH`) what lies as far down the absolute path as can be gone without waiting.
pub(crate) fn far(path: &Path) -> rustix::io::Result<(OwnedFd, End)> {
    let mut table = None;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    let mut symlinks = 0;
    let mut rest = components(path);
    // Directories passed on the way, so that ".." in a symlink's text can be followed back.
    let (mut at, mut trail) = (root, Vec::new());
    while let Some(name) = rest.pop_front() {
        if name == OsStr::new("..") {
            at = trail.pop().unwrap_or(at);
            continue;
        }
        let next = match rustix::fs::openat(&at, &name, flags, Mode::empty()) {
            Ok(next) => next,
            Err(e) => return Ok((at, End::Failed(e))),
        };
        let kind = match look(&next) {
            Ok((_, mount)) if !is_local(&next, mount, &mut table) => {
                return Ok((next, End::Foreign));
            }
            Ok((kind, _)) => kind,
            Err(e) => return Ok((at, End::Failed(e))),
        };
        if kind != FileType::Symlink {
            trail.push(std::mem::replace(&mut at, next));
            continue;
        }
        symlinks += 1;
        let text = match rustix::fs::readlinkat(&next, "", Vec::new()) {
            _ if symlinks > MOST_SYMLINKS => return Ok((at, End::Failed(Errno::LOOP))),
            Ok(text) => PathBuf::from(OsString::from_vec(text.into_bytes())),
            Err(e) => return Ok((at, End::Failed(e))),
        };
        if text.is_absolute() {
            trail.truncate(1);
            at = trail.pop().unwrap_or(at);
        }
        for name in components(&text).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok((at, End::There))
}

fn look(place: &OwnedFd) -> rustix::io::Result<(FileType, u64)> {
    let at = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(place, "", at, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok((FileType::from_raw_mode(stat.stx_mode.into()), stat.stx_mnt_id))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.as_os_str()
        .as_bytes()
        .split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect()
}

/// Mounts of local file systems that were met before, by the id that the kernel never gives twice.
/// Kubelet asks for every volume once a minute; reading a table of a thousand mounts each time would
/// take longer than all the rest.
static KNOWN: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
/// Then it is begun anew: most of these mounts are gone.
const MOST_KNOWN: usize = 8192;
/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

fn is_local(place: &OwnedFd, mount: u64, table: &mut Option<Vec<MountEntry>>) -> bool {
    let at = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let unique = rustix::fs::statx(place, "", at, MNT_ID_UNIQUE)
        .ok()
        .filter(|stat| stat.stx_mask & MNT_ID_UNIQUE.bits() != 0)
        .map(|stat| stat.stx_mnt_id);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if unique.is_some_and(|id| known().contains(&id)) {
        return true;
    }
    let table = table.get_or_insert_with(|| {
        let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        parse_mountinfo(&text).unwrap_or_default()
    });
    let local = table.iter().any(|m| m.id == mount && is_local_kind(&m.fs_type));
    if let Some(id) = unique.filter(|_| local) {
        let mut known = known();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(id);
    }
    local
}

/// Whether file systems of this kind ask nobody but this machine.
pub(crate) fn is_local_kind(fs_type: &str) -> bool {
    LOCAL.contains(&fs_type)
}
