//! Other programs.
//!
//! A [`Command`] is found in a fixed list of directories (never through the caller's `PATH`), runs
//! without a shell, with a clean environment and `LC_ALL=C`, in its own process group, with a
//! deadline. At the deadline the whole group is killed. It is killed too when this process dies:
//! a mkfs must not go on while our successor looks at the device. Output is capped. A fault carries
//! the arguments (secrets masked), the exit code and the end of stderr.
//!
//! A killed program that hangs in the kernel is not waited for: it is left to a list of processes
//! to be reaped, which every later command looks through.

use crate::sys::{self, io_fault};
use larder_model::{Fault, Kind, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use std::{
    ffi::{OsStr, OsString},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Where programs are looked for.
const SEARCH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Unless a command says otherwise.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// How long a killed process may take to die before it is left to the reaper.
const DEATH: Duration = Duration::from_secs(2);
/// What is kept of stdout (its beginning) and of stderr (its end).
const STDOUT_CAP: usize = 16 << 20;
const STDERR_CAP: usize = 16 << 10;

/// Debian packages of the programs that Larder runs.
const PACKAGES: [(&str, &str); 19] = [
    ("blkid", "util-linux"),
    ("btrfs", "btrfs-progs"),
    ("chattr", "e2fsprogs"),
    ("cryptsetup", "cryptsetup-bin"),
    ("dmsetup", "dmsetup"),
    ("dumpe2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("findmnt", "util-linux"),
    ("losetup", "util-linux"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mount", "mount"),
    ("resize2fs", "e2fsprogs"),
    ("setfacl", "acl"),
    ("wipefs", "util-linux"),
    ("xfs_admin", "xfsprogs"),
    ("xfs_db", "xfsprogs"),
    ("xfs_growfs", "xfsprogs"),
];

/// Makes the kernel kill the child of `command` when the thread that starts it ends, so also when
/// this process dies.
pub fn die_with_parent(command: &mut std::process::Command) {
    sys::die_with_parent(command);
}

/// The Debian package that holds `program`, where known.
pub fn package_of(program: &str) -> Option<&'static str> {
    PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package)
}

/// The absolute path of `program`.
///
/// # Errors
/// `Precondition` naming the Debian package when it is not installed.
pub fn find(program: &str) -> Result<PathBuf> {
    if program.starts_with('/') {
        return Ok(PathBuf::from(program));
    }
    let found = SEARCH.iter().map(|dir| Path::new(dir).join(program)).find(|p| p.is_file());
    found.ok_or_else(|| {
        let fault = Fault::precondition(format!("find the program {program}"));
        match package_of(program) {
            Some(package) => fault
                .hint(format!("install the Debian package {package} (apt-get install {package})")),
            None => fault.hint(format!("install it into one of {}", SEARCH.join(", "))),
        }
    })
}

enum Arg {
    Plain(OsString),
    Secret(OsString),
}

/// A program to run.
pub struct Command {
    program: OsString,
    args: Vec<Arg>,
    env: Vec<(OsString, OsString)>,
    stdin: Zeroizing<Vec<u8>>,
    inherited: Vec<OwnedFd>,
    deadline: Duration,
}

/// What a program left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output, the first 16 MiB.
    pub stdout: Vec<u8>,
    /// Its standard error, the last 16 KiB.
    pub stderr: String,
}

impl Output {
    /// Its exit code; None when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
    /// Standard output as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

impl Command {
    /// A program by its plain name (looked for in a fixed list of directories) or absolute path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Zeroizing::default(),
            inherited: Vec::new(),
            deadline: DEFAULT_DEADLINE,
        }
    }
    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(Arg::Plain(arg.as_ref().to_owned()));
        self
    }
    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| Arg::Plain(a.as_ref().to_owned())));
        self
    }
    /// An argument that faults and Debug show as `***`. Any user of the machine sees it in the list
    /// of processes: give real secrets through [`Command::stdin`] or [`Command::env`].
    #[must_use]
    pub fn secret_arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(Arg::Secret(arg.as_ref().to_owned()));
        self
    }
    /// A variable of its environment (never shown in faults; readable by the same user only).
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }
    /// What it reads from standard input (never shown in faults, overwritten afterwards); nothing by
    /// default.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Zeroizing::new(text.into());
        self
    }
    /// An argument that names a file with that content: a pipe, which no other process can read and
    /// which is on no disk. At most 8 KiB.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub fn secret_file_arg(mut self, content: &[u8]) -> Result<Self> {
        let what = "hand a secret to a program";
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| io_fault(what, e))?;
        // All of it has room in the pipe, or this fails: nobody reads before the program runs.
        rustix::fs::fcntl_setfl(&write, rustix::fs::OFlags::NONBLOCK)
            .and_then(|()| rustix::io::write(&write, content))
            .map_err(|e| io_fault(what, e))
            .and_then(|n| if n == content.len() { Ok(()) } else { Err(Fault::internal(what)) })?;
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        self.inherited.push(read);
        Ok(self.arg(path))
    }
    /// How long it may take; 60 seconds by default.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it; a non-zero exit is a fault.
    ///
    /// # Errors
    /// `Precondition` when it is not installed; `Deadline`; `Internal` with code and stderr.
    pub fn run(self) -> Result<Output> {
        let line = self.line();
        let output = self.run_any()?;
        if output.status.success() { Ok(output) } else { Err(exit_fault(&line, &output)) }
    }

    /// Runs it; its exit code is for the caller to judge. Ending by a signal is a fault.
    ///
    /// # Errors
    /// `Precondition` when it is not installed; `Deadline`; `Internal`.
    pub fn run_any(self) -> Result<Output> {
        let line = self.line();
        let output = self.execute(&line)?;
        if output.status.code().is_none() { Err(exit_fault(&line, &output)) } else { Ok(output) }
    }

    /// The command line for people, secrets masked.
    pub fn line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            line.push(' ');
            match arg {
                Arg::Plain(arg) => line.push_str(&quoted(arg)),
                Arg::Secret(_) => line.push_str("***"),
            }
        }
        line
    }

    fn execute(self, line: &str) -> Result<Output> {
        stuck();
        let program = find(&self.program.to_string_lossy())?;
        tracing::debug!(command = line, "run");
        let mut command = sys::command(&program);
        command
            .args(self.args.iter().map(|arg| match arg {
                Arg::Plain(arg) | Arg::Secret(arg) => arg,
            }))
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", SEARCH.join(":"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::die_with_parent(&mut command);
        sys::inherit(&mut command, &self.inherited);
        let child = command
            .spawn()
            .map_err(|e| Fault::io(format!("start {line}"), e).with_kind(Kind::Precondition))?;
        Running::new(child, self.stdin, line)?.finish(Instant::now() + self.deadline, line)
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Command").field(&self.line()).finish()
    }
}

fn quoted(arg: &OsStr) -> String {
    let text = arg.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("{text:?}")
    }
}

fn exit_fault(line: &str, output: &Output) -> Fault {
    let how = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let said = output.stderr.trim();
    let said = if said.is_empty() { output.text() } else { said.to_owned() };
    let tail: Vec<&str> = said.lines().rev().take(8).collect();
    let tail = tail.into_iter().rev().map(str::trim).collect::<Vec<_>>().join("; ");
    Fault::internal(format!("run {line}: {how}: {tail}"))
}

/// A child whose pipes are served until it ends. Dropping it kills it.
struct Running {
    child: Option<Child>,
    pidfd: OwnedFd,
    stdin: Zeroizing<Vec<u8>>,
    written: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    line: String,
}

impl Running {
    fn new(mut child: Child, stdin: Zeroizing<Vec<u8>>, line: &str) -> Result<Self> {
        let prepared = (|| -> rustix::io::Result<OwnedFd> {
            let nonblocking = |fd: BorrowedFd<'_>| {
                let flags = rustix::fs::fcntl_getfl(fd)?;
                rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
            };
            child.stdin.as_ref().map_or(Ok(()), |p| nonblocking(p.as_fd()))?;
            child.stdout.as_ref().map_or(Ok(()), |p| nonblocking(p.as_fd()))?;
            child.stderr.as_ref().map_or(Ok(()), |p| nonblocking(p.as_fd()))?;
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        })();
        match prepared {
            Ok(pidfd) => {
                let (stdout, stderr) = (Vec::new(), Vec::new());
                let (child, line) = (Some(child), line.to_owned());
                Ok(Self { child, pidfd, stdin, written: 0, stdout, stderr, line })
            }
            Err(e) => {
                let _ = child.kill();
                leave_behind(child, line, DEATH);
                Err(io_fault(format!("watch over {line}"), e))
            }
        }
    }

    fn finish(mut self, deadline: Instant, line: &str) -> Result<Output> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.wait(left).map_err(|e| io_fault(format!("watch over {line}"), e))?;
            self.exchange();
            if ended {
                break;
            }
            if left.is_zero() {
                return Err(Fault::new(
                    Kind::Deadline,
                    format!("run {line}: it did not end in time and was killed"),
                ));
            }
        }
        let Some(mut child) = self.child.take() else {
            return Err(Fault::internal(format!("run {line}: it vanished")));
        };
        let status = child.wait().map_err(|e| Fault::io(format!("wait for {line}"), e))?;
        Ok(Output {
            status,
            stdout: std::mem::take(&mut self.stdout),
            stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
        })
    }

    /// Waits until a pipe wants service or the process ended (true).
    fn wait(&self, left: Duration) -> rustix::io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if let Some(child) = &self.child {
            let pipes =
                [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)];
            for pipe in pipes.into_iter().flatten() {
                fds.push(PollFd::from_borrowed_fd(pipe, PollFlags::IN));
            }
            if let Some(pipe) = &child.stdin {
                fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::OUT));
            }
        }
        let timeout = timespec(left);
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(e) => Err(e),
        }
    }

    /// Moves what can be moved through the pipes without waiting; closes those that are done.
    fn exchange(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(pipe) = &mut child.stdin {
            let done = match pipe.write(&self.stdin[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.written == self.stdin.len()
                }
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            };
            if done {
                child.stdin = None;
            }
        }
        if let Some(pipe) = &mut child.stdout {
            let stdout = &mut self.stdout;
            let keep = |bytes: &[u8]| {
                let room = STDOUT_CAP.saturating_sub(stdout.len());
                stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
            };
            if drain(pipe, keep) {
                child.stdout = None;
            }
        }
        if let Some(pipe) = &mut child.stderr {
            let stderr = &mut self.stderr;
            let keep = |bytes: &[u8]| {
                stderr.extend_from_slice(bytes);
                let excess = stderr.len().saturating_sub(STDERR_CAP);
                stderr.drain(..excess);
            };
            if drain(pipe, keep) {
                child.stderr = None;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        child.stdin = None;
        child.stdout = None;
        child.stderr = None;
        leave_behind(child, &self.line, DEATH);
    }
}

/// Reads until the pipe is empty for now (false) or at its end (true).
fn drain(pipe: &mut impl Read, mut keep: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => keep(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// A process that nobody waits for.
struct Left {
    child: Child,
    line: String,
    killed: bool,
}

/// Those that have not ended yet.
static LEFT_BEHIND: Mutex<Vec<Left>> = Mutex::new(Vec::new());

/// Reaps the child if it ends within `patience`, otherwise remembers it.
pub(crate) fn leave_behind(mut child: Child, line: &str, patience: Duration) {
    if let Ok(pidfd) = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        let timeout = timespec(patience);
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    }
    if !matches!(child.try_wait(), Ok(Some(_))) {
        leave(child, line, true);
    }
}

/// Leaves a process to itself that is not to be killed; it is reaped when it has ended.
pub(crate) fn leave_alone(child: Child, line: &str) {
    leave(child, line, false);
}

fn leave(child: Child, line: &str, killed: bool) {
    let left = Left { child, line: line.to_owned(), killed };
    LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).push(left);
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// How many killed programs still hang in the kernel. Those that died meanwhile are reaped.
pub fn stuck() -> usize {
    left_behind().iter().filter(|left| left.killed).count()
}

/// Whether a killed program of this command line ([`Command::line`]) still hangs in the kernel.
pub(crate) fn hangs(line: &str) -> bool {
    left_behind().iter().any(|left| left.killed && left.line == line)
}

fn left_behind() -> MutexGuard<'static, Vec<Left>> {
    let mut left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain_mut(|left| matches!(left.child.try_wait(), Ok(None)));
    left
}
