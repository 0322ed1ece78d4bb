//! Claims, volumes, nodes, secrets.

use super::{Key, Meta, Object as _, Quantity, Reference, object};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// PersistentVolumeClaim.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// Its metadata.
    pub metadata: Meta,
    /// What is asked for.
    pub spec: ClaimSpec,
    /// What there is.
    pub status: ClaimStatus,
}
object!(Claim, "" / "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true);

/// What a claim asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSpec {
    /// `ReadWriteOnce` and so on.
    #[serde(deserialize_with = "super::nullable")]
    pub access_modes: Vec<String>,
    /// How large.
    pub resources: Resources,
    /// The class; None: nobody has chosen one yet.
    pub storage_class_name: Option<String>,
    /// `Filesystem` (also when absent) or `Block`.
    pub volume_mode: Option<String>,
    /// The volume it is bound to, or wants.
    pub volume_name: String,
    /// Labels that the volume must have: made volumes have none.
    pub selector: Option<serde::de::IgnoredAny>,
    /// What the volume is filled with.
    pub data_source: Option<DataSource>,
    /// The same, and from other namespaces, too.
    pub data_source_ref: Option<DataSource>,
    /// The VolumeAttributesClass.
    pub volume_attributes_class_name: Option<String>,
}

impl Claim {
    /// The claim that it is a copy of.
    pub fn copies(&self) -> Option<Key> {
        let source = self.spec.data_source.as_ref().or(self.spec.data_source_ref.as_ref());
        let source = source.filter(|source| source.kind == Self::PLACE.kind)?;
        let there = source.namespace.as_ref().filter(|namespace| !namespace.is_empty());
        Some(Key::new(there.unwrap_or(&self.metadata.namespace), &source.name))
    }
}

impl ClaimSpec {
    /// Whether a raw device is asked for.
    pub fn is_block(&self) -> bool {
        is_block(self.volume_mode.as_deref())
    }
    /// The size that is asked for, in whole bytes.
    pub fn requested(&self) -> i64 {
        self.resources.requests.storage.as_ref().map_or(0, Quantity::bytes)
    }
}

fn is_block(mode: Option<&str>) -> bool {
    mode == Some("Block")
}

/// What a claim is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataSource {
    /// None and empty are the core group.
    pub api_group: Option<String>,
    /// Kind of the source.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace, where it is not the claim's.
    pub namespace: Option<String>,
}

impl DataSource {
    /// Its group; empty for the core group.
    pub fn group(&self) -> &str {
        self.api_group.as_deref().unwrap_or_default()
    }
}

/// Requests of a claim.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// What is asked for.
    pub requests: Sizes,
}

/// A map of resources, of which only storage matters.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sizes {
    /// How large.
    pub storage: Option<Quantity>,
}

/// What is known of a claim.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimStatus {
    /// `Pending`, `Bound`, `Lost`.
    pub phase: String,
    /// `ReadWriteOnce` and so on.
    #[serde(deserialize_with = "super::nullable")]
    pub access_modes: Vec<String>,
    /// How large it is for its users.
    pub capacity: Sizes,
    /// How far growing got: promised sizes.
    pub allocated_resources: Sizes,
    /// How far growing got: states by resource.
    #[serde(deserialize_with = "super::nullable")]
    pub allocated_resource_statuses: BTreeMap<String, String>,
    /// Conditions.
    #[serde(deserialize_with = "super::nullable")]
    pub conditions: Vec<Condition>,
    /// The VolumeAttributesClass that is in force.
    pub current_volume_attributes_class_name: Option<String>,
    /// The VolumeAttributesClass that is being put in force.
    pub modify_volume_status: Option<ModifyStatus>,
}

/// A condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Its type.
    pub r#type: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// When it last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// When it was last looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<String>,
    /// Why, in a word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A change of the VolumeAttributesClass that goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ModifyStatus {
    /// The class that is being put in force.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target_volume_attributes_class_name: String,
    /// `Pending`, `InProgress`, `Infeasible`.
    pub status: String,
}

/// PersistentVolume.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Volume {
    /// Its metadata.
    pub metadata: Meta,
    /// What it is.
    pub spec: VolumeSpec,
    /// What is known of it.
    pub status: VolumeStatus,
}
object!(Volume, "" / "v1", "PersistentVolume", "persistentvolumes", false);

/// What a volume is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeSpec {
    /// `ReadWriteOnce` and so on.
    #[serde(deserialize_with = "super::nullable")]
    pub access_modes: Vec<String>,
    /// How large.
    pub capacity: Sizes,
    /// The claim it is for.
    pub claim_ref: Option<Reference>,
    /// Its driver; None: some other kind of volume.
    pub csi: Option<CsiSource>,
    /// Mount options.
    #[serde(deserialize_with = "super::nullable")]
    pub mount_options: Vec<String>,
    /// Where it can be used.
    pub node_affinity: Option<Affinity>,
    /// `Delete`, `Retain`, `Recycle`.
    pub persistent_volume_reclaim_policy: String,
    /// Its class.
    pub storage_class_name: String,
    /// `Filesystem` (also when absent) or `Block`.
    pub volume_mode: Option<String>,
    /// The VolumeAttributesClass that is in force.
    pub volume_attributes_class_name: Option<String>,
}

impl VolumeSpec {
    /// Whether it is a raw device.
    pub fn is_block(&self) -> bool {
        is_block(self.volume_mode.as_deref())
    }
    /// How large it is, in whole bytes.
    pub fn size(&self) -> i64 {
        self.capacity.storage.as_ref().map_or(0, Quantity::bytes)
    }
    /// The terms of its node affinity: one of them must match.
    pub fn terms(&self) -> &[Term] {
        let required = self.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        required.map_or(&[], |r| &r.node_selector_terms)
    }
}

/// Where a volume can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Affinity {
    /// The only form that volumes have.
    pub required: Option<Selector>,
}

/// Terms of which one must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// The terms.
    #[serde(deserialize_with = "super::nullable")]
    pub node_selector_terms: Vec<Term>,
}

/// Expressions that all must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    /// On labels.
    #[serde(deserialize_with = "super::nullable")]
    pub match_expressions: Vec<Expression>,
}

/// One expression on a label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// `In` and so on.
    pub operator: String,
    /// The values.
    #[serde(deserialize_with = "super::nullable")]
    pub values: Vec<String>,
}

/// A volume of a CSI driver.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CsiSource {
    /// The driver's name.
    pub driver: String,
    /// The driver's id of the volume.
    pub volume_handle: String,
    /// Only for reading, for the attacher.
    pub read_only: bool,
    /// The file system.
    pub fs_type: String,
    /// What the driver wants to be told again.
    #[serde(deserialize_with = "super::nullable")]
    pub volume_attributes: BTreeMap<String, String>,
    /// Secret of ControllerPublishVolume.
    pub controller_publish_secret_ref: Option<SecretRef>,
    /// Secret of ControllerExpandVolume.
    pub controller_expand_secret_ref: Option<SecretRef>,
}

/// Without the attributes: drivers put there what they like.
impl fmt::Debug for CsiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CsiSource")
            .field("driver", &self.driver)
            .field("volume_handle", &self.volume_handle)
            .finish_non_exhaustive()
    }
}

/// A Secret, named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretRef {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// What is known of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    /// `Pending`, `Available`, `Bound`, `Released`, `Failed`.
    pub phase: String,
}

/// Node, of which only the labels matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its metadata.
    pub metadata: Meta,
}
object!(Node, "" / "v1", "Node", "nodes", false);

/// Pod, of which only its owner and its claims matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its metadata.
    pub metadata: Meta,
    /// What it uses.
    pub spec: PodSpec,
    /// How far it is.
    pub status: PodStatus,
}

impl Pod {
    /// Whether it uses that claim of its namespace, or is going to.
    pub fn uses(&self, claim: &str) -> bool {
        let over = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        let mut claims =
            self.spec.volumes.iter().filter_map(|v| v.persistent_volume_claim.as_ref());
        !over && claims.any(|c| c.claim_name == claim)
    }

    /// The drivers of volumes that are defined in the pod itself, as long as it may have them.
    pub fn inline_drivers(&self) -> impl Iterator<Item = &str> {
        let over = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        let volumes = self.spec.volumes.iter().filter(move |_| !over);
        volumes.filter_map(|v| v.csi.as_ref()).map(|csi| csi.driver.as_str())
    }
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Its volumes.
    #[serde(deserialize_with = "super::nullable")]
    pub volumes: Vec<PodVolume>,
}

/// A volume of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodVolume {
    /// A claim; None: some other kind of volume.
    pub persistent_volume_claim: Option<PodClaim>,
    /// A volume of a CSI driver that lives with the pod; None: some other kind.
    pub csi: Option<PodCsi>,
}

/// A volume that is defined in a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodCsi {
    /// Whose volume it is.
    pub driver: String,
}

/// A claim that a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodClaim {
    /// Its name, in the namespace of the pod.
    pub claim_name: String,
}

/// How far a pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: String,
}
object!(Pod, "" / "v1", "Pod", "pods", true);

/// ReplicaSet, of which only the owner matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    /// Its metadata.
    pub metadata: Meta,
}
object!(ReplicaSet, "apps" / "v1", "ReplicaSet", "replicasets", true);

/// Secret. Read live and never kept.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Secret {
    /// Its metadata.
    pub metadata: Meta,
    /// Base64.
    #[serde(deserialize_with = "super::nullable")]
    pub data: BTreeMap<String, String>,
}
object!(Secret, "" / "v1", "Secret", "secrets", true);

/// Without the values.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("keys", &self.data.keys()).finish_non_exhaustive()
    }
}
