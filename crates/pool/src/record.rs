//! What is written beside each volume and snapshot.
//!
//! A record is the whole truth about its volume: with the pool's directory alone, everything can be
//! found, used and deleted again. Records are JSON so that a person can read them in an emergency.
//!
//! **Versions.** `format` is 1. A reader refuses a higher number (that volume answers `Corrupt` with
//! the hint to run the newer release; the others go on). Fields may be *added* without a new number:
//! readers keep fields they do not know and write them back, so that going back one release loses
//! nothing.

use larder_model::{
    AccessType, Bytes, Fault, Kind, Limits, Native, PoolName, Result, Uses, VolumeCapability,
    volume::{Attributes, ContentSource, FormatState},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{fs::Metadata, os::unix::fs::MetadataExt, path::Path};
use uuid::Uuid;

/// The format version that this release writes, and the highest that it reads.
pub const FORMAT: u32 = 1;

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Format version.
    pub format: u32,
    /// Unique for ever: a volume that is deleted and made again under its name has another.
    pub id: Uuid,
    /// The name as the caller wrote it.
    pub name: String,
    /// Size in bytes.
    pub size: Bytes,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Parameters of its creation.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub parameters: Attributes,
    /// Mutable parameters of its creation.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub mutable_parameters: Attributes,
    /// The ways of access that were asked for at its creation, sorted; empty: static.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<Access>,
    /// How fast it may be used now.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// Where its first data came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
    /// The volume context.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub context: Attributes,
    /// It lives as long as one pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// The file system on its device; None where there is no device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FormatState>,
    /// The file that `file_system` was noted of; None: noted by an earlier release, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted_of: Option<FileMark>,
    /// The medium's own part.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub medium: Value,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What tells a file from another that has its name later. Inodes are given again soon, so the time
/// of birth belongs to it; not the device, whose number changes from boot to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileMark {
    /// Its inode.
    pub inode: u64,
    /// When it was made, where its file system knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<jiff::Timestamp>,
}

impl FileMark {
    /// Of what `meta` was read of.
    pub(crate) fn new(meta: &Metadata) -> Self {
        let born = meta.created().ok().and_then(|t| jiff::Timestamp::try_from(t).ok());
        Self { inode: meta.ino(), born }
    }

    /// Of the data `path`.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let meta = path.symlink_metadata();
        meta.map(|meta| Self::new(&meta)).map_err(|e| {
            let gone = e.kind() == std::io::ErrorKind::NotFound;
            let fault = Fault::io(format!("look at {}", path.display()), e);
            if gone { fault.with_kind(Kind::Corrupt) } else { fault }
        })
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRecord {
    /// Format version.
    pub format: u32,
    /// Unique for ever.
    pub id: Uuid,
    /// The name as the caller wrote it.
    pub name: String,
    /// The volume it was cut from, in the same pool.
    pub source: Native,
    /// That volume's [`VolumeRecord::id`].
    pub source_id: Uuid,
    /// The least size of a volume made from it.
    pub size: Bytes,
    /// When it was cut.
    pub created: jiff::Timestamp,
    /// Parameters of its creation.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub parameters: Attributes,
    /// The group it was cut with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The file system on the source's device when it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FormatState>,
    /// The source's medium value, for restores.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub source_medium: Value,
    /// The medium's own part.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub medium: Value,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// One way of access.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// A raw block device.
    Block,
    /// Mounted, with this file system (as the caller wrote it; empty: the default).
    Mount(String),
}

impl Access {
    /// The ways of access in `capabilities`, sorted, each once.
    pub fn of(capabilities: &[VolumeCapability]) -> Vec<Self> {
        let mut access: Vec<_> = capabilities
            .iter()
            .map(|c| match &c.access {
                AccessType::Block => Self::Block,
                AccessType::Mount(mount) => Self::Mount(mount.fs_type.clone()),
            })
            .collect();
        access.sort();
        access.dedup();
        access
    }

    /// What a volume with these ways of access is for.
    pub(crate) fn uses(access: &[Self]) -> Uses {
        if access.is_empty() {
            return Uses::ANY;
        }
        let block = access.contains(&Self::Block);
        Uses { block, mount: access.iter().any(|one| *one != Self::Block) }
    }
}

/// Where a volume's first data came from. `pool` is absent for the volume's own pool, so that a
/// pool can be renamed in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRef {
    /// Snapshot or volume.
    pub kind: SourceKind,
    /// Its name.
    pub native: Native,
    /// Its pool, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// What a volume was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceKind {
    /// Restored.
    Snapshot,
    /// Cloned.
    Volume,
}

impl SourceRef {
    /// The reference to `source` in the record of a volume in `pool`.
    pub fn new(source: &ContentSource, pool: &PoolName) -> Self {
        let (kind, handle) = match source {
            ContentSource::Snapshot(id) => (SourceKind::Snapshot, &id.0),
            ContentSource::Volume(id) => (SourceKind::Volume, &id.0),
        };
        let other = (handle.pool() != pool).then(|| handle.pool().clone());
        Self { kind, native: handle.native().clone(), pool: other }
    }

    /// The source of a volume in `pool`.
    pub fn to_source(&self, pool: &PoolName) -> ContentSource {
        let pool = self.pool.as_ref().unwrap_or(pool).clone();
        match self.kind {
            SourceKind::Snapshot => {
                ContentSource::Snapshot(larder_model::SnapshotId::new(pool, self.native.clone()))
            }
            SourceKind::Volume => {
                ContentSource::Volume(larder_model::VolumeId::new(pool, self.native.clone()))
            }
        }
    }
}

/// What has a format version.
pub(crate) trait Versioned: DeserializeOwned {
    /// The version it was written with.
    fn format(&self) -> u32;
}

impl Versioned for VolumeRecord {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Versioned for SnapshotRecord {
    fn format(&self) -> u32 {
        self.format
    }
}

/// Understands the text of a record at `path`: `Corrupt` for what is not JSON, misses fields, or
/// was written by a newer release.
pub(crate) fn parse<T: Versioned>(path: &Path, text: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let newer = |format| {
        Fault::corrupt(format!(
            "read {}: it has format {format}, this release knows up to {FORMAT}",
            path.display()
        ))
        .hint("run the release that wrote it; nothing was changed")
    };
    match serde_json::from_slice::<T>(text) {
        Ok(record) if record.format() > FORMAT => Err(newer(record.format())),
        Ok(record) => Ok(record),
        // A newer format may lack what this one needs: then that is what to say.
        Err(e) => Err(match serde_json::from_slice::<Version>(text) {
            Ok(Version { format }) if format > FORMAT => newer(format),
            _ => Fault::corrupt(format!("read the record {}", path.display()))
                .because(e)
                .hint("the data beside it is untouched; restore the record from a backup"),
        }),
    }
}

/// A medium's own value in a record.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn medium_value<T: DeserializeOwned>(value: &Value, folder: &Path) -> Result<T> {
    T::deserialize(value).map_err(|e| {
        Fault::corrupt(format!("read \"medium\" in the record of {}", folder.display()))
            .because(e)
            .hint("the data beside it is untouched; restore the record from a backup")
    })
}
