//! Under which conditions a run was made: figures without them mean nothing.

use std::{fs, path::Path};

use anyhow::Result;
use serde::Serialize;

use crate::bed;

/// What a reader must know beside the figures.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conditions {
    date: String,
    commit: String,
    kernel: String,
    cpu: String,
    cpus: usize,
    memory: String,
    /// Of the folder with the `dir` pools.
    file_system: String,
    /// Of the last minute, before and after.
    load: [f64; 2],
    runs: u32,
    quick: bool,
}

impl Conditions {
    pub(crate) fn now(folder: &Path, commit: &str, quick: bool, runs: u32) -> Result<Self> {
        let uname = rustix::system::uname();
        let mut findmnt = std::process::Command::new("findmnt");
        findmnt.args(["--noheadings", "--output", "FSTYPE,OPTIONS", "--target"]).arg(folder);
        let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            commit: commit.to_owned(),
            kernel: format!(
                "{} {}",
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism()?.get(),
            memory: field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned()),
            file_system: words(bed::output(&mut findmnt)?),
            load: [load()?; 2],
            runs,
            quick,
        })
    }

    /// The same, with the load at the end.
    pub(crate) fn end(self) -> Result<Self> {
        Ok(Self { load: [self.load[0], load()?], ..self })
    }

    pub(crate) fn text(&self) -> String {
        let quick = if self.quick { "; QUICK: the figures mean nothing" } else { "" };
        format!(
            "{}; commit {}; {} run(s){quick}\nkernel {}; {} × {}; memory {}\n\
             pools of dir on {}; load {} before, {} after\n",
            self.date,
            self.commit,
            self.runs,
            self.kernel,
            self.cpus,
            self.cpu,
            self.memory,
            self.file_system,
            self.load[0],
            self.load[1],
        )
    }
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// `NAME: value` in a file of such lines.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
