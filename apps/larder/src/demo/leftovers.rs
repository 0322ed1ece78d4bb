//! What a demo that was killed has left.
//!
//! Its processes die with it, and its mounts with its mount namespace. What stays is its temporary
//! folder, and the loop device of a raw block volume, which keeps the demo's disk alive. The next
//! demo removes both: a folder whose lock nobody holds is nobody's.

use larder_host::{Host, durable, lock::FileLock};
use larder_model::Result;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// How the folders of demos begin.
pub(super) const PREFIX: &str = "larder-demo-";
/// The disk of a demo that runs as root.
pub(super) const DISK: &str = "disk.img";

/// Marks `folder` as in use until the lock is dropped.
pub(super) fn hold(folder: &Path) -> Result<Option<FileLock>> {
    FileLock::try_exclusive(&lock(folder))
}

fn lock(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// Removes what killed demos of this user have left in `folder`; returns how many.
pub(super) fn clear(temporary: &Path) -> usize {
    let mut cleared = 0;
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_demo = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if is_demo && is_ours(&path) && remove(&path).is_ok_and(|removed| removed) {
            cleared += 1;
        }
    }
    cleared
}

/// Anybody may make such a name in a shared folder.
fn is_ours(folder: &Path) -> bool {
    let of = |path: &Path| std::fs::symlink_metadata(path).ok();
    let uid = rustix::process::getuid().as_raw();
    of(folder).is_some_and(|meta| meta.is_dir() && meta.uid() == uid)
        && of(&lock(folder)).is_some_and(|meta| meta.is_file() && meta.uid() == uid)
}

fn remove(folder: &Path) -> Result<bool> {
    let Some(_lock) = hold(folder)? else { return Ok(false) };
    detach(&Host::real(), &folder.join(DISK))?;
    durable::remove_tree(folder)?;
    Ok(true)
}

/// Detaches the devices over images on the demo's disk, and then the disk.
pub(super) fn detach(host: &Host, disk: &Path) -> Result<()> {
    if !disk.exists() {
        return Ok(());
    }
    for disk in host.loops.find(disk)? {
        for info in host.loops.list()? {
            if info.backing_device == disk.device.to_raw() {
                host.loops.detach(info.number, info.backing())?;
            }
        }
        host.loops.detach(disk.number, disk.backing())?;
    }
    Ok(())
}
