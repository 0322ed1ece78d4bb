//! The folder that a run works in, what is mounted in it, and its end.
//!
//! ```text
//! FOLDER/larder-bench-x/         on the disk under test
//!   run/                         tmpfs, as /run is: node records, sockets, logs
//!   memory/                      tmpfs: a pool without a disk
//!   disk.img ── loop ── xfs/     reflink; direct I/O, so that nothing is cached twice
//! ```

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::server::Server;

/// Sparse: the figures need some 4 GiB of it.
const DISK_BYTES: u64 = 64 << 30;

/// The folder and what is in it.
pub(crate) struct Bed {
    folder: TempDir,
    larder: PathBuf,
    quick: bool,
    servers: u32,
    /// The pool with many volumes, once it was made.
    pub(crate) crowd: Option<PathBuf>,
}

impl Bed {
    /// Makes the folder below `folder` and mounts what belongs there.
    pub(crate) fn new(folder: &Path, larder: PathBuf, quick: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("larder-bench-")
            .tempdir_in(folder)
            .with_context(|| format!("failed to make a folder in {}", folder.display()))?;
        let bed = Self { folder, larder, quick, servers: 0, crowd: None };
        for name in ["run", "memory"] {
            let place = bed.make(name)?;
            output(Command::new("mount").args(["-t", "tmpfs", "larder-bench"]).arg(place))?;
        }
        let (image, place) = (bed.path("disk.img"), bed.make("xfs")?);
        File::create(&image)?.set_len(DISK_BYTES)?;
        output(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?;
        mount_image(&image, &place)?;
        Ok(bed)
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new folder in the folder.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// As many as it takes for a figure, or as few as show that it can be had.
    pub(crate) fn count(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.larder
    }

    /// A server on the pool; not waited for.
    pub(crate) fn spawn(&mut self, backend: &str, pool: &Path) -> Result<Server> {
        self.servers += 1;
        let run = self.make(&format!("run/{}", self.servers))?;
        Server::spawn(&self.larder, backend, pool, run)
    }

    /// A server on the pool that is ready.
    pub(crate) async fn serve(&mut self, backend: &str, pool: &Path) -> Result<Server> {
        let mut server = self.spawn(backend, pool)?;
        server.ready().await?;
        Ok(server)
    }

    /// Forgets what the kernel has cached of the xfs, as a reboot does.
    pub(crate) fn remount_xfs(&self) -> Result<()> {
        output(Command::new("umount").arg(self.path("xfs")))?;
        mount_image(&self.path("disk.img"), &self.path("xfs"))
    }

    /// Removes everything.
    pub(crate) fn close(self) -> Result<()> {
        unmount_below(self.folder.path())?;
        fs::remove_dir_all(self.folder.path())
            .context("failed to remove the folder of the benchmarks")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = unmount_below(self.folder.path()) {
            eprintln!("bench: failed to clean up {}: {error:#}", self.folder.path().display());
        }
    }
}

/// Mounts an image as one would by hand; unmounting frees the loop device. Direct I/O as Larder's
/// volumes have it.
pub(crate) fn mount_image(image: &Path, place: &Path) -> Result<()> {
    let mut attach = Command::new("losetup");
    let device =
        output(attach.args(["--find", "--show", "--direct-io=on"]).arg(image))?.trim().to_owned();
    let mounted = output(Command::new("mount").args(["-o", "nouuid", &device]).arg(place));
    // Busy while it is mounted: the kernel then detaches it with the last user.
    let detached = output(Command::new("losetup").args(["--detach", &device]));
    mounted?;
    detached?;
    Ok(())
}

/// Unmounts everything below `folder`, the innermost first.
fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below = |line: &str| {
        let place = PathBuf::from(line.split(' ').nth(1)?);
        place.starts_with(folder).then_some(place)
    };
    let mut places: Vec<_> = mounts.lines().filter_map(below).collect();
    // The kernel lists them in the order of mounting.
    places.reverse();
    places.iter().try_for_each(|p| output(Command::new("umount").arg(p)).map(|_| ()))
}

/// Runs to the end; what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {name}"))?;
    if !done.status.success() {
        let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
        bail!("{name} {} failed with {}: {}", words.join(" "), done.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
