//! An open pool, as a medium sees it.

use crate::{
    config::PoolConfig,
    medium::PoolTraits,
    record::{SnapshotRecord, VolumeRecord, medium_value},
};
use larder_model::{PoolName, Result, SnapshotId, VolumeId};
use serde::de::DeserializeOwned;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// An open pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    name: PoolName,
    config: PoolConfig,
    id: Uuid,
    traits: PoolTraits,
}

impl Pool {
    /// Its name in the configuration.
    pub fn name(&self) -> &PoolName {
        &self.0.name
    }
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0.config.path
    }
    /// Its configuration.
    pub fn config(&self) -> &PoolConfig {
        &self.0.config
    }
    /// The unique id in its identity.
    pub fn id(&self) -> Uuid {
        self.0.id
    }
    /// What [`crate::Medium::inspect`] found.
    pub fn traits(&self) -> &PoolTraits {
        &self.0.traits
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {} at {}", self.name(), self.path().display())
    }
}

/// A volume that exists.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id.
    pub id: VolumeId,
    /// Its record.
    pub record: VolumeRecord,
    /// The folder that holds record and data; for static volumes the pool's `static` folder.
    pub folder: PathBuf,
    /// Its data: a directory or an image, as the medium made it.
    pub data: PathBuf,
    /// Put there by an administrator.
    pub is_static: bool,
}

impl Entry {
    /// The medium's value in the record.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn medium<T: DeserializeOwned>(&self) -> Result<T> {
        medium_value(&self.record.medium, &self.folder)
    }
}

/// A snapshot that exists.
#[derive(Debug, Clone)]
pub struct SnapshotEntry {
    /// Its id.
    pub id: SnapshotId,
    /// Its record.
    pub record: SnapshotRecord,
    /// The folder that holds record and data.
    pub folder: PathBuf,
    /// Its data, as the medium cut it.
    pub data: PathBuf,
}

impl SnapshotEntry {
    /// The medium's value in the record.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn medium<T: DeserializeOwned>(&self) -> Result<T> {
        medium_value(&self.record.medium, &self.folder)
    }
}
