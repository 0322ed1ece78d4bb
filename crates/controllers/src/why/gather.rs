//! Takes a snapshot of what concerns a question, with the rights of whoever asks.

use super::{
    Snapshot, Subject, claim,
    snapshot::{annotation, at, claims_of, name, text},
};
use crate::{
    api::{
        Attachment, AttributesClass, CapacityObject, Claim, CsiNode, Key, Node, Object, Place, Pod,
        Secret, Snapshot as VolumeSnapshot, StorageClass, Volume,
    },
    client::{ApiError, Kube, Priority},
    events::EVENTS,
};
use larder_model::Fault;
use serde_json::Value;
use std::collections::BTreeSet;

/// CSIDriver, of which the controllers read nothing.
pub const CSI_DRIVERS: Place = Place {
    group: "storage.k8s.io",
    version: "v1",
    kind: "CSIDriver",
    plural: "csidrivers",
    namespaced: false,
};
const QUOTAS: Place = Place {
    group: "",
    version: "v1",
    kind: "ResourceQuota",
    plural: "resourcequotas",
    namespaced: true,
};

/// Looks at everything that concerns the subject. What may not be looked at is noted, and does not
/// end the look.
///
/// # Errors
/// Where the API server is not reached, or does not let one look at the subject at all.
pub async fn gather(kube: &Kube, namespace: &str, subject: &Subject) -> Result<Snapshot, Fault> {
    let mut see = Snapshot {
        now: jiff::Timestamp::now().to_string(),
        namespace: namespace.to_owned(),
        ..Snapshot::default()
    };
    // The first request tells whether there is a cluster at all.
    let wanted = match subject {
        Subject::Volume(name) => {
            let found = kube.look(Volume::PLACE, &Key::cluster(name)).await?;
            if let Some(found) = &found {
                at(found, "/spec/claimRef/namespace")
                    .unwrap_or(namespace)
                    .clone_into(&mut see.namespace);
            }
            found
        }
        Subject::Claim(name) => kube.look(Claim::PLACE, &Key::new(namespace, name)).await?,
        Subject::Pod(name) => kube.look(Pod::PLACE, &Key::new(namespace, name)).await?,
    };
    let ns = see.namespace.clone();
    let all = |place: Place, namespace: &'static str| async move {
        (place, list(kube, place, namespace, |_| true).await)
    };
    let of_namespace = |place: Place| {
        let ns = ns.clone();
        async move { (place, list(kube, place, &ns, |_| true).await) }
    };
    let asked = match subject {
        Subject::Volume(name) => name.clone(),
        _ => String::new(),
    };
    let volumes = list(kube, Volume::PLACE, "", |volume| {
        let claim = text(volume, "/spec/claimRef/namespace");
        claim == ns || claim.is_empty() || name(volume) == asked
    });
    let events = async {
        let mut found = list(kube, EVENTS, &ns, |_| true).await?;
        // Events about objects of no namespace are there.
        if ns != "default" {
            let about = |event: &Value| text(event, "/involvedObject/kind") == "PersistentVolume";
            found.extend(list(kube, EVENTS, "default", about).await?);
        }
        Ok::<_, ApiError>(found)
    };
    let lists = futures::future::join_all([
        of_namespace(Pod::PLACE),
        of_namespace(Claim::PLACE),
        of_namespace(VolumeSnapshot::PLACE),
        of_namespace(QUOTAS),
    ]);
    let more = futures::future::join_all([
        all(StorageClass::PLACE, ""),
        all(AttributesClass::PLACE, ""),
        all(CSI_DRIVERS, ""),
        all(CsiNode::PLACE, ""),
        all(Node::PLACE, ""),
        all(Attachment::PLACE, ""),
        all(CapacityObject::PLACE, ""),
    ]);
    let (lists, more, volumes, events) = futures::join!(lists, more, volumes, events);
    let mut unseen = Vec::new();
    see.volumes = or_noted(volumes, &mut unseen);
    see.events = or_noted(events, &mut unseen);
    for (place, found) in lists.into_iter().chain(more) {
        let found = match found {
            // No such kind in this cluster.
            Err(error) if error.is_not_found() => Vec::new(),
            found => or_noted(found, &mut unseen),
        };
        *match place.plural {
            "pods" => &mut see.pods,
            "persistentvolumeclaims" => &mut see.claims,
            "volumesnapshots" => &mut see.snapshots,
            "resourcequotas" => &mut see.quotas,
            "storageclasses" => &mut see.classes,
            "volumeattributesclasses" => &mut see.attributes,
            "csidrivers" => &mut see.drivers,
            "csinodes" => &mut see.csi_nodes,
            "nodes" => &mut see.nodes,
            "volumeattachments" => &mut see.attachments,
            _ => &mut see.capacities,
        } = found;
    }
    // Who may not list may still be allowed to get.
    if let Some(wanted) = wanted {
        let known = match subject {
            Subject::Volume(_) => &mut see.volumes,
            Subject::Claim(_) => &mut see.claims,
            Subject::Pod(_) => &mut see.pods,
        };
        if !known.iter().any(|object| name(object) == name(&wanted)) {
            known.push(wanted);
        }
    }
    see.unseen = unseen;
    secrets(kube, subject, &mut see).await;
    Ok(see)
}

fn or_noted(found: Result<Vec<Value>, ApiError>, unseen: &mut Vec<String>) -> Vec<Value> {
    found.unwrap_or_else(|error| {
        unseen.push(error.to_string());
        Vec::new()
    })
}

async fn list(
    kube: &Kube,
    place: Place,
    namespace: &str,
    keep: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>, ApiError> {
    let mut found = kube.look_all(place, namespace, "").await?;
    found.retain(keep);
    Ok(found)
}

/// The Secrets of the claims and volumes that matter: whether they are there, and their keys.
async fn secrets(kube: &Kube, subject: &Subject, see: &mut Snapshot) {
    let claims: Vec<String> = match subject {
        Subject::Claim(name) => vec![name.clone()],
        Subject::Pod(name) => see.pod(name).map(claims_of).unwrap_or_default(),
        Subject::Volume(_) => Vec::new(),
    };
    let mut wanted = BTreeSet::new();
    let mut volumes: Vec<&Value> = match subject {
        Subject::Volume(name) => see.volume(name).into_iter().collect(),
        _ => Vec::new(),
    };
    for found in claims.iter().filter_map(|name| see.claim(name)) {
        if let Some(volume) = at(found, "/spec/volumeName").and_then(|name| see.volume(name)) {
            volumes.push(volume);
        } else if let Some(class) = see.class(text(found, "/spec/storageClassName")) {
            let named = claim::references(see, found, class);
            wanted.extend(named.into_iter().filter_map(|(_, key)| key.ok()));
        }
    }
    for volume in volumes {
        for (field, secret) in
            volume.pointer("/spec/csi").and_then(Value::as_object).into_iter().flatten()
        {
            if field.ends_with("SecretRef") {
                wanted.insert(Key::new(text(secret, "/namespace"), text(secret, "/name")));
            }
        }
        let deletion = |part| {
            annotation(volume, &format!("volume.kubernetes.io/provisioner-deletion-secret-{part}"))
        };
        if let (Some(name), Some(namespace)) = (deletion("name"), deletion("namespace")) {
            wanted.insert(Key::new(namespace, name));
        }
    }
    for key in wanted {
        match kube.get::<Secret>(&key, Priority::Fresh).await {
            Ok(found) => {
                // The values are dropped here.
                let keys = found.map(|secret| secret.data.into_keys().collect());
                see.secrets.insert(key, keys);
            }
            Err(error) => see.unseen.push(error.to_string()),
        }
    }
}
