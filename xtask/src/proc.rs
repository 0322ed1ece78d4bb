//! Runs other programs: to the terminal, or into a log with a time limit.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_child_subreaper};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(20);
/// What a program gets between being asked and being made to end.
const GRACE: Duration = Duration::from_secs(5);

/// How a program under a time limit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with success.
    Well,
    /// By itself, without.
    Badly,
    /// It was made to end.
    TimedOut,
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    // Of the package that is this program, not of what it starts.
    for (name, _) in std::env::vars_os() {
        let of_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
        if name.to_str().is_some_and(of_package) {
            command.env_remove(&name);
        }
    }
    command
}

/// This very program; the link is good also after a build replaced the file.
pub(crate) fn own() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.current_dir(crate::root());
    command
}

/// Runs to the end with our own output; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} failed with {status}", shown(command));
    }
    Ok(())
}

/// Runs to the end with our own output.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.stdin(Stdio::null()).status().with_context(|| start_failed(command))
}

/// Runs to the end; what it printed, when it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| start_failed(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed with {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs with both outputs into a file. At the time limit the program is ended with
/// all that it started. What it left running is ended in any case, and named in
/// the log. For programs that are the only ones we run: it ends all our descendants.
pub(crate) fn run_whole(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended> {
    // Orphans become our children, so that none is lost sight of.
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let (mut child, ended) = watch(command, log, limit)?;
    end_descendants(log, ended == Ended::TimedOut)?;
    // Reaped before, or killed just now.
    let _ = child.wait();
    Ok(ended)
}

/// Runs with both outputs into a file; at the time limit the program is killed.
pub(crate) fn run_limited(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended> {
    let (mut child, ended) = watch(command, log, limit)?;
    // Fails when it has ended, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
    Ok(ended)
}

fn watch(command: &mut Command, log: &Path, limit: Duration) -> Result<(Child, Ended)> {
    let file = File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| start_failed(command))?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((child, if status.success() { Ended::Well } else { Ended::Badly }));
        }
        if began.elapsed() >= limit {
            return Ok((child, Ended::TimedOut));
        }
        thread::sleep(POLL);
    }
}

/// Asks all descendants to end, then makes them.
fn end_descendants(log: &Path, expected: bool) -> Result<()> {
    let mut names = Vec::new();
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        let began = Instant::now();
        let mut asked = Vec::new();
        loop {
            let alive = descendants();
            for process in &alive {
                if !asked.contains(&process.pid) {
                    names.push(format!("{} {}", process.pid.as_raw_nonzero(), process.name));
                    asked.push(process.pid);
                    // It may have ended since.
                    let _ = kill_process(process.pid, signal);
                }
            }
            if alive.is_empty() || began.elapsed() >= patience {
                break;
            }
            thread::sleep(POLL);
        }
    }
    if !expected && !names.is_empty() {
        names.dedup();
        let mut file = File::options().append(true).open(log)?;
        writeln!(file, "note: processes left running were ended: {}", names.join(", "))?;
    }
    Ok(())
}

struct Process {
    pid: Pid,
    name: String,
}

/// All living processes below this one.
fn descendants() -> Vec<Process> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        parents.extend(parse_stat(&stat));
    }
    let mut family = vec![rustix::process::getpid()];
    let mut found = Vec::new();
    let mut next = 0;
    while next < family.len() {
        for (pid, parent, name) in &parents {
            if *parent == family[next] {
                family.push(*pid);
                found.push(Process { pid: *pid, name: name.clone() });
            }
        }
        next += 1;
    }
    found
}

/// Process, parent and name from /proc/PID/stat; none for a zombie.
fn parse_stat(stat: &str) -> Option<(Pid, Pid, String)> {
    // The name is in parentheses and may contain any of them.
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?;
    Some((Pid::from_raw(pid.parse().ok()?)?, Pid::from_raw(parent.parse().ok()?)?, name.to_owned()))
}

/// The command line for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn start_failed(command: &Command) -> String {
    format!("failed to start {}", command.get_program().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_is_read_whole() {
        let (pid, parent, name) = parse_stat("12 (a) b (c) S 7 12 12").unwrap();
        assert_eq!((pid.as_raw_nonzero().get(), parent.as_raw_nonzero().get()), (12, 7));
        assert_eq!(name, "a) b (c");
        assert!(parse_stat("12 (gone) Z 7 12").is_none());
    }

    #[test]
    fn a_program_past_its_limit_is_ended_with_its_children_and_so_is_what_is_left_running() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mark = dir.path().join("pid");
        let script = format!("(setsid sleep 1000 & echo $! > {}); sleep 1000", mark.display());
        let limit = Duration::from_secs(2);
        let ended = run_whole(Command::new("sh").args(["-c", &script]), &log, limit).unwrap();
        assert_eq!(ended, Ended::TimedOut);
        let pid = fs::read_to_string(&mark).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(parse_stat(&stat).is_none(), "still alive: {stat}");

        let script = "setsid sleep 1000 & exit 3";
        let ended = run_whole(Command::new("sh").args(["-c", script]), &log, limit).unwrap();
        assert_eq!(ended, Ended::Badly);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("left running") && text.contains("sleep"), "{text}");
    }
}
