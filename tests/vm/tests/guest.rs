//! Test targets with the feature `in-vm` find in the machine what they count on.

#![allow(clippy::disallowed_methods, reason = "a test that runs shell commands")]

use std::{fs, process::Command};

/// Fails on the host, and so proves that the suite really runs in a machine.
#[test]
fn this_test_runs_in_a_machine() {
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), "vm\n");
}

#[test]
fn temporary_files_are_on_a_disk_with_direct_io() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let dd = format!("dd if=/dev/zero of={} bs=4096 count=1 oflag=direct", file.display());
    assert!(Command::new("sh").args(["-c", &dd]).status().unwrap().success());
}

#[test]
fn root_may_resize_a_mounted_ext4_which_takes_a_capability_that_containers_lack() {
    let dir = tempfile::tempdir().unwrap();
    let script = "
        truncate -s 64M image
        mkfs.ext4 -q image
        mkdir mnt
        loop=$(losetup -f --show image)
        mount $loop mnt
        truncate -s 128M image
        losetup -c $loop
        resize2fs $loop
        umount mnt
        losetup -d $loop";
    let sh = Command::new("sh").args(["-exc", script]).current_dir(dir.path()).output().unwrap();
    assert!(sh.status.success(), "{}", String::from_utf8_lossy(&sh.stderr));
}

#[test]
fn the_version_2_cgroup_controllers_are_on() {
    let text = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap();
    for controller in ["cpu", "io", "memory", "pids"] {
        assert!(text.split_whitespace().any(|word| word == controller), "{controller}: {text}");
    }
}
