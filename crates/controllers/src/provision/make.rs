//! Making a volume for a claim.

use super::{
    Inner, MadeLabels, Parts, Provisioner,
    decide::SELECTED_NODE,
    outcome::{Failure, State},
    persistent_volume::{self, Maker},
    request::{self, Wanted},
    source::{self, Source},
    topology::{self, Question},
};
use crate::{
    api::{
        AttributesClass, Claim, Key, Object, ReferenceGrant, Snapshot, SnapshotContent,
        StorageClass, Volume,
    },
    client::{ApiError, Priority},
    finalizer,
    queue::Next,
    secrets::{self, Use},
};
use larder_model::Fault;
use larder_proto::csi;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A driver that takes longer is said to be at work: one event less for all others.
const SLOW: Duration = Duration::from_secs(1);
/// How often a volume that is not as asked for is deleted before the next attempt finds it.
const UNDO: usize = 5;

/// What came of an attempt.
enum Outcome {
    /// The PersistentVolume is there.
    Made(String),
    /// Somebody else fills the volume of this claim.
    NotOurs(String),
}

impl Provisioner {
    /// One attempt, and what follows from it.
    pub(super) async fn provision(
        &self,
        claim: &Arc<Claim>,
        class: &StorageClass,
        selected: Option<&str>,
    ) -> Next {
        let Inner { parts, .. } = &*self.0;
        let (uid, about) = (&claim.metadata.uid, claim.reference());
        let kind = claim.spec.data_source.as_ref().map(|s| s.kind.clone());
        let labels =
            MadeLabels { class: class.metadata.name.clone(), source: kind.unwrap_or_default() };
        let start = Instant::now();
        let failure = match self.attempt(claim, class, selected).await {
            Ok(Outcome::Made(name)) => {
                self.memory().forget(uid);
                self.0.capacity_changed.notify_one();
                parts.metrics.made.get_or_create(&labels).inc();
                let seconds = start.elapsed().as_secs_f64();
                parts.metrics.seconds.get_or_create(&labels).observe(seconds);
                let text = format!("Successfully provisioned volume {name}");
                parts.recorder.normal(&about, "ProvisioningSucceeded", text);
                return Next::Done;
            }
            Ok(Outcome::NotOurs(why)) => {
                self.memory().forget(uid);
                parts.recorder.normal(&about, "Provisioning", why);
                return Next::Done;
            }
            Err(failure) => failure,
        };
        parts.metrics.failed.get_or_create(&labels).inc();
        let Failure { state, infeasible, message } = failure;
        tracing::warn!(claim = %claim.key(), driver = parts.driver.name(), ?state, "failed to provision: {message}");
        let text = match infeasible {
            // In the Go sidecar's words: people look for them.
            true => format!(
                "Volume provisioning failed with infeasible error. Retries will be delayed. {message}"
            ),
            false => message,
        };
        parts.recorder.warning(&about, "ProvisioningFailed", text);
        if state != State::NoChange {
            self.0.capacity_changed.notify_one();
        }
        match state {
            State::InBackground => {
                self.memory().background.insert(uid.clone(), claim.clone());
            }
            State::NoChange => {}
            State::Finished => {
                let mut memory = self.memory();
                memory.background.remove(uid);
                memory.places.remove(uid);
            }
            State::Reschedule => {
                self.memory().forget(uid);
                return self.reschedule(claim).await;
            }
        }
        if infeasible {
            let wait = parts.settings.backoff.most;
            let until = (Instant::now() + wait, class.metadata.uid.clone());
            self.memory().slow.insert(uid.clone(), until);
            return Next::After(wait);
        }
        Next::Retry
    }

    /// Gives the choice of a node back to the scheduler.
    async fn reschedule(&self, claim: &Claim) -> Next {
        match self.annotate(claim, SELECTED_NODE, None).await {
            Ok(()) => Next::Done,
            Err(error) if error.is_not_found() => Next::Done,
            Err(error) => {
                tracing::warn!("failed to give up the chosen node: {error}");
                Next::Retry
            }
        }
    }

    async fn attempt(
        &self,
        claim: &Claim,
        class: &StorageClass,
        selected: Option<&str>,
    ) -> Result<Outcome, Failure> {
        let Inner { parts, identity, .. } = &*self.0;
        let Parts { driver, settings, kube, cache, .. } = parts;
        let topology = parts.topology();
        let source = source::of(claim, driver.can(), settings.cross_namespace)?;
        if let Source::Populator(by) = &source {
            let why = format!(
                "Assuming an external populator will provision the volume: {} is of kind {}",
                by.name, by.kind
            );
            return Ok(Outcome::NotOurs(why));
        }
        request::able(claim, driver.can())?;
        let mut wanted = request::wanted(claim, class, driver.can(), settings)?;
        wanted.request.volume_content_source = self.content(claim, class, &source).await?;
        if topology {
            wanted.request.accessibility_requirements = self.place(claim, class, selected)?;
        }
        request::complete(&mut wanted, claim, class, settings)?;
        let values = secrets::values(kube, wanted.secret(Use::Provisioner)).await;
        wanted.request.secrets = values.map_err(|fault| Failure::no_change(&fault))?;
        wanted.request.mutable_parameters = self.mutable(claim).await?;
        let copied = wanted.request.volume_content_source.is_some();
        let asked = wanted.request.clone();
        let answer = self.said_if_slow(claim, driver.create_volume(asked)).await;
        let answer =
            answer.map_err(|status| Failure::of_driver(&status, topology && selected.is_some()))?;
        let made = answer.volume.unwrap_or_default();
        self.as_asked(&wanted, &made, copied).await?;
        let read_only = settings.read_only;
        let maker = Maker { driver: driver.name(), identity, topology, read_only };
        let object = persistent_volume::build(claim, class, &wanted, &made, maker);
        match kube.create::<Volume>("", &object, Priority::Fresh).await {
            Ok(volume) => cache.volumes.apply(volume),
            Err(error) if error.is_already_exists() => {}
            // The volume is there: asked for again, by its name, until somebody knows of it.
            Err(error) => {
                let fault = Fault::from(error).during("save the PersistentVolume");
                let message = fault.to_string();
                return Err(Failure { state: State::InBackground, infeasible: false, message });
            }
        }
        if let Source::Snapshot(key) = &source {
            self.free_snapshot(key).await;
        }
        Ok(Outcome::Made(wanted.name))
    }

    /// Says that the driver is at work, where that takes long enough for somebody to look.
    async fn said_if_slow<T>(&self, claim: &Claim, call: impl Future<Output = T>) -> T {
        let mut call = std::pin::pin!(call);
        if let Ok(answer) = tokio::time::timeout(SLOW, &mut call).await {
            return answer;
        }
        let text =
            format!("External provisioner is provisioning volume for claim \"{}\"", claim.key());
        self.0.parts.recorder.normal(&claim.reference(), "Provisioning", text);
        call.await
    }

    /// Where it shall be; the same as the first time.
    fn place(
        &self,
        claim: &Claim,
        class: &StorageClass,
        selected: Option<&str>,
    ) -> Result<Option<csi::TopologyRequirement>, Failure> {
        let Inner { parts, .. } = &*self.0;
        let question = Question {
            driver: parts.driver.name(),
            claim: &claim.metadata.name,
            allowed: &class.allowed_topologies,
            selected,
            strict: parts.settings.strict_topology,
            immediate: parts.settings.immediate_topology,
        };
        let uid = &claim.metadata.uid;
        let mut seen = self.memory().places.get(uid).cloned().flatten();
        let answer = topology::requirement(question, &*self.0, &mut seen);
        if seen.is_some() {
            self.memory().places.insert(uid.clone(), seen);
        }
        answer
    }

    /// What it is made from; the source is kept from being deleted.
    async fn content(
        &self,
        claim: &Claim,
        class: &StorageClass,
        source: &Source,
    ) -> Result<Option<csi::VolumeContentSource>, Failure> {
        let Parts { kube, cache, settings, .. } = &self.0.parts;
        let failed = |error: ApiError| Failure::no_change(&Fault::from(error));
        self.granted(claim, source).await?;
        match source {
            Source::None | Source::Populator(_) => Ok(None),
            Source::Claim(key) => {
                let from = cache.claims.get(key);
                let volume = from
                    .as_ref()
                    .and_then(|c| cache.volumes.get(&Key::cluster(&c.spec.volume_name)));
                let content = source::clone(claim, class, key, from.as_deref(), volume.as_deref())?;
                if let Some(from) = from {
                    let kept = self.protect(&*from, source::CLONE_FINALIZER).await;
                    if let Some(from) = kept.map_err(failed)? {
                        cache.claims.apply(from);
                    }
                }
                Ok(Some(content))
            }
            Source::Snapshot(key) => {
                let snapshot = kube.get::<Snapshot>(key, Priority::Fresh).await.map_err(failed)?;
                let bound = snapshot
                    .as_ref()
                    .and_then(|s| s.status.as_ref()?.bound_volume_snapshot_content_name.clone());
                let content = match bound.filter(|name| !name.is_empty()) {
                    None => None,
                    Some(name) => kube
                        .get::<SnapshotContent>(&Key::cluster(name), Priority::Fresh)
                        .await
                        .map_err(failed)?,
                };
                let found = (snapshot.as_ref(), content.as_ref());
                let content = source::restore(claim, class, key, found, settings.keep_mode)?;
                if let Some(snapshot) = snapshot {
                    let kept = self.protect(&snapshot, source::SNAPSHOT_FINALIZER).await;
                    kept.map_err(failed)?;
                }
                Ok(Some(content))
            }
        }
    }

    async fn granted(&self, claim: &Claim, source: &Source) -> Result<(), Failure> {
        let (Source::Claim(key) | Source::Snapshot(key)) = source else { return Ok(()) };
        if key.namespace == claim.metadata.namespace {
            return Ok(());
        }
        let mut grants: Vec<ReferenceGrant> = Vec::new();
        let kube = &self.0.parts.kube;
        let listed = kube.list(&key.namespace, "", |page| grants.extend(page)).await;
        listed.map_err(|error| Failure::no_change(&Fault::from(error)))?;
        source::granted(claim, source, &grants)
    }

    /// What of the volume can be changed later, from its VolumeAttributesClass.
    async fn mutable(
        &self,
        claim: &Claim,
    ) -> Result<std::collections::BTreeMap<String, String>, Failure> {
        let Parts { kube, driver, .. } = &self.0.parts;
        let name = claim.spec.volume_attributes_class_name.as_ref().filter(|n| !n.is_empty());
        let Some(name) = name else { return Ok(std::collections::BTreeMap::new()) };
        let class = kube.get::<AttributesClass>(&Key::cluster(name), Priority::Fresh).await;
        let class = class.map_err(|error| Failure::no_change(&Fault::from(error)))?;
        let class = class.ok_or_else(|| {
            Failure::no_change(&Fault::not_found(format!(
                "use VolumeAttributesClass {name}: there is none (hint: make it)"
            )))
        })?;
        if class.driver_name != driver.name() {
            return Err(Failure::finished(&Fault::invalid(format!(
                "use VolumeAttributesClass {name}: it is of driver {}, and the StorageClass of {}",
                class.driver_name,
                driver.name()
            ))));
        }
        Ok(class.parameters)
    }

    /// Whether the volume is what was asked for; one that is not is deleted again.
    async fn as_asked(
        &self,
        wanted: &Wanted,
        made: &csi::Volume,
        copied: bool,
    ) -> Result<(), Failure> {
        let asked = wanted.request.capacity_range.map_or(0, |r| r.required_bytes);
        let why = if made.capacity_bytes != 0 && made.capacity_bytes < asked {
            format!("the driver has made {} bytes, and {asked} were asked for", made.capacity_bytes)
        } else if copied && made.content_source.is_none() {
            "the driver has made a volume without the content that was asked for".to_owned()
        } else {
            return Ok(());
        };
        let driver = &self.0.parts.driver;
        let delete = async {
            for _ in 0..UNDO {
                let request = csi::DeleteVolumeRequest {
                    volume_id: made.volume_id.clone(),
                    secrets: wanted.request.secrets.clone(),
                };
                match driver.delete_volume(request).await {
                    Ok(_) => return,
                    Err(status) => tracing::warn!(
                        volume = made.volume_id,
                        error = status.message(),
                        "failed to delete what is not as asked for"
                    ),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let _ = tokio::time::timeout(driver.timeout(), delete).await;
        Err(Failure { state: State::InBackground, infeasible: false, message: why })
    }

    /// Keeps the source of a copy from being deleted; None: it is kept already, or may not be.
    async fn protect<T: Object>(&self, object: &T, name: &str) -> Result<Option<T>, ApiError> {
        match finalizer::add(&self.0.parts.kube, object, name).await {
            // As the Go sidecar: then the source is not protected.
            Err(error) if error.is_forbidden() => {
                tracing::warn!("failed to protect the source of a volume: {error}");
                Ok(None)
            }
            kept => kept,
        }
    }
}
