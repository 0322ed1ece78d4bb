//! A file system of its own for each test: an image, a loop device, a mount.

use larder_host::{Host, loops::LoopRequest, mounts::MountRequest};
use larder_model::{Bytes, FsType};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(crate) struct Pool {
    path: PathBuf,
}

impl Pool {
    /// A new file system of that kind in `folder` (2 GiB, sparse), with a folder for the pool in it.
    pub(crate) fn new(folder: &Path, fs: &str) -> Self {
        Self::sized(folder, fs, Bytes::gib(2))
    }

    pub(crate) fn sized(folder: &Path, fs: &str, size: Bytes) -> Self {
        std::fs::create_dir_all(folder.join("mnt")).unwrap();
        let fs: FsType = fs.parse().unwrap();
        let host = Host::real();
        let image = folder.join("disk.img");
        larder_host::image::create_sparse(&image, size).unwrap();
        let device = host
            .loops
            .attach(&LoopRequest {
                image,
                read_only: false,
                autoclear: true,
                direct_io: false,
                sector_size: 512,
            })
            .unwrap();
        make(&host, &device.path, fs);
        let request = MountRequest {
            fs_type: fs.to_string(),
            source: device.path.display().to_string(),
            target: folder.join("mnt"),
            options: Vec::new(),
            read_only: false,
        };
        host.mounts.mount(&request).unwrap();
        Self { path: folder.join("mnt/pool") }
    }

    /// The pool's folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// mkfs.btrfs looks at every loop device, and fails when a test beside this one lets go of one just then.
fn make(host: &Host, device: &Path, fs: FsType) {
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(fault) = host.filesystems.make_again(device, fs, &[]) {
        let beside = fault.to_string().contains("cannot check mount status");
        assert!(beside && Instant::now() < until, "{fault}");
    }
}
