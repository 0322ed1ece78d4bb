//! Arguments as the Go sidecars take them: how they are written, and those that mean nothing here.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use larder_model::Fault;
use std::{
    ffi::OsString,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// Flags with a value that change nothing here.
const VALUES: [&str; 22] = [
    // Nothing is listed again that is watched.
    "resync",
    "resync-period",
    // One rate and one number of workers for everything.
    "kube-api-capacity-qps",
    "kube-api-capacity-burst",
    "capacity-threads",
    "cloning-protection-threads",
    // Nodes take their turns within a quarter of a second.
    "node-deployment-base-delay",
    "node-deployment-max-delay",
    // What the driver answers is not logged.
    "max-grpc-log-length",
    // How their logs are written, and where.
    "vmodule",
    "stderrthreshold",
    "log_backtrace_at",
    "log_dir",
    "log-dir",
    "log_file",
    "log-file",
    "log_file_max_size",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "log-backtrace-at",
];

/// Switches that change nothing here.
const SWITCHES: [&str; 13] = [
    "enable-pprof",
    "automaxprocs",
    "logtostderr",
    "alsologtostderr",
    "add_dir_header",
    "add-dir-header",
    "skip_headers",
    "skip-headers",
    "skip_log_headers",
    "skip-log-headers",
    "one_output",
    "log-json-split-stream",
    "log-text-split-stream",
];

/// What was given of that, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignored(Vec<&'static str>);

impl Ignored {
    /// For a line in the log.
    pub(super) fn names(&self) -> Option<String> {
        let dashed = |name: &&str| format!("--{name}");
        (!self.0.is_empty()).then(|| self.0.iter().map(dashed).collect::<Vec<_>>().join(", "))
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let all = VALUES.into_iter().chain(SWITCHES);
        Ok(Self(all.filter(|name| matches.contains_id(name)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        let value = |name| Arg::new(name).long(name).hide(true).allow_hyphen_values(true);
        let switch =
            |name| Arg::new(name).long(name).hide(true).num_args(0..=1).require_equals(true);
        command.args(VALUES.map(value)).args(SWITCHES.map(switch))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The command line with two dashes before the long names of `larder controllers`: Go takes one, too.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<_> = given.into_iter().collect();
    if given.get(1).is_none_or(|command| command != "controllers") {
        return given;
    }
    for argument in given.iter_mut().skip(2) {
        if argument == "--" {
            break;
        }
        let text = argument.to_string_lossy();
        let Some(name) = text.strip_prefix('-') else { continue };
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
        // -h and -V are ours; -v is the level of the log.
        let long = name.len() > 1 || name == "v";
        if first && long {
            *argument = format!("--{name}").into();
        }
    }
    given
}

/// As Go's strconv.ParseBool.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// The address to listen at: without a host (`:8080`) every one; a name is looked up.
pub(super) async fn address(text: &str) -> larder_model::Result<SocketAddr> {
    let wrong = || {
        Fault::invalid(format!("serve http at {text:?}: it is no address"))
            .hint("write 127.0.0.1:8080, [::1]:8080, localhost:8080 or :8080")
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() {
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| wrong().because(error))?.collect::<Vec<_>>();
    // As Go: version 4 of a name that has both.
    let first = found.iter().find(|a| a.is_ipv4()).or(found.first());
    first.copied().ok_or_else(wrong)
}

/// A path that no other page has.
pub(super) fn metrics_path(text: &str) -> Result<String, String> {
    let taken = ["/healthz", "/healthz/leader-election", "/readyz"];
    match text {
        "" => Ok("/metrics".to_owned()),
        _ if !text.starts_with('/') || text.contains(['{', '}', '*', '?', '#']) => {
            Err(format!("{text:?} is no path (hint: write /metrics)"))
        }
        _ if taken.contains(&text) => Err(format!("{text} is another page")),
        _ => Ok(text.to_owned()),
    }
}

/// Whether those times keep two leaders apart, as client-go asks.
pub(super) fn times(
    duration: Duration,
    deadline: Duration,
    period: Duration,
) -> larder_model::Result<()> {
    let wrong = |what: &str, hint: &str| Err(Fault::invalid(what).hint(hint));
    // A Lease says it in whole seconds.
    if Duration::from_secs(duration.as_secs()) <= deadline {
        return wrong(
            "use --leader-election-lease-duration: a leader would go on beside its successor",
            "make it longer than --leader-election-renew-deadline, by a second or more",
        );
    }
    if period.is_zero() || deadline.as_secs_f64() <= 1.2 * period.as_secs_f64() {
        return wrong(
            "use --leader-election-retry-period: a leader would lose its lease by one lost answer",
            "make it more than 0, and --leader-election-renew-deadline more than 1.2 times as long",
        );
    }
    Ok(())
}

/// A duration as Go writes it: `15s`, `1m30s`, `500ms`.
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
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

/// `KEY`, BETWEEN, `VALUE`; nothing is no pair, and is let be.
pub(super) fn pair<const BETWEEN: char>(
    text: &str,
) -> std::result::Result<(String, String), String> {
    if text.is_empty() {
        return Ok((String::new(), String::new()));
    }
    let (key, value) =
        text.split_once(BETWEEN).ok_or_else(|| format!("{text:?} has no {BETWEEN}"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parsed(arguments: &[&str]) -> Result<super::super::ControllersFlags, clap::Error> {
        let line = ["larder", "controllers"].into_iter().chain(arguments.iter().copied());
        match Cli::try_parse_from(super::arguments(line.map(OsString::from)))?.command {
            Command::Controllers(flags) => Ok(*flags),
            other => panic!("{other:?}"),
        }
    }

    /// Every flag of external-provisioner 6.3, external-attacher 4.12 and external-resizer 2.2, with
    /// a value other than its default.
    const FLAGS: [(&str, &str); 59] = [
        ("kubeconfig", "/etc/kubeconfig"),
        ("csi-address", "unix:///csi/csi.sock"),
        ("leader-election", "true"),
        ("leader-election-namespace", "storage"),
        ("leader-election-lease-duration", "30s"),
        ("leader-election-renew-deadline", "9s"),
        ("leader-election-retry-period", "4s"),
        ("leader-election-labels", "app:x"),
        ("kube-api-qps", "10"),
        ("kube-api-burst", "20"),
        ("http-endpoint", ":8080"),
        ("metrics-address", "localhost:8080"),
        ("metrics-path", "/measured"),
        ("feature-gates", "Topology=T,VolumeAttributesClass=0"),
        ("master", "https://127.0.0.1:6443"),
        ("volume-name-prefix", "vol"),
        ("volume-name-uuid-length", "10"),
        ("retry-interval-start", "2s"),
        ("retry-interval-max", "10m"),
        ("worker-threads", "10"),
        ("workers", "10"),
        ("cloning-protection-threads", "2"),
        ("snapshot-orphan-sweep-interval", "0"),
        ("capacity-threads", "2"),
        ("timeout", "60s"),
        ("strict-topology", "true"),
        ("immediate-topology", "false"),
        ("extra-create-metadata", "1"),
        ("enable-pprof", "true"),
        ("default-fstype", "xfs"),
        ("kube-api-capacity-qps", "2"),
        ("kube-api-capacity-burst", "10"),
        ("enable-capacity", "true"),
        ("capacity-for-immediate-binding", "true"),
        ("capacity-poll-interval", "30s"),
        ("capacity-ownerref-level", "-1"),
        ("node-deployment", "t"),
        ("node-deployment-immediate-binding", "FALSE"),
        ("node-deployment-base-delay", "10s"),
        ("node-deployment-max-delay", "30s"),
        ("controller-publish-readonly", "true"),
        ("prevent-volume-mode-conversion", "F"),
        ("resync", "5m"),
        ("resync-period", "5m"),
        ("max-entries", "100"),
        ("reconcile-sync", "2m"),
        ("max-grpc-log-length", "-1"),
        ("extra-modify-metadata", "true"),
        ("handle-volume-inuse-error", "false"),
        ("automaxprocs", "true"),
        ("v", "5"),
        ("vmodule", "a=1"),
        ("logging-format", "json"),
        ("logtostderr", "true"),
        ("alsologtostderr", "true"),
        ("stderrthreshold", "INFO"),
        ("log_dir", "/tmp"),
        ("log-flush-frequency", "5s"),
        ("skip_headers", "true"),
    ];

    #[test]
    fn every_flag_of_the_go_sidecars_is_taken_with_one_dash_or_two() {
        for (name, value) in FLAGS {
            for dashes in ["-", "--"] {
                let argument = format!("{dashes}{name}={value}");
                if let Err(error) = parsed(&[&argument]) {
                    panic!("{argument}: {error}");
                }
            }
            let is_switch =
                boolean(value).is_ok() && !["v", "snapshot-orphan-sweep-interval"].contains(&name);
            let alone: &[&str] = match is_switch {
                true => &[&format!("-{name}")],
                false => &[&format!("-{name}"), value],
            };
            assert!(parsed(alone).is_ok(), "{alone:?}");
        }
        let all: Vec<_> = FLAGS.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        // `workers` and `worker-threads` are two names of one, and so are the addresses.
        assert!(parsed(&all.iter().map(String::as_str).collect::<Vec<_>>()).is_ok());
    }

    #[test]
    fn what_is_empty_is_as_if_it_were_not_there() {
        let flags = parsed(&[
            "--kubeconfig=",
            "--master=",
            "--http-endpoint=",
            "--feature-gates=",
            "--leader-election-labels=",
            "--leader-election",
        ]);
        let flags = flags.unwrap();
        let access = flags.access();
        assert!(access.kubeconfig.is_none() && access.server.is_none());
        let options = flags.options().unwrap();
        assert!(options.leases.unwrap().labels.is_empty());
    }

    #[test]
    fn flags_that_have_a_meaning_keep_it() {
        let flags = parsed(&[
            "-v=5",
            "-metrics-path=/m",
            "-feature-gates=ReleaseLeaderElectionOnExit=F,Topology=0",
            "-leader-election",
            "-node-deployment-immediate-binding=false",
            "-resync=10m",
            "-timeout=60s",
            "-timeout=30s",
        ]);
        let flags = flags.unwrap();
        assert_eq!((flags.log_level(), flags.metrics_path.as_str()), ("debug", "/m"));
        assert_eq!(flags.ignored.names().as_deref(), Some("--resync"));
        let options = flags.options().unwrap();
        assert_eq!(options.timeout, Duration::from_secs(30), "the last one counts");
        assert!(!options.leases.unwrap().release);
        assert!(!options.provision.topology && !options.provision.offers);
        assert!(parsed(&["--nonsense"]).is_err() && parsed(&["-x"]).is_err());
        assert!(parsed(&["--metrics-path=/readyz"]).is_err());
    }

    #[tokio::test]
    async fn http_is_served_where_go_would_serve_it() {
        for (text, wanted) in [
            (":8080", "[::]:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:2", "[::1]:2"),
            ("localhost:3", "127.0.0.1:3"),
        ] {
            assert_eq!(address(text).await.unwrap().to_string(), wanted, "{text}");
        }
        for text in ["8080", "localhost", "127.0.0.1:no"] {
            assert!(address(text).await.is_err(), "{text}");
        }
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
