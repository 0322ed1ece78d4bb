//! The PersistentVolume of a volume that was made.

use super::request::Wanted;
use crate::{
    api::{Claim, Object, Quantity, SecretRef, StorageClass},
    cache::PROVISIONED_BY,
    secrets::Use,
};
use larder_proto::csi;
use serde_json::{Map, Value, json};

/// Keeps a PersistentVolume until its volume is deleted.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Who made the volume, in the attributes that the node is told.
pub const IDENTITY: &str = "storage.kubernetes.io/csiProvisionerIdentity";
/// The Secret of DeleteVolume: the class may be gone by then.
pub const DELETION_SECRET: &str = "volume.kubernetes.io/provisioner-deletion-secret-name";
/// Its namespace.
pub const DELETION_SECRET_NAMESPACE: &str =
    "volume.kubernetes.io/provisioner-deletion-secret-namespace";
/// The Secret of ControllerModifyVolume.
pub const MODIFY_SECRET: &str = "volume.kubernetes.io/controller-modify-secret-name";
/// Its namespace.
pub const MODIFY_SECRET_NAMESPACE: &str = "volume.kubernetes.io/controller-modify-secret-namespace";

/// What of the process goes into the object.
#[derive(Debug, Clone, Copy)]
pub struct Maker<'a> {
    /// The driver.
    pub driver: &'a str,
    /// Of this process.
    pub identity: &'a str,
    /// Whether the driver has topology.
    pub topology: bool,
    /// Whether volumes that are only read are marked so.
    pub read_only: bool,
}

/// The object, whole.
pub fn build(
    claim: &Claim,
    class: &StorageClass,
    wanted: &Wanted,
    made: &csi::Volume,
    maker: Maker<'_>,
) -> Value {
    let bytes = match made.capacity_bytes {
        0 => claim.spec.requested(),
        bytes => bytes,
    };
    let mut attributes = Map::new();
    attributes.insert(IDENTITY.to_owned(), maker.identity.into());
    for (key, value) in &made.volume_context {
        attributes.insert(key.clone(), value.clone().into());
    }
    let mut csi = json!({
        "driver": maker.driver,
        "volumeHandle": made.volume_id,
        "volumeAttributes": attributes,
    });
    if !claim.spec.is_block() && !wanted.fs_type.is_empty() {
        csi["fsType"] = wanted.fs_type.clone().into();
    }
    if maker.read_only && claim.spec.access_modes == ["ReadOnlyMany"] {
        csi["readOnly"] = true.into();
    }
    for (of, key) in [
        (Use::ControllerPublish, "controllerPublishSecretRef"),
        (Use::NodeStage, "nodeStageSecretRef"),
        (Use::NodePublish, "nodePublishSecretRef"),
        (Use::ControllerExpand, "controllerExpandSecretRef"),
        (Use::NodeExpand, "nodeExpandSecretRef"),
    ] {
        if let Some(secret) = wanted.secret(of) {
            csi[key] = json!(secret);
        }
    }
    let reference = claim.reference();
    let mut spec = json!({
        "csi": csi,
        "accessModes": claim.spec.access_modes,
        "capacity": {"storage": Quantity::of_bytes(bytes)},
        "persistentVolumeReclaimPolicy": class.policy(),
        "storageClassName": class.metadata.name,
        "claimRef": reference,
    });
    if !class.mount_options.is_empty() {
        spec["mountOptions"] = json!(class.mount_options);
    }
    if let Some(mode) = &claim.spec.volume_mode {
        spec["volumeMode"] = mode.clone().into();
    }
    if let Some(class) = claim.spec.volume_attributes_class_name.as_ref().filter(|c| !c.is_empty())
    {
        spec["volumeAttributesClassName"] = class.clone().into();
    }
    if maker.topology
        && let Some(affinity) = affinity(&made.accessible_topology)
    {
        spec["nodeAffinity"] = affinity;
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": wanted.name,
            "annotations": annotations(wanted, class),
            "finalizers": [FINALIZER],
        },
        "spec": spec,
    })
}

fn annotations(wanted: &Wanted, class: &StorageClass) -> Map<String, Value> {
    let deletion = wanted.secret(Use::Provisioner).cloned().unwrap_or_default();
    let SecretRef { name, namespace } = deletion;
    let mut out = Map::new();
    for (key, value) in [
        (PROVISIONED_BY, class.provisioner.clone()),
        (DELETION_SECRET, name),
        (DELETION_SECRET_NAMESPACE, namespace),
    ] {
        out.insert(key.to_owned(), value.into());
    }
    if let Some(SecretRef { name, namespace }) = wanted.secret(Use::ControllerModify).cloned() {
        out.insert(MODIFY_SECRET.to_owned(), name.into());
        out.insert(MODIFY_SECRET_NAMESPACE.to_owned(), namespace.into());
    }
    out
}

/// Where the volume can be used: one of the terms, all labels of it.
fn affinity(accessible: &[csi::Topology]) -> Option<Value> {
    let terms: Vec<_> = accessible
        .iter()
        .filter(|t| !t.segments.is_empty())
        .map(|t| {
            let one = |(key, value): (&String, &String)| {
                json!({"key": key, "operator": "In", "values": [value]})
            };
            json!({"matchExpressions": t.segments.iter().map(one).collect::<Vec<_>>()})
        })
        .collect();
    (!terms.is_empty()).then(|| json!({"required": {"nodeSelectorTerms": terms}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        driver::{Can, ControllerCan, PluginCan},
        provision::{Settings, request},
    };

    fn built(claim: Value, class: Value, made: &csi::Volume, maker: Maker<'_>) -> Value {
        let claim: Claim = serde_json::from_value(claim).unwrap();
        let class: StorageClass = serde_json::from_value(class).unwrap();
        let can = Can {
            plugin: [PluginCan::ControllerService].into(),
            controller: [ControllerCan::CreateDeleteVolume].into(),
        };
        let settings = Settings::default();
        let mut wanted = request::wanted(&claim, &class, &can, &settings).unwrap();
        request::complete(&mut wanted, &claim, &class, &settings).unwrap();
        build(&claim, &class, &wanted, made, maker)
    }

    const MAKER: Maker<'_> =
        Maker { driver: "d", identity: "1-2-d", topology: true, read_only: true };

    fn topology(segments: &[(&str, &str)]) -> csi::Topology {
        let segments = segments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        csi::Topology { segments: segments.collect() }
    }

    #[test]
    fn the_object_is_complete() {
        let claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u", "resourceVersion": "9"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                     "volumeAttributesClassName": "gold",
                     "resources": {"requests": {"storage": "1G"}}},
        });
        let class = json!({
            "metadata": {"name": "fast"}, "provisioner": "d", "reclaimPolicy": "Retain",
            "mountOptions": ["noatime"],
            "parameters": {
                "csi.storage.k8s.io/fstype": "xfs",
                "csi.storage.k8s.io/provisioner-secret-name": "make",
                "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
                "csi.storage.k8s.io/controller-modify-secret-name": "modify",
                "csi.storage.k8s.io/controller-modify-secret-namespace": "sys",
                "csi.storage.k8s.io/node-stage-secret-name": "${pvc.name}",
                "csi.storage.k8s.io/node-stage-secret-namespace": "sys",
                "csi.storage.k8s.io/controller-expand-secret-name": "grow",
                "csi.storage.k8s.io/controller-expand-secret-namespace": "sys",
            },
        });
        let made = csi::Volume {
            capacity_bytes: 1 << 30,
            volume_id: "h".to_owned(),
            volume_context: [("pool".to_owned(), "p".to_owned())].into(),
            accessible_topology: vec![
                topology(&[("zone", "a"), ("rack", "1")]),
                topology(&[]),
                topology(&[("zone", "b")]),
            ],
            ..csi::Volume::default()
        };
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": "pvc-u",
                "annotations": {
                    "pv.kubernetes.io/provisioned-by": "d",
                    "volume.kubernetes.io/provisioner-deletion-secret-name": "make",
                    "volume.kubernetes.io/provisioner-deletion-secret-namespace": "shop",
                    "volume.kubernetes.io/controller-modify-secret-name": "modify",
                    "volume.kubernetes.io/controller-modify-secret-namespace": "sys",
                },
                "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"],
            },
            "spec": {
                "csi": {
                    "driver": "d",
                    "volumeHandle": "h",
                    "fsType": "xfs",
                    "volumeAttributes": {
                        "pool": "p", "storage.kubernetes.io/csiProvisionerIdentity": "1-2-d",
                    },
                    "nodeStageSecretRef": {"name": "data", "namespace": "sys"},
                    "controllerExpandSecretRef": {"name": "grow", "namespace": "sys"},
                },
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "fast",
                "volumeMode": "Filesystem",
                "volumeAttributesClassName": "gold",
                "mountOptions": ["noatime"],
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop",
                    "name": "data", "uid": "u", "resourceVersion": "9",
                },
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [
                        {"key": "rack", "operator": "In", "values": ["1"]},
                        {"key": "zone", "operator": "In", "values": ["a"]},
                    ]},
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]},
                ]}},
            },
        });
        assert_eq!(built(claim, class, &made, MAKER), wanted);
    }

    #[test]
    fn what_is_not_asked_for_is_not_there() {
        let claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u"},
            "spec": {"accessModes": ["ReadOnlyMany"], "volumeMode": "Block",
                     "resources": {"requests": {"storage": "1G"}}},
        });
        let class = json!({
            "metadata": {"name": "fast"}, "provisioner": "d",
            "parameters": {"csi.storage.k8s.io/fstype": "xfs"},
        });
        let made = csi::Volume {
            volume_id: "h".to_owned(),
            volume_context: [(IDENTITY.to_owned(), "the driver's".to_owned())].into(),
            accessible_topology: vec![topology(&[])],
            ..csi::Volume::default()
        };
        let volume = built(claim, class, &made, MAKER);
        let spec = &volume["spec"];
        assert_eq!(spec["csi"]["fsType"], Value::Null);
        assert_eq!(spec["csi"]["readOnly"], true);
        assert_eq!(spec["csi"]["volumeAttributes"][IDENTITY], "the driver's");
        assert_eq!(spec["capacity"]["storage"], "1000000000");
        assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
        assert_eq!(spec["nodeAffinity"], Value::Null);
        let annotations = volume["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations[DELETION_SECRET], "");
        assert_eq!(annotations.len(), 3);
    }
}
