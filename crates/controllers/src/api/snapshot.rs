//! Snapshots (custom resources) and grants, as far as they are sources of volumes.

use super::{Meta, Quantity, Reference, object};
use serde::Deserialize;

/// VolumeSnapshot.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is of.
    pub spec: SnapshotSpec,
    /// How far it is.
    pub status: Option<SnapshotStatus>,
}
object!(Snapshot, "snapshot.storage.k8s.io" / "v1", "VolumeSnapshot", "volumesnapshots", true);

/// What a snapshot is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSpec {
    /// Its class.
    pub volume_snapshot_class_name: Option<String>,
    /// What it is of.
    pub source: SnapshotSource,
}

/// What a snapshot is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotSource {
    /// A claim.
    pub persistent_volume_claim_name: Option<String>,
    /// A snapshot that exists already.
    pub volume_snapshot_content_name: Option<String>,
}

/// How far a snapshot is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    /// The content it is bound to.
    pub bound_volume_snapshot_content_name: Option<String>,
    /// Whether volumes can be made from it.
    pub ready_to_use: Option<bool>,
    /// How large a volume of it is at least.
    pub restore_size: Option<Quantity>,
}

/// VolumeSnapshotContent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SnapshotContent {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is.
    pub spec: ContentSpec,
    /// How far it is.
    pub status: Option<ContentStatus>,
}
object!(
    SnapshotContent,
    "snapshot.storage.k8s.io" / "v1",
    "VolumeSnapshotContent",
    "volumesnapshotcontents",
    false
);

/// What a content is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentSpec {
    /// Its driver.
    pub driver: String,
    /// The snapshot it belongs to.
    pub volume_snapshot_ref: Reference,
    /// Mode of the volume it was made of.
    pub source_volume_mode: Option<String>,
}

/// How far a content is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentStatus {
    /// The driver's id of the snapshot.
    pub snapshot_handle: Option<String>,
}

/// ReferenceGrant: who may refer to what of this namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReferenceGrant {
    /// Its metadata.
    pub metadata: Meta,
    /// Who may refer to what.
    pub spec: GrantSpec,
}
object!(
    ReferenceGrant,
    "gateway.networking.k8s.io" / "v1beta1",
    "ReferenceGrant",
    "referencegrants",
    true
);

/// Who may refer to what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantSpec {
    /// Who.
    #[serde(deserialize_with = "super::nullable")]
    pub from: Vec<GrantFrom>,
    /// To what.
    #[serde(deserialize_with = "super::nullable")]
    pub to: Vec<GrantTo>,
}

/// Who may refer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantFrom {
    /// Group of the referring object.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrantTo {
    /// Its group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name; absent and empty: any.
    pub name: Option<String>,
}
