//! Freezing real file systems.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    BindRequest, HelperProgram, LoopRequest, command::Command, fake::FakeKernel, freeze::Freezer,
    image, lock::FileLock,
};
use larder_model::{Bytes, FsType, Kind};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};
use support::{Scratch, mkfs, request};

const LONG: Duration = Duration::from_secs(60);

fn helper() -> HelperProgram {
    HelperProgram(vec![env!("CARGO_BIN_EXE_larder-host-test-helper").into()])
}

fn freezer(scratch: &Scratch) -> Freezer {
    Freezer::new(scratch.dir("records"), helper(), vec![])
}

fn records(scratch: &Scratch) -> usize {
    fs::read_dir(scratch.dir("records")).unwrap().count()
}

/// Starts a write; the receiver gets a message when it is through.
fn write_in_background(dir: &Path) -> mpsc::Receiver<()> {
    let (done, waiting) = mpsc::channel();
    let path = dir.join("written");
    std::thread::spawn(move || {
        fs::File::create(path).unwrap().write_all(b"x").unwrap();
        let _ = done.send(());
    });
    waiting
}

/// Whatever a failing test leaves frozen would block the removal of its mounts.
struct ThawAtEnd<'a>(&'a Path);
impl Drop for ThawAtEnd<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).run_any();
    }
}

#[test]
fn writers_wait_while_frozen_and_go_on_after_the_thaw() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, target) = scratch.mounted("m", fs_type, Bytes::mib(512));
        let _thaw = ThawAtEnd(&target);
        let freezer = freezer(&scratch);
        let frozen = freezer.freeze(&[target.clone(), target.clone()], LONG).unwrap();
        assert_eq!(records(&scratch), 1);
        let writer = write_in_background(&target);
        assert!(
            writer.recv_timeout(Duration::from_millis(200)).is_err(),
            "{fs_type} is not frozen"
        );
        frozen.thaw().unwrap();
        writer.recv_timeout(LONG).unwrap();
        assert_eq!(records(&scratch), 0);
    }
}

#[test]
fn dropping_thaws() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    drop(freezer(&scratch).freeze(std::slice::from_ref(&target), LONG).unwrap());
    write_in_background(&target).recv_timeout(LONG).unwrap();
    assert_eq!(records(&scratch), 0);
}

#[test]
fn at_the_deadline_the_watchdog_thaws_and_the_copy_is_called_torn() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    // On a slow disk the freeze itself takes a part of it.
    let deadline = Duration::from_secs(5);
    let frozen = freezer(&scratch).freeze(std::slice::from_ref(&target), deadline).unwrap();
    let start = Instant::now();
    write_in_background(&target).recv_timeout(LONG).unwrap();
    assert!(start.elapsed() < Duration::from_secs(50));
    assert_eq!(frozen.thaw().unwrap_err().kind(), Kind::Deadline);
    assert_eq!(records(&scratch), 0);
}

#[test]
fn a_freeze_of_somebody_else_is_refused_and_stays_theirs() {
    let scratch = Scratch::new();
    let (_, first) = scratch.mounted("a", FsType::Ext4, Bytes::mib(64));
    let (_, second) = scratch.mounted("b", FsType::Ext4, Bytes::mib(64));
    let _thaw = (ThawAtEnd(&first), ThawAtEnd(&second));
    Command::new("fsfreeze").arg("--freeze").arg(&second).run().unwrap();
    let fault = freezer(&scratch).freeze(&[first.clone(), second.clone()], LONG).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains(second.to_str().unwrap()), "{fault}");
    assert_eq!(records(&scratch), 0);
    // The one that we had frozen is thawed again; theirs is not.
    write_in_background(&first).recv_timeout(LONG).unwrap();
    let writer = write_in_background(&second);
    assert!(writer.recv_timeout(Duration::from_millis(200)).is_err());
    Command::new("fsfreeze").arg("--unfreeze").arg(&second).run().unwrap();
    writer.recv_timeout(LONG).unwrap();
}

#[test]
fn a_watchdog_that_is_killed_while_it_freezes_leaves_nothing_frozen() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    // As if killed after the kernel had frozen, and before it could say so.
    let script = format!(
        "echo ready; read word; echo flushed; read word; fsfreeze --freeze '{}'; kill -KILL $$",
        target.display()
    );
    let killed = HelperProgram(vec!["/bin/sh".into(), "-c".into(), script.into()]);
    let freezer = Freezer::new(scratch.dir("records"), killed, vec![]);
    let fault = freezer.freeze(std::slice::from_ref(&target), LONG).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    write_in_background(&target).recv_timeout(LONG).unwrap();
    assert_eq!(records(&scratch), 0);
}

#[test]
fn the_folder_of_records_may_be_wiped_at_any_time() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    let freezer = freezer(&scratch);
    fs::remove_dir(scratch.dir("records")).unwrap();
    freezer.freeze(std::slice::from_ref(&target), LONG).unwrap().thaw().unwrap();
    assert_eq!(records(&scratch), 0);
}

#[test]
fn what_protected_paths_depend_on_is_never_frozen() {
    let scratch = Scratch::new();
    let (_, pool) = scratch.mounted("pool", FsType::Btrfs, Bytes::mib(512));
    // A file system on an image in the pool: state on it depends on the pool.
    let image = pool.join("inner.img");
    image::create_sparse(&image, Bytes::mib(64)).unwrap();
    let device =
        scratch.host.loops.attach(&LoopRequest { autoclear: true, ..request(&image) }).unwrap();
    mkfs(&device.path, FsType::Ext4);
    let inner = scratch.dir("inner");
    scratch.mount(&device.path, FsType::Ext4, &inner, &[]);
    drop(device);
    let refuses = |protected: &[&PathBuf], what: &PathBuf| {
        let protected = protected.iter().map(|p| (*p).clone()).collect();
        let freezer = Freezer::new(scratch.dir("records"), helper(), protected);
        let fault = freezer.freeze(std::slice::from_ref(what), LONG).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert_eq!(records(&scratch), 0);
    };
    refuses(&[&pool], &pool);
    refuses(&[&inner], &inner);
    refuses(&[&inner], &pool);
    refuses(&[], &scratch.path());
    // The other way round it may be: nothing in the pool depends on the inner one.
    let freezer = Freezer::new(scratch.dir("records"), helper(), vec![pool.clone()]);
    let _thaw = ThawAtEnd(&inner);
    freezer.freeze(std::slice::from_ref(&inner), LONG).unwrap().thaw().unwrap();
    // The records themselves are protected too.
    let records_inside = Freezer::new(&inner, helper(), vec![]);
    let fault = records_inside.freeze(std::slice::from_ref(&inner), LONG).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert_eq!(
        fs::read_dir(&inner)
            .unwrap()
            .filter(|e| { e.as_ref().unwrap().file_name() != "lost+found" })
            .count(),
        0
    );
}

#[test]
fn what_cannot_freeze_or_is_not_there_is_refused() {
    let scratch = Scratch::new();
    let tmpfs = scratch.dir("t");
    let mount = larder_host::MountRequest {
        fs_type: "tmpfs".into(),
        source: "none".into(),
        target: tmpfs.clone(),
        ..Default::default()
    };
    scratch.host.mounts.mount(&mount).unwrap();
    let freezer = freezer(&scratch);
    let kind = |paths: &[PathBuf]| freezer.freeze(paths, LONG).unwrap_err().kind();
    assert_eq!(kind(&[tmpfs]), Kind::Precondition);
    assert_eq!(kind(&[scratch.path().join("absent")]), Kind::NotFound);
    assert_eq!(kind(&[]), Kind::Invalid);
    assert_eq!(records(&scratch), 0);
}

#[test]
fn a_watchdog_that_cannot_be_started_freezes_nothing() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    for program in ["/no/such/program", "/bin/true"] {
        let freezer =
            Freezer::new(scratch.dir("records"), HelperProgram(vec![program.into()]), vec![]);
        freezer.freeze(std::slice::from_ref(&target), LONG).unwrap_err();
        write_in_background(&target).recv_timeout(LONG).unwrap();
        assert_eq!(records(&scratch), 0);
    }
}

/// This test binary again, as a process that freezes and is then killed.
fn freeze_in_a_process(scratch: &Scratch, target: &Path) -> std::process::Child {
    #[allow(clippy::disallowed_methods, reason = "it must be killed at a moment of our choosing")]
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env("LARDER_TEST_FREEZE", target)
        .env("LARDER_TEST_RECORDS", scratch.dir("records"))
        .env("LARDER_TEST_READY", scratch.path().join("ready"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + LONG;
    while !scratch.path().join("ready").exists() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "it did not freeze");
        std::thread::yield_now();
    }
    child
}

#[test]
fn the_process_that_is_killed() {
    // Does its work only when another test starts it in a process of its own.
    let Some(target) = std::env::var_os("LARDER_TEST_FREEZE") else { return };
    let records = PathBuf::from(std::env::var_os("LARDER_TEST_RECORDS").unwrap());
    let frozen = Freezer::new(records, helper(), vec![]).freeze(&[target.into()], LONG).unwrap();
    fs::write(std::env::var_os("LARDER_TEST_READY").unwrap(), "").unwrap();
    let (_never, wait) = mpsc::channel::<()>();
    let _ = wait.recv_timeout(Duration::from_secs(120));
    drop(frozen);
}

/// Process ids of watchdogs whose record is in this test's folder.
fn watchdogs(scratch: &Scratch) -> Vec<u32> {
    let records = scratch.dir("records");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok());
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("\0thaw\0") && line.contains(records.to_str().unwrap()) {
            found.extend(pid);
        }
    }
    found
}

fn kill(pid: u32) {
    Command::new("kill").args(["-KILL", &pid.to_string()]).run().unwrap();
}

#[test]
fn when_the_freezing_process_is_killed_the_watchdog_thaws_at_once() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Xfs, Bytes::mib(512));
    let _thaw = ThawAtEnd(&target);
    let mut child = freeze_in_a_process(&scratch, &target);
    let writer = write_in_background(&target);
    assert!(writer.recv_timeout(Duration::from_millis(200)).is_err());
    // What a service manager sends to all processes of a service does not end the watchdog.
    for watchdog in watchdogs(&scratch) {
        Command::new("kill").args(["-TERM", &watchdog.to_string()]).run().unwrap();
    }
    assert!(writer.recv_timeout(Duration::from_millis(200)).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    writer.recv_timeout(LONG).unwrap();
    assert!(killed.elapsed() < Duration::from_secs(10), "that was the deadline, not our death");
    assert!(freezer(&scratch).recover().unwrap().len() <= 1);
    assert_eq!(records(&scratch), 0);
}

#[test]
fn when_both_are_killed_the_next_start_thaws() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    let mut child = freeze_in_a_process(&scratch, &target);
    let watchdogs = watchdogs(&scratch);
    assert_eq!(watchdogs.len(), 1);
    kill(watchdogs[0]);
    child.kill().unwrap();
    child.wait().unwrap();
    let writer = write_in_background(&target);
    assert!(writer.recv_timeout(Duration::from_millis(300)).is_err());
    assert_eq!(freezer(&scratch).recover().unwrap(), vec![target.clone()]);
    writer.recv_timeout(LONG).unwrap();
    assert_eq!(records(&scratch), 0);
    assert_eq!(freezer(&scratch).recover().unwrap(), Vec::<PathBuf>::new());
}

/// Leaves `target` frozen, with a record and nobody who would thaw it.
fn leave_frozen(scratch: &Scratch, target: &Path) {
    let _ = fs::remove_file(scratch.path().join("ready"));
    let mut child = freeze_in_a_process(scratch, target);
    let watchdogs = watchdogs(scratch);
    assert_eq!(watchdogs.len(), 1);
    kill(watchdogs[0]);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn hide(scratch: &Scratch, target: &Path) {
    // Mounts are never stacked by the host crate itself.
    let mount = ["-t", "tmpfs", "none", target.to_str().unwrap()];
    Command::new("mount").args(mount).run().unwrap();
    assert!(scratch.host.mounts.mounts_at(target).unwrap().len() == 2);
}

#[test]
fn what_is_hidden_where_it_was_frozen_is_thawed_through_another_mount() {
    for fs_type in [FsType::Ext4, FsType::Btrfs] {
        let scratch = Scratch::new();
        let (_, target) = scratch.mounted("m", fs_type, Bytes::mib(256));
        let other = scratch.dir("other");
        let (source, place) = (target.clone(), other.clone());
        let bind = BindRequest { source, target: place, ..BindRequest::default() };
        scratch.host.mounts.bind(&bind).unwrap();
        let _thaw = ThawAtEnd(&other);
        leave_frozen(&scratch, &target);
        hide(&scratch, &target);
        let writer = write_in_background(&other);
        assert!(writer.recv_timeout(Duration::from_millis(300)).is_err());
        assert_eq!(freezer(&scratch).recover().unwrap().len(), 1, "{fs_type}");
        writer.recv_timeout(LONG).unwrap();
        assert_eq!(records(&scratch), 0);
    }
}

#[test]
fn the_record_of_what_cannot_be_reached_stays_until_it_can() {
    let scratch = Scratch::new();
    let (device, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    leave_frozen(&scratch, &target);
    hide(&scratch, &target);
    // Another test's mount namespace may hold a copy of the mount: then it is thawed through that.
    let thawed = freezer(&scratch).recover().unwrap();
    assert_eq!(records(&scratch), usize::from(thawed.is_empty()));
    scratch.unmount(&target);
    let again = freezer(&scratch).recover().unwrap();
    assert_eq!(thawed.len() + again.len(), 1, "it was thawed once");
    assert_eq!(records(&scratch), 0);
    write_in_background(&target).recv_timeout(LONG).unwrap();

    // Unmounted while it was frozen: the kernel keeps it, and its device.
    leave_frozen(&scratch, &target);
    scratch.host.mounts.unmount(&target, larder_host::Unmount::Lazy).unwrap();
    let thawed = freezer(&scratch).recover().unwrap();
    assert_eq!(records(&scratch), usize::from(thawed.is_empty()));
    scratch.mount(&device, FsType::Ext4, &target, &[]);
    freezer(&scratch).recover().unwrap();
    assert_eq!(records(&scratch), 0);
    write_in_background(&target).recv_timeout(LONG).unwrap();

    // What is really gone leaves no record.
    leave_frozen(&scratch, &target);
    Command::new("fsfreeze").arg("--unfreeze").arg(&target).run().unwrap();
    scratch.unmount(&target);
    freezer(&scratch).recover().unwrap();
    assert_eq!(records(&scratch), 0);
}

#[test]
fn a_record_stays_locked_until_a_start_is_done_with_it() {
    let scratch = Scratch::new();
    let dead = scratch.dir("dead");
    let server = scratch.mount_dead(&dead);
    let record = format!(
        r#"{{"version":1,"boot":"{}","pid":1,"until":0,
            "mounts":[{{"target":"{}","major":7,"minor":99999}}]}}"#,
        larder_host::boot_id(),
        dead.join("mount").display()
    );
    let path = scratch.dir("records").join("1-1-0.freeze.json");
    fs::write(&path, record).unwrap();
    let recovering = freezer(&scratch);
    let start = std::thread::spawn(move || recovering.recover());
    // It stands still on its way to the mount.
    let (_never, wait) = mpsc::channel::<()>();
    let _ = wait.recv_timeout(Duration::from_secs(1));
    assert!(!start.is_finished());
    for _ in 0..20 {
        assert!(FileLock::try_exclusive(&path).unwrap().is_none(), "a watchdog could freeze now");
    }
    drop(server);
    assert_eq!(start.join().unwrap().unwrap(), Vec::<PathBuf>::new());
    assert_eq!(records(&scratch), 0);
}

#[test]
fn when_only_the_watchdog_is_killed_we_thaw_ourselves() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let _thaw = ThawAtEnd(&target);
    let frozen = freezer(&scratch).freeze(std::slice::from_ref(&target), LONG).unwrap();
    kill(watchdogs(&scratch)[0]);
    frozen.thaw().unwrap();
    write_in_background(&target).recv_timeout(LONG).unwrap();
    assert_eq!(records(&scratch), 0);
}

#[test]
fn records_of_a_former_boot_are_void_and_damaged_ones_are_told() {
    let scratch = Scratch::new();
    let dir = scratch.dir("records");
    let old = r#"{"version":1,"boot":"another","pid":1,"until":0,
        "mounts":[{"target":"/","major":1,"minor":1}]}"#;
    fs::write(dir.join("1-1-0.freeze.json"), old).unwrap();
    assert_eq!(freezer(&scratch).recover().unwrap(), Vec::<PathBuf>::new());
    assert_eq!(records(&scratch), 0);
    fs::write(dir.join("1-1-0.freeze.json"), "{").unwrap();
    assert_eq!(freezer(&scratch).recover().unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(records(&scratch), 1, "what it stood for may be frozen: it stays");
}

#[test]
fn a_fake_kernel_freezes_all_or_none() {
    let kernel = FakeKernel::new();
    let freezer = Freezer::fake(&kernel);
    let (a, b) = (PathBuf::from("/a"), PathBuf::from("/b"));
    let frozen = freezer.freeze(&[a.clone(), b.clone()], LONG).unwrap();
    assert_eq!(kernel.frozen(), [a.clone(), b.clone()]);
    assert_eq!(
        freezer.freeze(std::slice::from_ref(&b), LONG).unwrap_err().kind(),
        Kind::Precondition
    );
    frozen.thaw().unwrap();
    kernel.fail_next("freeze", rustix::io::Errno::IO);
    freezer.freeze(&[a, b], LONG).unwrap_err();
    assert_eq!(kernel.frozen(), Vec::<PathBuf>::new());
}

#[test]
fn records_that_were_cut_while_they_were_written_go_and_those_that_are_being_written_stay() {
    let scratch = Scratch::new();
    let records = scratch.dir("records");
    let cut = |writer: u32| records.join(format!(".1-2-3.freeze.json.tmp-{writer}-0-1a"));
    // Beyond what the kernel gives; the first process; ours, as a container's always is.
    let (gone, lives, before) = (cut(u32::MAX), cut(1), cut(std::process::id()));
    let other = records.join(".not-ours.tmp");
    for path in [&gone, &lives, &before, &other] {
        fs::write(path, "{").unwrap();
    }
    assert_eq!(freezer(&scratch).recover().unwrap(), Vec::<PathBuf>::new());
    assert!(!gone.exists() && !before.exists());
    assert!(lives.exists() && other.exists());
}
