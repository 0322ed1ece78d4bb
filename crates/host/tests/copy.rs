//! Copies of files and trees, compared by a walker that shares no code with them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    Unmount,
    command::Command,
    copy::{self, Mode, TreeOptions, TreeReport},
};
use larder_model::{Bytes, Cx, FsType, Kind};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode as Bits, OFlags, Timespec, Timestamps},
};
use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};
use support::Scratch;

/// All that a copy must keep of one entry.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    modified: (i64, i64),
    device: u64,
    links: u64,
    /// The first path (in order) of the same inode.
    same_as: Vec<u8>,
    contents: Vec<u8>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Walks a tree by open directories, so that no depth stops it.
fn walk(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let mut seen = BTreeMap::new();
    let mut first = BTreeMap::new();
    let top = rustix::fs::openat(CWD, root, flags, Bits::empty()).unwrap();
    let mut waiting = vec![(top, Vec::new())];
    while let Some((directory, path)) = waiting.pop() {
        let names: Vec<CString> = Dir::read_from(&directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_owned())
            .filter(|n| n.as_bytes() != b"..")
            .collect();
        let mut names = names;
        names.sort();
        for name in names {
            let here = [path.as_slice(), name.as_bytes()].concat();
            let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let kind = FileType::from_raw_mode(stat.st_mode);
            let is_dir = kind == FileType::Directory;
            let in_proc = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
                .join(OsStr::from_bytes(name.as_bytes()));
            let contents = match kind {
                FileType::RegularFile => fs::read(&in_proc).unwrap(),
                FileType::Symlink => {
                    rustix::fs::readlinkat(&directory, &name, vec![]).unwrap().into_bytes()
                }
                _ => Vec::new(),
            };
            // xfs lists every ACL a second time, in its own form.
            let attributes = xattr::list(&in_proc)
                .unwrap()
                .filter(|n| !n.as_bytes().starts_with(b"trusted.SGI_ACL_"))
                .map(|n| {
                    let value = xattr::get(&in_proc, &n).unwrap().unwrap();
                    (n.as_bytes().to_vec(), value)
                })
                .collect();
            let same_as = if is_dir {
                Vec::new()
            } else {
                first.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| here.clone()).clone()
            };
            let entry = Seen {
                kind: format!("{kind:?}"),
                mode: stat.st_mode & 0o7777,
                owner: (stat.st_uid, stat.st_gid),
                size: if is_dir { 0 } else { stat.st_size.unsigned_abs() },
                modified: (stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap()),
                device: stat.st_rdev,
                links: if is_dir { 0 } else { u64::from(u32::try_from(stat.st_nlink).unwrap()) },
                same_as,
                contents,
                attributes,
            };
            seen.insert(here.clone(), entry);
            if is_dir && name.as_bytes() != b"." {
                let inner = rustix::fs::openat(&directory, &name, flags, Bits::empty()).unwrap();
                waiting.push((inner, [here.as_slice(), b"/"].concat()));
            }
        }
    }
    seen
}

fn assert_same(from: &Path, to: &Path) {
    let (from, to) = (walk(from), walk(to));
    let name = |path: &Vec<u8>| String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    for (path, seen) in &from {
        let copy = to.get(path).unwrap_or_else(|| panic!("{} is not copied", name(path)));
        assert!(seen == copy, "{}\n{seen:?}\n{copy:?}", name(path));
    }
    for path in to.keys() {
        assert!(from.contains_key(path), "{} is in the copy only", name(path));
    }
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Everything that a workload can put into a directory.
fn nasty_tree(root: &Path) {
    fs::create_dir_all(root).unwrap();
    for n in 0..10_000 {
        let dir = root.join(format!("many/{}/{}", n % 7, n % 31));
        if n < 7 * 31 {
            fs::create_dir_all(&dir).unwrap();
        }
        let path = dir.join(n.to_string());
        fs::write(&path, vec![u8::try_from(n % 251).unwrap(); n % 300]).unwrap();
        if n % 100 == 0 {
            fs::hard_link(&path, root.join(format!("many/link-{n}"))).unwrap();
        }
    }
    // Names.
    for name in [&b"new\nline"[..], b"\xff\xfe\x01 bytes", b" ", b"-rf", b"\\", &[b'n'; 255]] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    // Modes, owners, capabilities, ACLs, attributes.
    let put = |name: &str, mode: u32, owner: u32| {
        let path = root.join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner + 1)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    put("setuid", 0o6755, 1000);
    put("none", 0o000, 12345);
    put("read-only", 0o444, 0);
    let capable = put("capable", 0o755, 1000);
    // cap_net_bind_service+ep, as setcap(8) writes it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(&capable, "security.capability", &capability).unwrap();
    let attributed = put("attributed", 0o600, 7);
    xattr::set(&attributed, "user.note", b"some \0 bytes").unwrap();
    xattr::set(&attributed, "user.empty", b"").unwrap();
    xattr::set(&attributed, "trusted.secret", b"root's").unwrap();
    let listed = put("listed", 0o640, 1000);
    let acl = |args: &[&str], path: &Path| {
        Command::new("setfacl").args(args).arg(path).run().unwrap();
    };
    acl(&["-m", "u:4242:rw,g:4343:r"], &listed);
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("before"), "has no ACL: made before the default").unwrap();
    acl(&["-d", "-m", "u:4242:rwx"], &shared);
    fs::write(shared.join("after"), "has one").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o3770)).unwrap();
    xattr::set(&shared, "user.on-a-directory", b"1").unwrap();
    let locked = root.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::write(locked.join("inside"), "x").unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    // Links and special files.
    symlink("/etc/shadow", root.join("absolute")).unwrap();
    symlink("no/where", root.join("dangling")).unwrap();
    symlink(".", root.join("loop")).unwrap();
    std::os::unix::fs::lchown(root.join("loop"), Some(77), Some(78)).unwrap();
    xattr::set(root.join("loop"), "trusted.on-a-symlink", b"1").unwrap();
    set_time(&root.join("dangling"), 1_000_000);
    let special = |name: &str, kind, device| {
        let mode = Bits::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, root.join(name), kind, mode, device).unwrap();
    };
    special("fifo", FileType::Fifo, 0);
    special("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    special("disk", FileType::BlockDevice, rustix::fs::makedev(7, 9999));
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    fs::hard_link(root.join("fifo"), root.join("fifo-link")).unwrap();
    // Holes.
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 10 << 20).unwrap();
    File::create(root.join("only-a-hole")).unwrap().set_len(10 << 20).unwrap();
    // Deeper than a path can be long.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut deep: OwnedFd = rustix::fs::openat(CWD, root, flags, Bits::empty()).unwrap();
    for n in 0..300 {
        let name = format!("{n}-{}", "d".repeat(20));
        rustix::fs::mkdirat(&deep, &name, Bits::RWXU).unwrap();
        deep = rustix::fs::openat(&deep, &name, flags, Bits::empty()).unwrap();
        let file = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&deep, "f", file, Bits::from_raw_mode(0o600)).unwrap();
        if n % 50 == 0 {
            rustix::fs::linkat(&deep, "f", CWD, root.join(format!("deep-{n}")), AtFlags::empty())
                .unwrap();
        }
    }
    // Times, of directories too.
    set_time(&root.join("many/3"), 86_400);
    set_time(&root.join("shared"), 500_000_000);
    set_time(root, 1_234_567);
}

fn options(mode: Mode) -> TreeOptions {
    TreeOptions { mode, threads: 4, ..TreeOptions::default() }
}

fn copied(from: &Path, to: &Path, mode: Mode) -> TreeReport {
    copy::tree(from, to, options(mode), &Cx::new()).unwrap()
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_copied_tree_is_the_same_in_everything_on_every_file_system() {
    for (fs_type, mode) in
        [(FsType::Ext4, Mode::Auto), (FsType::Xfs, Mode::Reflink), (FsType::Btrfs, Mode::Copy)]
    {
        let scratch = Scratch::new();
        let (_, mounted) = scratch.mounted("m", fs_type, Bytes::mib(1024));
        let (from, to) = (mounted.join("from"), mounted.join("to"));
        nasty_tree(&from);
        let report = copied(&from, &to, mode);
        assert_same(&from, &to);
        assert_eq!(report.reflinked > 9_000, mode == Mode::Reflink, "{report:?}");
        assert!(report.entries > 10_900, "{report:?}");
        for sparse in ["sparse", "only-a-hole"] {
            assert!(blocks(&to.join(sparse)) <= blocks(&from.join(sparse)) + (128 << 10));
        }
        if fs_type != FsType::Xfs {
            continue;
        }
        // Across file systems, with attributes and all.
        let elsewhere = scratch.path().join("elsewhere");
        copied(&from, &elsewhere, Mode::Auto);
        assert_same(&from, &elsewhere);
        larder_host::durable::remove_tree(&elsewhere).unwrap();
        assert!(!elsewhere.exists());
    }
}

#[test]
fn a_repeated_copy_completes_one_that_was_cut_and_removes_what_is_too_much() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    nasty_tree(&from);
    copied(&from, &to, Mode::Copy);
    // The state that a kill leaves: the mark, half a file, files that miss or are too much.
    xattr::set(&to, "user.larder.copying", larder_host::boot_id().as_bytes()).unwrap();
    fs::write(to.join("setuid"), "ha").unwrap();
    fs::remove_dir_all(to.join("many/3")).unwrap();
    fs::write(to.join("too-much"), "x").unwrap();
    fs::create_dir_all(to.join("many/4/too/much")).unwrap();
    fs::remove_file(to.join("read-only")).unwrap();
    fs::create_dir_all(to.join("read-only/a/directory")).unwrap();
    fs::remove_dir_all(to.join("shared")).unwrap();
    fs::write(to.join("shared"), "a file").unwrap();
    fs::remove_file(to.join("many/link-500")).unwrap();
    fs::write(to.join("many/link-500"), "no link").unwrap();
    let untouched = fs::metadata(to.join("many/0/0/0")).unwrap().ino();
    let report = copied(&from, &to, Mode::Copy);
    assert_same(&from, &to);
    assert_eq!(fs::metadata(to.join("many/0/0/0")).unwrap().ino(), untouched, "it was complete");
    assert!(report.bytes < 1_000_000, "most was there already: {report:?}");
    assert_eq!(xattr::get(&to, "user.larder.copying").unwrap(), None);
}

#[test]
fn after_a_reboot_what_looks_complete_is_not_trusted() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.dir("from"), scratch.path().join("to"));
    fs::write(from.join("f"), "data").unwrap();
    set_time(&from.join("f"), 1000);
    copied(&from, &to, Mode::Copy);
    xattr::set(&to, "user.larder.copying", b"another boot").unwrap();
    // Size and times are right, the data was lost.
    fs::write(to.join("f"), "\0\0\0\0").unwrap();
    set_time(&to.join("f"), 1000);
    copied(&from, &to, Mode::Copy);
    assert_same(&from, &to);
}

#[test]
fn what_another_boot_has_left_goes_before_anything_is_copied() {
    let scratch = Scratch::new();
    let (_, mounted) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let (from, to) = (mounted.join("from"), mounted.join("to"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(to.join("deep")).unwrap();
    for name in ["a", "b"] {
        fs::write(from.join(name), "data").unwrap();
        fs::write(to.join(name), "\0\0\0\0").unwrap();
        set_time(&from.join(name), 1000);
        set_time(&to.join(name), 1000);
    }
    xattr::set(&to, "user.larder.copying", b"another boot").unwrap();
    // Cut at the first file: ext4 shares no blocks. The next attempt trusts what it finds.
    copy::tree(&from, &to, options(Mode::Reflink), &Cx::new()).unwrap_err();
    copied(&from, &to, Mode::Copy);
    assert_same(&from, &to);
}

#[test]
fn a_file_system_that_copies_by_itself_is_let_to_and_holes_stay() {
    let scratch = Scratch::new();
    let (_, mounted) = scratch.mounted("m", FsType::Ext4, Bytes::mib(1024));
    let (from, to) = (mounted.join("from"), mounted.join("to"));
    nasty_tree(&from);
    let options = TreeOptions { offload: true, ..options(Mode::Auto) };
    copy::tree(&from, &to, options, &Cx::new()).unwrap();
    assert_same(&from, &to);
    for sparse in ["sparse", "only-a-hole"] {
        assert!(blocks(&to.join(sparse)) <= blocks(&from.join(sparse)) + (128 << 10));
    }
    // Where it cannot, across file systems, the contents come all the same.
    let elsewhere = scratch.path().join("elsewhere");
    copy::tree(&from, &elsewhere, options, &Cx::new()).unwrap();
    assert_same(&from, &elsewhere);
}

#[test]
fn what_is_mounted_in_a_tree_is_not_copied() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.dir("from"), scratch.path().join("to"));
    let inner = scratch.dir("from/inner");
    fs::write(from.join("file"), "below").unwrap();
    let other = scratch.dir("other");
    fs::write(other.join("secret"), "x").unwrap();
    let mounts = &scratch.host.mounts;
    for (source, target) in [(other.clone(), inner), (other.join("secret"), from.join("file"))] {
        let bind = larder_host::BindRequest { source, target, ..Default::default() };
        mounts.bind(&bind).unwrap();
    }
    copied(&from, &to, Mode::Auto);
    assert_eq!(fs::read_dir(to.join("inner")).unwrap().count(), 0);
    assert_eq!(fs::read(to.join("file")).unwrap(), b"");
    // Nor is it removed with the tree: nothing behind a mount is touched.
    let fault = larder_host::durable::remove_tree(&from).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert_eq!(fs::read(other.join("secret")).unwrap(), b"x");
    mounts.unmount(&from.join("inner"), Unmount::Normal).unwrap();
    mounts.unmount(&from.join("file"), Unmount::Normal).unwrap();
    larder_host::durable::remove_tree(&from).unwrap();
    assert!(!from.exists() && other.join("secret").exists());
}

#[test]
fn a_tree_can_be_copied_into_itself_once_and_while_it_is_used() {
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    for n in 0..500 {
        fs::create_dir_all(from.join(format!("{}", n % 10))).unwrap();
        fs::write(from.join(format!("{}/{n}", n % 10)), "x").unwrap();
    }
    copied(&from, &from.join("inside"), Mode::Auto);
    assert!(from.join("inside/3").is_dir() && !from.join("inside/inside").exists());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                let dir = from.join(format!("{}", n % 10));
                let _ = fs::rename(dir.join("busy"), from.join(format!("{}/moved", n % 7)));
                let _ = fs::write(dir.join("busy"), "y");
                let _ = fs::remove_file(from.join(format!("{}/moved", n % 5)));
                let _ = fs::create_dir_all(dir.join("new/deep"));
                let _ = fs::remove_dir_all(from.join(format!("{}/new", n % 3)));
            }
        });
        let results: Vec<_> = (0..10)
            .map(|n| {
                let to = scratch.path().join(format!("to-{n}"));
                copy::tree(&from, &to, options(Mode::Auto), &Cx::new())
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for result in results {
            result.unwrap();
        }
    });
    assert_eq!(fs::read(scratch.path().join("to-9/3/33")).unwrap(), b"x");
}

#[test]
fn what_cannot_be_copied_says_where_and_why() {
    let scratch = Scratch::new();
    let from = scratch.dir("from");
    fs::write(from.join("big"), vec![1; 20 << 20]).unwrap();
    let (_, small) = scratch.mounted("small", FsType::Ext4, Bytes::mib(16));
    let full = copy::tree(&from, &small.join("to"), options(Mode::Auto), &Cx::new()).unwrap_err();
    assert_eq!(full.kind(), Kind::Exhausted);
    assert!(full.to_string().contains("at big"), "{full}");
    let to = scratch.path().join("to");
    let shared = copy::tree(&from, &to, options(Mode::Reflink), &Cx::new()).unwrap_err();
    assert_eq!(shared.kind(), Kind::Precondition, "{shared}");
    let absent = copy::tree(&from.join("no"), &to, options(Mode::Auto), &Cx::new()).unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
    let same = copy::tree(&from, &from, options(Mode::Auto), &Cx::new()).unwrap_err();
    assert_eq!(same.kind(), Kind::Precondition);
    symlink(&from, scratch.path().join("link")).unwrap();
    copy::tree(&scratch.path().join("link"), &to, options(Mode::Auto), &Cx::new()).unwrap_err();
}

#[test]
fn files_share_blocks_where_the_file_system_can() {
    for (fs_type, can) in [(FsType::Ext4, false), (FsType::Xfs, true), (FsType::Btrfs, true)] {
        let scratch = Scratch::new();
        let (_, mounted) = scratch.mounted("m", fs_type, Bytes::mib(512));
        assert_eq!(copy::reflink_supported(&mounted).unwrap(), can);
        let (from, to) = (mounted.join("from"), mounted.join("to"));
        fs::write(&from, vec![5; 3 << 20]).unwrap();
        assert_eq!(copy::reflink(&from, &to).unwrap(), can);
        assert_eq!(to.exists(), can, "nothing is left where it cannot");
        if can {
            assert_eq!(fs::read(&to).unwrap(), fs::read(&from).unwrap());
            assert_eq!(copy::reflink(&from, &to).unwrap_err().kind(), Kind::Conflict);
            fs::write(&from, "changed").unwrap();
            assert_eq!(fs::metadata(&to).unwrap().len(), 3 << 20);
        }
        // Never across file systems.
        assert!(!copy::reflink(&from, &scratch.path().join("elsewhere")).unwrap());
        assert!(!scratch.path().join("elsewhere").exists());
        let names: Vec<_> = fs::read_dir(&mounted).unwrap().flatten().collect();
        let left_over = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with('.');
        assert!(!names.iter().any(left_over), "{names:?}");
    }
}

#[test]
fn a_sparse_copy_keeps_holes_and_owns_its_blocks() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, mounted) = scratch.mounted("m", fs_type, Bytes::mib(512));
        let (from, to) = (mounted.join("from"), mounted.join("to"));
        let file = File::create(&from).unwrap();
        file.set_len((300 << 20) + 123).unwrap();
        for at in [0, 5 << 20, 299 << 20] {
            file.write_all_at(&vec![9; 200_000], at).unwrap();
        }
        file.write_all_at(&vec![0; 10 << 20], 100 << 20).unwrap();
        file.write_all_at(b"end", (300 << 20) + 120).unwrap();
        let cx = Cx::new();
        copy::sparse(&from, &to, &cx).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().len(), (300 << 20) + 123);
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(blocks(&to) < 4 << 20, "{fs_type}: written zeros become holes too");
        assert!(cx.progress().done > 600_000);
        assert_eq!(copy::sparse(&from, &to, &cx).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_sparse_copy_onto_a_full_disk_leaves_nothing() {
    let scratch = Scratch::new();
    let (_, small) = scratch.mounted("small", FsType::Ext4, Bytes::mib(16));
    let from = scratch.file("from", &vec![1; 20 << 20]);
    let fault = copy::sparse(&from, &small.join("to"), &Cx::new()).unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    let left: Vec<_> = fs::read_dir(&small).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["lost+found"]);
}

#[test]
fn a_tree_with_everything_in_it_is_removed() {
    let scratch = Scratch::new();
    let root = scratch.path().join("from");
    nasty_tree(&root);
    let outside = scratch.file("outside", b"x");
    symlink(&outside, root.join("out")).unwrap();
    symlink(scratch.path(), root.join("up")).unwrap();
    larder_host::durable::remove_tree(&root).unwrap();
    assert!(!root.exists() && outside.exists());
    larder_host::durable::remove_tree(&root).unwrap();
    // A symlink in the place of the tree is itself removed.
    symlink(scratch.dir("kept"), &root).unwrap();
    larder_host::durable::remove_tree(&root).unwrap();
    assert!(!root.is_symlink() && scratch.path().join("kept").exists());
}
