//! Volumes and snapshots that exist, as a medium sees them.

use crate::record::{SnapshotRecord, VolumeRecord, medium_value};
use larder_model::{Result, SnapshotId, VolumeId};
use serde::de::DeserializeOwned;
use std::path::PathBuf;

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
