//! The watchdog: freezes when told, thaws when told, at the deadline, or when nobody is left to tell.
//!
//! It and its parent speak in lines: `ready`, then `flush` answered by `flushed`, then `freeze`
//! answered by `frozen` or `error INDEX ERRNO`, then `thaw` answered by `thawed`, or by `torn` when
//! the deadline (or somebody else) was faster.
//!
//! Also writing out what is cached is the watchdog's: a process that waits for a slow device cannot
//! be killed, and must not be the one that holds the pools.

use super::{
    Place,
    record::{Record, forget, thaw},
    sys,
};
use crate::{HelperProgram, lock::FileLock, sys::io_fault};
use larder_model::{Fault, Kind, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd,
    io::Errno,
};
use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// How long the watchdog may take to start, and to answer after a thaw.
pub(super) const START: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);
/// How long writing out what is cached may take, before writers are held back.
pub(super) const FLUSH: Duration = Duration::from_secs(120);

/// The parent's side.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Option<Child>,
    to: Option<ChildStdin>,
    from: ChildStdout,
    read: Vec<u8>,
    record: PathBuf,
    places: Vec<Place>,
}

impl Watchdog {
    /// Starts it and lets it freeze. On failure nothing is frozen by us.
    pub(super) fn start(
        program: &HelperProgram,
        record: &Path,
        places: Vec<Place>,
        deadline: Duration,
    ) -> Result<Self> {
        let mut watchdog = Self::spawn(program, record, places, deadline).inspect_err(|_| {
            let _ = forget(record);
        })?;
        // From here on the record is the watchdog's to remove, unless it never was ready: without
        // the word "freeze" nothing can be frozen.
        let ready = watchdog.line(Instant::now() + START);
        if !matches!(&ready, Ok(Some(line)) if line == "ready") {
            let _ = forget(record);
            let what = "start the watchdog of a freeze";
            return Err(match ready {
                Err(fault) => fault.during(what),
                // The start of another process looks through the records just now.
                Ok(Some(line)) if line == "not ready" => Fault::unavailable(format!(
                    "{what}: its record is locked, or the mount is gone"
                ))
                .hint("nothing was frozen; try again"),
                Ok(answer) => Fault::internal(format!("{what}: it answered {answer:?}"))
                    .hint("nothing was frozen"),
            });
        }
        watchdog.say("flush");
        if watchdog.line(Instant::now() + FLUSH).is_err() {
            // It ends by itself when the device has taken everything, and removes the record.
            return Err(Fault::unavailable(format!(
                "write out what is cached in {} s, before its file system is frozen",
                FLUSH.as_secs()
            ))
            .hint(
                "its storage is slow, or its limits (maxWriteBps) are tight; nothing was frozen: \
                   try again when less is written",
            ));
        }
        watchdog.say("freeze");
        // A sync of much dirty data may take as long as the deadline allows.
        let answer = watchdog.line(Instant::now() + deadline + ANSWER)?;
        match answer.as_deref().map(|a| a.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(["frozen"]) => Ok(watchdog),
            Some(["error", index, code]) => {
                let path = index.parse().ok().and_then(|i: usize| watchdog.places.get(i));
                let path = path.map(|p| p.path.clone()).unwrap_or_default();
                Err(freeze_fault(&path, code.parse().unwrap_or(0)))
            }
            Some(["torn"]) => Err(Fault::new(
                Kind::Deadline,
                "freeze: writing everything to disk took longer than the deadline",
            )),
            // Killed, perhaps just after the kernel has frozen: then it is on us.
            None => {
                thaw_each(watchdog.places.iter())?;
                forget(&watchdog.record)?;
                Err(Fault::unavailable("freeze: the watchdog was killed").hint("try again"))
            }
            other => Err(Fault::internal(format!("freeze: the watchdog answered {other:?}"))),
        }
    }

    fn spawn(
        program: &HelperProgram,
        record: &Path,
        places: Vec<Place>,
        deadline: Duration,
    ) -> Result<Self> {
        let what = "start the watchdog of a freeze";
        let Some((path, arguments)) = program.0.split_first() else {
            return Err(Fault::internal(format!("{what}: no program is known")));
        };
        // Not through `crate::command`: that one kills its children when their parent dies.
        let mut child = crate::sys::command(Path::new(path))
            .args(arguments)
            .arg("thaw")
            .arg(record)
            .arg(deadline.as_millis().to_string())
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Fault::io(what, e).with_kind(Kind::Internal))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::internal(format!("{what}: no pipes")));
        };
        let record = record.to_owned();
        Ok(Self { child: Some(child), to: Some(to), from, read: Vec::new(), record, places })
    }

    /// Thaws and tells whether it was frozen all the time.
    pub(super) fn thaw(mut self) -> Result<()> {
        self.say("thaw");
        let answer = self.line(Instant::now() + ANSWER);
        let whole = match answer.as_ref().map(Option::as_deref) {
            Ok(Some("thawed")) => true,
            Ok(Some("torn")) => false,
            // The watchdog is dead or hangs: it is on us.
            _ => thaw_each(self.places.iter())?,
        };
        self.end();
        forget(&self.record)?;
        if whole {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Deadline,
            "keep the file system frozen until the copy was done: it was thawed before",
        )
        .hint("the copy may be torn and is thrown away; the storage is slow, try again"))
    }

    fn say(&mut self, word: &str) {
        // A dead watchdog is noticed when its answer does not come.
        let _ = self.to.as_mut().map(|to| to.write_all(format!("{word}\n").as_bytes()));
    }

    /// The next line; None at the end of the pipe.
    fn line(&mut self, end: Instant) -> Result<Option<String>> {
        loop {
            if let Some(line) = take_line(&mut self.read) {
                return Ok(Some(line));
            }
            if !wait_readable(&self.from, Some(end))? {
                return Err(Fault::new(Kind::Deadline, "hear from the watchdog of a freeze"));
            }
            let mut buffer = [0; 256];
            match self.from.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fault::io("hear from the watchdog of a freeze", e)),
            }
        }
    }

    /// Closes the pipe, which ends it, and leaves it to be reaped.
    fn end(&mut self) {
        self.to = None;
        if let Some(child) = self.child.take() {
            crate::command::leave_behind(child, "the watchdog of a freeze", Duration::from_secs(1));
        }
    }
}

impl Drop for Watchdog {
    /// The end of its pipe makes it thaw.
    fn drop(&mut self) {
        self.end();
    }
}

fn freeze_fault(path: &Path, code: i32) -> Fault {
    let error = Errno::from_raw_os_error(code);
    let fault = io_fault(format!("freeze {}", path.display()), error);
    match error {
        Errno::BUSY => fault
            .with_kind(Kind::Precondition)
            .hint("somebody else has frozen it; it stays so (fsfreeze --unfreeze, when in doubt)"),
        Errno::OPNOTSUPP | Errno::NOTTY => {
            fault.with_kind(Kind::Precondition).hint("this kind of file system cannot freeze")
        }
        Errno::PERM => fault.with_kind(Kind::Denied).hint("freezing needs CAP_SYS_ADMIN"),
        _ => fault,
    }
}

fn take_line(read: &mut Vec<u8>) -> Option<String> {
    let end = read.iter().position(|b| *b == b'\n')?;
    let line: Vec<u8> = read.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line).trim().to_owned())
}

/// False when the time is over first.
fn wait_readable(pipe: impl AsFd, end: Option<Instant>) -> Result<bool> {
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], timeout.as_ref()) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(io_fault("wait for a pipe", e)),
        }
    }
}

/// The watchdog process: `thaw RECORD MILLISECONDS`.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(record), Some(deadline), None) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return ExitCode::from(64);
    };
    let deadline = deadline.to_str().and_then(|d| d.parse().ok()).map(Duration::from_millis);
    let Some(deadline) = deadline else { return ExitCode::from(64) };
    sys::ignore_termination();
    // The out-of-memory killer shall look elsewhere; without the capability for that it stays.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let record = PathBuf::from(record);
    match watch(&record, deadline) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What the parent wants.
enum Heard {
    Line(String),
    End,
    TimeOver,
}

struct Parent {
    read: Vec<u8>,
}

impl Parent {
    fn hear(&mut self, end: Option<Instant>) -> Heard {
        loop {
            if let Some(line) = take_line(&mut self.read) {
                return Heard::Line(line);
            }
            match wait_readable(std::io::stdin(), end) {
                Ok(true) => {}
                Ok(false) => return Heard::TimeOver,
                Err(_) => return Heard::End,
            }
            let mut buffer = [0; 256];
            match std::io::stdin().read(&mut buffer) {
                Ok(0) => return Heard::End,
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Heard::End,
            }
        }
    }

    fn say(text: &str) {
        let mut out = std::io::stdout();
        let _ = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
    }
}

fn watch(record_path: &Path, deadline: Duration) -> Result<()> {
    // Held as long as we live: it tells a successor that the freeze is being looked after.
    let lock = FileLock::try_existing(record_path)?;
    let record = Record::read(record_path)?
        .ok_or_else(|| Fault::not_found(format!("find {}", record_path.display())))?;
    let places = record.open_mounts();
    if lock.is_none() || places.len() != record.mounts.len() {
        Parent::say("not ready");
        return Err(Fault::precondition("open what is to be frozen"));
    }
    let mut parent = Parent { read: Vec::new() };
    Parent::say("ready");
    match parent.hear(Some(Instant::now() + START)) {
        Heard::Line(line) if line == "flush" => {}
        _ => return forget(record_path),
    }
    // Writers wait while a freeze writes out what is dirty: most of it goes now. What cannot be
    // written fails the freeze itself.
    for place in &places {
        let _ = rustix::fs::syncfs(&place.directory);
    }
    Parent::say("flushed");
    match parent.hear(Some(Instant::now() + START)) {
        Heard::Line(line) if line == "freeze" => {}
        _ => return forget(record_path),
    }
    let end = Instant::now() + deadline;
    let mut frozen: Vec<&Place> = Vec::new();
    for (index, place) in places.iter().enumerate() {
        if let Err(e) = sys::freeze(&place.directory) {
            thaw_all(&frozen, record_path)?;
            Parent::say(&format!("error {index} {}", e.raw_os_error()));
            return Ok(());
        }
        frozen.push(place);
        if Instant::now() >= end {
            break;
        }
    }
    if Instant::now() >= end {
        thaw_all(&frozen, record_path)?;
        Parent::say("torn");
        return Ok(());
    }
    Parent::say("frozen");
    let heard = parent.hear(Some(end));
    // Thawed first, told later: writers wait for us.
    let whole = thaw_all(&frozen, record_path)?;
    drop(places);
    match heard {
        Heard::Line(_) => Parent::say(if whole { "thawed" } else { "torn" }),
        Heard::End => {}
        Heard::TimeOver => {
            if let Heard::Line(_) = parent.hear(None) {
                Parent::say("torn");
            }
        }
    }
    Ok(())
}

/// Thaws all and then removes their record; whether all had been frozen until now.
///
/// # Errors
/// As [`thaw_each`]. The record stays then: the parent, or the next start, tries again.
fn thaw_all(frozen: &[&Place], record_path: &Path) -> Result<bool> {
    let whole = thaw_each(frozen.iter().copied())?;
    forget(record_path)?;
    Ok(whole)
}

/// Thaws all, the last first; whether all had been frozen until now.
///
/// # Errors
/// The first of what could not be thawed, after all were tried.
fn thaw_each<'a>(places: impl DoubleEndedIterator<Item = &'a Place>) -> Result<bool> {
    let (mut whole, mut first) = (true, None);
    for place in places.rev() {
        match thaw(place) {
            Ok(frozen) => whole &= frozen,
            Err(fault) => {
                first.get_or_insert(fault);
            }
        }
    }
    first.map_or(Ok(whole), Err)
}
