//! Mounts on a real kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    BindRequest, DeviceId, DeviceUser, LoopRequest, MountPlace, MountRequest, Mounts, Unmount,
    mounts::RealMounts,
};
use larder_model::{Bytes, FsType, Kind};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};
use support::{Scratch, mkfs, mount_request, request};

fn tmpfs(target: &Path, options: &[&str]) -> MountRequest {
    MountRequest {
        fs_type: "tmpfs".into(),
        source: "larder-test".into(),
        target: target.to_owned(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        read_only: false,
    }
}

fn run(program: &str, arguments: &[&str]) {
    larder_host::command::Command::new(program).args(arguments).run().unwrap();
}

fn bind(source: &Path, target: &Path) -> BindRequest {
    BindRequest { source: source.into(), target: target.into(), ..Default::default() }
}

#[test]
fn a_mount_is_seen_in_the_table_with_its_options_and_goes_again() {
    let scratch = Scratch::new();
    let target = scratch.dir("with space\nand newline");
    let mounts = &scratch.host.mounts;
    assert!(!mounts.is_mount_point(&target).unwrap());
    mounts.mount(&tmpfs(&target, &["size=5m", "nosuid", "noexec", "noatime", "_netdev"])).unwrap();
    assert!(mounts.is_mount_point(&target).unwrap());
    let at = mounts.mounts_at(&target).unwrap();
    assert_eq!(at.len(), 1);
    assert_eq!((at[0].fs_type.as_str(), at[0].source.as_str()), ("tmpfs", "larder-test"));
    for option in ["nosuid", "noexec", "noatime", "rw"] {
        assert!(at[0].options.iter().any(|o| o == option), "{option} in {:?}", at[0].options);
    }
    assert!(at[0].super_options.iter().any(|o| o == "size=5120k"), "{:?}", at[0].super_options);
    mounts.unmount(&target, Unmount::Normal).unwrap();
    assert!(!mounts.is_mount_point(&target).unwrap());
    mounts.unmount(&target, Unmount::Normal).unwrap();
    mounts.unmount(&scratch.path().join("absent"), Unmount::Normal).unwrap();
}

#[test]
fn the_mount_on_top_is_told_as_the_table_tells_it_however_it_changes() {
    let scratch = Scratch::new();
    let (target, source) = (scratch.dir("m with space"), scratch.dir("s"));
    let mounts = &scratch.host.mounts;
    assert_eq!(mounts.top_at(&target).unwrap(), None);
    assert_eq!(mounts.top_at(&scratch.path().join("absent")).unwrap(), None);
    mounts.mount(&tmpfs(&target, &["size=5m", "nosuid", "noexec", "noatime"])).unwrap();
    let same = || {
        let top = mounts.top_at(&target).unwrap();
        assert_eq!(top, mounts.mounts_at(&target).unwrap().pop());
        top.unwrap()
    };
    assert!(!same().is_read_only());
    // The file system, then the mount alone: nobody who polls the table is told of the first.
    let superblock = |how: &str| {
        let options = format!("remount,{how}");
        run("mount", &["-o", &options, target.to_str().unwrap()]);
    };
    superblock("ro");
    assert!(same().is_read_only());
    superblock("rw");
    mounts.remount(&target, true, &[]).unwrap();
    assert!(same().is_mount_read_only());
    // A stack, and a directory that was removed below its bind mount.
    run("mount", &["--bind", source.to_str().unwrap(), target.to_str().unwrap()]);
    assert_eq!(mounts.mounts_at(&target).unwrap().len(), 2);
    assert!(!same().is_read_only());
    fs::remove_dir(&source).unwrap();
    assert!(same().root.to_str().unwrap().ends_with("//deleted"), "{:?}", same().root);
    mounts.unmount(&target, Unmount::Normal).unwrap();
    assert_eq!(same().fs_type, "tmpfs");
}

#[test]
fn the_places_of_mounts_are_known_the_moment_they_change() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let mounts = &scratch.host.mounts;
    let known = || mounts.places().unwrap().iter().any(|place| place.target == target);
    for _ in 0..50 {
        assert!(!known());
        mounts.mount(&tmpfs(&target, &[])).unwrap();
        assert!(known() && known());
        let places: Vec<_> = mounts.table().unwrap().into_iter().map(MountPlace::from).collect();
        let mine = |places: &[MountPlace]| {
            places.iter().find(|place| place.target == target).cloned().unwrap()
        };
        assert_eq!(mine(&mounts.places().unwrap()), mine(&places));
        mounts.unmount(&target, Unmount::Normal).unwrap();
    }
    assert!(!known());
}

#[test]
fn a_second_mount_is_never_put_over_the_first() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let mounts = &scratch.host.mounts;
    mounts.mount(&tmpfs(&target, &[])).unwrap();
    let again = mounts.mount(&tmpfs(&target, &[])).unwrap_err();
    assert_eq!(again.kind(), Kind::Precondition);
    let over = mounts.bind(&bind(&scratch.dir("d"), &target)).unwrap_err();
    assert_eq!(over.kind(), Kind::Precondition);
    assert_eq!(mounts.mounts_at(&target).unwrap().len(), 1);
}

#[test]
fn of_many_who_mount_at_once_exactly_one_succeeds() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                if scratch.host.mounts.mount(&tmpfs(&target, &[])).is_ok() {
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), 1);
    assert_eq!(scratch.host.mounts.mounts_at(&target).unwrap().len(), 1);
}

#[test]
fn a_refused_option_is_told_in_the_kernels_words() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let fault = scratch.host.mounts.mount(&tmpfs(&target, &["size=plenty"])).unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("Bad value for 'size'"), "{fault}");
    let fault = scratch.host.mounts.mount(&tmpfs(&target, &["no_such_word"])).unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("no_such_word"), "{fault}");
    let unknown = MountRequest { fs_type: "nosuchfs".into(), ..tmpfs(&target, &[]) };
    assert_eq!(scratch.host.mounts.mount(&unknown).unwrap_err().kind(), Kind::Precondition);
    assert!(!scratch.host.mounts.is_mount_point(&target).unwrap());
}

#[test]
fn a_value_too_long_for_fsopen_goes_through_the_old_mount_call() {
    let scratch = Scratch::new();
    let (lower, upper, work) = (scratch.dir("lower"), scratch.dir("upper"), scratch.dir("work"));
    fs::write(lower.join("x"), "x").unwrap();
    let long = scratch.dir(&"l".repeat(200)).join("k".repeat(100));
    fs::create_dir(&long).unwrap();
    let options = [
        format!("lowerdir={}:{}", lower.display(), long.display()),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let target = scratch.dir("m");
    let overlay = MountRequest { fs_type: "overlay".into(), ..tmpfs(&target, &options) };
    scratch.host.mounts.mount(&overlay).unwrap();
    assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "x");
}

#[test]
fn a_damaged_or_absent_file_system_is_not_mounted_and_says_why() {
    let scratch = Scratch::new();
    let (_, device) = scratch.device("a.img", Bytes::mib(64));
    let target = scratch.dir("m");
    let mounts = &scratch.host.mounts;
    for fs in FsType::ALL {
        let fault = mounts.mount(&mount_request(&device, fs, &target, &[])).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    }
    let absent = mount_request(Path::new("/dev/no-such-device"), FsType::Ext4, &target, &[]);
    assert_eq!(mounts.mount(&absent).unwrap_err().kind(), Kind::NotFound);
    let no_target = mount_request(&device, FsType::Ext4, &scratch.path().join("none"), &[]);
    assert_eq!(mounts.mount(&no_target).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_symlink_as_target_is_refused_and_never_followed() {
    let scratch = Scratch::new();
    let (real, link) = (scratch.dir("real"), scratch.path().join("link"));
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mounts = &scratch.host.mounts;
    assert_eq!(mounts.mount(&tmpfs(&link, &[])).unwrap_err().kind(), Kind::Precondition);
    let source = scratch.dir("d");
    assert_eq!(mounts.bind(&bind(&source, &link)).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(mounts.bind(&bind(&link, &source)).unwrap_err().kind(), Kind::Precondition);
    mounts.mount(&tmpfs(&real, &[])).unwrap();
    assert!(!mounts.is_mount_point(&link).unwrap());
    mounts.unmount(&link, Unmount::Normal).unwrap();
    assert!(mounts.is_mount_point(&real).unwrap(), "unmounting the link leaves the place alone");
}

#[test]
fn a_bind_within_one_file_system_is_a_mount_point() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("s"), scratch.dir("t"));
    fs::write(source.join("x"), "x").unwrap();
    let mounts = &scratch.host.mounts;
    mounts.bind(&bind(&source, &target)).unwrap();
    assert!(mounts.is_mount_point(&target).unwrap());
    assert!(mounts.mounts_at(&target).unwrap()[0].root.ends_with("s"));
    assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "x");
    fs::write(target.join("y"), "y").unwrap();
    mounts.unmount(&target, Unmount::Normal).unwrap();
    assert!(source.join("y").exists());
}

#[test]
fn a_file_is_shown_at_a_file_and_kinds_are_not_mixed() {
    let scratch = Scratch::new();
    let (file, place) = (scratch.file("f", b"data"), scratch.file("p", b""));
    let dir = scratch.dir("d");
    let mounts = &scratch.host.mounts;
    mounts.bind(&bind(&file, &place)).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"data");
    assert!(mounts.is_mount_point(&place).unwrap());
    let other = scratch.file("o", b"");
    assert_eq!(mounts.bind(&bind(&dir, &other)).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(mounts.bind(&bind(&file, &dir)).unwrap_err().kind(), Kind::Precondition);
    let absent = scratch.path().join("absent");
    assert_eq!(mounts.bind(&bind(&absent, &dir)).unwrap_err().kind(), Kind::NotFound);
    let wrong = BindRequest { options: vec!["discard".into()], ..bind(&dir, &scratch.dir("e")) };
    assert_eq!(mounts.bind(&wrong).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_read_only_bind_can_never_be_written_not_even_for_a_moment() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("s"), scratch.dir("t"));
    let mounts = &scratch.host.mounts;
    let stop = AtomicBool::new(false);
    let options = vec!["nosuid".into(), "nodev".into(), "noexec".into(), "noatime".into()];
    let request = BindRequest { read_only: true, options, ..bind(&source, &target) };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Succeeds while nothing is mounted (the file is then in the target itself).
                let _ = fs::write(target.join("attempt"), "x");
            }
        });
        for _ in 0..300 {
            mounts.bind(&request).unwrap();
            mounts
                .unmount(&target, Unmount::Normal)
                .or_else(|e| {
                    // The writer had a path into it for a moment.
                    assert_eq!(e.kind(), Kind::Precondition);
                    mounts.unmount(&target, Unmount::Lazy)
                })
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!source.join("attempt").exists(), "a write went through the read-only bind");
    mounts.bind(&request).unwrap();
    let entry = mounts.mounts_at(&target).unwrap().remove(0);
    assert!(entry.is_mount_read_only());
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(entry.options.iter().any(|o| o == option), "{:?}", entry.options);
    }
}

#[test]
fn a_busy_mount_tells_who_keeps_it_and_can_be_detached_lazily() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let mounts = &scratch.host.mounts;
    mounts.mount(&tmpfs(&target, &[])).unwrap();
    #[allow(clippy::disallowed_methods, reason = "a process that runs on, in the mount")]
    let mut user =
        std::process::Command::new("sleep").arg("600").current_dir(&target).spawn().unwrap();
    let fault = mounts.unmount(&target, Unmount::Normal).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains(&format!("process {}", user.id())), "{fault}");
    user.kill().unwrap();
    user.wait().unwrap();
    let inner = target.join("inner");
    fs::create_dir(&inner).unwrap();
    mounts.mount(&tmpfs(&inner, &[])).unwrap();
    let fault = mounts.unmount(&target, Unmount::Normal).unwrap_err();
    assert!(fault.to_string().contains(inner.to_str().unwrap()), "{fault}");
    mounts.unmount(&target, Unmount::Lazy).unwrap();
    assert!(!mounts.is_mount_point(&target).unwrap());
}

/// A volume is unstaged while its snapshot is cut: nobody has to act, it passes.
#[test]
fn a_mount_that_this_process_works_on_is_somebody_elses_turn_and_no_fault_of_the_caller() {
    let scratch = Scratch::new();
    let target = scratch.dir("m");
    let mounts = &scratch.host.mounts;
    mounts.mount(&tmpfs(&target, &[])).unwrap();
    let open = fs::File::open(&target).unwrap();
    let fault = mounts.unmount(&target, Unmount::Normal).unwrap_err();
    assert_eq!(fault.kind(), Kind::Aborted, "{fault}");
    assert!(fault.to_string().contains("repeat"), "{fault}");
    drop(open);
    mounts.unmount(&target, Unmount::Normal).unwrap();
}

#[test]
fn a_remount_changes_this_mount_only_and_back() {
    let scratch = Scratch::new();
    let (_, first) = scratch.mounted("a", FsType::Ext4, Bytes::mib(64));
    let second = scratch.dir("second");
    let mounts = &scratch.host.mounts;
    mounts.bind(&bind(&first, &second)).unwrap();
    mounts.remount(&second, true, &["noexec".into()]).unwrap();
    assert!(mounts.mounts_at(&second).unwrap()[0].is_mount_read_only());
    assert!(fs::write(second.join("x"), "x").is_err());
    fs::write(first.join("x"), "x").unwrap();
    mounts.remount(&second, false, &[]).unwrap();
    let entry = mounts.mounts_at(&second).unwrap().remove(0);
    assert!(!entry.is_read_only() && entry.options.iter().any(|o| o == "noexec"));
    fs::write(second.join("y"), "y").unwrap();
    let writer = fs::File::create(second.join("z")).unwrap();
    let fault = mounts.remount(&second, true, &[]).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    drop(writer);
    let fault = mounts.remount(&scratch.dir("none"), true, &[]).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
}

#[test]
fn a_file_system_mounted_read_only_is_made_writable_by_a_remount() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::mib(512));
        mkfs(&device, fs_type);
        let target = scratch.dir("m");
        let mounts = &scratch.host.mounts;
        let request =
            MountRequest { read_only: true, ..mount_request(&device, fs_type, &target, &[]) };
        mounts.mount(&request).unwrap();
        assert!(fs::write(target.join("x"), "x").is_err());
        mounts.remount(&target, false, &[]).unwrap();
        fs::write(target.join("x"), "x").unwrap();
        // An option that all three change while mounted, and one that none of them has.
        mounts.remount(&target, false, &["lazytime".into()]).unwrap();
        let entry = mounts.mounts_at(&target).unwrap().remove(0);
        assert!(entry.super_options.iter().any(|o| o == "lazytime"), "{entry:?}");
        let fault = mounts.remount(&target, false, &["no_such_word".into()]).unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{fault}");
        scratch.unmount(&target);
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test without a runtime waits")]
fn every_user_of_a_device_is_found() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let image = scratch.image("a.img", Bytes::mib(512));
        let loops = &scratch.host.loops;
        let device = loops.attach(&LoopRequest { autoclear: false, ..request(&image) }).unwrap();
        let path = device.path.clone();
        let id = DeviceId::of_block_device(&path).unwrap();
        let mounts = &scratch.host.mounts;
        let users = mounts.users_of_device(id).unwrap();
        let me = std::process::id();
        assert!(
            matches!(users.as_slice(), [DeviceUser::Opener { pid, .. }] if *pid == me),
            "{users:?}"
        );
        drop(device);
        assert_eq!(mounts.users_of_device(id).unwrap(), vec![]);
        mkfs(&path, fs_type);
        let target = scratch.dir("m");
        scratch.mount(&path, fs_type, &target, &[]);
        let users = mounts.users_of_device(id).unwrap();
        assert!(
            users.iter().any(|u| matches!(u, DeviceUser::Mount { target: t, .. } if *t == target)),
            "{fs_type}: {users:?}"
        );
        scratch.unmount(&target);
        // A mount namespace that another test makes meanwhile has a copy of the mount.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !mounts.users_of_device(id).unwrap().is_empty() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(mounts.users_of_device(id).unwrap(), vec![]);
        // A loop device on the loop device.
        let upper = larder_host::command::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&path)
            .run()
            .unwrap()
            .text();
        let users = mounts.users_of_device(id).unwrap();
        larder_host::command::Command::new("losetup").args(["-d", &upper]).run().unwrap();
        let name = upper.trim_start_matches("/dev/").to_owned();
        assert!(users.contains(&DeviceUser::Holder { name }), "{users:?}");
    }
}

#[test]
fn a_mount_in_another_mount_namespace_keeps_the_device_in_use() {
    let scratch = Scratch::new();
    let (device, target) = scratch.mounted("a", FsType::Ext4, Bytes::mib(64));
    let id = DeviceId::of_block_device(&device).unwrap();
    let ready = scratch.path().join("ready");
    let script = format!("touch '{}'; sleep 30", ready.display());
    let thread = std::thread::spawn(move || {
        larder_host::command::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .deadline(std::time::Duration::from_secs(10))
            .run_any()
    });
    while !ready.exists() {
        std::thread::yield_now();
    }
    scratch.unmount(&target);
    let users = scratch.host.mounts.users_of_device(id).unwrap();
    assert!(users.iter().any(|u| matches!(u, DeviceUser::Mount { .. })), "{users:?}");
    assert_eq!(thread.join().unwrap().unwrap_err().kind(), Kind::Deadline);
    // The namespace has no process any more, but the kernel takes it down a little later: until then
    // its own claim on the device is all that tells.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !scratch.host.mounts.users_of_device(id).unwrap().is_empty() {
        assert!(std::time::Instant::now() < end, "the namespace was never taken down");
        std::thread::yield_now();
    }
}

#[test]
fn asking_about_a_path_that_is_none_is_no_error() {
    let mounts = RealMounts::new();
    assert!(!mounts.is_mount_point(Path::new("/proc/self/no/such/path")).unwrap());
    assert!(!mounts.is_mount_point(Path::new("/dev/null/x")).unwrap());
    assert!(mounts.is_mount_point(Path::new("/proc")).unwrap());
}
