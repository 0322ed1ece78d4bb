//! Sizes that file systems believe to have, and the ioctls that change them.
//!
//! Unmounted, the superblock on the device is read; mounted, the kernel is asked, because xfs and
//! btrfs write their superblocks late.

#![allow(unsafe_code, reason = "ioctls without a safe wrapper")]

use crate::sys::io_fault;
use larder_model::{Bytes, Fault, FsType, Result};
use rustix::{fd::AsFd, io::Errno};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

/// Geometry of an xfs file system (`struct xfs_fsop_geom_v1`), as far as it is used.
pub(super) struct XfsGeometry {
    pub(super) block_size: u64,
    pub(super) blocks: u64,
    pub(super) inode_percent: u32,
}

/// Asks a mounted xfs.
pub(super) fn xfs_geometry(directory: impl AsFd) -> rustix::io::Result<XfsGeometry> {
    const XFS_IOC_FSGEOMETRY_V1: u32 = 0x8070_5864;
    let mut words = [0_u64; 14];
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes 112 bytes.
    unsafe { crate::sys::ioctl(directory, XFS_IOC_FSGEOMETRY_V1, &mut words) }?;
    let half = |word: u64, high: bool| {
        let bytes = word.to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        u32::from_ne_bytes(if high { [e, f, g, h] } else { [a, b, c, d] })
    };
    Ok(XfsGeometry {
        block_size: half(words[0], false).into(),
        inode_percent: half(words[3], true),
        blocks: words[4],
    })
}

/// Grows a mounted xfs to `blocks`.
pub(super) fn xfs_grow(
    directory: impl AsFd,
    blocks: u64,
    inode_percent: u32,
) -> rustix::io::Result<()> {
    #[repr(C)]
    struct Growth {
        blocks: u64,
        inode_percent: u32,
        padding: u32,
    }
    const XFS_IOC_FSGROWFSDATA: u32 = 0x4010_586e;
    let mut growth = Growth { blocks, inode_percent, padding: 0 };
    // SAFETY: XFS_IOC_FSGROWFSDATA reads a `struct xfs_growfs_data`, which is 16 bytes.
    unsafe { crate::sys::ioctl(directory, XFS_IOC_FSGROWFSDATA, &mut growth) }.map(drop)
}

/// Id and size of the device that a mounted btrfs has; `EINVAL` where it has several.
pub(super) fn btrfs_device(directory: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    const BTRFS_IOC_FS_INFO: u32 = 0x8400_941f;
    const BTRFS_IOC_DEV_INFO: u32 = 0xd000_941e;
    // struct btrfs_ioctl_fs_info_args: max_id, num_devices, …
    let mut info = [0_u64; 128];
    // SAFETY: BTRFS_IOC_FS_INFO writes 1024 bytes.
    unsafe { crate::sys::ioctl(directory.as_fd(), BTRFS_IOC_FS_INFO, &mut info) }?;
    if info[1] != 1 {
        return Err(Errno::INVAL);
    }
    for id in 1..=info[0] {
        // struct btrfs_ioctl_dev_info_args: devid, uuid[16], bytes_used, total_bytes, …
        let mut device = [0_u64; 512];
        device[0] = id;
        // SAFETY: BTRFS_IOC_DEV_INFO reads and writes 4096 bytes.
        match unsafe { crate::sys::ioctl(directory.as_fd(), BTRFS_IOC_DEV_INFO, &mut device) } {
            Ok(_) => return Ok((id, device[4])),
            // Ids of removed devices are not used again.
            Err(Errno::NODEV) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::NODEV)
}

/// Grows a mounted btrfs to the end of its device.
pub(super) fn btrfs_grow(directory: impl AsFd, device: u64) -> rustix::io::Result<()> {
    #[repr(C)]
    struct VolumeArgs {
        fd: i64,
        name: [u8; 4088],
    }
    const BTRFS_IOC_RESIZE: u32 = 0x5000_9403;
    let mut arguments = VolumeArgs { fd: 0, name: [0; 4088] };
    let text = format!("{device}:max");
    arguments.name[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: BTRFS_IOC_RESIZE reads a `struct btrfs_ioctl_vol_args`, which is 4096 bytes.
    unsafe { crate::sys::ioctl(directory, BTRFS_IOC_RESIZE, &mut arguments) }.map(drop)
}

/// Size and block size from the superblock on the device.
pub(super) fn superblock(device: &Path, file: &File, fs: FsType) -> Result<(Bytes, u64)> {
    let what = || format!("read the {fs} superblock of {}", device.display());
    let damaged = || {
        Fault::corrupt(format!("{}: it has none", what()))
            .hint("another file system is there, or this one is damaged")
    };
    let mut block = [0; 1024];
    let at = match fs {
        FsType::Ext4 => 1024,
        FsType::Xfs => 0,
        FsType::Btrfs => 65536,
    };
    file.read_exact_at(&mut block, at).map_err(|e| Fault::io(what(), e))?;
    let u32_le = |at| Some(u32::from_le_bytes(bytes(&block, at)?));
    let (size, block_size) = match fs {
        FsType::Ext4 => (|| {
            (bytes(&block, 0x38)? == [0x53, 0xef]).then_some(())?;
            let block_size = 1024_u64.checked_shl(u32_le(0x18)?)?;
            let high = if u32_le(0x60)? & 0x80 == 0 { 0 } else { u32_le(0x150)? };
            let blocks = (u64::from(high) << 32) | u64::from(u32_le(0x4)?);
            Some((blocks.checked_mul(block_size)?, block_size))
        })(),
        FsType::Xfs => (|| {
            (bytes(&block, 0)? == *b"XFSB").then_some(())?;
            let block_size = u64::from(u32::from_be_bytes(bytes(&block, 4)?));
            Some((u64::from_be_bytes(bytes(&block, 8)?).checked_mul(block_size)?, block_size))
        })(),
        FsType::Btrfs => (|| {
            (bytes(&block, 64)? == *b"_BHRfS_M").then_some(())?;
            // The size of this device in the file system: dev_item.total_bytes.
            Some((u64::from_le_bytes(bytes(&block, 209)?), 4096))
        })(),
    }
    .ok_or_else(damaged)?;
    Ok((Bytes::new(size), block_size))
}

fn bytes<const N: usize>(block: &[u8], at: usize) -> Option<[u8; N]> {
    block.get(at..at + N)?.try_into().ok()
}

/// Size of a mounted file system.
pub(super) fn mounted(directory: &File, path: &Path, fs: FsType) -> Result<Bytes> {
    let what = || format!("ask {fs} at {} for its size", path.display());
    match fs {
        FsType::Xfs => xfs_geometry(directory)
            .map(|g| Bytes::new(g.blocks.saturating_mul(g.block_size)))
            .map_err(|e| io_fault(what(), e)),
        FsType::Btrfs => btrfs_device(directory)
            .map(|(_, size)| Bytes::new(size))
            .map_err(|e| io_fault(what(), e)),
        FsType::Ext4 => Err(Fault::internal(format!("{}: its superblock tells", what()))),
    }
}
