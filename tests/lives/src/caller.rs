//! Calls as orchestrators make them: repeated until they are answered, whatever happens to Larder
//! meanwhile.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use larder_csi::{Client, Endpoint};
use larder_proto::{
    csi::{self, volume_capability::access_mode::Mode, volume_content_source as source},
    larder,
};
use tonic::{Code, Response, Status};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(120);

/// How a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// As a raw device.
    Block,
    /// Mounted, with this file system.
    Ext4,
    /// Mounted, with this file system.
    Xfs,
    /// Mounted, without a file system of its own.
    Folder,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Folder => "folder",
        })
    }
}

impl FromStr for Use {
    type Err = anyhow::Error;
    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "block" => Self::Block,
            "ext4" => Self::Ext4,
            "xfs" => Self::Xfs,
            "folder" => Self::Folder,
            _ => bail!("no use: {word}"),
        })
    }
}

impl Use {
    fn capability(self) -> csi::VolumeCapability {
        let fs = match self {
            Self::Block => return csi::VolumeCapability::raw_block(Mode::SingleNodeWriter),
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Folder => "",
        };
        csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter)
    }
}

/// The id of a thing in the pool.
fn id(name: &str) -> String {
    format!("default/{name}")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A caller of one driver with one pool, `default`. Things are named without it.
#[derive(Debug)]
pub struct Caller {
    endpoint: Endpoint,
    client: Mutex<Client>,
    /// For how long a call is repeated.
    patience: Duration,
}

impl Caller {
    /// A caller of whoever serves this socket, now or later.
    pub fn new(socket: &Path, patience: Duration) -> Result<Self> {
        let endpoint: Endpoint = text(socket).parse().map_err(|fault| anyhow!("{fault}"))?;
        let client = Client::connect(&endpoint).map_err(|fault| anyhow!("{fault}"))?;
        Ok(Self { endpoint, client: Mutex::new(client), patience })
    }

    fn client(&self) -> Client {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection that failed once backs off: goes on with a new one.
    fn reconnect(&self) {
        if let Ok(client) = Client::connect(&self.endpoint) {
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        }
    }

    /// Repeats a call until it is answered with something else than "not now".
    async fn repeat<T>(
        &self,
        what: &str,
        call: impl AsyncFn(Client) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let until = Instant::now() + self.patience;
        loop {
            let answer = tokio::time::timeout(ATTEMPT, call(self.client())).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::internal(format!("no answer within {ATTEMPT:?}")),
            };
            // A child that this process has just forked holds what is open here until it runs another program.
            let busy = status.code() == Code::FailedPrecondition
                && status.message().contains("it is used by process");
            let passes = matches!(
                status.code(),
                Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
            ) || busy;
            if !passes || Instant::now() > until {
                let message = format!("{what}: {}", status.message());
                return Err(Status::new(status.code(), message));
            }
            self.reconnect();
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    async fn controller<T>(
        &self,
        what: &str,
        call: impl AsyncFn(Controller) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        Ok(self.repeat(what, async |client| call(client.controller()).await).await?)
    }

    async fn node<T>(
        &self,
        what: &str,
        call: impl AsyncFn(Node) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        Ok(self.repeat(what, async |client| call(client.node()).await).await?)
    }

    /// Whether the driver is ready.
    pub async fn is_ready(&self) -> bool {
        self.reconnect();
        let probe = self.client().identity().probe(csi::ProbeRequest {}).await;
        probe.is_ok_and(|answer| answer.into_inner().ready == Some(true))
    }

    /// Makes a volume. `from`: a copy of the snapshot (true), or volume, of that name.
    pub async fn create(
        &self,
        name: &str,
        bytes: i64,
        usage: Use,
        from: Option<(&str, bool)>,
    ) -> Result<()> {
        let from = from.map(|(from, snapshot)| match snapshot {
            true => source::Type::Snapshot(source::SnapshotSource { snapshot_id: id(from) }),
            false => source::Type::Volume(source::VolumeSource { volume_id: id(from) }),
        });
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![usage.capability()],
            volume_content_source: from.map(|from| csi::VolumeContentSource { r#type: Some(from) }),
            ..Default::default()
        };
        self.controller(&format!("create {name}"), async |mut to| {
            to.create_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    async fn context(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id(name) };
        let found = self
            .controller(&format!("look at {name}"), async |mut to| {
                to.controller_get_volume(request.clone()).await
            })
            .await?;
        Ok(found.volume.context("an answer without a volume")?.volume_context)
    }

    /// Stages a volume.
    pub async fn stage(&self, name: &str, usage: Use, staging: &Path) -> Result<()> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: id(name),
            staging_target_path: text(staging),
            volume_capability: Some(usage.capability()),
            volume_context: self.context(name).await?,
            ..Default::default()
        };
        self.node(&format!("stage {name}"), async |mut to| {
            to.node_stage_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Publishes it at a target.
    pub async fn publish(
        &self,
        name: &str,
        usage: Use,
        staging: &Path,
        target: &Path,
    ) -> Result<()> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: id(name),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(usage.capability()),
            volume_context: self.context(name).await?,
            ..Default::default()
        };
        self.node(&format!("publish {name}"), async |mut to| {
            to.node_publish_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Takes it from a target.
    pub async fn unpublish(&self, name: &str, target: &Path) -> Result<()> {
        let (volume_id, target_path) = (id(name), text(target));
        let request = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
        self.node(&format!("unpublish {name}"), async |mut to| {
            to.node_unpublish_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Takes it from its staging path.
    pub async fn unstage(&self, name: &str, staging: &Path) -> Result<()> {
        let (volume_id, staging_target_path) = (id(name), text(staging));
        let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
        self.node(&format!("unstage {name}"), async |mut to| {
            to.node_unstage_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Grows the volume; true: the node must, too.
    pub async fn expand(&self, name: &str, bytes: i64) -> Result<bool> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id(name),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        let grown = self
            .controller(&format!("expand {name}"), async |mut to| {
                to.controller_expand_volume(request.clone()).await
            })
            .await?;
        Ok(grown.node_expansion_required)
    }

    /// Holds a volume to so many bytes read in a second.
    pub async fn modify(&self, name: &str, max_read_bps: u64) -> Result<()> {
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: id(name),
            mutable_parameters: [("maxReadBps".to_owned(), max_read_bps.to_string())].into(),
            ..Default::default()
        };
        self.controller(&format!("modify {name}"), async |mut controller| {
            controller.controller_modify_volume(request.clone()).await
        })
        .await
        .map(drop)
    }

    /// Grows it on the node.
    pub async fn expand_on_node(
        &self,
        name: &str,
        usage: Use,
        staging: &Path,
        target: &Path,
    ) -> Result<()> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id(name),
            volume_path: text(target),
            staging_target_path: text(staging),
            volume_capability: Some(usage.capability()),
            ..Default::default()
        };
        self.node(&format!("expand {name} on the node"), async |mut to| {
            to.node_expand_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Cuts a snapshot.
    pub async fn cut(&self, snapshot: &str, volume: &str) -> Result<()> {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: id(volume),
            name: snapshot.to_owned(),
            ..Default::default()
        };
        self.controller(&format!("cut {snapshot} of {volume}"), async |mut to| {
            to.create_snapshot(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Cuts a group; its snapshots, each with its volume.
    pub async fn group(&self, name: &str, volumes: &[&str]) -> Result<Vec<(String, String)>> {
        let request = csi::CreateVolumeGroupSnapshotRequest {
            name: name.to_owned(),
            source_volume_ids: volumes.iter().map(|volume| id(volume)).collect(),
            ..Default::default()
        };
        let what = format!("cut group {name} of {volumes:?}");
        let cut = self
            .repeat(&what, async |client| {
                client.group_controller().create_volume_group_snapshot(request.clone()).await
            })
            .await?;
        let members = cut.group_snapshot.context("an answer without a group")?.snapshots;
        let member =
            |member: csi::Snapshot| Ok((own(&member.snapshot_id)?, own(&member.source_volume_id)?));
        members.into_iter().map(member).collect()
    }

    /// Deletes a group with its members.
    pub async fn remove_group(&self, name: &str, members: &[String]) -> Result<()> {
        let request = csi::DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: id(name),
            snapshot_ids: members.iter().map(|member| id(member)).collect(),
            ..Default::default()
        };
        self.repeat(&format!("remove group {name}"), async |client| {
            client.group_controller().delete_volume_group_snapshot(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Deletes a volume.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id: id(name), ..Default::default() };
        self.controller(&format!("remove {name}"), async |mut to| {
            to.delete_volume(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Deletes a snapshot.
    pub async fn remove_snapshot(&self, name: &str) -> Result<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id(name), ..Default::default() };
        self.controller(&format!("remove {name}"), async |mut to| {
            to.delete_snapshot(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// The names of all volumes.
    pub async fn volumes(&self) -> Result<Vec<String>> {
        let list = self
            .controller("list volumes", async |mut to| {
                to.list_volumes(csi::ListVolumesRequest::default()).await
            })
            .await?;
        let name = |entry: csi::list_volumes_response::Entry| {
            own(&entry.volume.context("an entry without a volume")?.volume_id)
        };
        list.entries.into_iter().map(name).collect()
    }

    /// The names of all snapshots, with their groups' (empty: none).
    pub async fn snapshots(&self) -> Result<Vec<(String, String)>> {
        let list = self
            .controller("list snapshots", async |mut to| {
                to.list_snapshots(csi::ListSnapshotsRequest::default()).await
            })
            .await?;
        let name = |entry: csi::list_snapshots_response::Entry| {
            let snapshot = entry.snapshot.context("an entry without a snapshot")?;
            let group = &snapshot.group_snapshot_id;
            Ok((own(&snapshot.snapshot_id)?, own(group).unwrap_or_default()))
        };
        list.entries.into_iter().map(name).collect()
    }

    /// Names and ids of what is in the trash.
    pub async fn trash(&self) -> Result<Vec<(String, String)>> {
        let list = self
            .repeat("list the trash", async |client| {
                client.admin().list_trash(larder::ListTrashRequest {}).await
            })
            .await?;
        list.trash.into_iter().map(|entry| Ok((own(&entry.origin)?, entry.id))).collect()
    }

    /// Puts something in the trash back, by its id there.
    pub async fn restore(&self, trashed: &str) -> Result<(), Status> {
        let request = larder::RestoreTrashRequest { id: trashed.to_owned(), name: String::new() };
        self.repeat(&format!("restore {trashed}"), async |client| {
            client.admin().restore_trash(request.clone()).await
        })
        .await?;
        Ok(())
    }

    /// Removes something in the trash for good.
    pub async fn drop_trash(&self, trashed: &str) -> Result<()> {
        let request = larder::RemoveTrashRequest { id: trashed.to_owned() };
        self.repeat(&format!("drop {trashed}"), async |client| {
            client.admin().remove_trash(request.clone()).await
        })
        .await?;
        Ok(())
    }
}

type Controller = csi::controller_client::ControllerClient<larder_csi::client::Channel>;
type Node = csi::node_client::NodeClient<larder_csi::client::Channel>;

/// The name in an id of the pool.
fn own(id: &str) -> Result<String> {
    let name = id.strip_prefix("default/");
    Ok(name.with_context(|| format!("{id:?} is not of the pool"))?.to_owned())
}
