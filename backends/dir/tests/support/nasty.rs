//! A tree with everything that makes copying and deleting hard.

use rustix::fs::{self as rfs, AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, lchown, symlink},
        net::UnixListener,
    },
    path::Path,
};

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn with_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// An ACL in the kernel's on-disk form: version 2, then (tag, permissions, id) each little-endian.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// u::rwx u:1234:r-x g::r-x m::r-x o::---
fn some_acl() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    acl(&[
        (0x01, 7, NOBODY),
        (0x02, 5, 1234),
        (0x04, 5, NOBODY),
        (0x10, 5, NOBODY),
        (0x20, 0, NOBODY),
    ])
}

/// Fills `root`, an existing directory.
pub(crate) fn make(root: &Path) {
    let at = |name: &str| root.join(name);

    // Contents: empty, small, large, sparse in the middle, at the end, and nothing but a hole.
    File::create(at("empty")).unwrap();
    fs::write(at("small"), b"hello").unwrap();
    fs::write(at("large"), noise(1, (3 << 20) + 17)).unwrap();
    let mut sparse = File::create(at("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(4 << 20)).unwrap();
    sparse.write_all(&noise(2, 128 << 10)).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.sync_all().unwrap();
    let hole = File::create(at("hole")).unwrap();
    hole.set_len(128 << 20).unwrap();

    // Names.
    let mut long = "n".repeat(254);
    long.push('x');
    for name in
        ["a b", "line\nbreak", "-rf", "--", "...", "\u{1f980}", "*?[", "\\", &long, "tab\t", " "]
    {
        fs::write(at(name), name).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf8\xc0")), b"bytes").unwrap();

    // Hard links, in other directories too; of a symbolic link as well.
    fs::create_dir(at("links")).unwrap();
    fs::write(at("links/one"), noise(3, 70_000)).unwrap();
    fs::hard_link(at("links/one"), at("links/two")).unwrap();
    fs::create_dir(at("links/deeper")).unwrap();
    fs::hard_link(at("links/one"), at("links/deeper/three")).unwrap();

    // Symbolic links that lead away, up, nowhere and to themselves.
    symlink("/etc/passwd", at("to-passwd")).unwrap();
    symlink("/etc", at("to-etc")).unwrap();
    symlink("../../../../etc/passwd", at("upwards")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("itself", at("itself")).unwrap();
    lchown(at("to-etc"), Some(77), Some(88)).unwrap();

    // Special files.
    UnixListener::bind(at("socket")).unwrap();
    rfs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rfs::mknodat(
        CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rfs::makedev(1, 3),
    )
    .unwrap();

    // Owners, modes, set-uid (which chown clears), a directory that nobody may enter.
    for (name, owner, mode) in [
        ("setuid", 1001, 0o4755),
        ("setgid", 1002, 0o2755),
        ("none", 1003, 0),
        ("ro", 65534, 0o444),
    ] {
        fs::write(at(name), name).unwrap();
        lchown(at(name), Some(owner), Some(owner + 1)).unwrap();
        with_mode(&at(name), mode);
    }
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("closed/inside"), b"inside").unwrap();
    fs::create_dir(at("sticky")).unwrap();
    with_mode(&at("sticky"), 0o1777);
    fs::create_dir(at("setgid-dir")).unwrap();
    lchown(at("setgid-dir"), None, Some(4321)).unwrap();
    with_mode(&at("setgid-dir"), 0o2770);
    fs::write(at("setgid-dir/heir"), b"heir").unwrap();

    // Extended attributes and ACLs, also on a directory and a default ACL.
    for name in ["small", "links"] {
        xattr::set(at(name), "user.colour", b"blue").unwrap();
        xattr::set(at(name), "user.empty", b"").unwrap();
        xattr::set(at(name), "trusted.secret", &noise(4, 200)).unwrap();
        xattr::set(at(name), "system.posix_acl_access", &some_acl()).unwrap();
    }
    xattr::set(at("links"), "system.posix_acl_default", &some_acl()).unwrap();
    fs::write(at("capable"), b"#!/bin/true").unwrap();
    // cap_net_raw+ep, version 2.
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend((1u32 << 13).to_le_bytes());
    capability.extend([0; 12]);
    xattr::set(at("capable"), "security.capability", &capability).unwrap();

    // Depth.
    let mut deep = at("deep");
    for level in 0..100 {
        fs::create_dir(&deep).unwrap();
        deep.push(format!("level-{level}"));
    }
    fs::write(deep, b"bottom").unwrap();

    with_mode(&at("closed"), 0);

    // Times last, because the writes above change those of directories: long ago, with
    // nanoseconds, and before 1970.
    for (name, seconds, nanoseconds) in [
        ("small", 1_000_000_000, 123_456_789),
        ("to-etc", 1_234_567_890, 1),
        ("links", 86_400, 999_999_999),
        ("deep", 1, 0),
        ("large", -3_600, 0),
        ("fifo", 4_000_000, 5),
    ] {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rfs::utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let time = Timespec { tv_sec: 1_111_111_111, tv_nsec: 111 };
    let times = Timestamps { last_access: time, last_modification: time };
    rfs::utimensat(CWD, root, &times, AtFlags::empty()).unwrap();
}

/// `count` small files in directories of 100.
pub(crate) fn many(root: &Path, count: usize) {
    for n in 0..count {
        let directory = root.join(format!("d{:04}", n / 100));
        if n % 100 == 0 {
            fs::create_dir(&directory).unwrap();
        }
        fs::write(directory.join(format!("f{n}")), noise(n as u64, n % 300)).unwrap();
    }
}
