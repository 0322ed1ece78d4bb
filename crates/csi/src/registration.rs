//! How kubelet learns of the driver: a second socket in its registry folder.
//!
//! ```text
//!  plugins_registry/<driver>-reg.sock appears
//!     kubelet ─▶ GetInfo: name, version, where the driver's own socket is (as the host sees it)
//!     kubelet ─▶ NodeGetInfo on that socket, writes CSINode
//!     kubelet ─▶ NotifyRegistrationStatus: taken, or why not
//!  the socket goes (shutdown) ─▶ kubelet forgets the driver
//! ```
//!
//! kubelet tries again by itself for as long as the socket is there, with exponential back-off, so a
//! refusal is logged and kept for health checks, and does not end the process.

use crate::{Endpoint, services::LARGEST_REQUEST};
use larder_model::{DriverName, Fault, Result};
use larder_proto::pluginregistration::{
    CSI_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use std::{path::Path, sync::Arc};
use tokio::sync::watch;
use tonic::{Request, Response, Status, service::Routes};

/// The versions of the registration that kubelet may choose from: it takes any 0 or 1.
const VERSIONS: [&str; 1] = ["1.0.0"];

/// What kubelet said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Registered {
    /// Nothing yet.
    #[default]
    Waiting,
    /// The driver is known.
    Yes,
    /// It was refused, and why.
    Refused(String),
}

struct Service {
    name: DriverName,
    endpoint: String,
    registered: watch::Sender<Registered>,
}

/// The registration socket of a driver.
pub(crate) fn socket(registry: &Path, driver: &DriverName) -> Result<Endpoint> {
    let path = registry.join(format!("{driver}-reg.sock"));
    let text = path.to_str().ok_or_else(|| {
        Fault::invalid(format!("use registry folder {}: it is not UTF-8", registry.display()))
    })?;
    text.parse()
}

/// The service, and what it will hear from kubelet.
pub(crate) fn service(
    driver: &DriverName,
    endpoint: &Endpoint,
) -> (Routes, watch::Receiver<Registered>) {
    let (registered, heard) = watch::channel(Registered::Waiting);
    // kubelet dials a plain path.
    let endpoint = endpoint.path().to_string_lossy().into_owned();
    let service = Service { name: driver.clone(), endpoint, registered };
    let server = RegistrationServer::new(service).max_decoding_message_size(LARGEST_REQUEST);
    (Routes::new(server).prepare(), heard)
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(
        self: Arc<Self>,
        _: Request<InfoRequest>,
    ) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: self.name.to_string(),
            endpoint: self.endpoint.clone(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        self: Arc<Self>,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let registered = if status.plugin_registered {
            tracing::info!(driver = %self.name, "kubelet has registered the driver");
            Registered::Yes
        } else {
            tracing::error!(
                driver = %self.name,
                error = status.error,
                "kubelet has refused the driver and tries again"
            );
            Registered::Refused(status.error)
        };
        self.registered.send_replace(registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
