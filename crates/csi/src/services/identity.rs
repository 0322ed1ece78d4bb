//! Identity: who the driver is, and whether it is healthy. Answered in every state.

use super::{Answer, Services, State, answer};
use crate::{reply, status::status};
use larder_model::Kind;
use larder_proto::csi::{self, identity_server::Identity};
use std::sync::Arc;
use tonic::{Request, Response};

#[tonic::async_trait]
impl Identity for Services {
    async fn get_plugin_info(
        self: Arc<Self>,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Answer<csi::GetPluginInfoResponse> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.name.to_string(),
            vendor_version: self.version.clone(),
            manifest: self.manifest.clone(),
        }))
    }

    async fn get_plugin_capabilities(
        self: Arc<Self>,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Answer<csi::GetPluginCapabilitiesResponse> {
        let capabilities = self.control.plugin_capabilities();
        let capabilities = capabilities.into_iter().map(reply::plugin_capability).collect();
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    /// "Not ready" keeps a liveness probe from killing a driver that mends its pools after a crash,
    /// and one that finishes its work; an error is for what an administrator must mend.
    async fn probe(self: Arc<Self>, _: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        let ready = |ready| csi::ProbeResponse { ready: Some(ready) };
        match self.gate.state() {
            State::Starting | State::Stopping | State::Stopped => Ok(Response::new(ready(false))),
            State::Failed(fault) => Err(status(&fault.with_kind(Kind::Precondition))),
            State::Ready => answer(self.control.probe().await, ready),
        }
    }
}
