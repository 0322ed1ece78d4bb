//! What Larder costs, measured from outside: a real `larder serve`, real file systems, its socket.
//!
//! ```text
//! bed      a folder on the disk under test: tmpfs for node records, xfs with reflink on a loop device
//! server   larder serve on a pool in the bed
//! client   one gRPC connection; `probe` shows what it can do
//! suite    the benchmarks: each gives rows
//! report   a row: target, figure, p50, p99, pass or short
//! ```
//! What is compared is measured in turns inside one run, because a machine is never quite the same
//! twice; several runs (`--repeat`) are summed up by the one in the middle. `cargo xtask bench` builds
//! and starts this.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "developer tool: starts servers and mount, prints; it waits for nobody else"
)]

mod bed;
mod client;
mod conditions;
mod disk;
mod report;
mod sample;
mod server;
mod suite;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use crate::{bed::Bed, conditions::Conditions, report::Report};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Measures `larder serve` against its targets.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Benchmarks, all by default; a word that begins several means all of them
    names: Vec<String>,
    /// Small and without meaning: only to see that each benchmark runs
    #[arg(long)]
    quick: bool,
    /// Run everything so many times; each row is the run in the middle
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// A folder on the disk under test [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// List the benchmarks
    #[arg(long)]
    list: bool,
    /// The program under test
    #[arg(long, value_name = "FILE", hide = true, required_unless_present = "list")]
    larder: Option<PathBuf>,
    /// What it was built from
    #[arg(long, hide = true, default_value = "unknown")]
    commit: String,
}

fn main() -> ExitCode {
    // One thread: the server is to have the other processors.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|r| r.block_on(run(Args::parse())));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let all = suite::LIST;
    if args.list {
        all.iter().for_each(|(name, about)| println!("{name:14} {about}"));
        return Ok(());
    }
    let wanted = |name: &str| args.names.iter().any(|n| name.starts_with(n.as_str()));
    let chosen: Vec<_> =
        all.iter().map(|(n, _)| *n).filter(|n| args.names.is_empty() || wanted(n)).collect();
    if let Some(odd) = args.names.iter().find(|n| !all.iter().any(|(a, _)| a.starts_with(*n))) {
        bail!("there is no benchmark {odd:?} (hint: --list)");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("benchmarks mount file systems and loop devices (hint: run as root)");
    }
    let Some(larder) = args.larder else {
        bail!("no program to measure (hint: cargo xtask bench)")
    };
    let folder = args.folder.unwrap_or_else(std::env::temp_dir);
    let before = Conditions::now(&folder, &args.commit, args.quick, args.repeat)?;
    let mut report = Report::default();
    for round in 1..=args.repeat {
        // A bed for each run: no run is slowed down by what the one before it left.
        let mut bed = Bed::new(&folder, larder.clone(), args.quick)?;
        for name in &chosen {
            eprintln!("bench: {name} ({round}/{})", args.repeat);
            let rows = Box::pin(suite::run(name, &mut bed)).await;
            report.add(rows.map_err(|e| e.context(format!("benchmark {name}")))?);
        }
        bed.close()?;
    }
    let conditions = before.end()?;
    match args.output {
        Format::Table => print!("{}", report.text(&conditions)),
        Format::Json => println!("{}", report.json(&conditions)?),
    }
    if args.quick {
        // For the stage of `cargo xtask test`, which asks nothing but that each benchmark runs.
        println!("{} passed, 0 failed, 0 skipped", chosen.len());
    }
    Ok(())
}
