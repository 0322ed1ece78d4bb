//! `cargo xtask bench`: builds a release of Larder and what measures it, and starts that.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use larder_needs::Purpose;

use crate::proc;

mod cluster;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisations: only to see that the benchmarks run
    #[arg(long)]
    dev: bool,
    /// `cluster [--claims N] [--pods N] [--rounds N] [--dev] [--json]`, or
    /// [NAME]... [--quick] [--repeat N] [--folder DIR] [-o json] [--list]: see `cargo xtask bench -- --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some((first, rest)) = args.arguments.split_first()
        && first == "cluster"
    {
        return cluster::run(rest);
    }
    larder_needs::ensure(&[Purpose::Build, Purpose::Demo])?;
    let mut build = proc::cargo();
    // Together: both use one set of dependencies, which is built once.
    build.args(["build", "--package", "larder", "--package", "larder-bench"]);
    if !args.dev {
        eprintln!("bench: building a release (a few minutes the first time)");
        build.arg("--release");
    }
    proc::run(&mut build)?;
    let folder = crate::target_dir()?.join(if args.dev { "debug" } else { "release" });
    let mut bench = std::process::Command::new(folder.join("larder-bench"));
    bench.arg("--larder").arg(folder.join("larder")).arg("--commit").arg(commit());
    let status = proc::status(bench.args(&args.arguments))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What was built, as git names it; a tree without git is measured too.
fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.arg("-C").arg(crate::root()).args(["describe", "--always", "--dirty", "--abbrev=10"]);
    proc::output(&mut git).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
