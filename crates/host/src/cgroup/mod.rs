//! Limits of a device's throughput, kept by the kernel.
//!
//! ```text
//! v2   <pods' cgroup>/io.max                     7:3 rbps=10485760 wbps=max riops=max wiops=100
//!        └─ pod ─ container                      all below it share that one limit
//! v1   <pods' cgroup>/blkio.throttle.*_device    7:3 10485760
//!        └─ pod ─ container                      each has its own; nothing is handed down
//! ```
//! A limit is keyed by the device's number, and the kernel keeps it when the device is let go: whoever
//! has the number next would be limited. So whoever sets one takes it away before that.
//!
//! The cgroup is looked for at each use, because kubelet may make it later.

mod find;
mod v1;
mod v2;

use crate::DeviceId;
use larder_model::{Fault, Limits, Result};
use std::path::{Path, PathBuf};

/// Limits of throughput.
pub trait Throttle: Send + Sync {
    /// What holds for a device now.
    ///
    /// # Errors
    /// As [`Throttle::place`].
    fn get(&self, device: DeviceId) -> Result<Limits>;

    /// Makes exactly these limits hold for a device, at once, also while it is in use. Taking limits
    /// away from a device or in a cgroup that does not exist is a success.
    ///
    /// # Errors
    /// As [`Throttle::place`]; `Precondition` where the kernel refuses.
    fn set(&self, device: DeviceId, limits: Limits) -> Result<()>;

    /// Every device that is limited.
    ///
    /// # Errors
    /// As [`Throttle::place`].
    fn all(&self) -> Result<Vec<(DeviceId, Limits)>>;

    /// Where limits are set.
    ///
    /// # Errors
    /// `Precondition` where there is no such place on this machine, with what to do.
    fn place(&self) -> Result<Place>;
}

/// Where limits are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The cgroup's directory.
    pub path: PathBuf,
    /// What they do not reach, one sentence each.
    pub caveats: Vec<String>,
}

/// The kernel's limits.
#[derive(Debug, Clone, Default)]
pub struct RealThrottle {
    configured: Option<PathBuf>,
}

impl RealThrottle {
    /// In the cgroup whose directory is `configured`; None: in the one of kubelet's pods.
    pub fn new(configured: Option<PathBuf>) -> Self {
        Self { configured }
    }

    fn group(&self) -> Result<Group> {
        find::group(self.configured.as_deref())
            .map_err(|fault| fault.during("limit the throughput of volumes"))
    }
}

/// A cgroup in which limits can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Group {
    V1(PathBuf),
    V2(PathBuf),
}

impl Throttle for RealThrottle {
    fn get(&self, device: DeviceId) -> Result<Limits> {
        let all = self.all()?;
        Ok(all.into_iter().find(|(id, _)| *id == device).map(|(_, l)| l).unwrap_or_default())
    }

    fn set(&self, device: DeviceId, limits: Limits) -> Result<()> {
        let group = match self.group() {
            Err(_) if limits.is_none() => return Ok(()),
            group => group?,
        };
        match group {
            Group::V1(path) => v1::set(&path, device, limits),
            Group::V2(path) => v2::set(&path, device, limits),
        }
    }

    fn all(&self) -> Result<Vec<(DeviceId, Limits)>> {
        match self.group()? {
            Group::V1(path) => v1::all(&path),
            Group::V2(path) => v2::all(&path),
        }
    }

    fn place(&self) -> Result<Place> {
        Ok(match self.group()? {
            Group::V1(path) => Place { caveats: v1::caveats(&path), path },
            Group::V2(path) => Place { caveats: v2::caveats(&path), path },
        })
    }
}

/// Reads a file of a cgroup; None: it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Fault::io(format!("read {}", path.display()), e)),
    }
}

/// Writes one line into a file of a cgroup.
fn write(path: &Path, line: &str) -> std::io::Result<()> {
    use std::io::Write;
    // Never made: what is not there is no cgroup's.
    std::fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(line.as_bytes())
}

/// Whether a device or a cgroup went away.
fn is_gone(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NODEV | Errno::NXIO | Errno::NOENT))
}

/// Of a limit that the kernel did not take.
fn refused(path: &Path, device: DeviceId, error: std::io::Error) -> Fault {
    let gone = is_gone(&error);
    let fault = Fault::io(format!("limit device {device} in {}", path.display()), error);
    // NotFound would speak of the volume.
    let fault = fault.with_kind(larder_model::Kind::Precondition);
    if gone {
        fault.hint("the device or the cgroup has just gone; stage the volume anew")
    } else {
        fault
    }
}

#[cfg(test)]
mod tests;
