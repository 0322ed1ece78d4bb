//! The ioctls of btrfs (`include/uapi/linux/btrfs.h`, `btrfs_tree.h`).

#![allow(unsafe_code, reason = "ioctls without a safe wrapper")]

use rustix::{
    fd::{AsFd, AsRawFd},
    io::{Errno, Result},
    ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode},
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

const GROUP: u8 = 0x94;
/// Inode of the root of every subvolume, and lowest id of a subvolume that users make.
pub(super) const FIRST_FREE: u64 = 256;
const SUBVOLUME_READ_ONLY: u64 = 1 << 1;
/// Longest name and path in the structures below, with the NUL.
const VOL_NAME: usize = 4088;
const VOL_NAME_V2: usize = 4040;

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; VOL_NAME_V2],
}

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; VOL_NAME],
}

/// `struct btrfs_ioctl_ino_lookup_args`
#[repr(C)]
struct InoLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_ino_lookup_user_args`
#[repr(C)]
struct InoLookupUser {
    dir: u64,
    tree: u64,
    name: [u8; 256],
    path: [u8; 3824],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`
#[repr(C)]
struct RootRefs {
    least: u64,
    refs: [RootRef; 255],
    count: u8,
    align: [u8; 7],
}

/// A subvolume that is nested in another one.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RootRef {
    /// Its id.
    pub(super) tree: u64,
    /// Inode of the directory that holds it, in the outer subvolume.
    pub(super) dir: u64,
}

/// `struct btrfs_ioctl_quota_ctl_args`
#[repr(C)]
struct QuotaCtl {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`
#[repr(C)]
struct QgroupCreate {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args` with `struct btrfs_qgroup_limit`
#[repr(C)]
struct QgroupLimit {
    id: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct btrfs_ioctl_search_args` with `struct btrfs_ioctl_search_key`
#[repr(C)]
struct Search {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    unused64: [u64; 4],
    buffer: [u8; 4096 - 104],
}

const SYNC: Opcode = opcode::none(GROUP, 8);
const SNAP_DESTROY: Opcode = opcode::write::<VolArgs>(GROUP, 15);
const TREE_SEARCH: Opcode = opcode::read_write::<Search>(GROUP, 17);
const INO_LOOKUP: Opcode = opcode::read_write::<InoLookup>(GROUP, 18);
const SNAP_CREATE_V2: Opcode = opcode::write::<VolArgsV2>(GROUP, 23);
const SUBVOL_CREATE_V2: Opcode = opcode::write::<VolArgsV2>(GROUP, 24);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(GROUP, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(GROUP, 26);
const QUOTA_CTL: Opcode = opcode::read_write::<QuotaCtl>(GROUP, 40);
const QGROUP_CREATE: Opcode = opcode::write::<QgroupCreate>(GROUP, 42);
const QGROUP_LIMIT: Opcode = opcode::read::<QgroupLimit>(GROUP, 43);
const GET_SUBVOL_ROOTREF: Opcode = opcode::read_write::<RootRefs>(GROUP, 61);
const INO_LOOKUP_USER: Opcode = opcode::read_write::<InoLookupUser>(GROUP, 62);

// The kernel knows these calls by the sizes of their structures.
const _: () = {
    assert!(size_of::<VolArgs>() == 4096);
    assert!(size_of::<VolArgsV2>() == 4096);
    assert!(size_of::<InoLookup>() == 4096);
    assert!(size_of::<InoLookupUser>() == 4096);
    assert!(size_of::<RootRefs>() == 4096);
    assert!(size_of::<Search>() == 4096);
    assert!(size_of::<QgroupLimit>() == 48);
};

/// Calls with a structure that the kernel reads and may write.
fn update<const OPCODE: Opcode, T>(fd: impl AsFd, value: &mut T) -> Result<()> {
    // SAFETY: every caller in this module passes the opcode of the very structure `T`, which is
    // `repr(C)`, of the size that the opcode says, and valid for any bytes the kernel may write.
    unsafe { ioctl(fd, Updater::<OPCODE, T>::new(value)) }
}

/// Calls with a structure that the kernel only reads.
fn set<const OPCODE: Opcode, T>(fd: impl AsFd, value: T) -> Result<()> {
    // SAFETY: as in `update`; the kernel does not write.
    unsafe { ioctl(fd, Setter::<OPCODE, T>::new(value)) }
}

fn name<const N: usize>(text: &OsStr) -> Result<[u8; N]> {
    let mut name = [0; N];
    let bytes = text.as_bytes();
    if bytes.len() >= N || bytes.contains(&0) {
        return Err(Errno::NAMETOOLONG);
    }
    name[..bytes.len()].copy_from_slice(bytes);
    Ok(name)
}

fn text(bytes: &[u8]) -> &OsStr {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    OsStr::from_bytes(&bytes[..end])
}

/// Makes subvolume `child` in directory `parent`.
pub(super) fn create(parent: impl AsFd, child: &OsStr) -> Result<()> {
    let args = VolArgsV2 { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: name(child)? };
    set::<SUBVOL_CREATE_V2, _>(parent, args)
}

/// Makes `child` in directory `parent` a snapshot of `source`.
pub(super) fn snapshot(
    parent: impl AsFd,
    child: &OsStr,
    source: impl AsFd,
    read_only: bool,
) -> Result<()> {
    let args = VolArgsV2 {
        fd: source.as_fd().as_raw_fd().into(),
        transid: 0,
        flags: if read_only { SUBVOLUME_READ_ONLY } else { 0 },
        unused: [0; 4],
        name: name(child)?,
    };
    set::<SNAP_CREATE_V2, _>(parent, args)
}

/// Deletes subvolume `child` of directory `parent`.
pub(super) fn destroy(parent: impl AsFd, child: &OsStr) -> Result<()> {
    set::<SNAP_DESTROY, _>(parent, VolArgs { fd: 0, name: name(child)? })
}

/// Whether the subvolume is read-only.
pub(super) fn is_read_only(subvolume: impl AsFd) -> Result<bool> {
    Ok(flags(subvolume)? & SUBVOLUME_READ_ONLY != 0)
}

fn flags(subvolume: impl AsFd) -> Result<u64> {
    let mut flags = 0;
    update::<SUBVOL_GETFLAGS, u64>(subvolume, &mut flags)?;
    Ok(flags)
}

/// Makes the subvolume read-only or writable.
pub(super) fn set_read_only(subvolume: impl AsFd, read_only: bool) -> Result<()> {
    let flags = flags(subvolume.as_fd())? & !SUBVOLUME_READ_ONLY;
    let flags = if read_only { flags | SUBVOLUME_READ_ONLY } else { flags };
    set::<SUBVOL_SETFLAGS, u64>(subvolume, flags)
}

/// The id of the subvolume that `inside` lies in.
pub(super) fn subvolume_id(inside: impl AsFd) -> Result<u64> {
    let mut args = InoLookup { tree: 0, object: FIRST_FREE, name: [0; 4080] };
    update::<INO_LOOKUP, _>(inside, &mut args)?;
    Ok(args.tree)
}

/// The subvolumes directly nested in the one that `subvolume` is the root of.
pub(super) fn nested(subvolume: impl AsFd) -> Result<Vec<RootRef>> {
    let mut all = Vec::new();
    let mut least = 0;
    loop {
        let mut args =
            RootRefs { least, refs: [RootRef { tree: 0, dir: 0 }; 255], count: 0, align: [0; 7] };
        let result = update::<GET_SUBVOL_ROOTREF, _>(subvolume.as_fd(), &mut args);
        all.extend_from_slice(&args.refs[..args.count.into()]);
        match result {
            Ok(()) => return Ok(all),
            // More than fit: the kernel has moved `least` on.
            Err(Errno::OVERFLOW) => least = args.least,
            Err(e) => return Err(e),
        }
    }
}

/// Where in `subvolume` a nested one is: the directory, relative to the subvolume's root, and its
/// name there.
pub(super) fn place_of(subvolume: impl AsFd, nested: RootRef) -> Result<std::path::PathBuf> {
    let mut args =
        InoLookupUser { dir: nested.dir, tree: nested.tree, name: [0; 256], path: [0; 3824] };
    update::<INO_LOOKUP_USER, _>(subvolume, &mut args)?;
    Ok(std::path::Path::new(text(&args.path)).join(text(&args.name)))
}

/// Turns quota accounting on.
pub(super) fn enable_quota(dir: impl AsFd) -> Result<()> {
    update::<QUOTA_CTL, _>(dir, &mut QuotaCtl { command: 1, status: 0 })
}

/// Makes or removes the qgroup of subvolume `id`.
pub(super) fn change_qgroup(dir: impl AsFd, id: u64, create: bool) -> Result<()> {
    set::<QGROUP_CREATE, _>(dir, QgroupCreate { create: create.into(), id })
}

/// Limits the bytes that the qgroup of subvolume `id` refers to; None: no limit.
pub(super) fn limit_qgroup(dir: impl AsFd, id: u64, bytes: Option<u64>) -> Result<()> {
    const MAX_REFERENCED: u64 = 1;
    let mut args = QgroupLimit {
        id,
        flags: MAX_REFERENCED,
        // The largest number lifts the limit.
        max_referenced: bytes.unwrap_or(u64::MAX),
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    update::<QGROUP_LIMIT, _>(dir, &mut args)
}

/// What is kept of one qgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Qgroup {
    /// Bytes that its subvolume refers to, as of the last commit (30 seconds ago at most).
    pub(super) referenced: u64,
    /// The limit for them.
    pub(super) limit: Option<u64>,
}

/// Writes everything out, and sets the thread going that takes deleted subvolumes apart.
pub(super) fn sync(dir: impl AsFd) -> Result<()> {
    // SAFETY: the call has no argument.
    unsafe { ioctl(dir, NoArg::<SYNC>::new()) }
}

const ROOT_TREE: u64 = 1;
/// The owner of the list of what was deleted and not yet taken apart: -5.
const ORPHANS: u64 = u64::MAX - 4;
const ORPHAN_ITEM: u32 = 48;

/// Whether there are deleted subvolumes whose space was not yet given back.
pub(super) fn has_deleted(dir: impl AsFd) -> Result<bool> {
    let key = Key { tree: ROOT_TREE, object: ORPHANS, kind: ORPHAN_ITEM, offsets: (0, u64::MAX) };
    search(dir, key, |_| Some(())).map(|found| found.is_some())
}

const QUOTA_TREE: u64 = 8;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMIT_ITEM: u32 = 244;

/// The qgroup of subvolume `id`; None: there is none.
///
/// # Errors
/// `ENOENT` while quota accounting is off.
pub(super) fn qgroup(dir: impl AsFd, id: u64) -> Result<Option<Qgroup>> {
    // generation, referenced, …
    let Some(referenced) = quota_item(dir.as_fd(), QGROUP_INFO, id, |item| number(item, 8))? else {
        return Ok(None);
    };
    // flags, max_referenced, …
    let limit = quota_item(dir, QGROUP_LIMIT_ITEM, id, |item| {
        (number(item, 0)? & 1 != 0).then(|| number(item, 8))?
    })?;
    Ok(Some(Qgroup { referenced, limit }))
}

/// Looks up one item of the quota tree. Exactly one: a search returns everything between two keys,
/// which for two kinds of items of one qgroup would be the items of all others.
fn quota_item<T>(
    dir: impl AsFd,
    kind: u32,
    id: u64,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    search(dir, Key { tree: QUOTA_TREE, object: 0, kind, offsets: (id, id) }, read)
}

/// Where items are looked for.
struct Key {
    tree: u64,
    object: u64,
    kind: u32,
    offsets: (u64, u64),
}

/// The first item there.
fn search<T>(dir: impl AsFd, key: Key, read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    let mut args = Search {
        tree: key.tree,
        min_object: key.object,
        max_object: key.object,
        min_offset: key.offsets.0,
        max_offset: key.offsets.1,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: key.kind,
        max_type: key.kind,
        items: 1,
        unused: 0,
        unused64: [0; 4],
        buffer: [0; 4096 - 104],
    };
    update::<TREE_SEARCH, _>(dir, &mut args)?;
    // A header (transid, object, offset: u64; type, length: u32), then the item.
    Ok(if args.items == 0 { None } else { read(&args.buffer[32..]) })
}

/// Items are little-endian.
fn number(item: &[u8], at: usize) -> Option<u64> {
    item.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
