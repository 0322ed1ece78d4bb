//! `cargo xtask bench cluster`: what Larder costs in a real Kubernetes, as the chart's pods with the chart's
//! ServiceAccounts and stock settings.
//!
//! ```text
//! cluster with a stock controller manager   idle memory ─▶ 100 claims ─▶ requests ─▶ growth ─▶ pods
//! cluster with a fast controller manager    1000 claims ─▶ processor time, memory ─▶ their end
//! ```
//! Beside each figure stands what was measured of the Go sidecars on a like machine. Whatever the rest of the cluster
//! spends is in the figures, too: times are those that a person waits.

mod counts;
mod scene;
mod steps;

use std::{fmt::Write as _, process::ExitCode, time::Instant};

use anyhow::Result;
use larder_needs::Purpose;
use serde::Serialize;

use crate::proc;

/// Arguments of `bench cluster`.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask bench cluster")]
struct Args {
    /// How many claims at once, with a fast controller manager
    #[arg(long, default_value_t = 1000)]
    claims: usize,
    /// How many pods on one node
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// How often one pod is started, with each kind of volume
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Measure a debug build: only to see that it runs
    #[arg(long)]
    dev: bool,
    /// Measure this program instead of building one
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    program: Option<std::path::PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One result.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    what: String,
    unit: &'static str,
    figure: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    /// The Go sidecars on a like machine.
    #[serde(skip_serializing_if = "str::is_empty")]
    go: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl Row {
    fn new(what: impl Into<String>, figure: f64, unit: &'static str) -> Self {
        Self { what: what.into(), unit, figure, at_most: None, go: "", note: String::new() }
    }
    fn at_most(mut self, value: f64) -> Self {
        self.at_most = Some(value);
        self
    }
    fn go(mut self, text: &'static str) -> Self {
        self.go = text;
        self
    }
    fn note(mut self, text: impl Into<String>) -> Self {
        self.note = text.into();
        self
    }
    fn verdict(&self) -> &'static str {
        match self.at_most {
            None => "",
            Some(most) if self.figure <= most => "pass",
            Some(_) => "short",
        }
    }
}

/// Runs the command; `words` are those behind `cluster`.
pub(super) fn run(words: &[std::ffi::OsString]) -> Result<ExitCode> {
    let name = std::ffi::OsString::from("bench-cluster");
    let args = <Args as clap::Parser>::parse_from(std::iter::once(&name).chain(words));
    larder_needs::ensure(&[Purpose::Build, Purpose::Cluster])?;
    let program = match &args.program {
        Some(program) => std::path::absolute(program)?,
        None => build(args.dev)?,
    };
    let (began, before) = (Instant::now(), load());
    let mut rows = Vec::new();
    let fast = ["--kube-api-qps=1000".to_owned(), "--kube-api-burst=2000".to_owned()];
    let measured = scene::with(&program, &[], |scene| steps::stock(scene, &args, &mut rows))
        .and_then(|()| scene::with(&program, &fast, |scene| steps::fast(scene, &args, &mut rows)));
    let conditions = format!(
        "commit {}, {}, Kubernetes 1.36, two nodes on this machine, load {before} before and {} after, {:.0} s",
        super::commit(),
        match (&args.program, args.dev) {
            (Some(_), _) => "a program that was built before",
            (None, true) => "debug build",
            (None, false) => "release build",
        },
        load(),
        began.elapsed().as_secs_f64()
    );
    if args.json {
        let whole = serde_json::json!({ "conditions": conditions, "rows": rows });
        println!("{}", serde_json::to_string_pretty(&whole)?);
    } else {
        print!("{}", text(&conditions, &rows)?);
    }
    // What was measured until then is shown in any case.
    measured?;
    Ok(ExitCode::SUCCESS)
}

fn build(dev: bool) -> Result<std::path::PathBuf> {
    let mut build = proc::cargo();
    build.args(["build", "--package", "larder"]);
    if !dev {
        eprintln!("bench: building a release (a few minutes the first time)");
        build.arg("--release");
    }
    proc::run(&mut build)?;
    Ok(crate::target_dir()?.join(if dev { "debug" } else { "release" }).join("larder"))
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// As a table for docs/benchmarks.md.
fn text(conditions: &str, rows: &[Row]) -> Result<String> {
    let mut out = format!(
        "{conditions}\n\n| what | target | figure | | Go sidecars |\n|---|---|---|---|---|\n"
    );
    for row in rows {
        let target =
            row.at_most.map_or_else(|| "–".to_owned(), |most| format!("{most} {}", row.unit));
        let note = if row.note.is_empty() { String::new() } else { format!(" ({})", row.note) };
        let figure = format!("{} {}{note}", rounded(row.figure), row.unit);
        writeln!(out, "| {} | {target} | {figure} | {} | {} |", row.what, row.verdict(), row.go)?;
    }
    Ok(out)
}

fn rounded(figure: f64) -> String {
    match figure.abs() {
        f if f >= 100.0 => format!("{figure:.0}"),
        f if f >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
