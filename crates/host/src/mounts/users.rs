//! Who uses a device or a mount.
//!
//! A device counts as unused only when nothing is found in any of these, for all mount namespaces
//! of the machine: mount tables of every namespace that has a process, open descriptors of every
//! process, swap areas, devices stacked on it, loop devices backed by it; and in the end the kernel
//! itself is asked by an exclusive open, which fails while any mount, in whatever namespace, or any
//! stacked device claims it.
//!
//! Processes are seen through `/proc`. Openers in processes that it does not show (those outside of a
//! container that has its own process ids, or that a security module hides) stay unseen here; the
//! step that removes a device meets them in the end, because the kernel counts every opener.

use super::{DeviceId, DeviceUser, MountEntry, table};
use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Everybody who uses a block device.
pub(crate) fn of_device(device: DeviceId) -> Result<Vec<DeviceUser>> {
    let name = kernel_name(device);
    let mut users = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for pid in processes()? {
        mounts(pid, device, name.as_deref(), &mut namespaces, &mut users)?;
        openers(pid, device, &mut users)?;
    }
    holders(device, &mut users)?;
    backed_loops(device, &mut users)?;
    swap(device, &mut users)?;
    if users.is_empty()
        && let Some(name) = &name
    {
        claimed(name, &mut users)?;
    }
    Ok(users.into_iter().collect())
}

/// `loop3` for 7:3; None for numbers that are no block device of this machine.
fn kernel_name(device: DeviceId) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{device}")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

pub(crate) fn processes() -> Result<Vec<u32>> {
    let what = "list the processes of this machine";
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(|e| Fault::io(what, e))? {
        let entry = entry.map_err(|e| Fault::io(what, e))?;
        pids.extend(entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// A process that ends while it is looked at uses nothing any more; one that we may not look at
/// (EACCES, from a security module or for lack of CAP_SYS_PTRACE) is as unseen as one outside of
/// our process id namespace.
fn is_gone_or_hidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn mounts(
    pid: u32,
    device: DeviceId,
    name: Option<&str>,
    namespaces: &mut BTreeSet<u64>,
    users: &mut BTreeSet<DeviceUser>,
) -> Result<()> {
    let Some((namespace, entries)) = mounts_of(pid, namespaces)? else { return Ok(()) };
    for entry in entries {
        if entry.device == device || is_source(&entry, device, name) {
            users.insert(DeviceUser::Mount { pid, namespace, target: entry.target });
        }
    }
    Ok(())
}

/// The mount namespace of a process and its table; None when it is in `seen` already (otherwise it
/// is added) or the process has ended.
pub(crate) fn mounts_of(
    pid: u32,
    seen: &mut BTreeSet<u64>,
) -> Result<Option<(u64, Vec<MountEntry>)>> {
    let what = || format!("see the mounts of process {pid}");
    let namespace = match std::fs::read_link(format!("/proc/{pid}/ns/mnt")) {
        Ok(link) => namespace_inode(&link).ok_or_else(|| Fault::internal(what()))?,
        // Zombies and kernel threads on their way out have no namespace any more.
        Err(e) if is_gone_or_hidden(&e) => return Ok(None),
        Err(e) => return Err(Fault::io(what(), e)),
    };
    if seen.contains(&namespace) {
        return Ok(None);
    }
    let text = match std::fs::read(format!("/proc/{pid}/mountinfo")) {
        Ok(text) => text,
        // EINVAL: it has left its namespace between the two looks.
        Err(e) if is_gone_or_hidden(&e) || e.kind() == ErrorKind::InvalidInput => return Ok(None),
        Err(e) => return Err(Fault::io(what(), e)),
    };
    let entries = table::parse_mountinfo(&text).ok_or_else(|| Fault::internal(what()))?;
    seen.insert(namespace);
    Ok(Some((namespace, entries)))
}

/// btrfs shows a number of its own in the mount table, not that of its device.
fn is_source(entry: &MountEntry, device: DeviceId, name: Option<&str>) -> bool {
    if entry.device.major != 0 || !entry.source.starts_with("/dev/") {
        return false;
    }
    let by_name = name.is_some_and(|name| entry.source == format!("/dev/{name}"));
    by_name || DeviceId::of_block_device(Path::new(&entry.source)).is_ok_and(|id| id == device)
}

/// The number in `mnt:[4026531841]`.
fn namespace_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

fn openers(pid: u32, device: DeviceId, users: &mut BTreeSet<DeviceUser>) -> Result<()> {
    let main = PathBuf::from(format!("/proc/{pid}/fd"));
    if openers_in(&main, pid, device, users)? > 0 {
        return Ok(());
    }
    // A main thread that has ended shows no descriptors while other threads still hold them.
    let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(e) if is_gone_or_hidden(&e) => return Ok(()),
        Err(e) => return Err(Fault::io(format!("see the threads of process {pid}"), e)),
    };
    for task in tasks.flatten() {
        if openers_in(&task.path().join("fd"), pid, device, users)? > 0 {
            break;
        }
    }
    Ok(())
}

/// Looks through a directory of descriptors; says how many there are.
fn openers_in(
    dir: &Path,
    pid: u32,
    device: DeviceId,
    users: &mut BTreeSet<DeviceUser>,
) -> Result<usize> {
    let what = || format!("see the open files of process {pid}");
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone_or_hidden(&e) => return Ok(0),
        Err(e) => return Err(Fault::io(what(), e)),
    };
    let mut seen = 0;
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if is_gone_or_hidden(&e) => break,
            Err(e) => return Err(Fault::io(what(), e)),
        };
        seen += 1;
        // Never waits for a server: a descriptor may belong to a dead network mount.
        let at = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let Ok(stat) = rustix::fs::statx(CWD, entry.path(), at, StatxFlags::TYPE) else { continue };
        let is_block = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice;
        let opened = DeviceId { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
        if !is_block || opened != device || is_path_only(&entry.path()) {
            continue;
        }
        let fd = entry.file_name().to_str().and_then(|n| n.parse().ok()).unwrap_or(u32::MAX);
        users.insert(DeviceUser::Opener { pid, command: command_of(pid), fd });
    }
    Ok(seen)
}

/// Whether the descriptor was opened with `O_PATH`: it names the device file, but not the device.
fn is_path_only(fd: &Path) -> bool {
    let info = fd
        .parent()
        .and_then(Path::parent)
        .zip(fd.file_name())
        .map(|(process, name)| process.join("fdinfo").join(name));
    let text = info.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .is_some_and(|flags| OFlags::from_bits_retain(flags).contains(OFlags::PATH))
}

fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

fn holders(device: DeviceId, users: &mut BTreeSet<DeviceUser>) -> Result<()> {
    let dir = format!("/sys/dev/block/{device}/holders");
    match std::fs::read_dir(&dir) {
        Ok(entries) => {
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                users.insert(DeviceUser::Holder { name });
            }
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Fault::io(format!("read {dir}"), e)),
    }
}

/// Loop devices whose image is this device: the kernel shows no holder for them.
fn backed_loops(device: DeviceId, users: &mut BTreeSet<DeviceUser>) -> Result<()> {
    let entries = match std::fs::read_dir("/sys/block") {
        Ok(entries) => entries,
        Err(e) => return Err(Fault::io("list the block devices of this machine", e)),
    };
    for entry in entries.flatten() {
        let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let backing = Path::new(backing.trim_end_matches('\n'));
        if backing.starts_with("/dev")
            && DeviceId::of_block_device(backing).is_ok_and(|id| id == device)
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            users.insert(DeviceUser::Holder { name });
        }
    }
    Ok(())
}

fn swap(device: DeviceId, users: &mut BTreeSet<DeviceUser>) -> Result<()> {
    let text = match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Fault::io("read /proc/swaps", e)),
    };
    let used = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(|path| DeviceId::of_block_device(Path::new(path)).is_ok_and(|id| id == device));
    if used {
        users.insert(DeviceUser::Swap);
    }
    Ok(())
}

/// How long a use by nobody who can be seen may take to pass.
pub(super) const PASSING: Duration = Duration::from_secs(1);

/// Asks the kernel whether anything claims the device that was not found otherwise.
///
/// A claim may be a passing one: every descriptor of this process, so also one that was opened
/// exclusively, lives on for a moment in the children that another thread starts, until they
/// become the program that they shall run.
fn claimed(name: &str, users: &mut BTreeSet<DeviceUser>) -> Result<()> {
    // A slash in a device's name is an exclamation mark in sysfs.
    let path = Path::new("/dev").join(name.replace('!', "/"));
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let end = Instant::now() + PASSING;
    loop {
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(_) | Err(Errno::NOENT | Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => {
                return Ok(());
            }
            Err(Errno::BUSY) if Instant::now() < end => {
                crate::sys::sleep(Duration::from_millis(10));
            }
            Err(Errno::BUSY) => {
                let name = "a mount or device that cannot be seen from here".to_owned();
                users.insert(DeviceUser::Holder { name });
                return Ok(());
            }
            Err(e) => return Err(io_fault(format!("ask whether {} is in use", path.display()), e)),
        }
    }
}

/// Who keeps a mount busy.
#[derive(Debug, Default)]
pub(super) struct MountUsers {
    /// In words; for messages only.
    pub(super) names: Vec<String>,
    /// This process does: to cut a snapshot, say.
    pub(super) we: bool,
}

/// Whether it is a child of ours that runs this very program: a helper, or one that has not become
/// another program yet and has copies of all that is open here until then.
fn is_own_child(pid: u32) -> bool {
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| {
        // proc_pid_stat(5): the name may hold anything, and is followed by state and parent.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse::<u32>().ok()
    });
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    parent == Some(std::process::id())
        && program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// Who keeps that mount busy.
pub(super) fn of_mount(target: &Path, table: &[MountEntry]) -> MountUsers {
    let mut names: Vec<String> = table
        .iter()
        .filter(|m| m.target != target && m.target.starts_with(target))
        .map(|m| format!("the mount at {}", m.target.display()))
        .collect();
    let (me, mut we) = (std::process::id(), false);
    let mut pids = processes().unwrap_or_default();
    pids.sort_by_key(|pid| *pid != me);
    for pid in pids {
        let inside =
            |link: PathBuf| std::fs::read_link(link).is_ok_and(|path| path.starts_with(target));
        let process = PathBuf::from(format!("/proc/{pid}"));
        let fds = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let named = ["cwd", "root", "exe"].iter().map(|name| process.join(name));
        if named.chain(fds.map(|fd| fd.path())).any(inside) {
            names.push(format!("process {pid} ({})", command_of(pid)));
            we |= pid == me || is_own_child(pid);
        }
        if names.len() >= 8 {
            break;
        }
    }
    MountUsers { names, we }
}
