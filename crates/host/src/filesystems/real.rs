//! The file systems of this machine.

use super::{FileSystems, Found, Identity, Usage, blank, check, grow, make, probe, usage};
use crate::{HelperProgram, alive, sys};
use larder_model::{Bytes, Cx, FsType, Result};
use std::path::Path;

/// The file systems of this machine.
#[derive(Debug)]
pub struct RealFileSystems {
    helper: HelperProgram,
}

impl RealFileSystems {
    /// The file systems of this machine; see [`HelperProgram`].
    pub fn new(helper: HelperProgram) -> Self {
        Self { helper }
    }
}

impl FileSystems for RealFileSystems {
    fn probe(&self, device: &Path) -> Result<Found> {
        probe::probe(device)
    }
    fn first_data(&self, device: &Path, cx: &Cx) -> Result<Option<u64>> {
        blank::first_data(device, cx)
    }
    fn make(&self, device: &Path, fs: FsType, options: &[String]) -> Result<()> {
        make::make(device, fs, options, false)
    }
    fn make_again(&self, device: &Path, fs: FsType, options: &[String]) -> Result<()> {
        make::make(device, fs, options, true)
    }
    fn check(&self, device: &Path, fs: FsType) -> Result<()> {
        check::check(device, fs)
    }
    fn grow(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<()> {
        grow::grow(device, fs, mounted_at)
    }
    fn grows_mounted(&self, fs: FsType) -> bool {
        fs != FsType::Ext4 || sys::may(sys::SYS_RESOURCE)
    }
    fn size(&self, device: &Path, fs: FsType, mounted_at: Option<&Path>) -> Result<Bytes> {
        grow::size(device, fs, mounted_at)
    }
    fn usage(&self, path: &Path) -> Result<Usage> {
        usage::usage(path, &self.helper)
    }
    fn answers(&self, path: &Path) -> Result<()> {
        alive::answers(path, &self.helper)
    }
    fn last_answer(&self, path: &Path) -> Option<Result<()>> {
        alive::last_answer(path, &self.helper)
    }
    fn identity(&self, device: &Path) -> Result<Identity> {
        probe::identity(device)
    }
}
