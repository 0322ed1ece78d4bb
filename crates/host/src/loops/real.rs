//! The loop devices of this machine.

use super::{LoopDevice, LoopInfo, LoopRequest, Loops};
use larder_model::{Bytes, Fault, Result};
use std::path::Path;

/// The loop devices of this machine.
#[derive(Debug, Default)]
pub struct RealLoops(());

impl RealLoops {
    /// The loop devices of this machine.
    pub fn new() -> Self {
        Self(())
    }
}

impl Loops for RealLoops {
    fn attach(&self, _request: &LoopRequest) -> Result<LoopDevice> {
        Err(Fault::unsupported("loops"))
    }
    fn find(&self, _image: &Path) -> Result<Vec<LoopInfo>> {
        Err(Fault::unsupported("loops"))
    }
    fn info(&self, _number: u32) -> Result<Option<LoopInfo>> {
        Err(Fault::unsupported("loops"))
    }
    fn detach(&self, _number: u32, _backing_inode: u64) -> Result<()> {
        Err(Fault::unsupported("loops"))
    }
    fn set_capacity(&self, _number: u32) -> Result<Bytes> {
        Err(Fault::unsupported("loops"))
    }
    fn set_autoclear(&self, _number: u32, _on: bool) -> Result<()> {
        Err(Fault::unsupported("loops"))
    }
}
