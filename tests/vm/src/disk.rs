//! Disks of a machine. They are sparse files on the host and outlive the machine, so
//! that another one can boot with what a power cut left.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::replay::WriteLog;

/// What a guest's flush means on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Flushes are ignored: fast, for disks that nobody looks at afterwards.
    #[default]
    Unsafe,
    /// A flush reaches the host's disk. What the guest wrote without a flush still
    /// survives a power cut, because the host's memory does: see [`Disk::recorded`]
    /// for a disk that forgets.
    Writeback,
}

/// One disk: `/dev/larder/NAME` in the guest.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) log: Option<PathBuf>,
}

impl Disk {
    /// A disk in the sparse file `path`, made with `bytes` when absent, else used as
    /// it is. The name is the disk's serial number.
    ///
    /// # Errors
    /// The name is not 1–20 characters of `[a-z0-9-]` (a virtio serial holds 20), or
    /// the file cannot be made.
    pub fn new(name: &str, path: impl Into<PathBuf>, bytes: u64) -> Result<Self> {
        check_name(name)?;
        let path = path.into();
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("failed to open disk {}", path.display()))?;
        if file.metadata()?.len() == 0 {
            file.set_len(bytes)?;
        }
        Ok(Self { name: name.to_owned(), path, cache: Cache::default(), log: None })
    }

    /// The same file under another name, for machines with several copies of a disk.
    ///
    /// # Errors
    /// The name is not valid, see [`Self::new`].
    pub fn renamed(mut self, name: &str) -> Result<Self> {
        check_name(name)?;
        name.clone_into(&mut self.name);
        Ok(self)
    }

    /// Sets what a flush means.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Records every write and flush of the next run in `log`, from which
    /// [`Self::write_log`] derives the disks that a power cut could have left. Take
    /// the state that the run starts from with [`Self::copy_to`] first.
    #[must_use]
    pub fn recorded(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// The disk's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the disk's data, keeping holes, to a new file: a disk of the same name
    /// and size, not recorded.
    ///
    /// # Errors
    /// Reading or writing failed.
    pub fn copy_to(&self, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        copy_sparse(&self.path, &path).with_context(|| {
            format!("failed to copy disk {} to {}", self.path.display(), path.display())
        })?;
        Ok(Self { name: self.name.clone(), path, cache: self.cache, log: None })
    }

    /// What was written while the disk was [`Self::recorded`].
    ///
    /// # Errors
    /// The disk is not recorded, or the log is damaged.
    pub fn write_log(&self) -> Result<WriteLog> {
        let log = self.log.as_deref().context("the disk is not recorded")?;
        WriteLog::read(log)
    }
}

fn check_name(name: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        (1..=20).contains(&name.len()) && name.chars().all(valid),
        "disk name {name:?} is not 1 to 20 of [a-z0-9-]"
    );
    Ok(())
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt as _;

    let source = File::open(from)?;
    let length = source.metadata()?.len();
    let target = File::create(to)?;
    target.set_len(length)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    // SEEK_DATA fails with ENXIO when only a hole is left.
    while let Ok(data) = seek(&source, SeekFrom::Data(at)) {
        let hole = seek(&source, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let want = usize::try_from(hole - at).unwrap_or(usize::MAX).min(buffer.len());
            source.read_exact_at(&mut buffer[..want], at)?;
            target.write_all_at(&buffer[..want], at)?;
            at += want as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new("data", dir.path().join("a"), 64 << 20).unwrap();
        let file = File::options().write(true).open(disk.path()).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        let copy = disk.copy_to(dir.path().join("b")).unwrap();
        let meta = std::fs::metadata(copy.path()).unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "holes were filled: {} blocks", meta.blocks());
        let mut read = [0; 6];
        File::open(copy.path()).unwrap().read_exact_at(&mut read, 32 << 20).unwrap();
        assert_eq!(&read, b"middle");
    }

    #[test]
    fn an_existing_disk_keeps_its_size() {
        let dir = tempfile::tempdir().unwrap();
        Disk::new("data", dir.path().join("a"), 4096).unwrap();
        let again = Disk::new("data", dir.path().join("a"), 8192).unwrap();
        assert_eq!(std::fs::metadata(again.path()).unwrap().len(), 4096);
    }

    #[test]
    fn a_name_that_is_no_serial_number_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "a,b", "../x", "a-name-of-21-letters-"] {
            assert!(Disk::new(name, dir.path().join("a"), 4096).is_err(), "{name:?}");
        }
    }
}
