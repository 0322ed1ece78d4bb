//! Subvolumes, snapshots and qgroups on a real btrfs.

mod support;

use larder_host::{BindRequest, btrfs};
use larder_model::{Bytes, FsType, Kind};
use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use support::Scratch;

fn pool() -> (Scratch, PathBuf) {
    let scratch = Scratch::new();
    let (_, dir) = scratch.mounted("pool", FsType::Btrfs, Bytes::mib(512));
    (scratch, dir)
}

fn fill(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    for n in 0..mib {
        file.write_all(&vec![u8::try_from(n % 100).unwrap_or(0) | 1; 1 << 20])?;
    }
    file.sync_all()
}

#[test]
fn a_subvolume_is_told_from_a_directory() {
    let (_scratch, pool) = pool();
    assert!(btrfs::is_btrfs(&pool).unwrap());
    assert!(!btrfs::is_btrfs(Path::new("/proc")).unwrap());
    let v = pool.join("v");
    assert!(!btrfs::is_subvolume(&v).unwrap(), "absent");
    btrfs::create_subvolume(&v).unwrap();
    fs::create_dir(pool.join("d")).unwrap();
    symlink("v", pool.join("link")).unwrap();
    assert!(btrfs::is_subvolume(&v).unwrap());
    assert!(!btrfs::is_subvolume(&pool.join("d")).unwrap());
    assert!(!btrfs::is_subvolume(&pool.join("link")).unwrap());
    assert_eq!(btrfs::create_subvolume(&v).unwrap_err().kind(), Kind::Conflict);
    let fault = btrfs::snapshot(&pool.join("d"), &pool.join("s"), true).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    let fault = btrfs::delete_subvolume(&pool.join("d")).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(btrfs::delete_subvolume(&pool.join("link")).is_err());
    assert!(pool.join("d").is_dir() && v.is_dir());
}

#[test]
fn a_snapshot_keeps_what_its_source_loses() {
    let (_scratch, pool) = pool();
    let (v, s, c) = (pool.join("v"), pool.join("s"), pool.join("c"));
    btrfs::create_subvolume(&v).unwrap();
    fs::write(v.join("file"), "old").unwrap();
    btrfs::snapshot(&v, &s, true).unwrap();
    fs::write(v.join("file"), "new").unwrap();
    assert_eq!(fs::read(s.join("file")).unwrap(), b"old");
    assert!(btrfs::is_read_only(&s).unwrap());
    assert!(fs::write(s.join("file"), "x").is_err());
    assert_eq!(btrfs::snapshot(&v, &s, true).unwrap_err().kind(), Kind::Conflict);
    btrfs::snapshot(&s, &c, false).unwrap();
    fs::write(c.join("file"), "clone").unwrap();
    assert_eq!(fs::read(s.join("file")).unwrap(), b"old");
    btrfs::delete_subvolume(&v).unwrap();
    btrfs::delete_subvolume(&v).unwrap();
    assert_eq!(fs::read(s.join("file")).unwrap(), b"old");
    btrfs::set_read_only(&s, false).unwrap();
    assert!(!btrfs::is_read_only(&s).unwrap());
    fs::write(s.join("file"), "x").unwrap();
}

#[test]
#[allow(clippy::disallowed_methods, reason = "no runtime here")]
fn the_space_of_a_deleted_subvolume_can_be_waited_for() {
    let (_scratch, pool) = pool();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    fill(&v.join("file"), 64).unwrap();
    let free = || larder_host::Host::real().filesystems.usage(&pool).unwrap().available;
    let before = free();
    btrfs::delete_subvolume(&v).unwrap();
    let mut looks = 0;
    let waited = btrfs::clean(&pool, || {
        looks += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
        looks < 3000
    });
    assert!(waited.unwrap());
    assert!(free() >= before.saturating_add(Bytes::mib(60)), "{before} {}", free());
    assert!(btrfs::clean(Path::new("/proc"), || false).unwrap(), "there is nothing to wait for");
}

#[test]
fn nested_subvolumes_are_found_at_any_depth_and_deleted_with_the_outer_one() {
    let (_scratch, pool) = pool();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    assert_eq!(btrfs::nested(&v).unwrap(), [] as [&Path; 0]);
    fs::create_dir_all(v.join("d/e")).unwrap();
    let inner = ["a", "d/e/b", "d/e/b/c", "z"];
    for path in ["d/e/b", "d/e/b/c", "a", "z"] {
        btrfs::create_subvolume(&v.join(path)).unwrap();
        fs::write(v.join(path).join("file"), path).unwrap();
    }
    assert_eq!(btrfs::nested(&v).unwrap(), inner.map(Path::new));
    btrfs::set_read_only(&v.join("d/e/b/c"), true).unwrap();
    btrfs::set_read_only(&v.join("d/e/b"), true).unwrap();
    btrfs::set_read_only(&v, true).unwrap();
    // A neighbour whose subvolumes are none of ours.
    btrfs::create_subvolume(&pool.join("w")).unwrap();
    btrfs::create_subvolume(&pool.join("w/x")).unwrap();
    btrfs::delete_subvolume(&v).unwrap();
    assert!(!v.exists());
    assert!(btrfs::is_subvolume(&pool.join("w/x")).unwrap());
}

#[test]
fn more_nested_subvolumes_than_one_answer_holds_are_all_found() {
    let (_scratch, pool) = pool();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    for n in 0..300 {
        btrfs::create_subvolume(&v.join(format!("n{n:03}"))).unwrap();
    }
    assert_eq!(btrfs::nested(&v).unwrap().len(), 300);
    btrfs::delete_subvolume(&v).unwrap();
    assert!(!v.exists());
}

#[test]
fn a_subvolume_with_a_mount_in_it_is_not_deleted() {
    let (scratch, pool) = pool();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    fs::create_dir(v.join("mnt")).unwrap();
    let source = scratch.dir("elsewhere");
    fs::write(source.join("precious"), "x").unwrap();
    let bind = BindRequest { source, target: v.join("mnt"), ..BindRequest::default() };
    scratch.host.mounts.bind(&bind).unwrap();
    let fault = btrfs::delete_subvolume(&v).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("v/mnt is a mount point"), "{fault}");
    assert!(v.join("mnt/precious").exists());
    scratch.unmount(&v.join("mnt"));
    btrfs::delete_subvolume(&v).unwrap();
}

#[test]
fn a_limit_is_enforced_and_counted() {
    let (_scratch, pool) = pool();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    assert!(!btrfs::quota_enabled(&pool).unwrap());
    for fault in
        [btrfs::set_limit(&v, Some(Bytes::mib(16))).unwrap_err(), btrfs::usage(&v).unwrap_err()]
    {
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("btrfs quota enable"), "{fault}");
    }
    btrfs::enable_quota(&pool).unwrap();
    btrfs::enable_quota(&pool).unwrap();
    assert!(btrfs::quota_enabled(&pool).unwrap());
    let whole = btrfs::usage(&v).unwrap().total;
    btrfs::set_limit(&v, Some(Bytes::mib(16))).unwrap();
    assert_eq!(btrfs::usage(&v).unwrap().total, Bytes::mib(16));
    let error = fill(&v.join("big"), 32).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
    fs::remove_file(v.join("big")).unwrap();
    rustix::fs::sync();
    fill(&v.join("fits"), 8).unwrap();
    rustix::fs::sync();
    let usage = btrfs::usage(&v).unwrap();
    assert!((Bytes::mib(8)..Bytes::mib(10)).contains(&usage.used), "{usage:?}");
    assert_eq!(usage.available, Bytes::mib(16).saturating_sub(usage.used));
    btrfs::set_limit(&v, Some(Bytes::mib(64))).unwrap();
    fill(&v.join("more"), 32).unwrap();
    btrfs::set_limit(&v, None).unwrap();
    assert_eq!(btrfs::usage(&v).unwrap().total, whole);
}

#[test]
fn a_limit_is_found_among_hundreds() {
    let (_scratch, pool) = pool();
    btrfs::enable_quota(&pool).unwrap();
    let at = |n: u64| pool.join(format!("v{n}"));
    for n in 1..=200 {
        btrfs::create_subvolume(&at(n)).unwrap();
        btrfs::set_limit(&at(n), Some(Bytes::mib(n))).unwrap();
    }
    for n in 1..=200 {
        assert_eq!(btrfs::usage(&at(n)).unwrap().total, Bytes::mib(n));
    }
}

#[test]
fn a_deleted_subvolume_leaves_no_qgroup_behind() {
    let (_scratch, pool) = pool();
    btrfs::enable_quota(&pool).unwrap();
    let count = || {
        let list = larder_host::command::Command::new("btrfs")
            .args(["qgroup", "show"])
            .arg(&pool)
            .run()
            .unwrap();
        list.text().lines().filter(|line| line.starts_with("0/")).count()
    };
    let before = count();
    let v = pool.join("v");
    btrfs::create_subvolume(&v).unwrap();
    btrfs::set_limit(&v, Some(Bytes::mib(16))).unwrap();
    fill(&v.join("data"), 4).unwrap();
    btrfs::snapshot(&v, &pool.join("s"), true).unwrap();
    assert_eq!(count(), before + 2);
    btrfs::delete_subvolume(&v).unwrap();
    btrfs::delete_subvolume(&pool.join("s")).unwrap();
    // The kernel removes them when its cleaner has dropped the data.
    let wait = larder_host::command::Command::new("btrfs").args(["subvolume", "sync"]).arg(&pool);
    wait.run().unwrap();
    rustix::fs::sync();
    assert_eq!(count(), before);
}
