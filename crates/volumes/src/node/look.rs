//! Looking at a driver's node records from outside: what they say, and what of it stands.
//!
//! For `larder doctor`. Nothing is locked and nothing changed, so a process that works with the records
//! may be in the middle of something.

use super::{
    record::{Damaged, Phase, Record, Shows, Store},
    sight::{self, Place},
};
use larder_host::{
    Host,
    lock::{self, Holder},
};
use larder_model::{Fault, Result, backend::Attachment};
use std::path::{Path, PathBuf};

/// A node record.
#[derive(Debug)]
pub struct RecordLook {
    /// The file.
    pub path: PathBuf,
    /// The volume's id, as callers write it.
    pub volume: String,
    /// The volume's own id, where it is an inline one.
    pub inline: Option<String>,
    /// It was written in this boot of the machine.
    pub this_boot: bool,
    /// Its staging.
    pub staged: Option<StagedLook>,
    /// Its publications.
    pub publications: Vec<PlaceLook>,
}

/// A staging, begun or done.
#[derive(Debug)]
pub struct StagedLook {
    /// Where.
    pub place: PlaceLook,
    /// Neither being staged nor being unstaged.
    pub is_complete: bool,
    /// A raw block device, which is mounted nowhere.
    pub block: bool,
    /// Its device, where it has one of its own.
    pub device: Option<PathBuf>,
    /// What the backend noted about it.
    pub attachment: Option<Attachment>,
}

/// A recorded place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceLook {
    /// The path.
    pub path: PathBuf,
    /// The volume is mounted there.
    pub stands: bool,
}

/// A file that is no record of this version.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
    /// It is whole, but of a newer version, which alone can take back what it tells of.
    pub newer: bool,
}

/// Where a driver's records are.
pub fn records_dir(state_dir: &Path, driver: &str) -> PathBuf {
    state_dir.join(driver)
}

/// Who works with the records of `driver`, or did last; None: nobody that could be read.
pub fn owner(state_dir: &Path, driver: &str) -> Option<Holder> {
    lock::holder(&Store::new(records_dir(state_dir, driver), larder_host::boot_id()).lock())
}

/// The records of `driver` in `state_dir`, and what cannot be read.
///
/// # Errors
/// See [`Fault::io`].
pub fn look(
    host: &Host,
    state_dir: &Path,
    driver: &str,
) -> Result<(Vec<RecordLook>, Vec<Unreadable>)> {
    let store = Store::new(records_dir(state_dir, driver), larder_host::boot_id());
    let (records, damaged) = store.all()?;
    let looks = records.iter().map(|record| one(host, &store, record)).collect::<Result<_>>()?;
    let unreadable =
        |bad: Damaged| Unreadable { path: bad.path, fault: bad.fault, newer: bad.newer };
    Ok((looks, damaged.into_iter().map(unreadable).collect()))
}

fn one(host: &Host, store: &Store, record: &Record) -> Result<RecordLook> {
    let this_boot = store.is_current(record);
    let place = |path: &Path| -> Result<PlaceLook> {
        let stands = this_boot && stands(host, record, path)?;
        Ok(PlaceLook { path: path.to_owned(), stands })
    };
    let staged = match &record.staged {
        None => None,
        Some(staged) => Some(StagedLook {
            place: place(&staged.path)?,
            is_complete: staged.phase == Phase::Staged,
            block: staged.terms.block,
            device: match &staged.shows {
                Some(Shows::Device { path, .. }) => Some(path.clone()),
                _ => None,
            },
            attachment: staged.attachment.clone(),
        }),
    };
    Ok(RecordLook {
        path: store.file(&record.volume),
        volume: record.volume.clone(),
        inline: record
            .inline
            .as_ref()
            .and_then(|inline| Some(inline.id().ok()?.as_str().to_owned())),
        this_boot,
        staged,
        publications: record
            .publications
            .iter()
            .map(|p| place(&p.target))
            .collect::<Result<_>>()?,
    })
}

/// Whether the volume is mounted at `path`. Where its record does not tell how it looks, any mount
/// counts.
fn stands(host: &Host, record: &Record, path: &Path) -> Result<bool> {
    let Place::Mounted(seen) = sight::look(host, path)? else { return Ok(false) };
    let shows = record.staged.as_ref().and_then(|staged| staged.shows.as_ref());
    let root = record.staged.as_ref().and_then(|staged| staged.root.as_ref());
    if shows.is_none() && root.is_none() {
        return Ok(true);
    }
    sight::is_ours(host, shows, root, path, &seen)
}
