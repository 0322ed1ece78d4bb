//! Limits with version 1 of cgroups, measured, in a machine of its own: cgroups of version 2 that were
//! removed hold the io controller as long as anything is cached for them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "it measures for a while")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod lab;
#[path = "../support/mod.rs"]
mod support;

use lab::{ALONE, MIB, Pods, Volume, WRITES, WRITTEN, Workloads, writing};
use std::{fs, path::PathBuf, sync::PoisonError};
use support::{Site, shell};

/// The blkio controller of version 1, which the machine gives where version 2 does not use io.
struct VersionOne(PathBuf);

impl VersionOne {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "-io").unwrap();
        let script = format!("mount -t cgroup -o blkio blkio '{}'", at.display());
        let mounted = shell(&script).output().unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Self(at)
    }
}

impl Drop for VersionOne {
    fn drop(&mut self) {
        let _ = shell(&format!("umount '{}'", self.0.display())).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_version_1_each_pod_is_held_to_the_limit_by_itself_as_is_said() {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let site = Site::new("loop", "xfs");
    let blkio = VersionOne::mount(site.path("blkio"));
    let root = blkio.0.join("pods");
    let pods = Pods::in_cgroup(&root, alone);
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("cgroup: {}\n{config}", root.display())).unwrap();

    site.ok(&["volume", "create", "v", "--size", "64Mi", "--block", "--param", "maxWriteBps=1Mi"]);
    let path = site.path("device");
    let at = path.display().to_string();
    site.ok(&["volume", "mount", "v", &at, "--block"]);
    let volume = Volume { site: &site, name: "v", path };
    let limits = volume.limits();
    assert_eq!(limits["state"], "held", "{limits}");
    assert!(limits["caveats"][0].as_str().unwrap().contains("version 1"), "{limits}");
    let fill = format!("dd if=/dev/zero of={at} bs=1M count=64 oflag=direct status=none");
    assert!(shell(&fill).status().unwrap().success());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, 2.0 * MIB, "version 1, two pods with 1 MiB/s each");
    volume.modify(&["maxWriteBps=0", "maxWriteIops=20"]);
    volume.holds(WRITES, 40.0, "version 1, two pods with 20 operations each");
    drop(writers);
    site.ok(&["volume", "unmount", "v"]);
    for group in [root.clone(), root.join("pod-a"), root.join("pod-b")] {
        for kind in ["write_bps", "write_iops"] {
            let file = group.join(format!("blkio.throttle.{kind}_device"));
            assert_eq!(fs::read_to_string(&file).unwrap(), "", "a limit outlived its volume");
        }
    }
    site.ok(&["volume", "rm", "v"]);
}
