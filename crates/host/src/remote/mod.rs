//! Directories of file systems that may hang, worked on by a process that can be killed.
//!
//! A thread that touches a mount whose server is dead cannot be stopped; a process can. So a file system
//! that is somewhere else is mounted by a helper of its own, for itself alone (a detached mount, which no
//! namespace shows and which ends with the helper), and everything done in it is asked of that helper:
//!
//! ```text
//!  Visit ──one line of JSON──▶ thread ──pipe──▶ helper ──openat2, beneath──▶ its own mount ──▶ server
//!        ◀──answer, in time────      ◀────────         silent for too long: killed, the visit is over
//! ```
//! - Paths are relative and resolved beneath the root of the mount, without following any symlink.
//! - What is written is durable when it is answered.
//! - An idle helper is kept for a moment, so that calls in a row mount once. It dies with this process.
//! - While a server is silent, callers are told so at once, and it is asked anew every few seconds.

mod child;
mod session;
mod tree;
pub(crate) mod wire;

pub(crate) use child::main;

use crate::{HelperProgram, Usage, command, copy::TreeReport, filesystems::way::MOST_STUCK};
use larder_model::{Cx, Fault, Kind, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use session::Session;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use wire::Ask;

/// How long mounting may take.
const MOUNTING: Duration = Duration::from_secs(20);
/// How long a helper may be silent over one question; one that works through many files says so.
const SILENCE: Duration = Duration::from_secs(15);
/// As long over a copy: a server may share the blocks of a large file without a word in between.
const SILENCE_OF_COPIES: Duration = Duration::from_secs(60);
/// A silent server is asked again this often, by one caller, who waits so long; all others are told that it
/// is silent.
const AGAIN: Duration = Duration::from_secs(10);
const GLIMPSE: Duration = Duration::from_secs(8);
/// What the names of files begin with that are being written; one of a helper that was killed stays.
pub const TEMPORARY: &str = ".tmp-";
/// So many idle helpers are kept.
const IDLE: usize = 2;

/// What a helper works in.
#[derive(Clone, Serialize, Deserialize)]
pub enum Site {
    /// A file system that the helper mounts for itself.
    Mounted {
        /// The kernel's name: `nfs`.
        fs_type: String,
        /// As in mount(2).
        source: String,
        /// As after `mount -o`.
        options: Vec<String>,
    },
    /// A directory of this machine.
    Directory(PathBuf),
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Site {
    /// For people; without options, which may hold credentials.
    fn name(&self) -> String {
        match self {
            Self::Mounted { source, .. } => source.clone(),
            Self::Directory(path) => path.display().to_string(),
        }
    }
}

/// What has a name in a [`Remote`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Thing {
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// A directory tree somewhere else. Cheap to clone; clones share their helpers.
#[derive(Debug, Clone)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    helper: HelperProgram,
    site: Site,
    idle: Mutex<Vec<Session>>,
    silence: Mutex<Option<Silence>>,
}

/// The server does not answer.
#[derive(Debug, Clone)]
struct Silence {
    since: jiff::Timestamp,
    asked: Instant,
    fault: Fault,
}

impl Remote {
    /// A tree, not touched yet.
    pub fn new(helper: HelperProgram, site: Site) -> Self {
        let (idle, silence) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { helper, site, idle, silence }))
    }

    /// Begins to work in it.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer; what mounting says.
    pub fn visit(&self) -> Result<Visit> {
        loop {
            let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(mut session) => {
                    if session.is_fresh() && session.is_alive() {
                        return Ok(self.visit_with(session, false));
                    }
                }
                None => break,
            }
        }
        let patience = self.patience()?;
        if command::stuck() >= MOST_STUCK {
            return Err(Fault::unavailable(format!(
                "mount {}: too many helpers hang in the kernel",
                self.0.site.name()
            ))
            .hint("servers of network file systems do not answer; see the kernel log"));
        }
        match Session::open(&self.0.helper, &self.0.site, patience) {
            Ok(session) => {
                self.heard();
                Ok(self.visit_with(session, true))
            }
            Err(fault) => Err(self.failed(fault)),
        }
    }

    fn visit_with(&self, session: Session, is_new: bool) -> Visit {
        Visit { remote: self.clone(), session: Mutex::new(Some(session)), is_new }
    }

    /// Why the server is taken for dead, and since when; None: it answered when last asked, or was never
    /// asked. Waits for nobody.
    pub fn is_silent(&self) -> Option<Fault> {
        self.silence().map(|silence| silence.told())
    }

    fn silence(&self) -> Option<Silence> {
        self.0.silence.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long to wait for the server.
    fn patience(&self) -> Result<Duration> {
        let mut silence = self.0.silence.lock().unwrap_or_else(PoisonError::into_inner);
        match silence.as_mut() {
            None => Ok(MOUNTING),
            Some(silence) if silence.asked.elapsed() < AGAIN => Err(silence.told()),
            Some(silence) => {
                silence.asked = Instant::now();
                Ok(GLIMPSE)
            }
        }
    }

    fn heard(&self) {
        let former = self.0.silence.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Silence { since, .. }) = former {
            tracing::info!(site = %self.0.site.name(), "answers again; it did not since {since:.0}");
        }
    }

    /// Remembers a silence, and that nothing of what was mounted before is worth anything.
    fn failed(&self, fault: Fault) -> Fault {
        if fault.kind() != Kind::Unavailable {
            return fault;
        }
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut silence = self.0.silence.lock().unwrap_or_else(PoisonError::into_inner);
        if silence.is_none() {
            tracing::warn!(site = %self.0.site.name(), "{fault}");
        }
        let since = silence.take().map_or_else(jiff::Timestamp::now, |former| former.since);
        *silence = Some(Silence { since, asked: Instant::now(), fault: fault.clone() });
        fault
    }
}

impl Silence {
    fn told(&self) -> Fault {
        let seconds = jiff::Timestamp::now().duration_since(self.since).as_secs();
        self.fault.clone().during(format!("(since {:.0}, {seconds} s ago)", self.since))
    }
}

/// Work in a [`Remote`]. Blocking; each question is answered within a time limit, or the visit is over.
#[derive(Debug)]
pub struct Visit {
    remote: Remote,
    session: Mutex<Option<Session>>,
    is_new: bool,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = session else { return };
        let mut idle = self.remote.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(session);
        }
    }
}

impl Visit {
    /// Whether the tree was mounted for this visit: it may be another than before.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Ends the helper with the visit: what it mounted is not what was expected.
    pub fn spoil(&self) {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// What has the name `path`; None: nothing.
    ///
    /// # Errors
    /// As all of these: `Unavailable` when there is no answer in time; see [`Fault::io`].
    pub fn look(&self, path: &str) -> Result<Option<Thing>> {
        self.ask(&Ask::Look { path: path.into() }, None)
    }

    /// Whether nothing is in a directory.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn is_empty(&self, path: &str) -> Result<bool> {
        self.ask(&Ask::IsEmpty { path: path.into() }, None)
    }

    /// The text of a small file; None: there is none.
    ///
    /// # Errors
    /// `Corrupt` for what is no text.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        self.ask(&Ask::Read { path: path.into() }, None)
    }

    /// The names in a directory, sorted; of an absent one none.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        self.ask(&Ask::Names { path: path.into() }, None)
    }

    /// Writes a file durably, whole or not at all. The directory must exist.
    ///
    /// # Errors
    /// `Exhausted`, with the old contents untouched.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.ask(&Ask::Write { path: path.into(), text: text.into(), new: false }, None)
    }

    /// As [`Visit::write`] for a file that must not exist, however many write at once.
    ///
    /// # Errors
    /// `Conflict` when it exists.
    pub fn write_new(&self, path: &str, text: &str) -> Result<()> {
        self.ask(&Ask::Write { path: path.into(), text: text.into(), new: true }, None)
    }

    /// Makes a directory durably, and those above it; false: it was there. `above` is the mode of those
    /// above it that are made too.
    ///
    /// # Errors
    /// `Precondition` when something else has the name, or it is not allowed.
    pub fn make_dir(&self, path: &str, mode: u32, above: u32) -> Result<bool> {
        self.ask(&Ask::MakeDir { path: path.into(), mode, above }, None)
    }

    /// Sets the permissions of a directory.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn set_mode(&self, path: &str, mode: u32) -> Result<()> {
        self.ask(&Ask::SetMode { path: path.into(), mode }, None)
    }

    /// Renames durably; false: `from` does not exist.
    ///
    /// # Errors
    /// `Conflict` when `to` exists.
    pub fn rename(&self, from: &str, to: &str) -> Result<bool> {
        self.ask(&Ask::Rename { from: from.into(), to: to.into() }, None)
    }

    /// Removes a file; absent: done.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn remove_file(&self, path: &str) -> Result<()> {
        self.ask(&Ask::RemoveFile { path: path.into() }, None)
    }

    /// Removes an empty directory; absent: done. False: something is in it.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn remove_dir(&self, path: &str) -> Result<bool> {
        self.ask(&Ask::RemoveDir { path: path.into() }, None)
    }

    /// Removes a directory with everything in it; absent: done. Tells `cx` how many entries it removed.
    ///
    /// # Errors
    /// As [`crate::durable::remove_tree`].
    pub fn remove_tree(&self, path: &str, cx: &Cx) -> Result<()> {
        self.ask(&Ask::RemoveTree { path: path.into() }, Some(cx))
    }

    /// Copies everything in directory `from` into `to`, durably, as [`crate::copy::tree`] does, by the server
    /// itself where it can. What a cut copy has completed is taken as it is: the caller removes what is
    /// of an earlier boot, or of other files. Tells `cx` how it goes on.
    ///
    /// # Errors
    /// As [`crate::copy::tree`].
    pub fn copy_tree(&self, from: &str, to: &str, cx: &Cx) -> Result<TreeReport> {
        self.ask(&Ask::CopyTree { from: from.into(), to: to.into() }, Some(cx))
    }

    /// How full the file system is.
    ///
    /// # Errors
    /// See [`Visit::look`].
    pub fn usage(&self) -> Result<Usage> {
        self.ask(&Ask::Usage, None)
    }

    fn ask<T: DeserializeOwned>(&self, ask: &Ask, cx: Option<&Cx>) -> Result<T> {
        let mut held = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let what = || format!("{} of {}", ask.name(), self.remote.0.site.name());
        let Some(session) = held.as_mut() else {
            return Err(Fault::unavailable(format!("{}: its server stopped answering", what())));
        };
        let silence = match ask {
            Ask::CopyTree { .. } => SILENCE_OF_COPIES,
            _ => SILENCE,
        };
        let fault = match session.ask(ask, silence, cx) {
            Ok(Ok(value)) => {
                drop(held);
                return serde_json::from_value(value).map_err(|e| {
                    Fault::internal(format!("{}: the answer makes no sense", what())).because(e)
                });
            }
            // What it mounted may be of no more use. The server has answered all the same.
            Ok(Err(fault)) if fault.kind() == Kind::Unavailable => fault,
            Ok(Err(fault)) => return Err(fault.during(what())),
            Err(lost) if lost.silent => {
                *held = None;
                drop(held);
                return Err(self.remote.failed(lost.fault.during(what())));
            }
            // Somebody has killed it.
            Err(lost) => lost.fault,
        };
        *held = None;
        Err(fault.during(what()))
    }
}
