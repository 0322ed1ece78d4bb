//! Why a pod does not start, a claim stays pending, a volume does not go: the whole chain, link by
//! link, and the first link that does not hold.
//!
//! ```text
//! gather (requests) ─▶ Snapshot ─▶ explain (pure) ─▶ Report: every link, and which one is stuck
//!
//! pod ─▶ place ─▶ claim ─▶ class ─▶ driver ─▶ registration ─▶ topology ─▶ capacity ─▶ secrets ─▶ source
//!     ─▶ provisioning ─▶ volume ─▶ node ─▶ attachment ─▶ mount ─▶ growth, attributes ─▶ records
//! ```
//! Links stand in the order in which one is the cause of what comes after it, so the first one that is
//! stuck is the one to mend. A look changes nothing.

mod claim;
mod gather;
mod listing;
mod places;
mod pod;
mod snapshot;
#[cfg(test)]
mod tests;
mod volume;

pub use gather::{CSI_DRIVERS, gather};
pub use listing::{Listed, listed, nodes_of};
pub use snapshot::{Snapshot, Told, text};

use crate::api::Key;
use larder_model::Fault;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// What somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A PersistentVolumeClaim.
    Claim(String),
    /// A pod.
    Pod(String),
    /// A PersistentVolume.
    Volume(String),
}

impl FromStr for Subject {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = || {
            Fault::invalid(format!("explain {text:?}: it is not KIND/NAME"))
                .hint("write pvc/NAME, pod/NAME or pv/NAME")
        };
        let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
        if name.is_empty() || name.contains('/') {
            return Err(wrong());
        }
        let name = name.to_owned();
        match kind {
            "pvc" | "persistentvolumeclaim" | "persistentvolumeclaims" | "claim" => {
                Ok(Self::Claim(name))
            }
            "pod" | "pods" | "po" => Ok(Self::Pod(name)),
            "pv" | "persistentvolume" | "persistentvolumes" => Ok(Self::Volume(name)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(name) => write!(f, "pvc/{name}"),
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Volume(name) => write!(f, "pv/{name}"),
        }
    }
}

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It holds.
    Ok,
    /// Whoever asks may not look, or nobody answers.
    Unknown,
    /// It goes on by itself, or waits for something that is yet to come.
    Waiting,
    /// Nothing goes on until somebody does something.
    Stuck,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Waiting => "waiting",
            Self::Stuck => "stuck",
        })
    }
}

/// One link of the chain. The JSON form is part of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which part of the chain.
    pub link: &'static str,
    /// How it stands.
    pub state: State,
    /// What kind of trouble, by a name that stays; `ok` where there is none.
    pub kind: &'static str,
    /// The object.
    pub object: String,
    /// What is there, or what is wrong.
    pub what: String,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What to do; empty: nothing.
    #[serde(rename = "do", skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Step {
    fn new(link: &'static str, state: State, kind: &'static str, object: String) -> Self {
        Self { link, state, kind, object, what: String::new(), since: None, mend: String::new() }
    }
    fn ok(link: &'static str, object: impl Into<String>, what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::new(link, State::Ok, "ok", object.into()) }
    }
    fn stuck(link: &'static str, kind: &'static str, object: impl Into<String>) -> Self {
        Self::new(link, State::Stuck, kind, object.into())
    }
    fn waiting(link: &'static str, kind: &'static str, object: impl Into<String>) -> Self {
        Self::new(link, State::Waiting, kind, object.into())
    }
    fn unknown(link: &'static str, object: impl Into<String>, what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::new(link, State::Unknown, "not-seen", object.into()) }
    }
    fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }
    fn since(mut self, time: Option<&str>) -> Self {
        self.since = time.map(str::to_owned);
        self
    }
    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = mend.into();
        self
    }
}

/// What somebody said about one of the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// When last, RFC 3339.
    pub at: String,
    /// `Normal` or `Warning`.
    pub r#type: String,
    /// The reason, in a word.
    pub reason: String,
    /// About what.
    pub object: String,
    /// What.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// The answer. The JSON form is part of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was asked about: `pvc/NAME`, with its namespace where it has one.
    pub about: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The worst of all links.
    pub state: State,
    /// The link to mend first, or that is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Step>,
    /// Every link.
    pub chain: Vec<Step>,
    /// The latest events about these objects, the last one first.
    pub events: Vec<Said>,
    /// What could not be looked at, and why.
    pub not_seen: Vec<String>,
}

/// How many events a report tells.
const EVENTS: usize = 10;

/// Follows the chain.
///
/// # Errors
/// `NotFound` where there is no such object, and nothing that says why.
pub fn explain(see: &Snapshot, subject: &Subject) -> Result<Report, Fault> {
    let none = |what: &str, name: &str| {
        let place = if what == "PersistentVolume" {
            String::new()
        } else {
            format!(" in namespace {}", see.namespace)
        };
        Fault::not_found(format!("explain {subject}: there is no {what} {name}{place}"))
            .hint("--namespace names another namespace")
    };
    let mut chain = Vec::new();
    match subject {
        Subject::Pod(name) => {
            let pod = see.pod(name).ok_or_else(|| none("pod", name))?;
            pod::walk(see, pod, &mut chain);
        }
        Subject::Claim(name) => {
            claim::walk(see, name, &mut chain);
            let missing = see.claim(name).is_none();
            if missing && !chain.iter().any(|step: &Step| step.kind == "quota") {
                return Err(none("PersistentVolumeClaim", name));
            }
            // What its users wait for is what a person calls the claim stuck for.
            if see.claim(name).is_some_and(|c| snapshot::text(c, "/status/phase") == "Bound") {
                for user in see.users(name).filter(|pod| pod::is_pending(pod)) {
                    pod::after_claims(see, user, &mut chain);
                }
            }
        }
        Subject::Volume(name) => {
            let volume = see.volume(name).ok_or_else(|| none("PersistentVolume", name))?;
            volume::walk(see, volume, None, &mut chain);
            let claim = snapshot::text(volume, "/spec/claimRef/name");
            if see.volume_of(claim).is_some_and(|bound| bound == name) {
                for user in see.users(claim).filter(|pod| pod::is_pending(pod)) {
                    pod::after_claims(see, user, &mut chain);
                }
            }
        }
    }
    see.told_of(&mut chain);
    dedup(&mut chain);
    let state = chain.iter().map(|step| step.state).max().unwrap_or(State::Ok);
    let cause = match state {
        State::Ok | State::Unknown => None,
        _ => chain.iter().find(|step| step.state == state).cloned(),
    };
    let mut events: Vec<_> = see.events.iter().map(snapshot::said).collect();
    events.retain(|said| chain.iter().any(|step| step.object == said.object));
    events.sort_by(|a, b| b.at.cmp(&a.at));
    events.truncate(EVENTS);
    let namespace = match subject {
        Subject::Volume(_) => String::new(),
        _ => see.namespace.clone(),
    };
    let not_seen = see.unseen.clone();
    Ok(Report { about: subject.to_string(), namespace, state, cause, chain, events, not_seen })
}

/// Two claims of one pod share most of the chain.
fn dedup(chain: &mut Vec<Step>) {
    let mut seen: Vec<Step> = Vec::new();
    chain.retain(|step| {
        let new = !seen.contains(step);
        if new {
            seen.push(step.clone());
        }
        new
    });
}

/// `NAMESPACE/NAME` for people.
fn full(namespace: &str, name: &str) -> String {
    Key::new(namespace, name).to_string()
}
