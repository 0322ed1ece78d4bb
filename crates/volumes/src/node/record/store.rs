//! The folder of records: written before effects, read after a start.

use super::{FORMAT, Later, Record, hex, is_newer};
use larder_host::durable;
use larder_model::{Fault, Kind, Result};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The records of one driver.
#[derive(Debug, Clone)]
pub(in crate::node) struct Store {
    directory: PathBuf,
    boot_id: String,
}

/// A file in the store that is no record.
#[derive(Debug)]
pub(in crate::node) struct Damaged {
    /// The file.
    pub(in crate::node) path: PathBuf,
    /// What is wrong with it.
    pub(in crate::node) fault: Fault,
    /// It is whole, but of a newer version.
    pub(in crate::node) newer: bool,
}

impl Store {
    /// In `directory`, which is made when it is needed.
    pub(in crate::node) fn new(directory: PathBuf, boot_id: String) -> Self {
        Self { directory, boot_id }
    }

    pub(super) fn path(&self, volume: &str) -> PathBuf {
        self.directory.join(format!("{}.json", volume_digest(volume)))
    }

    /// The file of the record of `volume`.
    pub(in crate::node) fn file(&self, volume: &str) -> PathBuf {
        self.path(volume)
    }

    /// A record of this boot that knows nothing yet.
    pub(in crate::node) fn blank(&self, volume: &str) -> Record {
        Record {
            format: FORMAT,
            boot_id: self.boot_id.clone(),
            volume: volume.to_owned(),
            staged: None,
            publications: Vec::new(),
            inline: None,
            later: Later::new(),
        }
    }

    /// The record of `volume`; None when nothing is known of it in this boot. Of a record of another
    /// boot only an inline volume is left.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read.
    pub(in crate::node) fn load(&self, volume: &str) -> Result<Option<Record>> {
        Ok(self.read(&self.path(volume))?.and_then(|record| self.of_this_boot(record)))
    }

    fn read(&self, path: &Path) -> Result<Option<Record>> {
        match fs::read(path) {
            Ok(text) => Record::parse(path, &text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fault::io(format!("read {}", path.display()), e)),
        }
    }

    fn of_this_boot(&self, record: Record) -> Option<Record> {
        if record.boot_id == self.boot_id {
            return Some(record);
        }
        let inline = record.inline?;
        Some(Record { inline: Some(inline), ..self.blank(&record.volume) })
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.volume);
        match durable::write_json(&path, record) {
            // The first record, or the directory was wiped under us.
            Err(fault) if fault.kind() == Kind::NotFound => {
                self.prepare()?;
                durable::write_json(&path, record)
            }
            done => done,
        }
    }

    /// Makes the directory, for root alone.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn prepare(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(|e| {
            Fault::io(format!("make the records' directory {}", self.directory.display()), e)
        })
    }

    /// Writes what is left to know, or removes the record when that is nothing.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn save_or_forget(&self, record: &Record) -> Result<()> {
        if record.staged.is_none() && record.publications.is_empty() && record.inline.is_none() {
            self.forget(&record.volume)
        } else {
            self.save(record)
        }
    }

    /// Writes a record that only tells of less than the one there is. On a full disk that one stays:
    /// the kernel is asked before any of it is believed, and a volume that could not be taken back
    /// for lack of room would keep its pod for ever.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn save_less(&self, record: &Record) -> Result<()> {
        if self.load(&record.volume)?.as_ref() == Some(record) {
            return Ok(());
        }
        match self.save_or_forget(record) {
            Err(fault) if fault.kind() == Kind::Exhausted => {
                tracing::warn!(volume = record.volume, "went on without its record: {fault}");
                Ok(())
            }
            done => done,
        }
    }

    /// Removes the record of `volume`; an absent one is a success.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn forget(&self, volume: &str) -> Result<()> {
        match durable::remove_file(&self.path(volume)) {
            Err(fault) if fault.kind() == Kind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Every record as it was written (also of other boots), and what is none.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn all(&self) -> Result<(Vec<Record>, Vec<Damaged>)> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(e) => {
                let what = format!("read the records in {}", self.directory.display());
                return Err(Fault::io(what, e));
            }
        };
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in entries.filter_map(std::result::Result::ok) {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || !name.ends_with(".json") {
                continue;
            }
            match self.read(&path) {
                Ok(Some(record)) if self.path(&record.volume) == path => records.push(record),
                Ok(Some(_)) => {
                    let fault = Fault::corrupt("it is the record of another volume");
                    damaged.push(Damaged { path, fault, newer: false });
                }
                Ok(None) => {}
                Err(fault) => {
                    let newer = fs::read(&path).is_ok_and(|text| is_newer(&path, &text));
                    damaged.push(Damaged { path, fault, newer });
                }
            }
        }
        records.sort_by(|a, b| a.volume.cmp(&b.volume));
        Ok((records, damaged))
    }

    /// Whether a record was written in this boot.
    pub(in crate::node) fn is_current(&self, record: &Record) -> bool {
        record.boot_id == self.boot_id
    }

    /// Removes what killed writers left.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(in crate::node) fn sweep(&self) -> Result<()> {
        if self.directory.is_dir() {
            durable::sweep_temporary(&self.directory)?;
        }
        Ok(())
    }

    /// What a process holds while it works with the records.
    pub(in crate::node) fn lock(&self) -> PathBuf {
        self.directory.join(".lock")
    }

    /// Where the inline volume `volume` is staged, out of sight of workloads.
    pub(in crate::node) fn private_staging(&self, volume: &str) -> PathBuf {
        self.directory.join("inline").join(volume_digest(volume))
    }
}

/// A file name for any volume id.
fn volume_digest(volume: &str) -> String {
    hex(&Sha256::digest(volume.as_bytes()))
}
