//! A work queue: what is to be looked at, each once.
//!
//! ```text
//! add ─▶ waiting ─▶ working ─▶ done
//!          ▲          │ │
//!          │          │ └─ added meanwhile: waiting again, once
//!          └ delayed ◀┘ retry: later and later
//! ```
//! - A key waits once however often it is added, and is never in two workers.
//! - Fresh work goes before retries, and retries before resyncs, so that a hundred broken claims hold
//!   up no new one.
//! - The delay of a key doubles with each failure in a row and is forgotten at success.

use crate::client::Priority;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

const LANES: usize = 4;
/// How soon after a write that somebody else's write has come before: the watch has told by then.
const SOON: Duration = Duration::from_millis(100);
/// How often in a row; where the watch is silent, it is as after any failure.
const PATIENCE: u32 = 5;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    driver: Arc<str>,
    name: String,
}

/// The metrics of all queues of a process, named as those of Go controllers.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    /// Whose queues are measured; several drivers of a process have queues of one name.
    driver: Arc<str>,
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    waited: Family<QueueLabels, Histogram, fn() -> Histogram>,
    worked: Family<QueueLabels, Histogram, fn() -> Histogram>,
}

impl QueueMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        // 10 ns to 10 s by tens, as Go has it.
        let new: fn() -> Histogram = || Histogram::new((0..10).map(|i| 1e-8 * 10f64.powi(i)));
        let metrics = Self {
            driver: "".into(),
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: Family::new_with_constructor(new),
            worked: Family::new_with_constructor(new),
        };
        registry.register("workqueue_depth", "Keys that wait", metrics.depth.clone());
        registry.register("workqueue_adds", "Keys that were added", metrics.adds.clone());
        registry.register("workqueue_retries", "Keys that failed", metrics.retries.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long keys waited",
            metrics.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long keys were worked on",
            metrics.worked.clone(),
        );
        metrics
    }

    /// Those of that driver.
    pub fn of(&self, driver: &str) -> Self {
        Self { driver: driver.into(), ..self.clone() }
    }
}

/// How long failures wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub start: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Backoff {
    /// From a second to five minutes, as the Go sidecars.
    fn default() -> Self {
        Self { start: Duration::from_secs(1), most: Duration::from_secs(300) }
    }
}

impl Backoff {
    /// After so many failures in a row (0: the first).
    fn after(self, failures: u32) -> Duration {
        self.start.saturating_mul(2u32.saturating_pow(failures)).min(self.most)
    }
}

/// What a worker says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing more to do until something changes.
    Done,
    /// It failed: again after a growing delay.
    Retry,
    /// Somebody else was faster: again in a moment, with what the watch tells. What goes on like that
    /// is a failure.
    Soon,
    /// Again after that long; counts neither as success nor as failure.
    After(Duration),
}

/// A queue of keys. Cheap to clone; clones share everything.
pub struct Queue<K>(Arc<Inner<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> std::fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

struct Inner<K> {
    labels: QueueLabels,
    metrics: QueueMetrics,
    backoff: Backoff,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    lanes: [VecDeque<K>; LANES],
    /// Keys that wait: in which lane, and since when.
    waiting: HashMap<K, (Priority, Instant)>,
    /// Keys that are worked on: whether they were added meanwhile, and how.
    working: HashMap<K, Option<Again>>,
    failures: HashMap<K, u32>,
    /// How often in a row others were faster.
    beaten: HashMap<K, u32>,
    delayed: BTreeMap<(Instant, u64), (K, Priority)>,
    due: HashMap<K, (Instant, u64)>,
    number: u64,
}

/// How a key was added while it was worked on.
#[derive(Debug, Clone, Copy)]
struct Again {
    priority: Priority,
    /// By [`Queue::now`]: the work of before may have failed of what is over by now.
    now: bool,
}

impl<K: Clone + Eq + Hash + Send + 'static> Queue<K> {
    /// An empty queue, of that name in the metrics.
    pub fn new(name: &str, backoff: Backoff, metrics: &QueueMetrics) -> Self {
        let state = State {
            lanes: Default::default(),
            waiting: HashMap::new(),
            working: HashMap::new(),
            failures: HashMap::new(),
            beaten: HashMap::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            number: 0,
        };
        Self(Arc::new(Inner {
            labels: QueueLabels { driver: metrics.driver.clone(), name: name.to_owned() },
            metrics: metrics.clone(),
            backoff,
            state: Mutex::new(state),
            changed: Notify::new(),
        }))
    }

    /// Something about `key` has changed. A key that waits out the delay of a failure goes on doing
    /// so: its cause is seldom in the object. [`Queue::now`] is for those who know better.
    pub fn add(&self, key: K, priority: Priority) {
        self.with(|state| {
            if state.due.contains_key(&key) && state.failures.contains_key(&key) {
                return;
            }
            state.add(key, priority, false);
        });
    }

    /// As [`Queue::add`], and ends any delay: what made `key` fail may be over. Work that goes on now
    /// and fails has its next attempt at once, too.
    pub fn now(&self, key: K, priority: Priority) {
        self.with(|state| {
            state.undelay(&key);
            state.add(key, priority, true);
        });
    }

    /// Adds `key` once that time has passed; a sooner one stays.
    pub fn after(&self, key: K, delay: Duration, priority: Priority) {
        self.with(|state| state.delay(key, delay, priority));
    }

    /// Forgets failures, so that the next has the first delay.
    pub fn forget(&self, key: &K) {
        self.with(|state| {
            state.failures.remove(key);
            state.beaten.remove(key);
        });
    }

    /// How often it has failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many wait, delayed ones not counted.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Works on keys, `workers` at a time, until `stop`; then waits for those that are worked on.
    /// Who drops this ends them at once, wherever they wait: a leader that has lost its Lease.
    pub async fn run<F, W>(&self, workers: usize, stop: CancellationToken, work: F)
    where
        F: Fn(K) -> W + Send + Sync + 'static,
        W: Future<Output = Next> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let slots = Arc::new(Semaphore::new(workers.max(1)));
        let work = Arc::new(work);
        loop {
            let Some(Ok(slot)) = stop.run_until_cancelled(slots.clone().acquire_owned()).await
            else {
                break;
            };
            let Some(key) = stop.run_until_cancelled(self.take()).await else { break };
            while tasks.try_join_next().is_some() {}
            let (queue, work) = (self.clone(), work.clone());
            tasks.spawn(async move {
                let mut working = Working { queue, key: Some(key.clone()), since: Instant::now() };
                let next = work(key).await;
                working.done(next);
                drop(slot);
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn take(&self) -> K {
        loop {
            let changed = self.0.changed.notified();
            let next = {
                let mut state = self.lock();
                state.ripen();
                if let Some((key, since)) = state.pop() {
                    self.0.metrics.waited.get_or_create(&self.0.labels).observe(seconds(since));
                    self.depth(&state);
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match next {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    fn with<R>(&self, change: impl FnOnce(&mut State<K>) -> R) -> R {
        let mut state = self.lock();
        let before = state.waiting.len();
        let result = change(&mut state);
        if state.waiting.len() > before {
            self.0.metrics.adds.get_or_create(&self.0.labels).inc();
        }
        self.depth(&state);
        drop(state);
        self.0.changed.notify_one();
        result
    }

    fn depth(&self, state: &State<K>) {
        let depth = i64::try_from(state.waiting.len()).unwrap_or(i64::MAX);
        self.0.metrics.depth.get_or_create(&self.0.labels).set(depth);
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K, priority: Priority, now: bool) {
        if let Some(again) = self.working.get_mut(&key) {
            let before = again.unwrap_or(Again { priority, now });
            let priority = before.priority.min(priority);
            *again = Some(Again { priority, now: before.now || now });
            return;
        }
        let since = match self.waiting.get(&key) {
            Some((now, _)) if *now <= priority => return,
            Some((now, since)) => {
                // It moves to a faster lane.
                let (now, since) = (*now, *since);
                self.lanes[now as usize].retain(|k| *k != key);
                since
            }
            None => Instant::now(),
        };
        self.waiting.insert(key.clone(), (priority, since));
        self.lanes[priority as usize].push_back(key);
    }

    fn delay(&mut self, key: K, delay: Duration, priority: Priority) {
        let at = Instant::now() + delay;
        if self.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        self.undelay(&key);
        self.number += 1;
        let at = (at, self.number);
        self.due.insert(key.clone(), at);
        self.delayed.insert(at, (key, priority));
    }

    /// What [`Next::Soon`] means after so many of them.
    fn patient(&mut self, key: &K, next: Next) -> Next {
        if next != Next::Soon {
            self.beaten.remove(key);
            return next;
        }
        let beaten = self.beaten.entry(key.clone()).or_insert(0);
        *beaten = beaten.saturating_add(1);
        if *beaten > PATIENCE { Next::Retry } else { Next::Soon }
    }

    fn undelay(&mut self, key: &K) {
        if let Some(at) = self.due.remove(key) {
            self.delayed.remove(&at);
        }
    }

    /// What was delayed long enough waits.
    fn ripen(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.delayed.first_entry().filter(|e| e.key().0 <= now) {
            let (key, priority) = entry.remove();
            self.due.remove(&key);
            self.add(key, priority, false);
        }
    }

    fn pop(&mut self) -> Option<(K, Instant)> {
        let key = self.lanes.iter_mut().find_map(VecDeque::pop_front)?;
        let since = self.waiting.remove(&key).map_or_else(Instant::now, |(_, since)| since);
        self.working.insert(key.clone(), None);
        Some((key, since))
    }
}

/// Gives a key back also when its worker panics.
struct Working<K: Clone + Eq + Hash + Send + 'static> {
    queue: Queue<K>,
    key: Option<K>,
    since: Instant,
}

impl<K: Clone + Eq + Hash + Send + 'static> Working<K> {
    fn done(&mut self, next: Next) {
        let Some(key) = self.key.take() else { return };
        let Inner { metrics, labels, backoff, .. } = &*self.queue.0;
        metrics.worked.get_or_create(labels).observe(seconds(self.since));
        if matches!(next, Next::Retry | Next::Soon) {
            metrics.retries.get_or_create(labels).inc();
        }
        self.queue.with(|state| {
            let again = state.working.remove(&key).flatten();
            let next = state.patient(&key, next);
            match next {
                Next::Done => {
                    state.failures.remove(&key);
                }
                Next::After(delay) => state.delay(key.clone(), delay, Priority::Retry),
                Next::Soon => state.delay(key.clone(), SOON, Priority::Retry),
                // What it failed of may have ended while it was worked on.
                Next::Retry if again.is_some_and(|again| again.now) => {}
                Next::Retry => {
                    let failures = state.failures.entry(key.clone()).or_insert(0);
                    let delay = backoff.after(*failures);
                    *failures = failures.saturating_add(1);
                    // Changes that came meanwhile are seen by then.
                    return state.delay(key, delay, Priority::Retry);
                }
            }
            if let Some(Again { priority, .. }) = again {
                state.add(key, priority, false);
            }
        });
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Working<K> {
    fn drop(&mut self) {
        self.done(Next::Retry);
    }
}

#[cfg(test)]
mod tests;
