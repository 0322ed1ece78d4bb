//! `larder controllers`: the Kubernetes controllers for a CSI driver behind a socket, anybody's.
//!
//! The flags are those of external-provisioner, where they mean something here, so that an argument
//! list can be taken over.

use crate::{
    config::{DriverSettings, Kubernetes, Settings},
    http, logging, serve,
};
use anyhow::Result;
use clap::Args;
use larder_controllers::{
    Capacity, Controllers, Leases, Options, client::Access, provision, queue::Backoff,
};
use larder_csi::{Client, Endpoint};
use larder_model::Fault;
use prometheus_client::registry::Registry;
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const GATES: [&str; 4] = [
    "Topology",
    "VolumeAttributesClass",
    "CrossNamespaceVolumeDataSource",
    "ReleaseLeaderElectionOnExit",
];

/// What `larder controllers` is told.
#[derive(Debug, Args)]
pub(crate) struct ControllersFlags {
    /// The driver's socket.
    #[arg(long, default_value = "/run/csi/socket", value_name = "unix:///PATH")]
    csi_address: Endpoint,
    /// How long one call to the driver may take.
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Serve /metrics, /healthz and /readyz there.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address, alias = "metrics-address")]
    http_endpoint: Option<SocketAddr>,
    /// Log level, or a filter as in info,larder_controllers=debug.
    #[arg(long, env = "LARDER_LOG", default_value = "info")]
    log_level: String,
    /// Log format.
    #[arg(long, value_enum, default_value = "text")]
    log_format: logging::LogFormat,
    #[command(flatten)]
    api: ApiFlags,
    #[command(flatten)]
    election: ElectionFlags,
    #[command(flatten)]
    provisioner: ProvisionerFlags,
    #[command(flatten)]
    capacity: CapacityFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Capacity")]
struct CapacityFlags {
    /// Tell the scheduler how much room there is (CSIStorageCapacity), in the pod's namespace
    /// ($NAMESPACE).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    enable_capacity: bool,
    /// Also for classes that bind at once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    capacity_for_immediate_binding: bool,
    /// How often the driver is asked.
    #[arg(long, default_value = "1m", value_parser = duration, value_name = "DURATION")]
    capacity_poll_interval: Duration,
    /// What the objects go with: 0 the pod ($POD_NAME), 1 what manages it, 2 what manages that; -1
    /// nothing.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-1..=2), value_name = "LEVEL")]
    capacity_ownerref_level: i8,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API server")]
struct ApiFlags {
    /// A kubeconfig [default: $KUBECONFIG, or the pod's ServiceAccount].
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// URL of the API server.
    #[arg(long)]
    master: Option<String>,
    /// Requests per second.
    #[arg(long, default_value_t = 200.0, value_name = "NUMBER")]
    kube_api_qps: f64,
    /// Requests at once after a pause.
    #[arg(long, default_value_t = 400, value_name = "NUMBER")]
    kube_api_burst: u32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Leader election")]
struct ElectionFlags {
    /// Of several processes, one works. Takes the lease of external-provisioner, too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Namespace of the leases [default: the pod's].
    #[arg(long, value_name = "NAMESPACE")]
    leader_election_namespace: Option<String>,
    /// How long others wait for a leader that is gone.
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    leader_election_lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    leader_election_renew_deadline: Duration,
    /// How long between two looks at the lease.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    leader_election_retry_period: Duration,
    /// Labels of the leases, as in app:larder,tier:storage.
    #[arg(long, value_delimiter = ',', value_parser = pair::<':'>, value_name = "KEY:VALUE")]
    leader_election_labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Provisioner")]
struct ProvisionerFlags {
    /// What the names of volumes start with.
    #[arg(long, default_value = "pvc", value_name = "PREFIX")]
    volume_name_prefix: String,
    /// How much of the claim's UID is in the name, without dashes; -1: all of it, with dashes.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "NUMBER")]
    volume_name_uuid_length: i32,
    /// File system of volumes whose class names none.
    #[arg(long, default_value = "", value_name = "FSTYPE")]
    default_fstype: String,
    /// Tell the driver the names of claim and volume.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    extra_create_metadata: bool,
    /// Tell the driver of the chosen node only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    strict_topology: bool,
    /// Tell the driver of all nodes where none was chosen.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", action = clap::ArgAction::Set)]
    immediate_topology: bool,
    /// Mark volumes of claims that are only read.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    controller_publish_readonly: bool,
    /// Restore a snapshot in the mode that its volume had.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", action = clap::ArgAction::Set)]
    prevent_volume_mode_conversion: bool,
    /// This process is for the volumes of its node ($NODE_NAME) alone.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", action = clap::ArgAction::Set)]
    node_deployment: bool,
    /// Volumes that are made, and deleted, at a time.
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    worker_threads: usize,
    /// Wait after the first failure.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    retry_interval_start: Duration,
    /// Longest wait after failures.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    retry_interval_max: Duration,
    /// Switches, as in CrossNamespaceVolumeDataSource=true.
    #[arg(long, value_delimiter = ',', value_parser = pair::<'='>, value_name = "GATE=BOOL")]
    feature_gates: Vec<(String, String)>,
}

/// The controllers of `larder serve`: for its own drivers, in this process.
pub(crate) async fn start(
    settings: &Settings,
    of: &Kubernetes,
    registry: &mut Registry,
) -> larder_model::Result<Controllers> {
    let access = Access { kubeconfig: of.kubeconfig.clone(), ..Access::default() };
    let ours = settings.drivers.iter().filter(|d| of.is_for(&d.name));
    let names = ours.map(|d| d.name.to_string());
    Controllers::start(&access, names, settings.node.as_str(), registry).await
}

/// How the controllers work for one of our drivers: storage of one node is that node's own affair.
pub(crate) fn of_driver(settings: &Settings, of: &Kubernetes, driver: &DriverSettings) -> Options {
    let shared = driver.pools.values().all(|pool| pool.shared);
    Options {
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
    }
}

/// Runs `larder controllers`.
pub(crate) async fn run(flags: ControllersFlags) -> Result<()> {
    logging::start(flags.log_format, &flags.log_level)?;
    let options = options(&flags)?;
    let access = Access {
        kubeconfig: flags.api.kubeconfig.clone(),
        server: flags.api.master.clone(),
        per_second: flags.api.kube_api_qps,
        burst: flags.api.kube_api_burst,
        ..Access::default()
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    serve::watch_signals(stop.clone())?;
    let client = Client::connect(&flags.csi_address)?;
    let name = stop.run_until_cancelled(name(&client)).await;
    let Some(name) = name.transpose()? else { return Ok(()) };
    let mut registry = Registry::default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let controllers = Controllers::start(&access, [name], &host, &mut registry).await?;
    if let Some(address) = flags.http_endpoint {
        let pages = http::Pages { registry, ready: Box::new(|| Ok(())) };
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
async fn name(client: &Client) -> larder_model::Result<String> {
    loop {
        let asked = larder_proto::csi::GetPluginInfoRequest {};
        match client.identity().get_plugin_info(asked).await {
            Ok(answer) => return Ok(answer.into_inner().name),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                tracing::warn!("waiting for the driver: {}", status.message());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(status) => return Err(larder_csi::client::fault(&status)),
        }
    }
}

fn options(flags: &ControllersFlags) -> larder_model::Result<Options> {
    let ControllersFlags { election, provisioner: p, timeout, .. } = flags;
    let gates: BTreeMap<_, _> = p.feature_gates.iter().cloned().collect();
    for (gate, value) in &gates {
        let known = GATES.contains(&gate.as_str());
        let off = gate == "Topology" && value != "true";
        if !known || off || !["true", "false"].contains(&value.as_str()) {
            return Err(Fault::invalid(format!("use feature gate {gate}={value}"))
                .hint(format!("known are {}; Topology is always on", GATES.join(", "))));
        }
    }
    let local_node = match (p.node_deployment, std::env::var("NODE_NAME")) {
        (false, _) => None,
        (true, Ok(node)) if !node.is_empty() => Some(node),
        _ => {
            return Err(Fault::invalid("use --node-deployment: NODE_NAME is not set")
                .hint("set it from the pod's spec.nodeName"));
        }
    };
    let labels = election.leader_election_labels.iter().cloned().collect();
    let leases = election.leader_election.then(|| Leases {
        duration: election.leader_election_lease_duration,
        deadline: election.leader_election_renew_deadline,
        period: election.leader_election_retry_period,
        labels,
        ..Leases::new(&namespace(election.leader_election_namespace.as_deref()))
    });
    let backoff = Backoff { start: p.retry_interval_start, most: p.retry_interval_max };
    let provision = provision::Settings {
        name_prefix: p.volume_name_prefix.clone(),
        name_uid_length: usize::try_from(p.volume_name_uuid_length).ok(),
        default_fs_type: p.default_fstype.clone(),
        extra_metadata: p.extra_create_metadata,
        strict_topology: p.strict_topology,
        immediate_topology: p.immediate_topology,
        read_only: p.controller_publish_readonly,
        keep_mode: p.prevent_volume_mode_conversion,
        cross_namespace: gates.get("CrossNamespaceVolumeDataSource").is_some_and(|v| v == "true"),
        workers: p.worker_threads,
        backoff,
        capacity: None,
    };
    let capacity = flags.capacity.enable_capacity.then(|| capacity(&flags.capacity)).transpose()?;
    Ok(Options { timeout: *timeout, leases, local_node, capacity, provision })
}

fn capacity(flags: &CapacityFlags) -> larder_model::Result<Capacity> {
    let need = |name: &str| {
        std::env::var(name).ok().filter(|v| !v.is_empty()).ok_or_else(|| {
            Fault::invalid(format!("use --enable-capacity: {name} is not set"))
                .hint("set NAMESPACE and POD_NAME from the pod's metadata")
        })
    };
    let level = u8::try_from(flags.capacity_ownerref_level).ok();
    Ok(Capacity {
        namespace: need("NAMESPACE")?,
        pod: level.map(|_| need("POD_NAME")).transpose()?,
        level: level.unwrap_or(0),
        poll: flags.capacity_poll_interval,
        immediate: flags.capacity_for_immediate_binding,
    })
}

/// The namespace of the leases, found as the Go sidecars do.
fn namespace(given: Option<&str>) -> String {
    let file = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let found = given.map(str::to_owned).or_else(|| std::env::var("POD_NAMESPACE").ok());
    let found = found.or_else(|| std::fs::read_to_string(file).ok());
    found.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).unwrap_or("default".to_owned())
}

/// A duration as Go writes it: `15s`, `1m30s`, `500ms`.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration (hint: write 500ms, 15s, 5m or 1h30m)");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let units =
            [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let unit = units.iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(wrong)?;
        rest = &rest[unit.0.len()..];
        sum += number * unit.1;
    }
    Duration::try_from_secs_f64(sum).map_err(|_| wrong()).and_then(|d| match text.is_empty() {
        true => Err(wrong()),
        false => Ok(d),
    })
}

/// An address; without a host (`:8080`): every one.
fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| format!("{text:?} is no address (hint: write 127.0.0.1:8080 or :8080)"))
}

fn pair<const BETWEEN: char>(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) =
        text.split_once(BETWEEN).ok_or_else(|| format!("{text:?} has no {BETWEEN}"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: ControllersFlags,
    }

    fn parsed(arguments: &[&str]) -> larder_model::Result<Options> {
        let line = Line::try_parse_from([&["controllers"], arguments].concat()).unwrap();
        options(&line.flags)
    }

    #[test]
    fn the_arguments_of_the_go_sidecar_are_taken_over() {
        let options = parsed(&[
            "--csi-address=unix:///csi/csi.sock",
            "--timeout=1m30s",
            "--leader-election",
            "--leader-election-namespace=storage",
            "--leader-election-labels=app:larder,tier:x",
            "--default-fstype=xfs",
            "--extra-create-metadata=true",
            "--immediate-topology=false",
            "--volume-name-uuid-length=8",
            "--feature-gates=Topology=true,CrossNamespaceVolumeDataSource=true",
            "--retry-interval-start=500ms",
            "--http-endpoint=:8080",
        ])
        .unwrap();
        assert_eq!(options.timeout, Duration::from_secs(90));
        let leases = options.leases.unwrap();
        assert_eq!((leases.namespace.as_str(), leases.labels.len()), ("storage", 2));
        assert_eq!(leases.duration, Duration::from_secs(15));
        let provision = options.provision;
        assert_eq!(provision.default_fs_type, "xfs");
        assert!(provision.extra_metadata && provision.cross_namespace && provision.keep_mode);
        assert!(!provision.immediate_topology && !provision.strict_topology);
        assert_eq!(provision.name_uid_length, Some(8));
        assert_eq!(provision.backoff.start, Duration::from_millis(500));
    }

    #[test]
    fn without_arguments_it_is_what_the_go_sidecar_does() {
        let options = parsed(&[]).unwrap();
        assert_eq!(options.timeout, Duration::from_secs(10));
        assert!(options.leases.is_none() && options.local_node.is_none());
        assert_eq!(options.provision.name_uid_length, None);
    }

    #[test]
    fn an_unknown_gate_is_refused() {
        assert!(parsed(&["--feature-gates=Nonsense=true"]).is_err());
        assert!(parsed(&["--feature-gates=Topology=false"]).is_err());
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in
            [("15s", 15_000), ("1.5h", 5_400_000), ("2m3s", 123_000), ("0", 0), ("10ms", 10)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "15", "s", "1d", "1m 3s", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
