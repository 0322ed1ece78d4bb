//! Letting go of what volumes were made from.

use super::{Parts, Provisioner, source};
use crate::{
    api::{Key, Object, Snapshot},
    client::Priority,
    finalizer,
    queue::Next,
};

impl Provisioner {
    /// A claim that is deleted stays as long as another is made from it.
    pub(super) async fn free(&self, key: Key) -> Next {
        let Parts { cache, kube, .. } = &self.0.parts;
        let Some(claim) = cache.claims.get(&key) else { return Next::Done };
        let meta = &claim.metadata;
        if !meta.is_deleting() || !meta.has_finalizer(source::CLONE_FINALIZER) {
            return Next::Done;
        }
        let copies = cache.claims.by("source", &key.to_string());
        if copies.iter().any(|c| matches!(c.status.phase.as_str(), "" | "Pending")) {
            // Each change of a copy has this looked at again.
            return Next::Done;
        }
        match finalizer::release(kube, &*claim, source::CLONE_FINALIZER).await {
            Ok(Some(new)) => cache.claims.apply(new),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("failed to let go of the source of a clone: {error}");
                return Next::Retry;
            }
        }
        Next::Done
    }

    /// The volume is there: its snapshot may go, unless another claim is still made from it. What is
    /// left over by a failure here only lets it stay longer.
    pub(super) async fn free_snapshot(&self, key: &Key) {
        let Parts { kube, cache, .. } = &self.0.parts;
        let waits = cache.claims.all().into_iter().any(|c| {
            let source = c.spec.data_source.as_ref().or(c.spec.data_source_ref.as_ref());
            c.spec.volume_name.is_empty()
                && matches!(c.status.phase.as_str(), "" | "Pending")
                && cache.volumes.get(&Key::cluster(format!("pvc-{}", c.metadata.uid))).is_none()
                && source.is_some_and(|s| {
                    let there = s.namespace.as_ref().unwrap_or(&c.metadata.namespace);
                    s.kind == Snapshot::PLACE.kind && s.name == key.name && *there == key.namespace
                })
        });
        if waits {
            return;
        }
        let freed = async {
            match kube.get::<Snapshot>(key, Priority::Retry).await? {
                Some(snapshot) => {
                    finalizer::release(kube, &snapshot, source::SNAPSHOT_FINALIZER).await
                }
                None => Ok(None),
            }
        };
        if let Err(error) = freed.await {
            tracing::warn!("failed to let go of the source of a restore: {error}");
        }
    }
}
