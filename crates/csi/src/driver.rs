//! One driver: its engines, served.
//!
//! ```text
//!            ┌ Client (this process) ┐
//!  callers ──┤                       ├──▶ layers ──▶ services ──▶ ControlEngine, NodeEngine
//!            └ sockets (listen)      ┘
//!
//!  new ─▶ listen (Probe: not ready) ─▶ start (backend, recovery) ─▶ ready ─▶ shutdown(grace)
//! ```
//!
//! A process serves many drivers; each has its own engines, claims, sockets and bounds, so that one
//! whose storage hangs holds up nobody else.
//!
//! Shutdown: no new connections and no new operations at once; what runs may finish within the
//! grace period; pools and node records are let go the moment that nothing runs, and otherwise kept
//! until the process ends, because somebody still works in them; peers have a moment to close their
//! connections and are then abandoned. Nothing is ever unmounted.

use crate::{
    Client, Endpoint,
    authority::Accepted,
    client::Channel,
    layers::{AdmitLayer, CallMetrics, CompleteLayer, KnownLayer, ObserveLayer},
    registration::{self, Registered},
    services::{Gate, Services, SetLogLevel, State},
    socket::Socket,
};
use larder_model::{Cx, DriverName, Fault, NodeName, Result};
use larder_volumes::{
    ControlEngine, Running,
    node::{NodeEngine, Recovered},
};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceBuilder;

/// Connections that wait for the server.
const CONNECTIONS: usize = 64;
/// Calls on one connection at a time.
const STREAMS: u32 = 1024;

/// How long connections without calls may take to close at shutdown.
const GOODBYE: Duration = Duration::from_secs(1);

/// How much at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Calls that are worked on.
    pub running: usize,
    /// Calls that wait for that; more are refused with UNAVAILABLE.
    pub waiting: usize,
    /// After this a caller that set no deadline is told that the work goes on.
    pub longest: Duration,
}

impl Default for Limits {
    /// 256 calls, as many waiting, an hour.
    fn default() -> Self {
        Self { running: 256, waiting: 256, longest: Duration::from_secs(3600) }
    }
}

/// What a driver says of itself, and its bounds.
#[derive(Clone)]
pub struct Settings {
    /// The driver's name.
    pub name: DriverName,
    /// The node it runs on, for logs.
    pub node: NodeName,
    /// GetPluginInfo's vendor version.
    pub version: String,
    /// GetPluginInfo's manifest: backend, commit, whatever helps support.
    pub manifest: BTreeMap<String, String>,
    /// Its bounds.
    pub limits: Limits,
    /// Changes the log level of the process; None: UNIMPLEMENTED.
    pub set_log_level: Option<SetLogLevel>,
}

impl Settings {
    /// With the version of this crate, no manifest and the default bounds.
    pub fn new(name: DriverName, node: NodeName) -> Self {
        Self {
            name,
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
            limits: Limits::default(),
            set_log_level: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("node", &self.node)
            .field("version", &self.version)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// One driver. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Driver(Arc<Inner>);

struct Inner {
    services: Arc<Services>,
    service: Channel,
    observe: ObserveLayer,
    /// Calls, and what they left running.
    calls: TaskTracker,
    /// Sockets and servers.
    servers: TaskTracker,
    stop: CancellationToken,
    /// Ends the servers although their peers are still there.
    abandon: CancellationToken,
}

impl Driver {
    /// A driver over its engines. It answers at once, but is not ready until [`Driver::start`].
    ///
    /// Without a node engine, node calls are UNIMPLEMENTED: this process is the controller only.
    pub fn new(
        control: ControlEngine,
        node: Option<NodeEngine>,
        settings: Settings,
        metrics: CallMetrics,
    ) -> Self {
        let Settings { name, node: place, version, manifest, limits, set_log_level } = settings;
        let calls = TaskTracker::new();
        let observe = ObserveLayer::new(name.as_str(), place.as_str(), metrics);
        let services = Arc::new(Services {
            name,
            version,
            manifest,
            control,
            node,
            gate: Gate::default(),
            tracker: calls.clone(),
            set_log_level,
        });
        let layered = ServiceBuilder::new()
            .layer(observe.clone())
            .layer(KnownLayer)
            .layer(AdmitLayer::new(limits.running, limits.waiting))
            .layer(CompleteLayer::new(calls.clone(), limits.longest))
            .service(services.routes());
        let service = Client::in_process(layered).channel();
        let (servers, stop) = (TaskTracker::new(), CancellationToken::new());
        let abandon = CancellationToken::new();
        Self(Arc::new(Inner { services, service, observe, calls, servers, stop, abandon }))
    }

    /// Its name.
    pub fn name(&self) -> &DriverName {
        &self.0.services.name
    }

    /// Calls from this process: the same layers and services, without a socket.
    pub fn client(&self) -> Client {
        Client::in_process(self.0.service.clone())
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.0.services.gate.state()
    }

    /// The same, as it changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.services.gate.watch()
    }

    /// The operations that are running, oldest first.
    pub fn operations(&self) -> Vec<Running> {
        self.0.services.control.claims().running()
    }

    /// Serves an endpoint until shutdown. Returns once callers can connect; while another process
    /// serves there (a predecessor that drains), it waits. May be called for several endpoints.
    ///
    /// # Errors
    /// Whatever keeps the socket from being made; `Unavailable` when shutdown came first.
    pub async fn listen(&self, endpoint: &Endpoint) -> Result<()> {
        self.serve(endpoint, self.0.service.clone()).await?;
        tracing::info!(driver = %self.name(), %endpoint, "listening");
        Ok(())
    }

    /// Makes the driver known to kubelet, whose registry folder is `registry`
    /// (`/var/lib/kubelet/plugins_registry`). `endpoint` is the driver's socket as the *host* sees
    /// it. Returns what kubelet says of it, as it changes.
    ///
    /// # Errors
    /// As [`Driver::listen`].
    pub async fn register(
        &self,
        registry: &Path,
        endpoint: &Endpoint,
    ) -> Result<watch::Receiver<Registered>> {
        let socket = registration::socket(registry, self.name())?;
        let (service, registered) = registration::service(self.name(), endpoint);
        let layered = ServiceBuilder::new()
            .layer(self.0.observe.clone())
            .layer(KnownLayer)
            .layer(CompleteLayer::new(self.0.calls.clone(), Limits::default().longest))
            .service(service);
        let layered = Client::in_process(layered).channel();
        self.serve(&socket, layered).await?;
        tracing::info!(driver = %self.name(), %socket, "waiting for kubelet to register the driver");
        Ok(registered)
    }

    async fn serve(&self, endpoint: &Endpoint, service: Channel) -> Result<()> {
        let Inner { servers, stop, abandon, .. } = &*self.0;
        let socket = Socket::bind_when_free(endpoint, stop).await?;
        let (out, connections) = mpsc::channel(CONNECTIONS);
        let accept = socket.accept(endpoint.clone(), out, stop.clone());
        servers.spawn(abandon.clone().run_until_cancelled_owned(accept));
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS)
            .serve_with_incoming_shutdown(
                service,
                ReceiverStream::new(connections).map(|stream| stream.map(Accepted::new)),
                stop.clone().cancelled_owned(),
            );
        let (name, endpoint) = (self.name().clone(), endpoint.clone());
        servers.spawn(abandon.clone().run_until_cancelled_owned(async move {
            if let Err(error) = server.await {
                tracing::error!(driver = %name, %endpoint, %error, "the server has ended");
            }
        }));
        Ok(())
    }

    /// Starts the backend and mends what a killed process left on this node; then the driver is
    /// ready. May be repeated after a fault.
    ///
    /// # Errors
    /// What an administrator must mend before this driver can serve; Probe says it, too.
    /// `Unavailable` when shutdown came first.
    pub async fn start(&self) -> Result<()> {
        let Inner { services, stop, .. } = &*self.0;
        services.gate.set(State::Starting);
        let started = tokio::select! {
            started = services.start() => started,
            () = stop.cancelled() => Err(Fault::unavailable(format!(
                "start driver {}: it was told to stop", self.name()
            ))),
        };
        let state = started.clone().map_or_else(State::Failed, |()| State::Ready);
        services.gate.set(state);
        started
    }

    /// Ends the driver; see the module. Returns the operations that were still running after
    /// `grace`: they go on until the process ends, and their next equal calls complete them.
    #[must_use = "what is still busy must be named"]
    pub async fn shutdown(&self, grace: Duration) -> Vec<Running> {
        let Inner { services, calls, servers, stop, abandon, .. } = &*self.0;
        let end = Instant::now() + grace;
        let left = || end.saturating_duration_since(Instant::now());
        services.gate.set(State::Stopping);
        stop.cancel();
        servers.close();
        calls.close();
        let mut busy = services.control.claims().drain(grace).await;
        let quiet = tokio::time::timeout(left(), calls.wait()).await.is_ok();
        services.gate.set(State::Stopped);
        // Who came through the gate at the last moment is waited for, too.
        let idle = quiet && tokio::time::timeout(left(), calls.wait()).await.is_ok();
        // A successor waits for the pools and the records, not for our peers to say goodbye.
        if busy.is_empty() && idle {
            busy = services.control.stop(Duration::ZERO).await;
            if let Some(node) = services.node.as_ref().filter(|_| busy.is_empty()) {
                node.stop();
            }
        }
        // Answers are on their way to those who waited. A peer that does not even answer the
        // server's goodbye (stopped, or no gRPC at all), or does not read its stream, is not
        // waited for.
        let _ = tokio::time::timeout(left().min(GOODBYE), servers.wait()).await;
        abandon.cancel();
        for operation in &busy {
            tracing::warn!(driver = %self.name(), %operation, "still busy at the end of the grace period");
        }
        if !idle {
            tracing::warn!(driver = %self.name(), calls = calls.len(), "calls are still being answered");
        }
        busy
    }
}

impl Services {
    async fn start(&self) -> Result<()> {
        self.control.start().await?;
        if let Some(node) = &self.node {
            let Recovered { live, mended, left } = node.recover(&Cx::new()).await?;
            for what in &mended {
                tracing::warn!(driver = %self.name, what, "mended what a killed process left");
            }
            for what in &left {
                tracing::error!(driver = %self.name, what, "could not mend, will try again");
            }
            tracing::info!(driver = %self.name, live, "volumes in use on this node");
        }
        Ok(())
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("name", self.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
