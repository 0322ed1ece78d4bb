//! How full a file system is.
//!
//! `statfs` on a dead network mount can hang for ever, and so can the walk to it. So the path is
//! walked component by component without touching anything but file systems of this machine; where
//! the walk meets another kind, a helper process asks instead, and is killed at the deadline.

use super::Usage;
use crate::{
    HelperProgram,
    command::{self, Command},
    mounts::{MountEntry, parse_mountinfo},
    sys::io_fault,
};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatVfs, StatxFlags},
    io::Errno,
};
use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How long a file system may take to answer.
const DEADLINE: Duration = Duration::from_secs(8);
/// With so many helpers stuck in the kernel no further one is started.
const MOST_STUCK: usize = 16;
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

/// See [`super::FileSystems::usage`].
pub(super) fn usage(path: &Path, helper: &HelperProgram) -> Result<Usage> {
    let what = || format!("ask how full {} is", path.display());
    if let Some(place) = walk(path).map_err(|e| io_fault(what(), e))? {
        // Through /proc, because an O_PATH descriptor itself is enough for fstatfs.
        let stat = rustix::fs::fstatvfs(&place).map_err(|e| io_fault(what(), e))?;
        return Ok(from_statvfs(&stat));
    }
    if command::stuck() >= MOST_STUCK {
        return Err(Fault::unavailable(format!("{}: too many such questions hang", what()))
            .hint("a network or FUSE file system does not answer; see the kernel log"));
    }
    let Some((program, arguments)) = helper.0.split_first() else {
        return Err(Fault::internal(format!("{}: no helper program is known", what())));
    };
    let output = Command::new(program)
        .args(arguments)
        .arg("statfs")
        .arg(path)
        .deadline(DEADLINE)
        .run_any()
        .map_err(|e| match e.kind() {
            Kind::Deadline => Fault::unavailable(format!("{}: it does not answer", what()))
                .hint("its server or daemon is gone or overloaded"),
            _ => e.during(what()),
        })?;
    match output.code() {
        Some(0) => serde_json::from_slice(&output.stdout).map_err(|e| {
            Fault::internal(format!("{}: the helper's answer makes no sense", what())).because(e)
        }),
        // The helper's way to hand over an errno: its number on stderr.
        _ => Err(match output.stderr.trim().parse() {
            Ok(code) => {
                let error = Errno::from_raw_os_error(code);
                let fault = io_fault(what(), error);
                match error {
                    Errno::NOTCONN | Errno::IO | Errno::STALE => fault.with_kind(Kind::Unavailable),
                    _ => fault,
                }
            }
            Err(_) => Fault::internal(format!("{}: helper: {}", what(), output.stderr.trim())),
        }),
    }
}

/// Asks without any precaution: for the fake kernel, whose files are all local.
pub(crate) fn usage_here(path: &Path) -> Result<Usage> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| io_fault(format!("ask how full {} is", path.display()), e))?;
    Ok(from_statvfs(&stat))
}

/// What the helper process does: prints the usage of `path` as JSON, or an errno to stderr.
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "this is how the helper answers")]
pub(crate) fn statfs_main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(64);
    };
    match rustix::fs::statvfs(Path::new(&path)) {
        Ok(stat) => match serde_json::to_string(&from_statvfs(&stat)) {
            Ok(text) if writeln!(std::io::stdout(), "{text}").is_ok() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}", e.raw_os_error());
            ExitCode::FAILURE
        }
    }
}

fn from_statvfs(stat: &StatVfs) -> Usage {
    let bytes = |blocks: u64| Bytes::new(blocks.saturating_mul(stat.f_frsize));
    Usage {
        total: bytes(stat.f_blocks),
        available: bytes(stat.f_bavail),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
    }
}

/// Opens `path` (`O_PATH`) if only local file systems lie on the way; None otherwise.
fn walk(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let mut table = None;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = || rustix::fs::openat(CWD, "/", flags, Mode::empty());
    if path.is_relative() {
        return Ok(None);
    }
    let mut symlinks = 0;
    let mut rest = components(path);
    // Directories passed on the way, so that ".." in a symlink's text can be followed back.
    let mut trail = vec![root()?];
    while let Some(name) = rest.pop_front() {
        if name == OsStr::new("..") {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let Some(at) = trail.last() else { return Ok(None) };
        let next = rustix::fs::openat(at, &name, flags, Mode::empty())?;
        let stat = rustix::fs::statx(
            &next,
            "",
            AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC,
            StatxFlags::TYPE | StatxFlags::MNT_ID,
        )?;
        if !is_local(&next, stat.stx_mnt_id, &mut table) {
            return Ok(None);
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Symlink {
            trail.push(next);
            continue;
        }
        symlinks += 1;
        if symlinks > MOST_SYMLINKS {
            return Err(Errno::LOOP);
        }
        let text = rustix::fs::readlinkat(&next, "", Vec::new())?;
        let text = PathBuf::from(OsString::from_vec(text.into_bytes()));
        if text.is_absolute() {
            trail.truncate(1);
        }
        for name in components(&text).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(trail.pop())
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
    let local = table.iter().any(|m| m.id == mount && LOCAL.contains(&m.fs_type.as_str()));
    if let Some(id) = unique.filter(|_| local) {
        let mut known = known();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(id);
    }
    local
}
