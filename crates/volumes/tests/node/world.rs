//! One machine: a kernel (fake or real), a backend, kubelet's directories, and restarts.

use crate::backend::ImageBackend;
use larder_host::{Host, Unmount, fake::FakeKernel, freeze::Freezer, image};
use larder_model::{
    AccessMode, AccessType, Bytes, CapacityRange, Cx, Kind, MountAccess, Result, Secrets,
    VolumeCapability, VolumeId,
    volume::{Attributes, FormatState},
};
use larder_volumes::{
    Claims, ControlEngine,
    node::{
        ExpandRequest, NodeConfig, NodeEngine, PublishRequest, StageRequest, StatsRequest,
        UnpublishRequest, UnstageRequest, VolumeStats,
    },
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Fake,
    Real,
}

pub(crate) struct World {
    pub(crate) host: Host,
    pub(crate) fake: Option<FakeKernel>,
    pub(crate) backend: Arc<ImageBackend>,
    pub(crate) engine: NodeEngine,
    pub(crate) root: PathBuf,
    pub(crate) boot: String,
    // Last: removed after everything in them was unmounted.
    state: tempfile::TempDir,
    dir: tempfile::TempDir,
}

/// Everything of a volume that a crash could have left different, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, String>);

impl World {
    pub(crate) fn new(on: On) -> Self {
        let fake = (on == On::Fake).then(FakeKernel::new);
        let host = fake.as_ref().map_or_else(real, FakeKernel::host);
        // Records are on a tmpfs, as in /run, and so is the pool of a kernel that is not there
        // anyway: every record is synced, and disks are slow at that.
        let shm = Some(Path::new("/dev/shm")).filter(|shm| shm.is_dir());
        let quick = shm.map_or_else(std::env::temp_dir, Path::to_owned);
        let place = if on == On::Fake { quick.clone() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("larder-node-").tempdir_in(place).unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["pool", "staging", "pods"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let state = tempfile::Builder::new().prefix("larder-node-state-").tempdir_in(quick);
        let state = state.unwrap();
        let backend = Arc::new(ImageBackend::new(host.clone(), root.join("pool")));
        let boot = "boot-1".to_owned();
        let engine = engine(&backend, &host, fake.as_ref(), state.path(), &boot);
        Self { host, fake, backend, engine, root, boot, state, dir }
    }

    /// The next process on the same machine.
    pub(crate) fn restart(&mut self) {
        // Nor has it locks.
        self.engine.stop();
        // A dead process has no descriptors. This one lives on, and a program that another test
        // starts has copies of them until its `exec`.
        for _ in 0..500 {
            let mounts = self.host.mounts.table().unwrap();
            let mounted = |device| mounts.iter().any(|m| m.device == device);
            let loops = self.host.loops.list().unwrap();
            let ours = |l: &larder_host::LoopInfo| {
                l.backing_file.as_ref().is_some_and(|file| self.holds(file))
            };
            if !loops.iter().any(|l| ours(l) && l.autoclear && !mounted(l.device)) {
                break;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        self.engine =
            engine(&self.backend, &self.host, self.fake.as_ref(), self.state.path(), &self.boot);
    }

    /// The next process on the same machine, while this one still works.
    pub(crate) fn successor(&self) -> NodeEngine {
        engine(&self.backend, &self.host, self.fake.as_ref(), self.state.path(), &self.boot)
    }

    /// The machine goes down and comes up again (fake kernel).
    pub(crate) fn reboot(&mut self) {
        self.fake.as_ref().unwrap().reboot();
        self.boot = format!("{}-and-on", self.boot);
        self.restart();
    }

    pub(crate) fn with_facts(
        mut self,
        change: impl FnOnce(&mut larder_model::volume::Facts),
    ) -> Self {
        let mut backend = ImageBackend::new(self.host.clone(), self.root.join("pool"));
        change(&mut backend.facts);
        self.backend = Arc::new(backend);
        self.restart();
        self
    }

    pub(crate) fn id(&self, name: &str) -> VolumeId {
        VolumeId(format!("default/{name}").parse().unwrap())
    }

    /// Makes a volume of 64 MiB (xfs and btrfs need 400).
    pub(crate) fn volume(&self, name: &str) -> String {
        let large = name.contains("xfs") || name.contains("btrfs");
        self.volume_of(name, Bytes::mib(if large { 400 } else { 64 }))
    }

    pub(crate) fn volume_of(&self, name: &str, size: Bytes) -> String {
        let id = self.id(name);
        if name.starts_with("dir") || name.starts_with("net") {
            fs::create_dir(self.root.join("pool").join(name)).unwrap();
            if let Some(fake) = self.fake.as_ref().filter(|_| name.starts_with("net-link")) {
                let source = format!("server:{}/pool/{name}", self.root.display());
                fake.show_as(&source, &format!("{source}/../where/it/leads"));
            }
        } else {
            image::create_sparse(&self.backend.image(&id), size).unwrap();
            self.backend.write_state(&id, FormatState::Unformatted);
        }
        fs::create_dir_all(self.staging(name)).unwrap();
        fs::create_dir_all(self.root.join("pods").join(name)).unwrap();
        id.as_str().to_owned()
    }

    pub(crate) fn staging(&self, name: &str) -> PathBuf {
        self.root.join("staging").join(name)
    }
    pub(crate) fn target(&self, name: &str, n: u32) -> PathBuf {
        self.root.join("pods").join(name).join(format!("target-{n}"))
    }

    pub(crate) fn stage_request(&self, name: &str, capability: VolumeCapability) -> StageRequest {
        StageRequest {
            volume: self.id(name).as_str().to_owned(),
            staging_path: self.staging(name),
            capability,
            context: Attributes::new(),
            publish_context: Attributes::new(),
            secrets: Secrets::default(),
        }
    }

    pub(crate) fn publish_request(
        &self,
        name: &str,
        n: u32,
        capability: VolumeCapability,
    ) -> PublishRequest {
        PublishRequest {
            volume: self.id(name).as_str().to_owned(),
            staging_path: Some(self.staging(name)),
            target_path: self.target(name, n),
            capability,
            readonly: false,
            context: Attributes::new(),
            publish_context: Attributes::new(),
            secrets: Secrets::default(),
        }
    }

    pub(crate) async fn stage_with(
        &self,
        name: &str,
        how: VolumeCapability,
        cx: &Cx,
    ) -> Result<()> {
        self.engine.stage(self.stage_request(name, how), cx).await
    }
    pub(crate) async fn stage(&self, name: &str, how: VolumeCapability) -> Result<()> {
        self.stage_with(name, how, &Cx::new()).await
    }
    pub(crate) async fn publish_with(
        &self,
        name: &str,
        n: u32,
        how: VolumeCapability,
        cx: &Cx,
    ) -> Result<()> {
        self.engine.publish(self.publish_request(name, n, how), cx).await
    }
    pub(crate) async fn publish(&self, name: &str, n: u32, how: VolumeCapability) -> Result<()> {
        self.publish_with(name, n, how, &Cx::new()).await
    }
    pub(crate) async fn unpublish_with(&self, name: &str, n: u32, cx: &Cx) -> Result<()> {
        let volume = self.id(name).as_str().to_owned();
        let request = UnpublishRequest { volume, target_path: self.target(name, n) };
        self.engine.unpublish(request, cx).await
    }
    pub(crate) async fn unpublish(&self, name: &str, n: u32) -> Result<()> {
        self.unpublish_with(name, n, &Cx::new()).await
    }
    pub(crate) async fn unstage_with(&self, name: &str, cx: &Cx) -> Result<()> {
        let volume = self.id(name).as_str().to_owned();
        let request = UnstageRequest { volume, staging_path: self.staging(name) };
        self.engine.unstage(request, cx).await
    }
    pub(crate) async fn unstage(&self, name: &str) -> Result<()> {
        self.unstage_with(name, &Cx::new()).await
    }
    pub(crate) async fn expand_with(&self, name: &str, to: Bytes, cx: &Cx) -> Result<Bytes> {
        let request = ExpandRequest {
            volume: self.id(name).as_str().to_owned(),
            volume_path: self.target(name, 1),
            staging_path: Some(self.staging(name)),
            range: CapacityRange { required: to, limit: None },
            capability: None,
            secrets: Secrets::default(),
        };
        self.engine.expand(request, cx).await
    }
    pub(crate) async fn stats(&self, name: &str, path: &Path) -> Result<VolumeStats> {
        let volume = self.id(name).as_str().to_owned();
        self.engine.stats(StatsRequest { volume, volume_path: path.to_owned() }).await
    }

    /// Records, one per volume, without what differs from run to run.
    pub(crate) fn records(&self) -> BTreeMap<String, String> {
        let mut records = BTreeMap::new();
        let Ok(entries) = fs::read_dir(self.state_dir()) else { return records };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let text = fs::read(&path).unwrap();
            let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            if let Some(staged) = json.get_mut("staged").and_then(|s| s.as_object_mut()) {
                for key in ["attachment", "shows", "root"] {
                    staged.remove(key);
                }
            }
            let volume = json["volume"].as_str().unwrap().to_owned();
            records.insert(volume, self.relative(&json.to_string()));
        }
        records
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state.path().join("image.test")
    }

    fn relative(&self, text: &str) -> String {
        text.replace(&self.root.display().to_string(), "ROOT")
            .replace(&self.state.path().display().to_string(), "STATE")
    }

    /// Whether a path is one of this world.
    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.root) || path.starts_with(self.state.path())
    }

    /// What is mounted here: target, kind of file system, read-only or not.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let table = self.host.mounts.table().unwrap();
        let ours = table.iter().filter(|entry| self.holds(&entry.target));
        let mut lines: Vec<_> = ours
            .map(|entry| {
                let mode = if entry.is_read_only() { "ro" } else { "rw" };
                self.relative(&format!("{} {} {mode}", entry.target.display(), entry.fs_type))
            })
            .collect();
        lines.sort();
        lines
    }

    /// Loop devices over images of this pool.
    pub(crate) fn loops(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("pool")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "img") {
                found.extend(self.host.loops.find(&path).unwrap().into_iter().map(|l| l.path));
            }
        }
        found
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut all = BTreeMap::new();
        all.insert("mounts".to_owned(), format!("{:#?}", self.mounts()));
        all.insert("loops".to_owned(), self.loops().len().to_string());
        if let Some(fake) = &self.fake {
            let limits: Vec<_> = fake.limited().into_iter().map(|(_, limits)| limits).collect();
            all.insert("limits".to_owned(), format!("{limits:?}"));
        }
        all.insert("records".to_owned(), format!("{:#?}", self.records()));
        let mut files = Vec::new();
        self.list(&self.root.join("pods"), &mut files);
        self.list(&self.root.join("staging"), &mut files);
        self.list(self.state.path(), &mut files);
        all.insert("files".to_owned(), format!("{files:#?}"));
        for entry in fs::read_dir(self.root.join("pool")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = if name.ends_with(".state") {
                fs::read_to_string(&path).unwrap()
            } else {
                String::new()
            };
            all.insert(name, text);
        }
        Snapshot(all)
    }

    /// Names below `dir`, not going into mounts.
    fn list(&self, dir: &Path, into: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut entries: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries.into_iter().filter(|path| !path.ends_with(".lock")) {
            into.push(self.relative(&path.display().to_string()));
            if path.is_dir() && !self.host.mounts.is_mount_point(&path).unwrap() {
                self.list(&path, into);
            }
        }
    }

    /// Nothing is left on this machine but volumes.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new(), "mounts are left");
        assert_eq!(self.loops(), Vec::<PathBuf>::new(), "loop devices are left");
        assert_eq!(self.records(), BTreeMap::new(), "records are left");
        if let Some(fake) = &self.fake {
            assert_eq!(fake.limited(), [], "limits are left");
        }
        let mut files = Vec::new();
        self.list(self.state.path(), &mut files);
        files.retain(|file| file.contains(".tmp-") || file.ends_with("/mount"));
        assert!(files.is_empty(), "{files:?} are left");
        for entry in fs::read_dir(self.root.join("pods")).unwrap() {
            let left: Vec<_> = fs::read_dir(entry.unwrap().path()).unwrap().collect();
            assert!(left.is_empty(), "targets are left: {left:?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.fake.is_some() {
            return;
        }
        // Innermost first; a test that failed may have left anything.
        let table = self.host.mounts.table().unwrap_or_default();
        for entry in table.iter().rev().filter(|entry| self.holds(&entry.target)) {
            if self.host.mounts.unmount(&entry.target, Unmount::Normal).is_err() {
                let _ = self.host.mounts.unmount(&entry.target, Unmount::Lazy);
            }
        }
        let Ok(entries) = fs::read_dir(self.dir.path().join("pool")) else { return };
        for image in entries.filter_map(std::result::Result::ok).map(|e| e.path()) {
            for there in self.host.loops.find(&image).unwrap_or_default() {
                let _ = self.host.loops.detach(there.number, there.backing());
            }
        }
    }
}

fn engine(
    backend: &Arc<ImageBackend>,
    host: &Host,
    fake: Option<&FakeKernel>,
    state: &Path,
    boot: &str,
) -> NodeEngine {
    let config = NodeConfig {
        driver: "image.test".parse().unwrap(),
        node: "node-1".parse().unwrap(),
        state_dir: state.to_owned(),
        boot_id: boot.to_owned(),
        // The real one takes a program: the tests of `larder` have it.
        freezer: fake.map(|kernel| Arc::new(Freezer::fake(kernel))),
    };
    let claims = Claims::new();
    let node = NodeEngine::new(backend.clone(), host.clone(), config, claims.clone());
    let control = ControlEngine::new(backend.clone(), claims, Some(Arc::new(node.clone())));
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(control.start()).unwrap();
    });
    node.set_inline_volumes(Arc::new(control));
    node
}

/// The real kernel, or a failure that names what is missing.
fn real() -> Host {
    let uid = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    assert_eq!(uid.unwrap(), 0, "these tests mount: run them as root");
    for (tool, package) in [
        ("mkfs.ext4", "e2fsprogs"),
        ("e2fsck", "e2fsprogs"),
        ("mkfs.xfs", "xfsprogs"),
        ("mkfs.btrfs", "btrfs-progs"),
    ] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(tool).exists());
        assert!(found, "{tool} is missing: install Debian package {package}");
    }
    Host::real()
}

pub(crate) fn mount_as(fs_type: &str, mode: AccessMode) -> VolumeCapability {
    let access =
        AccessType::Mount(MountAccess { fs_type: fs_type.to_owned(), ..MountAccess::default() });
    VolumeCapability { access, mode }
}
pub(crate) fn mount() -> VolumeCapability {
    mount_as("", AccessMode::SingleNodeWriter)
}
pub(crate) fn reader() -> VolumeCapability {
    mount_as("", AccessMode::MultiNodeReaderOnly)
}
pub(crate) fn block() -> VolumeCapability {
    VolumeCapability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter }
}
pub(crate) fn with_flags(flags: &[&str]) -> VolumeCapability {
    let flags = flags.iter().map(|f| (*f).to_owned()).collect();
    let access = AccessType::Mount(MountAccess { flags, ..MountAccess::default() });
    VolumeCapability { access, mode: AccessMode::SingleNodeWriter }
}
pub(crate) fn with_group(group: u32) -> VolumeCapability {
    let access = AccessType::Mount(MountAccess { group: Some(group), ..MountAccess::default() });
    VolumeCapability { access, mode: AccessMode::SingleNodeWriter }
}

/// The kind of the fault; the text is shown when a test fails.
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    let fault = result.unwrap_err();
    assert_ne!(fault.kind(), Kind::Internal, "{fault}");
    fault.kind()
}
