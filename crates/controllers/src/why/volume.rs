//! The volume's part of the chain: where it is, what holds it, growth and attributes.

use super::{
    Snapshot, Step, claim, full, places,
    snapshot::{at, bytes, condition, created, deleted, first, last, name, text, texts},
};
use crate::{api::Key, provision::persistent_volume::FINALIZER};
use serde_json::Value;

const BOUND: &str = "kubernetes.io/pv-protection";

/// A volume; `node`: where it is to be used.
pub(super) fn walk(see: &Snapshot, volume: &Value, node: Option<&str>, out: &mut Vec<Step>) {
    let object = format!("pv/{}", name(volume));
    let driver = text(volume, "/spec/csi/driver");
    let (phase, size) = (text(volume, "/status/phase"), text(volume, "/spec/capacity/storage"));
    let policy = text(volume, "/spec/persistentVolumeReclaimPolicy");
    if driver.is_empty() {
        return out.push(Step::unknown(
            "volume",
            object,
            "it is of no CSI driver: nothing more is known of such volumes",
        ));
    }
    let what = format!("{phase}: {size} of driver {driver}, policy {policy}");
    out.push(Step::ok("volume", &object, what).since(created(volume)));
    goes(see, volume, out);
    if phase == "Failed" {
        out.push(
            Step::stuck("volume", "volume-failed", &object)
                .what(text(volume, "/status/message"))
                .mend("mend what the message says, then delete the PersistentVolume"),
        );
    }
    places::driver(see, driver, out);
    match (places::of_volume(see, volume), node) {
        (Some(nodes), None) if nodes.is_empty() => out.push(
            Step::stuck("topology", "node-gone", &object)
                .what("no node has the labels of its nodeAffinity: the node that has it is gone, or was renamed")
                .mend("bring the node back under its name; if it is gone for good, so is the data: delete the claim, take the finalizer off the PersistentVolume, and delete it"),
        ),
        (Some(nodes), Some(node)) if !nodes.contains(&node) => out.push(
            Step::stuck("topology", "topology", &object)
                .what(format!("it can be used on {}, and the pod is on {node}", if nodes.is_empty() { "no node that there is".to_owned() } else { nodes.join(", ") }))
                .mend("let the pod go where the volume is: leave out its nodeName, nodeSelector or affinity"),
        ),
        // Storage of one node needs that node, whoever asks.
        (Some(nodes), None) if nodes.len() == 1 => places::on_node(see, driver, nodes[0], out),
        _ => {}
    }
    for (pointer, what) in [
        ("controllerPublishSecretRef", "controller-publish secret"),
        ("nodeStageSecretRef", "node-stage secret"),
        ("nodePublishSecretRef", "node-publish secret"),
        ("controllerExpandSecretRef", "controller-expand secret"),
        ("nodeExpandSecretRef", "node-expand secret"),
    ] {
        let part = |part: &str| at(volume, &format!("/spec/csi/{pointer}/{part}"));
        if let (Some(namespace), Some(secret)) = (part("namespace"), part("name")) {
            claim::secret(see, &Key::new(namespace, secret), what, out);
        }
    }
}

fn attachments<'a>(see: &'a Snapshot, volume: &'a str) -> impl Iterator<Item = &'a Value> {
    see.attachments.iter().filter(move |a| text(a, "/spec/source/persistentVolumeName") == volume)
}

/// Released, or deleted, and who holds it.
fn goes(see: &Snapshot, volume: &Value, out: &mut Vec<Step>) {
    let (volume_name, object) = (name(volume), format!("pv/{}", name(volume)));
    let since = deleted(volume);
    let (phase, policy) =
        (text(volume, "/status/phase"), text(volume, "/spec/persistentVolumeReclaimPolicy"));
    if since.is_none() && phase != "Released" {
        return;
    }
    let failed = see.event("PersistentVolume", volume_name, &["VolumeFailedDelete"]);
    let attached: Vec<_> =
        attachments(see, volume_name).map(|a| text(a, "/spec/nodeName")).collect();
    if let Some(since) = since {
        for finalizer in texts(volume, "/metadata/finalizers") {
            let step = Step::stuck("deletion", "finalizer", &object).since(Some(since));
            if finalizer == BOUND && phase == "Bound" {
                let (namespace, claim) =
                    (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
                out.push(
                    step.what(format!(
                        "its deletion waits for claim {}, which is bound to it",
                        full(namespace, claim)
                    ))
                    .mend(format!("kubectl -n {namespace} delete pvc {claim}")),
                );
            } else if finalizer.starts_with("external-attacher/") {
                out.push(
                    step.what(format!(
                        "its deletion waits until it is detached from {}",
                        attached.join(", ")
                    ))
                    .mend("delete the pods that use it; an attachment that stays is told of below"),
                );
            } else if finalizer == FINALIZER && phase == "Bound" || finalizer == BOUND {
                // It goes on by itself once the claim is gone.
                out.push(
                    Step::waiting("deletion", "finalizer", &object)
                        .since(Some(since))
                        .what(format!("{finalizer} goes last")),
                );
            } else if finalizer != FINALIZER {
                out.push(step.what(format!("its deletion waits for whoever set finalizer {finalizer}")).mend("find out whose it is, and why that does not run; take it off by hand only when its owner is gone for good"));
            }
        }
    }
    if phase != "Released" {
        return;
    }
    let told = Step::stuck("deletion", "delete-failed", &object);
    if policy == "Retain" {
        return out.push(
            Step::stuck("deletion", "released-retain", &object).since(since)
                .what("its claim is gone, and its policy Retain keeps volume and data until a person decides")
                .mend(format!("to use it again: kubectl patch pv {volume_name} --type json -p '[{{\"op\":\"remove\",\"path\":\"/spec/claimRef\"}}]'; to give it up: patch its persistentVolumeReclaimPolicy to Delete")),
        );
    }
    if !attached.is_empty() {
        return out.push(
            Step::waiting("deletion", "attached", &object)
                .since(since)
                .what(format!("it is deleted once it is detached from {}", attached.join(", "))),
        );
    }
    if let Some(failed) = failed {
        let said =
            claim::classified("deletion", "delete-failed", &object, text(failed, "/message"));
        return out.push(said.since(first(failed)));
    }
    if places::of_volume(see, volume).is_some_and(|nodes| nodes.is_empty()) {
        return out.push(
            told.since(since)
                .what("it is to be deleted, and no node has the labels of its nodeAffinity: nobody can reach its storage")
                .mend(format!("if the node is gone for good: kubectl patch pv {volume_name} --type json -p '[{{\"op\":\"remove\",\"path\":\"/metadata/finalizers\"}}]' and kubectl delete pv {volume_name}")),
        );
    }
    out.push(
        Step::waiting("deletion", "deleting", object)
            .since(since)
            .what("its claim is gone, and the driver deletes it next"),
    );
}

/// Whether it is, or can be, where the pod is.
pub(super) fn attach(see: &Snapshot, volume: &Value, pod: &Value, out: &mut Vec<Step>) {
    let (volume_name, node) = (name(volume), text(pod, "/spec/nodeName"));
    let object = format!("pv/{volume_name}");
    let driver = text(volume, "/spec/csi/driver");
    let claim_name = text(volume, "/spec/claimRef/name");
    let modes = texts(volume, "/spec/accessModes");
    let many = modes.iter().any(|m| matches!(*m, "ReadWriteMany" | "ReadOnlyMany"));
    let others = || see.users(claim_name).filter(|other| name(other) != name(pod));
    if modes == ["ReadWriteOncePod"] {
        let other: Vec<_> =
            others().filter(|p| at(p, "/spec/nodeName").is_some()).map(name).collect();
        if !other.is_empty() {
            out.push(
                Step::stuck("attachment", "in-use-by-pod", &object)
                    .what(format!(
                        "its access mode is ReadWriteOncePod, and another pod uses it: {}",
                        other.join(", ")
                    ))
                    .mend(format!(
                        "kubectl -n {} delete pod {}, or wait until it ends",
                        see.namespace,
                        other.join(" ")
                    )),
            );
        }
    }
    if !places::attaches(see, driver) {
        return out.push(Step::ok("attachment", object, "the driver needs none"));
    }
    let mut elsewhere: Vec<_> =
        attachments(see, volume_name).filter(|a| text(a, "/spec/nodeName") != node).collect();
    elsewhere.sort_by_key(|a| name(a));
    if let (false, Some(attachment)) = (many, elsewhere.first()) {
        let there = text(attachment, "/spec/nodeName");
        let users: Vec<_> =
            others().filter(|p| text(p, "/spec/nodeName") == there).map(name).collect();
        let ready = see
            .node(there)
            .and_then(|n| condition(n, "Ready"))
            .is_some_and(|c| text(c, "/status") == "True");
        let why = match (users.is_empty(), ready) {
            (false, _) => format!("pods there use it: {}", users.join(", ")),
            (true, true) => "no pod there uses it any more: it is detached next".to_owned(),
            (true, false) => "that node is not ready: Kubernetes waits six minutes before it detaches it by force".to_owned(),
        };
        let what = format!(
            "it can be on one node at a time, is attached to {there}, and the pod is on {node}; {why}"
        );
        let step = if users.is_empty() && ready {
            Step::waiting("attachment", "in-use-elsewhere", &object)
        } else {
            Step::stuck("attachment", "in-use-elsewhere", &object)
        };
        let mend = match (users.is_empty(), ready) {
            (false, _) => format!(
                "kubectl -n {} delete pod {}; pods that share such a volume must be on one node",
                see.namespace,
                users.join(" ")
            ),
            (true, true) => String::new(),
            (true, false) => format!(
                "bring {there} back; of one that is surely off: kubectl taint node {there} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
            ),
        };
        let since = at(attachment, "/metadata/deletionTimestamp").or_else(|| created(attachment));
        out.push(step.what(what).since(since).mend(mend));
    }
    let here = attachments(see, volume_name).find(|a| text(a, "/spec/nodeName") == node);
    let Some(here) = here else {
        return out.push(
            Step::waiting("attachment", "attach-pending", object)
                .since(at(pod, "/status/startTime").or_else(|| created(pod)))
                .what(format!("kube-controller-manager has not yet asked for it on node {node}")),
        );
    };
    let object = format!("volumeattachment/{}", name(here));
    let error = |pointer: &str| {
        at(here, &format!("/status/{pointer}/message"))
            .map(|m| (m, at(here, &format!("/status/{pointer}/time"))))
    };
    if let (Some(since), Some((said, _))) = (deleted(here), error("detachError")) {
        return out.push(
            claim::classified("attachment", "detach-failed", &object, said).since(Some(since)),
        );
    }
    if let Some(since) = deleted(here) {
        return out.push(Step::waiting("attachment", "detaching", object).since(Some(since)).what(
            format!("it is being detached from node {node}, and attached again afterwards"),
        ));
    }
    if here.pointer("/status/attached") == Some(&Value::Bool(true)) {
        return out.push(Step::ok("attachment", object, format!("attached to node {node}")));
    }
    out.push(match error("attachError") {
        Some((said, since)) => claim::classified("attachment", "attach-failed", &object, said).since(since),
        None => Step::stuck("attachment", "attach-pending", object)
            .since(created(here))
            .what(format!("nobody has attached it to node {node}, and nobody has said why"))
            .mend(format!("look whether an attacher runs for driver {driver}; if the driver needs no attachments, its CSIDriver object must say attachRequired: false")),
    });
}

/// A claim that asks for more than it has.
pub(super) fn grow(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let object = format!("pvc/{}", name(claim));
    let asked = bytes(claim, "/spec/resources/requests/storage").unwrap_or(0);
    let has = bytes(claim, "/status/capacity/storage").unwrap_or(asked);
    if asked <= has {
        return;
    }
    let sizes = format!(
        "it has {} and asks for {}",
        text(claim, "/status/capacity/storage"),
        text(claim, "/spec/resources/requests/storage")
    );
    let state = text(claim, "/status/allocatedResourceStatuses/storage");
    let event = see.event("PersistentVolumeClaim", name(claim), &["VolumeResizeFailed"]);
    let since = condition(claim, "Resizing").and_then(|c| at(c, "/lastTransitionTime"));
    if state.ends_with("Infeasible") {
        let why = event.map(|e| format!(": {}", text(e, "/message"))).unwrap_or_default();
        return out.push(
            Step::stuck("growth", "resize-infeasible", object)
                .since(since)
                .what(format!("{sizes}; the driver cannot do it{why}"))
                .mend("ask for less: any size above what it has"),
        );
    }
    if let Some(failed) = claim::failed_condition(claim) {
        let step = claim::classified("growth", "resize-failed", &object, text(failed, "/message"));
        return out.push(step.since(at(failed, "/lastTransitionTime")));
    }
    let told = see.event(
        "PersistentVolumeClaim",
        name(claim),
        &["ExternalExpanding", "Resizing", "FileSystemResizeRequired"],
    );
    if let Some(event) = event
        && told.is_none_or(|told| last(told) <= last(event))
    {
        let step = claim::classified("growth", "resize-failed", &object, text(event, "/message"));
        return out.push(step.since(first(event)));
    }
    if state == "NodeResizePending" || condition(claim, "FileSystemResizePending").is_some() {
        let running = see.users(name(claim)).any(|pod| text(pod, "/status/phase") == "Running");
        let what = match running {
            true => format!("{sizes}; the node's turn, which comes within its sync period"),
            false => format!("{sizes}; the file system grows once a pod uses the claim"),
        };
        let step = Step::waiting("growth", "resize-on-node", object).since(since).what(what);
        return out.push(if running {
            step
        } else {
            step.mend("start a pod that uses it; nothing else is needed")
        });
    }
    let class = see.class(text(claim, "/spec/storageClassName"));
    if class.is_some_and(|c| c.pointer("/allowVolumeExpansion") != Some(&Value::Bool(true))) {
        return out.push(
            Step::stuck("growth", "resize-not-allowed", object)
                .what(format!("{sizes}; its class does not allow growing"))
                .mend(format!(
                    "kubectl patch storageclass {} -p '{{\"allowVolumeExpansion\":true}}'",
                    text(claim, "/spec/storageClassName")
                )),
        );
    }
    out.push(Step::waiting("growth", "resizing", object).since(since).what(format!(
        "{sizes}; the resizer is at work, or none runs for the driver: see its log"
    )));
}

/// A claim whose VolumeAttributesClass is not in force.
pub(super) fn modify(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let Some(wanted) = at(claim, "/spec/volumeAttributesClassName") else { return };
    if text(claim, "/status/currentVolumeAttributesClassName") == wanted {
        return;
    }
    let object = format!("pvc/{}", name(claim));
    let what = format!("VolumeAttributesClass {wanted} is not in force");
    let event = see.event("PersistentVolumeClaim", name(claim), &["VolumeModifyFailed"]);
    let why = event.map(|e| text(e, "/message")).unwrap_or_default();
    let known = see.attributes.iter().any(|c| name(c) == wanted);
    if !known {
        return out.push(
            Step::stuck(
                "attributes",
                "attributes-class-missing",
                format!("volumeattributesclass/{wanted}"),
            )
            .what(format!("{what}: there is none of that name"))
            .mend("make it, or name another in the claim"),
        );
    }
    match text(claim, "/status/modifyVolumeStatus/status") {
        "Infeasible" => out.push(
            Step::stuck("attributes", "modify-infeasible", object)
                .since(event.and_then(first))
                .what(format!("{what}; the driver cannot do it: {why}"))
                .mend("name another class in the claim"),
        ),
        _ if !why.is_empty() => out.push(
            claim::classified("attributes", "modify-failed", &object, why)
                .since(event.and_then(first)),
        ),
        _ => out.push(Step::waiting("attributes", "modifying", object).what(what)),
    }
}
