//! `cargo xtask suite`: runs the test targets that want virtual machines or long
//! times (see `discover`), and sums up what they say.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use larder_cluster::{Cluster, Options};
use larder_needs::Purpose;
use larder_vm::{End, Machine, Streams};

use super::{
    discover::{self, Target},
    totals::{self, Totals},
};
use crate::proc;

/// What the guest's /scratch, where tests put their temporary files, can hold.
const SCRATCH_BYTES: u64 = 16 << 30;

/// Kernel modules that a real host has loaded, or loads by itself, and the guest does not.
const MODULES: &str = "loop ext4 xfs btrfs quota_v2 dm_crypt";

/// Arguments of `suite`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which tests
    suite: Suite,
    #[command(flatten)]
    which: Which,
}

/// Which of a suite's tests, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Only this test target
    #[arg(long, value_name = "TARGET")]
    only: Option<String>,
    /// For tests that want a cluster: this one, which stays up [default: one of their own]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// For the test binaries, such as a filter
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// On the host, starting virtual machines
    Vm,
    /// In virtual machines
    InVm,
    /// On the host, with a Kubernetes cluster
    Cluster,
    /// Long ones
    Soak,
}

impl Suite {
    fn has(self, target: &Target) -> bool {
        match self {
            Self::Vm => !target.is_long() && !target.is_inside() && !target.wants_cluster(),
            Self::InVm => !target.is_long() && target.is_inside(),
            Self::Cluster => !target.is_long() && target.wants_cluster(),
            Self::Soak => target.is_long(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    run_suite(args.suite, &args.which)
}

/// Runs a suite.
pub(crate) fn run_suite(suite: Suite, which: &Which) -> Result<ExitCode> {
    let wanted = |target: &Target| {
        suite.has(target) && which.only.as_ref().is_none_or(|name| *name == target.name)
    };
    let targets: Vec<_> = discover::targets()?.into_iter().filter(wanted).collect();
    ensure!(!targets.is_empty(), "there is no such test target");
    let (clustered, others): (Vec<_>, Vec<_>) =
        targets.iter().partition(|target| target.wants_cluster());
    let mut sum = Totals::default();
    // Tests that serve it in a machine start the binary that everybody else has.
    larder_needs::ensure(&[Purpose::Build])?;
    let binaries = ["build", "--package", "larder", "--package", "larder-lives"];
    proc::run(proc::cargo().args(binaries))?;
    let larder = crate::target_dir()?.join("debug/larder");
    if !others.is_empty() {
        larder_needs::ensure(&[Purpose::Vm])?;
    }
    for target in others {
        let binary = build(target)?;
        sum = sum + run_one(target, &binary, &larder, &which.arguments, None)?;
    }
    if !clustered.is_empty() {
        sum = sum + run_with_cluster(&clustered, &larder, which)?;
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs tests that want a cluster, all with the same one.
fn run_with_cluster(targets: &[&Target], larder: &Path, which: &Which) -> Result<Totals> {
    larder_needs::ensure(&[Purpose::Cluster])?;
    if let Some(why) = larder_cluster::unable() {
        for target in targets {
            println!("skipped {} {}: no cluster can run here: {why}", target.package, target.name);
        }
        return Ok(Totals { skipped: u32::try_from(targets.len())?, ..Totals::default() });
    }
    // Built first: a cluster that waits takes memory and processors.
    let binaries = targets.iter().map(|target| build(target)).collect::<Result<Vec<_>>>()?;
    let options = Options::default();
    let began = Instant::now();
    let cluster = match &which.cluster {
        Some(name) => Cluster::up(name, &options)?,
        None => Cluster::throw_away(&format!("test-{}", std::process::id()), &options)?,
    };
    println!("cluster {} is up after {:.1} s", cluster.name(), began.elapsed().as_secs_f64());
    let mut sum = Totals::default();
    for (target, binary) in targets.iter().zip(&binaries) {
        sum = sum + run_one(target, binary, larder, &which.arguments, Some(&cluster))?;
    }
    if which.cluster.is_none() {
        let logs = cluster.logs().display().to_string();
        if sum.failed > 0 {
            println!("logs of the cluster: {logs}");
        }
        cluster.down()?;
    }
    Ok(sum)
}

/// Builds a target; the path of its binary.
fn build(target: &Target) -> Result<PathBuf> {
    let mut cargo = proc::cargo();
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    cargo.args(["--package", &target.package, "--test", &target.name]);
    cargo.args(["--features", &target.features.join(",")]);
    let output = cargo.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} failed", proc::shown(&cargo));
    let text = String::from_utf8_lossy(&output.stdout);
    let artifact = |line: &str| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message.pointer("/target/name")? == target.name.as_str()).then_some(())?;
        (message.pointer("/target/kind/0")? == "test").then_some(())?;
        Some(message.get("executable")?.as_str()?.into())
    };
    text.lines().find_map(artifact).with_context(|| format!("no binary of {}", target.name))
}

fn run_one(
    target: &Target,
    binary: &Path,
    larder: &Path,
    arguments: &[String],
    cluster: Option<&Cluster>,
) -> Result<Totals> {
    println!("     Running {} {}", target.package, target.name);
    let (text, ended) = if target.is_inside() {
        run_inside(target, binary, larder, arguments)?
    } else {
        run_here(binary, larder, arguments, cluster)?
    };
    let totals = totals::parse(&text).unwrap_or_default();
    if totals.failed == 0
        && let Some(how) = ended
    {
        println!("FAILED {} {}: {how}", target.package, target.name);
        return Ok(totals + Totals { failed: 1, ..Totals::default() });
    }
    Ok(totals)
}

/// What the binary printed, and how it ended when that was not success.
fn run_here(
    binary: &Path,
    larder: &Path,
    arguments: &[String],
    cluster: Option<&Cluster>,
) -> Result<(String, Option<String>)> {
    let mut command = std::process::Command::new(binary);
    command.args(arguments).current_dir(crate::root());
    command.envs(cluster.into_iter().flat_map(Cluster::environment));
    // Two machines at a time: more do not fit two processors.
    command.env("RUST_TEST_THREADS", "2").env("LARDER_BIN", larder);
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("failed to start {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    Ok((text, (!output.status.success()).then(|| output.status.to_string())))
}

fn run_inside(
    target: &Target,
    binary: &Path,
    larder: &Path,
    arguments: &[String],
) -> Result<(String, Option<String>)> {
    let mut machine = Machine::new()
        .memory(target.memory)
        .udev(target.udev)
        .scratch(SCRATCH_BYTES)
        .timeout(Duration::from_secs(60 * u64::from(target.minutes)))
        .env("TMPDIR", "/scratch")
        .env("RUST_BACKTRACE", "1")
        .env("LARDER_BIN", larder)
        .streams(Streams::PassedThrough)
        .share(crate::root());
    // The test's binary and the program, which may be built outside of the checkout.
    let built = crate::target_dir()?;
    if !built.starts_with(crate::root()) {
        machine = machine.share(&built);
    }
    let script = format!("modprobe -a {MODULES} && exec \"$@\"");
    let shell: [&OsStr; 5] =
        ["sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), binary.as_os_str()];
    let command = shell.into_iter().chain(arguments.iter().map(AsRef::as_ref));
    let output = machine.run(command)?;
    let ended = match output.end {
        End::Exited(0) => None,
        End::Exited(status) => Some(format!("exit status {status}")),
        End::TimedOut => Some(format!("not done after {} minutes", target.minutes)),
        End::Crashed => Some(format!("the machine died:\n{}", output.console)),
        End::PowerCut => bail!("nobody cut this machine's power"),
    };
    Ok((output.text(), ended))
}
