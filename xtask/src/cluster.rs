//! `cargo xtask cluster`: a real Kubernetes on this machine.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Result, ensure};
use larder_cluster::{Binaries, Cluster, Options, Set};

use crate::test::suite::{self, Suite};

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Bring a cluster up, and print how to talk to it
    Up {
        #[command(flatten)]
        name: Name,
        /// How many nodes it has
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
        nodes: u8,
        /// One more flag for the controller manager, such as --kube-api-qps=1000
        #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
        controller_manager: Vec<String>,
    },
    /// End a cluster with all that belongs to it
    Down {
        #[command(flatten)]
        name: Name,
        /// All clusters of this user
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Print what of the clusters runs
    Status,
    /// Run a command with a cluster's kubectl, helm and kubeconfig
    Run {
        #[command(flatten)]
        name: Name,
        /// In a machine of the cluster, such as node1, instead of on the host
        #[arg(long, value_name = "MACHINE")]
        on: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Copy the images of OCI archives to all nodes
    Import {
        #[command(flatten)]
        name: Name,
        /// The archives
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Only build the programs, and print their folder
    Build {
        /// Which ones
        #[arg(default_value = "kubernetes")]
        set: BuildSet,
    },
    /// Run the test targets that want a cluster, with one that is ended afterwards
    Test(suite::Which),
}

#[derive(Clone, Debug, clap::Args)]
struct Name {
    /// The cluster's name
    #[arg(long, default_value = "dev")]
    name: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum BuildSet {
    /// What a cluster runs, kubectl and helm
    Kubernetes,
    /// The stock CSI sidecars
    Sidecars,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.action {
        Action::Up { name, nodes, controller_manager } => {
            let options = Options { nodes: *nodes, controller_manager: controller_manager.clone() };
            up(&name.name, &options)?;
        }
        Action::Down { name, all } => {
            let names = if *all { larder_cluster::names()? } else { vec![name.name.clone()] };
            names.iter().try_for_each(|name| larder_cluster::down(name))?;
        }
        Action::Status => status()?,
        Action::Run { name, on, command } => {
            return run_in(&Cluster::find(&name.name)?, on.as_deref(), command);
        }
        Action::Import { name, archives } => {
            let cluster = Cluster::find(&name.name)?;
            archives.iter().try_for_each(|archive| cluster.import_image(archive))?;
        }
        Action::Build { set } => {
            let set = match set {
                BuildSet::Kubernetes => Set::Kubernetes,
                BuildSet::Sidecars => Set::Sidecars,
            };
            println!("{}", Binaries::get(set)?.dir().display());
        }
        Action::Test(which) => return suite::run_suite(Suite::Cluster, which),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, options: &Options) -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::up(name, options)?;
    println!("cluster {name} is up after {:.1} s", began.elapsed().as_secs_f64());
    println!("  cargo xtask cluster run --name {name} -- kubectl get nodes");
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("  programs: {}", cluster.binaries().display());
    println!("  logs: {}", cluster.logs().display());
    Ok(())
}

fn status() -> Result<()> {
    let names = larder_cluster::names()?;
    if names.is_empty() {
        println!("no cluster (hint: cargo xtask cluster up)");
    }
    for name in names {
        match Cluster::find(&name) {
            Ok(cluster) => {
                println!("{name}: logs: {}", cluster.logs().display());
                cluster.report().iter().for_each(|line| println!("  {line}"));
            }
            Err(_) => println!("{name}: not whole (hint: cargo xtask cluster down --name {name})"),
        }
    }
    Ok(())
}

fn run_in(cluster: &Cluster, on: Option<&str>, words: &[OsString]) -> Result<ExitCode> {
    let program = words.first().cloned().unwrap_or_default();
    let mut command = match on {
        None => cluster.tool(&program.to_string_lossy()),
        Some(name) => {
            let mut machines = cluster.nodes().iter().chain([cluster.control()]);
            let machine = machines.find(|machine| machine.name() == name);
            ensure!(machine.is_some(), "{} has no machine {name}", cluster.name());
            machine.map_or_else(|| Command::new("false"), |machine| machine.command(&program))
        }
    };
    command.stdin(std::process::Stdio::inherit());
    let status = command.args(words.iter().skip(1)).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
