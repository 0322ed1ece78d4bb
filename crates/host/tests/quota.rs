//! Project quotas, on the kernel of a virtual machine: small host kernels have none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::quota::{self, Enforcement};
use larder_model::{Bytes, FsType, Kind};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};
use support::{Scratch, mkfs};

/// A file system with project quota in force.
fn pool(scratch: &Scratch, fs: FsType) -> PathBuf {
    let (_, device) = scratch.device(&format!("{fs}.img"), Bytes::mib(512));
    let options = ["-O", "quota,project", "-E", "quotatype=prjquota"].map(str::to_owned);
    let options = if fs == FsType::Ext4 { &options[..] } else { &[] };
    scratch.host.filesystems.make(&device, fs, options).unwrap();
    let target = scratch.dir(&format!("{fs}-pool"));
    scratch.mount(&device, fs, &target, &["prjquota"]);
    // Temporary directories are their owner's; ordinary users write here.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    target
}

/// Writes `mib` MiB as an ordinary user: ext4 does not bind root.
fn write_as_user(path: &Path, mib: usize) -> std::io::Result<()> {
    fs::File::create(path)?;
    std::os::unix::fs::chown(path, Some(1000), Some(1000))?;
    let script = format!("dd if=/dev/zero of='{}' bs=1M count={mib} conv=fsync", path.display());
    let args = ["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", &script];
    let output = larder_host::command::Command::new("setpriv").args(args).run_any().unwrap();
    if output.code() == Some(0) { Ok(()) } else { Err(std::io::Error::other(output.stderr)) }
}

#[test]
fn a_project_is_limited_counted_and_freed_on_ext4_and_xfs() {
    let scratch = Scratch::new();
    for fs in [FsType::Ext4, FsType::Xfs] {
        let pool = pool(&scratch, fs);
        assert_eq!(quota::detect(&pool).unwrap(), Enforcement::Project, "{fs}");
        let v = pool.join("v");
        fs::create_dir(&v).unwrap();
        std::os::unix::fs::chown(&v, Some(1000), Some(1000)).unwrap();
        const ID: u32 = 0x7fff_fff0;
        assert!(quota::is_free(&pool, ID).unwrap());
        assert_eq!(quota::project_of(&v).unwrap(), None);
        quota::set_project(&v, ID).unwrap();
        assert_eq!(quota::project_of(&v).unwrap(), Some(ID));
        assert!(!quota::is_free(&pool, ID).unwrap(), "{fs}: it has an inode");
        assert_eq!(quota::project_usage(&v, ID).unwrap().inodes_used, 1);
        let whole = quota::project_usage(&v, ID).unwrap().total;
        quota::limit_project(&v, ID, Some(Bytes::mib(20)), Some(10)).unwrap();
        let usage = quota::project_usage(&v, ID).unwrap();
        assert_eq!((usage.total, usage.inodes), (Bytes::mib(20), 10), "{fs}");
        assert!(quota::used_ids(&pool).unwrap().contains(&ID));

        let error = write_as_user(&v.join("big"), 30).unwrap_err().to_string();
        assert!(error.contains("No space left") || error.contains("quota"), "{fs}: {error}");
        fs::remove_file(v.join("big")).unwrap();
        write_as_user(&v.join("fits"), 15).unwrap();
        let usage = quota::project_usage(&v, ID).unwrap();
        assert!(usage.used >= Bytes::mib(15), "{fs}: {usage:?}");
        let seen = rustix::fs::statvfs(&v).unwrap();
        assert_eq!(Bytes::new(seen.f_blocks * seen.f_frsize), Bytes::mib(20), "{fs}: statfs");
        // What is made inside inherits; the limit can grow while it is in use.
        fs::create_dir(v.join("d")).unwrap();
        assert_eq!(quota::project_of(&v.join("d")).unwrap(), Some(ID));
        quota::limit_project(&v, ID, Some(Bytes::mib(60)), None).unwrap();
        write_as_user(&v.join("more"), 30).unwrap();

        quota::limit_project(&v, ID, None, None).unwrap();
        assert_eq!(quota::project_usage(&v, ID).unwrap().total, whole, "{fs}");
        fs::remove_dir_all(&v).unwrap();
        scratch.unmount(&pool);
    }
}

#[test]
fn a_tree_that_exists_already_gets_its_project_and_nothing_outside_does() {
    let scratch = Scratch::new();
    for fs in [FsType::Ext4, FsType::Xfs] {
        let pool = pool(&scratch, fs);
        let (v, other) = (pool.join("v"), pool.join("other"));
        fs::create_dir_all(v.join("a/b/c")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "x").unwrap();
        fs::write(v.join("a/file"), "x").unwrap();
        fs::write(v.join("a/b/c/file"), "x").unwrap();
        symlink(&other, v.join("a/away")).unwrap();
        symlink(other.join("file"), v.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            v.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        fs::create_dir(v.join("mnt")).unwrap();
        let bind = larder_host::BindRequest {
            source: other.clone(),
            target: v.join("mnt"),
            ..Default::default()
        };
        scratch.host.mounts.bind(&bind).unwrap();
        quota::set_project(&v, 4711).unwrap();
        quota::set_project(&v, 4711).unwrap();
        for inside in ["", "a", "a/b", "a/b/c", "a/file", "a/b/c/file"] {
            let project = quota::project_of(&v.join(inside)).unwrap();
            assert_eq!(project, Some(4711), "{fs}: {inside}");
        }
        for outside in [other.clone(), other.join("file"), pool.clone()] {
            assert_eq!(quota::project_of(&outside).unwrap(), None, "{}", outside.display());
        }
        assert_eq!(fs::metadata(v.join("a/file")).unwrap().size(), 1);
        scratch.unmount(&v.join("mnt"));
    }
}

#[test]
fn a_file_system_without_project_quota_says_how_to_get_it() {
    let scratch = Scratch::new();
    for (fs, words) in [(FsType::Ext4, "tune2fs"), (FsType::Xfs, "-o prjquota")] {
        let (_, device) = scratch.device(&format!("{fs}.img"), Bytes::mib(512));
        mkfs(&device, fs);
        let pool = scratch.dir(fs.as_str());
        scratch.mount(&device, fs, &pool, &[]);
        let Enforcement::None { why } = quota::detect(&pool).unwrap() else {
            panic!("{fs} has no quota here")
        };
        assert!(why.contains(words), "{why}");
        for fault in [
            quota::limit_project(&pool, 7, Some(Bytes::mib(1)), None).unwrap_err(),
            quota::is_free(&pool, 7).unwrap_err(),
            quota::used_ids(&pool).unwrap_err(),
        ] {
            assert_eq!(fault.kind(), Kind::Precondition, "{fs}: {fault}");
        }
    }
    // Counted, but without effect.
    let (_, device) = scratch.device("counted.img", Bytes::mib(512));
    mkfs(&device, FsType::Xfs);
    let pool = scratch.dir("counted");
    scratch.mount(&device, FsType::Xfs, &pool, &["pqnoenforce"]);
    let Enforcement::None { why } = quota::detect(&pool).unwrap() else {
        panic!("limits have no effect here")
    };
    assert!(why.contains("not enforced"), "{why}");
}
