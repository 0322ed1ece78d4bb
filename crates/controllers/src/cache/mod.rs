//! One watch per kind, shared by all controllers and drivers.
//!
//! - Only what concerns a driver of this process is kept ([`Ours`] decides at the door).
//! - Answers of our own writes go straight in, so that the next look at an object sees them; a watch
//!   that is behind never undoes them, because the newest resource version wins.
//! - Controllers hear of each change once ([`Store::subscribe`]) and look again at the whole: they
//!   never act on a change as such.

mod ours;
mod store;
mod watch;

pub use ours::{MIGRATED, Ours, PROVISIONED_BY, PROVISIONER, PROVISIONER_BETA};
pub use store::{Change, Index, Store};
pub use watch::{Scope, reflect};

use crate::{
    api::{Attachment, AttributesClass, Claim, CsiNode, Key, Node, Object, StorageClass, Volume},
    client::Kube,
};
use std::{collections::BTreeSet, sync::Arc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What the controllers of a process know of the cluster.
#[derive(Debug, Clone)]
pub struct Cache {
    /// Claims for our drivers. Indexes: `uid`, `volume` (name of the PersistentVolume), `source`
    /// (`NAMESPACE/NAME` of the claim that it is a copy of).
    pub claims: Store<Claim>,
    /// Volumes of our drivers. Indexes: `handle` (`DRIVER^HANDLE`), `claim` (`NAMESPACE/NAME`).
    pub volumes: Store<Volume>,
    /// Classes of our drivers.
    pub classes: Store<StorageClass>,
    /// Attachments of our drivers. Indexes: `volume`, `node`.
    pub attachments: Store<Attachment>,
    /// All nodes, with their labels only.
    pub nodes: Store<Node>,
    /// All nodes that have one of our drivers, with those only.
    pub csi_nodes: Store<CsiNode>,
    /// All of them: a claim may name any.
    pub attributes_classes: Store<AttributesClass>,
}

/// The kinds that somebody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watched {
    /// [`Cache::claims`]
    Claims,
    /// [`Cache::volumes`]
    Volumes,
    /// [`Cache::classes`]
    Classes,
    /// [`Cache::attachments`]
    Attachments,
    /// [`Cache::nodes`]
    Nodes,
    /// [`Cache::csi_nodes`]
    CsiNodes,
    /// [`Cache::attributes_classes`]
    AttributesClasses,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new()
    }
}

impl Cache {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            claims: Store::new(&[
                ("uid", |c: &Claim| vec![c.metadata.uid.clone()]),
                ("volume", |c| vec![c.spec.volume_name.clone()]),
                ("source", |c| c.copies().map(|key| key.to_string()).into_iter().collect()),
            ]),
            volumes: Store::new(&[
                ("handle", |v: &Volume| {
                    let csi = v.spec.csi.as_ref();
                    csi.map(|c| format!("{}^{}", c.driver, c.volume_handle)).into_iter().collect()
                }),
                ("claim", |v| {
                    let claim = v.spec.claim_ref.as_ref();
                    claim.map(|c| Key::new(&c.namespace, &c.name).to_string()).into_iter().collect()
                }),
            ]),
            classes: Store::new(&[]),
            attachments: Store::new(&[
                ("volume", |a: &Attachment| {
                    a.spec.source.persistent_volume_name.iter().cloned().collect()
                }),
                ("node", |a| vec![a.spec.node_name.clone()]),
            ]),
            nodes: Store::new(&[]),
            csi_nodes: Store::new(&[]),
            attributes_classes: Store::new(&[]),
        }
    }

    /// Starts the watches of those kinds, for those drivers.
    pub fn start(
        &self,
        kinds: &BTreeSet<Watched>,
        ours: &Arc<Ours>,
        kube: &Kube,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        fn one<T: Object>(
            store: &Store<T>,
            admit: fn(&Ours, T) -> Option<T>,
            (ours, kube, tasks, stop): (&Arc<Ours>, &Kube, &TaskTracker, &CancellationToken),
        ) {
            let ours = ours.clone();
            let door = move |object| admit(&ours, object);
            let watch = reflect(kube.clone(), store.clone(), Scope::default(), door);
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(watch).await });
        }
        let shared = (ours, kube, tasks, stop);
        for kind in kinds {
            match kind {
                Watched::Claims => one(&self.claims, Ours::claim, shared),
                Watched::Volumes => one(&self.volumes, Ours::volume, shared),
                Watched::Classes => one(&self.classes, Ours::class, shared),
                Watched::Attachments => one(&self.attachments, Ours::attachment, shared),
                Watched::Nodes => one(&self.nodes, Ours::node, shared),
                Watched::CsiNodes => one(&self.csi_nodes, Ours::csi_node, shared),
                Watched::AttributesClasses => {
                    one(&self.attributes_classes, Ours::attributes_class, shared);
                }
            }
        }
    }

    /// Waits until all of those kinds were listed once.
    pub async fn ready(&self, kinds: &BTreeSet<Watched>) {
        for kind in kinds {
            match kind {
                Watched::Claims => self.claims.ready().await,
                Watched::Volumes => self.volumes.ready().await,
                Watched::Classes => self.classes.ready().await,
                Watched::Attachments => self.attachments.ready().await,
                Watched::Nodes => self.nodes.ready().await,
                Watched::CsiNodes => self.csi_nodes.ready().await,
                Watched::AttributesClasses => self.attributes_classes.ready().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "s"}}), Some("a/s"))]
    #[case(json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "s", "namespace": "b"}}), Some("b/s"))]
    #[case(json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}), None)]
    #[case(json!({}), None)]
    fn a_copy_is_found_by_its_source_wherever_that_is(
        #[case] spec: Value,
        #[case] wanted: Option<&str>,
    ) {
        let claim = json!({"metadata": {"name": "c", "namespace": "a"}, "spec": spec});
        let claim: Claim = serde_json::from_value(claim).unwrap();
        assert_eq!(claim.copies().map(|key| key.to_string()).as_deref(), wanted);
        let cache = Cache::new();
        cache.claims.apply(claim);
        if let Some(wanted) = wanted {
            assert_eq!(cache.claims.by("source", wanted).len(), 1);
        }
    }
}
