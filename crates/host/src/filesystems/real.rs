//! The file systems of this machine.

use super::{FileSystems, Found, Identity, Usage};
use crate::HelperProgram;
use larder_model::{Bytes, Fault, FsType, Result};
use std::path::Path;

/// The file systems of this machine.
#[derive(Debug)]
pub struct RealFileSystems {
    #[allow(dead_code, reason = "landed first for its users to compile against")]
    helper: HelperProgram,
}

impl RealFileSystems {
    /// The file systems of this machine; see [`HelperProgram`].
    pub fn new(helper: HelperProgram) -> Self {
        Self { helper }
    }
}

impl FileSystems for RealFileSystems {
    fn probe(&self, _device: &Path) -> Result<Found> {
        Err(Fault::unsupported("filesystems"))
    }
    fn make(&self, _device: &Path, _fs: FsType, _options: &[String]) -> Result<()> {
        Err(Fault::unsupported("filesystems"))
    }
    fn make_again(&self, _device: &Path, _fs: FsType, _options: &[String]) -> Result<()> {
        Err(Fault::unsupported("filesystems"))
    }
    fn check(&self, _device: &Path, _fs: FsType) -> Result<()> {
        Err(Fault::unsupported("filesystems"))
    }
    fn grow(&self, _device: &Path, _fs: FsType, _mounted_at: Option<&Path>) -> Result<()> {
        Err(Fault::unsupported("filesystems"))
    }
    fn size(&self, _device: &Path, _fs: FsType, _mounted_at: Option<&Path>) -> Result<Bytes> {
        Err(Fault::unsupported("filesystems"))
    }
    fn usage(&self, _path: &Path) -> Result<Usage> {
        Err(Fault::unsupported("filesystems"))
    }
    fn identity(&self, _device: &Path) -> Result<Identity> {
        Err(Fault::unsupported("filesystems"))
    }
}
