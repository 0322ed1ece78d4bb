//! GroupController: several volumes cut at one point.

use super::{Answer, Services, answer};
use crate::reply;
use larder_proto::csi::{self, group_controller_server::GroupController};
use larder_volumes::control::PluginCapability;
use std::sync::Arc;
use tonic::{Request, Response, Status};

impl Services {
    fn groups_offered(&self, rpc: &str) -> Result<(), Status> {
        let capabilities = self.control.plugin_capabilities();
        self.offered_if(capabilities.contains(&PluginCapability::GroupControllerService), rpc)
    }
}

#[tonic::async_trait]
impl GroupController for Services {
    async fn group_controller_get_capabilities(
        self: Arc<Self>,
        _: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::GroupControllerGetCapabilitiesResponse> {
        use csi::group_controller_service_capability::rpc::Type;
        self.groups_offered("GroupControllerGetCapabilities")?;
        let capabilities = vec![Type::CreateDeleteGetVolumeGroupSnapshot.into()];
        Ok(Response::new(csi::GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        self: Arc<Self>,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::CreateVolumeGroupSnapshotResponse> {
        self.groups_offered("CreateVolumeGroupSnapshot")?;
        let wanted = self.accept(request)?;
        answer(self.control.create_group(wanted).await, |group| {
            csi::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(reply::group(group)) }
        })
    }

    async fn delete_volume_group_snapshot(
        self: Arc<Self>,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::DeleteVolumeGroupSnapshotResponse> {
        self.groups_offered("DeleteVolumeGroupSnapshot")?;
        let group = self.accept(request)?;
        let deleted = self.control.delete_group(group).await;
        answer(deleted, |()| csi::DeleteVolumeGroupSnapshotResponse {})
    }

    async fn get_volume_group_snapshot(
        self: Arc<Self>,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::GetVolumeGroupSnapshotResponse> {
        self.groups_offered("GetVolumeGroupSnapshot")?;
        let group = self.accept(request)?;
        answer(self.control.get_group(group).await, |group| csi::GetVolumeGroupSnapshotResponse {
            group_snapshot: Some(reply::group(group)),
        })
    }
}
