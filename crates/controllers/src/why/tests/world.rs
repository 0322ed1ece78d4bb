//! Clusters in which all is well.

use crate::{api::Key, why::Snapshot};
use serde_json::{Value, json};

pub(super) const NOW: &str = "2026-01-01T01:00:00Z";
pub(super) const BEFORE: &str = "2026-01-01T00:00:00Z";

/// A pod that runs with a claim that is bound, of a driver that attaches, on the first of two nodes.
pub(super) fn works() -> Snapshot {
    let node = |name: &str| {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": "a"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let csi_node = |name: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"drivers": [{"name": "d", "nodeID": name, "topologyKeys": ["kubernetes.io/hostname"]}]},
        })
    };
    Snapshot {
        now: NOW.to_owned(),
        namespace: "ns".to_owned(),
        pods: vec![pod("web", "n1")],
        claims: vec![json!({
            "metadata": {"name": "data", "namespace": "ns", "uid": "u", "creationTimestamp": BEFORE, "annotations": {
                "volume.kubernetes.io/storage-provisioner": "d",
                "volume.kubernetes.io/selected-node": "n1",
            }},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeName": "pv-1",
                "resources": {"requests": {"storage": "1Gi"}},
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        })],
        volumes: vec![json!({
            "metadata": {"name": "pv-1", "creationTimestamp": BEFORE, "finalizers": ["kubernetes.io/pv-protection"]},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "fast",
                "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"namespace": "ns", "name": "data", "uid": "u"},
                "csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"name": "login", "namespace": "ns"}},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]},
                ]}]}},
            },
            "status": {"phase": "Bound"},
        })],
        classes: vec![json!({
            "metadata": {"name": "fast"}, "provisioner": "d", "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true,
            "parameters": {
                "csi.storage.k8s.io/provisioner-secret-name": "login",
                "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
            },
        })],
        drivers: vec![
            json!({"metadata": {"name": "d"}, "spec": {"attachRequired": true, "storageCapacity": true}}),
        ],
        csi_nodes: vec![csi_node("n1"), csi_node("n2")],
        nodes: vec![node("n1"), node("n2")],
        attachments: vec![attachment("va-1", "n1", true)],
        capacities: vec![json!({
            "metadata": {"name": "csisc-1"}, "storageClassName": "fast", "capacity": "10Gi",
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": "n1"}},
        })],
        secrets: [(Key::new("ns", "login"), Some(vec!["user".to_owned()]))].into(),
        ..Snapshot::default()
    }
}

/// The same with a claim that is yet to be provided for, and its pod placed.
pub(super) fn pending() -> Snapshot {
    let mut see = works();
    see.volumes.clear();
    see.attachments.clear();
    see.claims[0]["spec"]["volumeName"] = Value::Null;
    see.claims[0]["status"] = json!({"phase": "Pending"});
    see.pods[0]["spec"]["nodeName"] = Value::Null;
    see.pods[0]["status"] = json!({"phase": "Pending"});
    see.claims[0]["metadata"]["creationTimestamp"] = json!(NOW);
    see
}

/// The same with a pod that waits for its volume on its node.
pub(super) fn mounting() -> Snapshot {
    let mut see = works();
    see.pods[0]["status"] = json!({
        "phase": "Pending", "startTime": BEFORE,
        "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
    });
    see
}

pub(super) fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "creationTimestamp": BEFORE},
        "spec": {
            "nodeName": node,
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        },
        "status": {"phase": "Running", "startTime": BEFORE},
    })
}

pub(super) fn attachment(name: &str, node: &str, attached: bool) -> Value {
    json!({
        "metadata": {"name": name, "creationTimestamp": BEFORE},
        "spec": {"attacher": "d", "nodeName": node, "source": {"persistentVolumeName": "pv-1"}},
        "status": {"attached": attached},
    })
}

pub(super) fn event(kind: &str, name: &str, reason: &str, message: &str, at: &str) -> Value {
    json!({
        "involvedObject": {"kind": kind, "name": name, "namespace": "ns"},
        "reason": reason, "message": message, "type": "Warning", "count": 3,
        "firstTimestamp": BEFORE, "lastTimestamp": at,
    })
}
