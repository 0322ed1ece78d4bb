//! The only door to the operating system.
//!
//! Everything that Larder asks of Linux passes through this crate: mounts, loop devices, file
//! systems, quotas, freezes, durable files, locks and commands. Nothing here knows CSI, volumes or
//! pools; it offers kernel facilities as safe, repeatable functions whose faults carry the kernel's
//! own words and a hint.
//!
//! | module | what it holds |
//! |---|---|
//! | [`luks`] | encrypted devices: make, open, resize, close, keys |
//! | [`mounts`] | the mount table, bind, mount (`fsopen`), remount, unmount, users of a device |
//! | [`loops`] | loop devices over image files |
//! | [`filesystems`] | probe, mkfs, fsck, growth, usage |
//! | [`durable`] | records that survive a power cut, renames, removal of trees |
//! | [`lock`] | locks between processes |
//! | [`copy`](mod@copy) | reflinks, sparse copies, copies of whole trees |
//! | [`extents`] | which bytes of a file hold data, and in which two files differ |
//! | [`image`] | image files: sparse or preallocated, growth |
//! | [`freeze`] | freezing a file system with a watchdog that thaws it whatever happens |
//! | [`group`] | giving a tree to a group |
//! | [`held`](mod@held) | how much a tree holds |
//! | [`btrfs`], [`quota`] | subvolumes and size limits |
//! | [`cgroup`] | limits of a device's throughput |
//! | [`memory`] | memory that was freed and is still held |
//! | [`remote`] | directories of file systems that may hang, worked on by a process that can be killed |
//! | [`paths`] | target paths from outside |
//! | [`sockets`] | sockets' files, and whether somebody serves them |
//! | [`terminal`] | asking a person for a secret |
//! | `alive` | whether a file system that may hang answers |
//! | [`beneath`] | directories reached without following a symlink |
//! | [`clock`] | what time it is, whatever somebody does to the clock |
//! | [`command`] | other programs: deadline, own process group, masked secrets |
//! | [`fake`] | an in-memory kernel for tests |
//! | [`internal`] | what this program does when it runs itself as a helper process |
//!
//! All functions are synchronous. Async callers wrap whole sequences in [`blocking`]. The four
//! traits ([`Mounts`], [`Loops`], [`FileSystems`], [`Throttle`]) have a real and a fake implementation; a
//! [`Host`] bundles one of each.
//!
//! `unsafe` stands only in the small modules called `sys`.

mod alive;
pub mod beneath;
pub mod btrfs;
pub mod cgroup;
pub mod clock;
pub mod command;
pub mod copy;
mod descend;
pub mod durable;
pub mod extents;
pub mod fake;
pub mod filesystems;
pub mod freeze;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
pub mod held;
pub mod image;
pub mod internal;
pub mod lock;
pub mod loops;
pub mod luks;
pub mod memory;
pub mod mounts;
pub mod paths;
pub mod quota;
pub mod remote;
pub mod sockets;
mod sys;
pub mod terminal;

pub use cgroup::{Place, Throttle};
pub use filesystems::{FileSystems, Found, Usage};
pub use loops::{Backing, LoopDevice, LoopInfo, LoopRequest, Loops};
pub use mounts::{
    BindRequest, DeviceId, DeviceUser, MountEntry, MountPlace, MountRequest, MountRoot, Mounts,
    Unmount,
};

use larder_model::{Fault, Result};
use std::{ffi::OsString, fmt, path::PathBuf, sync::Arc};

/// The kernel facilities that engines and backends use. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    /// Mounts.
    pub mounts: Arc<dyn Mounts>,
    /// Loop devices.
    pub loops: Arc<dyn Loops>,
    /// File systems.
    pub filesystems: Arc<dyn FileSystems>,
    /// Limits of throughput.
    pub throttle: Arc<dyn Throttle>,
    /// What helper processes are.
    pub helper: HelperProgram,
}

impl Host {
    /// The machine this runs on. Helper processes are this very program, called with the hidden
    /// sub-command `internal` (see [`internal::main`]).
    pub fn real() -> Self {
        Self::real_with(HelperProgram::default())
    }

    /// The machine this runs on, with another helper program (tests).
    pub fn real_with(helper: HelperProgram) -> Self {
        Self {
            mounts: Arc::new(mounts::RealMounts::with_helper(helper.clone())),
            loops: Arc::new(loops::RealLoops::new()),
            filesystems: Arc::new(filesystems::RealFileSystems::new(helper.clone())),
            throttle: Arc::new(cgroup::RealThrottle::default()),
            helper,
        }
    }

    /// The same, with limits in the cgroup whose directory this is; None: it is looked for.
    #[must_use]
    pub fn with_cgroup(self, path: Option<PathBuf>) -> Self {
        Self { throttle: Arc::new(cgroup::RealThrottle::new(path)), ..self }
    }

    /// Whether somebody has the device's number now. Loop devices exist without an image, others do not.
    ///
    /// # Errors
    /// As [`Loops::list`].
    pub fn is_attached(&self, device: DeviceId) -> Result<bool> {
        Ok(match device.major {
            loops::MAJOR => self.loops.list()?.iter().any(|info| info.device == device),
            _ => PathBuf::from(format!("/sys/dev/block/{device}")).exists(),
        })
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

/// How to start [`internal::main`] in a process of its own: a program and its first arguments.
///
/// Work that may hang in the kernel (asking a dead NFS server, thawing after our own death) runs in
/// such a process, because a process can be killed or left behind where a thread cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperProgram(pub Vec<OsString>);

impl Default for HelperProgram {
    /// `/proc/self/exe internal`: this program, also when its file was replaced by an update.
    fn default() -> Self {
        Self(vec!["/proc/self/exe".into(), "internal".into()])
    }
}

/// Runs blocking work off the async threads. A panic becomes an `Internal` fault, so that one
/// broken call does not end the others. The work runs to its end also when the caller stops
/// waiting.
///
/// # Errors
/// Those of `work`; `Internal` when it panicked or the runtime is shutting down.
pub async fn blocking<T, F>(work: F) -> Result<T>
where
    F: FnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            let payload = error.into_panic();
            let text = payload
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_owned());
            Err(Fault::internal(format!("finish host work: it panicked: {text}"))
                .hint("this is a bug: report it with the log"))
        }
        Err(_) => Err(Fault::unavailable("start host work: the process is shutting down")),
    }
}

/// The user that this process works as.
pub fn user_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The mount namespace in which this process works, as the kernel names it (`mnt:[4026531841]`); None
/// where `/proc` does not tell. A path is mounted or not in a namespace, not on a machine.
pub fn mount_namespace() -> Option<String> {
    Some(std::fs::read_link("/proc/self/ns/mnt").ok()?.to_str()?.to_owned())
}

/// The id of this boot of the machine (`/proc/sys/kernel/random/boot_id`). What a record says of
/// mounts, loop devices and freezes is void after a reboot; comparing boot ids tells.
///
/// # Panics
/// Never; where `/proc` is not mounted the answer is a constant text, equal on every call.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown-boot".to_owned(), |id| id.trim().to_owned())
}
