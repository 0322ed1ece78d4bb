//! Freezing file systems, with a watchdog that thaws them whatever happens.

use crate::HelperProgram;
use larder_model::{Fault, Result};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Freezes file systems.
#[derive(Debug, Clone)]
pub struct Freezer {
    record_dir: PathBuf,
    watchdog: HelperProgram,
    protected: Vec<PathBuf>,
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
        Self { record_dir: record_dir.into(), watchdog, protected }
    }

    /// Freezes the file systems mounted at `mounts`, all or none, for at most `deadline`. Returns
    /// once everything written before is on disk and nothing more can be written.
    ///
    /// # Errors
    /// `Precondition` for a protected file system, one that cannot freeze, or one that somebody
    /// else has frozen (which stays frozen).
    pub fn freeze(&self, _mounts: &[PathBuf], _deadline: Duration) -> Result<Frozen> {
        let _ = (&self.record_dir, &self.watchdog, &self.protected);
        Err(Fault::unsupported("freeze"))
    }

    /// Thaws every recorded freeze that a killed process left; returns the mount points. Called at
    /// start-up, before anything else is frozen.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub fn recover(&self) -> Result<Vec<PathBuf>> {
        let _ = Path::new(&self.record_dir);
        Err(Fault::unsupported("freeze"))
    }
}

/// File systems that are frozen; dropping it thaws them, [`Frozen::thaw`] tells whether they were
/// frozen until then.
#[derive(Debug)]
#[must_use = "dropping this thaws"]
pub struct Frozen(());

impl Frozen {
    /// Thaws.
    ///
    /// # Errors
    /// `Deadline` when the watchdog had thawed before: what was copied meanwhile may be torn.
    pub fn thaw(self) -> Result<()> {
        Err(Fault::unsupported("freeze"))
    }
}

/// The watchdog: thaws at the deadline, or at once when the process that froze is gone.
pub fn watchdog_main(_args: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
