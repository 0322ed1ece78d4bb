//! Calls, and how they are made.

use crate::support::capability;
use larder_csi::Client;
use larder_proto::csi::{self, volume_content_source as from};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

/// A volume: 0 and 1 are mounted, 2 is a raw device where the driver has such.
pub(crate) type Volume = u8;
/// The raw device.
pub(crate) const RAW: Volume = 2;

/// A snapshot. Name 0 is for what is mounted, 1 for what is raw: a restored volume is used in the
/// same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Snapshot {
    Own(u8),
    /// Of a volume, in the group.
    Member(Volume),
}

/// What a new volume is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    Volume(Volume),
    Snapshot(Snapshot),
}

/// Sizes are in MiB. There is one group, of volumes 0 and 1 or of 0 alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Create { volume: Volume, size: i64, source: Option<Source> },
    Delete(Volume),
    Snapshot { name: u8, source: Volume },
    DeleteSnapshot(u8),
    Group { both: bool },
    DeleteGroup { both: bool },
    Stage(Volume),
    Unstage(Volume),
    Publish { volume: Volume, target: u8 },
    Unpublish { volume: Volume, target: u8 },
    Expand { volume: Volume, size: i64 },
    NodeExpand { volume: Volume, target: u8 },
    Stats { volume: Volume, target: u8 },
    Get(Volume),
    Volumes,
    Snapshots,
}

pub(crate) fn any() -> impl Strategy<Value = Call> {
    let volume = || prop_oneof![3 => Just(0u8), 2 => Just(1), 2 => Just(RAW)];
    let place = move || (volume(), 0..2u8);
    let size = || prop_oneof![3 => Just(320i64), 1 => Just(384), 1 => Just(448)];
    let created = (volume(), size(), 0..6u8).prop_map(|(volume, size, source)| {
        let raw = volume == RAW;
        let source = match source {
            0 if !raw => Some(Source::Volume(1 - volume)),
            1 => Some(Source::Snapshot(Snapshot::Own(u8::from(raw)))),
            2 if !raw => Some(Source::Snapshot(Snapshot::Member(volume))),
            _ => None,
        };
        Call::Create { volume, size, source }
    });
    prop_oneof![
        8 => created,
        2 => volume().prop_map(Call::Delete),
        3 => volume().prop_map(|source| Call::Snapshot { name: u8::from(source == RAW), source }),
        1 => (0..2u8).prop_map(Call::DeleteSnapshot),
        1 => proptest::bool::ANY.prop_map(|both| Call::Group { both }),
        1 => proptest::bool::ANY.prop_map(|both| Call::DeleteGroup { both }),
        7 => volume().prop_map(Call::Stage),
        3 => volume().prop_map(Call::Unstage),
        7 => place().prop_map(|(volume, target)| Call::Publish { volume, target }),
        4 => place().prop_map(|(volume, target)| Call::Unpublish { volume, target }),
        2 => (volume(), size()).prop_map(|(volume, size)| Call::Expand { volume, size }),
        2 => place().prop_map(|(volume, target)| Call::NodeExpand { volume, target }),
        2 => place().prop_map(|(volume, target)| Call::Stats { volume, target }),
        1 => volume().prop_map(Call::Get),
        1 => Just(Call::Volumes),
        1 => Just(Call::Snapshots),
    ]
}

impl Call {
    /// It reads the data of a volume or a snapshot.
    pub(crate) fn copies(&self) -> bool {
        matches!(
            self,
            Self::Create { source: Some(_), .. } | Self::Snapshot { .. } | Self::Group { .. }
        )
    }

    /// What the call works on alone or together with others: calls that share none of these never
    /// wait for each other, nor send each other away.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let of = |source: &Source| match source {
            Source::Volume(volume) => format!("v{volume}"),
            Source::Snapshot(snapshot) => snapshot_id(*snapshot),
        };
        match self {
            Self::Create { volume, source, .. } => {
                std::iter::once(format!("v{volume}")).chain(source.iter().map(of)).collect()
            }
            Self::Snapshot { name, source } => {
                vec![snapshot_id(Snapshot::Own(*name)), format!("v{source}")]
            }
            Self::DeleteSnapshot(name) => vec![snapshot_id(Snapshot::Own(*name))],
            Self::Group { both } | Self::DeleteGroup { both } => {
                let members = sources(*both).into_iter();
                members
                    .flat_map(|v| [format!("v{v}"), snapshot_id(Snapshot::Member(v))])
                    .chain(["group".to_owned()])
                    .collect()
            }
            Self::Delete(volume)
            | Self::Stage(volume)
            | Self::Unstage(volume)
            | Self::Publish { volume, .. }
            | Self::Unpublish { volume, .. }
            | Self::Expand { volume, .. }
            | Self::NodeExpand { volume, .. }
            | Self::Stats { volume, .. }
            | Self::Get(volume) => vec![format!("v{volume}")],
            Self::Volumes | Self::Snapshots => Vec::new(),
        }
    }
}

/// The volumes of the group.
pub(crate) fn sources(both: bool) -> Vec<Volume> {
    if both { vec![0, 1] } else { vec![0] }
}

fn volume_id(volume: Volume) -> String {
    format!("default/v{volume}")
}

fn snapshot_id(snapshot: Snapshot) -> String {
    match snapshot {
        Snapshot::Own(name) => format!("default/s{name}"),
        // Members are named by the engine; deleting a group means knowing them.
        Snapshot::Member(volume) => {
            let hash = Sha256::new().chain_update("g").chain_update([0xff]);
            let hash = hash.chain_update(volume_id(volume)).finalize();
            let digest: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("default/g-{digest}")
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    Done,
    Size(i64),
    Volumes(BTreeMap<Volume, i64>),
    /// With their volumes and sizes.
    Snapshots(BTreeMap<Snapshot, (Volume, i64)>),
}

/// The code, or what came back.
pub(crate) type Answer = Result<Told, Code>;

/// Makes calls.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) folder: PathBuf,
    /// The driver has raw devices.
    pub(crate) raw: bool,
    /// Of what is mounted, and of what is raw.
    pub(crate) contexts: [BTreeMap<String, String>; 2],
}

impl Caller {
    pub(crate) fn is_raw(&self, volume: Volume) -> bool {
        self.raw && volume == RAW
    }
    fn capability(&self, volume: Volume) -> csi::VolumeCapability {
        capability(self.is_raw(volume), "")
    }
    fn staging(&self, volume: Volume) -> String {
        self.folder.join(format!("staging-{volume}")).display().to_string()
    }
    pub(crate) fn target(&self, volume: Volume, target: u8) -> PathBuf {
        self.folder.join("pods").join(format!("{volume}-{target}"))
    }
    fn target_text(&self, volume: Volume, target: u8) -> String {
        self.target(volume, target).display().to_string()
    }

    /// The context is the same for all volumes of a kind; kubelet has it from the creation.
    fn context(&self, volume: Volume) -> BTreeMap<String, String> {
        self.contexts[usize::from(self.is_raw(volume))].clone()
    }

    /// Learns the contexts, from volumes that are gone again afterwards.
    pub(crate) async fn learn(&mut self) {
        let mut controller = self.client.controller();
        for (n, volume) in [0, RAW].into_iter().enumerate() {
            self.call(&Call::Create { volume, size: 320, source: None }).await.unwrap();
            let request = csi::ControllerGetVolumeRequest { volume_id: volume_id(volume) };
            let found = controller.controller_get_volume(request).await.unwrap().into_inner();
            self.contexts[n] = found.volume.unwrap().volume_context;
            self.call(&Call::Delete(volume)).await.unwrap();
        }
    }

    pub(crate) async fn call(&self, call: &Call) -> Result<Told, Status> {
        match call {
            Call::Stage(_)
            | Call::Unstage(_)
            | Call::Publish { .. }
            | Call::Unpublish { .. }
            | Call::NodeExpand { .. }
            | Call::Stats { .. } => self.node(call).await,
            Call::Group { both } => {
                let request = csi::CreateVolumeGroupSnapshotRequest {
                    name: "g".to_owned(),
                    source_volume_ids: sources(*both).into_iter().map(volume_id).collect(),
                    ..Default::default()
                };
                self.client.group_controller().create_volume_group_snapshot(request).await?;
                Ok(Told::Done)
            }
            Call::DeleteGroup { both } => {
                let members = sources(*both).into_iter().map(Snapshot::Member);
                let request = csi::DeleteVolumeGroupSnapshotRequest {
                    group_snapshot_id: "default/g".to_owned(),
                    snapshot_ids: members.map(snapshot_id).collect(),
                    ..Default::default()
                };
                self.client.group_controller().delete_volume_group_snapshot(request).await?;
                Ok(Told::Done)
            }
            _ => self.control(call).await,
        }
    }

    async fn control(&self, call: &Call) -> Result<Told, Status> {
        let mut controller = self.client.controller();
        let range = |size: i64| csi::CapacityRange { required_bytes: size * MIB, limit_bytes: 0 };
        match call {
            Call::Create { volume, size, source } => {
                let r#type = source.map(|source| match source {
                    Source::Volume(id) => {
                        from::Type::Volume(from::VolumeSource { volume_id: volume_id(id) })
                    }
                    Source::Snapshot(id) => {
                        from::Type::Snapshot(from::SnapshotSource { snapshot_id: snapshot_id(id) })
                    }
                });
                let request = csi::CreateVolumeRequest {
                    name: format!("v{volume}"),
                    capacity_range: Some(range(*size)),
                    volume_capabilities: vec![self.capability(*volume)],
                    volume_content_source: r#type
                        .map(|t| csi::VolumeContentSource { r#type: Some(t) }),
                    ..Default::default()
                };
                let made = controller.create_volume(request).await?.into_inner();
                Ok(Told::Size(made.volume.unwrap().capacity_bytes / MIB))
            }
            Call::Delete(volume) => {
                let volume_id = volume_id(*volume);
                let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
                controller.delete_volume(request).await?;
                Ok(Told::Done)
            }
            Call::Snapshot { name, source } => {
                let request = csi::CreateSnapshotRequest {
                    source_volume_id: volume_id(*source),
                    name: format!("s{name}"),
                    ..Default::default()
                };
                let cut = controller.create_snapshot(request).await?.into_inner();
                Ok(Told::Size(cut.snapshot.unwrap().size_bytes / MIB))
            }
            Call::DeleteSnapshot(name) => {
                let snapshot_id = snapshot_id(Snapshot::Own(*name));
                let request = csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
                controller.delete_snapshot(request).await?;
                Ok(Told::Done)
            }
            Call::Expand { volume, size } => {
                let request = csi::ControllerExpandVolumeRequest {
                    volume_id: volume_id(*volume),
                    capacity_range: Some(range(*size)),
                    ..Default::default()
                };
                let grown = controller.controller_expand_volume(request).await?.into_inner();
                Ok(Told::Size(grown.capacity_bytes / MIB))
            }
            Call::Get(volume) => {
                let request = csi::ControllerGetVolumeRequest { volume_id: volume_id(*volume) };
                let found = controller.controller_get_volume(request).await?.into_inner();
                Ok(Told::Size(found.volume.unwrap().capacity_bytes / MIB))
            }
            Call::Volumes => {
                let listed = controller.list_volumes(csi::ListVolumesRequest::default()).await?;
                let volumes = listed.into_inner().entries.into_iter().map(|e| e.volume.unwrap());
                let number = |v: csi::Volume| {
                    let number = v.volume_id.strip_prefix("default/v").unwrap().parse().unwrap();
                    (number, v.capacity_bytes / MIB)
                };
                Ok(Told::Volumes(volumes.map(number).collect()))
            }
            _ => {
                let listed =
                    controller.list_snapshots(csi::ListSnapshotsRequest::default()).await?;
                let all = listed.into_inner().entries.into_iter().map(|e| e.snapshot.unwrap());
                let named = |s: csi::Snapshot| {
                    let source: Volume =
                        s.source_volume_id.strip_prefix("default/v").unwrap().parse().unwrap();
                    let name = match s.snapshot_id.strip_prefix("default/s") {
                        Some(own) => Snapshot::Own(own.parse().unwrap()),
                        None => Snapshot::Member(source),
                    };
                    assert_eq!(snapshot_id(name), s.snapshot_id);
                    assert!(s.ready_to_use);
                    (name, (source, s.size_bytes / MIB))
                };
                Ok(Told::Snapshots(all.map(named).collect()))
            }
        }
    }

    async fn node(&self, call: &Call) -> Result<Told, Status> {
        let mut node = self.client.node();
        match call {
            Call::Stage(volume) => {
                let request = csi::NodeStageVolumeRequest {
                    volume_id: volume_id(*volume),
                    staging_target_path: self.staging(*volume),
                    volume_capability: Some(self.capability(*volume)),
                    volume_context: self.context(*volume),
                    ..Default::default()
                };
                node.node_stage_volume(request).await?;
                Ok(Told::Done)
            }
            Call::Unstage(volume) => {
                let request = csi::NodeUnstageVolumeRequest {
                    volume_id: volume_id(*volume),
                    staging_target_path: self.staging(*volume),
                };
                node.node_unstage_volume(request).await?;
                Ok(Told::Done)
            }
            Call::Publish { volume, target } => {
                let request = csi::NodePublishVolumeRequest {
                    volume_id: volume_id(*volume),
                    staging_target_path: self.staging(*volume),
                    target_path: self.target_text(*volume, *target),
                    volume_capability: Some(self.capability(*volume)),
                    volume_context: self.context(*volume),
                    ..Default::default()
                };
                node.node_publish_volume(request).await?;
                Ok(Told::Done)
            }
            Call::Unpublish { volume, target } => {
                let request = csi::NodeUnpublishVolumeRequest {
                    volume_id: volume_id(*volume),
                    target_path: self.target_text(*volume, *target),
                };
                node.node_unpublish_volume(request).await?;
                Ok(Told::Done)
            }
            Call::NodeExpand { volume, target } => {
                let request = csi::NodeExpandVolumeRequest {
                    volume_id: volume_id(*volume),
                    volume_path: self.target_text(*volume, *target),
                    staging_target_path: self.staging(*volume),
                    volume_capability: Some(self.capability(*volume)),
                    ..Default::default()
                };
                node.node_expand_volume(request).await?;
                Ok(Told::Done)
            }
            Call::Stats { volume, target } => {
                let request = csi::NodeGetVolumeStatsRequest {
                    volume_id: volume_id(*volume),
                    volume_path: self.target_text(*volume, *target),
                    ..Default::default()
                };
                let stats = node.node_get_volume_stats(request).await?.into_inner();
                assert!(!stats.usage.is_empty());
                Ok(Told::Done)
            }
            other => panic!("{other:?} is no call to the node"),
        }
    }

    /// What is written there; None: nothing was.
    pub(crate) fn read(&self, place: &Path, volume: Volume) -> std::io::Result<u64> {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; 8];
        let file = if self.is_raw(volume) { place.to_owned() } else { place.join("data") };
        match std::fs::File::open(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file != place => Ok(0),
            file => {
                file?.read_exact_at(&mut bytes, 4096)?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Writes there, durably.
    pub(crate) fn write(&self, place: &Path, volume: Volume, token: u64) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let raw = self.is_raw(volume);
        let file = if raw { place.to_owned() } else { place.join("data") };
        let file = std::fs::OpenOptions::new().write(true).create(!raw).open(file)?;
        file.write_all_at(&token.to_le_bytes(), 4096)?;
        file.sync_all()
    }
}
