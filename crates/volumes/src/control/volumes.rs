//! Volumes: delete, validate, get, list, capacity, expand, modify.

use super::{
    ControlEngine, ExpandVolume, Expanded, Inner, ModifyVolume, Paging, QueryCapacity,
    ValidateVolume, Validated, VolumeEntry, VolumePage, absent,
    accept::{self, POOL},
    found,
    token::Listing,
};
use crate::{
    claims::{Fingerprint, Key, Operation},
    node::is_made_for,
};
use larder_model::{
    AccessType, Bytes, CapacityRange, Cx, Encryption, Fault, Kind, MountAccess, PoolName,
    Provision, Result, Secrets, VolumeId,
    id::quoted,
    volume::{Attributes, Capacity, Page, Volume, context},
};
use std::sync::Arc;

impl ControlEngine {
    /// DeleteVolume: deletes the volume and its data. One that is not there, or whose id cannot be
    /// ours, is a success. Its snapshots stay usable.
    ///
    /// # Errors
    /// `Precondition` (in use, or not created by us), `Aborted`, `Unavailable`.
    pub async fn delete_volume(&self, volume_id: &str, secrets: Secrets) -> Result<()> {
        self.check_ready()?;
        let inner = &*self.0;
        let Some(id) = found(inner.volume_id(volume_id))? else { return Ok(()) };
        let operation =
            Operation::new("delete volume", Fingerprint::of(&())).exclusive(Key::volume(&id));
        self.run(operation, |inner, cx| async move { inner.delete(&id, &secrets, &cx).await }).await
    }

    /// Deletes the inline volume that was made under `name`. Whether it is that one is asked under
    /// the claim: nobody can put another in its place before it is deleted.
    ///
    /// # Errors
    /// As [`ControlEngine::delete_volume`].
    pub(crate) async fn delete_inline_volume(&self, id: &VolumeId, name: &str) -> Result<()> {
        self.check_ready()?;
        // Not equal to the deletion of whatever has that id: nobody may join one and get the other.
        let operation = Operation::new("delete inline volume", Fingerprint::of(&name))
            .exclusive(Key::volume(id));
        let (id, name) = (id.clone(), name.to_owned());
        self.run(operation, |inner, cx| async move {
            match found(inner.backend.provision().get_volume(&id).await)? {
                Some(volume) if is_made_for(&volume, &name) => {
                    inner.delete(&id, &Secrets::default(), &cx).await
                }
                Some(_) => Ok(()),
                // What a killed deletion left is the backend's to finish.
                None => inner.delete(&id, &Secrets::default(), &cx).await,
            }
        })
        .await
    }

    /// ValidateVolumeCapabilities: whether the volume can be used as asked.
    ///
    /// # Errors
    /// `Invalid` (no id or capability), `NotFound`, `Unavailable`. What cannot be done is no fault.
    pub async fn validate_volume(&self, request: ValidateVolume) -> Result<Validated> {
        self.check_ready()?;
        let id = self.0.volume_id(&request.volume_id)?;
        if request.capabilities.is_empty() {
            return Err(Fault::invalid("accept no volume capability: at least one is needed"));
        }
        let provision = self.0.backend.provision();
        let volume = match provision.get_volume(&id).await {
            // What others made on a server is known by its attributes alone.
            Err(gone) if gone.kind() == Kind::NotFound && !request.context.is_empty() => {
                let described = provision.describe_volume(&id, &request.context).await;
                described.ok().filter(|volume| volume.is_static).ok_or(gone)?
            }
            known => known?,
        };
        match self.0.check_validation(&request, &volume) {
            Ok(()) => Ok(Validated::Confirmed),
            Err(fault) if fault.kind() == Kind::Invalid => {
                Ok(Validated::Refused(format!("cannot {fault}")))
            }
            Err(fault) => Err(fault),
        }
    }

    /// ControllerGetVolume.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn get_volume(&self, volume_id: &str) -> Result<VolumeEntry> {
        self.check_ready()?;
        let id = self.0.volume_id(volume_id)?;
        let volume = self.0.backend.provision().get_volume(&id).await?;
        self.0.entry(volume).await
    }

    /// ListVolumes.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (negative page), `Aborted` (token), `Unavailable`.
    pub async fn list_volumes(&self, paging: Paging) -> Result<VolumePage> {
        self.check_ready()?;
        let provision = self.0.backend.provision();
        let list = provision.list().ok_or_else(|| self.0.unsupported("list volumes"))?;
        let page = Page {
            max: accept::page_size(paging.max_entries, "max_entries")?,
            after: Listing::Volumes.after(&paging.starting_token, &*self.0.backend)?,
        };
        let listed = list.list_volumes(&page).await?;
        let last = listed.items.last().filter(|_| listed.more);
        let next_token = last.map(|v| Listing::Volumes.token(&v.id)).unwrap_or_default();
        let mut volumes = Vec::with_capacity(listed.items.len());
        for volume in listed.items {
            // One that was deleted meanwhile is left out.
            volumes.extend(found(self.0.entry(volume).await)?);
        }
        Ok(VolumePage { volumes, next_token })
    }

    /// GetCapacity: what can still be provisioned. None at all where the capabilities or the
    /// topology cannot be had from this driver.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (parameters), `Unavailable`.
    pub async fn capacity(&self, query: QueryCapacity) -> Result<Capacity> {
        self.check_ready()?;
        let provision = self.0.backend.provision();
        let capacity = provision.capacity().ok_or_else(|| self.0.unsupported("get capacity"))?;
        let mut parameters = accept::own(&query.parameters);
        let pool = match parameters.remove(POOL) {
            Some(pool) => self.0.pool(&pool)?,
            None => self.0.backend.default_pool()?,
        };
        let facts = self.0.backend.facts();
        accept::encryption(facts, &mut parameters)?;
        provision.check_parameters(&parameters)?;
        let elsewhere = match (&query.topology, self.0.place()) {
            (Some(wanted), Some(place)) => !place.satisfies(wanted),
            _ => false,
        };
        let unusable = !query.capabilities.is_empty()
            && accept::capabilities(facts, &query.capabilities, &parameters).is_err();
        if elsewhere || unusable {
            return Ok(Capacity::default());
        }
        let mut answer = capacity.capacity(&pool, &parameters).await?;
        answer.smallest = answer.smallest.or(Some(facts.min_size).filter(|s| *s > Bytes::ZERO));
        Ok(answer)
    }

    /// ControllerExpandVolume: makes the volume at least as large as asked; never shrinks.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (capability, no size), `NotFound`, `Precondition` (in use, and only
    /// offline growth is possible), `OutOfRange`, `Exhausted`, `Aborted`, `Unavailable`.
    pub async fn expand_volume(&self, request: ExpandVolume) -> Result<Expanded> {
        self.check_ready()?;
        let inner = &*self.0;
        if inner.backend.provision().expand().is_none() {
            return Err(inner.unsupported("expand volumes"));
        }
        let id = inner.volume_id(&request.volume_id)?;
        if request.capacity == CapacityRange::default() {
            return Err(Fault::invalid("expand to a size that is not given")
                .hint("set required_bytes, limit_bytes or both"));
        }
        if let Some(capability) = &request.capability {
            let facts = inner.backend.facts();
            let one = std::slice::from_ref(capability);
            accept::capabilities(facts, one, &Attributes::new())?;
        }
        let fingerprint = Fingerprint::of(&(&request.capacity, &request.capability));
        let operation = Operation::new("expand volume", fingerprint).exclusive(Key::volume(&id));
        self.run(operation, |inner, cx| async move { inner.expand(&id, &request, &cx).await }).await
    }

    /// ControllerModifyVolume: applies the keys that are present.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (nothing was changed), `NotFound`, `Aborted`, `Unavailable`.
    pub async fn modify_volume(&self, request: ModifyVolume) -> Result<()> {
        self.check_ready()?;
        let inner = &*self.0;
        if inner.backend.provision().modify().is_none() {
            return Err(inner.unsupported("modify volumes"));
        }
        let id = inner.volume_id(&request.volume_id)?;
        if request.mutable_parameters.is_empty() {
            return Err(Fault::invalid("modify a volume without mutable_parameters"));
        }
        accept::map_size(&request.mutable_parameters, "mutable_parameters")?;
        let parameters = accept::own(&request.mutable_parameters);
        check_mutable(inner.backend.provision(), &parameters)?;
        let operation = Operation::new("modify volume", Fingerprint::of(&parameters))
            .exclusive(Key::volume(&id));
        self.run(operation, |inner, cx| async move {
            let provision = inner.backend.provision();
            provision.get_volume(&id).await?;
            match provision.modify() {
                Some(modify) if !parameters.is_empty() => {
                    modify.modify_volume(&id, &parameters, &request.secrets, &cx).await?;
                }
                _ => return Ok(()), // Only keys of Kubernetes, which say nothing to change.
            }
            match &inner.in_use {
                Some(node) => node.modified(&id, &cx).await,
                None => Ok(()),
            }
        })
        .await
    }
}

impl Inner {
    /// The pool that parameter `pool` names.
    pub(super) fn pool(&self, name: &str) -> Result<PoolName> {
        let pools = self.backend.pools();
        pools.iter().find(|p| p.as_str() == name).cloned().ok_or_else(|| {
            let known: Vec<_> = pools.iter().map(PoolName::as_str).collect();
            Fault::invalid(format!("use parameter pool={}: there is no such pool", quoted(name)))
                .hint(format!("configured are {}", known.join(", ")))
        })
    }

    fn check_validation(&self, request: &ValidateVolume, volume: &Volume) -> Result<()> {
        let provision = self.backend.provision();
        let mut parameters = accept::own(&request.parameters);
        let pool = parameters.remove(POOL).filter(|pool| pool != volume.id.pool().as_str());
        if let Some(pool) = pool {
            let (id, pool) = (&volume.id, quoted(&pool));
            return Err(Fault::invalid(format!("use volume {id} with parameter pool={pool}")));
        }
        let mutable = accept::own(&request.mutable_parameters);
        if !mutable.is_empty() && provision.modify().is_none() {
            return Err(Fault::invalid("use mutable_parameters")
                .hint("this driver does not announce MODIFY_VOLUME"));
        }
        check_mutable(provision, &mutable)?;
        accept::capabilities(self.backend.facts(), &request.capabilities, &parameters)?;
        for capability in &request.capabilities {
            // Not confirmed is no fault here, but what a later call would meet.
            let kept = volume.uses.check(&volume.id, capability);
            kept.map_err(|fault| fault.with_kind(Kind::Invalid))?;
            if let AccessType::Mount(MountAccess { fs_type, .. }) = &capability.access {
                check_file_system(fs_type, volume)?;
            }
        }
        if let Some(fs) = parameters.get(accept::FS) {
            check_file_system(fs, volume)?;
        }
        // Callers add keys of their own to the context; only what contradicts ours counts.
        let differs = |(key, value): &(&String, &String)| {
            volume.context.get(*key).is_some_and(|v| v != *value)
        };
        if let Some((key, _)) = request.context.iter().find(differs) {
            return Err(Fault::invalid(format!(
                "use volume {} with another {key} in its context",
                volume.id
            )));
        }
        let encryption = accept::encryption(self.backend.facts(), &mut parameters)?;
        if encryption.is_some() && Encryption::of_context(&volume.context)? != encryption {
            return Err(Fault::invalid(format!(
                "use volume {} with that encryption: it has another, or none",
                volume.id
            )));
        }
        parameters.extend(mutable);
        provision.check_parameters(&parameters)
    }

    /// Deletes a volume that is claimed.
    async fn delete(&self, id: &VolumeId, secrets: &Secrets, cx: &Cx) -> Result<()> {
        cx.step("look whether it is in use")?;
        let users = self.users(id).await?;
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Fault::precondition(format!(
                "delete volume {id}: it is in use at {users}"
            ))
            .hint("unpublish and unstage it first"));
        }
        absent(self.backend.provision().delete_volume(id, secrets, cx).await)
    }

    /// The volume with the nodes it is attached to.
    async fn entry(&self, mut volume: Volume) -> Result<VolumeEntry> {
        if volume.topology.is_empty() {
            volume.topology.extend(self.place());
        }
        let published_nodes = match self.backend.provision().attach() {
            // A fault is passed on: "attached nowhere" would let callers detach and move it.
            Some(attach) => attach.attached_nodes(&volume.id).await?,
            None => Vec::new(),
        };
        Ok(VolumeEntry { volume, published_nodes })
    }

    async fn expand(
        self: Arc<Self>,
        id: &VolumeId,
        request: &ExpandVolume,
        cx: &Cx,
    ) -> Result<Expanded> {
        let (facts, provision) = (self.backend.facts(), self.backend.provision());
        let expand = provision.expand().ok_or_else(|| self.unsupported("expand volumes"))?;
        cx.step("look at the volume")?;
        let volume = provision.get_volume(id).await?;
        let (now, range) = (volume.capacity, request.capacity);
        if range.limit.is_some_and(|limit| now > limit) {
            return Err(Fault::out_of_range(format!(
                "shrink volume {id}: it has {now} and volumes never shrink"
            )));
        }
        if now < range.required {
            range.pick(now, facts.min_size, facts.size_step)?;
            if !facts.online_expansion {
                let users = self.users(id).await?;
                if !users.is_empty() {
                    return Err(Fault::precondition(format!(
                        "expand volume {id}: it is in use at {} and can grow only while it is not",
                        users.join(", ")
                    ))
                    .hint("stop its users first"));
                }
            }
        }
        // Also asked when it is large enough already: a crash may have left the growth half-done.
        let capacity = expand.expand_volume(id, range, &request.secrets, cx).await?;
        if capacity < range.required {
            return Err(Fault::internal(format!(
                "expand volume {id}: the backend left it at {capacity}"
            )));
        }
        Ok(Expanded { capacity, node_expansion_required: facts.node_expansion })
    }
}

/// Refuses mutable parameters that place a volume (it cannot move), and those that it has not.
pub(super) fn check_mutable(provision: &dyn Provision, parameters: &Attributes) -> Result<()> {
    if parameters.contains_key(POOL) {
        return Err(Fault::invalid("change parameter pool: a volume stays in its pool")
            .hint("set pool in parameters, not in mutable_parameters"));
    }
    provision.modify().map_or(Ok(()), |modify| modify.check_mutable(parameters))
}

/// Refuses a file system that the volume does not have.
fn check_file_system(asked: &str, volume: &Volume) -> Result<()> {
    match volume.context.get(context::FS) {
        Some(has) if asked != has && !asked.is_empty() => Err(Fault::invalid(format!(
            "use volume {} with file system {}: it has {has}",
            volume.id,
            quoted(asked)
        ))),
        _ => Ok(()),
    }
}
