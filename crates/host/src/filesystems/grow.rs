//! Growing file systems to the size of their devices.
//!
//! Online growth is one ioctl. Offline, ext4 is checked and grown by its tools; xfs and btrfs can
//! only grow while mounted: they get a mount that is attached nowhere, visible to nobody, and gone
//! with its descriptor, also when this process is killed.

use super::{check::e2fsck, geometry};
use crate::{command::Command, sys::io_fault};
use larder_model::{Bytes, Fault, FsType, Kind, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};
use std::{fs::File, path::Path, time::Duration};

const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// `btrfs_ioctl_resize` answers EINVAL below this.
const BTRFS_LEAST_GROWN: u64 = 256 << 20;
/// xfs adds no allocation group smaller than this (`XFS_MIN_AG_BLOCKS`).
const XFS_LEAST_GROWTH: u64 = 64;

/// See [`super::FileSystems::size`].
pub(super) fn size(device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<Bytes> {
    match (mounted_at, fs) {
        (Some(path), FsType::Xfs | FsType::Btrfs) => {
            geometry::mounted(&open_directory(path)?, path, fs)
        }
        _ => geometry::superblock(device, &open_device(device)?, fs).map(|(size, _)| size),
    }
}

/// See [`super::FileSystems::grow`].
pub(super) fn grow(device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
    let what = || format!("grow {fs} on {}", device.display());
    let file = open_device(device)?;
    let room = crate::sys::block_device_size(&file).map_err(|e| io_fault(what(), e))?;
    match (fs, mounted_at) {
        (FsType::Ext4, Some(path)) => {
            let (now, block_size) = geometry::superblock(device, &file, fs)?;
            grow_ext4_online(path, now, room / block_size, block_size).map_err(|e| e.during(what()))
        }
        (FsType::Ext4, None) => {
            let (now, block_size) = geometry::superblock(device, &file, fs)?;
            drop(file);
            if now.get() / block_size >= room / block_size {
                return Ok(());
            }
            // resize2fs demands a check that is newer than the last mount.
            e2fsck(device, &["-f", "-p"])?;
            Command::new("resize2fs").arg(device).deadline(DEADLINE).run().map(drop)
        }
        (FsType::Xfs | FsType::Btrfs, Some(path)) => {
            grow_mounted(open_directory(path)?, fs, room).map_err(|e| e.during(what()))
        }
        (FsType::Xfs | FsType::Btrfs, None) => {
            drop(file);
            let mount = mount_nowhere(device, fs)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(&mount, ".", flags, Mode::empty())
                .map_err(|e| io_fault(what(), e))?;
            grow_mounted(root, fs, room).map_err(|e| e.during(what()))
        }
    }
}

fn grow_ext4_online(path: &Path, now: Bytes, blocks: u64, block_size: u64) -> Result<()> {
    if now.get() / block_size >= blocks {
        return Ok(());
    }
    let directory = open_directory(path)?;
    rustix::fs::ext4_ioc_resize_fs(&directory, blocks).map_err(|e| match e {
        Errno::PERM => {
            io_fault("grow ext4 while it is mounted", e).with_kind(Kind::Precondition).hint(
                "the capability CAP_SYS_RESOURCE is missing: run with it, or unmount the volume \
                 everywhere: it grows when it is next mounted",
            )
        }
        Errno::BUSY => {
            io_fault("grow ext4: it is being grown already", e).with_kind(Kind::Unavailable)
        }
        // Growth is refused after errors were found (EXT4_ERROR_FS).
        Errno::UCLEAN => io_fault("grow ext4 that has errors", e)
            .with_kind(Kind::Precondition)
            .hint("unmount it and run e2fsck"),
        _ => io_fault("grow ext4 while it is mounted", e),
    })
}

fn grow_mounted(directory: impl AsFd, fs: FsType, room: u64) -> Result<()> {
    let what = format!("grow {fs}");
    if fs == FsType::Btrfs {
        let (device, now) = geometry::btrfs_device(&directory).map_err(|e| match e {
            Errno::INVAL => io_fault(what.clone(), e)
                .with_kind(Kind::Precondition)
                .hint("it has several devices; grow it with btrfs filesystem resize"),
            _ => io_fault(what.clone(), e),
        })?;
        // The kernel rounds down to whole sectors of 4 KiB, and refuses to grow one to so little.
        if now >= room & !4095 || room < BTRFS_LEAST_GROWN {
            return Ok(());
        }
        return geometry::btrfs_grow(&directory, device).map_err(|e| io_fault(what, e));
    }
    let geometry = geometry::xfs_geometry(&directory).map_err(|e| io_fault(what.clone(), e))?;
    let blocks = room / geometry.block_size;
    if geometry.blocks >= blocks {
        return Ok(());
    }
    match geometry::xfs_grow(&directory, blocks, geometry.inode_percent) {
        Err(Errno::INVAL) if blocks - geometry.blocks < XFS_LEAST_GROWTH => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            Err(Fault::unavailable(format!("{what}: it is being grown already")))
        }
        result => result.map_err(|e| io_fault(what, e)),
    }
}

/// A mount that is attached nowhere.
fn mount_nowhere(device: &Path, fs: FsType) -> Result<OwnedFd> {
    let attempt = || {
        let context = fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        if fs == FsType::Xfs {
            // Its clone may be mounted at this moment.
            fsconfig_set_flag(&context, "nouuid")?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    attempt().map_err(|e| {
        let what = format!("mount {fs} on {} to grow it", device.display());
        match e {
            Errno::UCLEAN | Errno::BADMSG => io_fault(what, e).with_kind(Kind::Corrupt),
            Errno::INVAL | Errno::BUSY => io_fault(what, e).with_kind(Kind::Precondition),
            _ => io_fault(what, e),
        }
    })
}

fn open_device(device: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(CWD, device, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(format!("open {}", device.display()), e))
}

fn open_directory(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(format!("open {}", path.display()), e))
}
