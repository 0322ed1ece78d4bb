//! `cargo xtask sanity`: the official CSI conformance suite against `larder serve`.
//!
//! ```text
//! suite    csi-sanity, built once from tests/sanity/go.mod into the cache
//! bench    temp folder: xfs on a loop device (so that reflink works), pool, sockets
//! server   larder serve … SIGTERM, a clean end within the grace period
//! report   what each spec said;  skips  which may be skipped, and why
//! leaks    afterwards: no mount, no loop device, no file more than before
//! ```
//! A skip that is not listed is a failure, so is a listed one that did not happen:
//! the list stays true.

mod bench;
mod inside;
mod leaks;
mod nfs;
mod report;
mod server;
mod skips;
mod suite;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use larder_needs::Purpose;

use self::{bench::Bench, report::Outcome, server::Server};
use crate::{
    proc::{self, Ended},
    test::totals::Totals,
};

/// The suite takes seconds; this is for a server that hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// Volumes that a mkfs.xfs of any version accepts, and that double in a moment.
const VOLUME_BYTES: u64 = 512 << 20;

/// Arguments of `sanity`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is served [default: each backend with each access it has]
    #[arg(long)]
    backend: Option<Backend>,
    /// How volumes are published
    #[arg(long)]
    access: Option<Access>,
    /// `StorageClass` parameters of the volumes, such as fs=ext4
    #[arg(long, value_name = "KEY=VALUE")]
    parameter: Vec<String>,
    /// How often, each time with all specs in another order
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The order of the first round, to repeat a failure [default: by the clock]
    #[arg(long)]
    seed: Option<u32>,
    /// This binary instead of the checkout's
    #[arg(long, value_name = "FILE")]
    larder: Option<PathBuf>,
    /// Only specs whose name matches this regular expression (skips are not judged)
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// This is the machine that has what is served, and here is what is built: the suite, and a folder
    /// for logs
    #[arg(long, hide = true, num_args = 2, value_names = ["SUITE", "LOGS"])]
    inside: Option<Vec<PathBuf>>,
}

/// The backends that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// Directories
    Dir,
    /// Images on loop devices
    Loop,
    /// Directories of a server, in a virtual machine that has one
    Nfs,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dir => "dir",
            Self::Loop => "loop",
            Self::Nfs => "nfs",
        })
    }
}

/// How the suite asks for volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Access {
    /// As a file system
    Mount,
    /// As a block device
    Block,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Block => "block",
        })
    }
}

/// What can be served how.
const COMBINATIONS: [(Backend, Access); 4] = [
    (Backend::Dir, Access::Mount),
    (Backend::Loop, Access::Mount),
    (Backend::Loop, Access::Block),
    (Backend::Nfs, Access::Mount),
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.inside.is_none() {
        larder_needs::ensure(&[Purpose::Build, Purpose::Sanity])?;
    }
    ensure!(larder_needs::is_root(), "sanity mounts file systems (hint: run it as root)");
    let chosen: Vec<_> = COMBINATIONS
        .into_iter()
        .filter(|(backend, _)| args.backend.is_none_or(|wanted| wanted == *backend))
        .filter(|(_, access)| args.access.is_none_or(|wanted| wanted == *access))
        .collect();
    ensure!(!chosen.is_empty(), "volumes of dir and nfs are directories: there is no block access");
    let suite = match args.inside.as_deref() {
        Some([suite, _]) => suite.clone(),
        _ => suite::get()?,
    };
    let larder = if let Some(binary) = &args.larder {
        // The server runs in another folder.
        std::path::absolute(binary)?
    } else {
        proc::run(proc::cargo().args(["build", "--package", "larder"]))?;
        crate::target_dir()?.join("debug/larder")
    };
    let mut sum = Totals::default();
    for (backend, access) in chosen {
        for round in 0..args.rounds {
            let seed = args.seed.map_or_else(clock_seed, |seed| seed.wrapping_add(round));
            let run = Run { args, suite: &suite, larder: &larder, backend, access, seed };
            let there = backend == Backend::Nfs && args.inside.is_none();
            let done = if there { inside::run(&run) } else { run.whole() };
            let totals = done.with_context(|| format!("sanity {backend} {access}"))?;
            println!("{backend} {access}, seed {seed}: {totals}\n");
            sum = sum + totals;
        }
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn clock_seed() -> u32 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.subsec_micros())
}

/// One run of the suite.
struct Run<'a> {
    args: &'a Args,
    suite: &'a Path,
    larder: &'a Path,
    backend: Backend,
    access: Access,
    seed: u32,
}

impl Run<'_> {
    fn whole(&self) -> Result<Totals> {
        let began = Instant::now();
        let bench = Bench::new()?;
        let pool = match self.backend {
            Backend::Nfs => nfs::serve(&bench.pool())?,
            Backend::Dir | Backend::Loop => bench.pool().display().to_string(),
        };
        let server = Server::start(self.larder, &self.backend.to_string(), &pool, &bench)?;
        let before = leaks::Traces::of(&bench)?;
        let ended = proc::run_limited(&mut self.command(&bench)?, &bench.suite_log(), LIMIT)?;
        let mut problems = Vec::new();
        if ended == Ended::TimedOut {
            problems.push(format!("the suite was not done after {} s", LIMIT.as_secs()));
        }
        problems.extend(before.compare(&leaks::Traces::of(&bench)?));
        problems.extend(server.stop()?);
        if self.backend == Backend::Nfs {
            nfs::stop()?;
        }
        let outcomes = match report::read(&bench.report()) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                problems.push(format!("{error:#}"));
                Vec::new()
            }
        };
        let totals = self.judge(&outcomes, problems)?;
        if totals.failed > 0 {
            let folder = match self.args.inside.as_deref() {
                Some([_, logs]) => logs.clone(),
                _ => crate::target_dir()?.join("xtask"),
            };
            bench.keep_logs(&folder, &self.label())?;
        }
        println!("took {:.1} s", began.elapsed().as_secs_f64());
        bench.close()?;
        Ok(totals)
    }

    fn label(&self) -> String {
        format!("sanity-{}-{}", self.backend, self.access)
    }

    fn command(&self, bench: &Bench) -> Result<Command> {
        let mut suite = Command::new(self.suite);
        let mut flag = |name: &str, value: &dyn fmt::Display| {
            suite.arg(format!("--{name}={value}"));
        };
        flag("csi.endpoint", &bench.endpoint());
        flag("csi.mountdir", &bench.path("target").display());
        flag("csi.stagingdir", &bench.path("staging").display());
        flag("csi.testvolumeaccesstype", &self.access);
        flag("csi.testvolumesize", &VOLUME_BYTES);
        flag("csi.testvolumeexpandsize", &(2 * VOLUME_BYTES));
        flag("ginkgo.seed", &self.seed);
        flag("ginkgo.no-color", &true);
        flag("ginkgo.v", &true);
        flag("ginkgo.json-report", &bench.report().display());
        flag("ginkgo.junit-report", &bench.junit().display());
        if self.args.rounds > 1 {
            flag("ginkgo.randomize-all", &true);
        }
        if let Some(focus) = &self.args.focus {
            flag("ginkgo.focus", focus);
        }
        if let Backend::Loop = self.backend {
            // Far above what the machine does: the suite checks calls, not rates.
            let path = bench.path("mutable.yaml");
            std::fs::write(&path, "maxWriteBps: 8Gi\nmaxReadIops: 1M\n")?;
            flag("csi.testvolumemutableparameters", &path.display());
        }
        if !self.args.parameter.is_empty() {
            flag("csi.testvolumeparameters", &self.parameters(bench)?.display());
        }
        suite.current_dir(bench.path(""));
        Ok(suite)
    }

    fn parameters(&self, bench: &Bench) -> Result<PathBuf> {
        let mut yaml = String::new();
        for pair in &self.args.parameter {
            let (key, value) = pair.split_once('=').context("--parameter wants KEY=VALUE")?;
            // JSON strings are YAML strings.
            yaml.push_str(&format!("{}: {}\n", serde_json::json!(key), serde_json::json!(value)));
        }
        let path = bench.path("parameters.yaml");
        std::fs::write(&path, yaml)?;
        Ok(path)
    }

    /// Prints what was skipped and what is wrong, and counts.
    fn judge(&self, outcomes: &[Outcome], mut problems: Vec<String>) -> Result<Totals> {
        let list = skips::List::load(&crate::root().join("tests/sanity/skips.toml"))?;
        let label = self.label();
        let judged = list.judge(&self.backend.to_string(), &self.access.to_string(), outcomes);
        for (count, spec, reason) in &judged.allowed {
            println!("skipped {count:2} of {spec:?}: {reason}");
        }
        problems.extend(judged.unlisted);
        if self.args.focus.is_none() {
            problems.extend(judged.stale);
        }
        let failed = outcomes.iter().filter_map(|outcome| match &outcome.result {
            report::Result::Failed(message) => Some(format!("{}: {message}", outcome.name)),
            report::Result::Passed | report::Result::Skipped(_) => None,
        });
        problems.extend(failed);
        for problem in &problems {
            println!("FAILED {label}: {problem}");
        }
        let count = |test: fn(&report::Result) -> bool| {
            u32::try_from(outcomes.iter().filter(|outcome| test(&outcome.result)).count())
        };
        Ok(Totals {
            passed: count(|result| matches!(result, report::Result::Passed))?,
            failed: u32::try_from(problems.len())?,
            skipped: judged.allowed.iter().map(|(count, ..)| count).sum(),
        })
    }
}
