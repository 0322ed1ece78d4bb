//! A second chance for tests that failed, for machines that nobody watches (`--again`).
//!
//! A test that fails and then passes alone is *unsteady*: it found a race, or made one. It is
//! named at the very end with its first output shown above, and is to be mended like one that
//! fails; but it does not keep everything else from landing. More than a few at once, or a
//! stage that ran out of time, is no coincidence and gets no second chance.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    stages::Stage,
    totals::{self, Totals},
};
use crate::proc;

/// More failures than these are not chance.
const MOST: usize = 4;

/// Tests of one target.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// As cargo or `cargo xtask suite` takes it.
    pub(crate) target: Vec<String>,
    /// Their names; from cargo's output it is not known which are this target's.
    pub(crate) tests: Vec<String>,
}

/// Which of the tests that failed pass alone; none when that cannot be found out.
///
/// # Errors
/// A log cannot be written or read, or nothing starts.
pub(crate) fn unsteady(
    stage: &Stage,
    text: &str,
    failed: Totals,
    log: &Path,
) -> Result<Vec<String>> {
    let names = names(text);
    let known = usize::try_from(failed.failed).is_ok_and(|n| n == names.len());
    if names.is_empty() || !known || names.len() > MOST {
        return Ok(Vec::new());
    }
    let mut passed = Vec::new();
    for (index, Failed { target, tests }) in stage.targets_of(text, &names).iter().enumerate() {
        println!("        again, alone: {} {}", target.join(" "), tests.join(" "));
        let log = log.with_extension(format!("again-{index}.log"));
        proc::run_whole(&mut stage.again(target, tests), &log, stage.limit())?;
        let text = fs::read(&log).with_context(|| format!("failed to read {}", log.display()))?;
        passed.extend(passing(&String::from_utf8_lossy(&text)));
    }
    // A name that two targets have is not told apart: then it counts once, which is too few.
    passed.sort();
    passed.dedup();
    passed.retain(|name| names.contains(name));
    Ok(passed)
}

/// The names of the tests that failed.
fn names(text: &str) -> Vec<String> {
    let own = |line: &str| Some(line.strip_suffix(" failed")?.to_owned());
    totals::failures(text).iter().filter_map(|line| own(line)).collect()
}

fn passing(text: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... ok")?.to_owned());
    text.lines().filter_map(name).collect()
}

/// The targets that cargo names at its end, as in ``    `-p larder-pool --test pool` ``.
pub(crate) fn cargo_targets(text: &str, names: &[String]) -> Vec<Failed> {
    let list = text.lines().skip_while(|line| !is_cargos_list(line)).skip(1);
    let target = |line: &str| {
        let words = line.trim().strip_prefix('`')?.strip_suffix('`')?;
        let target = words.split(' ').map(str::to_owned).collect();
        Some(Failed { target, tests: names.to_vec() })
    };
    list.map_while(target).collect()
}

fn is_cargos_list(line: &str) -> bool {
    line.starts_with("error: ")
        && (line.ends_with("targets failed:") || line.ends_with("target failed:"))
}

/// The targets after whose `     Running PACKAGE TARGET` a test failed.
pub(crate) fn suite_targets(text: &str, names: &[String]) -> Vec<Failed> {
    let mut all: Vec<Failed> = Vec::new();
    let mut running = None;
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("     Running ") {
            running = words.split_once(' ').map(|(_, target)| target.to_owned());
        }
        let failed = names.iter().find(|name| line == format!("test {name} ... FAILED"));
        let (Some(name), Some(running)) = (failed, &running) else { continue };
        let target = vec!["--only".to_owned(), running.clone()];
        match all.iter_mut().find(|failed| failed.target == target) {
            Some(same) => same.tests.push(name.clone()),
            None => all.push(Failed { target, tests: vec![name.clone()] }),
        }
    }
    all
}

/// What the tests that failed said: their own parts of the output, one after the other.
pub(crate) fn said(text: &str) -> Vec<&str> {
    let mut said = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            inside = true;
        } else if line == "failures:" || line.starts_with("test result: ") {
            inside = false;
        }
        // Where in the runtime it panicked helps nobody.
        let is_frame = |line: &str| {
            let line = line.trim_start();
            let number = line.split(':').next().is_some_and(|n| n.parse::<u32>().is_ok());
            line.starts_with("at /rustc/") || line.contains("/.cargo/registry/") || number
        };
        if inside && !is_frame(line) {
            said.push(line);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO: &str = "test a::b ... FAILED\ntest c ... ok\nfailures:\n\n---- a::b stdout ----\n\
        thread 'a::b' panicked at x.rs:1:2:\nwhy\n\nfailures:\n    a::b\n\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n\
        error: 1 target failed:\n    `-p larder-pool --test pool`\n";

    #[test]
    fn a_failed_test_is_run_again_in_the_targets_that_cargo_names() {
        let names = names(CARGO);
        assert_eq!(names, ["a::b"]);
        let failed = cargo_targets(CARGO, &names);
        let target = ["-p", "larder-pool", "--test", "pool"].map(str::to_owned).to_vec();
        assert_eq!(failed, [Failed { target, tests: names }]);
        assert_eq!(passing(CARGO), ["c"]);
    }

    #[test]
    fn a_failed_test_of_a_suite_is_run_again_in_its_target() {
        let text = "     Running larder one\ntest a ... ok\n     Running larder two\n\
            test b ... FAILED\ntest c ... FAILED\n";
        let failed = suite_targets(text, &names(text));
        let target = vec!["--only".to_owned(), "two".to_owned()];
        assert_eq!(failed, [Failed { target, tests: vec!["b".to_owned(), "c".to_owned()] }]);
    }

    #[test]
    fn what_a_failed_test_said_is_found_in_the_middle_of_a_long_output() {
        let said = said(CARGO);
        assert_eq!(
            said[..3],
            ["---- a::b stdout ----", "thread 'a::b' panicked at x.rs:1:2:", "why"]
        );
        assert!(!said.iter().any(|line| line.contains("targets failed")));
    }
}
