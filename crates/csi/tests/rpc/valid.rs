//! A valid request of every RPC, with every field set.

use crate::message::{self, descriptor};
use larder_proto::csi::{
    self, CapacityRange, Topology, TopologyRequirement, VolumeCapability, VolumeContentSource,
    volume_capability::access_mode::Mode, volume_content_source,
};
use prost::Message;
use prost_reflect::DynamicMessage;
use std::{collections::BTreeMap, path::Path};

/// The volume, snapshot and group that [`crate::support::Rig::filled`] makes.
pub(crate) const VOLUME: &str = "default/vol";
pub(crate) const SNAPSHOT: &str = "default/snap";
pub(crate) const NEWER_SNAPSHOT: &str = "default/snap-2";
pub(crate) const GROUP: &str = "default/group";
pub(crate) const NODE: &str = "node-1";

pub(crate) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn mounted() -> VolumeCapability {
    use csi::volume_capability::AccessType;
    let mut capability = VolumeCapability::mounted("ext4", &["noatime"], Mode::SingleNodeWriter);
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.volume_mount_group = "1000".to_owned();
    }
    capability
}

pub(crate) fn block() -> VolumeCapability {
    VolumeCapability::raw_block(Mode::SingleNodeWriter)
}

fn secrets() -> BTreeMap<String, String> {
    map(&[("password", "hunter2")])
}

fn here() -> Topology {
    Topology { segments: map(&[("topology.larder.dev/node", NODE)]) }
}

fn range(required_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes: 4 << 30 })
}

fn from_snapshot() -> Option<VolumeContentSource> {
    use volume_content_source::{SnapshotSource, Type};
    let snapshot = SnapshotSource { snapshot_id: SNAPSHOT.to_owned() };
    Some(VolumeContentSource { r#type: Some(Type::Snapshot(snapshot)) })
}

/// A request of the RPC; paths lie in `folder`.
pub(crate) fn request(rpc: &str, folder: &Path) -> DynamicMessage {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let text = str::to_owned;
    let requirement =
        Some(TopologyRequirement { requisite: vec![here()], preferred: vec![here()] });
    let context = || map(&[("csi.storage.k8s.io/pod.name", "web-0")]);
    let tier = || map(&[("tier", "gold")]);
    let bytes = match rpc {
        "GetPluginInfo"
        | "GetPluginCapabilities"
        | "Probe"
        | "ControllerGetCapabilities"
        | "NodeGetCapabilities"
        | "NodeGetInfo"
        | "GroupControllerGetCapabilities" => Vec::new(),
        "CreateVolume" => csi::CreateVolumeRequest {
            name: text("restored"),
            capacity_range: range(1 << 30),
            volume_capabilities: vec![mounted()],
            parameters: map(&[("pool", "default"), ("csi.storage.k8s.io/pvc/name", "data")]),
            secrets: secrets(),
            volume_content_source: from_snapshot(),
            accessibility_requirements: requirement,
            mutable_parameters: tier(),
        }
        .encode_to_vec(),
        "DeleteVolume" => {
            csi::DeleteVolumeRequest { volume_id: text("default/gone"), secrets: secrets() }
                .encode_to_vec()
        }
        "ControllerPublishVolume" => csi::ControllerPublishVolumeRequest {
            volume_id: text(VOLUME),
            node_id: text(NODE),
            volume_capability: Some(mounted()),
            readonly: true,
            secrets: secrets(),
            volume_context: context(),
        }
        .encode_to_vec(),
        "ControllerUnpublishVolume" => csi::ControllerUnpublishVolumeRequest {
            volume_id: text(VOLUME),
            node_id: text(NODE),
            secrets: secrets(),
        }
        .encode_to_vec(),
        "ValidateVolumeCapabilities" => csi::ValidateVolumeCapabilitiesRequest {
            volume_id: text(VOLUME),
            volume_context: context(),
            volume_capabilities: vec![mounted()],
            parameters: map(&[("pool", "default")]),
            secrets: secrets(),
            mutable_parameters: tier(),
        }
        .encode_to_vec(),
        "ListVolumes" => csi::ListVolumesRequest { max_entries: 10, starting_token: String::new() }
            .encode_to_vec(),
        "ControllerGetVolume" => {
            csi::ControllerGetVolumeRequest { volume_id: text(VOLUME) }.encode_to_vec()
        }
        "ControllerModifyVolume" => csi::ControllerModifyVolumeRequest {
            volume_id: text(VOLUME),
            secrets: secrets(),
            mutable_parameters: tier(),
        }
        .encode_to_vec(),
        "GetCapacity" => csi::GetCapacityRequest {
            volume_capabilities: vec![mounted()],
            parameters: map(&[("pool", "default")]),
            accessible_topology: Some(here()),
        }
        .encode_to_vec(),
        "CreateSnapshot" => csi::CreateSnapshotRequest {
            source_volume_id: text(VOLUME),
            name: text("snap"),
            secrets: secrets(),
            parameters: map(&[("csi.storage.k8s.io/volumesnapshot/name", "x")]),
            accessibility_requirements: requirement,
        }
        .encode_to_vec(),
        "DeleteSnapshot" => {
            csi::DeleteSnapshotRequest { snapshot_id: text("default/no-snap"), secrets: secrets() }
                .encode_to_vec()
        }
        "ListSnapshots" => csi::ListSnapshotsRequest {
            max_entries: 10,
            starting_token: String::new(),
            source_volume_id: text(VOLUME),
            snapshot_id: text(SNAPSHOT),
            secrets: secrets(),
        }
        .encode_to_vec(),
        "GetSnapshot" => {
            csi::GetSnapshotRequest { snapshot_id: text(SNAPSHOT), secrets: secrets() }
                .encode_to_vec()
        }
        "ControllerExpandVolume" => csi::ControllerExpandVolumeRequest {
            volume_id: text(VOLUME),
            capacity_range: range(2 << 30),
            secrets: secrets(),
            volume_capability: Some(mounted()),
        }
        .encode_to_vec(),
        "ControllerGetVolumeHealth" => {
            csi::ControllerGetVolumeHealthRequest { volume_id: text(VOLUME), secrets: secrets() }
                .encode_to_vec()
        }
        "ControllerListVolumeHealth" => csi::ControllerListVolumeHealthRequest {
            max_entries: 10,
            starting_token: String::new(),
            secrets: secrets(),
        }
        .encode_to_vec(),
        "NodeStageVolume" => csi::NodeStageVolumeRequest {
            volume_id: text(VOLUME),
            publish_context: context(),
            staging_target_path: path("staging"),
            volume_capability: Some(mounted()),
            secrets: secrets(),
            volume_context: context(),
        }
        .encode_to_vec(),
        "NodeUnstageVolume" => csi::NodeUnstageVolumeRequest {
            volume_id: text(VOLUME),
            staging_target_path: path("staging"),
        }
        .encode_to_vec(),
        "NodePublishVolume" => csi::NodePublishVolumeRequest {
            volume_id: text(VOLUME),
            publish_context: context(),
            staging_target_path: path("staging"),
            target_path: path("pod/target"),
            volume_capability: Some(mounted()),
            readonly: true,
            secrets: secrets(),
            volume_context: context(),
        }
        .encode_to_vec(),
        "NodeUnpublishVolume" => csi::NodeUnpublishVolumeRequest {
            volume_id: text(VOLUME),
            target_path: path("pod/target"),
        }
        .encode_to_vec(),
        "NodeGetVolumeStats" => csi::NodeGetVolumeStatsRequest {
            volume_id: text(VOLUME),
            volume_path: path("pod/target"),
            staging_target_path: path("staging"),
        }
        .encode_to_vec(),
        "NodeExpandVolume" => csi::NodeExpandVolumeRequest {
            volume_id: text(VOLUME),
            volume_path: path("pod/target"),
            capacity_range: range(1 << 30),
            staging_target_path: path("staging"),
            volume_capability: Some(mounted()),
            secrets: secrets(),
        }
        .encode_to_vec(),
        "NodeGetVolumeHealth" => csi::NodeGetVolumeHealthRequest {
            volume_id: text(VOLUME),
            volume_publish_path: path("pod/target"),
            staging_target_path: path("staging"),
        }
        .encode_to_vec(),
        "NodeGetStorageHealth" => {
            csi::NodeGetStorageHealthRequest { secrets: secrets() }.encode_to_vec()
        }
        "CreateVolumeGroupSnapshot" => csi::CreateVolumeGroupSnapshotRequest {
            name: text("group"),
            source_volume_ids: vec![text(VOLUME)],
            secrets: secrets(),
            parameters: map(&[("csi.storage.k8s.io/volumegroupsnapshot/name", "x")]),
        }
        .encode_to_vec(),
        "DeleteVolumeGroupSnapshot" => csi::DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: text("default/no-group"),
            snapshot_ids: vec![text("default/no-snap")],
            secrets: secrets(),
        }
        .encode_to_vec(),
        "GetVolumeGroupSnapshot" => csi::GetVolumeGroupSnapshotRequest {
            group_snapshot_id: text("default/no-group"),
            snapshot_ids: vec![text("default/no-snap")],
            secrets: secrets(),
        }
        .encode_to_vec(),
        "GetMetadataAllocated" => csi::GetMetadataAllocatedRequest {
            snapshot_id: text(SNAPSHOT),
            starting_offset: 4096,
            max_results: 10,
            secrets: secrets(),
        }
        .encode_to_vec(),
        "GetMetadataDelta" => csi::GetMetadataDeltaRequest {
            base_snapshot_id: text(SNAPSHOT),
            target_snapshot_id: text(NEWER_SNAPSHOT),
            starting_offset: 4096,
            max_results: 10,
            secrets: secrets(),
        }
        .encode_to_vec(),
        other => panic!("no valid request of {other} is written down"),
    };
    let descriptor = descriptor(message::method(rpc).request);
    let request = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
    for field in descriptor.fields().filter(|field| field.containing_oneof().is_none()) {
        // The first page is asked for without a token.
        let unset = !request.has_field(&field) && field.name() != "starting_token";
        assert!(!unset, "{rpc}: {} is not set", field.name());
    }
    request
}
