//! Where else a directory is shown: bind mounts of it or of something in it.
//!
//! The mount table names the root of each mount *inside its file system*, which stays right when the
//! directory is renamed. A directory of a pool is therefore translated into that form first, through
//! the mount that the pool itself is reached by, and then compared with every mount of that file
//! system.

use super::{DeviceUser, MountEntry, users};
use larder_model::{Fault, Result};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// What a mount must show to be a user of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    device: super::DeviceId,
    root: PathBuf,
}

impl Wanted {
    /// The directory `dir`, which exists, in terms of its file system. None: no mount in `table`
    /// holds it (only in tables that are made up).
    pub(super) fn new(dir: &Path, table: &[MountEntry]) -> Result<Option<Self>> {
        let real = dir
            .canonicalize()
            .map_err(|e| Fault::io(format!("resolve the path {}", dir.display()), e))?;
        let holds = |m: &&MountEntry| real.starts_with(&m.target);
        // Of several mounts at one place the last one is on top.
        let Some(mount) = table.iter().filter(holds).max_by_key(|m| m.target.components().count())
        else {
            return Ok(None);
        };
        let inside = real.strip_prefix(&mount.target).unwrap_or(Path::new(""));
        Ok(Some(Self { device: mount.device, root: mount.root.join(inside) }))
    }

    /// Whether `mount` shows it or something in it, rather than something around it.
    pub(super) fn is_shown_by(&self, mount: &MountEntry) -> bool {
        mount.device == self.device && mount.root.starts_with(&self.root)
    }
}

/// Everybody who shows `dir`, in every mount namespace of the machine.
pub(super) fn everywhere(dir: &Path, own: &[MountEntry]) -> Result<Vec<DeviceUser>> {
    let Some(wanted) = Wanted::new(dir, own)? else { return Ok(Vec::new()) };
    let (mut namespaces, mut found) = (BTreeSet::new(), BTreeSet::new());
    for pid in users::processes()? {
        let Some((namespace, entries)) = users::mounts_of(pid, &mut namespaces)? else { continue };
        for entry in entries.into_iter().filter(|m| wanted.is_shown_by(m)) {
            found.insert((entry.target, namespace, pid));
        }
    }
    Ok(told_once(found))
}

/// A mount that is propagated into several namespaces is told once, by the lowest process id.
fn told_once(found: BTreeSet<(PathBuf, u64, u32)>) -> Vec<DeviceUser> {
    let mut users: Vec<DeviceUser> = Vec::new();
    for (target, namespace, pid) in found {
        match users.last_mut() {
            Some(DeviceUser::Mount { target: known, pid: by, namespace: seen })
                if *known == target =>
            {
                if pid < *by {
                    (*by, *seen) = (pid, namespace);
                }
            }
            _ => users.push(DeviceUser::Mount { pid, namespace, target }),
        }
    }
    users
}

/// Reads one table, for hosts that have no other namespaces.
pub(super) fn in_table(dir: &Path, own: &[MountEntry]) -> Result<Vec<DeviceUser>> {
    let Some(wanted) = Wanted::new(dir, own)? else { return Ok(Vec::new()) };
    let shown = own.iter().filter(|m| wanted.is_shown_by(m));
    let found = shown.map(|m| (m.target.clone(), 0, std::process::id())).collect();
    Ok(told_once(found))
}
