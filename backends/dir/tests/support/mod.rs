//! What the tests of this backend share: pools on real file systems, and short words for calls.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test binary uses its own part, and a test fails by panicking"
)]

pub(crate) mod manifest;
pub(crate) mod nasty;
pub(crate) mod sweep;

use larder_backend_dir::{DirBackend, Settings};
use larder_host::{BindRequest, Host, LoopRequest, MountRequest, Unmount, btrfs, image};
use larder_model::{
    AccessMode, AccessType, Backend, Bytes, CapacityRange, Cx, FsType, MountAccess, PoolName,
    RequestedName, Result, Secrets, SnapshotId, VolumeCapability, VolumeId,
    backend::{ConnectRequest, Source},
    volume::{Attributes, ContentSource, Snapshot, SnapshotSpec, Volume, VolumeSpec},
};
use larder_pool::{OwnerNote, PoolConfig};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// What a pool lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// No reflink; in a virtual machine with project quota, if asked for.
    Ext4 { quota: bool },
    /// Reflink; likewise.
    Xfs { quota: bool },
    /// Subvolumes, with qgroups or without.
    Btrfs { quota: bool },
}

impl On {
    /// What works on any kernel.
    pub(crate) const HERE: [Self; 4] = [
        Self::Ext4 { quota: false },
        Self::Xfs { quota: false },
        Self::Btrfs { quota: false },
        Self::Btrfs { quota: true },
    ];
    /// What takes a kernel with quota.
    pub(crate) const WITH_PROJECTS: [Self; 2] =
        [Self::Ext4 { quota: true }, Self::Xfs { quota: true }];

    pub(crate) fn fs(self) -> FsType {
        match self {
            Self::Ext4 { .. } => FsType::Ext4,
            Self::Xfs { .. } => FsType::Xfs,
            Self::Btrfs { .. } => FsType::Btrfs,
        }
    }
    pub(crate) fn quota(self) -> bool {
        match self {
            Self::Ext4 { quota } | Self::Xfs { quota } | Self::Btrfs { quota } => quota,
        }
    }
    pub(crate) fn is_btrfs(self) -> bool {
        matches!(self, Self::Btrfs { .. })
    }
}

/// A directory with file systems and pools in it. Nothing of it stays mounted or attached when it
/// is dropped, also by a failing test.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) host: Host,
    pub(crate) pools: BTreeMap<PoolName, PoolConfig>,
    pub(crate) grounds: BTreeMap<String, On>,
}

impl Bench {
    /// One pool called `p`.
    pub(crate) fn on(on: On) -> Self {
        Self::of_size(on, Bytes::mib(1024))
    }

    pub(crate) fn of_size(on: On, size: Bytes) -> Self {
        let mut bench = Self::empty();
        bench.add("p", on, size);
        bench
    }

    pub(crate) fn empty() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        let dir = tempfile::Builder::new().prefix("larder-dir-").tempdir().unwrap();
        Self { dir, host: Host::real(), pools: BTreeMap::new(), grounds: BTreeMap::new() }
    }

    /// Adds the pool `name` on a file system of its own.
    pub(crate) fn add(&mut self, name: &str, on: On, size: Bytes) {
        let image = self.path().join(format!("{name}.img"));
        image::create_sparse(&image, size).unwrap();
        let request = LoopRequest {
            image,
            read_only: false,
            autoclear: true,
            direct_io: false,
            sector_size: 512,
        };
        let device = self.host.loops.attach(&request).unwrap();
        let options: &[&str] = match on {
            On::Ext4 { quota: true } => &["-O", "quota,project", "-E", "quotatype=prjquota"],
            _ => &[],
        };
        let options: Vec<_> = options.iter().map(|o| (*o).to_owned()).collect();
        self.host.filesystems.make(&device.path, on.fs(), &options).unwrap();
        let target = self.dir(&format!("{name}.mnt"));
        let wants_projects = on.quota() && !on.is_btrfs();
        self.host
            .mounts
            .mount(&MountRequest {
                fs_type: on.fs().to_string(),
                source: device.path.display().to_string(),
                target: target.clone(),
                options: wants_projects.then(|| "prjquota".to_owned()).into_iter().collect(),
                read_only: false,
            })
            .unwrap();
        if on == (On::Btrfs { quota: true }) {
            btrfs::enable_quota(&target).unwrap();
        }
        self.grounds.insert(name.to_owned(), on);
        // Not the mount point itself: a pool may be a directory of a file system that has others.
        self.add_directory(name, &target.join("pool"));
    }

    /// Adds the pool `name` in a directory.
    pub(crate) fn add_directory(&mut self, name: &str, path: &Path) {
        let config = PoolConfig { create: true, ..PoolConfig::new(path) };
        self.pools.insert(name.parse().unwrap(), config);
    }

    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut PoolConfig)) {
        change(self.pools.get_mut(&name.parse::<PoolName>().unwrap()).unwrap());
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The directory of pool `name`.
    pub(crate) fn pool(&self, name: &str) -> PathBuf {
        self.pools[&name.parse::<PoolName>().unwrap()].path.clone()
    }

    /// A volume's data directory.
    pub(crate) fn data(&self, id: &str) -> PathBuf {
        let (pool, native) = id.split_once('/').unwrap();
        self.pool(pool).join("volumes").join(native).join("data")
    }

    /// A snapshot's data directory.
    pub(crate) fn cut_data(&self, id: &str) -> PathBuf {
        let (pool, native) = id.split_once('/').unwrap();
        self.pool(pool).join("snapshots").join(native).join("data")
    }

    pub(crate) fn unstarted(&self) -> Result<Arc<dyn Backend>> {
        let settings = Settings { pools: self.pools.clone() };
        let note = OwnerNote::this("dir.csi.larder.dev", None);
        DirBackend::new(settings, &self.host, "n1".parse().unwrap(), note)
    }

    /// A backend as after the start of a process.
    pub(crate) async fn start(&self) -> Dir {
        let backend = self.unstarted().unwrap();
        backend.start(&Cx::new()).await.unwrap();
        Dir(backend)
    }

    pub(crate) fn bind(&self, source: &Path, target: &str) -> PathBuf {
        let target = self.dir(target);
        let (source, place) = (source.to_owned(), target.clone());
        let request = BindRequest { source, target: place, read_only: false, options: Vec::new() };
        self.host.mounts.bind(&request).unwrap();
        target
    }

    pub(crate) fn unmount(&self, target: &Path) {
        self.host.mounts.unmount(target, Unmount::Normal).unwrap();
    }

    /// Everything that is in the pools, and fails when something is there that should not be.
    pub(crate) fn state(&self) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        for name in self.pools.keys() {
            let pool = self.pool(name.as_str());
            let mut subvolumes = 0;
            for shelf in ["volumes", "snapshots"] {
                for native in file_names(&pool.join(shelf)) {
                    let folder = pool.join(shelf).join(&native);
                    let text = fs::read_to_string(folder.join("record.json")).unwrap();
                    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let data = folder.join("data");
                    let is_subvolume = btrfs::is_subvolume(&data).unwrap();
                    if is_subvolume {
                        subvolumes += 1 + btrfs::nested(&data).unwrap().len();
                        assert_eq!(btrfs::is_read_only(&data).unwrap(), shelf == "snapshots");
                    }
                    let names: BTreeSet<_> =
                        file_names(&folder).into_iter().map(|n| without_id(&n)).collect();
                    let content = manifest::manifest(&data);
                    let files: Vec<_> = content
                        .iter()
                        .map(|(path, e)| format!("{} {:o} {}", path.display(), e.mode, e.size))
                        .collect();
                    let medium = &record["medium"];
                    let line = format!("{} {medium} {names:?} {files:?}", record["size"]);
                    state.insert(format!("{shelf} {name}/{native}"), line);
                }
            }
            for folder in ["creating", "deleting", ".larder/scratch"] {
                let left = file_names(&pool.join(folder));
                assert!(left.is_empty(), "left in {folder}: {left:?}");
            }
            if self.grounds.get(name.as_str()).is_some_and(|on| on.is_btrfs()) {
                let mount = pool.parent().unwrap();
                let mut found = btrfs::nested(mount).unwrap();
                found.retain(|path| path.starts_with(pool.file_name().unwrap()));
                assert_eq!(found.len(), subvolumes, "leaked subvolumes: {found:?}");
            }
        }
        state
    }

    /// Waits until the thread that empties `deleting` is done.
    pub(crate) async fn settled(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        for name in self.pools.keys() {
            let folder = self.pool(name.as_str()).join("deleting");
            while !file_names(&folder).is_empty() {
                assert!(Instant::now() < end, "{} is never emptied", folder.display());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// `project.123` → `project`.
fn without_id(name: &str) -> String {
    name.strip_prefix("project.").map_or(name, |_| "project").to_owned()
}

impl Drop for Bench {
    fn drop(&mut self) {
        let here = self.path();
        for _ in 0..4 {
            for entry in self.host.mounts.table().unwrap_or_default().iter().rev() {
                if entry.target.starts_with(&here) {
                    let _ = self.host.mounts.unmount(&entry.target, Unmount::Lazy);
                }
            }
        }
        for info in self.host.loops.list().unwrap_or_default() {
            if info.backing_file.as_ref().is_some_and(|file| file.starts_with(&here)) {
                let _ = self.host.loops.detach(info.number, info.backing());
            }
        }
    }
}

pub(crate) fn file_names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) fn volume(id: &str) -> VolumeId {
    VolumeId(id.parse().unwrap())
}

pub(crate) fn snapshot(id: &str) -> SnapshotId {
    SnapshotId(id.parse().unwrap())
}

pub(crate) fn mount() -> VolumeCapability {
    VolumeCapability {
        access: AccessType::Mount(MountAccess::default()),
        mode: AccessMode::SingleNodeWriter,
    }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A volume of 64 MiB.
pub(crate) fn spec(id: &str) -> VolumeSpec {
    let (pool, name) = id.split_once('/').unwrap();
    let name: RequestedName = name.parse().unwrap();
    VolumeSpec {
        id: VolumeId::new(pool.parse().unwrap(), name.native()),
        name,
        capacity: CapacityRange { required: Bytes::mib(64), limit: None },
        capabilities: vec![mount()],
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

pub(crate) fn with(id: &str, parameters: &[(&str, &str)]) -> VolumeSpec {
    VolumeSpec { parameters: map(parameters), ..spec(id) }
}

pub(crate) fn clone_of(id: &str, source: &str) -> VolumeSpec {
    VolumeSpec { source: Some(ContentSource::Volume(volume(source))), ..spec(id) }
}

pub(crate) fn restore_of(id: &str, source: &str) -> VolumeSpec {
    VolumeSpec { source: Some(ContentSource::Snapshot(snapshot(source))), ..spec(id) }
}

pub(crate) fn cut_spec(id: &str, source: &str) -> SnapshotSpec {
    let (pool, name) = id.split_once('/').unwrap();
    let name: RequestedName = name.parse().unwrap();
    SnapshotSpec {
        id: SnapshotId::new(pool.parse().unwrap(), name.native()),
        name,
        source: volume(source),
        parameters: Attributes::new(),
        secrets: Secrets::default(),
    }
}

/// A started backend, with short words for its calls.
#[derive(Clone)]
pub(crate) struct Dir(pub(crate) Arc<dyn Backend>);

impl Dir {
    pub(crate) async fn make(&self, spec: &VolumeSpec) -> Result<Volume> {
        self.make_cx(spec, &Cx::new()).await
    }
    pub(crate) async fn make_cx(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        self.0.provision().ensure_volume(spec, cx).await
    }
    pub(crate) async fn delete(&self, id: &str) -> Result<()> {
        self.delete_cx(id, &Cx::new()).await
    }
    pub(crate) async fn delete_cx(&self, id: &str, cx: &Cx) -> Result<()> {
        self.0.provision().delete_volume(&volume(id), &Secrets::default(), cx).await
    }
    pub(crate) async fn cut(&self, id: &str, source: &str) -> Result<Snapshot> {
        self.cut_cx(id, source, &Cx::new()).await
    }
    pub(crate) async fn cut_cx(&self, id: &str, source: &str, cx: &Cx) -> Result<Snapshot> {
        let snapshots = self.0.provision().snapshots().unwrap();
        snapshots.ensure_snapshot(&cut_spec(id, source), cx).await
    }
    pub(crate) async fn uncut(&self, id: &str) -> Result<()> {
        self.uncut_cx(id, &Cx::new()).await
    }
    pub(crate) async fn uncut_cx(&self, id: &str, cx: &Cx) -> Result<()> {
        let snapshots = self.0.provision().snapshots().unwrap();
        snapshots.delete_snapshot(&snapshot(id), &Secrets::default(), cx).await
    }
    pub(crate) async fn grow(&self, id: &str, size: Bytes) -> Result<Bytes> {
        self.grow_cx(id, size, &Cx::new()).await
    }
    pub(crate) async fn grow_cx(&self, id: &str, size: Bytes, cx: &Cx) -> Result<Bytes> {
        let range = CapacityRange { required: size, limit: None };
        let expand = self.0.provision().expand().unwrap();
        expand.expand_volume(&volume(id), range, &Secrets::default(), cx).await
    }
    pub(crate) async fn connect(&self, id: &str) -> Result<PathBuf> {
        self.connect_as(id, mount()).await
    }
    pub(crate) async fn connect_as(&self, id: &str, how: VolumeCapability) -> Result<PathBuf> {
        let request = ConnectRequest {
            id: volume(id),
            capability: how,
            readonly: false,
            context: Attributes::new(),
            publish_context: Attributes::new(),
            secrets: Secrets::default(),
        };
        match self.0.connect().connect(&request, &Cx::new()).await?.0 {
            Source::Directory { path } => Ok(path),
            other => panic!("{other:?} is no directory"),
        }
    }
    /// The reasons of what is wrong with a volume.
    pub(crate) async fn health(&self, id: &str) -> Vec<&'static str> {
        let found = self.0.connect().node_health(&volume(id), None).await.unwrap();
        found.iter().map(|entry| entry.reason).collect()
    }
}

/// Makes what was written durable, so that extents are where they will stay.
pub(crate) fn settle_data(dir: &Path) {
    larder_host::durable::sync_filesystem(dir).unwrap();
}
