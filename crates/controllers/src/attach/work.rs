//! Attaching, detaching, and saying how it went.

use super::{
    Attacher, Inner, decide,
    request::{self, Asked, NODE_ID, Subject},
};
use crate::{
    api::{Attachment, Key, Object, VolumeSpec},
    client::{ApiError, Patch, Priority},
    finalizer,
    queue::Next,
    secrets,
};
use larder_model::Fault;
use larder_proto::csi;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::Status;

/// Why something was not attached or detached.
#[derive(Debug)]
enum Failure {
    /// Somebody has written in between.
    Conflict(ApiError),
    /// Something else is missing.
    Fault(Fault),
    /// The driver says no.
    Driver(Status),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error.is_conflict() {
            true => Self::Conflict(error),
            false => Self::Fault(error.into()),
        }
    }
}

impl Failure {
    fn message(&self) -> String {
        match self {
            Self::Conflict(error) => error.to_string(),
            Self::Fault(fault) => fault.to_string(),
            Self::Driver(status) => larder_csi::status::text(status),
        }
    }

    /// The error, for a status; the gRPC code, where there is one and it is asked for: by it kubelet
    /// knows that the node takes no more volumes.
    fn status(&self, code: bool) -> Value {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut error = json!({"time": now, "message": self.message()});
        if let (true, Self::Driver(status)) = (code, self) {
            error["errorCode"] = json!(status.code() as i32);
        }
        error
    }
}

impl Attacher {
    /// A driver that attaches nothing.
    pub(super) async fn mark(&self, attachment: &Attachment) -> Next {
        self.write(attachment, &json!({"attached": true}), Next::Done).await
    }

    pub(super) async fn attach(&self, attachment: &Attachment) -> Next {
        let failure = match self.publish(attachment).await {
            Ok(context) => {
                let metadata = replaced(&attachment.status.attachment_metadata, &context);
                let mut status = json!({"attached": true, "attachmentMetadata": metadata});
                if attachment.status.attach_error.is_some() {
                    status["attachError"] = Value::Null;
                }
                self.forced().remove(&attachment.metadata.name);
                let before = &attachment.status;
                if before.attached
                    && before.attach_error.is_none()
                    && before.attachment_metadata == context
                {
                    return Next::Done;
                }
                return self.write(attachment, &status, Next::Done).await;
            }
            Err(Failure::Conflict(error)) => {
                tracing::debug!("again: failed to {error}");
                return Next::Soon;
            }
            Err(failure) => failure,
        };
        let known = attachment.status.attach_error.as_ref();
        self.failed(attachment, "attachError", known.map(|e| e.message.as_str()), &failure).await
    }

    pub(super) async fn detach(&self, attachment: &Attachment) -> Next {
        let failure = match self.unpublish(attachment).await {
            Ok(()) => {
                self.forced().remove(&attachment.metadata.name);
                return Next::Done;
            }
            Err(Failure::Conflict(error)) => {
                tracing::debug!("again: failed to {error}");
                return Next::Soon;
            }
            Err(failure) => failure,
        };
        let known = attachment.status.detach_error.as_ref();
        self.failed(attachment, "detachError", known.map(|e| e.message.as_str()), &failure).await
    }

    /// Says why it failed, if that is not what was said before.
    async fn failed(
        &self,
        attachment: &Attachment,
        field: &str,
        known: Option<&str>,
        failure: &Failure,
    ) -> Next {
        let message = failure.message();
        let Attachment { metadata, spec, .. } = attachment;
        tracing::warn!(
            attachment = metadata.name,
            node = spec.node_name,
            driver = self.0.parts.driver.name(),
            "{field}: {message}"
        );
        if known == Some(&message) {
            return Next::Retry;
        }
        let mut status = json!({field: failure.status(field == "attachError")});
        if !attachment.status.attached {
            // The API wants it, and has none before the first word.
            status["attached"] = false.into();
        }
        self.write(attachment, &status, Next::Retry).await
    }

    /// Writes the status.
    async fn write(&self, attachment: &Attachment, status: &Value, then: Next) -> Next {
        let super::Parts { kube, cache, .. } = &self.0.parts;
        let patch = Patch::Merge(json!({"status": status}));
        match kube.patch(&attachment.key(), "status", &patch, Priority::Fresh).await {
            Ok(new) => cache.attachments.apply(new),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!("failed to {error}");
                return Next::Retry;
            }
        }
        then
    }

    /// Everything up to the driver's answer.
    async fn publish(&self, attachment: &Attachment) -> Result<BTreeMap<String, String>, Failure> {
        let Inner { parts, finalizer: ours, .. } = &*self.0;
        let super::Parts { kube, cache, driver, settings, .. } = parts;
        let held;
        let spec: &VolumeSpec = match request::subject(attachment)? {
            Subject::Inline(spec) => spec,
            Subject::Named(name) => {
                held = cache.volumes.get(&Key::cluster(name));
                let volume = request::volume(name, held.as_deref(), true)?;
                // Before anything that could attach it: it is not forgotten while it is somewhere.
                if let Some(new) = finalizer::add(kube, volume, ours).await? {
                    cache.volumes.apply(new);
                }
                &volume.spec
            }
        };
        let csi_node = cache.csi_nodes.get(&Key::cluster(&attachment.spec.node_name));
        let node = request::node_id(attachment, driver.name(), csi_node.as_deref(), false)?;
        let asked = request::publish(spec, node.clone(), driver.can(), &settings.default_fs_type)?;
        let Asked { mut request, secret } = asked;
        request.secrets = secrets::values(kube, secret.as_ref()).await?;
        // Only now: a hopeless attachment can be deleted by anybody.
        if let Some(patch) = noted(attachment, ours, &node) {
            let new = kube.patch(&attachment.key(), "", &patch, Priority::Fresh).await?;
            cache.attachments.apply(new);
        }
        let answer = driver.controller_publish_volume(request).await.map_err(Failure::Driver)?;
        Ok(answer.publish_context)
    }

    async fn unpublish(&self, attachment: &Attachment) -> Result<(), Failure> {
        let Inner { parts, finalizer: ours, .. } = &*self.0;
        let super::Parts { kube, cache, driver, .. } = parts;
        let held;
        let spec: &VolumeSpec = match request::subject(attachment)? {
            Subject::Inline(spec) => spec,
            Subject::Named(name) => {
                held = cache.volumes.get(&Key::cluster(name));
                &request::volume(name, held.as_deref(), false)?.spec
            }
        };
        let csi = request::csi_of(spec)?;
        let csi_node = cache.csi_nodes.get(&Key::cluster(&attachment.spec.node_name));
        let node_id = request::node_id(attachment, driver.name(), csi_node.as_deref(), true)?;
        let secrets = secrets::values(kube, csi.controller_publish_secret_ref.as_ref()).await?;
        let volume_id = csi.volume_handle.clone();
        let asked = csi::ControllerUnpublishVolumeRequest { volume_id, node_id, secrets };
        driver.controller_unpublish_volume(asked).await.map_err(Failure::Driver)?;
        let last = attachment.metadata.finalizers == [ours.as_str()];
        match finalizer::release(kube, attachment, ours).await? {
            // It is gone with that: nobody reads its status.
            Some(_) if last => cache.attachments.remove(&attachment.key(), 0),
            Some(new) => {
                cache.attachments.apply(new);
                let mut status = json!({"attached": false, "attachmentMetadata": null});
                if attachment.status.detach_error.is_some() {
                    status["detachError"] = Value::Null;
                }
                self.write(attachment, &status, Next::Done).await;
            }
            None => {}
        }
        Ok(())
    }

    /// A volume that is deleted, once nothing attaches it.
    pub(super) async fn free(&self, key: Key) -> Next {
        let Inner { parts, finalizer: ours, .. } = &*self.0;
        let super::Parts { kube, cache, .. } = parts;
        let Some(volume) = cache.volumes.get(&key) else { return Next::Done };
        // The end of an attachment has this looked at again.
        let attachments = cache.attachments.by("volume", &key.name).len();
        if !decide::is_free(ours, &volume, attachments) {
            return Next::Done;
        }
        match finalizer::release(kube, &*volume, ours).await {
            Ok(new) => {
                new.into_iter().for_each(|new| cache.volumes.apply(new));
                Next::Done
            }
            Err(error) if error.is_conflict() => Next::Soon,
            Err(error) => {
                tracing::warn!("failed to let go of a volume that is attached nowhere: {error}");
                Next::Retry
            }
        }
    }
}

/// What makes one map of another in a merge patch: what is not in it any more is null.
fn replaced(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Value {
    let gone = before.keys().filter(|key| !now.contains_key(*key)).map(|key| (key, Value::Null));
    let new = now.iter().map(|(key, value)| (key, value.clone().into()));
    gone.chain(new)
        .map(|(key, value)| (key.clone(), value))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What has to be on an attachment before it is attached; None: it is.
fn noted(attachment: &Attachment, finalizer: &str, node_id: &str) -> Option<Patch> {
    let meta = &attachment.metadata;
    let mut operations = Vec::new();
    if !meta.has_finalizer(finalizer) {
        operations.extend(finalizer::added(meta, finalizer));
    }
    if meta.annotation(NODE_ID) != Some(node_id) {
        let version = &meta.resource_version;
        operations.push(match meta.annotations.is_empty() {
            // It would take the place of annotations that have come meanwhile.
            true => json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}),
            false => json!({"op": "test", "path": "/metadata/uid", "value": meta.uid}),
        });
        operations.push(match meta.annotations.is_empty() {
            true => {
                json!({"op": "add", "path": "/metadata/annotations", "value": {NODE_ID: node_id}})
            }
            false => {
                let path = format!("/metadata/annotations/{}", NODE_ID.replace('/', "~1"));
                json!({"op": "add", "path": path, "value": node_id})
            }
        });
    }
    (!operations.is_empty()).then(|| Patch::Json(json!(operations)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(meta: Value) -> Attachment {
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    #[test]
    fn finalizer_and_node_id_are_written_at_once_and_only_where_they_are_missing() {
        let new = attachment(json!({"resourceVersion": "7"}));
        let Some(Patch::Json(patch)) = noted(&new, "f", "id") else { panic!("no patch") };
        let operations = patch.as_array().unwrap();
        assert_eq!(operations.len(), 4);
        assert_eq!(operations[2]["value"], "7");
        assert_eq!(operations[3]["value"], json!({NODE_ID: "id"}));

        let moved = attachment(json!({"finalizers": ["f"], "annotations": {NODE_ID: "old"}}));
        let Some(Patch::Json(patch)) = noted(&moved, "f", "id") else { panic!("no patch") };
        assert_eq!(patch[1]["path"], "/metadata/annotations/csi.alpha.kubernetes.io~1node-id");

        let done = attachment(json!({"finalizers": ["f"], "annotations": {NODE_ID: "id"}}));
        assert_eq!(noted(&done, "f", "id"), None);
    }

    #[test]
    fn what_the_driver_says_no_more_of_an_attachment_does_not_stay_there() {
        let map = |keys: &[&str]| -> BTreeMap<String, String> {
            keys.iter().map(|key| ((*key).to_owned(), format!("of {key}"))).collect()
        };
        let patch = replaced(&map(&["lun", "path"]), &map(&["path", "device"]));
        assert_eq!(patch, json!({"lun": null, "path": "of path", "device": "of device"}));
        assert_eq!(replaced(&map(&[]), &map(&[])), json!({}));
    }

    #[test]
    fn only_an_answer_of_the_driver_has_a_code_and_only_when_attaching() {
        let driver = Failure::Driver(Status::resource_exhausted("no slot"));
        let error = driver.status(true);
        assert_eq!(error["errorCode"], 8);
        assert_eq!(error["message"], "rpc error: code = ResourceExhausted desc = no slot");
        assert!(driver.status(false)["errorCode"].is_null());
        let fault = Failure::Fault(Fault::not_found("find the volume"));
        assert!(fault.status(true)["errorCode"].is_null());
    }
}
