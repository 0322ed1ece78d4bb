//! `cargo xtask test`: the stages one after the other, all of them whatever fails.
//!
//! ```text
//! stages    the table: what, needs, limit, default or --all only
//! totals    what a stage's runner said: N passed, M failed, K skipped
//! discover  test targets that want a virtual machine or a long time
//! suite     runs those
//! again     a second chance, alone, for a test that failed
//! ```
//! A stage writes into target/xtask/STAGE.log; what it printed is shown when it
//! fails. The last line of all is the sum over the stages.

mod again;
mod discover;
mod stages;
pub(crate) mod suite;
pub(crate) mod totals;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    stages::{Stage, When},
    totals::Totals,
};
use crate::proc::{self, Ended};

/// How much of a failed stage's output is shown.
const SHOWN_LINES: usize = 120;

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only stages whose name contains one of these
    stage: Vec<String>,
    /// The long stages too: soak, power cuts, random runs
    #[arg(long)]
    all: bool,
    /// Of the long stages only the Nth of M parts (1/8 … 8/8)
    #[arg(long, value_name = "N/M", value_parser = parse_shard, requires = "all")]
    shard: Option<(usize, usize)>,
    /// Run the few tests that failed once more, alone; those that pass then are told as unsteady
    #[arg(long)]
    again: bool,
    /// Print the stages and run none
    #[arg(long)]
    list: bool,
}

/// What became of a stage.
struct Report {
    name: String,
    totals: Totals,
    took: Duration,
    /// Why it did not run, or what went wrong.
    note: Option<String>,
    failures: Vec<String>,
    /// Tests that failed, and passed alone.
    unsteady: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let stages = select(stages::all()?, args);
    ensure!(!stages.is_empty(), "no such stage (hint: cargo xtask test --all --list)");
    if args.list {
        for stage in &stages {
            let when = if stage.when == When::All { "--all" } else { "" };
            println!("{:28} {:6} ≤ {:2} min  {}", stage.name, when, stage.minutes, stage.shown());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some((part, parts)) = args.shard {
        println!("shard {part} of {parts} of the long stages");
    }
    let logs = crate::target_dir()?.join("xtask");
    fs::create_dir_all(&logs)?;
    let began = Instant::now();
    let mut reports = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        println!("[{}/{}] {}: {}", index + 1, stages.len(), stage.name, stage.shown());
        let log = logs.join(format!("{}.log", stage.name.replace([' ', '/'], "-")));
        let report = run_stage(stage, &log, args.again);
        println!("        {} in {:.0} s", report.totals, report.took.as_secs_f64());
        reports.push(report);
    }
    print_table(&reports, began.elapsed());
    let sum = reports.iter().fold(Totals::default(), |sum, report| sum + report.totals);
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn select(stages: Vec<Stage>, args: &Args) -> Vec<Stage> {
    let wanted = |stage: &Stage| {
        args.stage.is_empty() || args.stage.iter().any(|part| stage.name.contains(part.as_str()))
    };
    // Naming a long stage is asking for it.
    let due = |stage: &Stage| stage.when == When::Always || args.all || !args.stage.is_empty();
    let mut long = 0;
    let mut in_shard = |stage: &Stage| {
        let Some((part, parts)) = args.shard else { return true };
        if stage.when == When::Always {
            return true;
        }
        long += 1;
        (long - 1) % parts == part - 1
    };
    stages.into_iter().filter(|stage| due(stage) && wanted(stage) && in_shard(stage)).collect()
}

fn run_stage(stage: &Stage, log: &PathBuf, again: bool) -> Report {
    let began = Instant::now();
    let mut report = Report {
        name: stage.name.clone(),
        totals: Totals::default(),
        took: Duration::ZERO,
        note: None,
        failures: Vec::new(),
        unsteady: Vec::new(),
    };
    if stage.root && !larder_needs::is_root() {
        report.totals.skipped = 1;
        report.note = Some("skipped: needs root".to_owned());
        return report;
    }
    let outcome = larder_needs::ensure(stage.needs).and_then(|()| {
        let ended = proc::run_whole(&mut stage.command(), log, stage.limit())?;
        let text = fs::read(log).with_context(|| format!("failed to read {}", log.display()))?;
        Ok((ended, String::from_utf8_lossy(&text).into_owned()))
    });
    match outcome {
        Ok((ended, text)) => {
            judge(&mut report, stage, ended, &text);
            if report.totals.failed > 0 {
                show(&report, log, &text);
            }
            if again && ended == Ended::Badly {
                try_again(&mut report, stage, &text, log);
            }
        }
        Err(error) => {
            report.totals.failed = 1;
            println!("        {error:#}");
            report.note = Some(format!("{error:#}"));
        }
    }
    report.took = began.elapsed();
    report
}

/// Takes back the failures that do not happen again.
fn try_again(report: &mut Report, stage: &Stage, text: &str, log: &Path) {
    match again::unsteady(stage, text, report.totals, log) {
        Ok(unsteady) => {
            let count = u32::try_from(unsteady.len()).unwrap_or(u32::MAX);
            report.totals.failed -= count;
            report.totals.passed += count;
            report.failures.retain(|line| !unsteady.iter().any(|n| *line == format!("{n} failed")));
            report.unsteady = unsteady;
        }
        Err(error) => println!("        cannot try again: {error:#}"),
    }
}

/// Fills in what the output says.
fn judge(report: &mut Report, stage: &Stage, ended: Ended, text: &str) {
    let counted = totals::parse(text);
    report.failures = totals::failures(text);
    report.totals = match counted {
        Some(totals) => totals,
        // Runners without tests, such as fmt, are one check.
        None => Totals { passed: u32::from(ended == Ended::Well), ..Totals::default() },
    };
    let wrong = match ended {
        Ended::TimedOut => Some(format!("ended after {} minutes", stage.minutes)),
        Ended::Badly if report.totals.failed == 0 => Some("failed outside its tests".to_owned()),
        Ended::Well if report.totals == Totals::default() => Some("ran no test".to_owned()),
        Ended::Well | Ended::Badly => None,
    };
    if let Some(wrong) = wrong {
        report.totals.failed += 1;
        report.note = Some(wrong);
    }
}

/// What the failed tests said; where none did, the end of it all.
fn show(report: &Report, log: &Path, text: &str) {
    let mut lines = again::said(text);
    if lines.is_empty() {
        lines = text.lines().collect();
        lines.drain(..lines.len().saturating_sub(SHOWN_LINES));
    }
    println!("---- {} failed; from {}:", report.name, log.display());
    // The line of totals belongs to the end of everything.
    let shown = lines.iter().filter(|line| totals::parse_plain(line).is_none());
    for line in shown.take(4 * SHOWN_LINES) {
        println!("{line}");
    }
    println!("----");
}

fn print_table(reports: &[Report], took: Duration) {
    println!("\n{:28} {:>7} {:>7} {:>8} {:>8}", "stage", "passed", "failed", "skipped", "seconds");
    for report in reports {
        let Totals { passed, failed, skipped } = report.totals;
        let seconds = report.took.as_secs_f64();
        println!("{:28} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8.0}", report.name);
    }
    println!("{:28} {:>33.0}", "all", took.as_secs_f64());
    for report in reports {
        for line in report.note.iter().chain(&report.failures) {
            println!("{}: {line}", report.name);
        }
        for test in &report.unsteady {
            println!("{}: {test} is unsteady: it failed, and passed alone", report.name);
        }
    }
}

fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('/').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
    match parsed {
        Some((part, parts)) if (1..=parts).contains(&part) => Ok((part, parts)),
        _ => Err("a shard is N/M with 1 ≤ N ≤ M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(stage: &[&str], all: bool, shard: Option<(usize, usize)>) -> Args {
        let stage = stage.iter().map(ToString::to_string).collect();
        Args { stage, all, shard, again: false, list: false }
    }

    fn names(args: &Args) -> Vec<String> {
        let table: Vec<_> = stages::TABLE.iter().map(stages::Line::stage).collect();
        select(table, args).into_iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn every_long_stage_is_in_exactly_one_shard_and_every_other_one_in_all() {
        let default = names(&args(&[], false, None));
        let mut long = Vec::new();
        for part in 1..=3 {
            let shard = names(&args(&[], true, Some((part, 3))));
            assert!(default.iter().all(|name| shard.contains(name)));
            long.extend(shard.into_iter().filter(|name| !default.contains(name)));
        }
        let mut all = names(&args(&[], true, None));
        all.retain(|name| !default.contains(name));
        long.sort();
        all.sort();
        assert!(!all.is_empty());
        assert_eq!(long, all);
    }

    #[test]
    fn a_long_stage_that_is_named_runs_without_all() {
        let long = names(&args(&[], true, None)).pop().unwrap();
        assert_eq!(names(&args(&[&long], false, None)), [long]);
    }

    #[test]
    fn a_shard_is_a_part_of_a_whole() {
        assert_eq!(parse_shard("2/3"), Ok((2, 3)));
        for wrong in ["0/3", "4/3", "1", "a/b", "/"] {
            assert!(parse_shard(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stage_that_fails_without_a_failed_test_or_runs_none_counts_as_failed() {
        let stage = stages::TABLE[0].stage();
        let judged = |ended, text: &str| {
            let mut report = Report {
                name: String::new(),
                totals: Totals::default(),
                took: Duration::ZERO,
                note: None,
                failures: Vec::new(),
                unsteady: Vec::new(),
            };
            judge(&mut report, &stage, ended, text);
            report.totals
        };
        assert_eq!(judged(Ended::Well, ""), Totals { passed: 1, failed: 0, skipped: 0 });
        assert_eq!(judged(Ended::Badly, ""), Totals { passed: 0, failed: 1, skipped: 0 });
        let passed = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(judged(Ended::Badly, passed), Totals { passed: 3, failed: 1, skipped: 1 });
        assert_eq!(judged(Ended::TimedOut, passed).failed, 1);
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(judged(Ended::Well, none).failed, 1);
        let failed = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured";
        assert_eq!(judged(Ended::Badly, failed), Totals { passed: 3, failed: 2, skipped: 0 });
    }
}
