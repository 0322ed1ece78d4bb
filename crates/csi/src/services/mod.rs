//! The gRPC services of one driver, over its engines.
//!
//! ```text
//!  request ─▶ gate (started?) ─▶ check (request::Check) ─▶ engine ─▶ reply
//!             UNAVAILABLE         INVALID_ARGUMENT          code by Kind (status::status)
//! ```
//!
//! One type serves all: what a driver does not offer answers UNIMPLEMENTED, decided by the same
//! derived capabilities that are announced. Who a driver is and what it can do is answered from the
//! first moment; everything else only once its backend has started.

mod admin;
mod controller;
mod gate;
mod group;
mod identity;
mod metadata;
mod node;

mod pages;

pub(crate) use gate::Gate;
pub use gate::State;

use crate::{request::Check, status::status};

use larder_model::{DriverName, Fault, Result, id::quoted};
use larder_proto::{csi, larder};
use larder_volumes::{ControlEngine, control::ControllerCapability, node::NodeEngine};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, service::Routes};

/// The largest request that is read. Topology requirements of large clusters come near 1 MiB.
pub(crate) const LARGEST_REQUEST: usize = 4 << 20;

/// What a handler answers.
type Answer<T> = std::result::Result<Response<T>, Status>;

/// Changes what the process logs; returns what was in force before.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<String> + Send + Sync>;

/// Everything the handlers of one driver need.
pub(crate) struct Services {
    pub(crate) name: DriverName,
    pub(crate) version: String,
    pub(crate) manifest: BTreeMap<String, String>,
    pub(crate) control: ControlEngine,
    pub(crate) node: Option<NodeEngine>,
    pub(crate) gate: Gate,
    /// Work that outlives its caller.
    pub(crate) tracker: TaskTracker,
    pub(crate) set_log_level: Option<SetLogLevel>,
}

impl Services {
    /// All services, routed.
    pub(crate) fn routes(self: &Arc<Self>) -> Routes {
        use csi::{
            controller_server::ControllerServer, group_controller_server::GroupControllerServer,
            identity_server::IdentityServer, node_server::NodeServer,
            snapshot_metadata_server::SnapshotMetadataServer,
        };
        use larder::admin_server::AdminServer;
        macro_rules! served {
            ($($server:ident),*) => {
                Routes::default()$(.add_service(
                    $server::from_arc(self.clone()).max_decoding_message_size(LARGEST_REQUEST)
                ))*.prepare()
            };
        }
        served!(
            IdentityServer,
            ControllerServer,
            GroupControllerServer,
            SnapshotMetadataServer,
            NodeServer,
            AdminServer
        )
    }

    /// Lets a call in and checks its request. The volume's id goes on the call's span.
    fn accept<R: Check>(&self, request: Request<R>) -> std::result::Result<R::Typed, Status> {
        let request = request.into_inner();
        if let Some(subject) = request.subject() {
            // Escaped, because it was not checked yet.
            let subject = quoted(subject);
            let subject = tracing::field::display(subject.trim_matches('"'));
            tracing::Span::current().record("volume", subject);
        }
        self.gate.check().and_then(|()| request.check()).map_err(|fault| status(&fault))
    }

    /// Refuses what this driver does not offer.
    fn offered(
        &self,
        capability: ControllerCapability,
        rpc: &str,
    ) -> std::result::Result<(), Status> {
        self.offered_if(self.control.capabilities().contains(&capability), rpc)
    }

    fn offered_if(&self, offered: bool, rpc: &str) -> std::result::Result<(), Status> {
        if offered {
            return Ok(());
        }
        let kind = self.control.backend().kind();
        Err(status(
            &Fault::unsupported(format!("serve {rpc}: the {kind} backend does not offer it"))
                .hint("ask the driver for its capabilities"),
        ))
    }
}

/// An engine's answer for the wire.
fn answer<T, U>(result: Result<T>, reply: impl FnOnce(T) -> U) -> Answer<U> {
    match result {
        Ok(value) => Ok(Response::new(reply(value))),
        Err(fault) => Err(status(&fault)),
    }
}
