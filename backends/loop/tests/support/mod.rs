//! What all tests on a real kernel share.

mod ground;
pub(crate) mod writer;

pub(crate) use ground::*;

use larder_model::{Bytes, FsType};

impl Ground {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("larder-loop-").tempdir().unwrap();
        Self::in_dir(dir.path().canonicalize().unwrap(), Box::new(dir))
    }

    /// With a file system of `size`, mounted as the pool `default`.
    pub(crate) fn on(fs: FsType, size: Bytes) -> Self {
        let ground = Self::new();
        ground.mount_pool("default", fs, size);
        ground
    }
}
