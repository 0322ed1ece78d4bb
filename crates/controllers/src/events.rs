//! Events: what people see in `kubectl describe`.
//!
//! ```text
//! recorder ─▶ correlate: seen before? count it : make a new one ─▶ writer, after everything else
//!                 └ too many of one object: dropped, and counted
//! ```
//! An event that repeats is one object whose count grows; many of one reason and object with ever
//! other messages are one, too. Nothing waits for an event, and none is worth a storm.

use crate::{
    api::{Key, Meta, Object, Place, Reference},
    client::{Kube, Patch, Priority},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events that wait to be written; more are dropped.
const WAITING: usize = 2048;
/// Writes at a time.
const WRITERS: usize = 4;
/// How long equal events are one.
const WINDOW: Duration = Duration::from_secs(600);
/// Messages of one reason and object before they are thrown together.
const SIMILAR: u32 = 10;
/// Events of one object at once, and how long until there may be one more.
const BURST: f64 = 25.0;
const ONE_MORE: f64 = 300.0;
/// Objects that are remembered.
const REMEMBERED: usize = 4096;
/// The API takes no longer messages.
const LONGEST: usize = 1024;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Type {
    fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An Event of the API, of which nothing is read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct EventObject {
    metadata: Meta,
}

/// Events, those of pods' and claims' controllers too.
pub const EVENTS: Place =
    Place { group: "", version: "v1", kind: "Event", plural: "events", namespaced: true };

impl Object for EventObject {
    const PLACE: Place = EVENTS;
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    component: Arc<str>,
    about: String,
    r#type: Type,
    reason: String,
}

#[derive(Debug, Clone)]
struct Happened {
    seen: Seen,
    about: Reference,
    message: String,
    at: jiff::Timestamp,
}

/// Takes the events of all controllers of a process.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Happened>,
    dropped: Counter,
}

/// Tells of events as one component.
#[derive(Debug, Clone)]
pub struct Recorder {
    events: Events,
    component: Arc<str>,
}

impl Events {
    /// Writes until `stop`; what waits then is still tried for a moment.
    pub fn start(
        kube: Kube,
        registry: &mut Registry,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (queue, happened) = mpsc::channel(WAITING);
        let dropped = Counter::default();
        registry.register(
            "larder_events_dropped",
            "Events that were not written because there were too many",
            dropped.clone(),
        );
        tasks.spawn(write(kube, happened, dropped.clone(), stop));
        Self { queue, dropped }
    }

    /// As that component.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder { events: self.clone(), component: component.into() }
    }
}

impl Recorder {
    /// All is well.
    pub fn normal(&self, about: &Reference, reason: &str, message: impl Into<String>) {
        self.tell(Type::Normal, about, reason, message.into());
    }

    /// Somebody should look.
    pub fn warning(&self, about: &Reference, reason: &str, message: impl Into<String>) {
        self.tell(Type::Warning, about, reason, message.into());
    }

    fn tell(&self, r#type: Type, about: &Reference, reason: &str, mut message: String) {
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST - '…'.len_utf8()));
            message.push('…');
        }
        let seen = Seen {
            component: self.component.clone(),
            about: about.uid.clone(),
            r#type,
            reason: reason.to_owned(),
        };
        let at = jiff::Timestamp::now();
        let happened = Happened { seen, about: about.clone(), message, at };
        if self.events.queue.try_send(happened).is_err() {
            self.events.dropped.inc();
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq)]
struct Write {
    key: Key,
    /// The whole, where it is new or the old one has expired.
    whole: Value,
    /// What changes, where it was written before.
    change: Option<Value>,
}

/// What was written about.
#[derive(Debug, Default)]
struct Correlator {
    /// By what was seen and the message; an empty one: thrown together.
    written: HashMap<(Seen, String), Written>,
    similar: HashMap<Seen, (u32, Instant)>,
    budget: HashMap<(Arc<str>, String), (f64, Instant)>,
}

#[derive(Debug)]
struct Written {
    name: String,
    count: u32,
    first: jiff::Timestamp,
    last: Instant,
}

impl Correlator {
    /// What to write of it; None: too much was written of that object.
    fn correlate(&mut self, happened: Happened) -> Option<Write> {
        self.forget();
        let Happened { seen, about, mut message, at } = happened;
        let now = Instant::now();
        let known = self.written.contains_key(&(seen.clone(), message.clone()));
        let mut group = message.clone();
        if !known {
            let (count, since) = self.similar.entry(seen.clone()).or_insert((0, now));
            if now.duration_since(*since) > WINDOW {
                (*count, *since) = (0, now);
            }
            *count += 1;
            if *count > SIMILAR {
                group.clear();
                message = format!("(combined from similar events): {message}");
            }
        }
        let account = (seen.component.clone(), seen.about.clone());
        let (tokens, since) = self.budget.entry(account).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*since).as_secs_f64() / ONE_MORE).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return None;
        }
        *tokens -= 1.0;
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let written = self.written.get(&(seen.clone(), group.clone()));
        let written = written.filter(|w| now.duration_since(w.last) <= WINDOW);
        let (name, count, first) = match written {
            Some(w) => (w.name.clone(), w.count.saturating_add(1), w.first),
            // As client-go names them; unique, because it has the time in it.
            None => (format!("{}.{:x}", about.name, at.as_nanosecond()), 1, at),
        };
        let (first_text, last_text) = (seconds(first), seconds(at));
        let change = (count > 1)
            .then(|| json!({"count": count, "message": message, "lastTimestamp": last_text}));
        let whole = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "reason": seen.reason,
            "message": message,
            "source": {"component": *seen.component},
            "reportingComponent": *seen.component,
            "reportingInstance": "",
            "firstTimestamp": first_text,
            "lastTimestamp": last_text,
            "count": count,
            "type": seen.r#type.word(),
        });
        let key = Key::new(namespace, &name);
        self.written.insert((seen, group), Written { name, count, first, last: now });
        Some(Write { key, whole, change })
    }

    /// What is old enough, once much is remembered; everything, where nothing is old.
    fn forget(&mut self) {
        fn trim<K, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
            if map.len() >= REMEMBERED {
                map.retain(|_, v| at(v).elapsed() < WINDOW);
            }
            if map.len() >= REMEMBERED {
                map.clear();
            }
        }
        trim(&mut self.written, |w| w.last);
        trim(&mut self.similar, |(_, at)| *at);
        trim(&mut self.budget, |(_, at)| *at);
    }
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn write(
    kube: Kube,
    mut happened: mpsc::Receiver<Happened>,
    dropped: Counter,
    stop: CancellationToken,
) {
    let correlator = Mutex::new(Correlator::default());
    let slots = Arc::new(tokio::sync::Semaphore::new(WRITERS));
    let tasks = TaskTracker::new();
    loop {
        let next = tokio::select! {
            biased;
            next = happened.recv() => next,
            () = stop.cancelled() => None,
        };
        let Some(next) = next else { break };
        let write = correlator.lock().unwrap_or_else(PoisonError::into_inner).correlate(next);
        let Some(write) = write else {
            dropped.inc();
            continue;
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let (kube, dropped) = (kube.clone(), dropped.clone());
        tasks.spawn(async move {
            if let Err(error) = write.send(&kube).await {
                dropped.inc();
                tracing::debug!("failed to {error}");
            }
            drop(slot);
        });
    }
    tasks.close();
    tasks.wait().await;
}

impl Write {
    async fn send(&self, kube: &Kube) -> Result<(), crate::client::ApiError> {
        if let Some(change) = &self.change {
            let patch = Patch::Merge(change.clone());
            match kube.patch::<EventObject>(&self.key, "", &patch, Priority::Background).await {
                // It has expired, or its creation is still on the way.
                Err(error) if error.is_not_found() => {}
                answer => return answer.map(drop),
            }
        }
        let made = kube
            .create::<EventObject>(&self.key.namespace, &self.whole, Priority::Background)
            .await;
        match made {
            Err(error) if error.is_already_exists() => Ok(()),
            answer => answer.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(reason: &str, message: &str) -> Happened {
        let about = Reference {
            kind: "PersistentVolumeClaim".to_owned(),
            namespace: "shop".to_owned(),
            name: "data".to_owned(),
            uid: "u".to_owned(),
            ..Reference::default()
        };
        let seen = Seen {
            component: "loop_host_1".into(),
            about: about.uid.clone(),
            r#type: Type::Warning,
            reason: reason.to_owned(),
        };
        Happened { seen, about, message: message.to_owned(), at: jiff::Timestamp::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_repeats_is_one_object_that_counts() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(happened("ProvisioningFailed", "no space")).unwrap();
        assert_eq!(first.change, None);
        assert_eq!(first.whole["count"], 1);
        assert_eq!(first.whole["involvedObject"]["name"], "data");
        assert_eq!(first.whole["source"]["component"], "loop_host_1");
        let second = correlator.correlate(happened("ProvisioningFailed", "no space")).unwrap();
        assert_eq!(second.key, first.key);
        assert_eq!(second.change.unwrap()["count"], 2);
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        let later = correlator.correlate(happened("ProvisioningFailed", "no space")).unwrap();
        assert!(later.change.is_none() && later.key != first.key);
    }

    #[tokio::test(start_paused = true)]
    async fn ever_other_messages_become_one_event() {
        let mut correlator = Correlator::default();
        let mut names = std::collections::BTreeSet::new();
        for i in 0..20 {
            let write = correlator.correlate(happened("ProvisioningFailed", &format!("try {i}")));
            names.insert(write.unwrap().key.name);
        }
        assert_eq!(names.len(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn no_object_gets_a_storm_of_events() {
        let mut correlator = Correlator::default();
        let written = (0..100).filter_map(|_| correlator.correlate(happened("Provisioning", "x")));
        assert_eq!(written.count(), 25);
        tokio::time::advance(Duration::from_secs(601)).await;
        let written = (0..100).filter_map(|_| correlator.correlate(happened("Provisioning", "x")));
        assert_eq!(written.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::default();
        for i in 0..3 * REMEMBERED {
            let mut one = happened("Provisioning", "x");
            one.seen.about = i.to_string();
            correlator.correlate(one).unwrap();
        }
        assert!(correlator.written.len() <= REMEMBERED && correlator.budget.len() <= REMEMBERED);
    }
}
