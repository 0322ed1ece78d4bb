//! Attachment by the control plane.

use super::{AttachVolume, ControlEngine, DetachVolume, absent, accept, found};
use crate::claims::{Fingerprint, Key, Operation};
use larder_model::{Fault, NodeName, Result, volume::Attributes};

impl ControlEngine {
    /// ControllerPublishVolume: makes the volume reachable for the node; returns the publish
    /// context.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (node, capability), `NotFound` (volume, node), `Conflict` (there
    /// already, otherwise), `Precondition` (attached elsewhere; names the node), `Exhausted` (no
    /// slot), `Aborted`, `Unavailable`.
    pub async fn attach_volume(&self, request: AttachVolume) -> Result<Attributes> {
        self.check_ready()?;
        let inner = &*self.0;
        if inner.backend.provision().attach().is_none() {
            return Err(inner.unsupported("attach volumes"));
        }
        let id = inner.volume_id(&request.volume_id)?;
        let node = node_name(&request.node_id)?;
        let one = std::slice::from_ref(&request.capability);
        accept::capabilities(inner.backend.facts(), one, &Attributes::new())?;
        let fingerprint = Fingerprint::of(&(
            (&request.node_id, &request.capability),
            (&request.readonly, &request.context),
        ));
        let operation = Operation::new("attach volume", fingerprint).exclusive(Key::volume(&id));
        self.run(operation, |inner, cx| async move {
            let provision = inner.backend.provision();
            let attach = provision.attach().ok_or_else(|| inner.unsupported("attach volumes"))?;
            provision.get_volume(&id).await?;
            let AttachVolume { capability, readonly, secrets, .. } = &request;
            attach.attach_volume(&id, node.as_str(), capability, *readonly, secrets, &cx).await
        })
        .await
    }

    /// ControllerUnpublishVolume: takes that back. Not attached, or an id that cannot be ours, is a
    /// success: nothing of ours was ever attached under it.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (node), `Aborted`, `Unavailable`.
    pub async fn detach_volume(&self, request: DetachVolume) -> Result<()> {
        self.check_ready()?;
        let inner = &*self.0;
        if inner.backend.provision().attach().is_none() {
            return Err(inner.unsupported("detach volumes"));
        }
        let Some(id) = found(inner.volume_id(&request.volume_id))? else { return Ok(()) };
        let node = match request.node_id.as_str() {
            "" => None,
            node => Some(node_name(node)?),
        };
        let operation = Operation::new("detach volume", Fingerprint::of(&request.node_id))
            .exclusive(Key::volume(&id));
        self.run(operation, |inner, cx| async move {
            let attach = inner.backend.provision().attach();
            let attach = attach.ok_or_else(|| inner.unsupported("detach volumes"))?;
            let node = node.as_ref().map(NodeName::as_str);
            absent(attach.detach_volume(&id, node, &request.secrets, &cx).await)
        })
        .await
    }
}

fn node_name(text: &str) -> Result<NodeName> {
    text.parse().map_err(|fault: Fault| fault.during("read node_id"))
}
