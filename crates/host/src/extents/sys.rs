//! `FS_IOC_FIEMAP` (`include/uapi/linux/fiemap.h`) and the attribute that names a file's device.

#![allow(unsafe_code, reason = "ioctls without a safe wrapper")]

use crate::sys::ioctl;
use rustix::{
    fd::AsFd,
    io::Result,
    ioctl::{Opcode, Updater, opcode},
};

/// How many extents the kernel tells of at a time: 56 KiB of them.
const BATCH: usize = 1000;
const ROOM: u32 = 1000;

/// Nothing of the file's data is in memory only when the kernel answers.
const SYNC: u32 = 1;

pub(super) const LAST: u32 = 1;
pub(super) const UNWRITTEN: u32 = 0x800;
pub(super) const MERGED: u32 = 0x1000;
pub(super) const SHARED: u32 = 0x2000;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RawExtent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    reserved64: [u64; 2],
    pub(super) flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// `struct fsxattr`, which has an opcode of its own size.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    rest: [u32; 6],
}

const FIEMAP: u32 = 0xC020_660B;
const GET_ATTRIBUTES: Opcode = opcode::read::<Attributes>(b'X', 31);
const REALTIME: u32 = 1;

const _: () = {
    assert!(BATCH == ROOM as usize);
    assert!(size_of::<RawExtent>() == 56);
    assert!(size_of::<Request>() == 32 + BATCH * 56);
    assert!(size_of::<Attributes>() == 28);
};

/// The first extents of a file in `start..end`, ascending; none: there is but a hole.
pub(super) fn extents(file: impl AsFd, start: u64, end: u64) -> Result<Vec<RawExtent>> {
    let mut request = Box::new(Request {
        start,
        length: end - start,
        flags: SYNC,
        mapped: 0,
        room: ROOM,
        reserved: 0,
        extents: [RawExtent::default(); BATCH],
    });
    // SAFETY: FS_IOC_FIEMAP takes a `struct fiemap` and writes at most `room` extents behind its
    // head, which is as many as follow there; `repr(C)`, sizes asserted above, any bytes are valid.
    unsafe { ioctl(file, FIEMAP, &mut *request) }?;
    let mapped = usize::try_from(request.mapped).unwrap_or(BATCH).min(BATCH);
    Ok(request.extents[..mapped].to_vec())
}

/// Whether the file's data is on the second device of an xfs, whose addresses begin at 0 again.
pub(super) fn is_realtime(file: impl AsFd) -> Result<bool> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel fills the structure that the opcode names; it is `repr(C)`, of the size
    // that the opcode says (asserted above), and any bytes are valid in it.
    unsafe { rustix::ioctl::ioctl(file, Updater::<GET_ATTRIBUTES, _>::new(&mut attributes)) }?;
    Ok(attributes.flags & REALTIME != 0)
}
