//! Calls to a CSI driver: in this process or behind a socket, through one type.

use crate::{
    endpoint::Endpoint,
    layers::{Request, Response},
};
use http_body_util::BodyExt as _;
use larder_model::Fault;
use larder_proto::{csi, larder};
use tonic::{Code, Status, body::Body};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

/// A call that got no answer: the connection failed.
///
/// A type of its own, because calls that fail with a boxed error directly cannot be spawned (the
/// compiler cannot prove their futures `Send`).
#[derive(Debug)]
pub struct TransportError(Box<dyn std::error::Error + Send + Sync>);

impl TransportError {
    pub(crate) fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl std::fmt::Display for TransportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The cause stands in its place: gRPC clients look for it to tell what happened.
impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// What gRPC clients call through.
pub type Channel = BoxCloneSyncService<Request, Response, TransportError>;

/// Anything that answers gRPC requests: a driver of this process, or a connection.
#[derive(Clone)]
pub struct Client(Channel);

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
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service.map_err(TransportError::new)))
    }

    /// A client of whoever serves `endpoint`. Connects at the first call, and again after a loss.
    ///
    /// # Errors
    /// `Invalid` where the endpoint cannot be expressed.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, Fault> {
        let channel = tonic::transport::Endpoint::try_from(endpoint.to_string())
            .map_err(|e| Fault::invalid(format!("use endpoint {endpoint}")).because(e))?
            .connect_lazy();
        let (call, answer) = (endpoint.clone(), endpoint.clone());
        let lost = move |error| TransportError::new(lost(&call, error));
        // What the driver itself says stands in the headers and trailers: a body that fails is the
        // connection.
        let whole = move |response: Response| {
            let endpoint = answer.clone();
            response.map(|body| Body::new(body.map_err(move |status| broken(&endpoint, status))))
        };
        Ok(Self(BoxCloneSyncService::new(channel.map_err(lost).map_response(whole))))
    }

    /// The Identity service.
    pub fn identity(&self) -> csi::identity_client::IdentityClient<Channel> {
        csi::identity_client::IdentityClient::new(self.0.clone())
    }
    /// The Controller service.
    pub fn controller(&self) -> csi::controller_client::ControllerClient<Channel> {
        csi::controller_client::ControllerClient::new(self.0.clone())
    }
    /// The GroupController service.
    pub fn group_controller(&self) -> csi::group_controller_client::GroupControllerClient<Channel> {
        csi::group_controller_client::GroupControllerClient::new(self.0.clone())
    }
    /// The SnapshotMetadata service.
    pub fn snapshot_metadata(
        &self,
    ) -> csi::snapshot_metadata_client::SnapshotMetadataClient<Channel> {
        csi::snapshot_metadata_client::SnapshotMetadataClient::new(self.0.clone())
    }
    /// The Node service.
    pub fn node(&self) -> csi::node_client::NodeClient<Channel> {
        csi::node_client::NodeClient::new(self.0.clone())
    }
    /// What Larder's own tools ask, of drivers that are Larder's.
    pub fn admin(&self) -> larder::admin_client::AdminClient<Channel> {
        larder::admin_client::AdminClient::new(self.0.clone())
    }
    /// The channel itself, for further gRPC clients.
    pub fn channel(&self) -> Channel {
        self.0.clone()
    }
}

/// What a caller is told when a call got no answer. UNAVAILABLE where tonic knows no code, because
/// the call may have had its effect and may be repeated; UNKNOWN would be final to callers.
fn lost(endpoint: &Endpoint, error: tonic::transport::Error) -> Status {
    let mut why = error.to_string();
    // The client's own clock, set by the deadline. tonic gives its code also to a call that the end of
    // a connection cancelled.
    let mut expired = false;
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        expired |= error.is::<tonic::TimeoutExpired>();
        let text = error.to_string();
        if !why.ends_with(&text) {
            why = format!("{why}: {text}");
        }
        cause = error.source();
    }
    if expired {
        Status::deadline_exceeded(format!(
            "wait for the driver at {endpoint}: the deadline has passed (hint: the work goes on; \
             repeat the same call to get its result)"
        ))
    } else {
        unavailable(endpoint, &why)
    }
}

/// The same of an answer that came in part. tonic knows no code for most of that, and UNKNOWN would
/// be final to callers.
fn broken(endpoint: &Endpoint, status: Status) -> Status {
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled => unavailable(endpoint, status.message()),
        _ => status,
    }
}

fn unavailable(endpoint: &Endpoint, why: &str) -> Status {
    Status::unavailable(format!(
        "call the driver at {endpoint}: {why} (hint: see whether it runs, and repeat the call)"
    ))
}

/// A status from a driver as a fault, for callers that show it to people.
pub fn fault(status: &Status) -> Fault {
    Fault::new(crate::status::kind(status.code()), status.message())
}
