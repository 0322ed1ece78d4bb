//! Which cgroup limits are set in.

use super::Group;
use larder_model::{Fault, Result};
use std::path::Path;

/// Where kubelet has its pods, below a hierarchy's root: systemd and cgroupfs drivers, and with
/// kubelet in a cgroup of its own (kind).
const PODS: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// Where hierarchies are mounted, by convention: version 2 here or (beside version 1) in `unified`,
/// version 1 in `blkio`. The mount table, which is long on a node, is not asked at each use.
const MOUNTS: &str = "/sys/fs/cgroup";

/// The configured cgroup, or the one of kubelet's pods, or (v1 only) the root.
pub(super) fn group(configured: Option<&Path>) -> Result<Group> {
    match configured {
        Some(path) => judge(path),
        None => found(Path::new(MOUNTS)),
    }
}

/// What a configured directory is.
fn judge(path: &Path) -> Result<Group> {
    let has = |name: &str| path.join(name).exists();
    let wrong = |why: &str| Fault::precondition(format!("use cgroup {}: {why}", path.display()));
    if has("blkio.throttle.read_bps_device") {
        return Ok(Group::V1(path.to_owned()));
    }
    if !has("cgroup.controllers") {
        return Err(wrong("it is no cgroup of version 2, and none of version 1 with blkio")
            .hint("set cgroup in the configuration to a directory below /sys/fs/cgroup"));
    }
    // Only the root has no type.
    if !has("cgroup.type") {
        return Err(wrong("it is the root of version 2, which has no io.max").hint(
            "set cgroup in the configuration to one below it that holds the workloads, such as \
             /sys/fs/cgroup/system.slice",
        ));
    }
    Ok(Group::V2(path.to_owned()))
}

fn found(mounts: &Path) -> Result<Group> {
    let mut v2 = vec![mounts.to_owned(), mounts.join("unified")];
    v2.retain(|root| has_io(root));
    let v1 = mounts.join("blkio");
    for root in v2.iter().chain([&v1]) {
        for pods in PODS {
            if let Ok(group) = judge(&root.join(pods)) {
                return Ok(group);
            }
        }
    }
    if let Ok(root) = judge(&v1) {
        return Ok(root);
    }
    if v2.is_empty() {
        return Err(Fault::precondition(format!(
            "find a cgroup: none with io or blkio is in {}",
            mounts.display()
        ))
        .hint("mount it there, or set cgroup in the configuration"));
    }
    Err(Fault::precondition(format!(
        "find the cgroup of the pods: there is none of {}, and the root of version 2 has no io.max",
        PODS.join(", ")
    ))
    .hint(
        "set cgroup in the configuration to one that holds the workloads, such as \
         /sys/fs/cgroup/system.slice",
    ))
}

fn has_io(root: &Path) -> bool {
    let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().any(|controller| controller == "io")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Looks like cgroups: what is looked at is names of files.
    fn v2(root: &Path, name: &str) {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("cgroup.controllers"), "cpu io memory\n").unwrap();
        if !name.is_empty() {
            fs::write(root.join(name).join("cgroup.type"), "domain\n").unwrap();
        }
    }
    fn v1(root: &Path, name: &str) {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("blkio.throttle.read_bps_device"), "").unwrap();
    }

    #[test]
    fn the_pods_cgroup_is_found_in_either_version() {
        let dir = tempfile::tempdir().unwrap();
        let (two, one) = (dir.path().join("unified"), dir.path().join("blkio"));
        let table = dir.path();
        v2(&two, "");
        v1(&one, "");
        assert_eq!(found(table).unwrap(), Group::V1(one.clone()));
        v1(&one, "kubepods");
        assert_eq!(found(table).unwrap(), Group::V1(one.join("kubepods")));
        v2(&two, "kubelet/kubepods");
        assert_eq!(found(table).unwrap(), Group::V2(two.join("kubelet/kubepods")));
        v2(&two, "kubepods.slice");
        assert_eq!(found(table).unwrap(), Group::V2(two.join("kubepods.slice")));
        // A hybrid machine's version 2 without io holds no limits.
        fs::write(two.join("cgroup.controllers"), "pids\n").unwrap();
        assert_eq!(found(table).unwrap(), Group::V1(one.join("kubepods")));
    }

    #[test]
    fn where_nothing_can_be_limited_that_is_said_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        v2(dir.path(), "");
        let root = judge(dir.path()).unwrap_err().to_string();
        assert!(root.contains("no io.max") && root.contains("set cgroup"), "{root}");
        let bare = found(dir.path()).unwrap_err().to_string();
        assert!(bare.contains("kubepods.slice") && bare.contains("set cgroup"), "{bare}");
        let none = found(&dir.path().join("not")).unwrap_err().to_string();
        assert!(none.contains("none with io"), "{none}");
        let folder = judge(&dir.path().join("not")).unwrap_err().to_string();
        assert!(folder.contains("no cgroup"), "{folder}");
    }
}
