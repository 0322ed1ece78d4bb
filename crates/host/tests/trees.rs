//! Trees that are deeper than any path, and than descriptors that a process may have.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{command::Command, durable, held, quota};
use larder_model::{Bytes, FsType};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags},
};
use std::{fs, path::Path};
use support::Scratch;

/// Directories in directories, deeper than any path.
fn deep_tree(root: &Path, levels: usize) {
    fs::create_dir(root).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut deep: OwnedFd = rustix::fs::openat(CWD, root, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&deep, "d", Mode::RWXU).unwrap();
        deep = rustix::fs::openat(&deep, "d", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn a_deep_tree_is_removed_although_a_former_attempt_was_cut() {
    let scratch = Scratch::new();
    let root = scratch.dir("tree");
    // Whatever the order of the names is, one of the two is met before what was left.
    deep_tree(&root.join("a"), 200);
    for n in 0..3 {
        let left = root.join(format!(".larder-removing-{}-{n}", std::process::id()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "x").unwrap();
    }
    fs::write(root.join(format!(".larder-removing-{}-3", std::process::id())), "x").unwrap();
    deep_tree(&root.join("z"), 200);
    durable::remove_tree(&root).unwrap();
    assert!(!root.exists());
}

/// The other half of the next test, with few descriptors.
#[test]
fn the_process_with_few_descriptors() {
    let Some(root) = std::env::var_os("LARDER_TEST_TREE") else { return };
    let root = Path::new(&root);
    quota::set_project(root, 4711).unwrap();
    assert_eq!(held::held(root, None).unwrap().unwrap().inodes, 2001);
}

#[test]
fn a_tree_deeper_than_descriptors_allow_gets_its_project_and_is_measured() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Xfs, Bytes::mib(300));
    let root = target.join("tree");
    deep_tree(&root, 2000);
    let this = std::env::current_exe().unwrap();
    Command::new("/bin/sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" --exact the_process_with_few_descriptors"])
        .arg(this)
        .env("LARDER_TEST_TREE", &root)
        .run()
        .unwrap();
    // Also at its very end.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut deep: OwnedFd = rustix::fs::openat(CWD, &root, flags, Mode::empty()).unwrap();
    for _ in 0..2000 {
        deep = rustix::fs::openat(&deep, "d", flags, Mode::empty()).unwrap();
    }
    let end = format!("/proc/self/fd/{}/.", std::os::fd::AsRawFd::as_raw_fd(&deep));
    assert_eq!(quota::project_of(Path::new(&end)).unwrap(), Some(4711));
}

/// An automount point, as a directory of a server's export is that is another file system there.
#[test]
fn what_is_mounted_when_it_is_entered_is_never_entered() {
    let scratch = Scratch::new();
    let target = scratch.dir("debug");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("debugfs", &target, "debugfs", flags, None).unwrap();
    let point = target.join("tracing");
    // A look at it would mount it.
    let mut names = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.any(|name| name == "tracing"), "this kernel has no automount point to try");
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fault = durable::remove_tree(&point).unwrap_err();
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(fault.kind(), larder_model::Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains("is a mount point"), "{fault}");
    let within = |text: &str| text.matches(&*point.to_string_lossy()).count();
    assert_eq!((within(&before), within(&after)), (0, 0), "it was mounted");
}
