//! An export in a temporary directory.

use larder_backend_nfs::{ExportConfig, Settings};
use larder_host::{HelperProgram, Host};
use larder_model::{
    AccessMode, AccessType, Backend, CapacityRange, Cx, MountAccess, Result, Secrets, SnapshotId,
    VolumeCapability, VolumeId,
    volume::{Attributes, ContentSource, Snapshot, SnapshotSpec, Volume, VolumeSpec},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

const NOBODY: u32 = 65534;

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    helper: HelperProgram,
    pub(crate) create: bool,
    pub(crate) identity: Option<uuid::Uuid>,
}

pub(crate) struct Nfs(pub(crate) Arc<dyn Backend>);

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_helper(HelperProgram(vec![env!("CARGO_BIN_EXE_larder-nfs-test-helper").into()]))
    }

    /// An export whose helper is as deaf as one that hangs in the kernel.
    pub(crate) fn hung() -> Self {
        let script = ["/bin/sh", "-c", "exec sleep 600"];
        Self::with_helper(HelperProgram(script.map(Into::into).into()))
    }

    /// An export whose helpers are started by a script; in it `$0` is the helper, `$1` a file.
    pub(crate) fn scripted(script: &str) -> Self {
        let mut bench = Self::new();
        let program = bench.helper.0.remove(0);
        let noted = bench.path().join("noted").into_os_string();
        let shell = ["/bin/sh".into(), "-c".into(), script.into(), program, noted];
        bench.helper = HelperProgram(shell.into());
        bench
    }

    /// An export of which root is nobody, as servers with `root_squash` have it.
    pub(crate) fn squashed() -> Self {
        let mut bench = Self::new();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bench.path(), mode).unwrap();
        std::os::unix::fs::chown(bench.export(), Some(NOBODY), Some(NOBODY)).unwrap();
        // Where everybody may start it.
        let program = bench.path().join("helper");
        // By a program of its own: what this process writes, it cannot start while it starts others.
        let from = bench.helper.0.remove(0);
        larder_host::command::Command::new("cp")
            .args([from.as_os_str(), program.as_os_str()])
            .run()
            .unwrap();
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        let [uid, gid] = user.map(Into::into);
        let command = ["setpriv".into(), uid, gid, "--clear-groups".into(), program.into()];
        bench.helper = HelperProgram(command.into());
        bench
    }

    fn with_helper(helper: HelperProgram) -> Self {
        let dir = tempfile::Builder::new().prefix("larder-nfs-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("export")).unwrap();
        Self { dir, helper, create: true, identity: None }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn export(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    /// A backend as after the start of a process; its pool is `p`.
    pub(crate) fn backend(&self) -> Nfs {
        let export: ExportConfig = "nas.example:/export".parse().unwrap();
        let (local, create, identity) = (Some(self.export()), self.create, self.identity);
        let export = ExportConfig { local, create, identity, ..export };
        let settings = Settings { exports: [("p".parse().unwrap(), export)].into() };
        let host = Host::real_with(self.helper.clone());
        Nfs(larder_backend_nfs::new(settings, &host).unwrap())
    }

    /// As [`Bench::backend`], with pools of those names.
    pub(crate) fn backend_of(&self, names: &[&str]) -> Nfs {
        let pool = |name: &&str| {
            let local = self.path().join(name);
            std::fs::create_dir_all(&local).unwrap();
            let export: ExportConfig = "nas.example:/export".parse().unwrap();
            (name.parse().unwrap(), ExportConfig { local: Some(local), create: true, ..export })
        };
        let settings = Settings { exports: names.iter().map(pool).collect() };
        let host = Host::real_with(self.helper.clone());
        Nfs(larder_backend_nfs::new(settings, &host).unwrap())
    }

    /// Every path in the export, sorted.
    pub(crate) fn left(&self) -> Vec<String> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    walk(root, &path, found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.export(), &self.export(), &mut found);
        // Folders that are made when they are first needed, and stay.
        let folders = ["places", "deleting", "snapshots", "copying"];
        found.retain(|path| !folders.iter().any(|name| *path == format!(".larder/{name}")));
        found.sort();
        found
    }
}

impl Nfs {
    pub(crate) async fn make(&self, spec: &VolumeSpec) -> Result<Volume> {
        self.0.provision().ensure_volume(spec, &Cx::new()).await
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<()> {
        self.delete_in(id, &Cx::new()).await
    }

    pub(crate) async fn cut(&self, id: &str, source: &str, cx: &Cx) -> Result<Snapshot> {
        let id = SnapshotId(id.parse().unwrap());
        let spec = SnapshotSpec {
            name: id.native().as_str().parse().unwrap(),
            id,
            source: volume(source),
            parameters: Attributes::new(),
            secrets: Secrets::default(),
        };
        self.0.provision().snapshots().unwrap().ensure_snapshot(&spec, cx).await
    }

    pub(crate) async fn delete_snapshot(&self, id: &str, cx: &Cx) -> Result<()> {
        let id = SnapshotId(id.parse().unwrap());
        let snapshots = self.0.provision().snapshots().unwrap();
        snapshots.delete_snapshot(&id, &Secrets::default(), cx).await
    }

    pub(crate) async fn delete_in(&self, id: &str, cx: &Cx) -> Result<()> {
        self.0.provision().delete_volume(&volume(id), &Secrets::default(), cx).await
    }
}

pub(crate) fn volume(id: &str) -> VolumeId {
    VolumeId(id.parse().unwrap())
}

pub(crate) fn spec(id: &str) -> VolumeSpec {
    let id = volume(id);
    let access = AccessType::Mount(MountAccess::default());
    VolumeSpec {
        name: id.native().as_str().parse().unwrap(),
        id,
        capacity: CapacityRange::default(),
        capabilities: vec![VolumeCapability { access, mode: AccessMode::MultiNodeMultiWriter }],
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
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    VolumeSpec { parameters: parameters.iter().map(own).collect(), ..spec(id) }
}

pub(crate) fn restored(id: &str, snapshot: &str) -> VolumeSpec {
    let source = ContentSource::Snapshot(SnapshotId(snapshot.parse().unwrap()));
    VolumeSpec { source: Some(source), ..spec(id) }
}

pub(crate) fn cloned(id: &str, source: &str) -> VolumeSpec {
    VolumeSpec { source: Some(ContentSource::Volume(volume(source))), ..spec(id) }
}
