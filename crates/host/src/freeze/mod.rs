//! Freezing file systems, with a watchdog that thaws them whatever happens.
//!
//! A frozen file system blocks everybody who writes to it, for ever if nobody thaws it. So nothing is
//! frozen by this process itself:
//!
//! ```text
//!  record, fsync ─▶ start the watchdog ─▶ "ready" ─▶ it freezes ─▶ "frozen" ─▶ our work ─▶ "thaw"
//!                                                        │
//!            our death (EOF on its pipe) or the deadline ─┴─▶ it thaws, removes the record
//!  its death: we thaw.   Death of both: the next start-up thaws what is recorded ([`Freezer::recover`]).
//! ```
//! Invariants:
//! - a durable record (boot, mounts, devices, deadline) precedes every freeze;
//! - the watchdog is a process of its own and has proven that it runs before anything is frozen; it
//!   ignores SIGTERM, because a service manager sends that to all processes of a service;
//! - a file system that holds a protected path, the records, this program or the root directory is
//!   never frozen, nor one that any of these depends on (an image behind a loop device, a disk
//!   behind a mapping);
//! - a freeze that somebody else made is refused and stays theirs.

mod look;
mod protect;
mod record;
mod sys;
mod watchdog;

pub use look::{Recorded, recorded};
#[cfg(feature = "fuzzing")]
pub(crate) use record::Record;
pub use watchdog::main as watchdog_main;

use crate::{HelperProgram, fake::FakeKernel, mounts::DeviceId};
use larder_model::{Fault, Result};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

/// What emptying a log may take while writers wait.
const MOMENT: Duration = Duration::from_secs(10);

/// Freezes file systems.
#[derive(Debug, Clone)]
pub struct Freezer(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Real { record_dir: PathBuf, watchdog: HelperProgram, protected: Vec<PathBuf> },
    Fake(FakeKernel),
}

impl Freezer {
    /// A freezer that keeps its records in `record_dir` (which must exist), whose watchdog is
    /// `watchdog`, and which never freezes a file system that holds one of `protected` or the
    /// records.
    pub fn new(
        record_dir: impl Into<PathBuf>,
        watchdog: HelperProgram,
        protected: Vec<PathBuf>,
    ) -> Self {
        Self(Kind::Real { record_dir: record_dir.into(), watchdog, protected })
    }

    /// A freezer of a fake kernel.
    pub fn fake(kernel: &FakeKernel) -> Self {
        Self(Kind::Fake(kernel.clone()))
    }

    /// Freezes the file systems mounted at `mounts`, all or none, for at most `deadline`. Returns
    /// once everything written before is on disk and nothing more can be written. Several mounts of
    /// one file system freeze it once.
    ///
    /// # Errors
    /// `Precondition` for a protected file system, one that cannot freeze, or one that somebody
    /// else has frozen (which stays frozen); `Deadline` when it could not be done in time;
    /// `Unavailable` when what is cached could not be written in two minutes. No call of ours waits
    /// for the device itself: the watchdog does.
    pub fn freeze(&self, mounts: &[PathBuf], deadline: Duration) -> Result<Frozen> {
        match &self.0 {
            Kind::Fake(kernel) => {
                let mut frozen: Vec<PathBuf> = Vec::new();
                for mount in mounts {
                    if let Err(fault) = kernel.freeze(mount) {
                        for mount in frozen.iter().rev() {
                            let _ = kernel.thaw(mount);
                        }
                        return Err(fault);
                    }
                    frozen.push(mount.clone());
                }
                Ok(Frozen(Some(State::Fake { kernel: kernel.clone(), mounts: frozen })))
            }
            Kind::Real { record_dir, watchdog, protected } => {
                let places = places(mounts)?;
                let mut never: Vec<PathBuf> = protected.clone();
                never.extend(["/".into(), "/proc/self/exe".into(), record_dir.clone()]);
                for place in &places {
                    protect::refuse(&place.path, place.device, &never)?;
                }
                let record = record::Record::new(&places, watchdog::FLUSH + deadline);
                let path = record.write(record_dir)?;
                let running = watchdog::Watchdog::start(watchdog, &path, places, deadline)?;
                Ok(Frozen(Some(State::Real(running))))
            }
        }
    }

    /// Empties the log of a mounted file system: what stands in it goes to its places on the device, so
    /// that nothing of it needs to be replayed after a power cut. A freeze of a moment is the only
    /// way to ask for that; writers wait meanwhile.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn empty_log(&self, mount: &Path) -> Result<()> {
        self.freeze(&[mount.to_owned()], MOMENT)?.thaw()
    }

    /// Thaws every recorded freeze that a killed process left; returns the mount points. Called at
    /// start-up, before anything else is frozen. A watchdog that is still at work is waited for: it
    /// thaws at once when its process is gone, and otherwise by its deadline. The record of what may
    /// be frozen and cannot be reached stays.
    ///
    /// # Errors
    /// See [`Fault::io`]. A record that cannot be read is an error too: what it stood for may be
    /// frozen.
    pub fn recover(&self) -> Result<Vec<PathBuf>> {
        match &self.0 {
            Kind::Real { record_dir, .. } => record::recover(record_dir),
            Kind::Fake(kernel) => {
                let frozen = kernel.frozen();
                frozen.iter().try_for_each(|mount| kernel.thaw(mount))?;
                Ok(frozen)
            }
        }
    }
}

/// File systems that are frozen; dropping it thaws them, [`Frozen::thaw`] tells whether they were
/// frozen until then.
#[derive(Debug)]
#[must_use = "dropping this thaws"]
pub struct Frozen(Option<State>);

#[derive(Debug)]
enum State {
    Real(watchdog::Watchdog),
    Fake { kernel: FakeKernel, mounts: Vec<PathBuf> },
}

impl Frozen {
    /// Thaws.
    ///
    /// # Errors
    /// `Deadline` when they had been thawed before: what was copied meanwhile may be torn, and must
    /// be thrown away.
    pub fn thaw(mut self) -> Result<()> {
        match self.0.take() {
            Some(State::Real(watchdog)) => watchdog.thaw(),
            Some(State::Fake { kernel, mounts }) => {
                mounts.iter().rev().try_for_each(|mount| kernel.thaw(mount))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        match self.0.take() {
            Some(State::Real(watchdog)) => {
                if let Err(fault) = watchdog.thaw() {
                    tracing::warn!(%fault, "thawed with trouble");
                }
            }
            Some(State::Fake { kernel, mounts }) => {
                for mount in mounts.iter().rev() {
                    let _ = kernel.thaw(mount);
                }
            }
            None => {}
        }
    }
}

/// A file system to freeze.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The file system's own number, the same for all its mounts and subvolumes.
    device: DeviceId,
    directory: File,
}

/// Opens each file system once.
fn places(mounts: &[PathBuf]) -> Result<Vec<Place>> {
    let mut seen = BTreeSet::new();
    let mut places = Vec::new();
    for path in mounts {
        let place = open(path)?;
        if seen.insert(place.device) {
            places.push(place);
        }
    }
    if places.is_empty() {
        return Err(Fault::invalid("freeze nothing"));
    }
    Ok(places)
}

fn open(path: &Path) -> Result<Place> {
    let what = || format!("freeze {}", path.display());
    let flags = rustix::fs::OFlags::RDONLY
        | rustix::fs::OFlags::DIRECTORY
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::openat(rustix::fs::CWD, path, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|e| crate::sys::io_fault(what(), e))?;
    let device = protect::file_system_of(&directory).map_err(|e| e.during(what()))?.device;
    Ok(Place { path: path.to_owned(), device, directory })
}
