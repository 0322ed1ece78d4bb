//! What was seen of a cluster at one moment, and how it is read.

use super::{Said, State, Step};
use crate::api::Key;
use serde_json::Value;
use std::collections::BTreeMap;

/// The objects that concern one question. Objects as the API server tells them; of Secrets only
/// which keys they have.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When that was, RFC 3339; empty: now is not compared with anything.
    pub now: String,
    /// Where pods, claims and quotas are.
    pub namespace: String,
    /// Pods of the namespace.
    pub pods: Vec<Value>,
    /// Claims of the namespace.
    pub claims: Vec<Value>,
    /// VolumeSnapshots of the namespace.
    pub snapshots: Vec<Value>,
    /// ResourceQuotas of the namespace.
    pub quotas: Vec<Value>,
    /// Volumes for claims of the namespace, those that nobody has, and the one that was asked for.
    pub volumes: Vec<Value>,
    /// StorageClasses.
    pub classes: Vec<Value>,
    /// VolumeAttributesClasses.
    pub attributes: Vec<Value>,
    /// CSIDrivers.
    pub drivers: Vec<Value>,
    /// CSINodes.
    pub csi_nodes: Vec<Value>,
    /// Nodes.
    pub nodes: Vec<Value>,
    /// VolumeAttachments.
    pub attachments: Vec<Value>,
    /// CSIStorageCapacities of all namespaces.
    pub capacities: Vec<Value>,
    /// Events about pods, claims and volumes.
    pub events: Vec<Value>,
    /// Secrets that were looked for: their keys; None: there is none of that name.
    pub secrets: BTreeMap<Key, Option<Vec<String>>>,
    /// What the nodes' own records say.
    pub told: Vec<Told>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// What a node's Larder says of a volume.
#[derive(Debug, Clone)]
pub struct Told {
    /// The PersistentVolume.
    pub volume: String,
    /// Who says it.
    pub by: String,
    /// Whether that is as it should be.
    pub state: State,
    /// What.
    pub what: String,
    /// What to do, where it is not.
    pub mend: String,
}

impl Snapshot {
    pub(super) fn pod(&self, name: &str) -> Option<&Value> {
        named(&self.pods, name)
    }
    pub(super) fn claim(&self, name: &str) -> Option<&Value> {
        named(&self.claims, name)
    }
    pub(super) fn volume(&self, name: &str) -> Option<&Value> {
        named(&self.volumes, name)
    }
    pub(super) fn class(&self, name: &str) -> Option<&Value> {
        named(&self.classes, name)
    }
    pub(super) fn node(&self, name: &str) -> Option<&Value> {
        named(&self.nodes, name)
    }
    pub(super) fn driver(&self, name: &str) -> Option<&Value> {
        named(&self.drivers, name)
    }
    /// The PersistentVolume that a claim is bound to.
    pub(super) fn volume_of(&self, claim: &str) -> Option<&str> {
        at(self.claim(claim)?, "/spec/volumeName")
    }

    /// Pods that use a claim, or are going to.
    pub(super) fn users<'a>(&'a self, claim: &'a str) -> impl Iterator<Item = &'a Value> {
        self.pods.iter().filter(move |pod| {
            let over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
            !over && claims_of(pod).iter().any(|of| of == claim)
        })
    }

    /// The last event of these reasons about an object.
    pub(super) fn event(&self, kind: &str, name: &str, reasons: &[&str]) -> Option<&Value> {
        let about = |event: &&Value| {
            text(event, "/involvedObject/kind") == kind
                && text(event, "/involvedObject/name") == name
                && reasons.contains(&text(event, "/reason"))
        };
        self.events.iter().filter(about).max_by_key(|event| last(event))
    }

    /// Adds what the nodes' records say of the volumes that the chain has.
    pub(super) fn told_of(&self, chain: &mut Vec<Step>) {
        for told in &self.told {
            let object = format!("pv/{}", told.volume);
            if chain.iter().any(|step| step.object == object) {
                let what = format!("{}: {}", told.by, told.what);
                let kind = if told.state == State::Ok { "ok" } else { "records" };
                let step = Step::new("records", told.state, kind, object).what(what);
                chain.push(step.mend(told.mend.clone()));
            }
        }
    }

    /// Seconds from `time` until now.
    pub(super) fn age(&self, time: Option<&str>) -> i64 {
        let parse = |text: &str| text.parse::<jiff::Timestamp>().ok();
        match (parse(&self.now), time.and_then(parse)) {
            (Some(now), Some(then)) => now.as_second() - then.as_second(),
            _ => 0,
        }
    }
}

/// A text at a JSON pointer; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A text that is not empty.
pub(super) fn at<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    Some(text(object, pointer)).filter(|text| !text.is_empty())
}

/// A list; empty where there is none.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of a list.
pub(super) fn texts<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(object, pointer).iter().filter_map(Value::as_str).collect()
}

pub(super) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(super) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str().filter(|text| !text.is_empty())
}

pub(super) fn created(object: &Value) -> Option<&str> {
    at(object, "/metadata/creationTimestamp")
}

pub(super) fn deleted(object: &Value) -> Option<&str> {
    at(object, "/metadata/deletionTimestamp")
}

/// A condition of that type.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

/// A quantity in bytes.
pub(super) fn bytes(object: &Value, pointer: &str) -> Option<i64> {
    let value = object.pointer(pointer)?;
    serde_json::from_value::<crate::api::Quantity>(value.clone()).ok().map(|q| q.bytes())
}

fn named<'a>(objects: &'a [Value], wanted: &str) -> Option<&'a Value> {
    objects.iter().find(|object| name(object) == wanted)
}

/// The claims that a pod names, those that are made for it included.
pub(super) fn claims_of(pod: &Value) -> Vec<String> {
    let of = |volume: &Value| {
        if volume.get("ephemeral").is_some() {
            return Some(format!("{}-{}", name(pod), text(volume, "/name")));
        }
        at(volume, "/persistentVolumeClaim/claimName").map(str::to_owned)
    };
    list(pod, "/spec/volumes").iter().filter_map(of).collect()
}

/// When an event was last seen. Newer kinds of events have other fields for it.
pub(super) fn last(event: &Value) -> &str {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|pointer| at(event, pointer))
        .unwrap_or_default()
}

/// When it was first seen.
pub(super) fn first(event: &Value) -> Option<&str> {
    ["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .into_iter()
        .find_map(|pointer| at(event, pointer))
}

/// An event as it is told.
pub(super) fn said(event: &Value) -> Said {
    let kind = match text(event, "/involvedObject/kind") {
        "PersistentVolumeClaim" => "pvc",
        "PersistentVolume" => "pv",
        "Pod" => "pod",
        other => other,
    };
    let count = event.pointer("/series/count").or_else(|| event.get("count"));
    Said {
        at: last(event).to_owned(),
        r#type: text(event, "/type").to_owned(),
        reason: text(event, "/reason").to_owned(),
        object: format!("{kind}/{}", text(event, "/involvedObject/name")),
        message: text(event, "/message").to_owned(),
        count: count.and_then(Value::as_u64).unwrap_or(1),
    }
}
