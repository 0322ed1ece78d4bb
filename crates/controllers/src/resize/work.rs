//! Growing, and saying how it went.

use super::{
    Grows, Parts, Resizer,
    status::{self, FORMER_SIZE},
};
use crate::{
    api::{Claim, Object, Pod, Quantity, Volume},
    claims,
    client::{ApiError, Patch, Priority},
    driver::ControllerCan,
    modes,
    outcome::{self, Class},
    queue::Next,
    secrets,
};
use larder_model::{Fault, Result};
use larder_proto::csi;
use serde_json::json;
use std::sync::Arc;
use tonic::{Code, Status};

/// Why a volume did not grow.
enum Failure {
    /// Something else is missing; the driver was not asked.
    Fault(Fault),
    /// The driver says no.
    Driver(Status),
    /// Another size is asked for by now; nothing was promised.
    Changed,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Fault(error.into())
    }
}

impl Failure {
    fn message(&self) -> String {
        match self {
            Self::Fault(fault) => fault.to_string(),
            Self::Driver(status) => larder_csi::status::text(status),
            Self::Changed => "another size is asked for by now".to_owned(),
        }
    }
}

impl Resizer {
    /// Takes off a volume what has no meaning once its users have the size.
    pub(super) async fn tidy(&self, claim: &Claim, volume: &Volume) -> Result<(), ApiError> {
        let Parts { kube, cache, .. } = &self.0.parts;
        let done = claim.status.capacity.storage >= volume.spec.capacity.storage;
        if !done || volume.metadata.annotation(FORMER_SIZE).is_none() {
            return Ok(());
        }
        let change = Patch::Merge(json!({"metadata": {"annotations": {FORMER_SIZE: null}}}));
        match kube.patch::<Volume>(&volume.key(), "", &change, Priority::Background).await {
            Ok(new) => cache.volumes.apply(new),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One attempt, and what follows from it.
    pub(super) async fn grow(
        &self,
        claim: &Arc<Claim>,
        volume: &Arc<Volume>,
        size: &Quantity,
    ) -> Next {
        let Parts { kube, cache, driver, recorder, settings, .. } = &self.0.parts;
        let (about, uid) = (claim.reference(), &claim.metadata.uid);
        let failure = match self.attempt(claim, volume, size).await {
            Ok(()) => {
                self.0.memory().forget(uid);
                return Next::Done;
            }
            // The change of the claim has it decided anew.
            Err(Failure::Changed) => return Next::Soon,
            Err(failure) => failure,
        };
        let message = failure.message();
        let text = format!(
            "resize volume {:?} by resizer {:?} failed: {message}",
            volume.metadata.name,
            driver.name()
        );
        tracing::warn!(claim = %claim.key(), driver = driver.name(), "{text}");
        recorder.warning(&about, "VolumeResizeFailed", text);
        let Failure::Driver(status) = failure else { return Next::Retry };
        let class = outcome::expand(status.code());
        {
            let mut memory = self.0.memory();
            if status.code() == Code::FailedPrecondition {
                memory.offline.insert(uid.clone());
            }
            match class {
                Class::InProgress => {
                    memory.failed.remove(uid);
                    memory.slow.forget(uid);
                }
                Class::Infeasible => {
                    memory.failed.insert(uid.clone());
                    memory.slow.add(uid, settings.backoff.most);
                }
                Class::Final => {
                    memory.failed.insert(uid.clone());
                }
            }
        }
        let infeasible = class == Class::Infeasible;
        if class != Class::InProgress {
            let say = |now: &Claim| status::failed(now, &message, infeasible);
            let now = cache.claims.get(&claim.key()).unwrap_or_else(|| claim.clone());
            if let Err(error) = claims::write(kube, cache, &now, say).await {
                tracing::warn!("failed to {error}");
            }
        }
        match infeasible {
            true => Next::After(settings.backoff.most),
            false => Next::Retry,
        }
    }

    async fn attempt(
        &self,
        claim: &Arc<Claim>,
        volume: &Arc<Volume>,
        size: &Quantity,
    ) -> Result<(), Failure> {
        let Parts { kube, cache, recorder, .. } = &self.0.parts;
        let about = claim.reference();
        let asked = claim.spec.resources.requests.storage.clone();
        let same = |now: &Claim| now.spec.resources.requests.storage == asked;
        // Also when somebody else was faster: the size was decided for what was asked for then.
        let began = |now: &Claim| same(now).then(|| status::began(now, size)).flatten();
        let Some(claim) = claims::write(kube, cache, claim, began).await? else { return Ok(()) };
        if !same(&claim) {
            return Err(Failure::Changed);
        }
        self.unused(&claim).await?;
        let name = &volume.metadata.name;
        recorder.normal(&about, "Resizing", format!("External resizer is resizing volume {name}"));
        let (size, node) = self.ask(volume, size).await?;
        if let Some(change) = status::volume(volume, &claim, &size, node) {
            let patch = Patch::Merge(change);
            let new = kube.patch(&volume.key(), "", &patch, Priority::Fresh).await?;
            cache.volumes.apply(new);
        }
        if node {
            claims::write(kube, cache, &claim, status::nodes_turn).await?;
            let text = "Require file system resize of volume on node";
            recorder.normal(&about, "FileSystemResizeRequired", text);
        } else {
            let done = claims::write(kube, cache, &claim, |now| Some(status::done(now, &size)));
            if done.await?.is_some() {
                recorder.normal(&about, "VolumeResizeSuccessful", "Resize volume succeeded");
            }
        }
        Ok(())
    }

    /// The driver's answer: how large the volume is, and whether the node must do something.
    async fn ask(&self, volume: &Volume, size: &Quantity) -> Result<(Quantity, bool), Failure> {
        use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
        let Parts { kube, driver, grows, .. } = &self.0.parts;
        if *grows == Grows::Node {
            return Ok((size.clone(), true));
        }
        let spec = &volume.spec;
        let Some(of) = &spec.csi else {
            let fault = Fault::unsupported("grow the volume: it is not one of a CSI driver");
            return Err(fault.into());
        };
        let newer = driver.can().control(ControllerCan::SingleNodeMultiWriter);
        let mode = modes::combined(&spec.access_modes, newer)?;
        let access_type = match spec.is_block() {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: of.fs_type.clone(),
                mount_flags: spec.mount_options.clone(),
                volume_mount_group: String::new(),
            }),
        };
        let secrets = secrets::values(kube, of.controller_expand_secret_ref.as_ref()).await?;
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: of.volume_handle.clone(),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: size.bytes(),
                limit_bytes: 0,
            }),
            secrets,
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: mode.into() }),
                access_type: Some(access_type),
            }),
        };
        let answer = driver.controller_expand_volume(request).await.map_err(Failure::Driver)?;
        Ok((Quantity::of_bytes(answer.capacity_bytes), answer.node_expansion_required))
    }

    /// A volume that the driver grows only while nobody uses it: nobody uses it.
    async fn unused(&self, claim: &Claim) -> Result<(), Failure> {
        let Parts { kube, settings, .. } = &self.0.parts;
        let uid = &claim.metadata.uid;
        if !settings.in_use || !self.0.memory().offline.contains(uid) {
            return Ok(());
        }
        // Asked for in this rare case: a cache of all pods would be the largest of all.
        let mut user = None;
        let page = |pods: Vec<Pod>| {
            let found = pods.into_iter().find(|pod| pod.uses(&claim.metadata.name));
            user = user.take().or(found.map(|pod| pod.metadata.name));
        };
        match kube.list(&claim.metadata.namespace, "", page).await {
            Ok(_) => {}
            // Nobody can tell but the driver, and what it refused may be over (a pool that was
            // read-only).
            Err(error) if error.is_forbidden() => {
                tracing::warn!(claim = %claim.key(), "asking the driver, whoever uses the volume: failed to {error}");
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(pod) = user {
            return Err(Fault::precondition(format!(
                "grow the volume of claim {}: the driver grows it only while nobody uses it, and pod {pod} does",
                claim.key()
            ))
            .hint("stop the pod, and start it again when the claim has its size")
            .into());
        }
        self.0.memory().offline.remove(uid);
        Ok(())
    }
}
