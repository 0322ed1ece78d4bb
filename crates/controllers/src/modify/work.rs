//! Changing a volume's attributes, and saying how it went.

use super::{Modifier, Parts, decide, status};
use crate::{
    api::{Claim, Key, Object, SecretRef, Volume},
    claims,
    client::{ApiError, Patch, Priority},
    outcome::{self, Class},
    provision::{parameters, persistent_volume},
    queue::Next,
    secrets,
};
use larder_model::Fault;
use larder_proto::csi;
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};
use tonic::Status;

/// Why a volume was not changed.
enum Failure {
    /// Nothing was asked of the driver.
    Fault(Fault),
    /// The driver says no.
    Driver(Status),
    /// It is changed, and that cannot be written down: asked for again.
    Unsaved(ApiError),
    /// Another class is asked for by now; nothing was begun.
    Changed,
    /// The claim is gone.
    Gone,
}

impl Modifier {
    /// Nobody asks for it any more.
    pub(super) async fn cancel(&self, claim: &Arc<Claim>) -> Next {
        let Parts { kube, cache, recorder, .. } = &self.0.parts;
        match claims::write(kube, cache, claim, status::cancelled).await {
            Ok(_) => {
                let text = "Cancelled modify.";
                recorder.normal(&claim.reference(), "VolumeModifyCanceled", text);
                Next::Done
            }
            Err(error) => {
                tracing::warn!("failed to {error}");
                Next::Retry
            }
        }
    }

    /// One attempt, and what follows from it.
    pub(super) async fn apply(
        &self,
        claim: &Arc<Claim>,
        volume: &Arc<Volume>,
        class: &str,
    ) -> Next {
        let Parts { kube, cache, driver, recorder, settings, .. } = &self.0.parts;
        let (about, uid, key) = (claim.reference(), &claim.metadata.uid, claim.key());
        let Some(found) = cache.attributes_classes.get(&Key::cluster(class)) else {
            let text = format!("VAC {class} does not exist.");
            recorder.warning(&about, "VolumeModifyFailed", text);
            let waits = |now: &Claim| status::waits(now, class);
            return match claims::write(kube, cache, claim, waits).await {
                // Its appearance has this looked at again.
                Ok(_) => Next::Done,
                Err(error) => {
                    tracing::warn!("failed to {error}");
                    Next::Retry
                }
            };
        };
        let failure = match self.attempt(claim, volume, class, &found.parameters).await {
            Ok(()) => {
                self.0.memory().forget(uid);
                let text = format!(
                    "external resizer modified volume {} with vac {class} successfully",
                    key.name
                );
                recorder.normal(&about, "VolumeModifySuccessful", text);
                // Another class may be asked for by now.
                return Next::Done;
            }
            Err(failure) => failure,
        };
        let (class_of, reason, message, text) = match failure {
            // The change of the claim has it decided anew.
            Failure::Changed => return Next::Soon,
            Failure::Gone => {
                self.0.memory().forget(uid);
                return Next::Done;
            }
            Failure::Fault(fault) => {
                // An answer that never came says nothing of what an earlier attempt has begun.
                if !decide::may_go_on(claim) {
                    self.0.memory().settled.insert(uid.clone());
                }
                tracing::warn!(claim = %key, driver = driver.name(), class, "failed to modify: {fault}");
                recorder.warning(&about, "VolumeModifyFailed", fault.to_string());
                return Next::Retry;
            }
            Failure::Unsaved(error) => {
                let text = error.to_string();
                (Class::InProgress, "Unknown", text.clone(), text)
            }
            Failure::Driver(status) => {
                let (code, text) = (status.code(), larder_csi::status::text(&status));
                let said = status.message().to_owned();
                (outcome::modify(code), larder_csi::status::name(code), said, text)
            }
        };
        tracing::warn!(claim = %key, driver = driver.name(), class, "failed to modify: {text}");
        recorder.warning(&about, "VolumeModifyFailed", text);
        {
            let mut memory = self.0.memory();
            match class_of {
                Class::InProgress => {
                    memory.settled.remove(uid);
                }
                Class::Final => {
                    memory.settled.insert(uid.clone());
                }
                Class::Infeasible => {
                    memory.settled.insert(uid.clone());
                    memory.slow.add(uid, settings.backoff.most);
                }
            }
        }
        let infeasible = class_of == Class::Infeasible;
        let say = |now: &Claim| status::failed(now, class, infeasible, (reason, &message));
        let now = cache.claims.get(&key).unwrap_or_else(|| claim.clone());
        if let Err(error) = claims::write(kube, cache, &now, say).await {
            tracing::warn!("failed to {error}");
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
        class: &str,
        told: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let Parts { kube, cache, driver, recorder, settings, .. } = &self.0.parts;
        let before = |error: ApiError| Failure::Fault(error.into());
        let asked = claim.spec.volume_attributes_class_name.clone();
        let same = |now: &Claim| now.spec.volume_attributes_class_name == asked;
        // Also when somebody else was faster: the class was decided for what was asked for then.
        let began = |now: &Claim| same(now).then(|| status::began(now, class)).flatten();
        let write = claims::write(kube, cache, claim, began);
        let claim = write.await.map_err(before)?.ok_or(Failure::Gone)?;
        if !same(&claim) {
            return Err(Failure::Changed);
        }
        let (meta, name) = (&claim.metadata, &volume.metadata.name);
        let text = format!("external resizer is modifying volume {} with vac {class}", meta.name);
        recorder.normal(&claim.reference(), "VolumeModify", text);
        let Some(csi) = &volume.spec.csi else {
            let fault = Fault::unsupported("change the volume: it is not one of a CSI driver");
            return Err(Failure::Fault(fault));
        };
        let of = secret(volume, csi.controller_expand_secret_ref.as_ref());
        let secrets = secrets::values(kube, of.as_ref()).await.map_err(Failure::Fault)?;
        let mut mutable_parameters = told.clone();
        if settings.extra_metadata {
            mutable_parameters.extend(parameters::metadata(&meta.name, &meta.namespace, name));
        }
        let volume_id = csi.volume_handle.clone();
        let asked = csi::ControllerModifyVolumeRequest { volume_id, secrets, mutable_parameters };
        driver.controller_modify_volume(asked).await.map_err(Failure::Driver)?;
        if volume.spec.volume_attributes_class_name.as_deref() != Some(class) {
            let patch = Patch::Merge(json!({"spec": {"volumeAttributesClassName": class}}));
            let new = kube.patch(&volume.key(), "", &patch, Priority::Fresh).await;
            cache.volumes.apply(new.map_err(Failure::Unsaved)?);
        }
        let write = claims::write(kube, cache, &claim, |now| Some(status::done(now, class)));
        write.await.map_err(Failure::Unsaved)?.ok_or(Failure::Gone).map(drop)
    }
}

/// The Secret that was noted for it when the volume was made; else that of growing.
fn secret(volume: &Volume, expand: Option<&SecretRef>) -> Option<SecretRef> {
    let noted = |key| volume.metadata.annotation(key).filter(|v| !v.is_empty());
    let name = noted(persistent_volume::MODIFY_SECRET);
    match (name, noted(persistent_volume::MODIFY_SECRET_NAMESPACE)) {
        (Some(name), Some(namespace)) => {
            Some(SecretRef { name: name.to_owned(), namespace: namespace.to_owned() })
        }
        _ => expand.cloned(),
    }
}
