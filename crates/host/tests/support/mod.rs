//! What the tests on a real kernel share.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use larder_host::{Host, LoopRequest, MountRequest, Mounts, Unmount, image, mounts::RealMounts};
use larder_model::{Bytes, FsType};
use std::path::{Path, PathBuf};

/// A directory in memory in which tests may mount and attach as they like: when it is dropped, also
/// by a failing test, everything in it is unmounted and detached. In memory, because every flush of a
/// disk would wait for whatever else the machine is writing.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    pub(crate) host: Host,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let scratch = Self::on_disk();
        let request = MountRequest {
            fs_type: "tmpfs".into(),
            source: "larder-test".into(),
            target: scratch.path(),
            options: vec!["mode=0700".into()],
            read_only: false,
        };
        scratch.host.mounts.mount(&request).unwrap();
        scratch
    }
    /// The same on the file system of the temporary directory.
    pub(crate) fn on_disk() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        let dir = tempfile::Builder::new().prefix("larder-host-").tempdir().unwrap();
        Self { dir, host: Host::real() }
    }
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }
    pub(crate) fn image(&self, name: &str, size: Bytes) -> PathBuf {
        let path = self.path().join(name);
        image::create_sparse(&path, size).unwrap();
        path
    }
    /// A loop device over a new image. Autoclear is off.
    pub(crate) fn device(&self, name: &str, size: Bytes) -> (u32, PathBuf) {
        let image = self.image(name, size);
        let device = self.host.loops.attach(&request(&image)).unwrap();
        (device.number, device.path.clone())
    }
    /// A file system on a new loop device, mounted at the directory `name`.
    pub(crate) fn mounted(&self, name: &str, fs: FsType, size: Bytes) -> (PathBuf, PathBuf) {
        let (_, device) = self.device(&format!("{name}.img"), size);
        mkfs(&device, fs);
        let target = self.dir(name);
        self.mount(&device, fs, &target, &[]);
        (device, target)
    }
    pub(crate) fn mount(&self, device: &Path, fs: FsType, target: &Path, options: &[&str]) {
        self.host.mounts.mount(&mount_request(device, fs, target, options)).unwrap();
    }
    /// Mounts a network file system whose server is dead: FUSE without anybody who serves it. Whoever
    /// asks it anything hangs until what is returned is dropped.
    pub(crate) fn mount_dead(&self, target: &Path) -> std::fs::File {
        self.mount_fuse("fuse", "dead", target)
    }
    /// The same on a block device: this one even hangs when it is unmounted.
    pub(crate) fn mount_endless(&self, device: &Path, target: &Path) -> std::fs::File {
        self.mount_fuse("fuseblk", device.to_str().unwrap(), target)
    }
    fn mount_fuse(&self, fs_type: &str, source: &str, target: &Path) -> std::fs::File {
        let server = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let fd = format!("fd={}", std::os::fd::AsRawFd::as_raw_fd(&server));
        let options = [&fd, "rootmode=40000", "user_id=0", "group_id=0"];
        let request = MountRequest {
            fs_type: fs_type.into(),
            source: source.into(),
            target: target.to_owned(),
            options: options.map(str::to_owned).into(),
            read_only: false,
        };
        self.host.mounts.mount(&request).unwrap();
        server
    }
    pub(crate) fn unmount(&self, target: &Path) {
        self.host.mounts.unmount(target, Unmount::Normal).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let here = self.path();
        let unmount_all = |below: &dyn Fn(&Path) -> bool| {
            for _ in 0..4 {
                let table = self.host.mounts.table().unwrap_or_default();
                for entry in table.iter().rev().filter(|m| below(&m.target)) {
                    // Without a helper: this program is none.
                    let _ = RealMounts::new().unmount(&entry.target, Unmount::Lazy);
                }
            }
        };
        unmount_all(&|target| target.starts_with(&here) && target != here);
        for number in loops_below(&here) {
            let backing = self.host.loops.info(number).ok().flatten().map(|i| i.backing());
            let detached = backing.map_or(Ok(()), |b| self.host.loops.detach(number, b));
            if detached.is_err() {
                // A mount namespace that another test has made has a copy of our mounts: the device
                // goes away together with that.
                let _ = self.host.loops.set_autoclear(number, true);
            }
        }
        unmount_all(&|target| target == here);
    }
}

pub(crate) fn mount_request(
    device: &Path,
    fs: FsType,
    target: &Path,
    options: &[&str],
) -> MountRequest {
    MountRequest {
        fs_type: fs.to_string(),
        source: device.display().to_string(),
        target: target.to_owned(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        read_only: false,
    }
}

pub(crate) fn request(image: &Path) -> LoopRequest {
    LoopRequest {
        image: image.to_owned(),
        read_only: false,
        autoclear: false,
        direct_io: false,
        sector_size: 512,
    }
}

pub(crate) fn mkfs(device: &Path, fs: FsType) {
    Host::real().filesystems.make(device, fs, &[]).unwrap();
}

/// Loop devices whose image lies (or lay) below `dir`.
pub(crate) fn loops_below(dir: &Path) -> Vec<u32> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file"));
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("loop")?.parse::<u32>().ok());
        if backing.is_ok_and(|path| Path::new(path.trim()).starts_with(dir)) {
            numbers.extend(number);
        }
    }
    numbers
}
