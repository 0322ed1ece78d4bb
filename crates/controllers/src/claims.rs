//! What resizer and modifier have in common: whose claim it is, writing its status, waiting.

use crate::{
    api::{Claim, Key, Object, Volume},
    cache::{Cache, Change, MIGRATED},
    client::{ApiError, Kube, Patch, Priority},
    provision::Local,
};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often a write is tried that others come before.
const TRIES: usize = 8;

/// Whether a volume is one of the driver, and bound to that claim.
pub(crate) fn is_of(driver: &str, claim: &Claim, volume: &Volume) -> bool {
    let csi = volume.spec.csi.as_ref().is_some_and(|csi| csi.driver == driver);
    let migrated = volume.metadata.annotation(MIGRATED) == Some(driver)
        && claim.metadata.annotation("volume.kubernetes.io/storage-resizer") == Some(driver);
    let (meta, bound) = (&claim.metadata, volume.spec.claim_ref.as_ref());
    let bound = bound.is_some_and(|to| to.namespace == meta.namespace && to.uid == meta.uid);
    (csi || migrated) && bound
}

/// Writes what `change` makes of the claim into its status, and into the cache. `change` is asked
/// again for what the claim has become when somebody else was faster; with None nothing is written.
/// Returns the claim as it is then; None: it is gone.
///
/// # Errors
/// Whatever the API server says, but for a few conflicts.
pub(crate) async fn write(
    kube: &Kube,
    cache: &Cache,
    claim: &Arc<Claim>,
    change: impl Fn(&Claim) -> Option<Value>,
) -> Result<Option<Arc<Claim>>, ApiError> {
    let (key, uid) = (claim.key(), claim.metadata.uid.clone());
    let mut now = claim.clone();
    for tried in 1.. {
        let Some(mut value) = change(&now) else { return Ok(Some(now)) };
        value["metadata"]["resourceVersion"] = now.metadata.resource_version.clone().into();
        match kube.patch::<Claim>(&key, "status", &Patch::Merge(value), Priority::Fresh).await {
            Ok(new) => {
                cache.claims.apply(new.clone());
                return Ok(Some(Arc::new(new)));
            }
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_conflict() && tried < TRIES => {}
            Err(error) => return Err(error),
        }
        match kube.get::<Claim>(&key, Priority::Fresh).await? {
            Some(new) if new.metadata.uid == uid => {
                cache.claims.apply(new.clone());
                now = Arc::new(new);
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The volume of a claim, when that is of the driver and, in node-local mode, on the node. None also
/// while it is not known: its appearance has the claim looked at again ([`listen`]).
pub(crate) fn volume_of_ours(
    cache: &Cache,
    driver: &str,
    local: Option<&Local>,
    claim: &Claim,
) -> Option<Arc<Volume>> {
    let volume = cache.volumes.get(&Key::cluster(&claim.spec.volume_name))?;
    let here = local.is_none_or(|local| local.has(&volume));
    (here && is_of(driver, claim, &volume)).then_some(volume)
}

/// Hears of claims, and of volumes that appear: such a one may be what its claim has waited for.
pub(crate) fn listen<T: Send + Sync + 'static>(
    this: &Arc<T>,
    cache: fn(&T) -> &Cache,
    changed: fn(&T, &Change<Claim>),
    look_at: fn(&T, &Claim, Priority),
) {
    cache(this).claims.subscribe(this, move |this, change: &Change<Claim>| changed(this, change));
    cache(this).volumes.subscribe(this, move |this, change: &Change<Volume>| {
        let Some(new) = &change.new else { return };
        if let (None, Some(claim)) = (&change.old, &new.spec.claim_ref) {
            let key = Key::new(&claim.namespace, &claim.name);
            if let Some(claim) = cache(this).claims.get(&key) {
                look_at(this, &claim, Priority::Fresh);
            }
        }
    });
}

/// What fails until somebody changes something, by UID: asked for once in a long while.
#[derive(Debug, Default)]
pub(crate) struct Slow(HashMap<String, Instant>);

impl Slow {
    /// It has just failed.
    pub(crate) fn add(&mut self, uid: &str, wait: Duration) {
        self.0.insert(uid.to_owned(), Instant::now() + wait);
    }

    /// It has not failed, as far as is known.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// What it failed of may be over: it may be asked for at once, although it is said to have failed.
    pub(crate) fn end(&mut self, uid: &str) {
        self.0.insert(uid.to_owned(), Instant::now());
    }

    /// How long it is still left alone. What failed under a process before this one waits, too: a
    /// restart makes nothing feasible.
    pub(crate) fn left(&mut self, uid: &str, wait: Duration) -> Option<Duration> {
        let now = Instant::now();
        let until = *self.0.entry(uid.to_owned()).or_insert(now + wait);
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            self.0.remove(uid);
            return None;
        }
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"csi": {"driver": "d"}, "claimRef": {"namespace": "a", "uid": "u"}}), true)]
    #[case(json!({"csi": {"driver": "other"}, "claimRef": {"namespace": "a", "uid": "u"}}), false)]
    #[case(json!({"csi": {"driver": "d"}, "claimRef": {"namespace": "a", "uid": "former"}}), false)]
    #[case(json!({"csi": {"driver": "d"}, "claimRef": {"namespace": "b", "uid": "u"}}), false)]
    #[case(json!({"csi": {"driver": "d"}}), false)]
    fn a_volume_of_ours_is_bound_to_the_claim(#[case] spec: Value, #[case] ours: bool) {
        let claim = json!({"metadata": {"namespace": "a", "uid": "u"}});
        let claim: Claim = serde_json::from_value(claim).unwrap();
        let volume: Volume = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(is_of("d", &claim, &volume), ours);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_work_is_tried_once_in_a_while() {
        let (mut slow, wait) = (Slow::default(), Duration::from_secs(300));
        assert_eq!(slow.left("before", wait), Some(wait), "a former process has tried it");
        slow.add("now", wait);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(slow.left("now", wait), Some(Duration::from_secs(200)));
        tokio::time::advance(Duration::from_secs(200)).await;
        assert_eq!(slow.left("now", wait), None, "its turn");
        slow.add("now", wait);
        slow.end("now");
        assert_eq!(slow.left("now", wait), None, "its cause is over");
        slow.add("now", wait);
        slow.forget("now");
        assert_eq!(slow.left("other", Duration::ZERO), None);
    }
}
