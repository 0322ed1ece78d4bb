//! The traits: every method is one trip to a thread, and a visit to the export where it needs one.

use crate::{
    STATIC, Settings, deletion,
    export::Export,
    parameters::{PARAMETERS, VolumeParameters},
    place::Location,
    record::{self, Record, State},
    snapshots, status,
    volumes::{self, DEFAULT_SIZE, STEP},
};
use async_trait::async_trait;
use larder_host::{Host, blocking, remote::Thing};
use larder_model::{
    AccessMode, Backend, Bytes, CapacityRange, Connect, Cx, Fault, Kind, Limits, Native, PoolName,
    Provision, RequestedName, Result, Secrets, SnapshotId, Uses, VolumeId,
    backend::{
        Attachment, ConnectRequest, Expand, GetCapacity, Health, ListVolumes, Parameter, Snapshots,
        Source,
    },
    id::{Handle, quoted},
    volume::{
        Attributes, Capacity, ContentSource, Facts, FormatState, HealthEntry, HealthStatus, Listed,
        Page, PoolStatus, Scope, Snapshot, SnapshotSpec, StorageHealth, Volume, VolumeSpec,
    },
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// A server that is away for a moment must not give a workload an I/O error that it takes for good.
const HARD: &str = "hard";

/// The `nfs` backend.
pub(crate) struct Nfs {
    core: Arc<Core>,
    facts: Facts,
}

struct Core {
    exports: BTreeMap<PoolName, Export>,
}

impl fmt::Debug for Nfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools: Vec<_> = self.core.exports.keys().map(PoolName::as_str).collect();
        write!(f, "nfs backend with pools {}", pools.join(", "))
    }
}

impl Nfs {
    pub(crate) fn new(settings: Settings, host: &Host) -> Self {
        let export =
            |(name, config): (PoolName, _)| (name.clone(), Export::new(name, config, host));
        let core = Core { exports: settings.exports.into_iter().map(export).collect() };
        let facts = Facts {
            scope: Scope::Everywhere,
            access_modes: AccessMode::ALL.to_vec(),
            block: false,
            mount: true,
            file_systems: Vec::new(),
            default_size: DEFAULT_SIZE,
            min_size: STEP,
            size_step: STEP,
            attach_required: false,
            // Kubelet's default would give a directory to the pod's fsGroup only where a claim names a
            // file system, which claims of directories do not.
            fs_group_policy: "File",
            // Whole trees would be walked on a server that may go meanwhile.
            mount_group: false,
            online_expansion: true,
            node_expansion: false,
            ephemeral: false,
            snapshot_topology: false,
            max_volumes_per_node: None,
        };
        Self { core: Arc::new(core), facts }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = self.core.clone();
        blocking(move || work(&core)).await
    }
}

impl Core {
    fn export(&self, id: &VolumeId) -> Result<&Export> {
        if id.pool().as_str() == STATIC {
            return Err(Fault::not_found(format!("find volume {id}")).hint(
                "no volume was made under this id; one that is on a server already is named by its \
                 attributes server and share",
            ));
        }
        self.pool(id.pool())
    }

    fn pool(&self, name: &PoolName) -> Result<&Export> {
        // A mistake in a configuration must not make a cluster forget its volumes.
        self.exports.get(name).ok_or_else(|| {
            Fault::unavailable(format!("find pool {name}: it is not configured"))
                .hint("compare drivers[].exports in the configuration")
        })
    }

    /// In the order of their volumes' ids, which lists go on after: `nas-2/…` comes before `nas/…`.
    fn by_id(&self) -> Vec<(&PoolName, &Export)> {
        let mut all: Vec<_> = self.exports.iter().collect();
        all.sort_by_key(|(name, _)| format!("{name}/"));
        all
    }

    fn get(&self, id: &VolumeId) -> Result<Volume> {
        let export = self.export(id)?;
        let visit = export.visit()?;
        let record = volumes::find(export, &visit, id.native())?;
        Ok(describe(export, id.clone(), record))
    }

    fn list(&self, page: &Page) -> Result<Listed<Volume>> {
        let after = page.after.as_deref().unwrap_or_default();
        let mut items = Vec::new();
        for (name, export) in self.by_id() {
            let visit = export.visit()?;
            let mut ids: Vec<VolumeId> = visit
                .names(&record::folder())?
                .iter()
                .filter_map(|file| file.strip_suffix(".json")?.parse::<Native>().ok())
                .map(|native| VolumeId::new(name.clone(), native))
                .filter(|id| id.as_str() > after)
                .collect();
            ids.sort();
            for id in ids {
                let found = volumes::read(&visit, id.native())?;
                let Some(record) = found.filter(|r| r.state == State::Ready) else { continue };
                if page.max.is_some_and(|max| items.len() >= max) {
                    return Ok(Listed { items, more: true });
                }
                items.push(describe(export, id, record));
            }
            export.confirm(&visit)?;
        }
        Ok(Listed { items, more: false })
    }

    fn list_snapshots(&self, source: Option<&VolumeId>, page: &Page) -> Result<Listed<Snapshot>> {
        let after = page.after.as_deref().unwrap_or_default();
        let mut items = Vec::new();
        for (pool, export) in self.by_id() {
            if source.is_some_and(|source| source.pool() != pool) {
                continue;
            }
            let visit = export.visit()?;
            let mut ids: Vec<SnapshotId> = snapshots::names(&visit)?
                .into_iter()
                .map(|native| SnapshotId::new(pool.clone(), native))
                .filter(|id| id.as_str() > after)
                .collect();
            ids.sort();
            for id in ids {
                let found = snapshots::read(&visit, id.native())?;
                let Some(record) = found.filter(|r| {
                    r.state == State::Ready
                        && source.is_none_or(|source| *source.native() == r.source)
                }) else {
                    continue;
                };
                if page.max.is_some_and(|max| items.len() >= max) {
                    return Ok(Listed { items, more: true });
                }
                items.push(snapshots::describe(pool, id.native().clone(), record));
            }
            export.confirm(&visit)?;
        }
        Ok(Listed { items, more: false })
    }

    fn health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>> {
        let export = self.export(id)?;
        let entry = |status, reason, message| Ok(vec![HealthEntry { status, reason, message }]);
        let look = || -> Result<_> {
            let visit = export.visit()?;
            let record = volumes::find(export, &visit, id.native())?;
            let found = visit.look(record.sub_dir.as_str())?;
            Ok((record, found))
        };
        match look() {
            Ok((_, Some(Thing::Directory))) => Ok(Vec::new()),
            Ok((record, _)) => entry(
                HealthStatus::DataLoss,
                "DirectoryMissing",
                format!(
                    "its directory {} is gone from {}; restore it on the server",
                    record.sub_dir,
                    export.source()
                ),
            ),
            Err(fault) if fault.kind() == Kind::Unavailable => {
                entry(HealthStatus::Inaccessible, "ServerUnreachable", fault.to_string())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Where the volume is: as its attributes say, or as its record does.
    fn locate(&self, id: &VolumeId, context: &Attributes) -> Result<Location> {
        if let Some(location) = Location::of(context)? {
            return Ok(location);
        }
        let export = self.export(id)?;
        let visit = export.visit()?;
        let record = volumes::find(export, &visit, id.native())?;
        let (server, share) = (export.config.server.clone(), export.config.share.clone());
        Ok(Location { server, share, sub_dir: Some(record.sub_dir) })
    }

    fn source(&self, id: &VolumeId, context: &Attributes) -> Result<(Source, Attachment)> {
        let location = self.locate(id, context)?;
        let mut options = vec![HARD.to_owned()];
        // The kernel takes the last of two that exclude each other, so the last of two equal ones stands.
        let mut add = |option: &str| {
            options.retain(|there| there != option);
            options.push(option.to_owned());
        };
        if let Some(export) = self.exports.get(id.pool()) {
            export.config.mount_options.iter().for_each(|option| add(option));
        }
        if let Some(given) = context.get("mountOptions") {
            if given.chars().any(char::is_control) {
                return Err(Fault::invalid(format!(
                    "use attribute mountOptions={}",
                    quoted(given)
                ))
                .hint("write options with commas between, in one line"));
            }
            given.split(',').map(str::trim).filter(|o| !o.is_empty()).for_each(add);
        }
        let source = location.source();
        let attachment = [("source".to_owned(), source.clone())].into();
        Ok((Source::FileSystem { fs_type: "nfs".to_owned(), source, options }, attachment))
    }
}

fn describe(export: &Export, id: VolumeId, record: Record) -> Volume {
    let context = [
        ("server", export.config.server.to_string()),
        ("share", export.config.share.to_string()),
        ("subDir", record.sub_dir.to_string()),
    ];
    Volume {
        name: record.name,
        capacity: record.size,
        context: context.map(|(key, value)| (key.to_owned(), value)).into(),
        created: record.created,
        source: record.source.map(|source| copied_from(id.pool(), source)),
        ..blank(id)
    }
}

fn copied_from(pool: &PoolName, source: record::Source) -> ContentSource {
    match source {
        record::Source::Snapshot(native) => {
            ContentSource::Snapshot(SnapshotId::new(pool.clone(), native))
        }
        record::Source::Volume(native) => {
            ContentSource::Volume(VolumeId::new(pool.clone(), native))
        }
    }
}

/// What is the same for all volumes.
fn blank(id: VolumeId) -> Volume {
    Volume {
        name: id.native().to_string(),
        id,
        capacity: Bytes::ZERO,
        context: Attributes::new(),
        source: None,
        topology: Vec::new(),
        created: jiff::Timestamp::UNIX_EPOCH,
        is_static: false,
        ephemeral: false,
        uses: Uses { mount: true, block: false },
        limits: Limits::NONE,
    }
}

#[async_trait]
impl Backend for Nfs {
    fn kind(&self) -> &'static str {
        "nfs"
    }
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn pools(&self) -> Vec<PoolName> {
        self.core.exports.keys().cloned().collect()
    }
    fn has_pool(&self, pool: &PoolName) -> bool {
        pool.as_str() == STATIC || self.core.exports.contains_key(pool)
    }
    /// Ours, or any text that an administrator chose for a volume whose attributes name its place. It is
    /// never used as a path.
    fn parse_handle(&self, text: &str) -> Result<Handle> {
        if let Ok(handle) = text.parse::<Handle>() {
            return Ok(handle);
        }
        let unknown = || Fault::not_found(format!("find {}: it cannot be an id", quoted(text)));
        let name: RequestedName = text.parse().map_err(|_| unknown())?;
        Ok(Handle::foreign(text.to_owned(), STATIC.parse()?, name.native()))
    }
    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }
    /// Asks no server: a dead one keeps no driver from starting.
    async fn start(&self, _cx: &Cx) -> Result<()> {
        Ok(())
    }
    async fn stop(&self) {}
    async fn pool_status(&self) -> Vec<PoolStatus> {
        // All at once: a dead one keeps nobody else waiting.
        self.run(|core| {
            Ok(std::thread::scope(|scope| {
                let ask = |export| scope.spawn(move || status::of(export));
                let asked: Vec<_> = core.exports.values().map(ask).collect();
                asked.into_iter().filter_map(|status| status.join().ok()).collect()
            }))
        })
        .await
        .unwrap_or_default()
    }
    async fn storage_health(&self) -> Vec<StorageHealth> {
        let silent = self.core.exports.values().filter_map(|export| {
            let fault = export.is_silent()?;
            let message = fault.during(format!("use pool {}", export.name)).to_string();
            Some(StorageHealth { unreachable: true, reason: "ServerUnreachable", message })
        });
        silent.collect()
    }
    fn provision(&self) -> &dyn Provision {
        self
    }
    fn connect(&self) -> &dyn Connect {
        self
    }
}

#[async_trait]
impl Provision for Nfs {
    async fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        let (spec, cx) = (spec.clone(), cx.clone());
        self.run(move |core| {
            let export = core.export(&spec.id)?;
            let during = |fault: Fault| fault.during(format!("create volume {}", spec.id));
            let record = volumes::ensure(export, &spec, &cx).map_err(|f| match f.kind() {
                Kind::Conflict => f,
                _ => during(volumes::not_absent(f)),
            })?;
            Ok(describe(export, spec.id, record))
        })
        .await
    }
    async fn delete_volume(&self, id: &VolumeId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        if id.pool().as_str() == STATIC {
            // Nothing of ours; what is on the server was put there by others.
            return Ok(());
        }
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| {
            let deleted = deletion::delete(core.export(&id)?, id.native(), &cx);
            deleted
                .map_err(|fault| volumes::not_absent(fault).during(format!("delete volume {id}")))
        })
        .await
    }
    async fn get_volume(&self, id: &VolumeId) -> Result<Volume> {
        let id = id.clone();
        self.run(move |core| core.get(&id)).await
    }
    async fn describe_volume(&self, id: &VolumeId, context: &Attributes) -> Result<Volume> {
        match Location::of(context)? {
            // Mounting it asks the server anyway.
            Some(_) => Ok(Volume {
                context: context.clone(),
                is_static: !self.core.exports.contains_key(id.pool()),
                ..blank(id.clone())
            }),
            None => self.get_volume(id).await,
        }
    }
    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        VolumeParameters::read(parameters).map(drop)
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
    fn health(&self) -> Option<&dyn Health> {
        Some(self)
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
    fn clones(&self) -> bool {
        true
    }
}

#[async_trait]
impl Snapshots for Nfs {
    async fn ensure_snapshot(&self, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let (spec, cx) = (spec.clone(), cx.clone());
        self.run(move |core| {
            let (pool, native) = (spec.id.pool(), spec.id.native());
            let record = snapshots::ensure(core.export(&spec.source)?, &spec, &cx)
                .map_err(|fault| fault.during(format!("create snapshot {}", spec.id)))?;
            Ok(snapshots::describe(pool, native.clone(), record))
        })
        .await
    }
    async fn delete_snapshot(&self, id: &SnapshotId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        if id.pool().as_str() == STATIC {
            // Text that no snapshot of ours has.
            return Ok(());
        }
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| {
            let deleted = snapshots::delete(core.pool(id.pool())?, id.native(), &cx);
            deleted
                .map_err(|fault| volumes::not_absent(fault).during(format!("delete snapshot {id}")))
        })
        .await
    }
    async fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let id = id.clone();
        self.run(move |core| {
            if id.pool().as_str() == STATIC {
                return Err(Fault::not_found(format!("find snapshot {id}")));
            }
            let export = core.pool(id.pool())?;
            let record = snapshots::find(export, &export.visit()?, id.native())?;
            Ok(snapshots::describe(id.pool(), id.native().clone(), record))
        })
        .await
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
impl ListVolumes for Nfs {
    async fn list_volumes(&self, page: &Page) -> Result<Listed<Volume>> {
        let page = page.clone();
        self.run(move |core| core.list(&page)).await
    }
}

#[async_trait]
impl GetCapacity for Nfs {
    async fn capacity(&self, pool: &PoolName, parameters: &Attributes) -> Result<Capacity> {
        VolumeParameters::read(parameters)?;
        let pool = pool.clone();
        self.run(move |core| {
            let usage = core.pool(&pool)?.usage()?;
            Ok(Capacity { available: usage.available, ..Capacity::default() })
        })
        .await
    }
}

#[async_trait]
impl Expand for Nfs {
    async fn expand_volume(
        &self,
        id: &VolumeId,
        range: CapacityRange,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Bytes> {
        let (id, cx) = (id.clone(), cx.clone());
        self.run(move |core| volumes::expand(core.export(&id)?, id.native(), range, &cx)).await
    }
}

#[async_trait]
impl Health for Nfs {
    async fn volume_health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>> {
        let id = id.clone();
        self.run(move |core| core.health(&id)).await
    }
}

#[async_trait]
impl Connect for Nfs {
    async fn connect(&self, request: &ConnectRequest, _cx: &Cx) -> Result<(Source, Attachment)> {
        let request = request.clone();
        self.run(move |core| core.source(&request.id, &request.context)).await
    }
    fn mounted_as(&self, _id: &VolumeId) -> &'static [&'static str] {
        &["nfs", "nfs4"]
    }
    async fn find(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>> {
        if id.pool().as_str() == STATIC {
            return Ok(None);
        }
        let id = id.clone();
        self.run(move |core| core.source(&id, &Attributes::new()).map(Some)).await
    }
    async fn disconnect(
        &self,
        _id: &VolumeId,
        _attachment: Option<&Attachment>,
        _cx: &Cx,
    ) -> Result<()> {
        Ok(())
    }
    async fn is_connected(&self, _id: &VolumeId, _attachment: &Attachment) -> Result<bool> {
        Ok(true)
    }
    async fn format_state(&self, id: &VolumeId) -> Result<FormatState> {
        Err(Fault::internal(format!("tell the format of {id}: it has no device")))
    }
    async fn set_format_state(&self, id: &VolumeId, _state: FormatState) -> Result<()> {
        Err(Fault::internal(format!("note the format of {id}: it has no device")))
    }
    async fn refresh_size(
        &self,
        id: &VolumeId,
        _attachment: &Attachment,
        _cx: &Cx,
    ) -> Result<Bytes> {
        let id = id.clone();
        self.run(move |core| core.get(&id).map(|volume| volume.capacity)).await
    }
    async fn node_health(
        &self,
        _id: &VolumeId,
        _attachment: Option<&Attachment>,
    ) -> Result<Vec<HealthEntry>> {
        // What its mounts tell is all that there is to see.
        Ok(Vec::new())
    }
}
