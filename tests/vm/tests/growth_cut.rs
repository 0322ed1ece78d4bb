//! A volume that has grown and is full of new things survives a power cut, whatever its file system.
//!
//! What grows is first in the file system's log alone. The kernel here (6.1) cannot mount an xfs whose
//! log holds growth and, after it, the first use of the new space; Larder empties the log in time.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use larder_vm::{Cache, Disk, Machine};
use std::{path::PathBuf, time::Duration};

const FILES: u64 = 3 << 30;

const CONFIG: &str = r#"
    cp "$LARDER" /opt/larder
    modprobe -a loop ext4 xfs btrfs
    mkdir -p /etc/larder
    cat > /etc/larder/config.yaml << END
node: n1
stateDir: /run/state
drivers:
- name: test.csi.larder.dev
  backend: loop
  pools:
    default: { path: /mnt/pool, create: true }
END
    volume() { /opt/larder volume "$@"; }
    mount /dev/larder/$1 /mnt
"#;

/// Directories spread over all parts of an xfs, so also over the new one.
const WORK: &str = r#"
    for fs in xfs ext4 btrfs; do
        volume create $fs --size 320Mi --fs $fs
        volume mount $fs /srv/$fs
        volume expand $fs --size 640Mi
        for name in $(seq 40); do
            mkdir /srv/$fs/$name
            echo $name > /srv/$fs/$name/file
        done
        # What the workload asks for; a sync of the whole would empty more logs than that.
        sync /srv/$fs/*/file /srv/$fs/* /srv/$fs
    done
    echo durable.
    sleep 600
"#;

const CHECK: &str = r#"
    for fs in xfs ext4 btrfs; do
        volume mount $fs /srv/$fs
        for name in $(seq 40); do
            [ "$(cat /srv/$fs/$name/file)" = $name ] || echo "$fs has lost $name"
        done
        [ $(df --output=size --block-size=1M /srv/$fs | tail -n 1) -gt 500 ] || echo "$fs is small"
        volume unmount $fs
    done
    echo checked.
    umount /mnt
"#;

fn machine() -> Machine {
    let larder = PathBuf::from(std::env::var_os("LARDER_BIN").unwrap());
    Machine::new()
        .memory(2048)
        .timeout(Duration::from_secs(600))
        .share(larder.parent().unwrap())
        .env("LARDER", &larder)
}

#[test]
fn a_volume_that_has_grown_and_was_written_to_survives_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("data", dir.path().join("disk"), FILES).unwrap().cache(Cache::Writeback);
    let mkfs = "mkfs.xfs -q -m reflink=1 /dev/larder/data";
    Machine::new().disk(&disk).run(["sh", "-ec", mkfs]).unwrap().checked().unwrap();
    let base = disk.copy_to(dir.path().join("base")).unwrap();
    let recorded = disk.recorded(dir.path().join("log"));
    let work = format!("set -- data\n{CONFIG}{WORK}");
    let running = machine().disk(&recorded).spawn(["bash", "-ec", &work]).unwrap();
    let written = running.wait_for("durable.", Duration::from_secs(300));
    let output = running.power_cut().unwrap();
    let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    assert!(written.is_ok(), "{said}{}", output.console);

    let log = recorded.write_log().unwrap();
    // Nothing that was not flushed, and parts of it.
    for (index, kept) in [None, Some(1), Some(2)].into_iter().enumerate() {
        let name = format!("state-{index}");
        let state = base.copy_to(dir.path().join(&name)).unwrap().renamed(&name).unwrap();
        log.crash_state(log.len(), kept).apply_to(&state).unwrap();
        let check = format!("set -- {name}\n{CONFIG}{CHECK}");
        let output = machine().disk(&state).run(["bash", "-ec", &check]).unwrap();
        let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
        assert!(said.lines().any(|line| line == "checked."), "{kept:?}: {said}{}", output.console);
        assert!(!said.contains("has lost") && !said.contains("is small"), "{kept:?}: {said}");
    }
}
