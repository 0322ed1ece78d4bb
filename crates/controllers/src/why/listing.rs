//! The volumes of a cluster, with claim, place and condition.

use super::{
    Snapshot, claim, full, places,
    snapshot::{at, claims_of, deleted, name, text},
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// A volume as it is listed. The JSON form is part of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The PersistentVolume.
    pub volume: String,
    /// `NAMESPACE/NAME` of its claim; empty: none.
    pub claim: String,
    /// Its size, as the PersistentVolume has it.
    pub size: String,
    /// The nodes that it is on, or attached to; empty: it can be anywhere.
    pub nodes: Vec<String>,
    /// `Bound` and so on; `Terminating`: its deletion was asked for.
    pub state: String,
    /// What is not settled.
    pub conditions: Vec<String>,
    /// Pods that use it.
    pub used_by: Vec<String>,
    /// The CSI driver.
    pub driver: String,
    /// The StorageClass.
    pub class: String,
    /// The driver's id.
    pub handle: String,
}

/// The volumes of CSI drivers, by name.
pub fn listed(see: &Snapshot) -> Vec<Listed> {
    let of_csi = see.volumes.iter().filter(|v| at(v, "/spec/csi/driver").is_some());
    let mut rows: Vec<_> = of_csi.map(|volume| row(see, volume)).collect();
    rows.sort_by(|a, b| (&a.claim, &a.volume).cmp(&(&b.claim, &b.volume)));
    rows
}

fn row(see: &Snapshot, volume: &Value) -> Listed {
    let (namespace, owner) =
        (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
    let of = |object: &&Value| text(object, "/metadata/namespace") == namespace;
    let claim = see.claims.iter().filter(of).find(|c| name(c) == owner);
    let bound = claim.filter(|c| text(c, "/spec/volumeName") == name(volume));
    let mut conditions = bound.map(claim::conditions).unwrap_or_default();
    let phase = text(volume, "/status/phase");
    if phase == "Released" {
        conditions.push("its claim is gone".to_owned());
    }
    if bound.is_some_and(|c| deleted(c).is_some()) {
        conditions.push("its claim is being deleted".to_owned());
    }
    if places::of_volume(see, volume).is_some_and(|nodes| nodes.is_empty()) && !see.nodes.is_empty()
    {
        conditions.push("its node is gone".to_owned());
    }
    for attachment in see
        .attachments
        .iter()
        .filter(|a| text(a, "/spec/source/persistentVolumeName") == name(volume))
    {
        for pointer in ["/status/attachError/message", "/status/detachError/message"] {
            conditions.extend(at(attachment, pointer).map(str::to_owned));
        }
    }
    let uses = |pod: &&Value| {
        let over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
        !over && bound.is_some() && claims_of(pod).iter().any(|claim| claim == owner)
    };
    let users: Vec<_> = see.pods.iter().filter(of).filter(uses).collect();
    Listed {
        volume: name(volume).to_owned(),
        claim: if owner.is_empty() { String::new() } else { full(namespace, owner) },
        size: text(volume, "/spec/capacity/storage").to_owned(),
        nodes: nodes_of(see, volume),
        state: if deleted(volume).is_some() { "Terminating" } else { phase }.to_owned(),
        conditions,
        used_by: users.iter().map(|pod| name(pod).to_owned()).collect(),
        driver: text(volume, "/spec/csi/driver").to_owned(),
        class: text(volume, "/spec/storageClassName").to_owned(),
        handle: text(volume, "/spec/csi/volumeHandle").to_owned(),
    }
}

/// The nodes that a volume is on: where it can be used at all, else where it is attached, else where
/// pods use it.
pub fn nodes_of(see: &Snapshot, volume: &Value) -> Vec<String> {
    if let Some(nodes) = places::of_volume(see, volume) {
        return nodes.into_iter().map(str::to_owned).collect();
    }
    let attached = see
        .attachments
        .iter()
        .filter(|a| text(a, "/spec/source/persistentVolumeName") == name(volume));
    let attached: BTreeSet<_> = attached.map(|a| text(a, "/spec/nodeName").to_owned()).collect();
    if !attached.is_empty() {
        return attached.into_iter().collect();
    }
    let (namespace, claim) =
        (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
    let users = see.pods.iter().filter(|pod| {
        text(pod, "/metadata/namespace") == namespace && claims_of(pod).iter().any(|c| c == claim)
    });
    let nodes: BTreeSet<_> =
        users.filter_map(|pod| at(pod, "/spec/nodeName").map(str::to_owned)).collect();
    nodes.into_iter().collect()
}
