//! The pod's part of the chain: its place, and its mounts.

use super::{
    Snapshot, Step, claim, places,
    snapshot::{at, claims_of, condition, created, deleted, first, last, list, name, text},
    volume,
};
use serde_json::Value;

/// Reasons of events about volumes of a pod.
const VOLUMES: [&str; 4] =
    ["FailedMount", "FailedAttachVolume", "FailedMapVolume", "VolumeResizeFailed"];

/// Whether it has not begun.
pub(super) fn is_pending(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Pending"
}

/// A pod with all its volumes.
pub(super) fn walk(see: &Snapshot, pod: &Value, out: &mut Vec<Step>) {
    let object = format!("pod/{}", name(pod));
    let phase = text(pod, "/status/phase");
    let node = at(pod, "/spec/nodeName");
    let place = node.map_or_else(|| "no node yet".to_owned(), |node| format!("node {node}"));
    out.push(Step::ok("pod", &object, format!("{phase}, {place}")).since(created(pod)));
    leaves(see, pod, out);
    let claims = claims_of(pod);
    for name in &claims {
        claim::walk(see, name, out);
    }
    for inline in list(pod, "/spec/volumes") {
        if let (Some(driver), Some(node)) = (at(inline, "/csi/driver"), node) {
            places::on_node(see, driver, node, out);
        }
    }
    if node.is_none() && is_pending(pod) {
        return placing(see, pod, out);
    }
    after_claims(see, pod, out);
    if claims.is_empty() && !list(pod, "/spec/volumes").iter().any(|v| v.get("csi").is_some()) {
        out.push(Step::ok("claim", object, "it uses no claims"));
    }
}

/// What comes once the claims are bound: node, attachment, mount.
pub(super) fn after_claims(see: &Snapshot, pod: &Value, out: &mut Vec<Step>) {
    let Some(node) = at(pod, "/spec/nodeName") else { return placing(see, pod, out) };
    for claim in claims_of(pod) {
        let Some(volume) = see.volume_of(&claim).and_then(|name| see.volume(name)) else {
            continue;
        };
        let driver = text(volume, "/spec/csi/driver");
        if driver.is_empty() {
            continue;
        }
        if places::of_volume(see, volume).is_some_and(|nodes| !nodes.contains(&node)) {
            volume::walk(see, volume, Some(node), out);
        }
        places::on_node(see, driver, node, out);
        if is_pending(pod) || text(pod, "/status/phase") == "Running" {
            volume::attach(see, volume, pod, out);
        }
    }
    mounts(see, pod, out);
}

/// A pod whose deletion does not end.
fn leaves(see: &Snapshot, pod: &Value, out: &mut Vec<Step>) {
    let Some(since) = deleted(pod) else { return };
    let object = format!("pod/{}", name(pod));
    let finalizers = super::snapshot::texts(pod, "/metadata/finalizers");
    let step = if let Some(finalizer) = finalizers.first() {
        Step::stuck("deletion", "finalizer", object)
            .what(format!("its deletion waits for whoever set finalizer {finalizer}"))
            .mend("find out whose it is, and why that does not run")
    } else if see.age(Some(since)) > 30 {
        Step::stuck("deletion", "pod-does-not-end", object)
            .what("its grace period is over, and kubelet has not told that it has ended: a process that does not die, a volume that is not unmounted, or a node that is away")
            .mend(format!("look at the node: kubelet's log, and (for Larder's volumes) `larder doctor` on node {}", text(pod, "/spec/nodeName")))
    } else {
        Step::waiting("deletion", "pod-ends", object).what("it is ending")
    };
    out.push(step.since(Some(since)));
}

/// Why a pod has no node.
pub(super) fn placing(see: &Snapshot, pod: &Value, out: &mut Vec<Step>) {
    let object = format!("pod/{}", name(pod));
    let unschedulable = condition(pod, "PodScheduled").filter(|c| text(c, "/status") == "False");
    let event = see.event("Pod", name(pod), &["FailedScheduling"]);
    let Some(said) =
        unschedulable.map(|c| text(c, "/message")).or_else(|| event.map(|e| text(e, "/message")))
    else {
        if at(pod, "/spec/nodeName").is_none() {
            out.push(
                Step::waiting("scheduling", "scheduling", object)
                    .since(created(pod))
                    .what("the scheduler places it next"),
            );
        }
        return;
    };
    let since =
        unschedulable.and_then(|c| at(c, "/lastTransitionTime")).or_else(|| event.and_then(first));
    let has = |words: &str| said.contains(words);
    let (kind, mend) = if has("did not have enough free storage") {
        (
            "no-capacity",
            "make room in a pool (`larder pool ls -o wide` on the nodes; kubectl get csistoragecapacities -A), or make the claim anew with less",
        )
    } else if has("volume node affinity conflict")
        || has("didn't match PersistentVolume's node affinity")
    {
        (
            "topology",
            "the volume is on a node that the pod may not use: mend the pod's nodeSelector or affinity, or make room on the volume's node",
        )
    } else if has("unbound immediate PersistentVolumeClaims") {
        ("claim-unbound", "mend its claim: see above")
    } else if has("persistentvolumeclaim") && has("not found") {
        ("claim-missing", "make the claim, or correct its name in the pod")
    } else if has("exceed max volume count") {
        (
            "too-many-volumes",
            "the nodes have as many volumes of the driver as they can: spread the pods, or add a node",
        )
    } else if has("ReadWriteOncePod") {
        (
            "in-use-by-pod",
            "another pod uses a claim whose access mode is ReadWriteOncePod: delete that pod, or wait until it ends",
        )
    } else if has("available persistent volumes to bind") {
        (
            "topology",
            "no node is one where the claim's volume may be: see allowedTopologies of the class, and the free static volumes",
        )
    } else {
        (
            "not-storage",
            "this is no matter of storage: kubectl describe pod, and the nodes' taints, cpu and memory",
        )
    };
    out.push(Step::stuck("scheduling", kind, object).since(since).what(said).mend(mend));
}

/// What kubelet and kube-controller-manager say of its volumes, and whether it runs.
fn mounts(see: &Snapshot, pod: &Value, out: &mut Vec<Step>) {
    let object = format!("pod/{}", name(pod));
    if text(pod, "/status/phase") != "Pending" {
        return out.push(Step::ok("mount", object, "its volumes are mounted"));
    }
    // What was said before its volumes came to be mounted is over.
    let begun = list(pod, "/status/containerStatuses").iter().find_map(|c| {
        let reason = text(c, "/state/waiting/reason");
        (!matches!(reason, "" | "ContainerCreating" | "PodInitializing"))
            .then_some((reason, text(c, "/state/waiting/message")))
    });
    if let Some((reason, message)) = begun {
        out.push(Step::ok("mount", &object, "its volumes are mounted"));
        return out.push(
            Step::stuck("containers", "not-storage", object)
                .what(format!("{reason}: {message}"))
                .mend("this is no matter of storage: kubectl describe pod, kubectl logs"),
        );
    }
    let Some(event) = see.event("Pod", name(pod), &VOLUMES) else {
        return out.push(
            Step::waiting("mount", "mounting", object)
                .since(at(pod, "/status/startTime").or_else(|| created(pod)))
                .what("kubelet mounts its volumes, or starts its containers"),
        );
    };
    let said = text(event, "/message");
    let step = if said.contains("Multi-Attach error") {
        Step::stuck("attachment", "in-use-elsewhere", &object)
            .what(said)
            .mend("delete the pod on the other node that uses the volume; a volume that can be on one node at a time cannot be shared by pods of two")
    } else if said.contains("timed out waiting for the condition")
        || said.contains("context deadline exceeded")
    {
        Step::stuck("mount", "mount-slow", &object)
            .what(said)
            .mend("look at the driver's log on that node: what it does has not ended in time, and is tried again")
    } else {
        claim::classified("mount", "mount-failed", &object, said)
    };
    let latest = last(event);
    out.push(step.since(first(event).or(Some(latest))));
}
