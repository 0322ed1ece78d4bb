//! Records of freezes, and what a start-up does with them.

use super::{Place, open, sys};
use crate::{
    durable,
    lock::FileLock,
    mounts::{DeviceId, users},
    sys::io_fault,
};
use larder_model::{Fault, Kind, Result};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

pub(super) const SUFFIX: &str = ".freeze.json";
/// How long after its deadline a watchdog may still be thawing.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// A freeze that is about to be, is, or was not taken back yet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// A reboot thaws.
    pub(super) boot: String,
    /// Who froze, for people.
    pid: u32,
    /// By when it is thawed, in milliseconds since 1970.
    pub(super) until: u64,
    pub(super) mounts: Vec<Recorded>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Recorded {
    pub(super) target: PathBuf,
    major: u32,
    minor: u32,
}

impl Record {
    pub(super) fn new(places: &[Place], deadline: Duration) -> Self {
        let mounts = places
            .iter()
            .map(|place| Recorded {
                target: place.path.clone(),
                major: place.device.major,
                minor: place.device.minor,
            })
            .collect();
        Self {
            version: 1,
            boot: crate::boot_id(),
            pid: std::process::id(),
            until: now().saturating_add(millis(deadline)),
            mounts,
        }
    }

    /// Writes it under a name of its own in `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{}-{}-{n}{SUFFIX}", self.until, self.pid));
        // A name that could not be made durable is there all the same, and nothing will be frozen.
        let write = || {
            durable::write_json(&path, self).inspect_err(|_| {
                let _ = forget(&path);
            })
        };
        match write() {
            // The folder was wiped under us; or the start of another process, with process ids of its
            // own, took our half-written file for one that was left behind.
            Err(fault) if fault.kind() == Kind::NotFound => {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(
                    |e| Fault::io(format!("make the folder of freezes {}", dir.display()), e),
                )?;
                write().map_err(|fault| fault.with_kind(Kind::Unavailable))?;
            }
            done => done?,
        }
        Ok(path)
    }

    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(text) => Self::parse(path, &text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fault::io(format!("read {}", path.display()), e)),
        }
    }

    /// Understands the text of the record at `path`.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let record: Self = durable::json(path, text)?;
        if record.version == 1 {
            return Ok(record);
        }
        Err(Fault::corrupt(format!(
            "understand the freeze record {}: version {}",
            path.display(),
            record.version
        ))
        .hint("it was written by a newer version"))
    }

    /// Opens the recorded mounts; those that are gone, or are another file system by now, are left
    /// out.
    pub(super) fn open_mounts(&self) -> Vec<Place> {
        self.mounts
            .iter()
            .filter_map(|m| {
                let place = open(&m.target).ok()?;
                let device = DeviceId { major: m.major, minor: m.minor };
                (place.device == device).then_some(place)
            })
            .collect()
    }
}

/// Thaws a file system; false: it was not frozen.
pub(super) fn thaw(place: &Place) -> Result<bool> {
    match rustix::io::retry_on_intr(|| sys::thaw(&place.directory)) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(e) => Err(io_fault(format!("thaw {}", place.path.display()), e)),
    }
}

/// Removes the record of a freeze that is over; absent: done. Not made durable: a power cut thaws, and
/// a record of another boot means nothing.
pub(super) fn forget(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn now() -> u64 {
    millis(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default())
}

/// See [`super::Freezer::recover`].
pub(super) fn recover(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("look for freezes in {}", dir.display());
    let mut thawed = Vec::new();
    let mut first = None;
    for entry in std::fs::read_dir(dir).map_err(|e| Fault::io(what(), e))? {
        let path = entry.map_err(|e| Fault::io(what(), e))?.path();
        if !path.to_str().is_some_and(|p| p.ends_with(SUFFIX)) {
            continue;
        }
        // One that cannot be mended must not keep the others frozen.
        if let Err(fault) = recover_one(&path, &mut thawed) {
            first = first.or(Some(fault));
        }
    }
    // Records that were cut while they were written: nothing is frozen before they stand.
    if let Err(fault) = durable::sweep_abandoned(dir) {
        first = first.or(Some(fault));
    }
    first.map_or(Ok(thawed), Err)
}

fn recover_one(path: &Path, thawed: &mut Vec<PathBuf>) -> Result<()> {
    let Some(record) = Record::read(path)? else { return Ok(()) };
    if record.boot != crate::boot_id() {
        return durable::remove_file(path);
    }
    // Held to the end: whoever has written this record just now must not get its watchdog to freeze
    // between our look and our thaw.
    let _lock = wait_for_watchdog(path, &record)?;
    if !path.exists() {
        // It has thawed and told so by removing the record.
        thawed.extend(record.mounts.into_iter().map(|m| m.target));
        return Ok(());
    }
    let (mut stays, mut first) = (false, None);
    for mount in &record.mounts {
        let place = match reach(mount)? {
            Reached::At(place) => place,
            Reached::Gone => continue,
            Reached::Not(why) => {
                stays = true;
                tracing::warn!(
                    record = %path.display(),
                    "{} may still be frozen, and {why}; the record stays and the next start tries \
                     again (hint: unmount what hides it, or run fsfreeze --unfreeze on it)",
                    mount.target.display()
                );
                continue;
            }
        };
        match thaw(&place) {
            Ok(true) => thawed.push(place.path),
            Ok(false) => {}
            // It must not keep the others of its group frozen.
            Err(fault) => {
                first.get_or_insert(fault);
            }
        }
    }
    match first {
        Some(fault) => Err(fault),
        None if stays => Ok(()),
        None => durable::remove_file(path),
    }
}

/// How a file system that may be frozen can be got at.
enum Reached {
    At(Place),
    /// Nobody has it any more, and a frozen one cannot go.
    Gone,
    /// It is there and cannot be reached, for this reason.
    Not(String),
}

/// Where it was mounted, or anywhere else on the machine: the path may be that of a process that has
/// ended, or hidden by another mount.
fn reach(mount: &Recorded) -> Result<Reached> {
    let device = DeviceId { major: mount.major, minor: mount.minor };
    let at = |path: &Path| open(path).ok().filter(|place| place.device == device);
    if let Some(place) = at(&mount.target) {
        return Ok(Reached::At(place));
    }
    let mut listed = None;
    let mut namespaces = BTreeSet::new();
    for pid in users::processes()? {
        let Some((namespace, table)) = users::mounts_of(pid, &mut namespaces)? else { continue };
        for entry in table.into_iter().filter(|entry| entry.device == device) {
            let inside = entry.target.strip_prefix("/").unwrap_or(&entry.target);
            let path = PathBuf::from(format!("/proc/{pid}/root")).join(inside);
            if let Some(place) = at(&path) {
                return Ok(Reached::At(place));
            }
            listed = Some(entry.target);
            // Another process in it may lead there, when this one ends just now.
            namespaces.remove(&namespace);
        }
    }
    if let Some(target) = listed {
        return Ok(Reached::Not(format!("its mount at {} cannot be reached", target.display())));
    }
    // A frozen file system keeps its device also when the last mount of it is gone.
    if device.major == 0 {
        return Ok(Reached::Not("it is on no mount that can be seen".to_owned()));
    }
    let users = users::of_device(device)?;
    Ok(users.first().map_or(Reached::Gone, |user| {
        Reached::Not(format!("it is on no mount that can be seen, but in use: {user}"))
    }))
}

/// The watchdog locks its record as long as it lives; afterwards the lock is the caller's. None: there
/// is no record any more, or the watchdog hangs.
fn wait_for_watchdog(path: &Path, record: &Record) -> Result<Option<FileLock>> {
    let left = Duration::from_millis(record.until.saturating_sub(now()));
    // A clock that was set back must not make us wait for hours.
    let end = Instant::now() + left.min(Duration::from_secs(600)) + GRACE;
    loop {
        match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io(format!("read {}", path.display()), e)),
            Ok(_) => {}
        }
        match FileLock::try_existing(path) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) if Instant::now() >= end => {
                tracing::warn!(record = %path.display(), "the watchdog of a freeze hangs; thawing");
                return Ok(None);
            }
            Ok(None) => crate::sys::sleep(Duration::from_millis(20)),
            Err(fault) if fault.kind() == Kind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        }
    }
}
