//! `cargo xtask check`: what can be said about the code without running it.

mod crates;
mod files;

use std::process::ExitCode;

use anyhow::Result;

use crate::{proc, test::totals::Totals};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the repository's own rules, without rustfmt and clippy
    #[arg(long)]
    rules: bool,
}

/// A rule's findings; none is good.
type Findings = Vec<String>;

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut totals = Totals::default();
    let mut report = |name: &str, findings: Findings| {
        println!("{} {name}", if findings.is_empty() { "ok     " } else { "FAILED " });
        for finding in &findings {
            println!("FAILED {name}: {finding}");
        }
        if findings.is_empty() {
            totals.passed += 1;
        } else {
            totals.failed += 1;
        }
    };
    if !args.rules {
        let clippy = ["clippy", "--workspace", "--all-targets", "--all-features"];
        report("formatting", cargo(&["fmt", "--all", "--check"])?);
        report("lints", cargo(&clippy)?);
    }
    report("crate boundaries", crates::check()?);
    let tracked = files::tracked()?;
    report("no file is too long", files::too_long(&tracked));
    report("no unfinished work", files::unfinished(&tracked));
    if larder_needs::find_command("cargo-deny").is_some() {
        // Advisories need a database from the network: a release's business.
        let deny = ["deny", "--offline", "check", "bans", "licenses", "sources"];
        report("cargo deny", cargo(&deny)?);
    } else {
        totals.skipped += 1;
        println!("skipped cargo deny: not installed (hint: cargo install cargo-deny)");
    }
    println!("{totals}");
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(words: &[&str]) -> Result<Findings> {
    let status = proc::status(proc::cargo().args(words))?;
    Ok(if status.success() { Vec::new() } else { vec![format!("cargo {}", words.join(" "))] })
}
