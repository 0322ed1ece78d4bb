//! Requests of the controller, group controller and snapshot metadata services.

use super::{Check, field};
use larder_model::{Result, Secrets};
use larder_proto::csi;
use larder_volumes::control::{
    AttachVolume, CreateGroup, CreateSnapshot, CreateVolume, DetachVolume, ExpandVolume,
    GroupMembers, ListSnapshots, ModifyVolume, Paging, QueryBlocks, QueryCapacity, SourceId,
    ValidateVolume,
};

/// What shall go: an id, and the credentials for it.
#[derive(Debug)]
pub(crate) struct Remove {
    pub(crate) id: String,
    pub(crate) secrets: Secrets,
}

/// What is asked for: an id.
#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) id: String,
}

fn page(max_entries: i32, starting_token: String) -> Result<Paging> {
    Ok(Paging {
        max_entries: field::max("max_entries", max_entries)?,
        starting_token: field::token(starting_token)?,
    })
}

impl Check for csi::CreateVolumeRequest {
    type Typed = CreateVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.name)
    }
    fn check(self) -> Result<CreateVolume> {
        Ok(CreateVolume {
            name: field::name(self.name)?,
            capacity: field::optional_range("capacity_range", self.capacity_range)?
                .unwrap_or_default(),
            capabilities: field::capabilities("volume_capabilities", self.volume_capabilities)?,
            parameters: field::attributes("parameters", self.parameters)?,
            mutable_parameters: field::attributes("mutable_parameters", self.mutable_parameters)?,
            source: self.volume_content_source.map(source).transpose()?,
            topology: field::topology(self.accessibility_requirements)?,
            secrets: field::secrets(self.secrets)?,
            ephemeral: false,
        })
    }
}

fn source(source: csi::VolumeContentSource) -> Result<SourceId> {
    use csi::volume_content_source::Type;
    let field = "volume_content_source";
    match source.r#type {
        // A kind that is newer than this crate arrives as none, too.
        None => Err(field::missing(format_args!("{field}.type"))
            .hint("name a snapshot or a volume as the source")),
        Some(Type::Snapshot(s)) => {
            field::id(format_args!("{field}.snapshot.snapshot_id"), s.snapshot_id)
                .map(SourceId::Snapshot)
        }
        Some(Type::Volume(v)) => {
            field::id(format_args!("{field}.volume.volume_id"), v.volume_id).map(SourceId::Volume)
        }
    }
}

impl Check for csi::DeleteVolumeRequest {
    type Typed = Remove;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<Remove> {
        Ok(Remove {
            id: field::id("volume_id", self.volume_id)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::ControllerPublishVolumeRequest {
    type Typed = AttachVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<AttachVolume> {
        Ok(AttachVolume {
            volume_id: field::id("volume_id", self.volume_id)?,
            node_id: field::node_id(self.node_id)?,
            capability: field::capability("volume_capability", self.volume_capability)?,
            readonly: self.readonly,
            context: field::attributes("volume_context", self.volume_context)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::ControllerUnpublishVolumeRequest {
    type Typed = DetachVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<DetachVolume> {
        Ok(DetachVolume {
            volume_id: field::id("volume_id", self.volume_id)?,
            node_id: field::optional_node_id(self.node_id)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::ValidateVolumeCapabilitiesRequest {
    type Typed = ValidateVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<ValidateVolume> {
        field::secrets(self.secrets)?;
        Ok(ValidateVolume {
            volume_id: field::id("volume_id", self.volume_id)?,
            context: field::attributes("volume_context", self.volume_context)?,
            capabilities: field::capabilities("volume_capabilities", self.volume_capabilities)?,
            parameters: field::attributes("parameters", self.parameters)?,
            mutable_parameters: field::attributes("mutable_parameters", self.mutable_parameters)?,
        })
    }
}

impl Check for csi::ListVolumesRequest {
    type Typed = Paging;
    fn check(self) -> Result<Paging> {
        page(self.max_entries, self.starting_token)
    }
}

impl Check for csi::ControllerListVolumeHealthRequest {
    type Typed = Paging;
    fn check(self) -> Result<Paging> {
        field::secrets(self.secrets)?;
        page(self.max_entries, self.starting_token)
    }
}

impl Check for csi::ControllerGetVolumeRequest {
    type Typed = Get;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<Get> {
        Ok(Get { id: field::id("volume_id", self.volume_id)? })
    }
}

impl Check for csi::ControllerGetVolumeHealthRequest {
    type Typed = Get;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<Get> {
        field::secrets(self.secrets)?;
        Ok(Get { id: field::id("volume_id", self.volume_id)? })
    }
}

impl Check for csi::ControllerModifyVolumeRequest {
    type Typed = ModifyVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<ModifyVolume> {
        let mutable = "mutable_parameters";
        if self.mutable_parameters.is_empty() {
            return Err(field::missing(mutable));
        }
        Ok(ModifyVolume {
            volume_id: field::id("volume_id", self.volume_id)?,
            mutable_parameters: field::attributes(mutable, self.mutable_parameters)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::GetCapacityRequest {
    type Typed = QueryCapacity;
    fn check(self) -> Result<QueryCapacity> {
        let (capabilities, topology) = ("volume_capabilities", "accessible_topology");
        Ok(QueryCapacity {
            capabilities: field::optional_capabilities(capabilities, self.volume_capabilities)?,
            parameters: field::attributes("parameters", self.parameters)?,
            topology: self.accessible_topology.map(|t| field::segments(topology, t)).transpose()?,
        })
    }
}

impl Check for csi::CreateSnapshotRequest {
    type Typed = CreateSnapshot;
    fn subject(&self) -> Option<&str> {
        Some(&self.source_volume_id)
    }
    fn check(self) -> Result<CreateSnapshot> {
        Ok(CreateSnapshot {
            name: field::name(self.name)?,
            source_volume_id: field::id("source_volume_id", self.source_volume_id)?,
            parameters: field::attributes("parameters", self.parameters)?,
            topology: field::topology(self.accessibility_requirements)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::DeleteSnapshotRequest {
    type Typed = Remove;
    fn subject(&self) -> Option<&str> {
        Some(&self.snapshot_id)
    }
    fn check(self) -> Result<Remove> {
        Ok(Remove {
            id: field::id("snapshot_id", self.snapshot_id)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::GetSnapshotRequest {
    type Typed = Get;
    fn subject(&self) -> Option<&str> {
        Some(&self.snapshot_id)
    }
    fn check(self) -> Result<Get> {
        field::secrets(self.secrets)?;
        Ok(Get { id: field::id("snapshot_id", self.snapshot_id)? })
    }
}

impl Check for csi::ListSnapshotsRequest {
    type Typed = ListSnapshots;
    fn check(self) -> Result<ListSnapshots> {
        field::secrets(self.secrets)?;
        Ok(ListSnapshots {
            paging: page(self.max_entries, self.starting_token)?,
            source_volume_id: field::text("source_volume_id", self.source_volume_id)?,
            snapshot_id: field::text("snapshot_id", self.snapshot_id)?,
        })
    }
}

impl Check for csi::ControllerExpandVolumeRequest {
    type Typed = ExpandVolume;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<ExpandVolume> {
        Ok(ExpandVolume {
            volume_id: field::id("volume_id", self.volume_id)?,
            capacity: field::range("capacity_range", self.capacity_range)?,
            capability: field::optional_capability("volume_capability", self.volume_capability)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::CreateVolumeGroupSnapshotRequest {
    type Typed = CreateGroup;
    fn subject(&self) -> Option<&str> {
        Some(&self.name)
    }
    fn check(self) -> Result<CreateGroup> {
        Ok(CreateGroup {
            name: field::name(self.name)?,
            source_volume_ids: field::ids("source_volume_ids", self.source_volume_ids)?,
            parameters: field::attributes("parameters", self.parameters)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::DeleteVolumeGroupSnapshotRequest {
    type Typed = GroupMembers;
    fn subject(&self) -> Option<&str> {
        Some(&self.group_snapshot_id)
    }
    fn check(self) -> Result<GroupMembers> {
        field::secrets(self.secrets)?;
        group(self.group_snapshot_id, self.snapshot_ids)
    }
}

impl Check for csi::GetVolumeGroupSnapshotRequest {
    type Typed = GroupMembers;
    fn subject(&self) -> Option<&str> {
        Some(&self.group_snapshot_id)
    }
    fn check(self) -> Result<GroupMembers> {
        field::secrets(self.secrets)?;
        group(self.group_snapshot_id, self.snapshot_ids)
    }
}

fn group(group_snapshot_id: String, snapshot_ids: Vec<String>) -> Result<GroupMembers> {
    Ok(GroupMembers {
        group_snapshot_id: field::id("group_snapshot_id", group_snapshot_id)?,
        // None is right where the group is not there, which the engine finds out.
        snapshot_ids: field::any_ids("snapshot_ids", snapshot_ids)?,
    })
}

/// A negative offset is `OutOfRange` by the engine, like one beyond the end.
impl Check for csi::GetMetadataAllocatedRequest {
    type Typed = QueryBlocks;
    fn subject(&self) -> Option<&str> {
        Some(&self.snapshot_id)
    }
    fn check(self) -> Result<QueryBlocks> {
        field::secrets(self.secrets)?;
        Ok(QueryBlocks {
            base_snapshot_id: None,
            snapshot_id: field::id("snapshot_id", self.snapshot_id)?,
            starting_offset: self.starting_offset,
            max_results: field::max("max_results", self.max_results)?,
        })
    }
}

impl Check for csi::GetMetadataDeltaRequest {
    type Typed = QueryBlocks;
    fn subject(&self) -> Option<&str> {
        Some(&self.target_snapshot_id)
    }
    fn check(self) -> Result<QueryBlocks> {
        field::secrets(self.secrets)?;
        Ok(QueryBlocks {
            base_snapshot_id: Some(field::id("base_snapshot_id", self.base_snapshot_id)?),
            snapshot_id: field::id("target_snapshot_id", self.target_snapshot_id)?,
            starting_offset: self.starting_offset,
            max_results: field::max("max_results", self.max_results)?,
        })
    }
}
