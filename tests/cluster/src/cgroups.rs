//! The cgroups below which kubelets put their pods: `larder-CLUSTER/NODE` in every
//! hierarchy, of version 1 or 2.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::process;

const ROOT: &str = "/sys/fs/cgroup";

/// A node's group, as a kubelet names it.
pub(crate) fn name(cluster: &str, node: &str) -> String {
    format!("/{}/{node}", top(cluster))
}

fn top(cluster: &str) -> String {
    format!("larder-{cluster}")
}

/// Makes a node's groups.
pub(crate) fn create(cluster: &str, node: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let path = hierarchy.join(top(cluster)).join(node);
        fs::create_dir_all(&path).with_context(|| format!("failed to make {}", path.display()))?;
        if hierarchy.join("cgroup.controllers").exists() && !is_hybrid(&hierarchy) {
            for dir in [hierarchy.clone(), hierarchy.join(top(cluster)), path] {
                enable(&dir)?;
            }
        }
    }
    Ok(())
}

/// Turns on all controllers for what is below.
fn enable(dir: &Path) -> Result<()> {
    let wanted: String = fs::read_to_string(dir.join("cgroup.controllers"))?
        .split_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    fs::write(dir.join("cgroup.subtree_control"), wanted.trim()).with_context(|| {
        format!(
            "failed to turn on controllers below {} (hint: no process may be in it)",
            dir.display()
        )
    })
}

/// Removes a cluster's groups, whose processes have ended or are about to.
pub(crate) fn remove(cluster: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let path = hierarchy.join(top(cluster));
        let gone = || match remove_tree(&path) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
            Err(error) => Err(error.into()),
        };
        process::wait_for(Duration::from_secs(20), gone)
            .with_context(|| format!("failed to remove {}", path.display()))?;
    }
    Ok(())
}

/// All groups of a cluster that are left.
pub(crate) fn left(cluster: &str) -> Vec<PathBuf> {
    let paths = hierarchies().into_iter().map(|dir| dir.join(top(cluster)));
    paths.filter(|path| path.exists()).collect()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The folder itself with version 2, else each mount in it.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return vec![root.into()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// Beside hierarchies of version 1, the one of version 2 has no controllers worth turning on.
fn is_hybrid(hierarchy: &Path) -> bool {
    hierarchy != Path::new(ROOT)
}
