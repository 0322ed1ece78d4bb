//! Deleting volumes whose claim is gone, and keeping the others from being forgotten.

use super::{
    DeletedLabels, Parts, Provisioner,
    decide::{self, VolumeStep},
    persistent_volume::{DELETION_SECRET, DELETION_SECRET_NAMESPACE, FINALIZER},
};
use crate::{
    api::{Key, Object, SecretRef, StorageClass, Volume},
    cache::Cache,
    client::{ApiError, Priority},
    finalizer,
    queue::Next,
    secrets::{self, Names, Use},
};
use larder_model::Fault;
use larder_proto::csi;
use std::sync::Arc;
use tokio::time::Instant;

impl Provisioner {
    /// One look at a volume.
    pub(super) async fn volume(&self, key: Key) -> Next {
        let Parts { cache, driver, kube, local, .. } = &self.0.parts;
        let Some(volume) = cache.volumes.get(&key) else {
            self.memory().unsure.remove(&key);
            return Next::Done;
        };
        if local.as_ref().is_some_and(|local| !local.has(&volume)) {
            return Next::Done;
        }
        let changed = match decide::volume(driver.name(), &volume) {
            VolumeStep::Nothing => return Next::Done,
            VolumeStep::Delete => return self.delete(&volume).await,
            VolumeStep::AddFinalizer => finalizer::add(kube, &*volume, FINALIZER).await,
            VolumeStep::RemoveFinalizer => finalizer::release(kube, &*volume, FINALIZER).await,
        };
        match changed {
            Ok(new) => {
                new.into_iter().for_each(|new| cache.volumes.apply(new));
                Next::Done
            }
            Err(error) if error.is_not_found() => Next::Done,
            Err(error) => {
                tracing::warn!("failed to keep the finalizer as the policy says: {error}");
                Next::Retry
            }
        }
    }

    async fn delete(&self, volume: &Arc<Volume>) -> Next {
        let Parts { cache, recorder, metrics, .. } = &self.0.parts;
        let (name, labels) = (
            &volume.metadata.name,
            DeletedLabels { class: volume.spec.storage_class_name.clone() },
        );
        let attached = cache.attachments.by("volume", name);
        if let Some(attachment) = attached.first() {
            let node = &attachment.spec.node_name;
            let text = format!("persistentvolume {name} is still attached to node {node}");
            recorder.warning(&volume.reference(), "VolumeFailedDelete", text);
            // Its detachment has this looked at again, at once.
            return Next::Done;
        }
        let start = Instant::now();
        let key = volume.key();
        let now = match self.still(volume).await {
            Ok(Some(now)) => now,
            Ok(None) => return Next::Done,
            Err(error) => {
                tracing::warn!("failed to {error}");
                return Next::Retry;
            }
        };
        match self.erase(&now).await {
            Ok(()) => {
                self.memory().unsure.remove(&key);
                self.0.capacity_changed.notify_one();
                metrics.deleted.get_or_create(&labels).inc();
                let seconds = start.elapsed().as_secs_f64();
                metrics.deletion_seconds.get_or_create(&labels).observe(seconds);
                Next::Done
            }
            Err(why) => {
                // Until it is tried again somebody may want to keep it.
                self.memory().unsure.insert(key);
                metrics.kept.get_or_create(&labels).inc();
                tracing::warn!(volume = name, "failed to delete: {why}");
                recorder.warning(&volume.reference(), "VolumeFailedDelete", why);
                Next::Retry
            }
        }
    }

    /// The volume as it is, where it is still to be deleted; None: it is not. What was seen only by a
    /// former leader, or some time ago, is read anew: an administrator may have set it to `Retain`.
    async fn still(&self, volume: &Arc<Volume>) -> Result<Option<Arc<Volume>>, ApiError> {
        let Parts { cache, driver, kube, .. } = &self.0.parts;
        let key = volume.key();
        if !self.memory().unsure.contains(&key) {
            return Ok(Some(volume.clone()));
        }
        let now = kube.get::<Volume>(&key, Priority::Retry).await?;
        let Some(now) = now.filter(|now| now.metadata.uid == volume.metadata.uid) else {
            cache.volumes.remove(&key, 0);
            return Ok(None);
        };
        cache.volumes.apply(now.clone());
        let wanted = decide::volume(driver.name(), &now) == VolumeStep::Delete;
        // Otherwise the change of the cache has it looked at again.
        Ok(wanted.then(|| Arc::new(now)))
    }

    /// The storage, then the object, then what kept the object.
    async fn erase(&self, volume: &Volume) -> Result<(), String> {
        let Parts { cache, driver, kube, .. } = &self.0.parts;
        let Some(csi) = &volume.spec.csi else {
            return Err("it is not a volume of a CSI driver".to_owned());
        };
        let mut values = std::collections::BTreeMap::new();
        match secret(volume, cache) {
            Ok(None) => {}
            Ok(Some(of)) => match secrets::read(kube, &of).await {
                Ok(read) => values = read.into_map(),
                // It may be gone with its namespace; the driver says whether it needs it.
                Err(fault) => tracing::warn!(
                    volume = volume.metadata.name,
                    "deleting without secrets: failed to {fault}"
                ),
            },
            Err(fault) => tracing::warn!(
                volume = volume.metadata.name,
                "deleting without secrets: failed to {fault}"
            ),
        }
        let volume_id = csi.volume_handle.clone();
        let asked = csi::DeleteVolumeRequest { volume_id, secrets: values };
        let answer = driver.delete_volume(asked).await;
        answer.map_err(|status| larder_csi::status::text(&status))?;
        let (key, uid) = (volume.key(), &volume.metadata.uid);
        let failed = |error: ApiError| Fault::from(error).to_string();
        kube.delete::<Volume>(&key, uid, Priority::Fresh).await.map_err(failed)?;
        if !volume.metadata.has_finalizer(FINALIZER) {
            cache.volumes.remove(&key, 0);
            return Ok(());
        }
        let released = match finalizer::release(kube, volume, FINALIZER).await {
            // The list has become shorter: kube-controller-manager has a finalizer, too.
            Err(error) if error.is_conflict() => {
                let now = kube.get::<Volume>(&key, Priority::Fresh).await.map_err(failed)?;
                match now.filter(|now| now.metadata.uid == *uid) {
                    Some(now) => finalizer::release(kube, &now, FINALIZER).await,
                    None => Ok(None),
                }
            }
            released => released,
        };
        match released.map_err(failed)? {
            // In that state it is not ours to delete again; the watch tells when it is gone.
            Some(last) if !last.metadata.finalizers.is_empty() => cache.volumes.apply(last),
            // Gone with its last finalizer. The answer has the version of before, which the watch may
            // have told already: applied, it would change nothing, and all would be done once more.
            _ => cache.volumes.remove(&key, 0),
        }
        Ok(())
    }
}

/// The Secret of DeleteVolume: what was noted when the volume was made; else what its class says now.
fn secret(volume: &Volume, cache: &Cache) -> larder_model::Result<Option<SecretRef>> {
    let meta = &volume.metadata;
    if let (Some(name), Some(namespace)) =
        (meta.annotation(DELETION_SECRET), meta.annotation(DELETION_SECRET_NAMESPACE))
    {
        let named = !name.is_empty() && !namespace.is_empty();
        return Ok(
            named.then(|| SecretRef { name: name.to_owned(), namespace: namespace.to_owned() })
        );
    }
    let class: Option<Arc<StorageClass>> =
        cache.classes.get(&Key::cluster(&volume.spec.storage_class_name));
    let (Some(class), Some(claim)) = (class, &volume.spec.claim_ref) else { return Ok(None) };
    let names = Names {
        volume: &meta.name,
        namespace: &claim.namespace,
        claim: &claim.name,
        annotations: None,
    };
    secrets::resolve(&class.parameters, Use::Provisioner, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(json!({DELETION_SECRET: "a", DELETION_SECRET_NAMESPACE: "b"}), Some("b/a"))]
    #[case(json!({DELETION_SECRET: "", DELETION_SECRET_NAMESPACE: ""}), None)]
    #[case(json!({DELETION_SECRET: "a"}), Some("shop/data-key"))]
    #[case(json!({}), Some("shop/data-key"))]
    fn the_secret_of_a_deletion_is_what_was_noted(
        #[case] annotations: Value,
        #[case] wanted: Option<&str>,
    ) {
        let cache = Cache::new();
        let class = json!({"metadata": {"name": "c", "resourceVersion": "1"}, "parameters": {
            "csi.storage.k8s.io/provisioner-secret-name": "${pvc.name}-key",
            "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
        }});
        cache.classes.apply(serde_json::from_value(class).unwrap());
        let volume: Volume = serde_json::from_value(json!({
            "metadata": {"name": "pv", "annotations": annotations},
            "spec": {"storageClassName": "c", "claimRef": {"namespace": "shop", "name": "data"}},
        }))
        .unwrap();
        let found = secret(&volume, &cache).unwrap();
        assert_eq!(found.map(|s| format!("{}/{}", s.namespace, s.name)).as_deref(), wanted);
    }
}
