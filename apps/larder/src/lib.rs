//! Larder: container storage in one binary.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | the commands and their help |
//! | [`config`] | the configuration file, its defaults and its check |
//! | [`backends`] | the list of backends |
//! | [`wiring`] | puts a driver together |
//! | [`serve`], [`http`], [`logging`] | the serving process |
//! | [`controllers`] | the Kubernetes controllers for a driver behind a socket |
//! | [`session`], [`commands`], [`output`], [`exit`] | everything else: a driver's CSI services, called by hand |
//! | [`doctor`] | finds what is left over, lost or about to go wrong |
//! | [`manifests`] | the objects of a Kubernetes deployment |
//! | [`kubectl`] | a look at a cluster, also as a plugin of kubectl |
//! | [`demo`] | what Larder does, in seconds |

mod backends;
mod cli;
mod commands;
mod config;
mod controllers;
mod demo;
mod doctor;
mod exit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod kubectl;
mod logging;
mod manifests;
mod memory;
mod output;
mod serve;
mod session;
mod wiring;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::{path::Path, process::ExitCode};

/// The whole program.
pub fn main() -> ExitCode {
    // Helpers first and without a runtime: they must start fast, and work when little else does.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|a| a == "internal") {
        return larder_host::internal::main(arguments);
    }
    write_no_cores();
    match run(
        Cli::parse_from(controllers::arguments(kubectl::arguments(std::env::args_os()))).command
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<exit::Found>() => exit::code(&error),
        Err(error) => {
            output::note(format!("larder: failed to {}", text(&error)));
            exit::code(&error)
        }
    }
}

/// A core file would hold secrets of requests, and those of `cryptsetup`, which has the limit from here. An
/// administrator who needs one raises it again (`prlimit`).
fn write_no_cores() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Core);
    // Lowering it is never refused.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
}

/// The whole chain on one line. A fault tells its causes itself.
fn text(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.strip_prefix("failed to ").map(str::to_owned).unwrap_or(text)
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Config(command) => return commands::config::run(command),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "larder",
                &mut std::io::stdout().lock(),
            );
            return Ok(());
        }
        Command::Man { folder } => return man(&folder),
        Command::Manifests(flags) => return manifests::run(&flags),
        Command::Demo(_) => demo::enter_namespace()?,
        _ => {}
    }
    let runtime = match &command {
        Command::Serve(_) | Command::Controllers(_) => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()
        }
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let runtime = runtime.context("failed to start the runtime")?;
    if !matches!(command, Command::Serve(_) | Command::Controllers(_)) {
        let level = std::env::var("LARDER_LOG").unwrap_or_else(|_| "error".to_owned());
        logging::start(logging::LogFormat::Text, &level)?;
    }
    let result = runtime.block_on(async {
        match command {
            Command::Serve(flags) => Box::pin(serve::run(flags)).await,
            Command::Controllers(flags) => Box::pin(controllers::run(*flags)).await,
            Command::Volume(command) => Box::pin(commands::volume::run(command)).await,
            Command::Snapshot(command) => Box::pin(commands::snapshot::run(command)).await,
            Command::Trash(command) => Box::pin(commands::trash::run(command)).await,
            Command::Pool(command) => Box::pin(commands::pool::run(command)).await,
            Command::Driver(command) => Box::pin(commands::driver::run(command)).await,
            Command::Adopt(flags) => Box::pin(commands::adopt::run(flags)).await,
            Command::CanUninstall(flags) => Box::pin(commands::uninstall::run(flags)).await,
            Command::Kubectl(command) => Box::pin(kubectl::run(command)).await,
            Command::Doctor(flags) => Box::pin(doctor::run(flags)).await,
            Command::Demo(flags) => Box::pin(demo::run(flags)).await,
            Command::Config(_)
            | Command::Manifests(_)
            | Command::Completions { .. }
            | Command::Man { .. }
            | Command::Internal { .. } => Ok(()),
        }
    });
    // A thread that the kernel holds (a dead mount) must not keep the process.
    runtime.shutdown_background();
    result
}

fn man(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("failed to make {}", folder.display()))?;
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("failed to write to {}", folder.display()))
}
