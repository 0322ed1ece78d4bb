//! `cargo xtask demo`: from a fresh checkout to seeing what Larder does.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use larder_needs::Purpose;

use crate::proc;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For `larder demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    larder_needs::ensure(&[Purpose::Build, Purpose::Demo])?;
    eprintln!("demo: building Larder (a few minutes the first time)");
    proc::run(proc::cargo().args(["build", "--release", "--package", "larder"]))?;
    let larder = crate::target_dir()?.join("release/larder");
    let mut demo = std::process::Command::new(larder);
    let status = proc::status(demo.arg("demo").args(&args.arguments))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
