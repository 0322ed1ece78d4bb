//! `cargo xtask`: every developer command.
//!
//! ```text
//! setup   the machine has what the others need
//! check   format, lints, rules of the repository
//! test    all of it, in stages, with one line of totals
//! sanity  the official CSI conformance suite against a served pool
//! cluster a real Kubernetes of two nodes
//! image   the container image, without a container engine
//! vm      one command in a throw-away Debian machine
//! fuzz    inputs that break what is parsed
//! demo    build Larder and show it
//! bench   build Larder and measure it
//! ```
//! A command that lacks something installs it as root, else names what to run.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "developer CLI: runs cargo and friends and prints; there is no runtime to block"
)]

mod bench;
mod check;
mod cluster;
mod demo;
mod fuzz;
mod image;
mod proc;
mod sanity;
mod setup;
mod test;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Larder's developer commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building, the demo and the tests need
    Setup(setup::Args),
    /// Run the tests in stages, and print what passed, failed and was skipped
    Test(test::Args),
    /// Run the test targets that want virtual machines or a long time
    Suite(test::suite::Args),
    /// Check formatting, lints and the repository's own rules
    Check(check::Args),
    /// Run the official CSI conformance suite against `larder serve`
    Sanity(sanity::Args),
    /// Fuzz everything that is parsed, and keep the corpus
    Fuzz(fuzz::Args),
    /// Build Larder and run its demo
    Demo(demo::Args),
    /// Build Larder and measure it against its targets
    Bench(bench::Args),
    /// Build the container image without a container engine
    Image(image::Args),
    /// Run a real Kubernetes of two nodes
    Cluster(cluster::Args),
    /// Run one command in a throw-away Debian virtual machine
    Vm(vm::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Suite(args) => test::suite::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Sanity(args) => sanity::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Vm(args) => vm::run(args),
    }
}

/// The checkout's folder.
fn root() -> PathBuf {
    // xtask/ stands in it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// cargo's output folder.
fn target_dir() -> Result<PathBuf> {
    let json =
        proc::output(proc::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    let dir = metadata.get("target_directory").and_then(serde_json::Value::as_str);
    Ok(dir.context("cargo names no target directory")?.into())
}
