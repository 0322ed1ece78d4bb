//! The ioctls of loop devices (`include/uapi/linux/loop.h`).

#![allow(unsafe_code, reason = "ioctls without a safe wrapper")]

use crate::sys::{ioctl, ioctl_number};
use rustix::{
    fd::{AsFd, AsRawFd},
    io::Result,
};

pub(super) const READ_ONLY: u32 = 1;
pub(super) const AUTOCLEAR: u32 = 4;
pub(super) const DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Info64 {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) rdevice: u64,
    pub(super) offset: u64,
    pub(super) size_limit: u64,
    pub(super) number: u32,
    pub(super) encrypt_type: u32,
    pub(super) encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; 64],
    pub(super) crypt_name: [u8; 64],
    pub(super) encrypt_key: [u8; 32],
    pub(super) init: [u64; 2],
}

impl Info64 {
    pub(super) fn backing(&self) -> super::Backing {
        super::Backing { device: self.device, inode: self.inode }
    }
    pub(super) const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}

/// The number of a device that is free at this moment; made when there is none.
pub(super) fn get_free(control: impl AsFd) -> Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    unsafe { ioctl_number(control, 0x4C82, 0) }.map(i32::unsigned_abs)
}

/// Makes a new device with the next number that does not exist yet.
pub(super) fn add_new(control: impl AsFd) -> Result<u32> {
    // SAFETY: LOOP_CTL_ADD takes a number; -1 stands for "any".
    unsafe { ioctl_number(control, 0x4C80, libc::c_ulong::MAX) }.map(i32::unsigned_abs)
}

/// Puts `image` under `device`, all settings at once.
pub(super) fn configure(
    device: impl AsFd,
    image: impl AsFd,
    sector_size: u32,
    flags: u32,
    name: &[u8],
) -> Result<()> {
    let mut info = Info64 { flags, ..Info64::EMPTY };
    // The last byte stays NUL.
    let length = name.len().min(info.file_name.len() - 1);
    info.file_name[..length].copy_from_slice(&name[..length]);
    let mut config = Config {
        fd: image.as_fd().as_raw_fd().unsigned_abs(),
        block_size: sector_size,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`.
    unsafe { ioctl(device, 0x4C0A, &mut config) }.map(drop)
}

/// What is attached; `ENXIO`: nothing.
pub(super) fn status(device: impl AsFd) -> Result<Info64> {
    let mut info = Info64::EMPTY;
    // SAFETY: LOOP_GET_STATUS64 writes a `struct loop_info64`.
    unsafe { ioctl(device, 0x4C05, &mut info) }.map(|_| info)
}

/// Changes what can be changed of an attached device: its flags, here.
pub(super) fn set_status(device: impl AsFd, info: &Info64) -> Result<()> {
    let mut info = *info;
    // SAFETY: LOOP_SET_STATUS64 reads a `struct loop_info64`.
    unsafe { ioctl(device, 0x4C04, &mut info) }.map(drop)
}

/// Lets go of the image: at once when the caller is the only opener; otherwise the kernel only turns
/// autoclear on, and reports success all the same.
pub(super) fn clear(device: impl AsFd) -> Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    unsafe { ioctl_number(device, 0x4C01, 0) }.map(drop)
}

/// Takes over the size of the image.
pub(super) fn set_capacity(device: impl AsFd) -> Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    unsafe { ioctl_number(device, 0x4C07, 0) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_that_the_kernel_expects() {
        assert_eq!(size_of::<Info64>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
