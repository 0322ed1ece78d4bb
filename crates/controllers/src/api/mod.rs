//! The objects of a cluster, as far as the controllers read them.
//!
//! Own types and not those of `k8s-openapi`: a cache of thousands of claims keeps only what somebody
//! decides by. Two rules follow. What was read into such a type is never written back whole (it would
//! drop the fields that are not here): writes are patches and creations ([`crate::client`]). And what
//! the API server defaults is absent here only where absence means the same.

mod core;
mod meta;
pub mod quantity;
mod snapshot;
mod storage;

pub use core::{
    Affinity, Claim, ClaimSpec, ClaimStatus, Condition, CsiSource, DataSource, Expression,
    ModifyStatus, Node, Pod, PodClaim, PodSpec, PodStatus, PodVolume, ReplicaSet, Resources,
    Secret, SecretRef, Selector, Sizes, Term, Volume, VolumeSpec, VolumeStatus,
};
pub use meta::{Key, List, ListMeta, Meta, Owner, Reference};
pub use quantity::Quantity;
pub use snapshot::{
    ContentSpec, ContentStatus, GrantFrom, GrantSpec, GrantTo, ReferenceGrant, Snapshot,
    SnapshotContent, SnapshotSource, SnapshotSpec, SnapshotStatus,
};
pub use storage::{
    Attachment, AttachmentError, AttachmentSource, AttachmentSpec, AttachmentStatus,
    AttributesClass, CapacityObject, CsiNode, CsiNodeDriver, CsiNodeSpec, LabelExpression,
    LabelSelector, StorageClass, TopologyTerm,
};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// Where a kind is found in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Empty for the core group.
    pub group: &'static str,
    /// The version that is asked for.
    pub version: &'static str,
    /// As in `kind:`.
    pub kind: &'static str,
    /// As in the path, and in RBAC rules.
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Place {
    /// `v1`, `storage.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The path of the collection; an empty namespace is all of them.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let version = self.api_version();
        match namespace {
            "" => format!("{root}/{version}/{}", self.plural),
            ns => format!("{root}/{version}/namespaces/{ns}/{}", self.plural),
        }
    }
}

/// One kind of object.
pub trait Object: DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Where it is found.
    const PLACE: Place;

    /// Its metadata.
    fn meta(&self) -> &Meta;

    /// Its name and namespace.
    fn key(&self) -> Key {
        let Meta { namespace, name, .. } = self.meta();
        Key { namespace: namespace.clone(), name: name.clone() }
    }

    /// What events and owner references call it.
    fn reference(&self) -> Reference {
        let Meta { namespace, name, uid, resource_version, .. } = self.meta();
        Reference {
            api_version: Self::PLACE.api_version(),
            kind: Self::PLACE.kind.to_owned(),
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            resource_version: resource_version.clone(),
        }
    }
}

/// A list or a map that Go has written as null: it does so with empty ones, where their field is not
/// left out (the drivers of a CSINode).
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

macro_rules! object {
    ($type:ty, $group:literal / $version:literal, $kind:literal, $plural:literal, $namespaced:literal) => {
        impl $crate::api::Object for $type {
            const PLACE: $crate::api::Place = $crate::api::Place {
                group: $group,
                version: $version,
                kind: $kind,
                plural: $plural,
                namespaced: $namespaced,
            };
            fn meta(&self) -> &$crate::api::Meta {
                &self.metadata
            }
        }
    };
}
use object;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(Claim::PLACE.path("a"), "/api/v1/namespaces/a/persistentvolumeclaims");
        assert_eq!(Claim::PLACE.path(""), "/api/v1/persistentvolumeclaims");
        assert_eq!(StorageClass::PLACE.path(""), "/apis/storage.k8s.io/v1/storageclasses");
    }

    #[test]
    fn what_go_writes_as_null_is_empty() {
        let list = serde_json::json!({"items": [
            {"metadata": {"name": "n1", "labels": null}, "spec": {"drivers": null}},
            {"spec": {"drivers": [{"name": "d", "nodeID": "id", "topologyKeys": null}]}},
        ]});
        let list: List<CsiNode> = serde_json::from_value(list).unwrap();
        assert_eq!(list.items[0].driver("d"), None);
        assert_eq!(list.items[1].driver("d").unwrap().topology_keys, [""; 0]);
        let none: List<CsiNode> = serde_json::from_str(r#"{"items": null}"#).unwrap();
        assert!(none.items.is_empty());
    }

    #[test]
    fn a_claim_is_read_without_what_nobody_decides_by() {
        let claim: Claim = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": "data", "namespace": "a", "uid": "u", "resourceVersion": "7",
                "creationTimestamp": null,
                "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}],
                "annotations": {"k": "v"}, "finalizers": ["f"],
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi", "other": "odd"}},
                "storageClassName": "", "volumeMode": "Block",
            },
            "status": {"phase": "Pending"},
        }))
        .unwrap();
        assert_eq!(claim.key().to_string(), "a/data");
        assert_eq!(claim.spec.resources.requests.storage.as_ref().unwrap().bytes(), 1 << 30);
        assert_eq!(claim.spec.storage_class_name.as_deref(), Some(""));
        assert!(claim.spec.is_block());
        assert_eq!(claim.reference().api_version, "v1");
    }
}
