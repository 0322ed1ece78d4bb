//! File systems on devices: what is there, make, check, grow, measure.
//!
//! Invariants:
//! - *blank* is proven, never assumed: the low-level probe of blkid finds no signature of any kind
//!   (file systems, RAID, LVM, LUKS, partition tables) **and** the first and last 4 MiB read as
//!   zeros; any error on the way is an error, not an answer. That is proof for a device that was made
//!   empty and that nobody had since; of any other all bytes are read ([`FileSystems::first_data`]);
//! - mkfs is never told to force, except by [`FileSystems::make_again`], whose caller holds a
//!   record that our own mkfs was cut on that very device;
//! - nothing is ever wiped to make mkfs pass;
//! - checking never repairs what needs a decision: `e2fsck -p` for ext4, log replay by mounting
//!   for xfs and btrfs.

mod blank;
mod check;
pub mod errors;
mod geometry;
mod grow;
mod make;
mod probe;
mod real;
pub(crate) mod usage;
pub(crate) mod way;

pub use make::least_size;
pub use real::RealFileSystems;

use larder_model::{Bytes, Cx, FsType, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How [`Found::Other`] names an encrypted device.
pub const LUKS: &str = "LUKS";
/// How [`Found::Other`] begins for what no tool knows.
pub(crate) const DATA: &str = "data at byte ";

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, proven.
    Blank,
    /// One of our file systems.
    FileSystem(FsType),
    /// Something else, in words: `LUKS`, `ntfs`, `partition table dos`, `data at byte 4096`.
    Other(String),
}

impl Found {
    /// Data that no tool knows: no signature tells what it is.
    pub fn is_nameless(&self) -> bool {
        matches!(self, Self::Other(what) if what.starts_with(DATA))
    }
}

/// How full a file system (or a directory with a quota) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Size.
    pub total: Bytes,
    /// What an ordinary user can still write.
    pub available: Bytes,
    /// What is used.
    pub used: Bytes,
    /// Inodes in all; 0 where the file system does not count them.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Used inodes.
    pub inodes_used: u64,
}

/// Label and UUID of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Label, where there is one.
    pub label: Option<String>,
    /// UUID, where there is one.
    pub uuid: Option<String>,
}

/// Mount options with which a reader-only mount neither replays the log nor repairs anything:
/// the device is not written at all. They go together with a read-only mount.
pub fn reader_options(fs: FsType) -> &'static [&'static str] {
    match fs {
        FsType::Ext4 => &["noload"],
        FsType::Xfs => &["norecovery"],
        FsType::Btrfs => &["rescue=nologreplay"],
    }
}

/// Tools for file systems.
pub trait FileSystems: Send + Sync {
    /// What is on the device.
    ///
    /// # Errors
    /// Any failure to find out; never [`Found::Blank`] instead.
    fn probe(&self, device: &Path) -> Result<Found>;

    /// Where the first byte of the whole device lies that is not zero; None: there is none. Reads all
    /// of it but the holes of an image, with constant memory; progress in bytes goes to `cx`.
    ///
    /// # Errors
    /// Any failure to read a part of it.
    fn first_data(&self, device: &Path, cx: &Cx) -> Result<Option<u64>>;

    /// Makes a file system on a blank device. `options` are further arguments for mkfs. The tools'
    /// own refusal to overwrite something stays in force.
    ///
    /// # Errors
    /// `Precondition` when something is on it or the tool is missing; `OutOfRange` for a device
    /// that is too small; `Invalid` for refused options.
    fn make(&self, device: &Path, fs: FsType, options: &[String]) -> Result<()>;

    /// Makes a file system over the remains of our own mkfs that was cut. Only for a device whose
    /// own record says `formatting`.
    ///
    /// # Errors
    /// As [`FileSystems::make`].
    fn make_again(&self, device: &Path, fs: FsType, options: &[String]) -> Result<()>;

    /// Checks an unmounted file system before it is mounted for writing. ext4: `e2fsck -p`. xfs and
    /// btrfs: nothing, their log is replayed by mounting.
    ///
    /// # Errors
    /// `Precondition` where damage is left that needs a person, or it is mounted.
    fn check(&self, device: &Path, fs: FsType) -> Result<()>;

    /// Makes the file system as large as its device: online at `mounted_at`, otherwise offline.
    /// It is large enough already: done.
    ///
    /// # Errors
    /// `Precondition` for a missing capability (named) or a damaged file system.
    fn grow(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()>;

    /// Whether one that is mounted can be grown by this process: ext4 takes CAP_SYS_RESOURCE for that.
    fn grows_mounted(&self, fs: FsType) -> bool {
        let _ = fs;
        true
    }

    /// The size that the file system believes it has on this device.
    ///
    /// # Errors
    /// `Corrupt` when its superblock cannot be read.
    fn size(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<Bytes>;

    /// How full the file system at `path` is. Kinds that may hang (network, FUSE) are asked by a
    /// process of its own with a deadline, so that neither the call nor a thread is stuck for ever.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer in time; `NotFound`.
    fn usage(&self, path: &Path) -> Result<Usage>;

    /// Proves that the file system which holds `path` answers. Kinds that may not (network, FUSE)
    /// are asked by a process of its own, once for all who want to know, and not again while a
    /// former question hangs. `path` itself need not exist.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer: at the deadline, and at once as long as that is known.
    fn answers(&self, path: &Path) -> Result<()> {
        let _ = path;
        Ok(())
    }

    /// What [`FileSystems::answers`] has last found out about a file system that may not answer,
    /// without waiting; it is asked again in the background. None: it is of a kind that answers.
    fn last_answer(&self, path: &Path) -> Option<Result<()>> {
        let _ = path;
        None
    }

    /// Label and UUID of what is on the device; empty for a blank one.
    ///
    /// # Errors
    /// As [`FileSystems::probe`].
    fn identity(&self, device: &Path) -> Result<Identity>;
}

/// Whether the file system at `path` (or this mount of it) refuses writing.
///
/// # Errors
/// See [`larder_model::Fault::io`].
pub fn is_read_only(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| crate::sys::io_fault(format!("look at {}", path.display()), e))?;
    Ok(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}
