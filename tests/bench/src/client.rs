//! Calls over the socket, as an orchestrator makes them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use larder_proto::csi::{
    self, controller_client::ControllerClient, identity_client::IdentityClient,
    node_client::NodeClient, volume_capability::access_mode::Mode, volume_content_source as source,
};
use tonic::transport::{Channel, Endpoint};

/// How a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Mounted; the file system is left to the driver where this is empty.
    Mount(&'static str),
    Block,
}

impl Use {
    fn capability(self) -> csi::VolumeCapability {
        match self {
            Self::Mount(fs) => csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter),
            Self::Block => csi::VolumeCapability::raw_block(Mode::SingleNodeWriter),
        }
    }
}

/// A volume, and where it is used.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: String,
    context: std::collections::BTreeMap<String, String>,
    usage: Use,
}

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
        let channel = endpoint.connect().await.context("failed to connect to larder serve")?;
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        })
    }

    pub(crate) async fn probe(&mut self) -> Result<()> {
        self.identity.probe(csi::ProbeRequest {}).await?;
        Ok(())
    }

    pub(crate) async fn create(&mut self, name: &str, bytes: i64, usage: Use) -> Result<Volume> {
        self.create_from(name, bytes, usage, None).await
    }

    /// A copy of a volume.
    pub(crate) async fn clone_of(&mut self, name: &str, of: &Volume, bytes: i64) -> Result<Volume> {
        let volume = source::VolumeSource { volume_id: of.id.clone() };
        self.create_from(name, bytes, of.usage, Some(source::Type::Volume(volume))).await
    }

    async fn create_from(
        &mut self,
        name: &str,
        bytes: i64,
        usage: Use,
        source: Option<source::Type>,
    ) -> Result<Volume> {
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![usage.capability()],
            volume_content_source: source
                .map(|from| csi::VolumeContentSource { r#type: Some(from) }),
            ..Default::default()
        };
        let answer = self.controller.create_volume(request).await?.into_inner();
        let volume = answer.volume.context("CreateVolume answered without a volume")?;
        Ok(Volume { id: volume.volume_id, context: volume.volume_context, usage })
    }

    pub(crate) async fn delete(&mut self, volume: &Volume) -> Result<()> {
        let request =
            csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        self.controller.delete_volume(request).await?;
        Ok(())
    }

    /// One page of so many entries; how many came.
    pub(crate) async fn list(&mut self, most: i32) -> Result<usize> {
        let request = csi::ListVolumesRequest { max_entries: most, ..Default::default() };
        Ok(self.controller.list_volumes(request).await?.into_inner().entries.len())
    }

    /// All there is, in as many answers as the driver makes of it; how many entries came.
    pub(crate) async fn list_all(&mut self) -> Result<usize> {
        let (mut entries, mut starting_token) = (0, String::new());
        loop {
            let request = csi::ListVolumesRequest { max_entries: 0, starting_token };
            let page = self.controller.list_volumes(request).await?.into_inner();
            entries += page.entries.len();
            starting_token = page.next_token;
            if starting_token.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// Cuts a snapshot and gives its id.
    pub(crate) async fn snapshot(&mut self, name: &str, of: &Volume) -> Result<String> {
        let request = csi::CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: of.id.clone(),
            ..Default::default()
        };
        let answer = self.controller.create_snapshot(request).await?.into_inner();
        Ok(answer.snapshot.context("CreateSnapshot answered without a snapshot")?.snapshot_id)
    }

    pub(crate) async fn delete_snapshot(&mut self, id: String) -> Result<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id, ..Default::default() };
        self.controller.delete_snapshot(request).await?;
        Ok(())
    }

    pub(crate) async fn stage(&mut self, volume: &Volume, path: &Path) -> Result<()> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: path.display().to_string(),
            volume_capability: Some(volume.usage.capability()),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await?;
        Ok(())
    }

    pub(crate) async fn unstage(&mut self, volume: &Volume, path: &Path) -> Result<()> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: path.display().to_string(),
        };
        self.node.node_unstage_volume(request).await?;
        Ok(())
    }

    pub(crate) async fn publish(&mut self, volume: &Volume, at: &Places) -> Result<()> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: at.staging.display().to_string(),
            target_path: at.target.display().to_string(),
            volume_capability: Some(volume.usage.capability()),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        Ok(())
    }

    pub(crate) async fn unpublish(&mut self, volume: &Volume, at: &Places) -> Result<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: at.target.display().to_string(),
        };
        self.node.node_unpublish_volume(request).await?;
        Ok(())
    }

    pub(crate) async fn stats(&mut self, volume: &Volume, at: &Places) -> Result<()> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: at.target.display().to_string(),
            staging_target_path: at.staging.display().to_string(),
        };
        self.node.node_get_volume_stats(request).await?;
        Ok(())
    }
}

/// Where a volume is staged and published.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
}

impl Places {
    /// In `folder`, which is made as kubelet makes it.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let staging = folder.join("staging");
        std::fs::create_dir_all(&staging)?;
        Ok(Self { staging, target: folder.join("target") })
    }
}
