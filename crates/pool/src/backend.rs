//! [`LocalBackend`]: the backend traits, implemented once for every [`Medium`].
//!
//! Everything below is blocking code that begins in one [`larder_host::blocking`] task; here is
//! where that happens and nothing else.

use crate::{
    claims::{Claims, Formatting},
    config::PoolConfig,
    entry::Entry,
    medium::Medium,
    owner::OwnerNote,
    places::Places,
    pool::Pool,
    trash::Emptier,
};
use async_trait::async_trait;
use larder_host::{Host, blocking};
use larder_model::{
    Backend, Bytes, CapacityRange, Connect, Cx, LimitsChange, PoolName, Provision, Result, Secrets,
    SnapshotId, VolumeId,
    backend::{
        Attachment, ChangedBlocks, ConnectRequest, Expand, GetCapacity, Groups, Health,
        ListVolumes, Modify, Parameter, Snapshots, Source,
    },
    trash::Trash,
    volume::{
        Attributes, Capacity, Facts, FormatState, HealthEntry, Listed, Page, PoolStatus, Snapshot,
        SnapshotSpec, StorageHealth, Volume, VolumeSpec, VolumeUsage,
    },
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A backend whose volumes lie in file-based pools. Cheap to clone.
pub struct LocalBackend<M>(Arc<Core<M>>);

/// What the modules of this crate work on.
pub(crate) struct Core<M> {
    pub(crate) medium: Arc<M>,
    pub(crate) places: Arc<Places<M>>,
    pub(crate) claims: Claims,
    pub(crate) formatting: Formatting,
    pub(crate) emptier: Mutex<Option<Emptier>>,
}

impl<M> Core<M> {
    fn emptier(&self) -> MutexGuard<'_, Option<Emptier>> {
        self.emptier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Medium> LocalBackend<M> {
    /// A backend for `pools`, not started. `note` is what others will read in the pools' locks.
    ///
    /// # Errors
    /// `Invalid`, naming the pool and the key.
    pub fn new(
        medium: M,
        host: Host,
        note: OwnerNote,
        pools: BTreeMap<PoolName, PoolConfig>,
    ) -> Result<Self> {
        let medium = Arc::new(medium);
        let places = Arc::new(Places::new(medium.clone(), host, note, pools)?);
        let (claims, formatting) = (Claims::default(), Formatting::default());
        Ok(Self(Arc::new(Core { medium, places, claims, formatting, emptier: Mutex::default() })))
    }

    /// The medium.
    pub fn medium(&self) -> &M {
        &self.0.medium
    }

    /// An open pool.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn pool(&self, name: &PoolName) -> Result<Pool> {
        self.0.places.get(name)
    }

    /// A volume as the medium sees it. Blocking.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub fn entry(&self, id: &VolumeId) -> Result<Entry> {
        self.0.find(id).map(|(_, entry)| entry)
    }

    /// The bytes that the volume's data takes on the pool's file system.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Corrupt`.
    pub async fn allocated(&self, id: &VolumeId) -> Result<Bytes> {
        let id = id.clone();
        self.run(move |core| core.allocated(&id)).await
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core<M>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = self.0.clone();
        blocking(move || work(&core)).await
    }
}

impl<M> Clone for LocalBackend<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Medium> fmt::Debug for LocalBackend<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools: Vec<_> = self.0.places.names().map(PoolName::as_str).collect();
        write!(f, "{} backend with pools {}", self.0.medium.kind(), pools.join(", "))
    }
}

#[async_trait]
impl<M: Medium> Backend for LocalBackend<M> {
    fn kind(&self) -> &'static str {
        self.0.medium.kind()
    }
    fn facts(&self) -> &Facts {
        self.0.medium.facts()
    }
    fn pools(&self) -> Vec<PoolName> {
        self.0.places.names().cloned().collect()
    }
    fn parameters(&self) -> &'static [Parameter] {
        self.0.medium.parameters()
    }
    async fn start(&self, cx: &Cx) -> Result<()> {
        self.0.places.start(cx).await?;
        *self.0.emptier() = Emptier::start(&self.0)?;
        Ok(())
    }
    async fn stop(&self) {
        let stopped = self.run(|core| {
            let emptier = core.emptier().take();
            if let Some(emptier) = emptier {
                emptier.tell();
                core.places.tell_to_stop();
                emptier.wait();
            }
            core.places.tell_to_stop();
            core.places.stop();
            Ok(())
        });
        if let Err(fault) = stopped.await {
            tracing::warn!("stop: {fault}");
        }
    }
    async fn probe(&self) -> Result<()> {
        self.run(Core::probe).await
    }
    async fn pool_status(&self) -> Vec<PoolStatus> {
        self.run(|core| Ok(core.pool_status())).await.unwrap_or_default()
    }
    async fn storage_health(&self) -> Vec<StorageHealth> {
        self.run(|core| Ok(core.storage_health())).await.unwrap_or_default()
    }
    fn trash(&self) -> Option<&dyn Trash> {
        Some(self)
    }
    fn provision(&self) -> &dyn Provision {
        self
    }
    fn connect(&self) -> &dyn Connect {
        self
    }
}

#[async_trait]
impl<M: Medium> Provision for LocalBackend<M> {
    async fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        let (spec, cx) = (spec.clone(), cx.clone());
        self.run(move |core| core.ensure_volume(&spec, &cx)).await
    }
    async fn delete_volume(&self, id: &VolumeId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| core.delete_volume(&id, &cx)).await
    }
    async fn get_volume(&self, id: &VolumeId) -> Result<Volume> {
        let id = id.clone();
        self.run(move |core| core.find(&id).map(|(_, entry)| core.describe(&entry))).await
    }
    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        self.0.medium.check_parameters(parameters)
    }
    fn list(&self) -> Option<&dyn ListVolumes> {
        Some(self)
    }
    fn capacity(&self) -> Option<&dyn GetCapacity> {
        Some(self)
    }
    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }
    fn modify(&self) -> Option<&dyn Modify> {
        self.0.medium.has_limits().then_some(self)
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
    fn groups(&self) -> Option<&dyn Groups> {
        self.0.medium.cuts_together().then_some(self)
    }
    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        self.0.medium.tracks_blocks().then_some(self)
    }
    fn health(&self) -> Option<&dyn Health> {
        Some(self)
    }
    fn clones(&self) -> bool {
        true
    }
}

#[async_trait]
impl<M: Medium> ListVolumes for LocalBackend<M> {
    async fn list_volumes(&self, page: &Page) -> Result<Listed<Volume>> {
        let page = page.clone();
        self.run(move |core| core.list_volumes(&page)).await
    }
}

#[async_trait]
impl<M: Medium> GetCapacity for LocalBackend<M> {
    async fn capacity(&self, pool: &PoolName, parameters: &Attributes) -> Result<Capacity> {
        let (pool, parameters) = (pool.clone(), parameters.clone());
        self.run(move |core| {
            core.medium.check_parameters(&parameters)?;
            core.places.get(&pool)?.capacity(&*core.medium, &parameters)
        })
        .await
    }
}

#[async_trait]
impl<M: Medium> Expand for LocalBackend<M> {
    async fn expand_volume(
        &self,
        id: &VolumeId,
        range: CapacityRange,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Bytes> {
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| core.expand_volume(&id, range, &cx)).await
    }
}

#[async_trait]
impl<M: Medium> Modify for LocalBackend<M> {
    fn check_mutable(&self, parameters: &Attributes) -> Result<()> {
        LimitsChange::parse(parameters).map(drop)
    }
    async fn modify_volume(
        &self,
        id: &VolumeId,
        parameters: &Attributes,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()> {
        let (id, parameters, cx) = (id.clone(), parameters.clone(), cx.clone());
        self.run(move |core| core.modify_volume(&id, &parameters, &cx)).await
    }
}

#[async_trait]
impl<M: Medium> Snapshots for LocalBackend<M> {
    async fn ensure_snapshot(&self, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let (spec, cx) = (spec.clone(), cx.clone());
        self.run(move |core| core.ensure_snapshot(&spec, &cx)).await
    }
    async fn delete_snapshot(&self, id: &SnapshotId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| core.delete_snapshot(&id, &cx)).await
    }
    async fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let id = id.clone();
        self.run(move |core| core.get_snapshot(&id)).await
    }
    async fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        page: &Page,
    ) -> Result<Listed<Snapshot>> {
        let (source, page) = (source.cloned(), page.clone());
        self.run(move |core| core.list_snapshots(source.as_ref(), &page)).await
    }
}

#[async_trait]
impl<M: Medium> Health for LocalBackend<M> {
    async fn volume_health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>> {
        let id = id.clone();
        self.run(move |core| core.volume_health(&id)).await
    }
    async fn volumes_health(&self, ids: &[VolumeId]) -> Vec<Result<Vec<HealthEntry>>> {
        // One trip to a thread for all: hundreds take longer than what they look at.
        let asked = ids.to_vec();
        let found = self.run(move |core| Ok(core.volumes_health(&asked))).await;
        found.unwrap_or_else(|fault| ids.iter().map(|_| Err(fault.clone())).collect())
    }
}

#[async_trait]
impl<M: Medium> Connect for LocalBackend<M> {
    async fn connect(&self, request: &ConnectRequest, cx: &Cx) -> Result<(Source, Attachment)> {
        let (request, cx) = (request.clone(), cx.clone());
        self.run(move |core| core.connect_volume(&request, &cx)).await
    }
    async fn find(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>> {
        let id = id.clone();
        self.run(move |core| core.find_connected(&id)).await
    }
    async fn disconnect(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        let (id, attachment, cx) = (id.clone(), attachment.cloned(), cx.clone());
        self.run(move |core| core.disconnect_volume(&id, attachment.as_ref(), &cx)).await
    }
    async fn is_connected(&self, id: &VolumeId, attachment: &Attachment) -> Result<bool> {
        let (id, attachment) = (id.clone(), attachment.clone());
        self.run(move |core| core.is_connected(&id, &attachment)).await
    }
    async fn format_state(&self, id: &VolumeId) -> Result<FormatState> {
        let id = id.clone();
        self.run(move |core| core.format_state(&id)).await
    }
    async fn set_format_state(&self, id: &VolumeId, state: FormatState) -> Result<()> {
        let id = id.clone();
        self.run(move |core| core.set_format_state(&id, state)).await
    }
    async fn refresh_size(&self, id: &VolumeId, attachment: &Attachment, cx: &Cx) -> Result<Bytes> {
        let (id, attachment, cx) = (id.clone(), attachment.clone(), cx.clone());
        self.run(move |core| core.refresh_size(&id, &attachment, &cx)).await
    }
    async fn node_health(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<HealthEntry>> {
        let (id, attachment) = (id.clone(), attachment.cloned());
        self.run(move |core| core.node_health(&id, attachment.as_ref())).await
    }
    async fn usage(&self, id: &VolumeId) -> Result<Option<VolumeUsage>> {
        let id = id.clone();
        self.run(move |core| {
            let (pool, entry) = core.find(&id)?;
            core.medium.usage(&pool, &entry)
        })
        .await
    }
    fn copies_share_uuid(&self) -> bool {
        self.0.medium.copies_share_uuid()
    }
}
