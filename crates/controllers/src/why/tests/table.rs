//! One thing wrong, and what is said of it.

use super::{
    asked,
    world::{BEFORE, NOW, attachment, event, mounting, pending, pod, works},
};
use crate::{
    api::Key,
    why::{Snapshot, State, Told},
};
use serde_json::{Value, json};

type World = fn() -> Snapshot;
type Change = fn(&mut Snapshot);

/// A claim as it stands, written over.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    object.pointer_mut(parent).unwrap()[key.as_str()] = value;
}

fn says(see: &mut Snapshot, kind: &str, name: &str, reason: &str, message: &str) {
    see.events.push(event(kind, name, reason, message, NOW));
}

const SELECTED: &str = "/metadata/annotations/volume.kubernetes.io~1selected-node";

/// The world, what is wrong in it, about what somebody asks; how that stands, why, and on what.
type Row = (World, Change, &'static str, State, &'static str, &'static str);

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    vec![
        // The class.
        (pending, |see| see.classes.clear(), "pvc/data", State::Stuck, "class-missing", "storageclass/fast"),
        (pending, |see| set(&mut see.claims[0], "/spec/storageClassName", Value::Null), "pvc/data", State::Stuck, "class-none", "pvc/data"),
        (pending, |see| set(&mut see.claims[0], "/spec/storageClassName", json!("")), "pvc/data", State::Stuck, "no-static-volume", "pvc/data"),
        (pending, |see| see.classes[0]["provisioner"] = json!("kubernetes.io/no-provisioner"), "pvc/data", State::Stuck, "no-static-volume", "pvc/data"),
        (pending, |see| see.claims[0]["spec"]["selector"] = json!({"matchLabels": {}}), "pvc/data", State::Stuck, "selector", "pvc/data"),
        // The driver.
        (pending, |see| see.csi_nodes.clear(), "pvc/data", State::Stuck, "driver-nowhere", "csidriver/d"),
        (pending, |see| see.csi_nodes[0]["spec"]["drivers"] = Value::Null, "pvc/data", State::Stuck, "driver-not-on-node", "csinode/n1"),
        (mounting, |see| see.csi_nodes[0]["spec"]["drivers"] = json!([]), "pod/web", State::Stuck, "driver-not-on-node", "csinode/n1"),
        (mounting, |see| { see.volumes[0]["spec"]["nodeAffinity"] = Value::Null; says(see, "Pod", "web", "FailedMount", "driver name d not found in the list of registered CSI drivers") }, "pod/web", State::Stuck, "driver-not-on-node", "pod/web"),
        // Nobody needs it yet.
        (pending, |see| { set(&mut see.claims[0], SELECTED, Value::Null); see.pods.clear() }, "pvc/data", State::Waiting, "waits-for-consumer", "pvc/data"),
        // Room and place.
        (pending, |see| see.capacities[0]["capacity"] = json!("1Mi"), "pvc/data", State::Stuck, "no-capacity", "storageclass/fast"),
        (pending, |see| see.capacities[0]["maximumVolumeSize"] = json!("1Mi"), "pvc/data", State::Stuck, "no-capacity", "storageclass/fast"),
        (pending, |see| { set(&mut see.claims[0], SELECTED, Value::Null); see.capacities.clear() }, "pvc/data", State::Stuck, "capacity-untold", "storageclass/fast"),
        (pending, |see| says(see, "PersistentVolumeClaim", "data", "ProvisioningFailed", "rpc error: code = ResourceExhausted desc = full"), "pvc/data", State::Stuck, "no-capacity", "pvc/data"),
        (pending, |see| see.classes[0]["allowedTopologies"] = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]), "pvc/data", State::Stuck, "topology", "storageclass/fast"),
        (pending, |see| { see.csi_nodes.remove(1); set(&mut see.nodes[1], "/metadata/labels/zone", json!("b")); see.classes[0]["allowedTopologies"] = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]) }, "pvc/data", State::Stuck, "topology", "storageclass/fast"),
        (pending, |see| { set(&mut see.claims[0], SELECTED, Value::Null); see.pods[0]["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 node(s) did not have enough free storage."}]) }, "pod/web", State::Stuck, "no-capacity", "pod/web"),
        (works, |see| { see.pods[0]["spec"]["nodeName"] = Value::Null; see.pods[0]["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "2 node(s) had volume node affinity conflict"}]}) }, "pod/web", State::Stuck, "topology", "pod/web"),
        (works, |see| { see.pods[0]["spec"]["nodeName"] = Value::Null; see.pods[0]["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "2 Insufficient cpu"}]}) }, "pod/web", State::Stuck, "not-storage", "pod/web"),
        (mounting, |see| see.pods[0]["spec"]["nodeName"] = json!("n2"), "pod/web", State::Stuck, "topology", "pv/pv-1"),
        // Secrets.
        (pending, |see| { see.secrets.insert(Key::new("ns", "login"), None); }, "pvc/data", State::Stuck, "secret-missing", "secret/ns/login"),
        (pending, |see| { see.secrets.insert(Key::new("ns", "login"), Some(Vec::new())); }, "pvc/data", State::Stuck, "secret-missing", "secret/ns/login"),
        (works, |see| { see.secrets.insert(Key::new("ns", "login"), None); }, "pod/web", State::Stuck, "secret-missing", "secret/ns/login"),
        (pending, |see| set(&mut see.classes[0], "/parameters/csi.storage.k8s.io~1provisioner-secret-name", json!("${pvc.colour}")), "pvc/data", State::Stuck, "secret-template", "storageclass/fast"),
        // What it is made from.
        (pending, |see| see.claims[0]["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "gone"}), "pvc/data", State::Stuck, "source-missing", "pvc/gone"),
        (pending, |see| see.claims[0]["spec"]["dataSource"] = json!({"kind": "VolumeSnapshot", "name": "gone"}), "pvc/data", State::Stuck, "source-missing", "volumesnapshot/gone"),
        (pending, |see| { see.snapshots.push(json!({"metadata": {"name": "s"}, "status": {"readyToUse": false}})); see.claims[0]["spec"]["dataSource"] = json!({"kind": "VolumeSnapshot", "name": "s"}) }, "pvc/data", State::Stuck, "source-not-ready", "volumesnapshot/s"),
        (pending, |see| see.claims[0]["spec"]["volumeAttributesClassName"] = json!("gone"), "pvc/data", State::Stuck, "attributes-class-missing", "volumeattributesclass/gone"),
        // The provisioner.
        (pending, |see| says(see, "PersistentVolumeClaim", "data", "ProvisioningFailed", "persistentvolumes is forbidden: User \"x\" cannot create resource (hint: grant the ServiceAccount {verbs: [create]})"), "pvc/data", State::Stuck, "rbac", "pvc/data"),
        (pending, |see| says(see, "PersistentVolumeClaim", "data", "ProvisioningFailed", "no such pool (hint: make it)"), "pvc/data", State::Stuck, "provisioning-failed", "pvc/data"),
        (pending, |_| {}, "pvc/data", State::Waiting, "provisioning", "pvc/data"),
        (pending, |see| set(&mut see.claims[0], "/metadata/creationTimestamp", json!(BEFORE)), "pvc/data", State::Stuck, "nobody-provisions", "pvc/data"),
        (pending, |see| { set(&mut see.claims[0], "/metadata/creationTimestamp", json!(BEFORE)); set(&mut see.claims[0], "/metadata/annotations/volume.kubernetes.io~1storage-provisioner", Value::Null) }, "pvc/data", State::Stuck, "not-offered", "pvc/data"),
        // Attachments.
        (mounting, |see| see.attachments.clear(), "pod/web", State::Waiting, "attach-pending", "pv/pv-1"),
        (mounting, |see| see.attachments = vec![attachment("va-1", "n1", false)], "pod/web", State::Stuck, "attach-pending", "volumeattachment/va-1"),
        (mounting, |see| { see.attachments = vec![attachment("va-1", "n1", false)]; see.attachments[0]["status"]["attachError"] = json!({"message": "the array is away", "time": BEFORE}) }, "pod/web", State::Stuck, "attach-failed", "volumeattachment/va-1"),
        (mounting, |see| { set(&mut see.attachments[0], "/metadata/deletionTimestamp", json!(BEFORE)); see.attachments[0]["status"]["detachError"] = json!({"message": "busy"}) }, "pod/web", State::Stuck, "detach-failed", "volumeattachment/va-1"),
        (mounting, |see| { see.volumes[0]["spec"]["nodeAffinity"] = Value::Null; see.attachments = vec![attachment("va-2", "n2", true)]; see.pods.push(pod("other", "n2")) }, "pod/web", State::Stuck, "in-use-elsewhere", "pv/pv-1"),
        (mounting, |see| { see.volumes[0]["spec"]["nodeAffinity"] = Value::Null; see.attachments = vec![attachment("va-2", "n2", true)] }, "pod/web", State::Waiting, "in-use-elsewhere", "pv/pv-1"),
        (mounting, |see| { see.volumes[0]["spec"]["nodeAffinity"] = Value::Null; see.attachments = vec![attachment("va-2", "n2", true)]; see.nodes[1]["status"]["conditions"][0]["status"] = json!("Unknown") }, "pod/web", State::Stuck, "in-use-elsewhere", "pv/pv-1"),
        (mounting, |see| { see.volumes[0]["spec"]["accessModes"] = json!(["ReadWriteOncePod"]); see.pods.push(pod("other", "n1")) }, "pod/web", State::Stuck, "in-use-by-pod", "pv/pv-1"),
        (mounting, |see| says(see, "Pod", "web", "FailedAttachVolume", "Multi-Attach error for volume \"pv-1\" Volume is already used by pod(s) other"), "pod/web", State::Stuck, "in-use-elsewhere", "pod/web"),
        // Nodes.
        (mounting, |see| see.nodes[0]["status"]["conditions"][0] = json!({"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status.", "lastTransitionTime": BEFORE}), "pod/web", State::Stuck, "node-not-ready", "node/n1"),
        (works, |see| { see.nodes.remove(0); }, "pvc/data", State::Stuck, "node-gone", "pv/pv-1"),
        (pending, |see| { see.nodes.remove(0); }, "pvc/data", State::Stuck, "node-gone", "node/n1"),
        // Mounts.
        (mounting, |see| says(see, "Pod", "web", "FailedMount", "MountVolume.MountDevice failed: errors are left (hint: run e2fsck)"), "pod/web", State::Stuck, "mount-failed", "pod/web"),
        (mounting, |_| {}, "pvc/data", State::Waiting, "mounting", "pod/web"),
        (mounting, |see| see.pods[0]["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = json!("ImagePullBackOff"), "pod/web", State::Stuck, "not-storage", "pod/web"),
        // Deletions.
        (works, |see| { set(&mut see.claims[0], "/metadata/deletionTimestamp", json!(BEFORE)); set(&mut see.claims[0], "/metadata/finalizers", json!(["kubernetes.io/pvc-protection"])) }, "pvc/data", State::Stuck, "finalizer", "pvc/data"),
        (works, |see| { see.pods.clear(); set(&mut see.claims[0], "/metadata/deletionTimestamp", json!(BEFORE)); set(&mut see.claims[0], "/metadata/finalizers", json!(["example.org/backup"])) }, "pvc/data", State::Stuck, "finalizer", "pvc/data"),
        (works, |see| set(&mut see.volumes[0], "/metadata/deletionTimestamp", json!(BEFORE)), "pv/pv-1", State::Stuck, "finalizer", "pv/pv-1"),
        (works, |see| { set(&mut see.pods[0], "/metadata/deletionTimestamp", json!(BEFORE)) }, "pod/web", State::Stuck, "pod-does-not-end", "pod/web"),
        (works, |see| { see.claims.clear(); set(&mut see.volumes[0], "/status/phase", json!("Released")); set(&mut see.volumes[0], "/spec/persistentVolumeReclaimPolicy", json!("Retain")) }, "pv/pv-1", State::Stuck, "released-retain", "pv/pv-1"),
        (works, |see| { see.claims.clear(); set(&mut see.volumes[0], "/status/phase", json!("Released")) }, "pv/pv-1", State::Waiting, "attached", "pv/pv-1"),
        (works, |see| { see.claims.clear(); see.attachments.clear(); set(&mut see.volumes[0], "/status/phase", json!("Released")); says(see, "PersistentVolume", "pv-1", "VolumeFailedDelete", "it is mounted") }, "pv/pv-1", State::Stuck, "delete-failed", "pv/pv-1"),
        (works, |see| { see.claims.clear(); see.attachments.clear(); see.nodes.remove(0); set(&mut see.volumes[0], "/status/phase", json!("Released")) }, "pv/pv-1", State::Stuck, "delete-failed", "pv/pv-1"),
        // Volumes that are gone, taken, unfit.
        (works, |see| see.volumes.clear(), "pvc/data", State::Stuck, "volume-missing", "pv/pv-1"),
        (works, |see| set(&mut see.claims[0], "/status/phase", json!("Lost")), "pvc/data", State::Stuck, "volume-missing", "pv/pv-1"),
        (works, |see| { set(&mut see.claims[0], "/status/phase", json!("Pending")); set(&mut see.volumes[0], "/spec/claimRef/name", json!("other")) }, "pvc/data", State::Stuck, "volume-taken", "pv/pv-1"),
        (works, |see| { set(&mut see.claims[0], "/status/phase", json!("Pending")); set(&mut see.volumes[0], "/spec/capacity/storage", json!("1Mi")) }, "pvc/data", State::Stuck, "volume-unfit", "pv/pv-1"),
        // Growth and attributes.
        (grows, |see| set(&mut see.claims[0], "/status/allocatedResourceStatuses", json!({"storage": "ControllerResizeInfeasible"})), "pvc/data", State::Stuck, "resize-infeasible", "pvc/data"),
        (grows, |see| says(see, "PersistentVolumeClaim", "data", "VolumeResizeFailed", "the pool refuses"), "pvc/data", State::Stuck, "resize-failed", "pvc/data"),
        (grows, |see| { see.pods.clear(); set(&mut see.claims[0], "/status/allocatedResourceStatuses", json!({"storage": "NodeResizePending"})) }, "pvc/data", State::Waiting, "resize-on-node", "pvc/data"),
        (grows, |see| see.classes[0]["allowVolumeExpansion"] = json!(false), "pvc/data", State::Stuck, "resize-not-allowed", "pvc/data"),
        (grows, |_| {}, "pvc/data", State::Waiting, "resizing", "pvc/data"),
        (modifies, |see| set(&mut see.claims[0], "/status/modifyVolumeStatus", json!({"status": "Infeasible"})), "pvc/data", State::Stuck, "modify-infeasible", "pvc/data"),
        (modifies, |see| says(see, "PersistentVolumeClaim", "data", "VolumeModifyFailed", "wrong"), "pvc/data", State::Stuck, "modify-failed", "pvc/data"),
        (modifies, |_| {}, "pvc/data", State::Waiting, "modifying", "pvc/data"),
        // Records.
        (works, |see| see.told.push(Told { volume: "pv-1".into(), by: "node n1".into(), state: State::Stuck, what: "its pool has no volume h".into(), mend: "look".into() }), "pvc/data", State::Stuck, "records", "pv/pv-1"),
    ]
}

#[test]
fn one_thing_wrong_is_named() {
    let mut wrong = Vec::new();
    for (number, (world, change, subject, state, kind, object)) in rows().into_iter().enumerate() {
        let mut see = world();
        change(&mut see);
        let report = asked(&see, subject);
        let Some(cause) = report.cause.clone() else {
            wrong.push(format!("{number}, {kind}: nothing is stuck: {report:#?}"));
            continue;
        };
        if (report.state, cause.kind, cause.object.as_str()) != (state, kind, object) {
            wrong.push(format!("{number}, {state} {kind} {object}: {} {cause:?}", report.state));
        }
        // A person is told what to do.
        let told = !cause.what.is_empty() && (state == State::Waiting || !cause.mend.is_empty());
        if !told {
            wrong.push(format!("{number}: {cause:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn grows() -> Snapshot {
    let mut see = works();
    set(&mut see.claims[0], "/spec/resources/requests/storage", json!("2Gi"));
    see
}

fn modifies() -> Snapshot {
    let mut see = works();
    see.attributes.push(json!({"metadata": {"name": "gold"}}));
    set(&mut see.claims[0], "/spec/volumeAttributesClassName", json!("gold"));
    see
}

#[test]
fn a_claim_that_could_not_be_made_has_its_quota_named() {
    let mut see = works();
    see.claims.clear();
    see.quotas.push(json!({
        "metadata": {"name": "limits"},
        "status": {
            "hard": {"requests.storage": "1Gi", "fast.storageclass.storage.k8s.io/requests.storage": "9Gi", "pods": "1"},
            "used": {"requests.storage": "1Gi", "fast.storageclass.storage.k8s.io/requests.storage": "1Gi", "pods": "1"},
        },
    }));
    let report = asked(&see, "pvc/data");
    let cause = report.cause.unwrap();
    assert_eq!((cause.kind, cause.object.as_str()), ("quota", "resourcequota/limits"));
    assert_eq!(cause.what, "requests.storage is used up: 1Gi of 1Gi");
}

#[test]
fn the_rule_that_is_missing_is_what_to_do() {
    let mut see = pending();
    let said = "create persistentvolumes: forbidden: persistentvolumes is forbidden: User cannot create (hint: grant the ServiceAccount {apiGroups: [\"\"], resources: [persistentvolumes], verbs: [create]})";
    says(&mut see, "PersistentVolumeClaim", "data", "ProvisioningFailed", said);
    let cause = asked(&see, "pvc/data").cause.unwrap();
    assert_eq!(
        cause.mend,
        "grant the ServiceAccount {apiGroups: [\"\"], resources: [persistentvolumes], verbs: [create]}"
    );
    assert_eq!(cause.since.as_deref(), Some(BEFORE));
}
