//! Our end of the pipe: a helper, and the thread that it lives and dies with.

use super::{
    Site,
    wire::{Ask, Reply},
};
use crate::{HelperProgram, command, sys};
use larder_model::{Cx, Fault, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

/// An idle helper ends after this.
const IDLE: Duration = Duration::from_secs(30);
/// What an idle helper needs to answer, on a machine that is busy.
const WAKING: Duration = Duration::from_secs(5);
/// No answer is longer.
const LONGEST: usize = 64 << 20;

/// A helper that has mounted its tree.
///
/// The kernel kills a helper when the *thread* that started it ends, so the thread that starts one stays
/// with it; threads of a runtime's pool come and go.
#[derive(Debug)]
pub(super) struct Session {
    jobs: SyncSender<Job>,
    used: Instant,
}

struct Job {
    line: Vec<u8>,
    silence: Duration,
    cx: Option<Cx>,
    answer: SyncSender<Result<Answer, Lost>>,
}

/// What a helper said; Err: that it could not.
pub(super) type Answer = Result<Value>;

/// The helper is of no more use.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) fault: Fault,
    /// It said nothing for too long: so does its server. Else it has ended.
    pub(super) silent: bool,
}

impl From<Fault> for Lost {
    fn from(fault: Fault) -> Self {
        Self { fault, silent: false }
    }
}

impl Session {
    /// Starts a helper and has it mount `site`.
    pub(super) fn open(helper: &HelperProgram, site: &Site, patience: Duration) -> Result<Self> {
        let (jobs, todo) = sync_channel(1);
        let helper = helper.clone();
        std::thread::Builder::new()
            .name("larder-remote".to_owned())
            .spawn(move || serve(&helper, &todo))
            .map_err(|e| Fault::io("start a thread for a helper", e))?;
        let mut session = Self { jobs, used: Instant::now() };
        let mounted = session.tell(site, patience, None).map_err(|lost| lost.fault);
        mounted.flatten().map_err(|fault| fault.during(format!("reach {site:?}")))?;
        Ok(session)
    }

    /// Whether its helper has not ended by itself.
    pub(super) fn is_fresh(&self) -> bool {
        self.used.elapsed() < IDLE / 2
    }

    /// Whether its helper still answers; it is idle, so it does at once. Somebody may have killed it.
    pub(super) fn is_alive(&mut self) -> bool {
        self.tell(&Ask::Hello, WAKING, None).is_ok()
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(
        &mut self,
        ask: &Ask,
        silence: Duration,
        cx: Option<&Cx>,
    ) -> Result<Answer, Lost> {
        self.tell(ask, silence, cx)
    }

    fn tell(
        &mut self,
        what: &impl serde::Serialize,
        silence: Duration,
        cx: Option<&Cx>,
    ) -> Result<Answer, Lost> {
        let mut line = serde_json::to_vec(what)
            .map_err(|e| Fault::internal("put a question into words").because(e))?;
        line.push(b'\n');
        let (answer, answered) = sync_channel(1);
        self.used = Instant::now();
        let lost = || Fault::unavailable("its helper process has ended");
        self.jobs.send(Job { line, silence, cx: cx.cloned(), answer }).map_err(|_| lost())?;
        let answer = answered.recv().map_err(|_| lost())?;
        self.used = Instant::now();
        answer
    }
}

/// What the thread does: starts the helper, hands it jobs, kills it.
fn serve(helper: &HelperProgram, todo: &Receiver<Job>) {
    let mut helper = Helper::start(helper);
    loop {
        let job = match todo.recv_timeout(IDLE) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        };
        let answer = match &mut helper {
            Ok(helper) => helper.talk(&job),
            Err(fault) => Err(fault.clone().into()),
        };
        let lost = answer.is_err();
        let _ = job.answer.send(answer);
        if lost {
            return;
        }
    }
}

struct Helper {
    child: Option<Child>,
    stdin: ChildStdin,
    stdout: ChildStdout,
    line: String,
    read: Vec<u8>,
}

impl Helper {
    fn start(helper: &HelperProgram) -> Result<Self> {
        let Some((program, arguments)) = helper.0.split_first() else {
            return Err(Fault::unavailable("start a helper: no helper program is known"));
        };
        let mut command = sys::command(program.as_ref());
        command
            .args(arguments)
            .arg("remote")
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        sys::die_with_parent(&mut command);
        let failed = |e| Fault::io("start a helper", e).with_kind(larder_model::Kind::Unavailable);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::unavailable("start a helper: it has no pipes"));
        };
        let line = format!("{} remote", program.to_string_lossy());
        Ok(Self { child: Some(child), stdin, stdout, line, read: Vec::new() })
    }

    fn talk(&mut self, job: &Job) -> Result<Answer, Lost> {
        let ended = || Fault::unavailable("ask a helper: it has ended");
        self.stdin.write_all(&job.line).map_err(|e| ended().because(e))?;
        let mut until = Instant::now() + job.silence;
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let reply: Reply = serde_json::from_slice(&line)
                    .map_err(|e| Fault::unavailable("understand a helper").because(e))?;
                match reply {
                    Reply::Done(value) => return Ok(Ok(value)),
                    Reply::Failed(told) => return Ok(Err(told.into())),
                    Reply::Going(more) => {
                        until = Instant::now() + job.silence;
                        if let Some(cx) = &job.cx {
                            cx.advance(more);
                        }
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seconds = job.silence.as_secs();
                let fault = Fault::unavailable(format!("there was no answer in {seconds} s")).hint(
                    "its server is gone or overloaded; the call is repeated, and succeeds once it answers",
                );
                return Err(Lost { fault, silent: true });
            }
            self.wait(left)?;
            let mut buffer = [0; 16 << 10];
            match self.stdout.read(&mut buffer) {
                Ok(0) => return Err(ended().into()),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(ended().because(e).into()),
            }
            if self.read.len() > LONGEST {
                return Err(Fault::unavailable("understand a helper: it says too much").into());
            }
        }
    }

    /// Until there is something to read, or the time is up.
    fn wait(&self, left: Duration) -> Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.stdout)
            .and_then(|f| rustix::fs::fcntl_setfl(&self.stdout, f | rustix::fs::OFlags::NONBLOCK));
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.stdout, PollFlags::IN)];
        match flags.and_then(|()| poll(&mut fds, Some(&timeout))) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(Fault::unavailable("wait for a helper").because(std::io::Error::from(e))),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        command::leave_behind(child, &self.line, Duration::from_millis(200));
    }
}
