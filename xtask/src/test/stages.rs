//! The stages of `cargo xtask test`, one line each. To add one, add a line.
//!
//! A test target finds its stage by its `required-features`: see `discover`. Each one
//! with `soak` is a stage of its own, so that shards can divide them.

use std::{process::Command, time::Duration};

use anyhow::Result;
use larder_needs::Purpose::{self, Build, Cluster, Demo, Image, Sanity, Test, Vm};

use super::{
    again::{self, Failed},
    discover,
};
use crate::proc;

/// When a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Always.
    Always,
    /// With `--all`, in one of the shards.
    All,
}

/// What a stage starts.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// cargo, with these words.
    Cargo(&'static str),
    /// `cargo xtask`, with these words.
    Xtask(&'static str),
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    name: &'static str,
    needs: &'static [Purpose],
    root: bool,
    minutes: u16,
    when: When,
    env: &'static [(&'static str, &'static str)],
    start: Start,
}

const ROOT: bool = true;
const USER: bool = false;
const NO_ENV: &[(&str, &str)] = &[];
const HOST: &[Purpose] = &[Build, Demo, Test];

use Start::{Cargo, Xtask};
use When::{All, Always};

#[rustfmt::skip]
pub(crate) const TABLE: &[Line] = &[
    // name, needs, who, minutes at most, when, variables, command
    line("fmt",    &[Build], USER,  2, Always, NO_ENV, Cargo("fmt --all --check")),
    line("clippy", &[Build], USER, 15, Always, NO_ENV, Cargo("clippy --workspace --all-targets --all-features")),
    line("rules",  &[Test],  USER,  2, Always, NO_ENV, Xtask("check --rules")),
    line("unit",   HOST,     ROOT, 30, Always, NO_ENV, Cargo("test --workspace --exclude larder --no-fail-fast")),
    line("system", HOST,     ROOT, 30, Always, NO_ENV, Cargo("test --package larder --no-fail-fast")),
    line("demo",   HOST,     ROOT,  5, Always, NO_ENV, Cargo("run --package larder -- demo")),
    line("bench",  HOST,     ROOT,  5, Always, NO_ENV, Xtask("bench --dev --quick")),
    line("sanity dir mount",  &[Build, Sanity], ROOT, 5, Always, NO_ENV, Xtask("sanity --backend dir --access mount")),
    line("sanity loop mount", &[Build, Sanity], ROOT, 5, Always, NO_ENV, Xtask("sanity --backend loop --access mount")),
    line("sanity loop block", &[Build, Sanity], ROOT, 5, Always, NO_ENV, Xtask("sanity --backend loop --access block")),
    line("sanity nfs mount",  &[Build, Sanity, Vm], ROOT, 10, Always, NO_ENV, Xtask("sanity --backend nfs --access mount")),
    line("vm",     &[Build, Vm], USER, 15, Always, NO_ENV, Xtask("suite vm")),
    line("in-vm",  &[Build, Vm], USER, 30, Always, NO_ENV, Xtask("suite in-vm")),
    line("cluster", &[Build, Cluster, Image], ROOT, 40, Always, NO_ENV, Xtask("cluster test")),
    // Only with --all:
    line("random",     HOST, ROOT, 30, All, &[("PROPTEST_CASES", "4096")], Cargo("test --workspace --no-fail-fast -- random")),
    line("crowded unit",   HOST, ROOT, 15, All, NO_ENV, Cargo("test --workspace --exclude larder --no-fail-fast -- --test-threads=16")),
    line("crowded system", HOST, ROOT, 15, All, NO_ENV, Cargo("test --package larder --no-fail-fast -- --test-threads=16")),
    line("lives",      HOST, ROOT, 20, All, &[("LARDER_LIVES", "1000")], Cargo("test --package larder --test lives -- --nocapture")),
    line("sanity dir random",  &[Build, Sanity], ROOT, 10, All, NO_ENV, Xtask("sanity --backend dir --access mount --rounds 5")),
    line("sanity loop random", &[Build, Sanity], ROOT, 10, All, NO_ENV, Xtask("sanity --backend loop --access mount --rounds 5")),
];

const fn line(
    name: &'static str,
    needs: &'static [Purpose],
    root: bool,
    minutes: u16,
    when: When,
    env: &'static [(&'static str, &'static str)],
    start: Start,
) -> Line {
    Line { name, needs, root, minutes, when, env, start }
}

impl Line {
    /// The stage that this line describes.
    pub(crate) fn stage(&self) -> Stage {
        let (tool, words) = match self.start {
            Cargo(words) => (Tool::Cargo, words),
            Xtask(words) => (Tool::Xtask, words),
        };
        Stage {
            name: self.name.to_owned(),
            needs: self.needs,
            root: self.root,
            minutes: self.minutes,
            when: self.when,
            env: self.env,
            tool,
            words: words.split(' ').map(str::to_owned).collect(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Tool {
    Cargo,
    Xtask,
}

/// A stage to be run.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) needs: &'static [Purpose],
    /// Whether it mounts, attaches loop devices and the like.
    pub(crate) root: bool,
    /// The limit, after which it is ended and has failed.
    pub(crate) minutes: u16,
    pub(crate) when: When,
    env: &'static [(&'static str, &'static str)],
    tool: Tool,
    words: Vec<String>,
}

impl Stage {
    /// What it starts.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.program();
        command.args(&self.words);
        command
    }

    /// The targets of the tests that failed, where the stage's command can take them.
    pub(crate) fn targets_of(&self, text: &str, names: &[String]) -> Vec<Failed> {
        match (self.tool, self.words[0].as_str()) {
            (Tool::Cargo, "test") => again::cargo_targets(text, names),
            (Tool::Xtask, "suite" | "cluster") => again::suite_targets(text, names),
            _ => Vec::new(),
        }
    }

    /// Starts only these tests, alone.
    pub(crate) fn again(&self, target: &[String], tests: &[String]) -> Command {
        let mut command = self.program();
        match self.tool {
            Tool::Cargo => command.arg("test"),
            Tool::Xtask => command.args(&self.words[..2]),
        };
        command.args(target).args(["--", "--exact", "--test-threads=1"]).args(tests);
        command
    }

    fn program(&self) -> Command {
        let mut command = match self.tool {
            Tool::Cargo => proc::cargo(),
            Tool::Xtask => proc::own(),
        };
        command.envs(self.env.iter().copied()).env("CARGO_TERM_COLOR", "never");
        command
    }

    /// What one would type.
    pub(crate) fn shown(&self) -> String {
        let env: String = self.env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let tool = match self.tool {
            Tool::Cargo => "cargo",
            Tool::Xtask => "cargo xtask",
        };
        format!("{env}{tool} {}", self.words.join(" "))
    }

    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(60 * u64::from(self.minutes))
    }
}

/// The table, and a stage for each long test target.
///
/// # Errors
/// cargo cannot describe the workspace.
pub(crate) fn all() -> Result<Vec<Stage>> {
    let mut stages: Vec<_> = TABLE.iter().map(Line::stage).collect();
    for target in discover::targets()? {
        if target.is_long() {
            stages.push(Stage {
                name: format!("soak {} {}", target.package, target.name),
                needs: &[Build, Test, Vm, Cluster],
                root: true,
                minutes: target.minutes,
                when: All,
                env: NO_ENV,
                tool: Tool::Xtask,
                words: vec!["suite".into(), "soak".into(), "--only".into(), target.name],
            });
        }
    }
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_stages_share_a_name() {
        let mut names: Vec<_> = TABLE.iter().map(|line| line.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn every_part_of_the_long_stages_that_ci_takes_in_turn_has_one() {
        let long = all().unwrap().iter().filter(|stage| stage.when == All).count();
        let script = include_str!("../../../.ci/run");
        assert!(script.contains(&format!("\nparts={long}\n")), "there are {long}");
    }

    #[test]
    fn a_stage_shows_what_one_would_type() {
        let shown =
            line("x", &[], USER, 1, Always, &[("A", "1")], Xtask("suite vm")).stage().shown();
        assert_eq!(shown, "A=1 cargo xtask suite vm");
    }
}
