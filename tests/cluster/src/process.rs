//! Processes that are known again after a crash, and commands with good errors.

use std::{
    fs,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A process, by its number and when it began: numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// In ticks since boot.
    start: u64,
}

impl Process {
    /// The living process of this number.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        Some(Self { pid, start: stat.start })
    }

    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it is still the same and has not ended; a zombie has.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Ends it, and waits until it has.
    pub(crate) fn kill(self) -> Result<()> {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            // It may end at this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
        wait_for(Duration::from_secs(60), || Ok((!self.is_alive()).then_some(())))
            .with_context(|| format!("process {} does not end", self.pid))
    }

    /// Its only child, as soon as there is one.
    pub(crate) fn child(self) -> Result<Self> {
        let find = || {
            if !self.is_alive() {
                bail!("process {} ended", self.pid);
            }
            let numbers = fs::read_dir("/proc")?
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            let ours = |pid: &i32| Stat::of(*pid).is_some_and(|stat| stat.parent == self.pid);
            Ok(numbers.filter(ours).find_map(Self::of))
        };
        wait_for(Duration::from_secs(20), find)
    }
}

struct Stat {
    parent: i32,
    start: u64,
}

impl Stat {
    /// None for a process that has ended.
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses and may contain any of them.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Self { parent: fields.get(1)?.parse().ok()?, start: fields.get(19)?.parse().ok()? })
    }
}

/// Looks again and again until there is something, or the time is over.
pub(crate) fn wait_for<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if began.elapsed() >= limit {
            bail!("not within {} s", limit.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// Runs to the end, without input.
pub(crate) fn capture(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {}", command.get_program().to_string_lossy()))
}

/// Runs to the end; what it printed, when it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = capture(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed with {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_not_taken_for_one_with_its_number() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(!Process { start: process.start + 1, ..process }.is_alive());
        process.kill().unwrap();
        assert!(!process.is_alive(), "it is a zombie now");
        child.wait().unwrap();
    }

    #[test]
    fn the_child_of_a_process_is_found() {
        let mut parent = Command::new("sh").args(["-c", "sleep 1000; true"]).spawn().unwrap();
        let process = Process::of(i32::try_from(parent.id()).unwrap()).unwrap();
        let child = process.child().unwrap();
        assert_eq!(Stat::of(child.pid).unwrap().parent, process.pid);
        process.kill().unwrap();
        child.kill().unwrap();
        parent.wait().unwrap();
    }
}
