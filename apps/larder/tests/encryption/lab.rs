//! A server over a pool of images, and one volume's calls.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::support::{Server, Site, capability, create, leaks};
use larder_host::luks;
use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tonic::Status;

pub(crate) const MIB: i64 = 1 << 20;
/// Small, since an emulated machine encrypts slowly.
pub(crate) const SIZE: i64 = 128 * MIB;
/// What every file system is content with.
pub(crate) const LARGE: i64 = 400 * MIB;
/// What the tests' volumes are opened with.
pub(crate) const KEY: &str = "correct horse battery staple";
pub(crate) const NEW_KEY: &str = "another passphrase altogether\n";

pub(crate) struct Lab {
    pub(crate) site: Site,
    pub(crate) server: Server,
    pub(crate) block: bool,
    /// How volumes are used.
    pub(crate) mode: Mode,
    /// What opening those that were staged gives.
    names: Mutex<BTreeSet<String>>,
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The variants of a test: the first of them in the stage that always runs, all in the long one.
pub(crate) fn each<T: Copy>(all: &[T]) -> Vec<T> {
    let many = if cfg!(feature = "soak") { all.len() } else { 1 };
    all[..many].to_vec()
}

/// The secrets of a request with this passphrase.
pub(crate) fn key(passphrase: &str) -> BTreeMap<String, String> {
    map(&[("passphrase", passphrase)])
}

/// The parameters of a class. Little memory: deriving keys is slow in an emulated machine.
pub(crate) fn encrypted() -> BTreeMap<String, String> {
    map(&[("encryption", "luks2"), ("encryptionMemory", "4Mi"), ("fs", "ext4")])
}

/// The same without encryption.
pub(crate) fn plain() -> BTreeMap<String, String> {
    map(&[("fs", "ext4")])
}

impl Lab {
    pub(crate) async fn new(block: bool) -> Self {
        Self::on("xfs", block).await
    }

    pub(crate) async fn on(pool: &str, block: bool) -> Self {
        // Devices are named after driver and volume, and tests share a machine.
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let driver = format!("lab{}.csi.larder.dev", LABS.fetch_add(1, Ordering::Relaxed));
        let site = Site::named(&driver, "loop", pool);
        std::fs::create_dir_all(site.path("pods")).unwrap();
        let mut server = site.server();
        assert!(server.ready().await);
        Self { site, server, block, mode: Mode::SingleNodeWriter, names: Mutex::default() }
    }

    pub(crate) async fn restart(&mut self) {
        self.server.kill();
        self.server = self.site.server();
        assert!(self.server.ready().await);
    }

    pub(crate) fn staging(&self, volume: &str) -> PathBuf {
        let path = self.site.path(&format!("staging-{volume}"));
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    pub(crate) fn target(&self, volume: &str) -> PathBuf {
        self.site.path(&format!("pods/{volume}"))
    }
    pub(crate) fn image(&self, volume: &str) -> PathBuf {
        self.site.pool.path().join(format!("volumes/{volume}/image"))
    }
    pub(crate) fn capability(&self) -> csi::VolumeCapability {
        let access_mode = Some(csi::volume_capability::AccessMode { mode: self.mode.into() });
        csi::VolumeCapability { access_mode, ..capability(self.block, "") }
    }
    /// The name of what opening the volume gives.
    pub(crate) fn name(&self, volume: &str) -> String {
        let digest = Sha256::new().chain_update(&self.site.driver).chain_update([0]);
        let digest = digest.chain_update(format!("default/{volume}")).finalize();
        let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("larder-default_{volume}-{digest}")
    }

    pub(crate) fn request(&self, volume: &str) -> csi::CreateVolumeRequest {
        csi::CreateVolumeRequest {
            parameters: encrypted(),
            ..create(volume, SIZE, self.capability())
        }
    }
    pub(crate) async fn make(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<csi::Volume, Status> {
        let made = self.server.client.controller().create_volume(request).await?;
        Ok(made.into_inner().volume.unwrap())
    }
    pub(crate) async fn create(&self, volume: &str) -> csi::Volume {
        self.make(self.request(volume)).await.unwrap()
    }
    pub(crate) async fn context(&self, volume: &str) -> Result<BTreeMap<String, String>, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: format!("default/{volume}") };
        let found = self.server.client.controller().controller_get_volume(request).await?;
        Ok(found.into_inner().volume.unwrap().volume_context)
    }

    /// Stages with the volume's own context.
    pub(crate) async fn stage(
        &self,
        volume: &str,
        secrets: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        self.stage_as(volume, self.context(volume).await?, secrets).await
    }
    pub(crate) async fn stage_as(
        &self,
        volume: &str,
        volume_context: BTreeMap<String, String>,
        secrets: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        self.names.lock().unwrap().insert(self.name(volume));
        let request = csi::NodeStageVolumeRequest {
            volume_id: format!("default/{volume}"),
            staging_target_path: self.staging(volume).display().to_string(),
            volume_capability: Some(self.capability()),
            volume_context,
            secrets,
            ..Default::default()
        };
        self.server.client.node().node_stage_volume(request).await.map(drop)
    }
    pub(crate) async fn publish(&self, volume: &str) -> Result<PathBuf, Status> {
        let target = self.target(volume);
        let request = csi::NodePublishVolumeRequest {
            volume_id: format!("default/{volume}"),
            staging_target_path: self.staging(volume).display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(self.capability()),
            volume_context: self.context(volume).await?,
            ..Default::default()
        };
        self.server.client.node().node_publish_volume(request).await?;
        Ok(target)
    }
    /// Stages and publishes.
    pub(crate) async fn open(&self, volume: &str, passphrase: &str) -> PathBuf {
        self.stage(volume, key(passphrase)).await.unwrap();
        self.publish(volume).await.unwrap()
    }
    pub(crate) async fn unpublish(&self, volume: &str) -> Result<(), Status> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: format!("default/{volume}"),
            target_path: self.target(volume).display().to_string(),
        };
        self.server.client.node().node_unpublish_volume(request).await.map(drop)
    }
    pub(crate) async fn unstage(&self, volume: &str) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: format!("default/{volume}"),
            staging_target_path: self.staging(volume).display().to_string(),
        };
        self.server.client.node().node_unstage_volume(request).await.map(drop)
    }
    /// Unpublishes and unstages.
    pub(crate) async fn close(&self, volume: &str) {
        self.unpublish(volume).await.unwrap();
        self.unstage(volume).await.unwrap();
    }
    pub(crate) async fn snapshot(&self, volume: &str, name: &str) {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: format!("default/{volume}"),
            name: name.to_owned(),
            ..Default::default()
        };
        self.server.client.controller().create_snapshot(request).await.unwrap();
    }
    pub(crate) async fn delete_snapshot(&self, name: &str) {
        let request = csi::DeleteSnapshotRequest {
            snapshot_id: format!("default/{name}"),
            ..Default::default()
        };
        self.server.client.controller().delete_snapshot(request).await.unwrap();
    }
    pub(crate) async fn expand(&self, volume: &str, bytes: i64) -> Result<(), Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: format!("default/{volume}"),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        self.server.client.controller().controller_expand_volume(request).await.map(drop)
    }
    pub(crate) async fn node_expand(
        &self,
        volume: &str,
        secrets: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: format!("default/{volume}"),
            volume_path: self.target(volume).display().to_string(),
            staging_target_path: self.staging(volume).display().to_string(),
            volume_capability: Some(self.capability()),
            secrets,
            ..Default::default()
        };
        self.server.client.node().node_expand_volume(request).await.map(drop)
    }
    pub(crate) async fn delete(&self, volume: &str) {
        let request = csi::DeleteVolumeRequest {
            volume_id: format!("default/{volume}"),
            ..Default::default()
        };
        self.server.client.controller().delete_volume(request).await.unwrap();
    }

    /// Nothing is left when all volumes are gone.
    pub(crate) fn is_clean(&self) -> bool {
        let mut left = leaks::find(self.site.dir.path(), self.site.pool.path());
        left.extend(self.opened().into_iter().map(|name| format!("device {name}")));
        assert!(left.is_empty(), "left behind: {left:#?}");
        true
    }

    /// What is open of this test's volumes.
    pub(crate) fn opened(&self) -> Vec<String> {
        let host = larder_host::Host::real();
        let here: Vec<_> = host
            .loops
            .list()
            .unwrap()
            .into_iter()
            .filter(|info| info.backing().device == self.site.disk())
            .map(|info| info.device)
            .collect();
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        // By the device below, or by name where there is none: other tests open theirs meanwhile.
        let is_ours = |opened: &luks::Opened| match opened.below {
            Some(below) => here.contains(&below),
            None => names.contains(&opened.name),
        };
        luks::list().unwrap().into_iter().filter(is_ours).map(|o| o.name).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.kill();
        // A failed test's mounts keep its devices open.
        let names = self.opened();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.site.path("config.log")).unwrap_or_default();
            let end = log.lines().rev().take(30).collect::<Vec<_>>();
            eprintln!("the end of the log:");
            end.into_iter().rev().for_each(|line| eprintln!("{line}"));
            leaks::release(self.site.dir.path(), 0);
        }
        for name in names {
            let _ = luks::close(&name);
        }
    }
}

/// Whether the bytes of a file hold `pattern` anywhere.
pub(crate) fn holds(file: &Path, pattern: &[u8]) -> bool {
    let pattern = std::str::from_utf8(pattern).unwrap();
    let mut grep = std::process::Command::new("grep");
    let found = grep.args(["-qaF", "--", pattern]).arg(file).status().unwrap();
    assert!(matches!(found.code(), Some(0 | 1)), "{found}");
    found.success()
}
