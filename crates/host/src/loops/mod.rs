//! Loop devices: image files as block devices.
//!
//! ```text
//!  image ──attach──▶ attached ──detach──▶ gone
//!                       │  ▲
//!             autoclear on, last opener closes: gone by itself
//! ```
//! Invariants:
//! - a device is known by the inode of its image, never by a name: a record `(number, inode)` is
//!   checked against the kernel before every use, because numbers are reused;
//! - [`Loops::detach`] touches only a device that is still backed by the expected inode, and reports
//!   success only once the device is really gone.

mod real;
mod sys;

pub use real::RealLoops;
pub(crate) use real::image_behind;

use crate::mounts::DeviceId;
use larder_model::{Bytes, Result};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// The major number of loop devices.
pub const MAJOR: u32 = 7;

/// A loop device to make.
#[derive(Debug, Clone)]
pub struct LoopRequest {
    /// The image file.
    pub image: PathBuf,
    /// The device refuses writing.
    pub read_only: bool,
    /// The kernel removes the device when its last user closes it. For mounted file systems; a raw
    /// block volume is without, because its users come and go.
    pub autoclear: bool,
    /// Bypass the page cache of the file system below. Where that is impossible the device is made
    /// without; [`LoopInfo::direct_io`] tells.
    pub direct_io: bool,
    /// Logical sector size: 512 or 4096.
    pub sector_size: u32,
}

/// A loop device that was just made.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its number.
    pub number: u32,
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// An open descriptor: keeps an autoclear device alive until it is mounted. Drop it before
    /// asking who uses the device.
    pub hold: OwnedFd,
}

/// The file behind a loop device, as the kernel knows it. Inodes repeat between file systems, so both
/// numbers belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backing {
    /// Device of the file system that holds it (`st_dev`).
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl Backing {
    /// That of an image.
    ///
    /// # Errors
    /// `NotFound`; see [`larder_model::Fault::io`].
    pub fn of(image: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(image).map_err(|e| {
            larder_model::Fault::io(format!("look at image {}", image.display()), e)
        })?;
        Ok(Self { device: meta.dev(), inode: meta.ino() })
    }
}

/// What the kernel says of an attached loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopInfo {
    /// Its number.
    pub number: u32,
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Its device number.
    pub device: DeviceId,
    /// Device of the file system that holds the image (`st_dev`).
    pub backing_device: u64,
    /// Inode of the image.
    pub backing_inode: u64,
    /// Path of the image as the kernel knows it; None where that path is not known.
    pub backing_file: Option<PathBuf>,
    /// The image was deleted while attached.
    pub deleted: bool,
    /// It refuses writing.
    pub read_only: bool,
    /// It goes away with its last user.
    pub autoclear: bool,
    /// It bypasses the page cache of the file system below.
    pub direct_io: bool,
    /// Logical sector size.
    pub sector_size: u32,
    /// Size of the device.
    pub size: Bytes,
}

impl LoopInfo {
    /// The file behind it.
    pub fn backing(&self) -> Backing {
        Backing { device: self.backing_device, inode: self.backing_inode }
    }
}

/// Loop devices.
pub trait Loops: Send + Sync {
    /// Makes a loop device over an image. Every call makes a new one: look with [`Loops::find`]
    /// first. Safe against others who attach at the same time, in any process.
    ///
    /// # Errors
    /// `NotFound` for an absent image; `Exhausted` when no device is free; `Invalid` for a sector
    /// size other than 512 and 4096; `Precondition` where the image's size is no multiple of it.
    fn attach(&self, request: &LoopRequest) -> Result<LoopDevice>;

    /// All devices over this image (by device and inode), by number.
    ///
    /// # Errors
    /// `NotFound` for an absent image.
    fn find(&self, image: &Path) -> Result<Vec<LoopInfo>>;

    /// All attached devices, by number.
    ///
    /// # Errors
    /// `Internal`.
    fn list(&self) -> Result<Vec<LoopInfo>>;

    /// What device `number` is; None: nothing is attached there.
    ///
    /// # Errors
    /// `Internal`.
    fn info(&self, number: u32) -> Result<Option<LoopInfo>>;

    /// Removes device `number` if it is still backed by that file. Gone already, or
    /// somebody else's by now: done.
    ///
    /// # Errors
    /// `Precondition` while it is in use (the device then stays exactly as it was).
    fn detach(&self, number: u32, backing: Backing) -> Result<()>;

    /// Makes the device as large as its image is now; returns that size.
    ///
    /// # Errors
    /// `NotFound` when nothing is attached there.
    fn set_capacity(&self, number: u32) -> Result<Bytes>;

    /// Turns autoclear on or off.
    ///
    /// # Errors
    /// `NotFound` when nothing is attached there.
    fn set_autoclear(&self, number: u32, on: bool) -> Result<()>;
}
