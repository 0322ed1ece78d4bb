//! Controller: volumes and snapshots come, grow, change and go.

use super::{Answer, Services, answer, pages};
use crate::{
    reply,
    request::{Get, Remove},
};
use larder_model::{Result, volume::HealthEntry};
use larder_proto::csi::{self, controller_server::Controller};
use larder_volumes::control::{
    ControllerCapability as Capability, ListSnapshots, Paging, Validated, VolumeEntry,
};
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response};

/// What was found, as callers of revision 1.12 are told.
fn condition(found: Result<Vec<HealthEntry>>) -> csi::VolumeCondition {
    match found {
        Ok(findings) => reply::condition(&findings),
        // That it cannot be told is what can be told: the listing must not fail for it.
        Err(fault) => csi::VolumeCondition { abnormal: true, message: fault.to_string() },
    }
}

impl Services {
    /// The condition of a volume, for callers of revision 1.12; none where the backend knows
    /// nothing of health.
    async fn condition(&self, entry: &VolumeEntry) -> Option<csi::VolumeCondition> {
        if !self.control.capabilities().contains(&Capability::GetVolumeHealth) {
            return None;
        }
        let health = self.control.volume_health(entry.volume.id.as_str()).await;
        Some(condition(health.map(|health| health.findings)))
    }

    /// The conditions of all volumes of a page, in their order.
    async fn conditions(&self, entries: &[VolumeEntry]) -> Vec<Option<csi::VolumeCondition>> {
        if !self.control.capabilities().contains(&Capability::GetVolumeHealth) {
            return vec![None; entries.len()];
        }
        let ids: Vec<_> = entries.iter().map(|entry| entry.volume.id.clone()).collect();
        match self.control.volumes_health(&ids).await {
            Ok(found) => found.into_iter().map(|found| Some(condition(found))).collect(),
            Err(fault) => vec![Some(condition(Err(fault))); entries.len()],
        }
    }

    async fn volumes(
        &self,
        paging: Paging,
    ) -> Result<(Vec<csi::list_volumes_response::Entry>, String)> {
        let page = self.control.list_volumes(paging).await?;
        let conditions = self.conditions(&page.volumes).await;
        let entries = page.volumes.into_iter().zip(conditions);
        let entries = entries.map(|(entry, condition)| reply::listed_volume(entry, condition));
        Ok((entries.collect(), page.next_token))
    }

    async fn snapshots(
        &self,
        request: ListSnapshots,
    ) -> Result<(Vec<csi::list_snapshots_response::Entry>, String)> {
        let page = self.control.list_snapshots(request).await?;
        let entry = |snapshot| csi::list_snapshots_response::Entry {
            snapshot: Some(reply::snapshot(snapshot)),
        };
        Ok((page.snapshots.into_iter().map(entry).collect(), page.next_token))
    }

    async fn healths(&self, paging: Paging) -> Result<(Vec<csi::VolumeHealth>, String)> {
        let page = self.control.list_volume_health(paging).await?;
        Ok((page.volumes.into_iter().map(reply::volume_health).collect(), page.next_token))
    }
}

#[tonic::async_trait]
impl Controller for Services {
    async fn create_volume(
        self: Arc<Self>,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Answer<csi::CreateVolumeResponse> {
        let wanted = self.accept(request)?;
        answer(self.control.create_volume(wanted).await, |volume| csi::CreateVolumeResponse {
            volume: Some(reply::volume(volume)),
        })
    }

    async fn delete_volume(
        self: Arc<Self>,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Answer<csi::DeleteVolumeResponse> {
        let Remove { id, secrets } = self.accept(request)?;
        let deleted = self.control.delete_volume(&id, secrets).await;
        answer(deleted, |()| csi::DeleteVolumeResponse {})
    }

    async fn controller_publish_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        self.offered(Capability::PublishUnpublishVolume, "ControllerPublishVolume")?;
        let wanted = self.accept(request)?;
        answer(self.control.attach_volume(wanted).await, |publish_context| {
            csi::ControllerPublishVolumeResponse { publish_context }
        })
    }

    async fn controller_unpublish_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        self.offered(Capability::PublishUnpublishVolume, "ControllerUnpublishVolume")?;
        let wanted = self.accept(request)?;
        let detached = self.control.detach_volume(wanted).await;
        answer(detached, |()| csi::ControllerUnpublishVolumeResponse {})
    }

    /// The caller compares what is confirmed with what it asked: it is the request, repeated.
    async fn validate_volume_capabilities(
        self: Arc<Self>,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        let asked = request.get_ref();
        let confirmed = csi::validate_volume_capabilities_response::Confirmed {
            volume_context: asked.volume_context.clone(),
            volume_capabilities: asked.volume_capabilities.clone(),
            parameters: asked.parameters.clone(),
            mutable_parameters: asked.mutable_parameters.clone(),
        };
        let wanted = self.accept(request)?;
        answer(self.control.validate_volume(wanted).await, |validated| match validated {
            Validated::Confirmed => csi::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(confirmed),
                message: String::new(),
            },
            Validated::Refused(message) => {
                csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message }
            }
        })
    }

    async fn list_volumes(
        self: Arc<Self>,
        request: Request<csi::ListVolumesRequest>,
    ) -> Answer<csi::ListVolumesResponse> {
        self.offered(Capability::ListVolumes, "ListVolumes")?;
        let paging = self.accept(request)?;
        let page =
            pages::collect(paging, Message::encoded_len, |paging| self.volumes(paging)).await;
        answer(page, |(entries, next_token)| csi::ListVolumesResponse { entries, next_token })
    }

    async fn get_capacity(
        self: Arc<Self>,
        request: Request<csi::GetCapacityRequest>,
    ) -> Answer<csi::GetCapacityResponse> {
        self.offered(Capability::GetCapacity, "GetCapacity")?;
        let query = self.accept(request)?;
        answer(self.control.capacity(query).await, reply::capacity)
    }

    /// Static, so it is answered in every state.
    async fn controller_get_capabilities(
        self: Arc<Self>,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        use csi::controller_service_capability::rpc::Type;
        let offered = self.control.capabilities();
        // What revision 1.12 calls health.
        let condition = offered.contains(&Capability::GetVolumeHealth);
        let condition = condition.then(|| Type::VolumeCondition.into());
        let capabilities =
            offered.into_iter().map(reply::controller_capability).chain(condition).collect();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        self: Arc<Self>,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        self.offered(Capability::CreateDeleteSnapshot, "CreateSnapshot")?;
        let wanted = self.accept(request)?;
        answer(self.control.create_snapshot(wanted).await, |snapshot| csi::CreateSnapshotResponse {
            snapshot: Some(reply::snapshot(snapshot)),
        })
    }

    async fn delete_snapshot(
        self: Arc<Self>,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        self.offered(Capability::CreateDeleteSnapshot, "DeleteSnapshot")?;
        let Remove { id, secrets } = self.accept(request)?;
        let deleted = self.control.delete_snapshot(&id, secrets).await;
        answer(deleted, |()| csi::DeleteSnapshotResponse {})
    }

    async fn list_snapshots(
        self: Arc<Self>,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Answer<csi::ListSnapshotsResponse> {
        self.offered(Capability::ListSnapshots, "ListSnapshots")?;
        let asked = self.accept(request)?;
        let page = pages::collect(asked.paging.clone(), Message::encoded_len, |paging| {
            self.snapshots(ListSnapshots { paging, ..asked.clone() })
        })
        .await;
        answer(page, |(entries, next_token)| csi::ListSnapshotsResponse { entries, next_token })
    }

    async fn get_snapshot(
        self: Arc<Self>,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Answer<csi::GetSnapshotResponse> {
        self.offered(Capability::GetSnapshot, "GetSnapshot")?;
        let Get { id } = self.accept(request)?;
        answer(self.control.get_snapshot(&id).await, |snapshot| csi::GetSnapshotResponse {
            snapshot: Some(reply::snapshot(snapshot)),
        })
    }

    async fn controller_expand_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        self.offered(Capability::ExpandVolume, "ControllerExpandVolume")?;
        let wanted = self.accept(request)?;
        answer(self.control.expand_volume(wanted).await, |expanded| {
            csi::ControllerExpandVolumeResponse {
                capacity_bytes: expanded.capacity.as_i64(),
                node_expansion_required: expanded.node_expansion_required,
            }
        })
    }

    async fn controller_get_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        self.offered(Capability::GetVolume, "ControllerGetVolume")?;
        let Get { id } = self.accept(request)?;
        let entry = self.control.get_volume(&id).await;
        let condition = match &entry {
            Ok(entry) => self.condition(entry).await,
            Err(_) => None,
        };
        answer(entry, |entry| reply::got_volume(entry, condition))
    }

    async fn controller_modify_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        self.offered(Capability::ModifyVolume, "ControllerModifyVolume")?;
        let wanted = self.accept(request)?;
        let modified = self.control.modify_volume(wanted).await;
        answer(modified, |()| csi::ControllerModifyVolumeResponse {})
    }

    async fn controller_get_volume_health(
        self: Arc<Self>,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Answer<csi::ControllerGetVolumeHealthResponse> {
        self.offered(Capability::GetVolumeHealth, "ControllerGetVolumeHealth")?;
        let Get { id } = self.accept(request)?;
        answer(self.control.volume_health(&id).await, |health| {
            csi::ControllerGetVolumeHealthResponse {
                volume_health: Some(reply::volume_health(health)),
            }
        })
    }

    async fn controller_list_volume_health(
        self: Arc<Self>,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Answer<csi::ControllerListVolumeHealthResponse> {
        self.offered(Capability::ListVolumeHealth, "ControllerListVolumeHealth")?;
        let paging = self.accept(request)?;
        let page =
            pages::collect(paging, Message::encoded_len, |paging| self.healths(paging)).await;
        answer(page, |(entries, next_token)| csi::ControllerListVolumeHealthResponse {
            entries,
            next_token,
        })
    }
}
