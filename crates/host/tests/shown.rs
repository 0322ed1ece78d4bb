//! Where else a directory is shown.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use larder_host::{BindRequest, DeviceUser, btrfs, command::Command};
use larder_model::{Bytes, FsType, Kind};
use std::{fs, path::Path, time::Duration};
use support::Scratch;

fn bind(scratch: &Scratch, source: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    let request =
        BindRequest { source: source.into(), target: target.into(), ..Default::default() };
    scratch.host.mounts.bind(&request).unwrap();
}

fn targets(scratch: &Scratch, dir: &Path) -> Vec<String> {
    let users = scratch.host.mounts.users_of_directory(dir).unwrap();
    let target = |user: &DeviceUser| match user {
        DeviceUser::Mount { target, .. } => {
            target.file_name().unwrap().to_str().unwrap().to_owned()
        }
        other => panic!("{other}"),
    };
    users.iter().map(target).collect()
}

#[test]
fn a_directory_is_used_by_mounts_of_it_and_of_what_is_in_it_but_not_by_those_around_it() {
    let scratch = Scratch::new();
    for fs in FsType::ALL {
        let (_, pool) = scratch.mounted(fs.as_str(), fs, Bytes::mib(512));
        let v = pool.join("volumes/v/data");
        fs::create_dir_all(v.parent().unwrap()).unwrap();
        match fs {
            FsType::Btrfs => btrfs::create_subvolume(&v).unwrap(),
            _ => fs::create_dir(&v).unwrap(),
        }
        fs::create_dir_all(v.join("a/b")).unwrap();
        fs::create_dir_all(pool.join("volumes/v/data2")).unwrap();
        let at = |name: &str| scratch.path().join(format!("{fs}-{name}"));
        bind(&scratch, &pool, &at("around"));
        bind(&scratch, &pool.join("volumes"), &at("around-too"));
        bind(&scratch, &pool.join("volumes/v/data2"), &at("neighbour"));
        assert_eq!(targets(&scratch, &v), [] as [&str; 0], "{fs}");
        bind(&scratch, &v, &at("staged"));
        bind(&scratch, &at("staged"), &at("published"));
        bind(&scratch, &v.join("a/b"), &at("subpath"));
        let expected = ["published", "staged", "subpath"].map(|n| format!("{fs}-{n}"));
        assert_eq!(targets(&scratch, &v), expected);
        // Asked through another way to the same directory, and after a rename.
        assert_eq!(targets(&scratch, &at("around").join("volumes/v/data")), expected);
        fs::rename(pool.join("volumes/v"), pool.join("gone")).unwrap();
        assert_eq!(targets(&scratch, &pool.join("gone/data")), expected);
        for name in ["subpath", "published", "staged"] {
            scratch.unmount(&at(name));
        }
        assert_eq!(targets(&scratch, &pool.join("gone/data")), [] as [&str; 0], "{fs}");
    }
}

#[test]
fn a_bind_mount_in_another_mount_namespace_is_seen() {
    let scratch = Scratch::new();
    let (v, target, ready) = (scratch.dir("v"), scratch.dir("t"), scratch.path().join("ready"));
    let script = format!(
        "mount --bind '{}' '{}'; touch '{}'; sleep 30",
        v.display(),
        target.display(),
        ready.display()
    );
    let thread = std::thread::spawn(move || {
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .deadline(Duration::from_secs(10))
            .run_any()
    });
    while !ready.exists() {
        std::thread::yield_now();
    }
    assert_eq!(targets(&scratch, &v), ["t"]);
    assert_eq!(thread.join().unwrap().unwrap_err().kind(), Kind::Deadline);
    while !targets(&scratch, &v).is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn an_absent_directory_has_no_answer() {
    let scratch = Scratch::new();
    let absent = scratch.path().join("absent");
    let fault = scratch.host.mounts.users_of_directory(&absent).unwrap_err();
    assert_eq!(fault.kind(), Kind::NotFound);
}
