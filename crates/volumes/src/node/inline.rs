//! Inline volumes: made when a pod's volume is published, deleted when it is unpublished.
//!
//! Kubelet knows such a volume by `csi-<hash of pod and name>` and speaks of it only in
//! NodePublishVolume and NodeUnpublishVolume. Its own handle derives from that id, so it is found
//! again without any record:
//!
//! ```text
//!  publish:    record ─ create ─ stage (in the records' directory, out of sight) ─ bind
//!  unpublish:  unbind ─ unstage ─ delete ─ forget
//! ```
//!
//! Invariants:
//! - the record is older than the volume and younger than its deletion, so a crash at any point leaves
//!   something that the next call, or [`super::NodeEngine::recover`], follows up;
//! - a record is therefore no proof that the volume behind its id was made for the pod: what is not
//!   ephemeral, or has another name, is neither unstaged nor deleted.

use super::{
    PublishRequest, StageRequest, UnpublishRequest,
    executor::Executor,
    record::{Inline, Terms},
};
use crate::control::{ControlEngine, CreateVolume};
use async_trait::async_trait;
use larder_host::paths::TargetPath;
use larder_model::{
    CapacityRange, Cx, Fault, Kind, Native, PoolName, RequestedName, Result, Secrets,
    VolumeCapability, VolumeId,
    params::RESERVED,
    volume::{Attributes, Volume},
};
use std::{fs, io, os::unix::fs::DirBuilderExt, sync::Arc};

/// Says that a volume is an inline one (kubelet, with CSIDriver.spec.podInfoOnMount).
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Volume attributes of an inline volume that are no parameters.
const SIZE: &str = "size";
const POOL: &str = "pool";

/// A volume to be made for one pod.
#[derive(Debug, Clone)]
pub struct InlineVolume {
    /// Its name; repeated calls have the same.
    pub name: String,
    /// How large.
    pub capacity: CapacityRange,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// As of a StorageClass, `pool` included.
    pub parameters: Attributes,
    /// Credentials.
    pub secrets: Secrets,
}

/// Makes and deletes inline volumes.
#[async_trait]
pub trait InlineVolumes: Send + Sync {
    /// Makes it, or returns the one that was made.
    ///
    /// # Errors
    /// Those of [`larder_model::Provision::ensure_volume`].
    async fn create(&self, volume: InlineVolume) -> Result<Volume>;

    /// Deletes it; an absent one is a success. A volume that has its id and is another one
    /// (persistent, or made under another name) is left alone, and that is a success too.
    ///
    /// # Errors
    /// Those of [`larder_model::Provision::delete_volume`].
    async fn delete(&self, id: &VolumeId, name: &str) -> Result<()>;
}

#[async_trait]
impl InlineVolumes for ControlEngine {
    async fn create(&self, volume: InlineVolume) -> Result<Volume> {
        self.create_volume(CreateVolume {
            name: volume.name,
            capacity: volume.capacity,
            capabilities: vec![volume.capability],
            parameters: volume.parameters,
            mutable_parameters: Attributes::new(),
            source: None,
            topology: None,
            secrets: volume.secrets,
            ephemeral: true,
        })
        .await
    }
    async fn delete(&self, id: &VolumeId, name: &str) -> Result<()> {
        self.delete_inline_volume(id, name).await
    }
}

/// Whether a publish is one of an inline volume.
pub(super) fn is_inline(context: &Attributes) -> bool {
    context.get(EPHEMERAL).is_some_and(|text| text == "true")
}

/// Whether `volume` was made for the pod that knows it as `name`. Its id is no proof: it derives from
/// `name`, and a persistent volume may have had it before.
pub(crate) fn is_made_for(volume: &Volume, name: &str) -> bool {
    volume.ephemeral && volume.name == name
}

/// The native name that a caller's id leads to.
///
/// # Errors
/// `Invalid` for an empty, oversized or unprintable id.
pub(super) fn native(volume: &str) -> Result<Native> {
    Ok(volume.parse::<RequestedName>()?.native())
}

impl Executor {
    /// See [`super::NodeEngine::publish`].
    pub(super) async fn publish_inline(
        self: &Arc<Self>,
        request: PublishRequest,
        target: TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        let maker =
            self.inline.get().filter(|_| self.backend.facts().ephemeral).ok_or_else(|| {
                Fault::precondition("make an inline volume: this kind of volume cannot be one")
                    .hint("use a generic ephemeral volume (volumeClaimTemplate)")
            })?;
        if request.capability.is_block() {
            return Err(Fault::invalid("make an inline volume as a raw block device")
                .hint("inline volumes are mounted; use a generic ephemeral volume"));
        }
        let (id, wanted) = self.inline_volume(&request)?;
        let mut record = {
            let volume = request.volume.clone();
            self.blocking(move |this| {
                Ok(this.store.load(&volume)?.unwrap_or_else(|| this.store.blank(&volume)))
            })
            .await?
        };
        let inline = Inline::new(&id);
        match &record.inline {
            Some(there) if *there != inline => {
                return Err(Fault::conflict("make an inline volume: it exists in another pool"));
            }
            Some(_) => {}
            None => {
                cx.step("record the inline volume")?;
                record.inline = Some(inline);
                self.save(&record).await?;
            }
        }
        let published = self.publish_made(&id, maker.as_ref(), wanted, request, &target, cx).await;
        match published {
            Err(fault) if !fault.is_simulated_crash() && record.publications.is_empty() => {
                // Nobody has ever seen it: nothing of it stays.
                let volume = record.volume.clone();
                Err(match self.unpublish(&volume, &target, cx).await {
                    Ok(()) => fault,
                    Err(second) => fault.during(format!("(and could not take it back: {second})")),
                })
            }
            done => done,
        }
    }

    async fn publish_made(
        self: &Arc<Self>,
        id: &VolumeId,
        maker: &dyn InlineVolumes,
        wanted: InlineVolume,
        request: PublishRequest,
        target: &TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        cx.step("create the inline volume")?;
        let made = maker.create(wanted).await?;
        if made.id != *id {
            return Err(Fault::internal(format!("make inline volume {id}: {} was made", made.id)));
        }
        cx.step("make the private staging path")?;
        let staging = self.private_staging(&request.volume).await?;
        let stage = StageRequest {
            volume: request.volume.clone(),
            staging_path: staging.as_path().to_owned(),
            capability: request.capability.clone(),
            context: made.context.clone(),
            publish_context: Attributes::new(),
            secrets: request.secrets.clone(),
        };
        let terms = Terms::new(&stage.capability, &stage.context);
        self.stage(id, stage, &staging, &terms, cx).await?;
        let publish = PublishRequest { context: made.context, ..request };
        self.publish(id, publish, &staging, target, cx).await
    }

    /// What the attributes of an inline volume ask for.
    fn inline_volume(&self, request: &PublishRequest) -> Result<(VolumeId, InlineVolume)> {
        let own = request.context.iter().filter(|(key, _)| !key.starts_with(RESERVED));
        let mut parameters: Attributes = own.map(|(k, v)| (k.clone(), v.clone())).collect();
        let required = match parameters.remove(SIZE) {
            Some(size) => size
                .parse()
                .map_err(|fault: Fault| fault.during(format!("use volume attribute {SIZE}")))?,
            None => larder_model::Bytes::ZERO,
        };
        let pool = match parameters.get(POOL) {
            Some(pool) => pool.parse::<PoolName>()?,
            None => self.backend.default_pool()?,
        };
        let wanted = InlineVolume {
            name: request.volume.clone(),
            capacity: CapacityRange { required, limit: None },
            capability: request.capability.clone(),
            parameters,
            secrets: request.secrets.clone(),
        };
        Ok((VolumeId::new(pool, native(&request.volume)?), wanted))
    }

    async fn private_staging(self: &Arc<Self>, volume: &str) -> Result<TargetPath> {
        let path = self.store.private_staging(volume);
        self.blocking(move |_| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| Fault::io(format!("make {}", path.display()), e))?;
            let text = path.to_str().ok_or_else(|| {
                Fault::precondition("keep records in a directory whose name is not UTF-8")
            })?;
            TargetPath::parse(text, "state directory")
        })
        .await
    }

    /// Ends the inline volume behind a caller's id once it is published nowhere. Of any other volume
    /// nothing happens.
    ///
    /// # Errors
    /// Those of unstaging and deleting; the record then stays.
    pub(super) async fn end_inline(self: &Arc<Self>, volume: &str, cx: &Cx) -> Result<()> {
        let Some(id) = self.inline_behind(volume).await? else { return Ok(()) };
        let Some(maker) = self.inline.get() else {
            return Err(Fault::unavailable("delete an inline volume: nobody here can")
                .hint("run the control engine in this process"));
        };
        let published = {
            let volume = volume.to_owned();
            self.blocking(move |this| {
                let record = this.store.load(&volume)?;
                Ok(record.is_some_and(|record| !record.publications.is_empty()))
            })
            .await?
        };
        if published {
            return Ok(());
        }
        if !self.is_somebody_elses(&id, volume).await? {
            self.end_made(&id, volume, maker.as_ref(), cx).await?;
        }
        cx.step("forget the inline volume")?;
        let volume = volume.to_owned();
        self.blocking(move |this| this.store.forget(&volume)).await
    }

    /// Whether the volume with an inline volume's id is none: the pod asked for an id that is taken,
    /// and only the record of its attempt is to go.
    async fn is_somebody_elses(&self, id: &VolumeId, volume: &str) -> Result<bool> {
        match self.backend.provision().get_volume(id).await {
            Ok(found) => Ok(!is_made_for(&found, volume)),
            Err(fault) if fault.kind() == Kind::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Unstages and deletes what was made.
    async fn end_made(
        self: &Arc<Self>,
        id: &VolumeId,
        volume: &str,
        maker: &dyn InlineVolumes,
        cx: &Cx,
    ) -> Result<()> {
        let staging = self.private_staging(volume).await?;
        self.unstage(id, volume, &staging, cx).await?;
        cx.step("remove the private staging path")?;
        self.blocking(move |_| match fs::remove_dir(staging.as_path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Fault::io(format!("remove {staging}"), e))
            }
            _ => Ok(()),
        })
        .await?;
        cx.step("delete the inline volume")?;
        maker.delete(id, volume).await
    }

    /// The inline volume behind a caller's id: by its record, or where that was wiped by its name.
    ///
    /// # Errors
    /// `Unavailable` while a pool that may hold it cannot be read.
    pub(super) async fn inline_behind(self: &Arc<Self>, volume: &str) -> Result<Option<VolumeId>> {
        let record = {
            let volume = volume.to_owned();
            self.blocking(move |this| this.store.load(&volume)).await?
        };
        if let Some(record) = record {
            return record.inline.map(|inline| inline.id()).transpose();
        }
        if !self.backend.facts().ephemeral || self.inline.get().is_none() {
            return Ok(None);
        }
        match self.parse(volume) {
            Err(fault) if fault.kind() == Kind::NotFound => {}
            _ => return Ok(None), // It has a handle of its own.
        }
        let native = native(volume)?;
        for pool in self.backend.pools() {
            let id = VolumeId::new(pool, native.clone());
            match self.backend.provision().get_volume(&id).await {
                Ok(found) if is_made_for(&found, volume) => return Ok(Some(id)),
                Ok(_) => {}
                Err(fault) if fault.kind() == Kind::NotFound => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }

    /// Unpublishes an inline volume wherever it still is, and ends it.
    ///
    /// # Errors
    /// As [`super::NodeEngine::unpublish`].
    pub(super) async fn clear_inline(
        self: &Arc<Self>,
        request: UnpublishRequest,
        cx: &Cx,
    ) -> Result<()> {
        let target = super::parse_path(&request.target_path, "target_path")?;
        self.unpublish(&request.volume, &target, cx).await
    }
}
