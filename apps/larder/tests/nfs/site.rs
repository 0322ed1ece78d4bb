//! Larder over an export, and calls as kubelet and provisioners make them.

use crate::support::{self, Server};
use larder_csi::Endpoint;
use larder_csi::client::Channel;
use larder_host::{Host, Unmount};
use larder_proto::csi::{
    self, controller_client::ControllerClient, node_client::NodeClient,
    volume_capability::access_mode::Mode, volume_content_source as from,
};
use std::path::{Path, PathBuf};

/// A server's share in an own configuration; unmounted when dropped.
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

pub(crate) struct Larder<'a> {
    site: &'a Site,
    server: Server,
    local: larder_csi::Client,
}

type Answer<T> = Result<T, tonic::Status>;

pub(crate) fn code(name: &str) -> tonic::Code {
    match name {
        "UNAVAILABLE" => tonic::Code::Unavailable,
        "FAILED_PRECONDITION" => tonic::Code::FailedPrecondition,
        "RESOURCE_EXHAUSTED" => tonic::Code::ResourceExhausted,
        "INVALID_ARGUMENT" => tonic::Code::InvalidArgument,
        other => panic!("{other}"),
    }
}

/// The options of the mount at `target`.
pub(crate) fn published_options(target: &Path) -> Vec<String> {
    let top = Host::real().mounts.mounts_at(target).unwrap().pop().unwrap();
    [top.options, top.super_options].concat()
}

/// How many helpers of that name there are.
pub(crate) fn processes(name: &str) -> usize {
    let words = format!("\0internal\0{name}\0");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&words)).count()
}

impl Site {
    pub(crate) fn new(export: &Path, mount_options: &str) -> Self {
        Self::of(&format!("share: {}, mountOptions: [{mount_options}]", export.display()))
    }

    /// With those keys of the export besides the server.
    pub(crate) fn of(keys: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("larder-nfs-").tempdir().unwrap();
        let path = dir.path();
        for folder in ["staging", "pods", "local"] {
            std::fs::create_dir(path.join(folder)).unwrap();
        }
        let keys = if keys.contains("server:") {
            keys.to_owned()
        } else {
            format!("server: {}, {keys}", crate::ADDRESS)
        };
        let dir_text = path.display();
        let yaml = format!(
            "node: n1\nstateDir: {dir_text}/state\ndrivers:\n\
             - name: nfs.csi.larder.dev\n  backend: nfs\n  endpoint: unix://{dir_text}/nfs/csi.sock\n  \
               exports:\n    default: {{ {keys}, create: true }}\n\
             - name: dir.csi.larder.dev\n  backend: dir\n  endpoint: unix://{dir_text}/dir/csi.sock\n  \
               pools:\n    default: {{ path: {dir_text}/local, create: true }}\n"
        );
        std::fs::write(path.join("config.yaml"), yaml).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn endpoint(&self, driver: &str) -> Endpoint {
        self.path(&format!("{driver}/csi.sock")).to_str().unwrap().parse().unwrap()
    }

    pub(crate) async fn serve(&self) -> Larder<'_> {
        self.served(Server::start(&self.path("config.yaml"), &self.endpoint("nfs"), &[])).await
    }

    pub(crate) async fn serve_and_crash_at(&self, step: u32) -> Larder<'_> {
        let env = [("LARDER_CRASH_AT", &*step.to_string())];
        let server = Server::spawn(&self.path("config.yaml"), &self.endpoint("nfs"), &env);
        self.served(server).await
    }

    async fn served(&self, mut server: Server) -> Larder<'_> {
        assert!(server.ready().await, "it ended: see its log");
        let local = larder_csi::Client::connect(&self.endpoint("dir")).unwrap();
        Larder { site: self, server, local }
    }

    /// The node's records are in memory, and may go at any time.
    pub(crate) fn wipe_records(&self) {
        let mut wiped = 0;
        for folder in std::fs::read_dir(self.path("state")).unwrap().flatten() {
            for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                if file.path().is_file() {
                    std::fs::remove_file(file.path()).unwrap();
                    wiped += 1;
                }
            }
        }
        assert!(wiped > 0, "no records are in {}", self.path("state").display());
    }

    /// What is mounted below the site.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let table = Host::real().mounts.table().unwrap();
        let below = table.into_iter().filter(|m| m.target.starts_with(self.dir.path()));
        below.map(|m| m.target.display().to_string()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for mount in self.mounts() {
            // Without a helper: this program is none.
            let mounts = larder_host::mounts::RealMounts::new();
            let _ = larder_host::Mounts::unmount(&mounts, Path::new(&mount), Unmount::Lazy);
        }
    }
}

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability::mounted("", &[], Mode::MultiNodeMultiWriter)
}

impl Larder<'_> {
    pub(crate) fn kill_now(&self) {
        self.server.signal(rustix::process::Signal::KILL);
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        self.server.client.node()
    }

    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        self.server.client.controller()
    }

    pub(crate) async fn probe(&self) {
        let probe = self.server.client.identity().probe(csi::ProbeRequest {}).await.unwrap();
        assert_eq!(probe.into_inner().ready, Some(true));
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        parameters: &[(&str, &str)],
    ) -> Answer<csi::Volume> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let request = csi::CreateVolumeRequest {
            parameters: parameters.iter().map(own).collect(),
            ..support::create(name, 1 << 20, capability())
        };
        let made = self.controller().create_volume(request).await?;
        Ok(made.into_inner().volume.unwrap())
    }

    pub(crate) async fn delete(&self, id: &str) -> Answer<()> {
        delete(self.controller(), id).await
    }

    /// The id of the snapshot.
    pub(crate) async fn snapshot(&self, name: &str, volume: &csi::Volume) -> Answer<String> {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: volume.volume_id.clone(),
            name: name.to_owned(),
            ..Default::default()
        };
        let made = self.controller().create_snapshot(request).await?.into_inner();
        let made = made.snapshot.unwrap();
        assert!(made.ready_to_use);
        Ok(made.snapshot_id)
    }

    pub(crate) async fn delete_snapshot(&self, id: &str) -> Answer<()> {
        let request =
            csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller().delete_snapshot(request).await.map(drop)
    }

    pub(crate) async fn create_from(&self, name: &str, snapshot: &str) -> Answer<csi::Volume> {
        let snapshot_id = snapshot.to_owned();
        self.copied(name, from::Type::Snapshot(from::SnapshotSource { snapshot_id })).await
    }

    pub(crate) async fn clone_of(&self, name: &str, volume: &csi::Volume) -> Answer<csi::Volume> {
        let volume_id = volume.volume_id.clone();
        self.copied(name, from::Type::Volume(from::VolumeSource { volume_id })).await
    }

    async fn copied(&self, name: &str, source: from::Type) -> Answer<csi::Volume> {
        let request = csi::CreateVolumeRequest {
            volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
            ..support::create(name, 1 << 20, capability())
        };
        let made = self.controller().create_volume(request).await?;
        Ok(made.into_inner().volume.unwrap())
    }

    pub(crate) async fn create_local(&self, name: &str) -> Answer<csi::Volume> {
        let capability = csi::VolumeCapability::mounted("", &[], Mode::SingleNodeWriter);
        let request = support::create(name, 1 << 20, capability);
        let made = self.local.controller().create_volume(request).await?;
        Ok(made.into_inner().volume.unwrap())
    }

    pub(crate) async fn delete_local(&self, id: &str) -> Answer<()> {
        delete(self.local.controller(), id).await
    }

    /// Stages and publishes, as kubelet does; the target.
    pub(crate) async fn publish(&self, volume: &csi::Volume) -> Answer<PathBuf> {
        self.publish_at(volume, "pod").await
    }

    pub(crate) async fn publish_at(&self, volume: &csi::Volume, pod: &str) -> Answer<PathBuf> {
        let staging = self.staging(volume);
        let target = self.target(volume, pod);
        let stage = csi::NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        // Kubelet stages once for all pods of a node.
        let first = self.site.mounts().iter().all(|m| Path::new(m) != staging);
        if first {
            std::fs::create_dir_all(&staging).unwrap();
            self.node().node_stage_volume(stage).await?;
        }
        let publish = csi::NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        self.node().node_publish_volume(publish).await?;
        Ok(target)
    }

    /// Unpublishes and unstages.
    pub(crate) async fn unpublish(&self, volume: &csi::Volume) -> Answer<()> {
        self.unpublish_at(volume, "pod").await?;
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(volume).display().to_string(),
        };
        self.node().node_unstage_volume(unstage).await.map(drop)
    }

    pub(crate) async fn unpublish_at(&self, volume: &csi::Volume, pod: &str) -> Answer<()> {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: self.target(volume, pod).display().to_string(),
        };
        self.node().node_unpublish_volume(unpublish).await.map(drop)
    }

    fn staging(&self, volume: &csi::Volume) -> PathBuf {
        self.site.path("staging").join(volume.volume_id.replace('/', "_"))
    }

    fn target(&self, volume: &csi::Volume, pod: &str) -> PathBuf {
        self.site.path("pods").join(format!("{pod}-{}", volume.volume_id.replace('/', "_")))
    }
}

async fn delete(mut controller: ControllerClient<Channel>, id: &str) -> Answer<()> {
    let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    controller.delete_volume(request).await.map(drop)
}
