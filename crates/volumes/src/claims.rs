//! Who works on what: one registry of claims per driver.
//!
//! CSI callers repeat themselves: they time out and ask again, they forget what they asked, two of
//! them ask at once. An operation therefore claims the objects it works on before it begins.
//!
//! ```text
//!                 ┌─ every key free ──────────────▶ runs, detached from its caller
//!  run(operation) ┼─ an equal operation runs ─────▶ joins it and gets its answer
//!                 └─ a key is held by another ────▶ Aborted at once, naming the holder
//! ```
//!
//! Invariants:
//! - **All or nothing.** The keys of an operation are claimed together under one short lock that is
//!   never held while anything waits; nobody waits for a claim, so there is no deadlock.
//! - **Equal** means: same operation, same keys, same [`Fingerprint`] of all arguments but the
//!   secrets (CSI leaves those out of comparisons too).
//! - **Detached.** Work runs on a task tracker. A caller that gives up stops nothing; whoever asks
//!   the same again gets the answer of the work that went on meanwhile. [`Claims::drain`] waits for
//!   it at shutdown.
//! - **Released before answered.** When a caller has its answer, the keys are free: what it asks
//!   next never meets its own former claim.
//! - **Released whatever happens.** A panic releases the keys and answers everybody with `Internal`.
//!
//! Which keys an operation claims:
//!
//! | operation | exclusive | shared |
//! |---|---|---|
//! | create volume | the volume, its name | the source volume or snapshot |
//! | delete, expand, modify, attach, detach volume | the volume | |
//! | create snapshot | the snapshot, its name | the source volume |
//! | delete snapshot | the snapshot | |
//! | create group | the group, its name, the members | the source volumes |
//! | delete group | the group, the members | |
//! | on a node: stage, publish, expand … | the volume on this node | the volume |

mod fingerprint;
#[cfg(test)]
mod tests;

pub use fingerprint::Fingerprint;

use futures::FutureExt;
use larder_model::{Cx, Fault, Handle, Native, Result, SnapshotId, VolumeId};
use serde::Serialize;
use std::{
    any::{Any, TypeId},
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

tokio::task_local! {
    /// Set within the work of an operation.
    static WITHIN: ();
    /// What a call holds so that not too many work at a time.
    static PLACE: RefCell<Option<Box<dyn Any + Send>>>;
}

/// Runs a call that holds `place` among those that are worked on. It belongs to the work: an operation
/// that the call begins takes it over and gives it up when it ends, whoever still waits; a call that
/// joins a running operation gives it up at once, because that has its own. So one operation that
/// hangs takes one place, however often it is asked for again.
pub async fn holding<F: Future>(place: impl Any + Send, call: F) -> F::Output {
    PLACE.scope(RefCell::new(Some(Box::new(place))), call).await
}

fn take_place() -> Option<Box<dyn Any + Send>> {
    PLACE.try_with(RefCell::take).ok().flatten()
}

/// What can be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A volume as the control plane knows it.
    Volume(Handle),
    /// A snapshot.
    Snapshot(Handle),
    /// A group of snapshots.
    Group(Handle),
    /// A volume's presence on this node: device, staging, publications, records.
    Node(Handle),
    /// A volume's name over all pools: CSI names are unique per driver, ids only per pool.
    VolumeName(Native),
    /// A snapshot's name over all pools.
    SnapshotName(Native),
    /// A group's name over all pools.
    GroupName(Native),
}

impl Key {
    /// The volume `id`.
    pub fn volume(id: &VolumeId) -> Self {
        Self::Volume(id.0.clone())
    }
    /// The snapshot `id`.
    pub fn snapshot(id: &SnapshotId) -> Self {
        Self::Snapshot(id.0.clone())
    }
    /// The group `id`.
    pub fn group(id: &SnapshotId) -> Self {
        Self::Group(id.0.clone())
    }
    /// The volume `id` on this node.
    pub fn node(id: &VolumeId) -> Self {
        Self::Node(id.0.clone())
    }
    /// The id or name alone.
    fn object(&self) -> &str {
        match self {
            Self::Volume(h) | Self::Snapshot(h) | Self::Group(h) | Self::Node(h) => h.as_str(),
            Self::VolumeName(n) | Self::SnapshotName(n) | Self::GroupName(n) => n.as_str(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = self.object();
        match self {
            Self::Volume(_) => write!(f, "volume {object}"),
            Self::Snapshot(_) => write!(f, "snapshot {object}"),
            Self::Group(_) => write!(f, "group {object}"),
            Self::Node(_) => write!(f, "volume {object} on this node"),
            Self::VolumeName(_) => write!(f, "volume name {object}"),
            Self::SnapshotName(_) => write!(f, "snapshot name {object}"),
            Self::GroupName(_) => write!(f, "group name {object}"),
        }
    }
}

/// How a key is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Beside other shared claims.
    Shared,
    /// Alone.
    Exclusive,
}

/// An operation that wants to run, and what it claims.
#[derive(Debug, Clone)]
#[must_use = "an operation claims nothing until it is run"]
pub struct Operation {
    name: &'static str,
    object: Option<Key>,
    keys: BTreeMap<Key, Mode>,
    fingerprint: Fingerprint,
}

impl Operation {
    /// `name` is a verb phrase that fits before an id: "create volume".
    pub fn new(name: &'static str, fingerprint: Fingerprint) -> Self {
        Self { name, object: None, keys: BTreeMap::new(), fingerprint }
    }
    /// Claims `key` alone. The first key of an operation is the object it is known by.
    pub fn exclusive(self, key: Key) -> Self {
        self.with(key, Mode::Exclusive)
    }
    /// Claims `key` beside others who claim it so. Where an operation claims one key in both
    /// ways, it has it alone.
    pub fn shared(self, key: Key) -> Self {
        self.with(key, Mode::Shared)
    }
    fn with(mut self, key: Key, mode: Mode) -> Self {
        self.object.get_or_insert_with(|| key.clone());
        let held = self.keys.entry(key).or_insert(mode);
        *held = (*held).max(mode);
        self
    }
    fn object(&self) -> &str {
        self.object.as_ref().map_or("", Key::object)
    }
}

/// An operation that is running, for people: `larder why`, shutdown, metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// The operation: "create volume".
    pub operation: &'static str,
    /// The id it works on.
    pub object: String,
    /// How long it has been running.
    pub age: Duration,
    /// The step it is in; empty before the first.
    pub step: &'static str,
    /// Bytes or items done in this step.
    pub done: u64,
    /// Bytes or items in all; 0 when unknown.
    pub total: u64,
}

impl fmt::Display for Running {
    /// `create volume default/a, running for 12.3s, now at "copy the data" (30 of 120, 25%)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, running for {:.1?}", self.operation, self.object, self.age)?;
        if !self.step.is_empty() {
            write!(f, ", now at \"{}\"", self.step)?;
        }
        if let Some(percent) = (u128::from(self.done) * 100).checked_div(u128::from(self.total)) {
            write!(f, " ({} of {}, {percent}%)", self.done, self.total)?;
        }
        Ok(())
    }
}

/// The registry. Cheap to clone; clones share everything.
#[derive(Clone, Default)]
pub struct Claims {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    tracker: TaskTracker,
}

#[derive(Default)]
struct Table {
    last: u64,
    draining: bool,
    running: BTreeMap<u64, Entry>,
    held: HashMap<Key, Vec<(u64, Mode)>>,
}

struct Entry {
    operation: Operation,
    answer_type: TypeId,
    since: Instant,
    cx: Cx,
    answer: watch::Receiver<Option<Outcome>>,
}

/// An answer for everybody who waits; each clones the value.
type Outcome = Result<Arc<dyn Any + Send + Sync>>;

impl Entry {
    fn running(&self) -> Running {
        let progress = self.cx.progress();
        Running {
            operation: self.operation.name,
            object: self.operation.object().to_owned(),
            age: self.since.elapsed(),
            step: progress.step,
            done: progress.done,
            total: progress.total,
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that could leave the table half-changed runs under the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Turn {
    Begin(Claim, watch::Receiver<Option<Outcome>>),
    Join(watch::Receiver<Option<Outcome>>),
}

impl Claims {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` once its keys are claimed, or joins an equal operation that is running (`work`
    /// is then dropped unpolled). `work` goes on when the returned future is dropped. `cx` is the
    /// context that `work` reports its steps to.
    ///
    /// # Errors
    /// `Aborted` when another operation holds a key; `Unavailable` once [`Claims::drain`] was
    /// called; `Internal` when `work` panicked; otherwise those of `work`.
    pub async fn run<T, F>(&self, operation: Operation, cx: &Cx, work: F) -> Result<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let what = format!("{} {}", operation.name, operation.object());
        let mut answer = match self.turn(operation, TypeId::of::<T>(), cx)? {
            Turn::Join(answer) => {
                drop(take_place());
                answer
            }
            Turn::Begin(claim, answer) => {
                let place = take_place();
                let work = async move {
                    let work = WITHIN.scope((), AssertUnwindSafe(work).catch_unwind());
                    let outcome = work.await;
                    drop(place);
                    claim.settle(match outcome {
                        Ok(Ok(value)) => Ok(Arc::new(value)),
                        Ok(Err(fault)) => Err(fault),
                        // The panic hook has told the log where and why.
                        Err(_) => Err(Fault::internal(format!("{what}: the operation panicked"))
                            .hint("see the log; the call may be repeated")),
                    });
                };
                self.shared.tracker.spawn(work.in_current_span());
                answer
            }
        };
        let outcome = match answer.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None, // The runtime dropped the task: the process is ending.
        };
        match outcome {
            Some(Ok(value)) => match value.downcast_ref::<T>() {
                Some(value) => Ok(value.clone()),
                None => Err(Fault::internal("join an operation with an answer of another type")),
            },
            Some(Err(fault)) => Err(fault),
            None => Err(Fault::unavailable("finish the operation: the process is ending")),
        }
    }

    fn turn(&self, operation: Operation, answer_type: TypeId, cx: &Cx) -> Result<Turn> {
        let mut table = self.shared.table();
        if let Some(answer) = table.equal(&operation, answer_type) {
            return Ok(Turn::Join(answer));
        }
        // What runs may still begin what it needs to end (an inline volume's creation, or undo).
        if table.draining && WITHIN.try_with(|()| ()).is_err() {
            let what = format!("{} {}", operation.name, operation.object());
            return Err(Fault::unavailable(format!("{what}: the driver is shutting down"))
                .hint("its successor takes the call"));
        }
        if let Some((key, holder)) = table.conflict(&operation) {
            let what = format!("{} {}", operation.name, operation.object());
            return Err(Fault::aborted(format!("{what}: {key} is held by {holder}"))
                .hint("repeat the call when that has ended"));
        }
        table.last += 1;
        let id = table.last;
        for (key, mode) in &operation.keys {
            table.held.entry(key.clone()).or_default().push((id, *mode));
        }
        let (sender, answer) = watch::channel(None);
        let entry = Entry {
            operation,
            answer_type,
            since: Instant::now(),
            cx: cx.clone(),
            answer: answer.clone(),
        };
        table.running.insert(id, entry);
        drop(table);
        Ok(Turn::Begin(Claim { shared: self.shared.clone(), id, sender }, answer))
    }

    /// What is running, oldest first.
    pub fn running(&self) -> Vec<Running> {
        self.shared.table().running.values().map(Entry::running).collect()
    }

    /// Stops new operations and waits until the running ones have ended, at most for `grace`.
    /// Returns what is still busy then; it goes on running. Equal repeats still join, and running
    /// operations may still begin others that they consist of.
    #[must_use = "what is still busy must be named"]
    pub async fn drain(&self, grace: Duration) -> Vec<Running> {
        self.shared.table().draining = true;
        self.shared.tracker.close();
        match tokio::time::timeout(grace, self.shared.tracker.wait()).await {
            Ok(()) => Vec::new(),
            Err(_) => self.running(),
        }
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claims").field(&self.running()).finish()
    }
}

impl Table {
    /// The answer to come of an equal operation that is running.
    fn equal(
        &self,
        wanted: &Operation,
        answer_type: TypeId,
    ) -> Option<watch::Receiver<Option<Outcome>>> {
        // An equal operation holds all the same keys, so any one of them leads to it.
        let holders = self.held.get(wanted.keys.keys().next()?)?;
        holders.iter().filter_map(|(id, _)| self.running.get(id)).find_map(|entry| {
            let equal = entry.operation.name == wanted.name
                && entry.operation.fingerprint == wanted.fingerprint
                && entry.operation.keys == wanted.keys
                && entry.answer_type == answer_type;
            equal.then(|| entry.answer.clone())
        })
    }

    /// The first key that cannot be claimed, and who holds it.
    fn conflict(&self, wanted: &Operation) -> Option<(Key, Running)> {
        wanted.keys.iter().find_map(|(key, mode)| {
            let holders = self.held.get(key)?;
            let (id, _) = holders
                .iter()
                .find(|(_, held)| *held == Mode::Exclusive || *mode == Mode::Exclusive)?;
            Some((key.clone(), self.running.get(id)?.running()))
        })
    }
}

/// The claim of a running operation. Lives inside its task; dropped, it frees the keys.
#[must_use = "dropping a claim frees its keys"]
struct Claim {
    shared: Arc<Shared>,
    id: u64,
    sender: watch::Sender<Option<Outcome>>,
}

impl Claim {
    /// Frees the keys, then answers.
    fn settle(self, outcome: Outcome) {
        self.release();
        self.sender.send_replace(Some(outcome));
    }

    fn release(&self) {
        let mut table = self.shared.table();
        let Some(entry) = table.running.remove(&self.id) else { return };
        for key in entry.operation.keys.keys() {
            if let Some(holders) = table.held.get_mut(key) {
                holders.retain(|(id, _)| *id != self.id);
                if holders.is_empty() {
                    table.held.remove(key);
                }
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}
