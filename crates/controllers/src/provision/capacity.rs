//! CSIStorageCapacity: how much room there is for volumes of each class in each place, for the
//! scheduler.
//!
//! Everything is compared with what there is and only differences are written; changes that come
//! together are looked at once.

use super::{Inner, Parts, Provisioner, topology};
use crate::{
    api::{CapacityObject, Key, Object, Owner, Quantity, StorageClass},
    cache::{Scope, Store, reflect},
    client::{Patch, Priority, encoded},
};
use larder_proto::csi;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use topology::{Nodes, fnv1};

const DRIVER: &str = "csi.storage.k8s.io/drivername";
const MANAGER: &str = "csi.storage.k8s.io/managed-by";
/// The longest that the value of a label can be.
const LABEL: usize = 63;
/// Changes that come within that time are looked at once.
const TOGETHER: Duration = Duration::from_secs(1);

/// How capacity is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the objects are.
    pub namespace: String,
    /// What they go with: the Deployment's ReplicaSet, or the DaemonSet.
    pub owner: Option<Owner>,
    /// `--capacity-poll-interval`
    pub poll: Duration,
    /// `--capacity-for-immediate-binding`
    pub immediate: bool,
}

/// A class and a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    class: String,
    segment: BTreeMap<String, String>,
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    available: i64,
    largest: Option<i64>,
}

#[derive(Debug, Clone, PartialEq)]
enum Write {
    Create(Value),
    Change(Key, Value),
    Delete(Key, String),
}

/// Who manages the objects: as external-provisioner names itself.
fn manager(node: Option<&str>) -> String {
    let base = "external-provisioner";
    let Some(node) = node else { return base.to_owned() };
    let full = format!("{base}-{node}");
    if full.len() <= LABEL {
        return full;
    }
    let cut = |room: usize| base[..base.len().min(room)].to_owned();
    let hashed = format!("{:08x}", fnv1(base));
    match LABEL.checked_sub(node.len() + hashed.len() + 2) {
        Some(room) if room > 0 => format!("{}-{hashed}-{node}", cut(room)),
        _ => format!("{}-{:08x}", cut(LABEL - 9), fnv1(&full)),
    }
}

/// What to write, so that there is one object for each item and no other of ours.
fn plan(
    wanted: &BTreeMap<Item, Option<Room>>,
    existing: &[Arc<CapacityObject>],
    settings: &Settings,
    labels: &Value,
) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut there = BTreeSet::new();
    for object in existing {
        let segment = object.node_topology.clone().unwrap_or_default().match_labels;
        let item = Item { class: object.storage_class_name.clone(), segment };
        let (key, uid) = (object.key(), object.metadata.uid.clone());
        // Not wanted any more, or twice.
        let (Some(room), true) = (wanted.get(&item), there.insert(item)) else {
            writes.push(Write::Delete(key, uid));
            continue;
        };
        // The driver does not answer: what was known stays.
        let Some(room) = room else { continue };
        let bytes = |q: &Option<Quantity>| q.as_ref().map(Quantity::bytes);
        let same_owner = object.owner().map(|o| &o.uid) == settings.owner.as_ref().map(|o| &o.uid);
        let same = bytes(&object.capacity) == Some(room.available)
            && bytes(&object.maximum_volume_size) == room.largest;
        if !same || !same_owner {
            let mut change = json!({
                "metadata": {"resourceVersion": object.metadata.resource_version},
                "capacity": Quantity::of_bytes(room.available),
                "maximumVolumeSize": room.largest.map(Quantity::of_bytes),
            });
            if !same_owner {
                change["metadata"]["ownerReferences"] =
                    json!(settings.owner.iter().collect::<Vec<_>>());
            }
            writes.push(Write::Change(key, change));
        }
    }
    for (item, room) in wanted {
        let (Some(room), false) = (room, there.contains(item)) else { continue };
        let mut object = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIStorageCapacity",
            "metadata": {
                "generateName": "csisc-",
                "namespace": settings.namespace,
                "labels": labels,
                "ownerReferences": settings.owner.iter().collect::<Vec<_>>(),
            },
            "storageClassName": item.class,
            "nodeTopology": {"matchLabels": item.segment},
            "capacity": Quantity::of_bytes(room.available),
        });
        if let Some(largest) = room.largest {
            object["maximumVolumeSize"] = json!(Quantity::of_bytes(largest));
        }
        writes.push(Write::Create(object));
    }
    writes
}

/// The places that a driver is in; a driver without topology is everywhere.
fn segments(driver: &str, nodes: &impl Nodes) -> BTreeSet<BTreeMap<String, String>> {
    let mut found = BTreeSet::new();
    for csi_node in nodes.csi_nodes() {
        let Some(here) = csi_node.driver(driver) else { continue };
        let Some(node) = nodes.node(&csi_node.metadata.name) else { continue };
        if let Some(term) = topology::term_of(&here.topology_keys, &node) {
            found.insert(term.into_iter().collect());
        }
    }
    found
}

impl Provisioner {
    /// Keeps the objects as the driver says, until `stop`.
    pub(super) async fn tell_capacity(&self, settings: &Settings, stop: &CancellationToken) {
        let Inner { parts, capacity_changed, .. } = &*self.0;
        let manager = manager(parts.local.as_ref().map(|l| l.name.as_str()));
        let labels = json!({DRIVER: parts.driver.name(), MANAGER: manager});
        let query = format!("{DRIVER}={},{MANAGER}={manager}", parts.driver.name());
        let scope = Scope {
            namespace: settings.namespace.clone(),
            query: format!("labelSelector={}", encoded(&query)),
        };
        let store: Store<CapacityObject> = Store::new(&[]);
        store.subscribe(capacity_changed, |changed, change| {
            // Deleted by somebody: made again.
            if change.new.is_none() {
                changed.notify_one();
            }
        });
        let watch = reflect(parts.kube.clone(), store.clone(), scope, Some);
        let work = async {
            store.ready().await;
            loop {
                self.compare(settings, &store, &labels).await;
                tokio::time::sleep(TOGETHER).await;
                let _ = tokio::time::timeout(settings.poll, capacity_changed.notified()).await;
            }
        };
        let both = Box::pin(async { tokio::join!(watch, work) });
        let _ = stop.run_until_cancelled(both).await;
    }

    async fn compare(&self, settings: &Settings, store: &Store<CapacityObject>, labels: &Value) {
        let Inner { parts, .. } = &*self.0;
        let Parts { cache, driver, kube, .. } = parts;
        let segments = match parts.topology() || parts.local.is_some() {
            true => segments(driver.name(), &*self.0),
            false => [BTreeMap::new()].into(),
        };
        let classes: Vec<Arc<StorageClass>> = cache
            .classes
            .all()
            .into_iter()
            .filter(|c| c.provisioner == driver.name())
            .filter(|c| settings.immediate || c.waits_for_consumer())
            .collect();
        let mut wanted = BTreeMap::new();
        for class in &classes {
            for segment in &segments {
                let asked = csi::GetCapacityRequest {
                    // All of them, as external-provisioner does.
                    parameters: class.parameters.clone(),
                    accessible_topology: Some(csi::Topology { segments: segment.clone() }),
                    ..csi::GetCapacityRequest::default()
                };
                let room = match driver.get_capacity(asked).await {
                    Ok(answer) => Some(Room {
                        available: answer.available_capacity,
                        largest: answer.maximum_volume_size,
                    }),
                    Err(status) => {
                        tracing::warn!(
                            class = class.metadata.name,
                            ?segment,
                            "failed to ask for the room: {}",
                            status.message()
                        );
                        None
                    }
                };
                let item = Item { class: class.metadata.name.clone(), segment: segment.clone() };
                wanted.insert(item, room);
            }
        }
        for write in plan(&wanted, &store.all(), settings, labels) {
            let low = Priority::Background;
            let done = match write {
                Write::Create(object) => {
                    kube.create(&settings.namespace, &object, low).await.map(Some)
                }
                Write::Change(key, change) => {
                    kube.patch(&key, "", &Patch::Merge(change), low).await.map(Some)
                }
                Write::Delete(key, uid) => {
                    kube.delete::<CapacityObject>(&key, &uid, low).await.map(|()| None)
                }
            };
            match done {
                Ok(object) => object.into_iter().for_each(|object| store.apply(object)),
                // The next comparison mends it.
                Err(error) => tracing::warn!("failed to tell of the room: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let owner = Owner {
            api_version: "apps/v1".to_owned(),
            kind: "DaemonSet".to_owned(),
            name: "larder".to_owned(),
            uid: "o".to_owned(),
            controller: Some(true),
        };
        let (namespace, poll) = ("storage".to_owned(), Duration::from_secs(60));
        Settings { namespace, owner: Some(owner), poll, immediate: false }
    }

    fn item(class: &str, node: &str) -> Item {
        Item { class: class.to_owned(), segment: [("node".to_owned(), node.to_owned())].into() }
    }

    fn object(name: &str, class: &str, node: &str, capacity: &str) -> Arc<CapacityObject> {
        let object = json!({
            "metadata": {
                "name": name, "namespace": "storage", "uid": name, "resourceVersion": "1",
                "ownerReferences": [{"kind": "DaemonSet", "name": "larder", "uid": "o", "controller": true}],
            },
            "storageClassName": class,
            "nodeTopology": {"matchLabels": {"node": node}},
            "capacity": capacity,
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn room(gib: i64) -> Option<Room> {
        Some(Room { available: gib << 30, largest: None })
    }

    #[test]
    fn only_differences_are_written() {
        let wanted = BTreeMap::from([
            (item("fast", "n1"), room(5)),
            (item("fast", "n2"), room(7)),
            (item("fast", "n3"), None),
            (item("slow", "n1"), Some(Room { available: 1 << 30, largest: Some(1 << 20) })),
            (item("slow", "n9"), None),
        ]);
        let existing = [
            object("same", "fast", "n1", "5120Mi"),
            object("changed", "fast", "n2", "1Gi"),
            object("silent", "fast", "n3", "1Gi"),
            object("twice", "fast", "n1", "5Gi"),
            object("gone", "fast", "n4", "1Gi"),
        ];
        let writes = plan(&wanted, &existing, &settings(), &json!({}));
        let [
            Write::Change(changed, change),
            Write::Delete(twice, _),
            Write::Delete(gone, uid),
            Write::Create(new),
        ] = &writes[..]
        else {
            panic!("{writes:?}")
        };
        assert_eq!((changed.name.as_str(), change["capacity"].as_str()), ("changed", Some("7Gi")));
        assert_eq!(change["metadata"]["ownerReferences"], Value::Null);
        assert_eq!(
            (twice.name.as_str(), gone.name.as_str(), uid.as_str()),
            ("twice", "gone", "gone")
        );
        assert_eq!(new["storageClassName"], "slow");
        assert_eq!(new["metadata"]["generateName"], "csisc-");
        assert_eq!(new["maximumVolumeSize"], "1Mi");
        assert_eq!(new["nodeTopology"]["matchLabels"]["node"], "n1");
    }

    #[test]
    fn an_object_of_another_owner_is_taken_over() {
        let wanted = BTreeMap::from([(item("fast", "n1"), room(5))]);
        let mut settings = settings();
        settings.owner = settings.owner.map(|o| Owner { uid: "new".to_owned(), ..o });
        let writes = plan(&wanted, &[object("a", "fast", "n1", "5Gi")], &settings, &json!({}));
        let [Write::Change(_, change)] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(change["metadata"]["ownerReferences"][0]["uid"], "new");
    }

    #[test]
    fn the_manager_is_named_as_external_provisioner_names_itself() {
        assert_eq!(manager(None), "external-provisioner");
        assert_eq!(manager(Some("worker-1")), "external-provisioner-worker-1");
        for length in [42, 43, 50, 53, 54, 63, 200] {
            let name = manager(Some(&"n".repeat(length)));
            assert!(name.len() <= LABEL, "{length}: {name}");
        }
        assert!(manager(Some(&"n".repeat(45))).ends_with(&format!("-{}", "n".repeat(45))));
    }
}
