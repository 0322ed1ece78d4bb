//! Letting go of what volumes were made from.

use super::{Parts, Provisioner, source};
use crate::{
    api::{Claim, Key, Object, Snapshot},
    client::{ApiError, Priority},
    finalizer,
    queue::Next,
};
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;

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

    /// Lets go of snapshots again and again, until `stop`: a process that ends after its volume was
    /// made, and before it let go, leaves its finalizer behind.
    pub(super) async fn sweep(&self, every: Duration, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            match stop.run_until_cancelled(self.sweep_once()).await {
                None => return,
                Some(Ok(())) => {}
                // There are no snapshots here, or they are not for us.
                Some(Err(error)) if error.is_not_found() || error.is_forbidden() => {
                    tracing::debug!("snapshots are not swept: {error}");
                    return;
                }
                Some(Err(error)) => tracing::warn!("failed to {error}"),
            }
        }
    }

    async fn sweep_once(&self) -> Result<(), ApiError> {
        let kube = &self.0.parts.kube;
        let mut kept: Vec<Snapshot> = Vec::new();
        let ours =
            |snapshot: &Snapshot| snapshot.metadata.has_finalizer(source::SNAPSHOT_FINALIZER);
        kube.list("", "", |page: Vec<Snapshot>| kept.extend(page.into_iter().filter(ours))).await?;
        if kept.is_empty() {
            return Ok(());
        }
        // After the snapshots: whoever has put the finalizer on one of them had a claim by then. All
        // claims, not only those that are kept here: other drivers use the same finalizer.
        let mut waiting = BTreeSet::new();
        kube.list("", "", |page: Vec<Claim>| waiting.extend(page.iter().filter_map(restores)))
            .await?;
        for snapshot in kept.iter().filter(|s| !waiting.contains(&s.key())) {
            match finalizer::release(kube, snapshot, source::SNAPSHOT_FINALIZER).await {
                Ok(_) => {
                    tracing::info!(snapshot = %snapshot.key(), "nothing is made from it any more")
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The snapshot that a claim is still to be made from.
fn restores(claim: &Claim) -> Option<Key> {
    let source = claim.spec.data_source_ref.as_ref().or(claim.spec.data_source.as_ref())?;
    let waits = matches!(claim.status.phase.as_str(), "" | "Pending");
    let there = source.namespace.as_ref().filter(|n| !n.is_empty());
    let there = there.unwrap_or(&claim.metadata.namespace);
    (waits && source.kind == Snapshot::PLACE.kind).then(|| Key::new(there, &source.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case("Pending", json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}), Some("a/s"))]
    #[case("", json!({"dataSourceRef": {"kind": "VolumeSnapshot", "name": "s"}}), Some("a/s"))]
    #[case("Pending", json!({
        "dataSourceRef": {"kind": "VolumeSnapshot", "name": "s", "namespace": "b"},
    }), Some("b/s"))]
    #[case("Bound", json!({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}), None)]
    #[case("Pending", json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "s"}}), None)]
    #[case("Pending", json!({}), None)]
    fn only_a_claim_that_waits_keeps_a_snapshot(
        #[case] phase: &str,
        #[case] spec: Value,
        #[case] wanted: Option<&str>,
    ) {
        let claim = json!({
            "metadata": {"name": "c", "namespace": "a"}, "spec": spec, "status": {"phase": phase},
        });
        let claim: Claim = serde_json::from_value(claim).unwrap();
        assert_eq!(restores(&claim).map(|key| key.to_string()).as_deref(), wanted);
    }
}
