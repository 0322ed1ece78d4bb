//! `cargo xtask setup`: the machine gets what the other commands need.

use std::process::ExitCode;

use anyhow::Result;
use larder_needs::{NEEDS, Purpose};

/// Arguments of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing: list what is there and what is missing; fails when something is
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !args.check {
        larder_needs::ensure(&Purpose::ALL)?;
        println!("setup: everything is there");
        return Ok(ExitCode::SUCCESS);
    }
    for need in NEEDS {
        let mark = if need.is_met() { "ok     " } else { "missing" };
        println!("{mark}  {:24} {}", need.package, need.why);
    }
    let missing = larder_needs::missing(&Purpose::ALL);
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("run as root: apt-get update && {}", larder_needs::install_command(&missing));
    Ok(ExitCode::FAILURE)
}
