//! A driver whose volumes must be attached, and grow only while they are not: the smallest that
//! kubelet takes, for what no driver of ours does. It runs on one node, as a copy of this test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use larder_csi::authority::Accepted;
use larder_proto::{
    csi::{self, controller_server::Controller, identity_server::Identity, node_server::Node},
    pluginregistration::{
        CSI_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{Registration, RegistrationServer},
    },
};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};

/// Its name.
pub(crate) const NAME: &str = "attach.volumes.test";
/// Tells a copy of this test that it is the driver: the node's name.
pub(crate) const SERVES: &str = "LARDER_ATTACH_DRIVER";
/// Its own socket.
pub(crate) const SOCKET: &str = "/var/lib/kubelet/plugins/attach.volumes.test/csi.sock";
const REGISTRY: &str = "/var/lib/kubelet/plugins_registry/attach.volumes.test-reg.sock";
const DATA: &str = "/var/lib/larder-volumes/attach";
/// Attachments fail while this file is there.
pub(crate) const BROKEN: &str = "/var/lib/larder-volumes/attach-broken";

type Answer<T> = Result<Response<T>, Status>;

#[derive(Default)]
struct Driver {
    node: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sizes: BTreeMap<String, i64>,
    attached: BTreeMap<String, BTreeSet<String>>,
}

#[test]
fn the_driver_of_the_attach_tests() {
    let Ok(node) = std::env::var(SERVES) else { return };
    let driver = Arc::new(Driver { node, ..Driver::default() });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listen = |path: &str| {
        let _ = fs::remove_file(path);
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        let accepted = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        // kubelet's calls have an authority that the library does not take.
        accepted.map(|stream| stream.map(Accepted::new))
    };
    runtime.block_on(async {
        let serves = Server::builder()
            .add_service(csi::identity_server::IdentityServer::from_arc(driver.clone()))
            .add_service(csi::controller_server::ControllerServer::from_arc(driver.clone()))
            .add_service(csi::node_server::NodeServer::from_arc(driver.clone()))
            .serve_with_incoming(listen(SOCKET));
        let registers = Server::builder()
            .add_service(RegistrationServer::from_arc(driver.clone()))
            .serve_with_incoming(listen(REGISTRY));
        tokio::try_join!(serves, registers).unwrap();
    });
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(self: Arc<Self>, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.into(),
            name: NAME.into(),
            endpoint: SOCKET.into(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        self: Arc<Self>,
        status: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        assert!(status.get_ref().plugin_registered, "{status:?}");
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        self: Arc<Self>,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Answer<csi::GetPluginInfoResponse> {
        let name = NAME.into();
        Ok(Response::new(csi::GetPluginInfoResponse { name, ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        self: Arc<Self>,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Answer<csi::GetPluginCapabilitiesResponse> {
        use csi::plugin_capability::{Service, Type, service};
        let r#type = service::Type::ControllerService.into();
        let capability = csi::PluginCapability { r#type: Some(Type::Service(Service { r#type })) };
        let capabilities = vec![capability];
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(self: Arc<Self>, _: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn controller_get_capabilities(
        self: Arc<Self>,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        use csi::controller_service_capability::{Rpc, Type, rpc::Type as Can};
        let can = |can: Can| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: can.into() })),
        };
        let capabilities = [
            Can::CreateDeleteVolume,
            Can::PublishUnpublishVolume,
            Can::ListVolumes,
            Can::ListVolumesPublishedNodes,
            Can::ExpandVolume,
        ];
        let capabilities = capabilities.into_iter().map(can).collect();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume(
        self: Arc<Self>,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Answer<csi::CreateVolumeResponse> {
        let csi::CreateVolumeRequest { name, capacity_range, .. } = request.into_inner();
        let capacity_bytes = capacity_range.map_or(1 << 20, |range| range.required_bytes);
        fs::create_dir_all(Path::new(DATA).join(&name))?;
        self.state.lock().unwrap().sizes.insert(name.clone(), capacity_bytes);
        let volume = csi::Volume { volume_id: name, capacity_bytes, ..Default::default() };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        self: Arc<Self>,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Answer<csi::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        let mut state = self.state.lock().unwrap();
        if state.attached.get(&id).is_some_and(|nodes| !nodes.is_empty()) {
            return Err(Status::failed_precondition("it is attached"));
        }
        state.sizes.remove(&id);
        let _ = fs::remove_dir_all(Path::new(DATA).join(&id));
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        let csi::ControllerPublishVolumeRequest { volume_id, node_id, .. } = request.into_inner();
        if Path::new(BROKEN).exists() {
            return Err(Status::resource_exhausted("no slot is free"));
        }
        let mut state = self.state.lock().unwrap();
        let nodes = state.attached.entry(volume_id.clone()).or_default();
        if nodes.iter().any(|node| *node != node_id) {
            return Err(Status::failed_precondition("it is attached elsewhere"));
        }
        nodes.insert(node_id);
        let publish_context = [("device".to_owned(), volume_id)].into();
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        let csi::ControllerUnpublishVolumeRequest { volume_id, node_id, .. } = request.into_inner();
        let mut state = self.state.lock().unwrap();
        state.attached.entry(volume_id).or_default().remove(&node_id);
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    async fn list_volumes(
        self: Arc<Self>,
        _: Request<csi::ListVolumesRequest>,
    ) -> Answer<csi::ListVolumesResponse> {
        use csi::list_volumes_response::{Entry, VolumeStatus};
        let state = self.state.lock().unwrap();
        let entry = |(id, size): (&String, &i64)| Entry {
            volume: Some(csi::Volume {
                volume_id: id.clone(),
                capacity_bytes: *size,
                ..Default::default()
            }),
            status: Some(VolumeStatus {
                published_node_ids: state.attached.get(id).into_iter().flatten().cloned().collect(),
                ..Default::default()
            }),
        };
        let entries = state.sizes.iter().map(entry).collect();
        Ok(Response::new(csi::ListVolumesResponse { entries, ..Default::default() }))
    }

    async fn controller_expand_volume(
        self: Arc<Self>,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        let csi::ControllerExpandVolumeRequest { volume_id, capacity_range, .. } =
            request.into_inner();
        let mut state = self.state.lock().unwrap();
        if state.attached.get(&volume_id).is_some_and(|nodes| !nodes.is_empty()) {
            return Err(Status::failed_precondition("it grows only while nobody uses it"));
        }
        let capacity_bytes = capacity_range.map_or(0, |range| range.required_bytes);
        state.sizes.insert(volume_id, capacity_bytes);
        let answer =
            csi::ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: false };
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        self: Arc<Self>,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        Ok(Response::new(csi::NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(
        self: Arc<Self>,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Answer<csi::NodeGetInfoResponse> {
        let node_id = format!("id-of-{}", self.node);
        Ok(Response::new(csi::NodeGetInfoResponse { node_id, ..Default::default() }))
    }

    async fn node_publish_volume(
        self: Arc<Self>,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let request = request.into_inner();
        if request.publish_context.get("device") != Some(&request.volume_id) {
            return Err(Status::failed_precondition("it is not attached"));
        }
        fs::create_dir_all(&request.target_path)?;
        let data = Path::new(DATA).join(&request.volume_id);
        run("mount", &["--bind", data.to_str().unwrap(), &request.target_path])?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        self: Arc<Self>,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let target = request.into_inner().target_path;
        if Path::new(&target).exists() {
            let _ = run("umount", &[&target]);
            fs::remove_dir(&target)?;
        }
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }
}

fn run(program: &str, words: &[&str]) -> Result<(), Status> {
    let status = std::process::Command::new(program).args(words).status()?;
    if status.success() { Ok(()) } else { Err(Status::internal(format!("{program}: {status}"))) }
}
