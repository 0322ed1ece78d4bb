//! Where a mounted device can be reached by path, so that its file system can be frozen.
//!
//! A device may be mounted in several mount namespaces, at paths that another mount hides, or only
//! inside a container. Freezing acts on whatever a path shows at that moment, so a path counts only
//! when the mount that it shows is proven to be this device's: by the id of the mount, which is
//! unique on the machine, and that mount's device in the table of its namespace. (btrfs shows a
//! device number of its own in the table; there the mount's source is compared.)

use larder_host::{
    DeviceId, DeviceUser, Host, LoopInfo, MountEntry, MountPlace, luks, mounts::parse_mountinfo,
};
use larder_model::{Fault, Result};
use std::path::{Path, PathBuf};

/// The device that is written to: the loop device, or the one that encryption has opened above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Top {
    pub(crate) path: PathBuf,
    pub(crate) device: DeviceId,
}

impl Top {
    /// That of a loop device.
    pub(crate) fn of(info: &LoopInfo) -> Result<Self> {
        Ok(match luks::on(info.device)? {
            Some(opened) => Self { path: opened.path, device: opened.device },
            None => Self { path: info.path.clone(), device: info.device },
        })
    }
}

/// A path that shows a file system on the device.
///
/// # Errors
/// `Precondition` where none of its mounts can be reached.
pub(crate) fn reach(host: &Host, device: &Top, users: &[DeviceUser]) -> Result<PathBuf> {
    if let Some(target) = own(host, device)? {
        return Ok(target);
    }
    for user in users {
        let DeviceUser::Mount { pid, target, .. } = user else { continue };
        let Ok(text) = std::fs::read(format!("/proc/{pid}/mountinfo")) else { continue };
        let Ok(inside) = target.strip_prefix("/") else { continue };
        let path = PathBuf::from(format!("/proc/{pid}/root")).join(inside);
        let entries = parse_mountinfo(&text).unwrap_or_default().into_iter().map(MountPlace::from);
        let ours = entries.filter(|e| e.target == *target && is_of(host, e, device));
        for entry in ours {
            if shows(host, &path, &entry) {
                return Ok(path);
            }
        }
    }
    Err(Fault::precondition(format!(
        "hold back writes to {}: its file system is mounted where it cannot be reached ({})",
        device.path.display(),
        users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    ))
    .hint("unmount what hides it, or run with the host's process ids (hostPID)"))
}

/// A path in our own namespace that shows a file system on the device; None: there is none.
pub(crate) fn own(host: &Host, device: &Top) -> Result<Option<PathBuf>> {
    let places = host.mounts.places()?;
    let reached = places
        .iter()
        .filter(|place| is_of(host, place, device))
        .find(|place| shows(host, &place.target, place));
    Ok(reached.map(|place| place.target.clone()))
}

/// The mounts of the device in our own namespace, as they are now.
pub(crate) fn here(host: &Host, device: &Top) -> Result<Vec<MountEntry>> {
    let places = host.mounts.places()?;
    let mut mounts = Vec::new();
    for place in places.iter().filter(|place| is_of(host, place, device)) {
        match host.mounts.top_at(&place.target)? {
            Some(top) if top.id == place.id => mounts.push(top),
            // Another mount hides it, or it is just going.
            _ => {
                let mut table = host.mounts.table()?;
                table.retain(|entry| is_of(host, &entry.clone().into(), device));
                return Ok(table);
            }
        }
    }
    Ok(mounts)
}

fn is_of(host: &Host, entry: &MountPlace, device: &Top) -> bool {
    if entry.device == device.device {
        return true;
    }
    // devtmpfs shows the device's *file*: whoever has it bind-mounted has not mounted what is on it.
    entry.device.major == 0
        && entry.fs_type == "btrfs"
        && entry.source.starts_with("/dev/")
        && (Path::new(&entry.source) == device.path
            || host
                .mounts
                .block_device(Path::new(&entry.source))
                .is_ok_and(|found| found == device.device))
}

fn shows(host: &Host, path: &Path, entry: &MountPlace) -> bool {
    host.mounts.mount_root(path).is_ok_and(|root| root.is_some_and(|root| root.mount == entry.id))
}
