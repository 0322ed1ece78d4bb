//! A driver, as the controllers see it: what it is called, what it can do, and calls with a deadline.

use larder_csi::{Client, status};
use larder_proto::csi;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Code, Request, Response, Status};

pub use csi::controller_service_capability::rpc::Type as ControllerCan;
pub use csi::plugin_capability::service::Type as PluginCan;

/// Upper bounds in seconds, those of the Go sidecars.
const BUCKETS: [f64; 13] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// How long to wait before a driver that is not ready is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a driver that works is asked whether it is still there.
const LOOK: Duration = Duration::from_secs(3);
/// How long nobody has answered at its socket when a driver is gone: the update of a container takes
/// less.
const GONE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    driver_name: Arc<str>,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

/// The measurements of all calls to drivers, named as those of the Go sidecars.
#[derive(Debug, Clone)]
pub struct CallMetrics(Family<CallLabels, Histogram, fn() -> Histogram>);

impl CallMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let seconds = Family::new_with_constructor(new);
        let help = "Time of calls to drivers by driver, method and gRPC code";
        registry.register("csi_sidecar_operations_seconds", help, seconds.clone());
        Self(seconds)
    }
}

/// What a driver says it can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Can {
    /// GetPluginCapabilities.
    pub plugin: BTreeSet<PluginCan>,
    /// ControllerGetCapabilities.
    pub controller: BTreeSet<ControllerCan>,
}

impl Can {
    /// Whether its controller can do that.
    pub fn control(&self, what: ControllerCan) -> bool {
        self.controller.contains(&what)
    }
    /// Whether the plugin as a whole has that.
    pub fn plugin(&self, what: PluginCan) -> bool {
        self.plugin.contains(&what)
    }
}

/// A driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Driver {
    name: Arc<str>,
    can: Arc<Can>,
    caller: Caller,
}

/// Calls, measured and bounded.
#[derive(Debug, Clone)]
struct Caller {
    client: Client,
    timeout: Duration,
    metrics: CallMetrics,
}

impl Driver {
    /// Waits until the driver is ready, and asks what it can do.
    ///
    /// # Errors
    /// The answer of a driver that does not work; one that is only not ready, or not there yet, is
    /// waited for.
    pub async fn meet(
        client: Client,
        timeout: Duration,
        metrics: CallMetrics,
    ) -> Result<Self, Status> {
        let unknown: Arc<str> = "unknown-driver".into();
        let caller = Caller { client, timeout, metrics };
        loop {
            let asked = caller
                .call(&unknown, "/csi.v1.Identity/Probe", csi::ProbeRequest {}, |c, r| async move {
                    c.identity().probe(r).await
                })
                .await;
            match asked {
                // Absent is ready.
                Ok(answer) if answer.ready.unwrap_or(true) => break,
                Ok(_) => tracing::debug!("the driver is not ready yet"),
                Err(status)
                    if matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable) =>
                {
                    tracing::warn!(error = status.message(), "the driver does not answer yet");
                }
                Err(status) => return Err(status),
            }
            tokio::time::sleep(AGAIN).await;
        }
        let info = csi::GetPluginInfoRequest {};
        let info = caller
            .call(&unknown, "/csi.v1.Identity/GetPluginInfo", info, |c, r| async move {
                c.identity().get_plugin_info(r).await
            })
            .await?;
        if info.name.is_empty() {
            return Err(Status::internal("the driver has no name"));
        }
        let name: Arc<str> = info.name.into();
        let can = caller.abilities(&name).await?;
        Ok(Self { name, can: Arc::new(can), caller })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it can do.
    pub fn can(&self) -> &Can {
        &self.can
    }

    /// Waits until nobody has answered at its socket for a while. One that is slow, or not ready, is
    /// there.
    pub async fn gone(&self) {
        let mut since = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let answer = self.probe(csi::ProbeRequest {}).await;
            let absent = matches!(&answer, Err(status) if status.code() == Code::Unavailable);
            if !absent {
                since = None;
                continue;
            }
            let since = *since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() >= GONE {
                return;
            }
        }
    }

    /// How long one call may take.
    pub fn timeout(&self) -> Duration {
        self.caller.timeout
    }

    /// Whether its node grows volumes, where the node's part is behind the same socket.
    ///
    /// # Errors
    /// The driver's answer: mostly UNIMPLEMENTED, where the node's part is elsewhere.
    pub async fn node_can_expand(&self) -> Result<bool, Status> {
        use csi::node_service_capability::{Type, rpc};
        let asked = csi::NodeGetCapabilitiesRequest {};
        let answer = self.node_get_capabilities(asked).await?;
        Ok(answer.capabilities.into_iter().any(|c| match c.r#type {
            Some(Type::Rpc(rpc)) => rpc.r#type == i32::from(rpc::Type::ExpandVolume),
            None => false,
        }))
    }

    /// The client, for what has no method here.
    pub fn client(&self) -> &Client {
        &self.caller.client
    }
}

impl Caller {
    async fn abilities(&self, name: &Arc<str>) -> Result<Can, Status> {
        let plugin = csi::GetPluginCapabilitiesRequest {};
        let plugin = self
            .call(name, "/csi.v1.Identity/GetPluginCapabilities", plugin, |c, r| async move {
                c.identity().get_plugin_capabilities(r).await
            })
            .await?;
        let plugin: BTreeSet<_> = plugin
            .capabilities
            .into_iter()
            .filter_map(|c| match c.r#type? {
                csi::plugin_capability::Type::Service(s) => PluginCan::try_from(s.r#type).ok(),
                csi::plugin_capability::Type::VolumeExpansion(_) => None,
            })
            .collect();
        if !plugin.contains(&PluginCan::ControllerService) {
            return Ok(Can { plugin, controller: BTreeSet::new() });
        }
        let asked = csi::ControllerGetCapabilitiesRequest {};
        let path = "/csi.v1.Controller/ControllerGetCapabilities";
        let answer = self
            .call(name, path, asked, |c, r| async move {
                c.controller().controller_get_capabilities(r).await
            })
            .await?;
        let controller = answer
            .capabilities
            .into_iter()
            .filter_map(|c| match c.r#type? {
                csi::controller_service_capability::Type::Rpc(rpc) => {
                    ControllerCan::try_from(rpc.r#type).ok()
                }
            })
            .collect();
        Ok(Can { plugin, controller })
    }

    async fn call<Q, A, F>(
        &self,
        name: &Arc<str>,
        path: &'static str,
        request: Q,
        send: impl FnOnce(Client, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let start = Instant::now();
        let mut request = Request::new(request);
        request.set_timeout(self.timeout);
        let answer = tokio::time::timeout(self.timeout, send(self.client.clone(), request)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "the driver has not answered in {:?}; the work may go on, and is asked for again",
                self.timeout
            )))
        });
        let labels = CallLabels {
            driver_name: name.clone(),
            method_name: path,
            grpc_status_code: status::name(answer.as_ref().map_or_else(Status::code, |_| Code::Ok)),
        };
        self.metrics.0.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
        answer.map(Response::into_inner)
    }
}

/// A method each: checked by the compiler, measured under its path.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident via $service:ident as $path:literal;)*) => {
        impl Driver {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The driver's answer, DEADLINE_EXCEEDED or UNAVAILABLE.
                pub async fn $name(&self, request: csi::$request) -> Result<csi::$answer, Status> {
                    self.caller
                        .call(&self.name, $path, request, |c, r| async move {
                            c.$service().$name(r).await
                        })
                        .await
                }
            )*
        }
    };
}

calls! {
    /// Probe.
    probe(ProbeRequest) -> ProbeResponse via identity as "/csi.v1.Identity/Probe";
    /// CreateVolume.
    create_volume(CreateVolumeRequest) -> CreateVolumeResponse via controller as "/csi.v1.Controller/CreateVolume";
    /// DeleteVolume.
    delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse via controller as "/csi.v1.Controller/DeleteVolume";
    /// GetCapacity.
    get_capacity(GetCapacityRequest) -> GetCapacityResponse via controller as "/csi.v1.Controller/GetCapacity";
    /// ControllerPublishVolume.
    controller_publish_volume(ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse via controller as "/csi.v1.Controller/ControllerPublishVolume";
    /// ControllerUnpublishVolume.
    controller_unpublish_volume(ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse via controller as "/csi.v1.Controller/ControllerUnpublishVolume";
    /// ControllerExpandVolume.
    controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse via controller as "/csi.v1.Controller/ControllerExpandVolume";
    /// ControllerModifyVolume.
    controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse via controller as "/csi.v1.Controller/ControllerModifyVolume";
    /// ListVolumes.
    list_volumes(ListVolumesRequest) -> ListVolumesResponse via controller as "/csi.v1.Controller/ListVolumes";
    /// NodeGetCapabilities.
    node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse via node as "/csi.v1.Node/NodeGetCapabilities";
    /// NodeGetInfo.
    node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse via node as "/csi.v1.Node/NodeGetInfo";
}
