//! From what the engines answer to the wire.

use larder_model::{
    Limits,
    topology::Segments,
    trash::{Sort, Trashed},
    volume::{
        Capacity, ContentSource, GroupSnapshot, HealthEntry, HealthStatus, PoolStatus, Snapshot,
        StorageHealth, Volume,
    },
};
use larder_proto::{csi, larder};
use larder_volumes::{
    Running,
    control::{BlockPage, ControllerCapability, PluginCapability, VolumeEntry, VolumeHealth},
    node::{NodeCapabilities, NodeInfo, NodeLimits, Usage, VolumeStats},
};

fn topology(segments: Segments) -> csi::Topology {
    csi::Topology { segments: segments.0 }
}

fn timestamp(at: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

pub(crate) fn volume(volume: Volume) -> csi::Volume {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let source = volume.source.map(|source| csi::VolumeContentSource {
        r#type: Some(match source {
            ContentSource::Snapshot(id) => {
                Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() })
            }
            ContentSource::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
        }),
    });
    csi::Volume {
        capacity_bytes: volume.capacity.as_i64(),
        volume_id: volume.id.to_string(),
        volume_context: volume.context,
        content_source: source,
        accessible_topology: volume.topology.into_iter().map(topology).collect(),
    }
}

/// What a caller of revision 1.12 is told of a volume's health.
pub(crate) fn condition(findings: &[HealthEntry]) -> csi::VolumeCondition {
    let told: Vec<_> = findings.iter().map(|f| format!("{}: {}", f.reason, f.message)).collect();
    csi::VolumeCondition {
        abnormal: !findings.is_empty(),
        message: if told.is_empty() {
            "nothing is known to be wrong".into()
        } else {
            told.join("; ")
        },
    }
}

pub(crate) fn listed_volume(
    entry: VolumeEntry,
    volume_condition: Option<csi::VolumeCondition>,
) -> csi::list_volumes_response::Entry {
    csi::list_volumes_response::Entry {
        status: Some(csi::list_volumes_response::VolumeStatus {
            published_node_ids: entry.published_nodes,
            volume_condition,
        }),
        volume: Some(volume(entry.volume)),
    }
}

pub(crate) fn got_volume(
    entry: VolumeEntry,
    volume_condition: Option<csi::VolumeCondition>,
) -> csi::ControllerGetVolumeResponse {
    csi::ControllerGetVolumeResponse {
        status: Some(csi::controller_get_volume_response::VolumeStatus {
            published_node_ids: entry.published_nodes,
            volume_condition,
        }),
        volume: Some(volume(entry.volume)),
    }
}

pub(crate) fn snapshot(snapshot: Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: snapshot.size.as_i64(),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.source.to_string(),
        creation_time: Some(timestamp(snapshot.created)),
        ready_to_use: snapshot.ready,
        group_snapshot_id: snapshot.group.unwrap_or_default(),
        accessible_topology: snapshot.topology.into_iter().map(topology).collect(),
    }
}

pub(crate) fn group(group: GroupSnapshot) -> csi::VolumeGroupSnapshot {
    let id = group.id.to_string();
    let member = |s: Snapshot| csi::Snapshot { group_snapshot_id: id.clone(), ..snapshot(s) };
    csi::VolumeGroupSnapshot {
        snapshots: group.snapshots.into_iter().map(member).collect(),
        group_snapshot_id: id,
        creation_time: Some(timestamp(group.created)),
        ready_to_use: group.ready,
    }
}

pub(crate) fn capacity(capacity: Capacity) -> csi::GetCapacityResponse {
    csi::GetCapacityResponse {
        available_capacity: capacity.available.as_i64(),
        maximum_volume_size: capacity.largest.map(larder_model::Bytes::as_i64),
        minimum_volume_size: capacity.smallest.map(larder_model::Bytes::as_i64),
    }
}

pub(crate) fn health(volume_id: String, findings: Vec<HealthEntry>) -> csi::VolumeHealth {
    use csi::VolumeHealthErrorType as Wire;
    let entry = |finding: HealthEntry| csi::volume_health::VolumeHealthEntry {
        status: match finding.status {
            HealthStatus::Degraded => Wire::Degraded,
            HealthStatus::Inaccessible => Wire::Inaccessible,
            HealthStatus::DataLoss => Wire::DataLoss,
        }
        .into(),
        reason: finding.reason.to_owned(),
        message: finding.message,
    };
    csi::VolumeHealth { volume_id, health_statuses: findings.into_iter().map(entry).collect() }
}

pub(crate) fn volume_health(volume: VolumeHealth) -> csi::VolumeHealth {
    health(volume.volume_id.to_string(), volume.findings)
}

pub(crate) fn storage_health(
    finding: StorageHealth,
) -> csi::node_get_storage_health_response::StorageBackendHealth {
    use csi::StorageHealthErrorType as Wire;
    csi::node_get_storage_health_response::StorageBackendHealth {
        status: if finding.unreachable { Wire::StorageUnreachable } else { Wire::StorageDegraded }
            .into(),
        reason: finding.reason.to_owned(),
        message: finding.message,
        volume_capability: None,
    }
}

pub(crate) fn blocks(page: BlockPage) -> (i64, Vec<csi::BlockMetadata>) {
    let block = |extent: larder_model::volume::Extent| csi::BlockMetadata {
        // Both lie within the volume's size, which is an i64.
        byte_offset: extent.offset.cast_signed(),
        size_bytes: extent.length.cast_signed(),
    };
    (page.volume_capacity.as_i64(), page.extents.into_iter().map(block).collect())
}

pub(crate) fn controller_capability(
    capability: ControllerCapability,
) -> csi::ControllerServiceCapability {
    use ControllerCapability as C;
    use csi::controller_service_capability::rpc::Type as Wire;
    match capability {
        C::CreateDeleteVolume => Wire::CreateDeleteVolume,
        C::PublishUnpublishVolume => Wire::PublishUnpublishVolume,
        C::ListVolumes => Wire::ListVolumes,
        C::GetCapacity => Wire::GetCapacity,
        C::CreateDeleteSnapshot => Wire::CreateDeleteSnapshot,
        C::ListSnapshots => Wire::ListSnapshots,
        C::CloneVolume => Wire::CloneVolume,
        C::PublishReadonly => Wire::PublishReadonly,
        C::ExpandVolume => Wire::ExpandVolume,
        C::ListVolumesPublishedNodes => Wire::ListVolumesPublishedNodes,
        C::GetVolume => Wire::GetVolume,
        C::SingleNodeMultiWriter => Wire::SingleNodeMultiWriter,
        C::ModifyVolume => Wire::ModifyVolume,
        C::GetSnapshot => Wire::GetSnapshot,
        C::GetVolumeHealth => Wire::GetVolumeHealth,
        C::ListVolumeHealth => Wire::ListVolumeHealth,
    }
    .into()
}

pub(crate) fn plugin_capability(capability: PluginCapability) -> csi::PluginCapability {
    use PluginCapability as C;
    use csi::plugin_capability::{service::Type as Service, volume_expansion::Type as Expansion};
    match capability {
        C::ControllerService => Service::ControllerService.into(),
        C::VolumeAccessibilityConstraints => Service::VolumeAccessibilityConstraints.into(),
        C::GroupControllerService => Service::GroupControllerService.into(),
        C::SnapshotMetadataService => Service::SnapshotMetadataService.into(),
        C::SnapshotAccessibilityConstraints => Service::SnapshotAccessibilityConstraints.into(),
        C::VolumeExpansionOnline => Expansion::Online.into(),
        C::VolumeExpansionOffline => Expansion::Offline.into(),
    }
}

pub(crate) fn node_capabilities(capabilities: NodeCapabilities) -> Vec<csi::NodeServiceCapability> {
    use csi::node_service_capability::rpc::Type as Wire;
    let NodeCapabilities {
        stage_unstage,
        volume_stats,
        expand,
        single_node_multi_writer,
        mount_group,
        volume_health,
        storage_health,
    } = capabilities;
    [
        (stage_unstage, Wire::StageUnstageVolume),
        (volume_stats, Wire::GetVolumeStats),
        (expand, Wire::ExpandVolume),
        (single_node_multi_writer, Wire::SingleNodeMultiWriter),
        (mount_group, Wire::VolumeMountGroup),
        (volume_health, Wire::GetVolumeHealth),
        // What revision 1.12 calls health.
        (volume_health && volume_stats, Wire::VolumeCondition),
        (storage_health, Wire::GetStorageHealth),
    ]
    .into_iter()
    .filter(|(offered, _)| *offered)
    .map(|(_, capability)| capability.into())
    .collect()
}

pub(crate) fn node_info(info: NodeInfo) -> csi::NodeGetInfoResponse {
    csi::NodeGetInfoResponse {
        node_id: info.node_id,
        max_volumes_per_node: info.max_volumes.map_or(0, i64::from),
        accessible_topology: info.topology.map(topology),
    }
}

pub(crate) fn usage(stats: VolumeStats) -> Vec<csi::VolumeUsage> {
    use csi::volume_usage::Unit;
    let usage = |usage: Usage, unit: Unit| csi::VolumeUsage {
        available: signed(usage.available),
        total: signed(usage.total),
        used: signed(usage.used),
        unit: unit.into(),
    };
    match stats {
        VolumeStats::Mounted { bytes, inodes } => {
            vec![usage(bytes, Unit::Bytes), usage(inodes, Unit::Inodes)]
        }
        VolumeStats::Block { total } => {
            vec![usage(Usage { total: total.get(), ..Usage::default() }, Unit::Bytes)]
        }
    }
}

/// Numbers above what the wire can carry, which no real thing has, are cut.
fn signed(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

pub(crate) fn operation(running: Running) -> larder::Operation {
    larder::Operation {
        operation: running.operation.to_owned(),
        object: running.object,
        age_millis: signed(running.age.as_millis()),
        step: running.step.to_owned(),
        done: signed(running.done),
        total: signed(running.total),
    }
}

pub(crate) fn trashed(item: Trashed) -> larder::Trashed {
    larder::Trashed {
        id: item.id,
        pool: item.pool.to_string(),
        kind: match item.sort {
            Sort::Volume => "volume",
            Sort::Snapshot => "snapshot",
        }
        .to_owned(),
        origin: item.origin,
        name: item.name,
        source: item.source.unwrap_or_default(),
        size_bytes: item.size.as_i64(),
        allocated_bytes: item.allocated.as_i64(),
        deleted_unix_millis: item.deleted.as_millisecond(),
        due_unix_millis: item.due.map_or(0, jiff::Timestamp::as_millisecond),
    }
}

pub(crate) fn limits(told: NodeLimits) -> larder::GetLimitsResponse {
    let numbers = |limits: Limits| larder::Limits {
        max_read_bps: signed(limits.max_read_bps),
        max_write_bps: signed(limits.max_write_bps),
        max_read_iops: signed(limits.max_read_iops),
        max_write_iops: signed(limits.max_write_iops),
    };
    larder::GetLimitsResponse {
        asked: Some(numbers(told.asked)),
        device: told.device.map(|device| device.to_string()).unwrap_or_default(),
        held: Some(numbers(told.held)),
        cgroup: told.cgroup.map(|path| path.display().to_string()).unwrap_or_default(),
        fault: told.fault.unwrap_or_default(),
        caveats: told.caveats,
    }
}

pub(crate) fn pool(pool: PoolStatus) -> larder::Pool {
    larder::Pool {
        name: pool.name,
        location: pool.location,
        identity: pool.identity.unwrap_or_default(),
        storage: pool.storage,
        total_bytes: pool.total.as_i64(),
        free_bytes: pool.free.as_i64(),
        provisioned_bytes: pool.provisioned.as_i64(),
        volumes: signed(pool.volumes),
        snapshots: signed(pool.snapshots),
        warnings: pool.warnings,
        fault: pool.fault.unwrap_or_default(),
    }
}
