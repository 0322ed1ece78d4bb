//! Node: volumes become usable on this machine.

use super::{Answer, Services, answer};
use crate::{reply, status::status};
use larder_model::{Cx, Fault, Result};
use larder_proto::csi::{self, node_server::Node};
use larder_volumes::node::{NodeCapabilities, NodeEngine, VolumeHealth};
use std::sync::Arc;
use tonic::{Request, Response, Status};

impl Services {
    /// The node engine, where this process serves the node.
    fn node(&self) -> Result<&NodeEngine, Status> {
        self.node.as_ref().ok_or_else(|| {
            status(
                &Fault::unsupported(format!("serve node calls of driver {}", self.name))
                    .hint("this process is its controller only"),
            )
        })
    }

    /// The same, where it offers the RPC.
    fn node_with(
        &self,
        offers: fn(&NodeCapabilities) -> bool,
        rpc: &str,
    ) -> Result<&NodeEngine, Status> {
        let node = self.node()?;
        self.offered_if(offers(&node.capabilities()), rpc)?;
        Ok(node)
    }
}

/// The condition of a volume on this node, for callers of revision 1.12.
fn condition(health: Result<VolumeHealth>) -> csi::VolumeCondition {
    match health {
        Ok(findings) => reply::condition(&findings),
        // That it cannot be told must not hide the numbers.
        Err(fault) => csi::VolumeCondition { abnormal: true, message: fault.to_string() },
    }
}

#[tonic::async_trait]
impl Node for Services {
    async fn node_stage_volume(
        self: Arc<Self>,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        let node = self.node_with(|c| c.stage_unstage, "NodeStageVolume")?;
        let wanted = self.accept(request)?;
        answer(node.stage(wanted, &Cx::new()).await, |()| csi::NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        self: Arc<Self>,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let node = self.node_with(|c| c.stage_unstage, "NodeUnstageVolume")?;
        let wanted = self.accept(request)?;
        answer(node.unstage(wanted, &Cx::new()).await, |()| csi::NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        self: Arc<Self>,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let node = self.node()?;
        let wanted = self.accept(request)?;
        answer(node.publish(wanted, &Cx::new()).await, |()| csi::NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        self: Arc<Self>,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let node = self.node()?;
        let wanted = self.accept(request)?;
        answer(node.unpublish(wanted, &Cx::new()).await, |()| csi::NodeUnpublishVolumeResponse {})
    }

    async fn node_get_volume_stats(
        self: Arc<Self>,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        let node = self.node_with(|c| c.volume_stats, "NodeGetVolumeStats")?;
        let wanted = self.accept(request)?;
        let told = node.capabilities().volume_health;
        let found = match told {
            true => {
                node.stats_and_health(wanted).await.map(|(stats, health)| (stats, Some(health)))
            }
            false => node.stats(wanted).await.map(|stats| (stats, None)),
        };
        answer(found, |(stats, health)| csi::NodeGetVolumeStatsResponse {
            usage: reply::usage(stats),
            volume_condition: health.map(condition),
        })
    }

    async fn node_expand_volume(
        self: Arc<Self>,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let node = self.node_with(|c| c.expand, "NodeExpandVolume")?;
        let wanted = self.accept(request)?;
        answer(node.expand(wanted, &Cx::new()).await, |size| csi::NodeExpandVolumeResponse {
            capacity_bytes: size.as_i64(),
        })
    }

    async fn node_get_volume_health(
        self: Arc<Self>,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Answer<csi::NodeGetVolumeHealthResponse> {
        let node = self.node_with(|c| c.volume_health, "NodeGetVolumeHealth")?;
        let wanted = self.accept(request)?;
        let id = wanted.volume.clone();
        answer(node.volume_health(wanted).await, |findings| csi::NodeGetVolumeHealthResponse {
            volume_health: Some(reply::health(id, findings)),
        })
    }

    async fn node_get_storage_health(
        self: Arc<Self>,
        request: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Answer<csi::NodeGetStorageHealthResponse> {
        let node = self.node_with(|c| c.storage_health, "NodeGetStorageHealth")?;
        self.accept(request)?;
        let backend_health =
            node.storage_health().await.into_iter().map(reply::storage_health).collect();
        Ok(Response::new(csi::NodeGetStorageHealthResponse { backend_health }))
    }

    /// Static, so it is answered in every state; kubelet asks several times per operation.
    async fn node_get_capabilities(
        self: Arc<Self>,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        let capabilities = reply::node_capabilities(self.node()?.capabilities());
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    /// Static, so it is answered in every state: kubelet asks as soon as the driver registers.
    async fn node_get_info(
        self: Arc<Self>,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Answer<csi::NodeGetInfoResponse> {
        Ok(Response::new(reply::node_info(self.node()?.info())))
    }
}
