//! What a test may not leave behind.

use larder_host::{Host, loops::Backing, mounts::Unmount};
use std::path::{Path, PathBuf};

/// Everything of Larder's that is left in `site` although no volume is: mounts, loop devices,
/// freezes, records, files in the pool.
pub(crate) fn find(site: &Path, pool: &Path) -> Vec<String> {
    let host = Host::real();
    let mut found = Vec::new();
    let disk = site.join("disk");
    for mount in host.mounts.table().unwrap() {
        if mount.target.starts_with(site) && mount.target != disk.join("mnt") {
            found.push(format!("mount {}", mount.target.display()));
        }
    }
    // By the file system that holds the image: names in sysfs are those of some mount namespace.
    let here = Backing::of(pool).unwrap().device;
    for info in host.loops.list().unwrap() {
        if info.backing().device == here {
            let file = info.backing_file.unwrap_or_default();
            found.push(format!("loop device {} over {}", info.number, file.display()));
        }
    }
    for folder in
        ["volumes", "snapshots", "groups", "trash", "creating", "deleting", ".larder/scratch"]
    {
        list(&pool.join(folder), &mut found);
    }
    // Of every driver: freezes, node records, and what `volume mount` noted.
    for folder in ["state", "mounts"] {
        let Ok(drivers) = std::fs::read_dir(site.join(folder)) else { continue };
        drivers.for_each(|driver| list(&driver.unwrap().path(), &mut found));
    }
    found
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn list(folder: &Path, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    // The lock of the node records stays in place, as lock files do, and so does the folder in which
    // inline volumes are staged.
    let stays =
        |path: &PathBuf| path.ends_with(".lock") || (path.ends_with("inline") && is_empty(path));
    let paths = entries.map(|e| e.unwrap().path()).filter(|path| !stays(path));
    found.extend(paths.map(|path| format!("file {}", path.display())));
}

/// Unmounts whatever is mounted below `site` and lets go of its loop devices, whatever the test did.
/// `disk` is the file system that holds the pools; it goes last.
pub(crate) fn release(site: &Path, disk: u64) {
    let host = Host::real();
    let mnt = site.join("disk/mnt");
    unmount_all(&host, |target| target.starts_with(site) && target != mnt);
    for info in host.loops.list().unwrap_or_default() {
        // Devices of raw block volumes do not go away by themselves.
        if info.backing().device == disk {
            let _ = host.loops.detach(info.number, info.backing());
        }
    }
    unmount_all(&host, |target| target.starts_with(site));
}

/// Innermost first; there may be several at one place.
fn unmount_all(host: &Host, wanted: impl Fn(&Path) -> bool) {
    for _ in 0..3 {
        let Ok(table) = host.mounts.table() else { return };
        let mut targets: Vec<_> =
            table.into_iter().map(|m| m.target).filter(|t| wanted(t)).collect();
        if targets.is_empty() {
            return;
        }
        targets.sort_by_key(|t| std::cmp::Reverse(t.components().count()));
        for target in targets {
            if host.mounts.unmount(&target, Unmount::Normal).is_err() {
                // A failed test may have left files open.
                let _ = host.mounts.unmount(&target, Unmount::Lazy);
            }
        }
    }
}
