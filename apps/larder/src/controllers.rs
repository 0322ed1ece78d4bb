//! `larder controllers`: the Kubernetes controllers for a CSI driver behind a socket, anybody's; and
//! those of `larder serve`, for its own drivers.
//!
use crate::{
    config::{DriverSettings, Kubernetes, Settings},
    http, logging, serve,
};
use anyhow::Result;
use larder_controllers::{
    Capacity, Controllers, Leases, Options, Which, attach, client::Access, modify, provision,
    resize,
};
use larder_csi::Client;
use prometheus_client::registry::Registry;
use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod flags;
mod go;

pub(crate) use flags::ControllersFlags;
pub(crate) use go::arguments;

/// The controllers of `larder serve`: for its own drivers, in this process.
pub(crate) async fn start(
    settings: &Settings,
    of: &Kubernetes,
    registry: &mut Registry,
) -> larder_model::Result<Controllers> {
    let access = Access { kubeconfig: of.kubeconfig.clone(), ..Access::default() };
    let ours = settings.drivers.iter().filter(|d| of.is_for(&d.name));
    let names = ours.map(|d| d.name.to_string());
    // Two pods of one node are two candidates for a lease.
    let pod = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    let host = pod.as_deref().unwrap_or(settings.node.as_str());
    Controllers::start(&access, names, host, registry).await
}

/// How the controllers work for one of our drivers: storage of one node is that node's own affair.
pub(crate) fn of_driver(settings: &Settings, of: &Kubernetes, driver: &DriverSettings) -> Options {
    let shared = driver.pools.values().all(|pool| pool.shared);
    // Nothing of ours is attached: with `attachRequired: false` nobody waits for it.
    let wanted = |which: &Which| match which {
        Which::Provisioner => true,
        Which::Attacher => false,
        Which::Resizer => of.resizer,
    };
    let which = Which::ALL.into_iter().filter(wanted).collect();
    Options {
        which,
        timeout: Duration::from_secs(10),
        leases: shared.then(|| Leases::new(&namespace(of.namespace.as_deref()))),
        local_node: (!shared).then(|| settings.node.to_string()),
        capacity: of.capacity.then(|| Capacity {
            namespace: namespace(of.namespace.as_deref()),
            pod: std::env::var("POD_NAME").ok().filter(|name| !name.is_empty()),
            level: 1,
            poll: Duration::from_secs(60),
            immediate: false,
        }),
        provision: provision::Settings {
            extra_metadata: of.extra_create_metadata,
            ..provision::Settings::default()
        },
        attach: attach::Settings::default(),
        resize: resize::Settings::default(),
        modify: modify::Settings {
            extra_metadata: of.extra_create_metadata,
            ..modify::Settings::default()
        },
    }
}

/// Runs `larder controllers`.
pub(crate) async fn run(flags: ControllersFlags) -> Result<()> {
    logging::start(flags.log_format, flags.log_level())?;
    if let Some(names) = flags.ignored.names() {
        tracing::info!("these arguments change nothing here: {names}");
    }
    let options = flags.options()?;
    let access = flags.access();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    serve::watch_signals(stop.clone())?;
    let client = Client::connect(&flags.csi_address)?;
    let name = stop.run_until_cancelled(name(&client, options.timeout)).await;
    let Some(name) = name.transpose()? else { return Ok(()) };
    let mut registry = Registry::default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let controllers = Controllers::start(&access, [name], &host, &mut registry).await?;
    if let Some(address) = flags.http().await? {
        let leases = Some(controllers.health());
        let of = controllers.clone();
        let ready = Box::new(move || of.ready());
        let metrics = flags.metrics_path.clone();
        let pages = http::Pages { registry, ready, leases, metrics };
        let (bound, serving) = http::serve(address, pages, stop.clone()).await?;
        tracing::info!(address = %bound, "http is served");
        tasks.spawn(serving);
    }
    let served = controllers.serve(client, options, stop.clone()).await;
    stop.cancel();
    controllers.end().await;
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    Ok(served?)
}

/// The driver's name, once it answers.
async fn name(client: &Client, timeout: Duration) -> larder_model::Result<String> {
    loop {
        let asked = larder_proto::csi::GetPluginInfoRequest {};
        let mut identity = client.identity();
        // A socket may take connections and answer nothing.
        let answer = tokio::time::timeout(timeout, identity.get_plugin_info(asked)).await;
        let why = match answer {
            Ok(Ok(answer)) => return Ok(answer.into_inner().name),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                status.message().to_owned()
            }
            Ok(Err(status)) => return Err(larder_csi::client::fault(&status)),
            Err(_) => format!("no answer in {timeout:?}"),
        };
        tracing::warn!("waiting for the driver: {why}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The namespace of the leases, found as the Go sidecars do.
fn namespace(given: Option<&str>) -> String {
    let file = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let found = given.map(str::to_owned).or_else(|| std::env::var("POD_NAMESPACE").ok());
    let found = found.or_else(|| std::fs::read_to_string(file).ok());
    found.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).unwrap_or("default".to_owned())
}
