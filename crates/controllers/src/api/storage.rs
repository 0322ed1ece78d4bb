//! storage.k8s.io.

use super::{Meta, Owner, Quantity, object};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// StorageClass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageClass {
    /// Its metadata.
    pub metadata: Meta,
    /// The driver.
    pub provisioner: String,
    /// For the driver, and for the controllers.
    #[serde(deserialize_with = "super::nullable")]
    pub parameters: BTreeMap<String, String>,
    /// `Delete` (also when absent) or `Retain`.
    pub reclaim_policy: Option<String>,
    /// Mount options.
    #[serde(deserialize_with = "super::nullable")]
    pub mount_options: Vec<String>,
    /// `Immediate` (also when absent) or `WaitForFirstConsumer`.
    pub volume_binding_mode: Option<String>,
    /// Where volumes may be made; empty: anywhere.
    #[serde(deserialize_with = "super::nullable")]
    pub allowed_topologies: Vec<TopologyTerm>,
}
object!(StorageClass, "storage.k8s.io" / "v1", "StorageClass", "storageclasses", false);

impl StorageClass {
    /// Whether volumes are made once their first user is placed.
    pub fn waits_for_consumer(&self) -> bool {
        self.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
    }
    /// What happens to a volume whose claim is gone.
    pub fn policy(&self) -> &str {
        self.reclaim_policy.as_deref().unwrap_or("Delete")
    }
}

/// Labels with the values they may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologyTerm {
    /// All of them.
    #[serde(deserialize_with = "super::nullable")]
    pub match_label_expressions: Vec<LabelExpression>,
}

/// A label with the values it may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// One of them.
    #[serde(deserialize_with = "super::nullable")]
    pub values: Vec<String>,
}

/// VolumeAttributesClass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttributesClass {
    /// Its metadata.
    pub metadata: Meta,
    /// The driver.
    pub driver_name: String,
    /// For the driver.
    #[serde(deserialize_with = "super::nullable")]
    pub parameters: BTreeMap<String, String>,
}
object!(
    AttributesClass,
    "storage.k8s.io" / "v1",
    "VolumeAttributesClass",
    "volumeattributesclasses",
    false
);

/// CSINode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CsiNode {
    /// Its metadata.
    pub metadata: Meta,
    /// What runs there.
    pub spec: CsiNodeSpec,
}
object!(CsiNode, "storage.k8s.io" / "v1", "CSINode", "csinodes", false);

impl CsiNode {
    /// A driver that runs there.
    pub fn driver(&self, name: &str) -> Option<&CsiNodeDriver> {
        self.spec.drivers.iter().find(|d| d.name == name)
    }
}

/// The drivers of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CsiNodeSpec {
    /// One entry a driver.
    #[serde(deserialize_with = "super::nullable")]
    pub drivers: Vec<CsiNodeDriver>,
}

/// A driver on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CsiNodeDriver {
    /// Its name.
    pub name: String,
    /// What the driver calls the node.
    #[serde(rename = "nodeID")]
    pub node_id: String,
    /// The labels that its topology consists of.
    #[serde(rename = "topologyKeys", deserialize_with = "super::nullable")]
    pub topology_keys: Vec<String>,
}

/// VolumeAttachment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Its metadata.
    pub metadata: Meta,
    /// What is to be attached.
    pub spec: AttachmentSpec,
    /// How far it is.
    pub status: AttachmentStatus,
}
object!(Attachment, "storage.k8s.io" / "v1", "VolumeAttachment", "volumeattachments", false);

/// What is to be attached.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachmentSpec {
    /// The driver.
    pub attacher: String,
    /// Where to.
    pub node_name: String,
    /// The volume.
    pub source: AttachmentSource,
}

/// The volume of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachmentSource {
    /// By name.
    pub persistent_volume_name: Option<String>,
    /// In full (volumes of migrated drivers).
    pub inline_volume_spec: Option<Box<super::VolumeSpec>>,
}

/// How far an attachment is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachmentStatus {
    /// Whether it is attached.
    pub attached: bool,
    /// For NodeStageVolume.
    #[serde(deserialize_with = "super::nullable")]
    pub attachment_metadata: BTreeMap<String, String>,
    /// Why it could not be attached.
    pub attach_error: Option<AttachmentError>,
    /// Why it could not be detached.
    pub detach_error: Option<AttachmentError>,
}

/// Why something could not be attached or detached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachmentError {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The gRPC code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i32>,
}

/// CSIStorageCapacity.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CapacityObject {
    /// Its metadata.
    pub metadata: Meta,
    /// For volumes of that class.
    pub storage_class_name: String,
    /// On nodes with those labels.
    pub node_topology: Option<LabelSelector>,
    /// How much is left in all.
    pub capacity: Option<Quantity>,
    /// How large one volume can be.
    pub maximum_volume_size: Option<Quantity>,
}
object!(
    CapacityObject,
    "storage.k8s.io" / "v1",
    "CSIStorageCapacity",
    "csistoragecapacities",
    true
);

impl CapacityObject {
    /// Who manages it.
    pub fn owner(&self) -> Option<&Owner> {
        self.metadata.owner_references.iter().find(|o| o.controller == Some(true))
    }
}

/// Labels that must have these values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// All of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "super::nullable")]
    pub match_labels: BTreeMap<String, String>,
}
