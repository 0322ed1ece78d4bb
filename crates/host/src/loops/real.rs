//! The loop devices of this machine.

use super::{Backing, LoopDevice, LoopInfo, LoopRequest, Loops, sys};
use crate::{image, mounts::DeviceId, sys::io_fault};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a detached device may take to go: others (udev, a listing) may have it open for moments.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often a free device may be snatched away before we give up.
const TRIES: u32 = 200;

/// The loop devices of this machine.
#[derive(Debug, Default)]
pub struct RealLoops {
    /// Between "which device is free" and taking it. Other processes are met by trying again.
    taking: Mutex<()>,
}

impl RealLoops {
    /// The loop devices of this machine.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Loops for RealLoops {
    fn attach(&self, request: &LoopRequest) -> Result<LoopDevice> {
        let what = || format!("attach {} to a loop device", request.image.display());
        if !matches!(request.sector_size, 512 | 4096) {
            return Err(Fault::invalid(format!(
                "{}: sector size {} is neither 512 nor 4096",
                what(),
                request.sector_size
            )));
        }
        let image = image::open(&request.image, request.read_only)?;
        let size = image.metadata().map_err(|e| Fault::io(what(), e))?.len();
        if size == 0 || !size.is_multiple_of(request.sector_size.into()) {
            return Err(Fault::precondition(format!(
                "{}: its size of {size} bytes is no whole number of {}-byte sectors",
                what(),
                request.sector_size
            ))
            .hint("the image was truncated, or made for another sector size"));
        }
        let mut flags = 0;
        for (wanted, flag) in [
            (request.read_only, sys::READ_ONLY),
            (request.autoclear, sys::AUTOCLEAR),
            (request.direct_io, sys::DIRECT_IO),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        self.take_free(request, &image, flags)
    }

    fn find(&self, image: &Path) -> Result<Vec<LoopInfo>> {
        let meta = std::fs::metadata(image)
            .map_err(|e| Fault::io(format!("look at image {}", image.display()), e))?;
        let mut found = self.list()?;
        found.retain(|info| (info.backing_device, info.backing_inode) == (meta.dev(), meta.ino()));
        Ok(found)
    }

    fn list(&self) -> Result<Vec<LoopInfo>> {
        let mut found = Vec::new();
        for number in attached()? {
            found.extend(self.info(number)?);
        }
        Ok(found)
    }

    fn info(&self, number: u32) -> Result<Option<LoopInfo>> {
        // Looking at sysfs first opens no device that is free: an open one could not be removed.
        if !sysfs(number).join("loop/backing_file").exists() {
            return Ok(None);
        }
        let what = || format!("look at loop device {number}");
        let Some(device) = open_device(number, OFlags::RDONLY).map_err(|e| io_fault(what(), e))?
        else {
            return Ok(None);
        };
        let status = match sys::status(&device.fd) {
            Ok(status) => status,
            Err(Errno::NXIO) => return Ok(None),
            Err(e) => return Err(io_fault(what(), e)),
        };
        let size = crate::sys::block_device_size(&device.fd).map_err(|e| io_fault(what(), e))?;
        let sector_size =
            rustix::fs::ioctl_blksszget(&device.fd).map_err(|e| io_fault(what(), e))?;
        let (backing_file, deleted) = backing_file(number, &status);
        Ok(Some(LoopInfo {
            number,
            path: device.path,
            device: device.id,
            backing_device: status.device,
            backing_inode: status.inode,
            backing_file,
            deleted,
            read_only: status.flags & sys::READ_ONLY != 0,
            autoclear: status.flags & sys::AUTOCLEAR != 0,
            direct_io: status.flags & sys::DIRECT_IO != 0,
            sector_size,
            size: Bytes::new(size),
        }))
    }

    fn detach(&self, number: u32, backing: Backing) -> Result<()> {
        let what = || format!("detach loop device {number}");
        // Looked at before it is opened exclusively, which would get in the way of its new owner.
        if !self.backs(number, backing)? {
            return Ok(());
        }
        let Some(device) = self.claim(number, backing, &what)? else { return Ok(()) };
        let before = match sys::status(&device.fd) {
            Ok(status) if status.backing() == backing => status,
            Ok(_) | Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(io_fault(what(), e)),
        };
        match sys::clear(&device.fd) {
            Ok(()) => {}
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(io_fault(what(), e)),
        }
        drop(device);
        if gone(number, backing) {
            return Ok(());
        }
        restore_flags(number, &before)?;
        Err(busy(number, what()))
    }

    fn set_capacity(&self, number: u32) -> Result<Bytes> {
        let what = || format!("take over the new size of loop device {number}");
        let device = open_attached(number, &what)?;
        sys::set_capacity(&device.fd).map_err(|e| not_attached(what(), e))?;
        crate::sys::block_device_size(&device.fd).map(Bytes::new).map_err(|e| io_fault(what(), e))
    }

    fn set_autoclear(&self, number: u32, on: bool) -> Result<()> {
        let what = || format!("change autoclear of loop device {number}");
        let device = open_attached(number, &what)?;
        let mut status = sys::status(&device.fd).map_err(|e| not_attached(what(), e))?;
        if on {
            status.flags |= sys::AUTOCLEAR;
        } else {
            status.flags &= !sys::AUTOCLEAR;
        }
        sys::set_status(&device.fd, &status).map_err(|e| io_fault(what(), e))
    }
}

impl RealLoops {
    /// Opens the device exclusively, which fails while anything is mounted from it or stacked on
    /// it. None: it does not back `backing` any more.
    fn claim(
        &self,
        number: u32,
        backing: Backing,
        what: &impl Fn() -> String,
    ) -> Result<Option<Device>> {
        let end = Instant::now() + PATIENCE;
        loop {
            match open_device(number, OFlags::RDONLY | OFlags::EXCL) {
                Ok(device) => return Ok(device),
                Err(Errno::BUSY) if !self.backs(number, backing)? => return Ok(None),
                Err(Errno::BUSY) => {}
                Err(e) => return Err(io_fault(what(), e)),
            }
            // With nobody to name, the claim was a passing one, see `users::claimed`.
            let fault = busy(number, what());
            if fault.hint_text().is_some() || Instant::now() >= end {
                return Err(fault);
            }
        }
    }

    fn backs(&self, number: u32, backing: Backing) -> Result<bool> {
        Ok(self.info(number)?.is_some_and(|info| info.backing() == backing))
    }

    fn take_free(&self, request: &LoopRequest, image: &File, flags: u32) -> Result<LoopDevice> {
        let what = || format!("attach {} to a loop device", request.image.display());
        let none_free = |e| {
            io_fault(what(), e).with_kind(Kind::Exhausted).hint(
                "all loop devices are in use; raise the limit (max_loop) or detach unused ones \
                 (losetup -l)",
            )
        };
        let control = rustix::fs::openat(
            CWD,
            "/dev/loop-control",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| {
            io_fault(format!("{}: open /dev/loop-control", what()), e)
                .with_kind(Kind::Precondition)
                .hint("load the kernel module loop; in a container, mount the host's /dev")
        })?;
        let access = if request.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let name = request.image.as_os_str().as_bytes();
        for attempt in 0..TRIES {
            let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
            // The number that is offered again and again may be unusable for good (somebody holds
            // the empty device open exclusively): a new one then.
            let number = match attempt % 20 {
                19 => sys::add_new(&control),
                _ => sys::get_free(&control),
            }
            .map_err(none_free)?;
            let device = match open_device(number, access) {
                Ok(Some(device)) => device,
                // Removed between the two calls.
                Ok(None) | Err(Errno::BUSY) => continue,
                Err(e) => return Err(io_fault(format!("{}: open device {number}", what()), e)),
            };
            match sys::configure(&device.fd, image, request.sector_size, flags, name) {
                Ok(()) => return Ok(LoopDevice { number, path: device.path, hold: device.fd }),
                // Another process was faster.
                Err(Errno::BUSY | Errno::NXIO | Errno::NODEV) => {}
                Err(e) => return Err(configure_fault(what(), e)),
            }
            crate::sys::sleep(Duration::from_millis(u64::from(attempt % 10)));
        }
        Err(none_free(Errno::BUSY))
    }
}

fn configure_fault(what: String, error: Errno) -> Fault {
    match error {
        Errno::NOTTY | Errno::NOSYS => io_fault(what, error)
            .with_kind(Kind::Precondition)
            .hint("Linux 5.8 or newer is needed (LOOP_CONFIGURE)"),
        Errno::INVAL | Errno::BADF => io_fault(what, error)
            .with_kind(Kind::Precondition)
            .hint("the file system below must allow ordinary reads and writes of the image"),
        _ => io_fault(what, error),
    }
}

struct Device {
    fd: OwnedFd,
    path: PathBuf,
    id: DeviceId,
}

fn sysfs(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}"))
}

/// Opens device `number`; None when there is no such device. Its node is made when `/dev` lacks it
/// (a container whose `/dev` is no devtmpfs), and must be that very device.
fn open_device(number: u32, flags: OFlags) -> rustix::io::Result<Option<Device>> {
    let Some(id) = device_id(number) else { return Ok(None) };
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o660);
            match rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, mode, id.to_raw()) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            rustix::fs::openat(CWD, &path, flags, Mode::empty())
        }
        result => result,
    };
    let fd = match fd {
        Ok(fd) => fd,
        Err(Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(e) => return Err(e),
    };
    let stat = rustix::fs::fstat(&fd)?;
    let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    if !is_block || DeviceId::from_raw(stat.st_rdev) != id {
        return Err(Errno::NOTBLK);
    }
    Ok(Some(Device { fd, path, id }))
}

/// The device number, which is not always 7:N (partitions on loop devices take numbers too).
fn device_id(number: u32) -> Option<DeviceId> {
    std::fs::read_to_string(sysfs(number).join("dev")).ok()?.parse().ok()
}

fn open_attached(number: u32, what: &impl Fn() -> String) -> Result<Device> {
    match open_device(number, OFlags::RDONLY) {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(Fault::not_found(format!("{}: nothing is attached there", what()))),
        Err(e) => Err(io_fault(what(), e)),
    }
}

fn not_attached(what: String, error: Errno) -> Fault {
    match error {
        Errno::NXIO => Fault::not_found(format!("{what}: nothing is attached there")),
        _ => io_fault(what, error),
    }
}

/// Numbers of all devices that have an image, in order.
fn attached() -> Result<Vec<u32>> {
    let what = "list the loop devices";
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/block").map_err(|e| Fault::io(what, e))? {
        let entry = entry.map_err(|e| Fault::io(what, e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("loop")?.parse::<u32>().ok());
        numbers.extend(number.filter(|_| entry.path().join("loop/backing_file").exists()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The image's path as the kernel tells it, and whether it was deleted.
fn backing_file(number: u32, status: &sys::Info64) -> (Option<PathBuf>, bool) {
    let Ok(text) = std::fs::read(sysfs(number).join("loop/backing_file")) else {
        return (None, false);
    };
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let as_path = |bytes| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    match text.strip_suffix(b" (deleted)") {
        // A file may really be called so: then it is still there.
        Some(_) if is_inode(&as_path(text), status) => (Some(as_path(text)), false),
        Some(name) => (Some(as_path(name)), true),
        None => (Some(as_path(text)), false),
    }
}

/// The image behind an open loop device that shows all of it, opened for reading; None for other
/// devices, for a part of an image, and where the image cannot be reached by its name any more.
pub(crate) fn image_behind(device: &File, path: &Path) -> Option<File> {
    let number = path.file_name()?.to_str()?.strip_prefix("loop")?.parse().ok()?;
    let status = sys::status(device).ok()?;
    let (Some(image), false) = backing_file(number, &status) else { return None };
    let image = image::open(&image, true).ok()?;
    let meta = image.metadata().ok()?;
    let same = (meta.dev(), meta.ino()) == (status.device, status.inode);
    (same && status.offset == 0).then_some(image)
}

fn is_inode(path: &Path, status: &sys::Info64) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|m| (m.dev(), m.ino()) == (status.device, status.inode))
}

/// Waits until the device has let go of the image.
fn gone(number: u32, backing: Backing) -> bool {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        // sysfs, not an open: our own descriptor would be what keeps it.
        if !sysfs(number).join("loop/backing_file").exists() {
            return true;
        }
        if Instant::now() >= end {
            // Gone and given to another image meanwhile counts as gone.
            let status = open_device(number, OFlags::RDONLY)
                .ok()
                .flatten()
                .and_then(|device| sys::status(&device.fd).ok());
            return status.is_none_or(|now| now.backing() != backing);
        }
        crate::sys::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Takes back the autoclear that a refused removal left on.
fn restore_flags(number: u32, before: &sys::Info64) -> Result<()> {
    if before.flags & sys::AUTOCLEAR != 0 {
        return Ok(());
    }
    let what = || format!("take back the removal of loop device {number}");
    let device = open_attached(number, &what)?;
    match sys::status(&device.fd) {
        Ok(now) if now.backing() == before.backing() => {
            sys::set_status(&device.fd, before).map_err(|e| io_fault(what(), e))
        }
        // It went after all.
        Ok(_) | Err(Errno::NXIO) => Ok(()),
        Err(e) => Err(io_fault(what(), e)),
    }
}

fn busy(number: u32, what: String) -> Fault {
    let users = device_id(number)
        .and_then(|id| crate::mounts::users::of_device(id).ok())
        .unwrap_or_default();
    let users: Vec<String> = users.iter().take(8).map(ToString::to_string).collect();
    let fault = Fault::precondition(format!("{what}: it is in use"));
    if users.is_empty() { fault } else { fault.hint(format!("it is {}", users.join(", "))) }
}
