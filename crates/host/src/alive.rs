//! Whether a file system that may hang answers.
//!
//! Who stats a file on a network mount whose server is gone waits in the kernel for ever. So before
//! such a mount is touched, a helper process asks it something that cannot be answered from a cache:
//!
//! ```text
//!            answered                    no answer by the deadline
//!  asked ───────────────▶ fine (1 s) ──────────────────────────────▶ silent since …
//!    ▲                       │                                         │
//!    └───────────────────────┘ the next question ◀─────────────────────┘ unless the helper still hangs
//! ```
//! - All who want to know of one path wait for one question. One that finds the mount silent hardly
//!   waits: the question goes on without it.
//! - While a killed helper still hangs in the kernel the answer is known, and nobody asks again:
//!   a dead server holds one process, however many calls come.
//! - Any answer counts, also an error: what it means is for those to judge who then go there.

use crate::{
    HelperProgram,
    command::{self, Command},
    filesystems::way::{self, MOST_STUCK},
};
use larder_model::{Fault, Kind, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, StatxFlags},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a file system may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a caller waits that finds it silent already: long enough for one that is back.
const GLIMPSE: Duration = Duration::from_millis(300);
/// For how long an answer is good.
const FRESH: Duration = Duration::from_secs(1);
/// How soon a silent one is asked again, when nothing hangs.
const AGAIN: Duration = Duration::from_secs(2);
/// Who only wants to know what is known has it asked again when that is older.
const STALE: Duration = Duration::from_secs(10);

/// What is known of one path.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Since when a question is under way.
    asking: Option<Instant>,
    /// When the last question ended.
    ended: Option<Instant>,
    /// Since when there is no answer, and why.
    silent: Option<(jiff::Timestamp, String)>,
}

static PLACES: Mutex<BTreeMap<PathBuf, Arc<Place>>> = Mutex::new(BTreeMap::new());

/// See [`crate::FileSystems::answers`].
pub(crate) fn answers(path: &Path, helper: &HelperProgram) -> Result<()> {
    let Some(place) = place(path) else { return Ok(()) };
    let mut state = place.lock();
    if state.silent.is_none() && state.ended.is_some_and(|ended| ended.elapsed() < FRESH) {
        return Ok(());
    }
    let patience = if state.silent.is_some() { GLIMPSE } else { DEADLINE };
    ask(&place, &mut state, path, helper);
    let end = state.asking.unwrap_or_else(Instant::now) + patience;
    while state.asking.is_some() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // It hangs, and its end is not waited for.
            state.silent.get_or_insert_with(|| {
                (jiff::Timestamp::now() - patience, "it does not answer".to_owned())
            });
            break;
        }
        let waited = place.changed.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    state.verdict(path)
}

/// See [`crate::FileSystems::last_answer`].
pub(crate) fn last_answer(path: &Path, helper: &HelperProgram) -> Option<Result<()>> {
    let place = place(path)?;
    let mut state = place.lock();
    if state.ended.is_none_or(|ended| ended.elapsed() >= STALE) || state.silent.is_some() {
        ask(&place, &mut state, path, helper);
    }
    if state.asking.is_some_and(|asked| asked.elapsed() >= DEADLINE) {
        let why = || (jiff::Timestamp::now() - DEADLINE, "it does not answer".to_owned());
        state.silent.get_or_insert_with(why);
    }
    Some(state.verdict(path))
}

/// What is known of `path`; None when it leads to nothing that may hang.
fn place(path: &Path) -> Option<Arc<Place>> {
    if is_known_local(path) {
        return None;
    }
    // What cannot be reached at all is told by whoever goes there.
    match way::walk(path) {
        Ok(None) => {
            let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
            Some(places.entry(path.to_owned()).or_default().clone())
        }
        Ok(Some(_)) => {
            if let Some(known) = known_local().as_mut() {
                known.paths.insert(path.to_owned(), Instant::now());
            }
            None
        }
        Err(_) => None,
    }
}

/// Whether `path` leads to a file system that may not answer.
pub(crate) fn may_hang(path: &Path) -> bool {
    path.is_absolute() && place(path).is_some()
}

/// Paths that were walked a moment ago and lead to local file systems. A walk is ten times the system
/// calls of all else that a small call does; what it finds can only change with the mount table (which
/// the kernel tells) or a symlink.
struct KnownLocal {
    mounts: File,
    paths: BTreeMap<PathBuf, Instant>,
}

static KNOWN_LOCAL: Mutex<Option<KnownLocal>> = Mutex::new(None);

fn known_local() -> MutexGuard<'static, Option<KnownLocal>> {
    let mut known = KNOWN_LOCAL.lock().unwrap_or_else(PoisonError::into_inner);
    if known.is_none() {
        let table = File::open("/proc/self/mountinfo").ok();
        *known = table.map(|mounts| KnownLocal { mounts, paths: BTreeMap::new() });
    }
    known
}

fn is_known_local(path: &Path) -> bool {
    let mut known = known_local();
    let Some(known) = known.as_mut() else { return false };
    // proc_pid_mounts(5): readable in a special way after every change, once.
    let mut wait = [PollFd::new(&known.mounts, PollFlags::PRI)];
    let unchanged = poll(&mut wait, Some(&Timespec::default())).is_ok_and(|n| n == 0);
    if !unchanged {
        known.paths.clear();
    }
    known.paths.get(path).is_some_and(|walked| walked.elapsed() < FRESH)
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn verdict(&self, path: &Path) -> Result<()> {
        let Some((since, why)) = &self.silent else { return Ok(()) };
        let seconds = jiff::Timestamp::now().duration_since(*since).as_secs();
        Err(Fault::unavailable(format!(
            "ask the file system of {}: {why}, since {since:.0} ({seconds} s ago)",
            path.display()
        ))
        .hint("its server or daemon is gone or overloaded; it is used again once it answers"))
    }
}

/// Sees to it that a question is under way, unless there is no use in one.
fn ask(place: &Arc<Place>, state: &mut State, path: &Path, helper: &HelperProgram) {
    let too_soon = state.silent.is_some() && state.ended.is_some_and(|e| e.elapsed() < AGAIN);
    if state.asking.is_some() || too_soon {
        return;
    }
    let Some((program, arguments)) = helper.0.split_first() else {
        state.silent = Some((jiff::Timestamp::now(), "no helper program is known".to_owned()));
        return;
    };
    let question = Command::new(program).args(arguments).arg("alive").arg(path).deadline(DEADLINE);
    if command::hangs(&question.line()) {
        return;
    }
    if command::stuck() >= MOST_STUCK {
        let why = "too many helpers hang that asked others".to_owned();
        state.silent.get_or_insert_with(|| (jiff::Timestamp::now(), why));
        return;
    }
    let asked = jiff::Timestamp::now();
    let (place, path) = (place.clone(), path.to_owned());
    let wait = move || {
        let answer = answer(question);
        let mut state = place.lock();
        state.asking = None;
        state.ended = Some(Instant::now());
        match answer {
            Ok(()) => {
                if let Some((since, _)) = state.silent.take() {
                    tracing::info!(path = %path.display(), "answers again; it did not since {since:.0}");
                }
            }
            Err(why) => {
                if state.silent.is_none() {
                    tracing::warn!(path = %path.display(), "the file system is silent: {why}");
                }
                let since = state.silent.take().map_or(asked, |(since, _)| since.min(asked));
                state.silent = Some((since, why));
            }
        }
        place.changed.notify_all();
    };
    match std::thread::Builder::new().name("larder-alive".to_owned()).spawn(wait) {
        Ok(_) => state.asking = Some(Instant::now()),
        Err(e) => {
            let why = format!("no thread can be started to ask it ({e})");
            state.silent.get_or_insert((asked, why));
        }
    }
}

/// Waits for the helper. Its answer is that it answers.
fn answer(question: Command) -> std::result::Result<(), String> {
    let output = match question.run_any() {
        Ok(output) => output,
        Err(fault) if fault.kind() == Kind::Deadline => {
            return Err("it does not answer".to_owned());
        }
        Err(fault) => return Err(format!("it cannot be asked ({fault})")),
    };
    if output.code() == Some(0) {
        return Ok(());
    }
    let code = output.stderr.trim().parse().ok().map(Errno::from_raw_os_error);
    match code {
        // A mount that gives up by itself says so after its own deadline, at each call anew.
        Some(e @ (Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::NETUNREACH)) => {
            Err(format!("it does not answer ({e})"))
        }
        Some(_) => Ok(()),
        None => Err(format!("it cannot be asked (helper: {})", output.stderr.trim())),
    }
}

/// What the helper process does: asks the file system of `path`, past all caches.
#[allow(clippy::print_stderr, reason = "this is how the helper answers")]
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(64);
    };
    let at = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, Path::new(&path), at, StatxFlags::BASIC_STATS) {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}", e.raw_os_error());
            ExitCode::FAILURE
        }
    }
}
