//! Calls to a CSI driver: in this process or behind a socket, through one type.

use crate::{
    endpoint::Endpoint,
    layers::{Request, Response},
};
use larder_model::{Fault, Kind};
use larder_proto::csi;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Anything that answers gRPC requests: a driver of this process, or a connection.
#[derive(Clone)]
pub struct Client(BoxCloneSyncService<Request, Response, Error>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A client of services in this process (about 1 µs a call).
    pub fn in_process<S>(service: S) -> Self
    where
        S: Service<Request, Response = Response> + Clone + Send + Sync + 'static,
        S::Error: Into<Error>,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service.map_err(Into::into)))
    }

    /// A client of whoever serves `endpoint`. Connects at the first call, and again after a loss.
    ///
    /// # Errors
    /// `Invalid` where the endpoint cannot be expressed.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, Fault> {
        let channel = tonic::transport::Endpoint::try_from(endpoint.to_string())
            .map_err(|e| Fault::invalid(format!("use endpoint {endpoint}")).because(e))?
            .connect_lazy();
        Ok(Self(BoxCloneSyncService::new(channel.map_err(Into::into))))
    }

    /// The Identity service.
    pub fn identity(
        &self,
    ) -> csi::identity_client::IdentityClient<BoxCloneSyncService<Request, Response, Error>> {
        csi::identity_client::IdentityClient::new(self.0.clone())
    }
    /// The Controller service.
    pub fn controller(
        &self,
    ) -> csi::controller_client::ControllerClient<BoxCloneSyncService<Request, Response, Error>>
    {
        csi::controller_client::ControllerClient::new(self.0.clone())
    }
    /// The GroupController service.
    pub fn group_controller(
        &self,
    ) -> csi::group_controller_client::GroupControllerClient<
        BoxCloneSyncService<Request, Response, Error>,
    > {
        csi::group_controller_client::GroupControllerClient::new(self.0.clone())
    }
    /// The SnapshotMetadata service.
    pub fn snapshot_metadata(
        &self,
    ) -> csi::snapshot_metadata_client::SnapshotMetadataClient<
        BoxCloneSyncService<Request, Response, Error>,
    > {
        csi::snapshot_metadata_client::SnapshotMetadataClient::new(self.0.clone())
    }
    /// The Node service.
    pub fn node(
        &self,
    ) -> csi::node_client::NodeClient<BoxCloneSyncService<Request, Response, Error>> {
        csi::node_client::NodeClient::new(self.0.clone())
    }
    /// The service itself, for further gRPC clients.
    pub fn service(&self) -> BoxCloneSyncService<Request, Response, Error> {
        self.0.clone()
    }
}

/// A status from a driver as a fault, for callers that show it to people.
pub fn fault(status: &tonic::Status) -> Fault {
    use tonic::Code;
    let kind = match status.code() {
        Code::InvalidArgument => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::Conflict,
        Code::Aborted => Kind::Aborted,
        Code::FailedPrecondition => Kind::Precondition,
        Code::OutOfRange => Kind::OutOfRange,
        Code::ResourceExhausted => Kind::Exhausted,
        Code::PermissionDenied => Kind::Denied,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::Unavailable => Kind::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => Kind::Deadline,
        Code::Unimplemented => Kind::Unsupported,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok | Code::Unknown | Code::Internal => Kind::Internal,
    };
    Fault::new(kind, status.message())
}
