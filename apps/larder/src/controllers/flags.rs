//! The flags of `larder controllers`, and what they come to.
//!
//! They are those of the Go sidecars, of all three together. What means nothing here is accepted all
//! the same (`go`), so that a container's arguments can stay as they are.

use super::{
    go::{self, Ignored},
    namespace,
};
use crate::logging;
use clap::{Args, ValueEnum};
use larder_controllers::{
    Capacity, Leases, Options, Which, attach, client::Access, modify, provision, queue::Backoff,
    resize,
};
use larder_csi::Endpoint;
use larder_model::Fault;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

/// Known switches of the Go sidecars, and whether they can be off here.
const GATES: [(&str, bool); 7] = [
    ("Topology", true),
    ("VolumeAttributesClass", true),
    ("CrossNamespaceVolumeDataSource", true),
    ("ReleaseLeaderElectionOnExit", true),
    ("MutableCSINodeAllocatableCount", false),
    ("AnnotateFsResize", false),
    ("RecoverVolumeExpansionFailure", false),
];

/// What `larder controllers` is told.
#[derive(Debug, Args)]
pub(crate) struct ControllersFlags {
    /// The driver's socket.
    #[arg(long, default_value = "/run/csi/socket", value_name = "unix:///PATH")]
    pub(super) csi_address: Endpoint,
    /// Which of the controllers run, each named as the Go sidecar that it takes the place of.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Controller::ALL)]
    controllers: Vec<Controller>,
    /// How long one call to the driver may take.
    #[arg(long, default_value = "10s", value_parser = go::duration)]
    timeout: Duration,
    /// Serve metrics, /healthz, /healthz/leader-election and /readyz there.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "",
        hide_default_value = true,
        alias = "metrics-address"
    )]
    http_endpoint: String,
    /// Where the metrics are.
    #[arg(long, value_name = "PATH", default_value = "/metrics", value_parser = go::metrics_path)]
    pub(super) metrics_path: String,
    /// Log level, or a filter as in info,larder_controllers=debug.
    #[arg(long, env = "LARDER_LOG", default_value = "info")]
    log_level: String,
    /// The Go sidecars' log level: 4 and more is debug, 6 and more is trace.
    #[arg(long = "v", value_name = "NUMBER")]
    verbosity: Option<u8>,
    /// Log format.
    #[arg(long, value_enum, default_value = "text", alias = "logging-format")]
    pub(super) log_format: logging::LogFormat,
    #[command(flatten)]
    pub(super) ignored: Ignored,
    #[command(flatten)]
    api: ApiFlags,
    #[command(flatten)]
    election: ElectionFlags,
    /// File system of volumes whose class, or PersistentVolume, names none.
    #[arg(long, default_value = "", value_name = "FSTYPE")]
    default_fstype: String,
    /// Volumes that each controller works on at a time.
    #[arg(long, default_value_t = 100, value_name = "NUMBER", alias = "workers")]
    worker_threads: usize,
    /// Wait after the first failure.
    #[arg(long, default_value = "1s", value_parser = go::duration, value_name = "DURATION")]
    retry_interval_start: Duration,
    /// Longest wait after failures.
    #[arg(long, default_value = "5m", value_parser = go::duration, value_name = "DURATION")]
    retry_interval_max: Duration,
    /// Switches, as in CrossNamespaceVolumeDataSource=true.
    #[arg(long, value_delimiter = ',', value_parser = go::pair::<'='>, value_name = "GATE=BOOL")]
    feature_gates: Vec<(String, String)>,
    #[command(flatten)]
    provisioner: ProvisionerFlags,
    #[command(flatten)]
    attacher: AttacherFlags,
    #[command(flatten)]
    resizer: ResizerFlags,
    #[command(flatten)]
    capacity: CapacityFlags,
}

/// The controllers by their former names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Controller {
    /// external-provisioner: volumes for claims.
    Provisioner,
    /// external-attacher: volumes on nodes.
    Attacher,
    /// external-resizer: larger volumes, and volumes with other attributes.
    Resizer,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Provisioner, Self::Attacher, Self::Resizer];

    fn which(self) -> Which {
        match self {
            Self::Provisioner => Which::Provisioner,
            Self::Attacher => Which::Attacher,
            Self::Resizer => Which::Resizer,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Attacher")]
struct AttacherFlags {
    /// How often the driver is asked what is attached, where it can tell.
    #[arg(long, default_value = "1m", value_parser = go::duration, value_name = "DURATION")]
    reconcile_sync: Duration,
    /// Volumes on a page of the driver's list; 0: as many as it likes.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..), value_name = "NUMBER")]
    max_entries: i32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Resizer")]
struct ResizerFlags {
    /// Leave a volume alone that grows only while nobody uses it, as long as a pod does.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    handle_volume_inuse_error: bool,
    /// Tell the driver the names of claim and volume when it changes attributes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    extra_modify_metadata: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Capacity")]
struct CapacityFlags {
    /// Tell the scheduler how much room there is (CSIStorageCapacity), in the pod's namespace
    /// ($NAMESPACE).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    enable_capacity: bool,
    /// Also for classes that bind at once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    capacity_for_immediate_binding: bool,
    /// How often the driver is asked.
    #[arg(long, default_value = "1m", value_parser = go::duration, value_name = "DURATION")]
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
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    kubeconfig: OsString,
    /// URL of the API server.
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    master: String,
    /// Requests per second; -1: without a limit.
    #[arg(long, default_value_t = 200.0, allow_negative_numbers = true, value_name = "NUMBER")]
    kube_api_qps: f64,
    /// Requests at once after a pause.
    #[arg(long, default_value_t = 400, allow_negative_numbers = true, value_name = "NUMBER")]
    kube_api_burst: i64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Leader election")]
struct ElectionFlags {
    /// Of several processes, one works. Takes the lease of external-provisioner, too.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Namespace of the leases [default: the pod's].
    #[arg(long, value_name = "NAMESPACE")]
    leader_election_namespace: Option<String>,
    /// How long others wait for a leader that is gone.
    #[arg(long, default_value = "15s", value_parser = go::duration, value_name = "DURATION")]
    leader_election_lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    #[arg(long, default_value = "10s", value_parser = go::duration, value_name = "DURATION")]
    leader_election_renew_deadline: Duration,
    /// How long between two looks at the lease.
    #[arg(long, default_value = "5s", value_parser = go::duration, value_name = "DURATION")]
    leader_election_retry_period: Duration,
    /// Labels of the leases, as in app:larder,tier:storage.
    #[arg(long, value_delimiter = ',', value_parser = go::pair::<':'>, value_name = "KEY:VALUE")]
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
    /// Tell the driver the names of claim and volume.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    extra_create_metadata: bool,
    /// Tell the driver of the chosen node only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    strict_topology: bool,
    /// Tell the driver of all nodes where none was chosen.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    immediate_topology: bool,
    /// Mark volumes of claims that are only read.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    controller_publish_readonly: bool,
    /// Restore a snapshot in the mode that its volume had.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    prevent_volume_mode_conversion: bool,
    /// How often snapshots are let go of from which nothing is made any more; 0: never.
    #[arg(long, default_value = "5m", value_parser = go::duration, value_name = "DURATION")]
    snapshot_orphan_sweep_interval: Duration,
    /// With --node-deployment: also volumes of classes that bind at once.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    node_deployment_immediate_binding: bool,
    /// This process is for the volumes of its node ($NODE_NAME) alone.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "true|false", value_parser = go::boolean, action = clap::ArgAction::Set)]
    node_deployment: bool,
}

impl ControllersFlags {
    /// How the API server is reached.
    pub(super) fn access(&self) -> Access {
        let ApiFlags { kubeconfig, master, kube_api_qps, kube_api_burst } = &self.api;
        let usual = Access::default();
        // As client-go: 0 is the usual, and less is no limit.
        let (per_second, burst) = match *kube_api_qps {
            rate if rate < 0.0 => (f64::from(u32::MAX), u32::MAX),
            rate => (
                if rate > 0.0 { rate } else { usual.per_second },
                u32::try_from(*kube_api_burst).ok().filter(|b| *b > 0).unwrap_or(usual.burst),
            ),
        };
        Access {
            kubeconfig: Some(PathBuf::from(kubeconfig)).filter(|file| !file.as_os_str().is_empty()),
            server: Some(master.clone()).filter(|server| !server.is_empty()),
            per_second,
            burst,
            ..usual
        }
    }

    /// The level of the log; a Go level that is written out is meant.
    pub(super) fn log_level(&self) -> &str {
        match self.verbosity {
            None => &self.log_level,
            Some(0..=3) => "info",
            Some(4 | 5) => "debug",
            Some(_) => "trace",
        }
    }

    /// Where http is served; None: nowhere.
    pub(super) async fn http(&self) -> larder_model::Result<Option<SocketAddr>> {
        match self.http_endpoint.as_str() {
            "" => Ok(None),
            text => go::address(text).await.map(Some),
        }
    }

    /// How the controllers work.
    pub(super) fn options(&self) -> larder_model::Result<Options> {
        options(self)
    }
}

fn options(flags: &ControllersFlags) -> larder_model::Result<Options> {
    let ControllersFlags { election, provisioner: p, attacher, resizer, timeout, .. } = flags;
    let gates = gates(&flags.feature_gates)?;
    let local_node = match (p.node_deployment, std::env::var("NODE_NAME")) {
        (false, _) => None,
        (true, Ok(node)) if !node.is_empty() => Some(node),
        _ => {
            return Err(Fault::invalid("use --node-deployment: NODE_NAME is not set")
                .hint("set it from the pod's spec.nodeName"));
        }
    };
    let labels = election.leader_election_labels.iter().filter(|(k, _)| !k.is_empty());
    let labels = labels.cloned().collect();
    go::times(
        election.leader_election_lease_duration,
        election.leader_election_renew_deadline,
        election.leader_election_retry_period,
    )?;
    let leases = election.leader_election.then(|| Leases {
        duration: election.leader_election_lease_duration,
        deadline: election.leader_election_renew_deadline,
        period: election.leader_election_retry_period,
        labels,
        release: gates.get("ReleaseLeaderElectionOnExit").is_none_or(|v| *v),
        ..Leases::new(&namespace(election.leader_election_namespace.as_deref()))
    });
    let backoff = Backoff { start: flags.retry_interval_start, most: flags.retry_interval_max };
    let (workers, default_fs_type) = (flags.worker_threads, flags.default_fstype.clone());
    let provision = provision::Settings {
        name_prefix: p.volume_name_prefix.clone(),
        name_uid_length: usize::try_from(p.volume_name_uuid_length).ok(),
        default_fs_type: default_fs_type.clone(),
        topology: gates.get("Topology").is_none_or(|v| *v),
        extra_metadata: p.extra_create_metadata,
        strict_topology: p.strict_topology,
        immediate_topology: p.immediate_topology,
        read_only: p.controller_publish_readonly,
        keep_mode: p.prevent_volume_mode_conversion,
        cross_namespace: gates.get("CrossNamespaceVolumeDataSource").is_some_and(|v| *v),
        sweep: p.snapshot_orphan_sweep_interval,
        offers: p.node_deployment_immediate_binding,
        workers,
        backoff,
        capacity: None,
    };
    let capacity = flags.capacity.enable_capacity.then(|| capacity(&flags.capacity)).transpose()?;
    let (reconcile, page) = (attacher.reconcile_sync, attacher.max_entries);
    let attach = attach::Settings { default_fs_type, workers, backoff, reconcile, page };
    let resize = resize::Settings { workers, backoff, in_use: resizer.handle_volume_inuse_error };
    let modify = modify::Settings {
        on: gates.get("VolumeAttributesClass").is_none_or(|v| *v),
        extra_metadata: resizer.extra_modify_metadata,
        workers,
        backoff,
    };
    let which: BTreeSet<_> = flags.controllers.iter().map(|c| c.which()).collect();
    Ok(Options {
        which,
        timeout: *timeout,
        leases,
        local_node,
        capacity,
        provision,
        attach,
        resize,
        modify,
    })
}

/// The switches; what is always on here cannot be switched off.
fn gates(given: &[(String, String)]) -> larder_model::Result<BTreeMap<String, bool>> {
    let mut found = BTreeMap::new();
    for (gate, text) in given.iter().filter(|(gate, _)| !gate.is_empty()) {
        let wrong = |hint: String| {
            Err(Fault::invalid(format!("use feature gate {gate}={text}")).hint(hint))
        };
        let all = || GATES.iter().map(|(gate, _)| *gate).collect::<Vec<_>>().join(", ");
        let Some((_, may_be_off)) = GATES.iter().find(|(known, _)| known == gate) else {
            return wrong(format!("known are {}", all()));
        };
        let Ok(value) = go::boolean(text) else {
            return wrong("write true or false".to_owned());
        };
        if !value && !may_be_off {
            return wrong(format!("{gate} is always on: leave it out"));
        }
        found.insert(gate.clone(), value);
    }
    Ok(found)
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
        assert!(parsed(&["--feature-gates=Topology=maybe"]).is_err());
        assert!(parsed(&["--feature-gates=RecoverVolumeExpansionFailure=false"]).is_err());
        assert!(!parsed(&["--feature-gates=Topology=false"]).unwrap().provision.topology);
    }

    #[test]
    fn the_controllers_can_be_chosen() {
        let all = parsed(&[]).unwrap().which;
        assert_eq!(all, Which::ALL.into_iter().collect());
        let one = parsed(&["--controllers=attacher", "--reconcile-sync=5m"]).unwrap();
        assert_eq!(one.which, [Which::Attacher].into());
        assert_eq!(one.attach.reconcile, Duration::from_secs(300));
    }

    #[test]
    fn the_times_of_an_election_must_leave_room_for_the_next_leader() {
        let of = |duration: &str, deadline: &str, period: &str| {
            parsed(&[
                "--leader-election",
                &format!("--leader-election-lease-duration={duration}"),
                &format!("--leader-election-renew-deadline={deadline}"),
                &format!("--leader-election-retry-period={period}"),
            ])
        };
        assert!(of("15s", "10s", "5s").is_ok() && of("137s", "107s", "26s").is_ok());
        for (duration, deadline, period) in [
            ("15s", "60s", "5s"),
            ("15s", "15s", "5s"),
            ("15s", "10s", "9s"),
            ("15s", "10s", "0s"),
            ("900ms", "500ms", "100ms"),
        ] {
            let fault = of(duration, deadline, period).unwrap_err().to_string();
            assert!(fault.contains("leader-election"), "{duration} {deadline} {period}: {fault}");
        }
    }

    #[test]
    fn a_rate_of_nothing_is_the_usual_one_and_less_is_no_limit() {
        let of = |arguments: &[&str]| {
            let line = Line::try_parse_from([&["controllers"], arguments].concat()).unwrap();
            let access = line.flags.access();
            (access.per_second, access.burst)
        };
        assert_eq!(of(&["--kube-api-qps=0", "--kube-api-burst=0"]), (200.0, 400));
        assert_eq!(of(&["--kube-api-qps=20.5", "--kube-api-burst=30"]), (20.5, 30));
        assert!(of(&["--kube-api-qps=-1"]).0 > 1e6);
    }
}
