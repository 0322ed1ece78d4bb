//! The mounts of this machine.

use super::{BindRequest, DeviceId, DeviceUser, MountEntry, MountRequest, Mounts, Unmount, table};
use larder_model::{Fault, Result};
use std::path::Path;

/// The mounts of this machine, in the mount namespace of this process.
#[derive(Debug, Default)]
pub struct RealMounts(());

impl RealMounts {
    /// The mounts of this machine.
    pub fn new() -> Self {
        Self(())
    }
}

impl Mounts for RealMounts {
    fn table(&self) -> Result<Vec<MountEntry>> {
        table::read(Path::new("/proc/self/mountinfo"))
    }
    fn is_mount_point(&self, _path: &Path) -> Result<bool> {
        Err(Fault::unsupported("mounts"))
    }
    fn mounts_at(&self, _path: &Path) -> Result<Vec<MountEntry>> {
        Err(Fault::unsupported("mounts"))
    }
    fn mount(&self, _request: &MountRequest) -> Result<()> {
        Err(Fault::unsupported("mounts"))
    }
    fn bind(&self, _request: &BindRequest) -> Result<()> {
        Err(Fault::unsupported("mounts"))
    }
    fn remount(&self, _target: &Path, _read_only: bool, _options: &[String]) -> Result<()> {
        Err(Fault::unsupported("mounts"))
    }
    fn unmount(&self, _target: &Path, _how: Unmount) -> Result<()> {
        Err(Fault::unsupported("mounts"))
    }
    fn users_of_device(&self, _device: DeviceId) -> Result<Vec<DeviceUser>> {
        Err(Fault::unsupported("mounts"))
    }
}
