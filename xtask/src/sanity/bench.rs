//! The place where a run happens: one temporary folder, an xfs on a loop device
//! mounted in it, and everything undone when it is dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::proc;

/// Sparse; the suite's volumes are sparse too.
const POOL_BYTES: u64 = 64 << 30;

/// The folder and what is mounted in it.
pub(crate) struct Bench {
    folder: TempDir,
    mounted: bool,
}

impl Bench {
    /// Makes and mounts the pool's file system.
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-sanity-").tempdir()?;
        let mut bench = Self { folder, mounted: false };
        for name in ["mnt", "run", "state", "work"] {
            fs::create_dir(bench.path(name))?;
        }
        let image = bench.path("pool.img");
        File::create(&image)?.set_len(POOL_BYTES)?;
        proc::output(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?;
        let mut mount = Command::new("mount");
        proc::output(mount.args(["-o", "loop"]).arg(&image).arg(bench.path("mnt")))?;
        bench.mounted = true;
        fs::create_dir(bench.pool())?;
        Ok(bench)
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The pool: an empty directory at first.
    pub(crate) fn pool(&self) -> PathBuf {
        self.path("mnt/pool")
    }

    /// Where node records go.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// The server's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/csi.sock")
    }

    /// The socket as the suite and the server are told.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// What the suite prints.
    pub(crate) fn suite_log(&self) -> PathBuf {
        self.path("suite.log")
    }

    /// What the server prints.
    pub(crate) fn server_log(&self) -> PathBuf {
        self.path("server.log")
    }

    /// The suite's report for us.
    pub(crate) fn report(&self) -> PathBuf {
        self.path("report.json")
    }

    /// The suite's report for others.
    pub(crate) fn junit(&self) -> PathBuf {
        self.path("junit.xml")
    }

    /// Copies what helps to find a failure to where it is not deleted.
    pub(crate) fn keep_logs(&self, folder: &Path, label: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        for file in [self.suite_log(), self.server_log(), self.report(), self.junit()] {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("log");
            let target = folder.join(format!("{label}-{name}"));
            // A run that failed early lacks some.
            if fs::copy(&file, &target).is_ok() {
                println!("kept {}", target.display());
            }
        }
        Ok(())
    }

    /// Removes it all, and says so when that does not work.
    pub(crate) fn close(mut self) -> Result<()> {
        self.undo().with_context(|| format!("failed to clean up {}", self.folder.path().display()))
    }

    fn undo(&mut self) -> Result<()> {
        // Left-overs of a failed run first, the innermost first; then ours.
        let mut mounts = crate::sanity::leaks::mounts_below(self.folder.path())?;
        mounts.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        mounts.retain(|path| *path != self.path("mnt"));
        for mount in mounts {
            proc::output(Command::new("umount").arg(&mount))?;
        }
        for (device, _) in crate::sanity::leaks::loops_below(self.folder.path())? {
            if !self.backs_pool(&device) {
                proc::output(Command::new("losetup").arg("--detach").arg(&device))?;
            }
        }
        if self.mounted {
            // `mount -o loop` made the device, umount frees it.
            proc::output(Command::new("umount").arg(self.path("mnt")))?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Whether this loop device carries the pool's file system.
    pub(crate) fn backs_pool(&self, device: &Path) -> bool {
        let image = self.path("pool.img");
        crate::sanity::leaks::loops_below(self.folder.path())
            .is_ok_and(|loops| loops.iter().any(|(name, file)| name == device && *file == image))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("sanity: failed to clean up {}: {error:#}", self.folder.path().display());
        }
    }
}
