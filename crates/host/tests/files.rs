//! Records, locks, images and commands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    blocking, boot_id,
    command::{self, Command},
    durable, image,
    lock::{self, FileLock, Holder},
};
use larder_model::{Bytes, Fault, FsType, Kind};
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};
use support::Scratch;

fn tempdir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

#[test]
fn a_record_is_replaced_whole_and_read_back() {
    let (_dir, dir) = tempdir();
    let path = dir.join("record");
    assert_eq!(durable::read_json::<Vec<u32>>(&path).unwrap(), None);
    durable::write_json(&path, &vec![1, 2]).unwrap();
    durable::write_json(&path, &vec![3]).unwrap();
    assert_eq!(durable::read_json::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, "{").unwrap();
    let damaged = durable::read_json::<Vec<u32>>(&path).unwrap_err();
    assert_eq!(damaged.kind(), Kind::Corrupt);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file is left");
    durable::remove_file(&path).unwrap();
    durable::remove_file(&path).unwrap();
    // The longest possible name.
    durable::write(&dir.join("n".repeat(255)), b"x").unwrap();
}

#[test]
fn a_record_that_cannot_be_written_leaves_the_old_one() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(8));
    let path = target.join("record");
    durable::write(&path, b"old").unwrap();
    let full = durable::write(&path, &vec![1; 20 << 20]).unwrap_err();
    assert_eq!(full.kind(), Kind::Exhausted);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 2, "record and lost+found");
    scratch.host.mounts.remount(&target, true, &[]).unwrap();
    assert_eq!(durable::write(&path, b"new").unwrap_err().kind(), Kind::Precondition);
    let absent = durable::write(&target.join("no/record"), b"x").unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
}

#[test]
fn a_process_killed_while_it_writes_records_leaves_whole_ones() {
    let (_dir, dir) = tempdir();
    if let Some(path) = std::env::var_os("LARDER_TEST_RECORD") {
        for n in 0_u64.. {
            durable::write_json(&PathBuf::from(&path), &vec![n; 20_000]).unwrap();
        }
    }
    let path = dir.join("record");
    for round in 0..5 {
        #[allow(clippy::disallowed_methods, reason = "it must be killed at any moment")]
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_killed_while_it_writes_records_leaves_whole_ones"])
            .env("LARDER_TEST_RECORD", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !path.exists() && Instant::now() < end {
            std::thread::yield_now();
        }
        let wait = Instant::now() + Duration::from_millis(37 * (round + 1));
        while Instant::now() < wait {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let record = durable::read_json::<Vec<u64>>(&path).unwrap().unwrap();
        assert!(record.len() == 20_000 && record.iter().all(|n| *n == record[0]));
    }
    durable::sweep_temporary(&dir).unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}

#[test]
fn renames_replace_or_refuse_as_told() {
    let (_dir, dir) = tempdir();
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    assert_eq!(durable::rename_new(&a, &b).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(fs::read(&b).unwrap(), b"b");
    durable::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"a");
    assert_eq!(durable::rename(&a, &b).unwrap_err().kind(), Kind::NotFound);
    durable::rename_new(&b, &a).unwrap();
    let other = durable::rename(&a, std::path::Path::new("/dev/shm/larder-no")).unwrap_err();
    assert_eq!(other.kind(), Kind::Precondition);
    durable::create_dir(&dir.join("d"), 0o2775).unwrap();
    assert_eq!(fs::metadata(dir.join("d")).unwrap().mode() & 0o7777, 0o2775);
    durable::create_dir(&dir.join("d"), 0o700).unwrap();
    assert_eq!(durable::create_dir(&a, 0o700).unwrap_err().kind(), Kind::Precondition);
}

#[test]
fn a_lock_is_held_by_one_and_tells_by_whom() {
    let (_dir, dir) = tempdir();
    let path = dir.join("lock");
    let held = FileLock::try_exclusive(&path).unwrap().unwrap();
    let me = Holder {
        pid: std::process::id(),
        endpoint: Some("unix:///x".into()),
        what: "t".into(),
        mount_namespace: None,
    };
    held.announce(&me).unwrap();
    assert_eq!(lock::holder(&path), Some(me));
    assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    assert!(FileLock::try_shared(&path).unwrap().is_none());
    let deadline = Instant::now() + Duration::from_millis(50);
    let fault = FileLock::exclusive_wait(&path, deadline).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable);
    assert!(fault.to_string().contains(&std::process::id().to_string()), "{fault}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            FileLock::exclusive_wait(&path, Instant::now() + Duration::from_secs(60)).map(drop)
        });
        drop(held);
        waiting.join().unwrap().unwrap();
    });
    let shared = FileLock::try_shared(&path).unwrap().unwrap();
    let also = FileLock::try_shared(&path).unwrap().unwrap();
    assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    drop((shared, also));
    assert!(FileLock::try_exclusive(&path).unwrap().is_some());
}

#[test]
fn a_lock_is_free_once_its_holder_is_killed_and_a_replaced_lock_file_fools_nobody() {
    let (_dir, dir) = tempdir();
    let path = dir.join("lock");
    let script = format!("exec 9>'{0}'; flock 9; touch '{0}.held'; sleep 60", path.display());
    let holder = std::thread::spawn(move || {
        Command::new("sh").args(["-c", &script]).deadline(Duration::from_secs(6)).run_any()
    });
    while !dir.join("lock.held").exists() {
        std::thread::yield_now();
    }
    assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    // Killed at its deadline; the lock goes with it.
    assert_eq!(holder.join().unwrap().unwrap_err().kind(), Kind::Deadline);
    let deadline = Instant::now() + Duration::from_secs(60);
    let held = FileLock::exclusive_wait(&path, deadline).unwrap();
    fs::remove_file(&path).unwrap();
    let other = FileLock::try_exclusive(&path).unwrap().unwrap();
    assert!(FileLock::try_exclusive(&path).unwrap().is_none(), "the new file is locked");
    drop((held, other));
}

#[test]
fn images_grow_never_shrink_and_leave_nothing_when_they_do_not_fit() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let sparse = target.join("sparse");
    image::create_sparse(&sparse, Bytes::gib(100)).unwrap();
    assert_eq!(image::allocated(&sparse).unwrap(), Bytes::ZERO);
    assert_eq!(image::create_sparse(&sparse, Bytes::mib(1)).unwrap_err().kind(), Kind::Conflict);
    assert_eq!(image::grow(&sparse, Bytes::gib(1)).unwrap(), Bytes::gib(100));
    assert_eq!(image::grow(&sparse, Bytes::gib(200)).unwrap(), Bytes::gib(200));
    let huge = image::create_sparse(&target.join("huge"), Bytes::MAX).unwrap_err();
    assert_eq!(huge.kind(), Kind::OutOfRange);
    let full = target.join("full");
    image::preallocate(&full, Bytes::mib(16)).unwrap();
    assert!(image::allocated(&full).unwrap() >= Bytes::mib(16));
    assert_eq!(fs::read(&full).unwrap(), vec![0; 16 << 20]);
    let fault = image::preallocate(&target.join("more"), Bytes::mib(200)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    let fault = image::grow_preallocated(&full, Bytes::mib(200)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    assert_eq!(fs::metadata(&full).unwrap().len(), 16 << 20, "its size is what it was");
    image::grow_preallocated(&full, Bytes::mib(20)).unwrap();
    assert!(image::allocated(&full).unwrap() >= Bytes::mib(20));
    let mut names: Vec<_> =
        fs::read_dir(&target).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["full", "lost+found", "sparse"]);
    assert_eq!(image::grow(&target.join("no"), Bytes::mib(1)).unwrap_err().kind(), Kind::NotFound);
    std::os::unix::fs::symlink(&sparse, target.join("link")).unwrap();
    image::grow(&target.join("link"), Bytes::gib(300)).unwrap_err();
}

#[test]
fn a_command_gets_no_shell_no_environment_and_its_words_come_back() {
    let output = Command::new("printf").args(["%s\n", "a b; $HOME", "-x"]).run().unwrap();
    assert_eq!(output.text(), "a b; $HOME\n-x");
    let environment = Command::new("env").env("EXTRA", "1").run().unwrap().text();
    let mut names: Vec<_> = environment.lines().filter_map(|l| l.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["EXTRA", "LC_ALL", "PATH"]);
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let echoed = Command::new("cat").stdin(big.clone()).run().unwrap();
    assert!(echoed.stdout == big, "both pipes are served at once");
    // A program that does not read its input is no trouble.
    Command::new("true").stdin(big).run().unwrap();
}

#[test]
fn a_failed_command_tells_its_arguments_code_and_last_words_but_no_secret() {
    let fault = Command::new("sh")
        .args(["-c", "echo first >&2; echo \"last $1\" >&2; exit 7", "sh", "word"])
        .secret_arg("hunter2")
        .env("PASSWORD", "hunter3")
        .stdin("hunter4")
        .run()
        .unwrap_err();
    let text = fault.to_string();
    assert!(text.contains("exit code 7") && text.contains("last word"), "{text}");
    assert!(text.contains("***") && !text.contains("hunter"), "{text}");
    let debug = format!("{:?}", Command::new("x").secret_arg("hunter2").env("P", "hunter3"));
    assert!(!debug.contains("hunter"), "{debug}");
    let output = Command::new("sh").args(["-c", "exit 3"]).run_any().unwrap();
    assert_eq!(output.code(), Some(3));
    let killed = Command::new("sh").args(["-c", "kill -9 $$"]).run_any().unwrap_err();
    assert!(killed.to_string().contains("signal 9"), "{killed}");
}

#[test]
fn a_missing_program_names_its_package() {
    let fault = Command::new("no-such-program").run().unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert_eq!(command::package_of("mkfs.xfs"), Some("xfsprogs"));
    assert!(command::find("sh").unwrap().is_absolute());
}

#[test]
fn at_the_deadline_the_whole_group_is_killed() {
    let (_dir, dir) = tempdir();
    let script = format!("sleep 61 & echo $! > '{0}/pid'; wait", dir.display());
    let start = Instant::now();
    let fault = Command::new("sh")
        .args(["-c", &script])
        .deadline(Duration::from_millis(500))
        .run()
        .unwrap_err();
    assert_eq!(fault.kind(), Kind::Deadline);
    assert!(start.elapsed() < Duration::from_secs(40));
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let end = Instant::now() + Duration::from_secs(60);
    let alive = || fs::read_to_string(&stat).is_ok_and(|s| !s.contains(") Z"));
    while alive() {
        assert!(Instant::now() < end, "the grandchild lives on");
        std::thread::yield_now();
    }
    // One that leaves a child behind which keeps the pipes open does not hold us up.
    let start = Instant::now();
    Command::new("sh").args(["-c", "sleep 30 & exit 0"]).run().unwrap();
    assert!(start.elapsed() < Duration::from_secs(25));
}

#[test]
fn a_command_dies_with_the_process_that_runs_it() {
    let (_dir, dir) = tempdir();
    if let Some(dir) = std::env::var_os("LARDER_TEST_COMMAND") {
        let script =
            format!("echo $$ > '{0}/new'; mv '{0}/new' '{0}/pid'; exec sleep 62", dir.display());
        let _ = Command::new("sh").args(["-c", &script]).run();
        return;
    }
    #[allow(clippy::disallowed_methods, reason = "it must be killed")]
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_command_dies_with_the_process_that_runs_it"])
        .env("LARDER_TEST_COMMAND", &dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !dir.join("pid").exists() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    // Whoever adopts it may not have buried it yet.
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X ")
    };
    while lives() {
        assert!(Instant::now() < end, "the command outlived us");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_panic_in_blocking_work_is_a_fault_and_not_the_end() {
    assert_eq!(blocking(|| Ok(5)).await.unwrap(), 5);
    let fault = blocking(|| -> Result<(), Fault> { panic!("boom") }).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Internal);
    assert!(fault.to_string().contains("boom"), "{fault}");
    assert_eq!(boot_id(), boot_id());
    let _ = std::io::stdout().flush();
}
