//! What must never be frozen.

use crate::{
    filesystems::way,
    mounts::{DeviceId, MountEntry, parse_mountinfo},
    sys::io_fault,
};
use larder_model::{Fault, Result};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags},
    io::Errno,
};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

/// The mount that an open file is on.
pub(super) fn file_system_of(file: &File) -> Result<MountEntry> {
    let what = "find the file system of a path";
    if let Some(mount) = crate::mounts::of_file(file) {
        return Ok(mount);
    }
    let at = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat =
        rustix::fs::statx(file, "", at, StatxFlags::MNT_ID).map_err(|e| io_fault(what, e))?;
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| Fault::io(what, e))?;
    let find = |table: Vec<MountEntry>| table.into_iter().find(|m| m.id == stat.stx_mnt_id);
    if let Some(mount) = find(parse_mountinfo(&text).ok_or_else(|| Fault::internal(what))?) {
        return Ok(mount);
    }
    // Reached through /proc/PID/root: ids of mounts are unique on the machine.
    for pid in crate::mounts::users::processes()? {
        let text = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if let Some(mount) = parse_mountinfo(&text).and_then(find) {
            return Ok(mount);
        }
    }
    Err(Fault::internal(format!("{what}: it is on no mount of any namespace")))
}

/// Refuses to freeze file system `device` (mounted at `path`) if any of `never` lies on it, directly
/// or through what is below it.
///
/// A protected path need not be there, or answer: a pool that is away, or whose server is dead, must
/// not keep those of other pools from being cut. What counts then is the last directory on the way to
/// it that can be reached: the path lies there, or on something mounted there.
pub(super) fn refuse(path: &Path, device: DeviceId, never: &[PathBuf]) -> Result<()> {
    for protected in never {
        let mut stack = Stack::default();
        stack.path(protected)?;
        if stack.file_systems.contains(&device) {
            return Err(Fault::precondition(format!(
                "freeze {}: {} depends on that file system",
                path.display(),
                protected.display()
            ))
            .hint("freezing it would block Larder itself; keep pools and state on another one"));
        }
    }
    Ok(())
}

/// All file systems and devices that something depends on.
#[derive(Default)]
struct Stack {
    file_systems: BTreeSet<DeviceId>,
    devices: BTreeSet<DeviceId>,
}

impl Stack {
    fn path(&mut self, path: &Path) -> Result<()> {
        let what = || format!("find out what {} depends on", path.display());
        let file = reach(path).map_err(|e| io_fault(what(), e))?;
        let mount = file_system_of(&file).map_err(|e| e.during(what()))?;
        if !self.file_systems.insert(mount.device) {
            return Ok(());
        }
        if mount.device.major != 0 {
            self.device(mount.device);
        } else if way::is_local_kind(&mount.fs_type)
            && let Ok(device) = DeviceId::of_block_device(Path::new(&mount.source))
        {
            // btrfs has a number of its own.
            self.device(device);
        }
        // What an overlay writes goes to its upper layer. Its path may be that of another mount
        // namespace; then nothing is known of it.
        for option in &mount.super_options {
            if let Some(upper) = option.strip_prefix("upperdir=") {
                let _ = self.path(Path::new(upper));
            }
        }
        Ok(())
    }

    /// What a block device is made of, as far as sysfs tells.
    fn device(&mut self, device: DeviceId) {
        if !self.devices.insert(device) {
            return;
        }
        let Ok(dir) = std::fs::canonicalize(format!("/sys/dev/block/{device}")) else { return };
        if let Ok(image) = std::fs::read_to_string(dir.join("loop/backing_file")) {
            let _ = self.path(Path::new(image.trim_end_matches('\n')));
        }
        if dir.join("partition").exists()
            && let Some(disk) = dir.parent().and_then(number_of)
        {
            self.device(disk);
        }
        for slave in std::fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten() {
            if let Some(slave) = number_of(&slave.path()) {
                self.device(slave);
            }
        }
    }
}

/// Opens (`O_PATH`) what lies as far down the path as can be reached without asking a file system that
/// may not answer.
fn reach(path: &Path) -> rustix::io::Result<File> {
    // A link to what is open, whatever its name is by now: the way to it is not gone.
    if path.starts_with("/proc/self") {
        return rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map(File::from);
    }
    way::far(&std::path::absolute(path).map_err(|_| Errno::INVAL)?).map(|(file, _)| file.into())
}

fn number_of(device: &Path) -> Option<DeviceId> {
    std::fs::read_to_string(device.join("dev")).ok()?.parse().ok()
}
