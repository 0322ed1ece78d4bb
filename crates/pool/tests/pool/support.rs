//! A medium for tests: a volume is a directory with one file, and a *ticket* outside of the pool
//! that stands for what media keep elsewhere (quota ids, devices). A ticket without its volume is a
//! leak, and so is a volume without its ticket.

use larder_host::{BindRequest, HelperProgram, Host, MountRequest, Unmount};
use larder_model::{
    AccessMode, AccessType, Backend, Bytes, CapacityRange, Cx, Fault, MountAccess, Params,
    PoolName, Provision, Result, Secrets, SnapshotId, VolumeCapability, VolumeId,
    backend::{Attachment, ConnectRequest, FoundExtents, Parameter, Source},
    cx::crash::CrashAt,
    volume::{
        Attributes, Capacity, ContentSource, Extent, Facts, FormatState, HealthEntry, Page, Scope,
        Snapshot, SnapshotSpec, Volume, VolumeSpec,
    },
};
use larder_pool::{
    Blocks, Entry, LocalBackend, Medium, Origin, OwnerNote, Part, Plan, PlanRequest, Pool,
    PoolConfig, PoolTraits, SnapshotEntry, SnapshotFacts, StaticFacts,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// What a test changes about the medium while it runs.
#[derive(Default)]
pub struct Knobs {
    /// `in_use` says this.
    pub user: Option<String>,
    /// Runs in the middle of `fill` and `cut`.
    pub while_copying: Option<Box<dyn FnMut() + Send>>,
    /// Bytes to write into each new volume, to fill disks.
    pub weight: usize,
    /// A volume is an empty directory and nothing else, as cheap as can be.
    pub bare: bool,
    /// `remove` fails this often.
    pub failing_removals: u32,
    /// What a plan takes at once.
    pub allocates: Bytes,
    /// Calls of `inspect`.
    pub inspected: u32,
}

#[derive(Clone)]
pub struct FakeMedium {
    facts: Arc<Facts>,
    tickets: PathBuf,
    pub knobs: Arc<Mutex<Knobs>>,
}

impl FakeMedium {
    pub fn new(tickets: &Path) -> Self {
        let facts = Facts {
            scope: Scope::Node("n1".parse().unwrap()),
            access_modes: AccessMode::SINGLE_NODE.to_vec(),
            block: true,
            mount: true,
            file_systems: Vec::new(),
            default_size: Bytes::gib(1),
            min_size: Bytes::mib(1),
            size_step: Bytes::new(4096),
            attach_required: false,
            fs_group_policy: "File",
            mount_group: true,
            online_expansion: true,
            node_expansion: false,
            ephemeral: true,
            snapshot_topology: false,
            max_volumes_per_node: None,
        };
        Self { facts: Arc::new(facts), tickets: tickets.to_owned(), knobs: Arc::default() }
    }

    fn knobs(&self) -> std::sync::MutexGuard<'_, Knobs> {
        self.knobs.lock().unwrap()
    }

    fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Fault {
        let what = format!("{what} {}", path.display());
        move |e| Fault::io(what, e)
    }

    fn write(path: &Path, text: &[u8]) -> Result<()> {
        fs::write(path, text).map_err(Self::io("write", path))?;
        fs::File::open(path).and_then(|f| f.sync_all()).map_err(Self::io("sync", path))
    }

    /// The ticket is named in the folder before it is taken, so that it can always be given back.
    fn make(&self, folder: &Path, content: &[u8], cx: &Cx) -> Result<()> {
        let data = folder.join("data");
        fs::create_dir(&data).map_err(Self::io("make", &data))?;
        if self.knobs().bare {
            return Ok(());
        }
        let name = uuid::Uuid::new_v4().to_string();
        Self::write(&data.join("ticket"), name.as_bytes())?;
        cx.step("take a ticket")?;
        fs::write(self.tickets.join(&name), "").map_err(Self::io("take", &self.tickets))?;
        cx.step("write the content")?;
        Self::write(&data.join("content"), content)?;
        let weight = self.knobs().weight;
        if weight > 0 {
            Self::write(&data.join("weight"), &vec![1; weight])?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, folder: &Path, cx: &Cx) -> Result<()> {
        let content = from.join("content");
        let text = fs::read(&content).map_err(Self::io("read", &content))?;
        self.make(folder, &text, cx)?;
        let hook = self.knobs().while_copying.take();
        if let Some(mut hook) = hook {
            hook();
        }
        Ok(())
    }
}

impl Medium for FakeMedium {
    fn kind(&self) -> &'static str {
        "fake"
    }
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter { name: "colour", what: "Means nothing.", default: "none" }]
    }
    fn data_name(&self) -> &'static str {
        "data"
    }
    fn inspect(&self, _name: &PoolName, _config: &PoolConfig) -> Result<PoolTraits> {
        self.knobs().inspected += 1;
        Ok(PoolTraits::new("fake storage", 7_u32))
    }
    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        let mut params = Params::new(parameters);
        params.take("colour");
        params.finish()
    }
    fn plan(&self, _pool: &Pool, request: &PlanRequest<'_>) -> Result<Plan> {
        self.check_parameters(&request.spec.parameters)?;
        Ok(Plan {
            size: request.size(Bytes::gib(1), Bytes::mib(1), Bytes::new(4096))?,
            context: Attributes::from([("made".to_owned(), "here".to_owned())]),
            medium: serde_json::json!({ "copied": request.origin.is_some() }),
            file_system: Some(FormatState::Unformatted),
            allocates: self.knobs().allocates,
        })
    }
    fn create(&self, _pool: &Pool, folder: &Path, _plan: &Plan, cx: &Cx) -> Result<()> {
        self.make(folder, b"new", cx)
    }
    fn fill(&self, _: &Pool, origin: &Origin, folder: &Path, _: &Plan, cx: &Cx) -> Result<()> {
        self.copy(origin.data(), folder, cx)
    }
    fn cut(&self, _: &Pool, volume: &Entry, folder: &Path, cx: &Cx) -> Result<SnapshotFacts> {
        self.copy(&volume.data, folder, cx)?;
        Ok(SnapshotFacts { size: volume.record.size, medium: serde_json::Value::Null })
    }
    fn cuts_together(&self) -> bool {
        true
    }
    fn cut_together(&self, _: &Pool, parts: &[Part<'_>], cx: &Cx) -> Result<Vec<SnapshotFacts>> {
        let cut = parts.iter().map(|Part { volume, folder }| {
            self.copy(&volume.data, folder, cx)?;
            Ok(SnapshotFacts { size: volume.record.size, medium: serde_json::Value::Null })
        });
        cut.collect()
    }
    fn tracks_blocks(&self) -> bool {
        true
    }
    fn blocks(
        &self,
        _: &Pool,
        base: Option<&SnapshotEntry>,
        target: &SnapshotEntry,
        wanted: Blocks,
    ) -> Result<FoundExtents> {
        let hook = self.knobs().while_copying.take();
        if let Some(mut hook) = hook {
            hook();
        }
        let read = |entry: &SnapshotEntry| fs::read(entry.data.join("content"));
        let (now, before) = (read(target), base.map(read).transpose());
        let what = || Self::io("read", &target.data);
        let (now, before) = (now.map_err(what())?, before.map_err(what())?.unwrap_or_default());
        let differs = |n: &usize| before.get(*n) != now.get(*n) && *n as u64 >= wanted.offset;
        let extents = (0..now.len()).filter(differs).take(wanted.max);
        let extents: Vec<_> = extents.map(|n| Extent { offset: n as u64, length: 1 }).collect();
        let next = match extents.last() {
            Some(last) if extents.len() == wanted.max => last.offset + 1,
            _ => target.record.size.get(),
        };
        Ok(FoundExtents { extents, size: target.record.size, next })
    }
    fn grow(&self, _: &Pool, volume: &Entry, size: Bytes, cx: &Cx) -> Result<()> {
        Self::write(&volume.data.join("grown"), size.to_string().as_bytes())?;
        cx.step("after the growth")
    }
    fn in_use(&self, _: &Pool, _: &Entry) -> Result<Option<String>> {
        Ok(self.knobs().user.clone())
    }
    fn remove(&self, _pool: &Pool, folder: &Path, cx: &Cx) -> Result<()> {
        {
            let mut knobs = self.knobs();
            if knobs.failing_removals > 0 {
                knobs.failing_removals -= 1;
                return Err(Fault::internal("remove for now"));
            }
        }
        let name = fs::read_to_string(folder.join("data/ticket")).unwrap_or_default();
        if name.is_empty() {
            return Ok(()); // cut before a ticket was taken
        }
        cx.step("give the ticket back")?;
        let ticket = self.tickets.join(name);
        match fs::remove_file(&ticket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Fault::io("give back", e)),
            _ => cx.step("remove the folder"),
        }
    }
    fn look(&self, _pool: &Pool, data: &Path) -> Result<StaticFacts> {
        if !data.is_dir() {
            return Err(Fault::precondition(format!("use {}", data.display())));
        }
        Ok(StaticFacts {
            size: Bytes::mib(5),
            context: Attributes::new(),
            medium: serde_json::Value::Null,
            file_system: Some(FormatState::Foreign),
        })
    }
    fn allocated(&self, _pool: &Pool, data: &Path) -> Result<Bytes> {
        let content = data.join("content");
        let meta = fs::metadata(&content).map_err(Self::io("look at", &content))?;
        let weight = fs::metadata(data.join("weight")).map_or(0, |meta| meta.len());
        Ok(Bytes::new(meta.len() + weight))
    }
    fn max_size(&self, _pool: &Pool) -> Option<Bytes> {
        Some(Bytes::gib(1 << 20))
    }
    fn connect(
        &self,
        _pool: &Pool,
        volume: &Entry,
        _request: &ConnectRequest,
        _cx: &Cx,
    ) -> Result<(Source, Attachment)> {
        Ok((Source::Directory { path: volume.data.clone() }, Attachment::new()))
    }
    fn find(&self, _pool: &Pool, volume: &Entry) -> Result<Option<(Source, Attachment)>> {
        Ok(Some((Source::Directory { path: volume.data.clone() }, Attachment::new())))
    }
    fn disconnect(
        &self,
        _id: &VolumeId,
        volume: Option<&Entry>,
        attachment: Option<&Attachment>,
        _cx: &Cx,
    ) -> Result<()> {
        assert!(volume.is_some() || attachment.is_some(), "there is nothing to go by");
        Ok(())
    }
    fn is_connected(&self, _: &VolumeId, volume: Option<&Entry>, _: &Attachment) -> Result<bool> {
        Ok(volume.is_some())
    }
    fn refresh_size(&self, _: &Pool, volume: &Entry, _: &Attachment, _: &Cx) -> Result<Bytes> {
        Ok(volume.record.size)
    }
    fn health(
        &self,
        _pool: &Pool,
        _volume: &Entry,
        _attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        Vec::new()
    }
}

/// A machine's worth of test state: two pools and the tickets, in a temporary directory.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub medium: FakeMedium,
    pub pools: BTreeMap<PoolName, PoolConfig>,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(&["a", "b"])
    }
}

impl Bench {
    pub fn new(pools: &[&str]) -> Self {
        Self::within(tempfile::tempdir().unwrap(), pools)
    }

    pub fn within(dir: tempfile::TempDir, pools: &[&str]) -> Self {
        let tickets = dir.path().join("tickets");
        fs::create_dir(&tickets).unwrap();
        let pools = pools
            .iter()
            .map(|name| {
                let config = PoolConfig { create: true, ..PoolConfig::new(dir.path().join(name)) };
                (name.parse().unwrap(), config)
            })
            .collect();
        Self { medium: FakeMedium::new(&tickets), pools, dir }
    }

    /// The directory of everything, without symlinks.
    pub fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    /// Mounts something on a directory that is made where needed. Unmounted with the bench.
    pub fn mount(&self, fs_type: &str, source: &str, target: &Path, options: &[&str]) {
        fs::create_dir_all(target).unwrap();
        let request = MountRequest {
            fs_type: fs_type.to_owned(),
            source: source.to_owned(),
            target: target.to_owned(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            read_only: false,
        };
        Host::real().mounts.mount(&request).expect("these tests mount file systems: run as root");
    }

    pub fn bind(&self, source: &Path, target: &Path) {
        let (source, target) = (source.to_owned(), target.to_owned());
        let request = BindRequest { source, target, read_only: false, options: Vec::new() };
        Host::real().mounts.bind(&request).expect("these tests mount file systems: run as root");
    }

    pub fn unmount(&self, target: &Path) {
        Host::real().mounts.unmount(target, Unmount::Lazy).unwrap();
    }

    pub fn pool(&self, name: &str) -> PathBuf {
        self.pools[&name.parse::<PoolName>().unwrap()].path.clone()
    }

    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut PoolConfig)) {
        change(self.pools.get_mut(&name.parse::<PoolName>().unwrap()).unwrap());
    }

    pub fn knobs(&self) -> std::sync::MutexGuard<'_, Knobs> {
        self.medium.knobs.lock().unwrap()
    }

    /// A backend as after the start of a process.
    pub async fn start(&self) -> LocalBackend<FakeMedium> {
        let backend = self.stopped();
        backend.start(&Cx::new()).await.unwrap();
        backend
    }

    pub fn stopped(&self) -> LocalBackend<FakeMedium> {
        let note = OwnerNote::this("fake.example", Some("unix:///fake.sock".to_owned()));
        // In the product this is `larder internal alive PATH`.
        let script = ["/bin/sh", "-c", "exec stat \"$2\"", "helper"];
        let host = Host::real_with(HelperProgram(script.map(Into::into).into()));
        LocalBackend::new(self.medium.clone(), host, note, self.pools.clone()).unwrap()
    }

    pub fn tickets(&self) -> BTreeSet<String> {
        file_names(&self.dir.path().join("tickets"))
    }

    /// What a run has come to: names, contents, sizes, and anything that should not be there.
    pub fn state(&self) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        let mut tickets = self.tickets();
        for name in self.pools.keys() {
            let pool = self.pool(name.as_str());
            for shelf in ["volumes", "snapshots"] {
                for native in file_names(&pool.join(shelf)) {
                    let folder = pool.join(shelf).join(&native);
                    let text = fs::read_to_string(folder.join("record.json")).unwrap();
                    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let content = fs::read_to_string(folder.join("data/content")).unwrap();
                    let ticket = fs::read_to_string(folder.join("data/ticket")).unwrap();
                    assert!(tickets.remove(&ticket), "{native} has lost its ticket");
                    let names = file_names(&folder);
                    assert_eq!(names.len(), 2, "only record and data: {names:?}");
                    let key = format!("{shelf} {name}/{native}");
                    let line = format!("{} {} {content}", record["size"], record["source"]);
                    state.insert(key, line);
                }
            }
            for native in file_names(&pool.join("groups")) {
                let folder = pool.join("groups").join(&native);
                assert_eq!(file_names(&folder), BTreeSet::from(["record.json".to_owned()]));
                let text = fs::read_to_string(folder.join("record.json")).unwrap();
                let record: serde_json::Value = serde_json::from_str(&text).unwrap();
                let members = record["members"].as_array().unwrap().iter();
                let members: Vec<_> = members.map(|m| m["native"].to_string()).collect();
                state.insert(format!("groups {name}/{native}"), members.join(" "));
            }
            let trash = pool.join("trash");
            let (records, folders): (BTreeSet<_>, BTreeSet<_>) =
                file_names(&trash).into_iter().partition(|n| n.ends_with(".json"));
            let named: BTreeSet<_> = folders.iter().map(|f| format!("{f}.json")).collect();
            assert_eq!(records, named, "each has a record, and each record something");
            for folder in folders {
                let data = trash.join(&folder).join("data");
                let ticket = fs::read_to_string(data.join("ticket")).unwrap();
                assert!(tickets.remove(&ticket), "{folder} has lost its ticket");
                let (native, _) = folder.rsplit_once('.').unwrap();
                let content = fs::read_to_string(data.join("content")).unwrap();
                state.insert(format!("trash {name}/{native}"), content);
            }
            for folder in ["creating", "deleting", ".larder/scratch", "static"] {
                let left = file_names(&pool.join(folder));
                assert!(left.is_empty(), "left in {folder}: {left:?}");
            }
        }
        assert!(tickets.is_empty(), "leaked: {tickets:?}");
        state
    }
}

/// Nothing stays mounted or attached, also after a failed test.
impl Drop for Bench {
    fn drop(&mut self) {
        let (host, here) = (Host::real(), self.path());
        for _ in 0..4 {
            for entry in host.mounts.table().unwrap_or_default().iter().rev() {
                if entry.target.starts_with(&here) {
                    let _ = host.mounts.unmount(&entry.target, Unmount::Lazy);
                }
            }
        }
        for info in host.loops.list().unwrap_or_default() {
            if info.backing_file.as_ref().is_some_and(|file| file.starts_with(&here)) {
                let _ = host.loops.detach(info.number, info.backing());
            }
        }
    }
}

/// Waits until the thread that empties `deleting` is done.
pub async fn settled(bench: &Bench) {
    for name in bench.pools.keys() {
        let folder = bench.pool(name.as_str()).join("deleting");
        for _ in 0..500 {
            if file_names(&folder).is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

pub fn file_names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

pub fn volume(id: &str) -> VolumeId {
    VolumeId(id.parse().unwrap())
}

pub fn snapshot(id: &str) -> SnapshotId {
    SnapshotId(id.parse().unwrap())
}

/// A spec for `pool/name`.
pub fn spec(id: &str) -> VolumeSpec {
    let (pool, name) = id.split_once('/').unwrap();
    let name: larder_model::RequestedName = name.parse().unwrap();
    VolumeSpec {
        id: VolumeId::new(pool.parse().unwrap(), name.native()),
        name,
        capacity: CapacityRange::default(),
        capabilities: vec![VolumeCapability {
            access: AccessType::Mount(MountAccess::default()),
            mode: AccessMode::SingleNodeWriter,
        }],
        parameters: Attributes::new(),
        mutable_parameters: Attributes::new(),
        encryption: None,
        about: Attributes::new(),
        source: None,
        topology: None,
        secrets: Secrets::default(),
        ephemeral: false,
    }
}

pub fn sized(id: &str, required: Bytes, limit: Option<Bytes>) -> VolumeSpec {
    VolumeSpec { capacity: CapacityRange { required, limit }, ..spec(id) }
}

pub fn copied(id: &str, source: ContentSource) -> VolumeSpec {
    VolumeSpec { source: Some(source), ..spec(id) }
}

pub fn snapshot_spec(id: &str, source: &str) -> SnapshotSpec {
    let (pool, name) = id.split_once('/').unwrap();
    let name: larder_model::RequestedName = name.parse().unwrap();
    SnapshotSpec {
        id: SnapshotId::new(pool.parse().unwrap(), name.native()),
        name,
        source: volume(source),
        parameters: Attributes::new(),
        secrets: Secrets::default(),
    }
}

/// The calls of a driver, short.
#[allow(async_fn_in_trait, reason = "tests")]
pub trait Calls {
    async fn create(&self, spec: &VolumeSpec) -> Result<Volume>;
    async fn delete(&self, id: &str) -> Result<()>;
    async fn get(&self, id: &str) -> Result<Volume>;
    async fn grow(&self, id: &str, size: Bytes) -> Result<Bytes>;
    async fn cut(&self, id: &str, source: &str) -> Result<Snapshot>;
    async fn uncut(&self, id: &str) -> Result<()>;
    async fn ids(&self) -> Vec<String>;
    async fn snapshot_ids(&self) -> Vec<String>;
    async fn room(&self, pool: &str) -> Capacity;
}

impl Calls for LocalBackend<FakeMedium> {
    async fn create(&self, spec: &VolumeSpec) -> Result<Volume> {
        self.ensure_volume(spec, &Cx::new()).await
    }
    async fn delete(&self, id: &str) -> Result<()> {
        self.delete_volume(&volume(id), &Secrets::default(), &Cx::new()).await
    }
    async fn get(&self, id: &str) -> Result<Volume> {
        self.get_volume(&volume(id)).await
    }
    async fn grow(&self, id: &str, size: Bytes) -> Result<Bytes> {
        grow_with(self, id, size, &Cx::new()).await
    }
    async fn cut(&self, id: &str, source: &str) -> Result<Snapshot> {
        let snapshots = self.snapshots().unwrap();
        snapshots.ensure_snapshot(&snapshot_spec(id, source), &Cx::new()).await
    }
    async fn uncut(&self, id: &str) -> Result<()> {
        let snapshots = self.snapshots().unwrap();
        snapshots.delete_snapshot(&snapshot(id), &Secrets::default(), &Cx::new()).await
    }
    async fn ids(&self) -> Vec<String> {
        let listed = self.list().unwrap().list_volumes(&Page::default()).await.unwrap();
        listed.items.iter().map(|v| v.id.to_string()).collect()
    }
    async fn snapshot_ids(&self) -> Vec<String> {
        let snapshots = self.snapshots().unwrap();
        let listed = snapshots.list_snapshots(None, &Page::default()).await.unwrap();
        listed.items.iter().map(|s| s.id.to_string()).collect()
    }
    async fn room(&self, pool: &str) -> Capacity {
        let (pool, parameters) = (pool.parse().unwrap(), Attributes::new());
        let capacity = Provision::capacity(self).unwrap();
        capacity.capacity(&pool, &parameters).await.unwrap()
    }
}

pub async fn grow_with(
    backend: &LocalBackend<FakeMedium>,
    id: &str,
    size: Bytes,
    cx: &Cx,
) -> Result<Bytes> {
    let range = CapacityRange { required: size, limit: None };
    let expand = backend.expand().unwrap();
    expand.expand_volume(&volume(id), range, &Secrets::default(), cx).await
}

pub fn crash_at(n: u64) -> CrashAt {
    CrashAt::step(n)
}
