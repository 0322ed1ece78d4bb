//! File systems that do not answer, for real: FUSE mounts whose server is silent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    FileSystems, HelperProgram, Mounts, Unmount,
    command::Command,
    filesystems::{RealFileSystems, errors},
    freeze::Freezer,
    mounts::RealMounts,
};
use larder_model::{Bytes, FsType, Kind};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};
use support::Scratch;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(2);

fn helper() -> HelperProgram {
    HelperProgram(vec![env!("CARGO_BIN_EXE_larder-host-test-helper").into()])
}

/// The work ends in time, and does not leave its thread behind.
#[track_caller]
fn timely<T: Send + 'static>(most: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(most).unwrap()
}

/// Shakes hands, and then takes every question without ever answering: those who ask cannot even be
/// killed, as with a hard mount. They are let go when the last descriptor is closed.
fn take_questions(server: &File) {
    shake_hands(server);
    let (mut server, mut buffer) = (server.try_clone().unwrap(), vec![0; 1 << 20]);
    std::thread::spawn(move || while server.read(&mut buffer).is_ok() {});
}

fn shake_hands(mut server: &File) {
    let mut buffer = vec![0; 1 << 20];
    let read = server.read(&mut buffer).unwrap();
    assert!(read >= 40 && buffer[4] == 26, "that is no FUSE_INIT");
    // struct fuse_out_header and fuse_init_out: version 7.31, the smallest writes.
    let mut answer = vec![0; 16 + 64];
    answer[0] = 80;
    answer[8..16].copy_from_slice(&buffer[8..16]);
    answer[16] = 7;
    answer[20] = 31;
    answer[16 + 20..16 + 24].copy_from_slice(&4096_u32.to_le_bytes());
    assert_eq!(server.write(&answer).unwrap(), 80);
}

/// Helpers that ask for `path` just now.
fn helpers(path: &Path) -> usize {
    helpers_of(&format!("\0alive\0{}\0", path.display()))
}

/// Processes with these words in their command line.
fn helpers_of(words: &str) -> usize {
    let mut count = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        count += usize::from(line.contains(words));
    }
    count
}

#[test]
fn local_file_systems_answer_and_are_not_asked() {
    let scratch = Scratch::new();
    let broken = RealFileSystems::new(HelperProgram(vec!["/bin/false".into()]));
    broken.answers(&scratch.path()).unwrap();
    broken.answers(&scratch.path().join("absent/deep")).unwrap();
    assert!(broken.last_answer(&scratch.path()).is_none());
}

#[test]
fn a_mount_that_comes_over_a_local_directory_is_noticed_at_once() {
    let scratch = Scratch::new();
    let target = scratch.dir("late");
    let ask = || {
        let path = target.clone();
        move || RealFileSystems::new(helper()).answers(&path)
    };
    timely(SHORT, ask()).unwrap();
    let _server = scratch.mount_dead(&target);
    timely(LONG, ask()).unwrap_err();
}

#[test]
fn a_foreign_file_system_that_answers_is_used() {
    let scratch = Scratch::new();
    let target = scratch.dir("queue");
    // None of the kinds that are taken for local.
    let mount = larder_host::MountRequest {
        fs_type: "mqueue".into(),
        source: "none".into(),
        target: target.clone(),
        ..Default::default()
    };
    scratch.host.mounts.mount(&mount).unwrap();
    let filesystems = RealFileSystems::new(helper());
    assert!(filesystems.last_answer(&target).unwrap().is_ok(), "nothing is known yet");
    filesystems.answers(&target).unwrap();
    filesystems.answers(&target.join("absent")).unwrap();
    assert!(filesystems.last_answer(&target).unwrap().is_ok());
    // Without a helper nothing is proven.
    let broken = RealFileSystems::new(HelperProgram(vec!["/no/such/program".into()]));
    let fault = broken.answers(&target.join("other")).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
}

#[test]
fn a_silent_file_system_is_found_out_once_and_used_again_when_it_answers() {
    let scratch = Scratch::new();
    let target = scratch.dir("net");
    let server = scratch.mount_dead(&target);
    let ask = |path: &Path| {
        let path = path.join("pool");
        move || RealFileSystems::new(helper()).answers(&path)
    };
    let fault = timely(LONG, ask(&target)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    // Known from now on.
    for _ in 0..20 {
        let fault = timely(SHORT, ask(&target)).unwrap_err();
        assert!(fault.to_string().contains("since 20"), "{fault}");
    }
    let known = RealFileSystems::new(helper()).last_answer(&target.join("pool"));
    assert_eq!(known.unwrap().unwrap_err().kind(), Kind::Unavailable);
    // A dead daemon answers with an error, and an error is an answer.
    drop(server);
    let end = Instant::now() + LONG;
    while timely(SHORT, ask(&target)).is_err() {
        assert!(Instant::now() < end, "it is never asked again");
    }
}

#[test]
fn a_helper_that_cannot_be_killed_is_the_only_one() {
    let scratch = Scratch::new();
    let target = scratch.dir("hard");
    let server = scratch.mount_dead(&target);
    take_questions(&server);
    let ask = || {
        let path = target.clone();
        move || RealFileSystems::new(helper()).answers(&path)
    };
    timely(LONG, ask()).unwrap_err();
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let fault = timely(SHORT, ask()).unwrap_err();
        assert_eq!(fault.kind(), Kind::Unavailable);
        assert_eq!(helpers(&target), 1, "one hangs, and nobody asks again");
    }
    // Ends the connection, also where the mount itself is still busy.
    let _ = Command::new("umount").arg("--force").arg(&target).run_any();
    drop(server);
    let end = Instant::now() + LONG;
    while timely(SHORT, ask()).is_err() {
        assert!(Instant::now() < end, "it is never asked again");
    }
    assert_eq!(helpers(&target), 0);
}

#[test]
fn what_never_ends_is_detached_in_time_by_a_helper_that_is_not_killed() {
    let scratch = Scratch::new();
    let (_, device) = scratch.device("disk", Bytes::mib(16));
    let target = scratch.dir("net");
    let server = scratch.mount_endless(&device, &target);
    shake_hands(&server);
    let path = target.clone();
    let detach = move || RealMounts::with_helper(helper()).unmount(&path, Unmount::Lazy);
    timely(LONG, detach.clone()).unwrap();
    assert!(!RealMounts::new().is_mount_point(&target).unwrap());
    let of_it = format!("\0{}\0", target.display());
    assert_eq!(helpers_of(&of_it), 1, "it ends the file system when that can be ended");
    timely(SHORT, detach.clone()).unwrap();
    // What comes to that place meanwhile is another one, and the helper's no more.
    let second = scratch.mount_dead(&target);
    assert_eq!(helpers_of(&of_it), 1);
    drop(server);
    let end = Instant::now() + LONG;
    while helpers_of(&of_it) > 0 {
        assert!(Instant::now() < end, "the helper does not end");
        larder_host::command::stuck(); // Reaps it.
    }
    assert!(RealMounts::new().is_mount_point(&target).unwrap());
    timely(LONG, detach).unwrap();
    drop(second);
}

#[test]
fn pools_that_are_absent_or_dead_do_not_keep_others_from_being_frozen() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let dead = scratch.dir("dead");
    let _server = scratch.mount_dead(&dead);
    let never = vec![scratch.path().join("no/such/pool"), dead.join("pool"), dead];
    let freezer = Freezer::new(scratch.dir("records"), helper(), never);
    let freeze = target.clone();
    timely(LONG, move || freezer.freeze(&[freeze], LONG).unwrap().thaw().unwrap());
    // One that is absent would lie where the way to it ends.
    let freezer = Freezer::new(scratch.dir("records"), helper(), vec![target.join("no/such/pool")]);
    let fault = freezer.freeze(&[target], LONG).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
}

#[test]
fn whether_a_file_system_has_shut_down_is_seen_without_asking_its_device() {
    let scratch = Scratch::new();
    let target = scratch.dir("stalled");
    let _server = scratch.mount_dead(&target);
    assert!(!timely(SHORT, move || errors::is_shut_down(&target)));
}
