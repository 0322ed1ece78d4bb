//! An in-memory kernel for tests.
//!
//! Files stay real files (in temporary directories); the mount table, loop devices and their users
//! exist only here. A fake mount shows nothing at its target: it is an entry in a table.
//!
//! File systems are real bytes: [`crate::FileSystems::make`] writes a header with kind and size at
//! the beginning of the image, so that a copied image holds the copied file system, and a test makes
//! "somebody else's data" by writing into the image.
//!
//! ```
//! use larder_host::{MountRequest, fake::FakeKernel};
//! let dir = tempfile::tempdir()?;
//! let kernel = FakeKernel::new();
//! let host = kernel.host();
//! let request = MountRequest {
//!     fs_type: "tmpfs".into(),
//!     target: dir.path().into(),
//!     ..Default::default()
//! };
//! kernel.fail_next("mount", rustix::io::Errno::BUSY);
//! assert!(host.mounts.mount(&request).is_err());
//! host.mounts.mount(&request)?;
//! assert!(host.mounts.is_mount_point(dir.path())?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod filesystems;
mod loops;
mod mounts;
mod throttle;

use crate::{DeviceId, DeviceUser, HelperProgram, Host, Usage, mounts::MountEntry, sys::io_fault};
use larder_model::{Bytes, Fault, FsType, Kind, Limits, Result};
use rustix::{fd::OwnedFd, io::Errno};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The header of a fake file system: `LARDER-FAKE-FS ext4 1073741824\n`.
const MAGIC: &str = "LARDER-FAKE-FS";

/// An in-memory kernel. Clones share it.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<State>>);

struct State {
    /// Stands in for `/dev`: links to the images. Made for the first loop device.
    dev: Option<tempfile::TempDir>,
    mounts: Vec<FakeMount>,
    next_mount: u64,
    loops: BTreeMap<u32, FakeLoop>,
    most_loops: u32,
    failures: BTreeMap<String, VecDeque<Errno>>,
    busy: BTreeSet<PathBuf>,
    users: BTreeMap<DeviceId, Vec<DeviceUser>>,
    usage: BTreeMap<PathBuf, Usage>,
    frozen: BTreeSet<PathBuf>,
    limits: BTreeMap<DeviceId, Limits>,
    log: Vec<String>,
    shown: BTreeMap<String, String>,
}

struct FakeMount {
    entry: MountEntry,
    /// A bind mount of a block device shows that device.
    block_device: Option<DeviceId>,
}

struct FakeLoop {
    image: PathBuf,
    device: u64,
    inode: u64,
    read_only: bool,
    autoclear: bool,
    direct_io: bool,
    sector_size: u32,
    size: Bytes,
    /// Other end of the descriptor that the attacher holds: hung up when that is closed.
    holder: OwnedFd,
}

impl FakeKernel {
    /// A kernel with nothing but a root file system.
    pub fn new() -> Self {
        let root = std::fs::metadata("/").map(|m| DeviceId::from_raw(m.dev()));
        let entry = MountEntry {
            id: 1,
            parent: 0,
            device: root.unwrap_or(DeviceId { major: 0, minor: 1 }),
            root: "/".into(),
            target: "/".into(),
            options: vec!["rw".into(), "relatime".into()],
            fs_type: "ext4".into(),
            source: "/dev/root".into(),
            super_options: vec!["rw".into()],
        };
        Self(Arc::new(Mutex::new(State {
            dev: None,
            mounts: vec![FakeMount { entry, block_device: None }],
            next_mount: 100,
            loops: BTreeMap::new(),
            most_loops: 256,
            failures: BTreeMap::new(),
            busy: BTreeSet::new(),
            users: BTreeMap::new(),
            usage: BTreeMap::new(),
            frozen: BTreeSet::new(),
            limits: BTreeMap::new(),
            log: Vec::new(),
            shown: BTreeMap::new(),
        })))
    }

    /// A host on it.
    pub fn host(&self) -> Host {
        Host {
            mounts: Arc::new(mounts::FakeMounts(self.clone())),
            loops: Arc::new(loops::FakeLoops(self.clone())),
            filesystems: Arc::new(filesystems::FakeFileSystems(self.clone())),
            throttle: Arc::new(throttle::FakeThrottle(self.clone())),
            helper: HelperProgram::default(),
        }
    }

    /// Makes the next call of `operation` (a method name of [`crate::Mounts`], [`crate::Loops`],
    /// [`crate::FileSystems`], or `freeze`, `thaw`, `limit`) fail with `error`. Several wait in a queue.
    pub fn fail_next(&self, operation: &str, error: Errno) {
        self.state().failures.entry(operation.to_owned()).or_default().push_back(error);
    }

    /// Shows mounts of `source` as those of `shown`, as NFS 4 does where a symlink leads there.
    pub fn show_as(&self, source: &str, shown: &str) {
        self.state().shown.insert(source.to_owned(), shown.to_owned());
    }

    /// Makes unmounting `target` fail with `EBUSY` until told otherwise.
    pub fn set_busy(&self, target: &Path, busy: bool) {
        let mut state = self.state();
        if busy {
            state.busy.insert(target.to_owned());
        } else {
            state.busy.remove(target);
        }
    }

    /// Adds somebody who uses `device`, besides its mounts and holders here.
    pub fn add_user(&self, device: DeviceId, user: DeviceUser) {
        self.state().users.entry(device).or_default().push(user);
    }

    /// Forgets the users that were added.
    pub fn clear_users(&self, device: DeviceId) {
        self.state().users.remove(&device);
    }

    /// What [`crate::FileSystems::usage`] answers for `path`.
    pub fn set_usage(&self, path: &Path, usage: Usage) {
        self.state().usage.insert(path.to_owned(), usage);
    }

    /// How many loop devices there are; 256 at first.
    pub fn set_loop_devices(&self, number: u32) {
        self.state().most_loops = number;
    }

    /// Attached loop devices, by number, with their images.
    pub fn attached(&self) -> Vec<(u32, PathBuf)> {
        self.state().loops.iter().map(|(number, l)| (*number, l.image.clone())).collect()
    }

    /// Mount points, without the root file system, in the order of mounting.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.state().mounts.iter().skip(1).map(|m| m.entry.target.clone()).collect()
    }

    /// File systems that are frozen now.
    pub fn frozen(&self) -> Vec<PathBuf> {
        self.state().frozen.iter().cloned().collect()
    }

    /// Devices that are limited, attached or not.
    pub fn limited(&self) -> Vec<(DeviceId, Limits)> {
        self.state().limits.iter().map(|(device, limits)| (*device, *limits)).collect()
    }

    /// Every call that changed something, in order: `mount ext4 /x`, `attach /x.img` …
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// Empties the log.
    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    /// Forgets mounts, loop devices, holders and freezes, as a reboot does. Files stay.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.mounts.truncate(1);
        let numbers: Vec<u32> = state.loops.keys().copied().collect();
        for number in numbers {
            state.detach(number);
        }
        state.users.clear();
        state.busy.clear();
        state.frozen.clear();
        state.limits.clear();
    }

    pub(crate) fn freeze(&self, target: &Path) -> Result<()> {
        let mut state = self.state();
        state.fail("freeze", || format!("freeze {}", target.display()))?;
        if !state.frozen.insert(target.to_owned()) {
            return Err(Fault::precondition(format!("freeze {}: it is frozen", target.display())));
        }
        state.log.push(format!("freeze {}", target.display()));
        Ok(())
    }

    pub(crate) fn thaw(&self, target: &Path) -> Result<()> {
        let mut state = self.state();
        state.fail("thaw", || format!("thaw {}", target.display()))?;
        if state.frozen.remove(target) {
            state.log.push(format!("thaw {}", target.display()));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.autoclear();
        state
    }
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKernel")
            .field("mounted", &self.mounted())
            .field("attached", &self.attached())
            .finish()
    }
}

impl State {
    fn fail(&mut self, operation: &str, what: impl FnOnce() -> String) -> Result<()> {
        match self.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            None => Ok(()),
            Some(e @ Errno::BUSY) => Err(io_fault(what(), e).with_kind(Kind::Precondition)),
            Some(e) => Err(io_fault(what(), e)),
        }
    }

    /// The device that `path` stands for: a loop device, or a mount of one's node.
    fn block_device(&self, path: &Path) -> Option<DeviceId> {
        if let Some(m) = self.mounts.iter().rev().find(|m| m.entry.target == path) {
            return m.block_device;
        }
        let name = path.strip_prefix(self.dev.as_ref()?.path()).ok()?.to_str()?;
        let minor = name.strip_prefix("loop")?.parse().ok()?;
        self.loops.contains_key(&minor).then_some(DeviceId { major: 7, minor })
    }

    fn loop_path(&self, number: u32) -> PathBuf {
        let dev = self.dev.as_ref().map_or(Path::new("/nowhere"), tempfile::TempDir::path);
        dev.join(format!("loop{number}"))
    }

    /// Makes the stand-in for `/dev`, once.
    fn make_dev(&mut self) -> Result<()> {
        if self.dev.is_none() {
            let dir = tempfile::Builder::new().prefix("larder-fake-dev-").tempdir();
            self.dev = Some(dir.map_err(|e| Fault::io("make the fake devices' folder", e))?);
        }
        Ok(())
    }

    fn detach(&mut self, number: u32) {
        self.loops.remove(&number);
        let _ = std::fs::remove_file(self.loop_path(number));
    }

    fn is_held(&self, number: u32) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(device) = self.loops.get(&number) else { return false };
        let mut fds = [PollFd::new(&device.holder, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = poll(&mut fds, Some(&now));
        !fds[0].revents().contains(PollFlags::HUP)
    }

    fn is_mounted(&self, device: DeviceId) -> bool {
        self.mounts.iter().any(|m| m.entry.device == device)
    }

    fn autoclear(&mut self) {
        let unused: Vec<u32> = self
            .loops
            .iter()
            .filter(|(number, l)| {
                let device = DeviceId { major: 7, minor: **number };
                l.autoclear && !self.is_held(**number) && !self.is_mounted(device)
            })
            .map(|(number, _)| *number)
            .collect();
        for number in unused {
            self.detach(number);
        }
    }
}

/// Kind and size in a fake file system's header.
fn header(device: &Path) -> std::io::Result<Option<(FsType, u64)>> {
    let file = std::fs::File::open(device)?;
    let mut start = [0; 128];
    let n = std::os::unix::fs::FileExt::read_at(&file, &mut start, 0)?;
    let text = String::from_utf8_lossy(&start[..n]);
    let Some(line) = text.lines().next().and_then(|line| line.strip_prefix(MAGIC)) else {
        return Ok(None);
    };
    let mut words = line.split_whitespace();
    let fs = words.next().and_then(|word| word.parse().ok());
    let size = words.next().and_then(|word| word.parse().ok());
    Ok(fs.zip(size))
}
