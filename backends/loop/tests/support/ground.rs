//! A pool on a file system of its own, a driver on it, and just enough of a node to use volumes.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test binary uses its own part; one is a program, and still a test"
)]

use larder_backend_loop::{FreezeLimits, LoopMedium, Settings};
use larder_host::{
    Found, Host, LoopRequest, MountRequest, Unmount, command::Command, freeze::Freezer, image,
};
use larder_model::{
    AccessMode, AccessType, Backend, Bytes, CapacityRange, Connect, Cx, FsType, Kind, MountAccess,
    PoolName, Provision, Result, Secrets, SnapshotId, VolumeCapability, VolumeId,
    backend::{Attachment, ConnectRequest, Expand, Snapshots, Source},
    volume::{
        Attributes, ContentSource, FormatState, GroupSnapshot, Snapshot, SnapshotSpec, Volume,
        VolumeSpec, context,
    },
};
use larder_pool::{LocalBackend, OwnerNote, PoolConfig};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) type Loop = LocalBackend<LoopMedium>;

/// A directory in which a test mounts and attaches as it likes. Dropping it, also in a failing
/// test, unmounts and detaches everything in it.
pub(crate) struct Ground {
    root: PathBuf,
    /// None in a child process, which leaves the cleaning to its parent.
    dir: Option<Box<dyn std::any::Any + Send + Sync>>,
    pub(crate) host: Host,
    pub(crate) limits: FreezeLimits,
}

impl Ground {
    /// In `root`, which is deleted when `dir` is dropped.
    pub(crate) fn in_dir(root: PathBuf, dir: Box<dyn std::any::Any + Send + Sync>) -> Self {
        let id = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(
            id.lines().any(|l| l.starts_with("Uid:\t0\t")),
            "these tests mount file systems and make loop devices: run them as root"
        );
        let mut ground = Self::at(root);
        ground.dir = Some(dir);
        ground
    }

    /// The ground of a parent process.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root, dir: None, host: Host::real(), limits: FreezeLimits::default() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.clone()
    }

    /// The directory `name`, made.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn pool_path(&self, pool: &str) -> PathBuf {
        self.folder(&format!("pools/{pool}"))
    }

    /// A file system of its own for a pool.
    pub(crate) fn mount_pool(&self, pool: &str, fs: FsType, size: Bytes) {
        let image = self.path().join(format!("{pool}.disk"));
        image::create_sparse(&image, size).unwrap();
        let device = self
            .host
            .loops
            .attach(&LoopRequest {
                image,
                read_only: false,
                autoclear: true,
                direct_io: false,
                sector_size: 512,
            })
            .unwrap();
        self.host.filesystems.make(&device.path, fs, &[]).unwrap();
        self.mount(&device.path, fs, &self.pool_path(pool), &[]);
    }

    pub(crate) fn mount(&self, device: &Path, fs: FsType, target: &Path, options: &[&str]) {
        self.host
            .mounts
            .mount(&MountRequest {
                fs_type: fs.to_string(),
                source: device.display().to_string(),
                target: target.to_owned(),
                options: options.iter().map(|o| (*o).to_owned()).collect(),
                read_only: options.contains(&"ro"),
            })
            .unwrap();
    }

    /// Configured pools: every folder below `pools`.
    pub(crate) fn pools(&self) -> BTreeMap<PoolName, PoolConfig> {
        let folders = std::fs::read_dir(self.folder("pools")).unwrap();
        folders
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                (name, PoolConfig { create: true, ..PoolConfig::new(path) })
            })
            .collect()
    }

    pub(crate) fn freezer(&self) -> Freezer {
        let pools = self.pools().into_values().map(|config| config.path);
        let records = self.folder("freezes");
        Freezer::new(records.clone(), operate::helper(), pools.chain([records]).collect())
    }

    /// A driver over all pools, started.
    pub(crate) async fn driver(&self) -> Driver {
        self.driver_with(self.pools()).await.unwrap()
    }

    pub(crate) async fn driver_with(
        &self,
        pools: BTreeMap<PoolName, PoolConfig>,
    ) -> Result<Driver> {
        let freezer = Arc::new(self.freezer());
        freezer.recover()?;
        let backend = larder_backend_loop::local(
            Settings { pools, freeze: self.limits },
            &self.host,
            "node-1".parse().unwrap(),
            freezer,
            OwnerNote::this("loop.test", None),
        )?;
        backend.start(&Cx::new()).await?;
        Ok(Driver { backend, host: self.host.clone(), root: self.path() })
    }

    /// Loop devices over files in the pools (also deleted ones), and mounts below the ground other
    /// than the pools themselves: what a finished test must not leave.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let pools = self.path().join("pools");
        let devices = self.host.loops.list().unwrap().into_iter().filter_map(|info| {
            info.backing_file.filter(|f| f.starts_with(&pools)).map(|f| f.display().to_string())
        });
        let mounts = self.host.mounts.table().unwrap().into_iter().filter_map(|m| {
            let other = m.target.starts_with(self.path()) && m.target.parent() != Some(&*pools);
            other.then(|| m.target.display().to_string())
        });
        let mut left: Vec<_> = devices.chain(mounts).collect();
        for pool in self.pools().into_values() {
            for folder in ["creating", "deleting"] {
                let entries = std::fs::read_dir(pool.path.join(folder)).into_iter().flatten();
                left.extend(entries.flatten().map(|e| e.path().display().to_string()));
            }
        }
        left
    }

    /// Waits for a while: what a killed process had moved aside is removed in the background.
    #[track_caller]
    #[allow(clippy::disallowed_methods, reason = "nothing else runs on a test's thread")]
    pub(crate) fn assert_clean(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.left_over().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.left_over(), Vec::<String>::new());
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        let here = self.path();
        // Freezes first: nothing that is frozen can be unmounted.
        let _ = self.freezer().recover();
        for _ in 0..4 {
            let table = self.host.mounts.table().unwrap_or_default();
            for entry in table.iter().rev().filter(|m| m.target.starts_with(&here)) {
                let _ = self.host.mounts.unmount(&entry.target, Unmount::Lazy);
            }
            for info in self.host.loops.list().unwrap_or_default() {
                if info.backing_file.as_ref().is_some_and(|f| f.starts_with(&here)) {
                    let _ = self.host.loops.detach(info.number, info.backing());
                }
            }
        }
    }
}

/// The program of `operate.rs`: it works on a ground from a process of its own, and is the helper
/// program that the host crate starts (in the product, that is the product itself).
pub(crate) mod operate {
    use larder_host::{HelperProgram, command::Command};
    use std::path::{Path, PathBuf};

    pub(crate) fn helper() -> HelperProgram {
        HelperProgram(vec![program().into(), "internal".into()])
    }

    /// Cargo tells its place to tests; the program itself is it.
    fn program() -> PathBuf {
        match option_env!("CARGO_BIN_EXE_larder-loop-test-operate") {
            Some(path) => path.into(),
            None => std::env::current_exe().unwrap(),
        }
    }

    /// Runs an operation; with `crash_at` its process is killed (SIGKILL) at that step: false.
    #[track_caller]
    pub(crate) fn run(ground: &Path, args: &[&str], crash_at: Option<u64>) -> bool {
        let command = Command::new(program()).arg(ground).args(args);
        let command = match crash_at {
            Some(step) => command.env("LARDER_CRASH_AT", step.to_string()),
            None => command,
        };
        match command.run() {
            Ok(_) => true,
            Err(fault) if fault.to_string().contains("ended by signal 9") => false,
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// How a volume is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) name: String,
    pub(crate) pool: String,
    pub(crate) size: Bytes,
    pub(crate) limit: Option<Bytes>,
    pub(crate) access: Vec<AccessType>,
    pub(crate) parameters: Vec<(&'static str, &'static str)>,
    pub(crate) source: Option<ContentSource>,
}

impl Ask {
    pub(crate) fn mount(name: &str, fs: &str, size: Bytes) -> Self {
        let mount = MountAccess { fs_type: fs.to_owned(), ..MountAccess::default() };
        Self::with(name, vec![AccessType::Mount(mount)], size)
    }
    pub(crate) fn block(name: &str, size: Bytes) -> Self {
        Self::with(name, vec![AccessType::Block], size)
    }
    fn with(name: &str, access: Vec<AccessType>, size: Bytes) -> Self {
        Self {
            name: name.to_owned(),
            pool: "default".to_owned(),
            size,
            limit: None,
            access,
            parameters: Vec::new(),
            source: None,
        }
    }
    pub(crate) fn parameter(mut self, key: &'static str, value: &'static str) -> Self {
        self.parameters.push((key, value));
        self
    }
    pub(crate) fn limit(mut self, limit: Bytes) -> Self {
        self.limit = Some(limit);
        self
    }
    pub(crate) fn pool(mut self, pool: &str) -> Self {
        pool.clone_into(&mut self.pool);
        self
    }
    pub(crate) fn clone_of(mut self, volume: &VolumeId) -> Self {
        self.source = Some(ContentSource::Volume(volume.clone()));
        self
    }
    pub(crate) fn restore_of(mut self, snapshot: &SnapshotId) -> Self {
        self.source = Some(ContentSource::Snapshot(snapshot.clone()));
        self
    }
    pub(crate) fn spec(&self) -> VolumeSpec {
        let name: larder_model::RequestedName = self.name.parse().unwrap();
        let capabilities = self.access.iter().map(|access| capability(access.clone()));
        VolumeSpec {
            id: VolumeId::new(self.pool.parse().unwrap(), name.native()),
            name,
            capacity: CapacityRange { required: self.size, limit: self.limit },
            capabilities: capabilities.collect(),
            parameters: self
                .parameters
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            mutable_parameters: Attributes::new(),
            encryption: None,
            about: Attributes::new(),
            source: self.source.clone(),
            topology: None,
            secrets: Secrets::default(),
            ephemeral: false,
        }
    }
}

pub(crate) fn capability(access: AccessType) -> VolumeCapability {
    VolumeCapability { access, mode: AccessMode::SingleNodeWriter }
}

pub(crate) fn snapshot_spec(source: &VolumeId, name: &str) -> SnapshotSpec {
    let name: larder_model::RequestedName = name.parse().unwrap();
    SnapshotSpec {
        id: SnapshotId::new(source.pool().clone(), name.native()),
        name,
        source: source.clone(),
        parameters: Attributes::new(),
        secrets: Secrets::default(),
    }
}

/// A started driver, and a node's work done by hand.
pub(crate) struct Driver {
    pub(crate) backend: Loop,
    pub(crate) host: Host,
    root: PathBuf,
}

/// A volume that is mounted.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) volume: Volume,
    pub(crate) device: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) attachment: Attachment,
}

impl Driver {
    pub(crate) async fn create(&self, ask: &Ask) -> Result<Volume> {
        self.backend.ensure_volume(&ask.spec(), &Cx::new()).await
    }
    pub(crate) async fn snapshot(&self, source: &VolumeId, name: &str) -> Result<Snapshot> {
        self.backend.ensure_snapshot(&snapshot_spec(source, name), &Cx::new()).await
    }
    pub(crate) async fn delete(&self, id: &VolumeId) -> Result<()> {
        self.backend.delete_volume(id, &Secrets::default(), &Cx::new()).await
    }
    pub(crate) async fn delete_snapshot(&self, id: &SnapshotId) -> Result<()> {
        self.backend.delete_snapshot(id, &Secrets::default(), &Cx::new()).await
    }
    pub(crate) async fn expand(&self, id: &VolumeId, size: Bytes) -> Result<Bytes> {
        let range = CapacityRange { required: size, limit: None };
        self.backend.expand_volume(id, range, &Secrets::default(), &Cx::new()).await
    }
    pub(crate) fn image(&self, id: &VolumeId) -> PathBuf {
        self.backend.entry(id).unwrap().data
    }

    pub(crate) async fn connect(
        &self,
        volume: &Volume,
        access: AccessType,
        readonly: bool,
    ) -> Result<(PathBuf, Option<OwnedFd>, Attachment)> {
        let request = ConnectRequest {
            id: volume.id.clone(),
            capability: capability(access),
            readonly,
            context: volume.context.clone(),
            publish_context: Attributes::new(),
            secrets: Secrets::default(),
        };
        match Connect::connect(&self.backend, &request, &Cx::new()).await? {
            (Source::Device { path, hold }, attachment) => Ok((path, hold, attachment)),
            (other, _) => panic!("a loop volume is a device, not {other:?}"),
        }
    }

    pub(crate) async fn block(&self, volume: &Volume) -> Result<(PathBuf, Attachment)> {
        let (path, hold, attachment) = self.connect(volume, AccessType::Block, false).await?;
        assert!(hold.is_none(), "a raw block device is not held open");
        Ok((path, attachment))
    }

    /// What the node engine does at stage: connect, format what is proven blank, check, mount, grow.
    pub(crate) async fn stage(&self, volume: &Volume) -> Result<Staged> {
        let mount = AccessType::Mount(MountAccess::default());
        let (device, hold, attachment) = self.connect(volume, mount, false).await?;
        assert!(hold.is_some(), "an autoclear device must be held until it is mounted");
        let fs: FsType = volume.context[context::FS].parse().unwrap();
        let options: Vec<String> = volume
            .context
            .get(context::MKFS_OPTIONS)
            .map(|o| o.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        match self.backend.format_state(&volume.id).await? {
            FormatState::Formatted { fs: has } => assert_eq!(has, fs),
            _ => {
                assert_eq!(self.host.filesystems.probe(&device)?, Found::Blank);
                let state = FormatState::Formatting { fs };
                self.backend.set_format_state(&volume.id, state).await?;
                self.host.filesystems.make(&device, fs, &options)?;
                let state = FormatState::Formatted { fs };
                self.backend.set_format_state(&volume.id, state).await?;
            }
        }
        self.host.filesystems.check(&device, fs)?;
        // Online growth of ext4 needs CAP_SYS_RESOURCE, which not every machine grants.
        if fs == FsType::Ext4 {
            self.host.filesystems.grow(&device, fs, None)?;
        }
        let target = self.root.join("mounts").join(volume.id.native());
        std::fs::create_dir_all(&target).unwrap();
        let options = match fs {
            FsType::Xfs if self.backend.copies_share_uuid() => vec!["nouuid".to_owned()],
            _ => Vec::new(),
        };
        self.host.mounts.mount(&MountRequest {
            fs_type: fs.to_string(),
            source: device.display().to_string(),
            target: target.clone(),
            options,
            read_only: false,
        })?;
        drop(hold);
        self.host.filesystems.grow(&device, fs, Some(&target))?;
        Ok(Staged { volume: volume.clone(), device, target, attachment })
    }

    /// Unmounts; tries for a while, because a program that another test starts just now has copies
    /// of this process's open files until it runs.
    pub(crate) async fn unmount(&self, target: &Path) -> Result<()> {
        for _ in 0..40 {
            match self.host.mounts.unmount(target, Unmount::Normal) {
                Err(fault) if fault.kind() == Kind::Precondition => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                done => return done,
            }
        }
        self.host.mounts.unmount(target, Unmount::Normal)
    }

    pub(crate) async fn unstage(&self, staged: &Staged) -> Result<()> {
        self.unmount(&staged.target).await?;
        for _ in 0..40 {
            match self.disconnect(staged).await {
                // Other tests of this process look at all loop devices, and open them for that.
                Err(fault) if fault.kind() == Kind::Precondition => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                done => return done,
            }
        }
        self.disconnect(staged).await
    }

    async fn disconnect(&self, staged: &Staged) -> Result<()> {
        self.backend.disconnect(&staged.volume.id, Some(&staged.attachment), &Cx::new()).await
    }

    pub(crate) fn available(&self, staged: &Staged) -> Bytes {
        self.host.filesystems.usage(&staged.target).unwrap().total
    }
}

/// Runs a program that a test needs; the failure names it.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).run();
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}

/// Bytes that look like nothing else, different for each `seed`.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Numbers and lengths of the files.
const FILES: [(u64, usize); 4] = [(0, 300_000), (1, 304_097), (2, 308_194), (3, 312_291)];

/// Files with patterns in `dir`, synced.
pub(crate) fn write_files(dir: &Path, seed: u64) {
    for (n, len) in FILES {
        let path = dir.join(format!("file-{n}"));
        std::fs::write(&path, pattern(seed + n, len)).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
    }
}

#[track_caller]
pub(crate) fn assert_files(dir: &Path, seed: u64) {
    for (n, len) in FILES {
        let found = std::fs::read(dir.join(format!("file-{n}"))).unwrap();
        assert!(
            found == pattern(seed + n, len),
            "file-{n} below {} is not what was written",
            dir.display()
        );
    }
}

/// What the record of a snapshot says it is worth.
pub(crate) fn consistency(ground: &Ground, snapshot: &str) -> String {
    let path = ground.pool_path("default").join("snapshots").join(snapshot).join("record.json");
    let text = std::fs::read_to_string(path).unwrap();
    let words = ["\"clean\"", "\"frozen\"", "\"crash\""];
    let found: Vec<_> = words.iter().filter(|word| text.contains(**word)).collect();
    assert_eq!(found.len(), 1, "{text}");
    found[0].trim_matches('"').to_owned()
}

/// Restores a snapshot, looks at it with the file system's own checker, and mounts it.
pub(crate) async fn restored(driver: &Driver, snapshot: &SnapshotId, fs: FsType) -> Staged {
    let name = format!("r-{}", snapshot.native());
    let ask = Ask::mount(&name, "", Bytes::ZERO).restore_of(snapshot);
    let volume = driver.create(&ask).await.unwrap();
    // The log is replayed by mounting.
    let staged = driver.stage(&volume).await.unwrap();
    driver.unstage(&staged).await.unwrap();
    let image = driver.image(&volume.id).display().to_string();
    match fs {
        FsType::Ext4 => run("e2fsck", &["-f", "-n", &image]),
        FsType::Xfs => run("xfs_repair", &["-n", "-f", &image]),
        FsType::Btrfs => run("btrfs", &["check", "--readonly", &image]),
    };
    driver.stage(&volume).await.unwrap()
}

/// What a group of snapshots of these volumes is made of.
pub(crate) fn group_specs(name: &str, volumes: &[VolumeId]) -> (SnapshotId, Vec<SnapshotSpec>) {
    let specs: Vec<_> =
        volumes.iter().map(|v| snapshot_spec(v, &format!("{name}-{}", v.native()))).collect();
    (SnapshotId::new(volumes[0].pool().clone(), name.parse().unwrap()), specs)
}

pub(crate) async fn cut_group(
    driver: &Driver,
    name: &str,
    volumes: &[VolumeId],
) -> Result<GroupSnapshot> {
    let (id, specs) = group_specs(name, volumes);
    driver.backend.groups().unwrap().ensure_group(&id, name, &specs, &Cx::new()).await
}

pub(crate) async fn delete_group(driver: &Driver, name: &str, volumes: &[VolumeId]) -> Result<()> {
    let (id, specs) = group_specs(name, volumes);
    let members: Vec<_> = specs.into_iter().map(|spec| spec.id).collect();
    driver.backend.groups().unwrap().delete_group(&id, &members, &Cx::new()).await
}
