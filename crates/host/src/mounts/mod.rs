//! Mounts: observe the table, compare, then act.
//!
//! Invariants:
//! - nothing is ever mounted over an existing mount point: [`Mounts::mount`] and [`Mounts::bind`]
//!   refuse to stack;
//! - a read-only bind is read-only before anybody can see it: it is cloned detached, made read-only
//!   there (`mount_setattr`), and only then moved to its place;
//! - a symlink as the last component of a target is refused, never followed;
//! - the descriptors of detached mounts are closed at once, because an open one keeps a later
//!   `umount` at `EBUSY`;
//! - new mounts take the propagation of the place they are put at: kubelet needs its tree shared.

pub(crate) mod attributes;
pub(crate) mod create;
pub(crate) mod detach;
pub(crate) mod network;
mod real;
mod shown;
mod statmount;
mod sys;
mod table;
pub(crate) mod users;
mod watched;

pub use real::RealMounts;
pub(crate) use statmount::of_file;
#[cfg(feature = "fuzzing")]
pub(crate) use table::at;
pub use table::parse_mountinfo;

use larder_model::{Fault, Result};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// Major number: 7 for loop devices, 0 for file systems without a device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceId {
    /// From the kernel's number (`st_dev`, `st_rdev`).
    pub fn from_raw(dev: u64) -> Self {
        Self { major: rustix::fs::major(dev), minor: rustix::fs::minor(dev) }
    }
    /// The number as in `st_dev` and `st_rdev`.
    pub fn to_raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
    /// The device that the block special file `path` stands for (symlinks are followed).
    ///
    /// # Errors
    /// `NotFound`; `Precondition` where it is no block device.
    pub fn of_block_device(path: &Path) -> Result<Self> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let meta = std::fs::metadata(path)
            .map_err(|e| Fault::io(format!("look at device {}", path.display()), e))?;
        if !meta.file_type().is_block_device() {
            return Err(Fault::precondition(format!(
                "use {} as a device: it is no block device",
                path.display()
            )));
        }
        Ok(Self::from_raw(meta.rdev()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// As the kernel writes it: `7:3`, with or without the end of its line.
impl FromStr for DeviceId {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (major, minor) = text.trim().split_once(':')?;
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        };
        parse().ok_or_else(|| Fault::invalid(format!("read {text:?} as the number of a device")))
    }
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), octal escapes decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount.
    pub id: u64,
    /// Id of the mount it sits on.
    pub parent: u64,
    /// Device of the file system.
    pub device: DeviceId,
    /// The directory (or file) inside the file system that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted. A removed mount point ends in `//deleted`, as the kernel writes it.
    pub target: PathBuf,
    /// Options of this mount: `ro`, `nosuid`, `relatime` …
    pub options: Vec<String>,
    /// Kind of file system: `ext4`, `nfs4`, `fuse.s3fs`.
    pub fs_type: String,
    /// What was mounted.
    pub source: String,
    /// Options of the file system, the same for all its mounts.
    pub super_options: Vec<String>,
}

impl MountEntry {
    /// Whether writing through this mount is refused, by the mount or by the file system.
    pub fn is_read_only(&self) -> bool {
        self.options.iter().chain(&self.super_options).any(|o| o == "ro")
    }
    /// Whether this mount itself was made read-only.
    pub fn is_mount_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }
}

/// What stays as it is while nobody mounts, moves or unmounts anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlace {
    /// Id of the mount.
    pub id: u64,
    /// Device of the file system.
    pub device: DeviceId,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Kind of file system.
    pub fs_type: String,
    /// What was mounted.
    pub source: String,
}

impl From<MountEntry> for MountPlace {
    fn from(entry: MountEntry) -> Self {
        let MountEntry { id, device, target, fs_type, source, .. } = entry;
        Self { id, device, target, fs_type, source }
    }
}

/// What a mount point shows, as one statx tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountRoot {
    /// Id of the topmost mount there (as in [`MountEntry::id`]; reused by the kernel).
    pub mount: u64,
    /// `st_dev` of its root. btrfs gives every subvolume one of its own, which
    /// [`MountEntry::device`] does not show.
    pub device: DeviceId,
    /// Inode of its root; equal for all mounts of one directory. 0 where that is not told.
    pub inode: u64,
}

/// A file system to mount.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MountRequest {
    /// Kind: `ext4`, `nfs`, `tmpfs` …
    pub fs_type: String,
    /// Device, export, or any word for file systems without a source.
    pub source: String,
    /// Where: an existing directory.
    pub target: PathBuf,
    /// As after `mount -o`; words for the mount (`nosuid`, `noatime`) and for the file system may
    /// be mixed.
    pub options: Vec<String>,
    /// Mount it read-only.
    pub read_only: bool,
}

/// A directory or file to show at a second place.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BindRequest {
    /// What.
    pub source: PathBuf,
    /// Where: exists already and is a directory like the source, or a file for anything else.
    pub target: PathBuf,
    /// Nobody can write files through it. (Writing to a device node is not writing to its mount.)
    pub read_only: bool,
    /// Options of the mount: `nosuid`, `nodev`, `noexec`, `noatime`, `nodiratime`, `relatime`,
    /// `strictatime`, `nosymfollow` and their opposites; `bind`, `rbind` are accepted and `rbind`
    /// takes mounts below the source along.
    pub options: Vec<String>,
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Fails while something uses it. The only way for block devices.
    Normal,
    /// Detaches now, ends when the last user goes. Only for network file systems whose server is
    /// gone: elsewhere it hides that somebody still writes.
    Lazy,
}

/// Somebody who uses a block device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceUser {
    /// A mount of it, in some mount namespace.
    Mount {
        /// A process in that namespace.
        pid: u32,
        /// The namespace (inode of `/proc/PID/ns/mnt`).
        namespace: u64,
        /// Where, as that namespace sees it.
        target: PathBuf,
    },
    /// A process that has it open.
    Opener {
        /// The process.
        pid: u32,
        /// Its name.
        command: String,
        /// Its descriptor.
        fd: u32,
    },
    /// A device stacked on it (device mapper, MD).
    Holder {
        /// Its kernel name: `dm-0`.
        name: String,
    },
    /// It is swap space.
    Swap,
}

impl fmt::Display for DeviceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { pid, target, .. } => {
                write!(f, "mounted at {} (as process {pid} sees it)", target.display())
            }
            Self::Opener { pid, command, fd } => {
                write!(f, "open in process {pid} ({command}, descriptor {fd})")
            }
            Self::Holder { name } => write!(f, "held by device {name}"),
            Self::Swap => f.write_str("used as swap space"),
        }
    }
}

/// The mounts of this process's namespace.
pub trait Mounts: Send + Sync {
    /// All mounts, in the kernel's order.
    ///
    /// # Errors
    /// `Internal` where `/proc` cannot be read.
    fn table(&self) -> Result<Vec<MountEntry>>;

    /// Whether something is mounted at `path` (statx `MOUNT_ROOT`: also true for bind mounts within
    /// one file system). A final symlink is not followed; an absent path is no mount point.
    ///
    /// # Errors
    /// `Unavailable` for a dead network mount; `Internal`.
    fn is_mount_point(&self, path: &Path) -> Result<bool>;

    /// What the topmost mount at `path` shows; None: it is no mount point. One statx where the
    /// kernel offers that, so that hot paths need not read the whole table. A final symlink is not
    /// followed.
    ///
    /// # Errors
    /// As [`Mounts::is_mount_point`].
    fn mount_root(&self, path: &Path) -> Result<Option<MountRoot>> {
        let top = self.top_at(path)?;
        Ok(top.map(|entry| MountRoot { mount: entry.id, device: entry.device, inode: 0 }))
    }

    /// The device that the block special file `path` stands for (symlinks are followed).
    ///
    /// # Errors
    /// `NotFound`; `Precondition` where it is no block device.
    fn block_device(&self, path: &Path) -> Result<DeviceId> {
        DeviceId::of_block_device(path)
    }

    /// What is mounted at `path`, bottom to top of the stack; empty: nothing.
    ///
    /// # Errors
    /// As [`Mounts::table`].
    fn mounts_at(&self, path: &Path) -> Result<Vec<MountEntry>>;

    /// The topmost mount at `path`, as it is now. Where the kernel tells of single mounts the table is
    /// not read.
    ///
    /// # Errors
    /// As [`Mounts::table`].
    fn top_at(&self, path: &Path) -> Result<Option<MountEntry>> {
        Ok(self.mounts_at(path)?.pop())
    }

    /// All mounts, as far as they do not change by themselves. Read anew only after the kernel has told
    /// that somebody mounted or unmounted something.
    ///
    /// # Errors
    /// As [`Mounts::table`].
    fn places(&self) -> Result<Arc<[MountPlace]>> {
        Ok(self.table()?.into_iter().map(MountPlace::from).collect())
    }

    /// Mounts a file system.
    ///
    /// # Errors
    /// `Precondition` when the target is a mount point already or a symlink, or the device is
    /// in use; `Invalid` for options that the kernel refuses (with its words); `NotFound` for an
    /// absent target or device; `Corrupt` where the file system is damaged.
    fn mount(&self, request: &MountRequest) -> Result<()>;

    /// Shows a directory or file at a second place. Read-only holds from the first moment on, for
    /// files and directories; a device node that is shown read-only can be opened for writing all the
    /// same, so whoever wants that needs a device that is read-only itself.
    ///
    /// # Errors
    /// `Precondition` when the target is a mount point already, a symlink, or of another kind than
    /// the source; `NotFound`; `Invalid` for unknown options.
    fn bind(&self, request: &BindRequest) -> Result<()>;

    /// Changes what is mounted at `target`: this mount's read-only state and per-mount `options`,
    /// and options of its file system where such are given. A request for read-write also makes
    /// the file system itself writable when it was mounted read-only; read-only touches this mount
    /// alone.
    ///
    /// # Errors
    /// `Precondition` when it is no mount point, or busy with open files for writing.
    fn remount(&self, target: &Path, read_only: bool, options: &[String]) -> Result<()>;

    /// Unmounts the topmost mount at `target`. Nothing mounted there, or no such path: done.
    /// A final symlink is not followed.
    ///
    /// # Errors
    /// `Precondition` while it is busy, telling by whom where that can be found.
    fn unmount(&self, target: &Path, how: Unmount) -> Result<()>;

    /// Everybody who uses the device, in every mount namespace of the machine, this process
    /// included. Empty means: nobody, proven.
    ///
    /// # Errors
    /// `Internal` when that cannot be found out; never an empty list instead.
    fn users_of_device(&self, device: DeviceId) -> Result<Vec<DeviceUser>>;

    /// Everybody to whom directory `dir`, or something in it, is shown at another place by a bind
    /// mount, in every mount namespace of the machine. Mounts that show something around it do not
    /// count.
    ///
    /// # Errors
    /// `NotFound`; `Internal` when that cannot be found out; never an empty list instead.
    fn users_of_directory(&self, dir: &Path) -> Result<Vec<DeviceUser>> {
        shown::in_table(dir, &self.table()?)
    }
}
