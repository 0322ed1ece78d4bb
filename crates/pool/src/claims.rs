//! Who works on which name just now, in this process.
//!
//! The engines claim ids; what they cannot know is that making volume B reads volume A, or that one
//! name is asked for in two pools at once. A claim is for one *name* in all pools of the driver:
//! alone (create, delete, grow, cut the snapshot of that name) or together with others (being
//! copied from). A claim never waits: `Aborted` names what is going on, and callers ask again.

use crate::layout::Shelf;
use larder_model::{Cx, Fault, Native, Result, VolumeId};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

#[derive(Debug, Default, Clone)]
pub(crate) struct Claims(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    held: HashMap<Key, Held>,
}

type Key = (Shelf, Native);

#[derive(Debug)]
struct Held {
    alone: bool,
    /// In the order in which they came.
    holders: BTreeMap<u64, Holder>,
}

/// Who works on it, for the one who is refused.
#[derive(Debug)]
struct Holder {
    /// `create volume default/a`.
    what: String,
    since: Instant,
    cx: Cx,
}

impl fmt::Display for Holder {
    /// As the engines tell it: `create volume default/a, running for 12.3s, now at "copy the image"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, running for {:.1?}", self.what, self.since.elapsed())?;
        match self.cx.progress().step {
            "" => Ok(()),
            step => write!(f, ", now at \"{step}\""),
        }
    }
}

/// Let go of by dropping it.
#[derive(Debug)]
#[must_use = "the claim ends when this is dropped"]
pub(crate) struct Claim {
    claims: Claims,
    key: Key,
    id: u64,
}

impl Claims {
    /// Claims the name alone, for the operation `what` that reports its steps to `cx`.
    pub(crate) fn alone(
        &self,
        shelf: Shelf,
        native: &Native,
        what: String,
        cx: &Cx,
    ) -> Result<Claim> {
        self.claim((shelf, native.clone()), what, cx, true)
    }

    /// Claims the name together with others who do so.
    pub(crate) fn together(
        &self,
        shelf: Shelf,
        native: &Native,
        what: String,
        cx: &Cx,
    ) -> Result<Claim> {
        self.claim((shelf, native.clone()), what, cx, false)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, key: Key, what: String, cx: &Cx, alone: bool) -> Result<Claim> {
        let mut table = self.table();
        table.last += 1;
        let id = table.last;
        let held = table
            .held
            .entry(key.clone())
            .or_insert_with(|| Held { alone, holders: BTreeMap::new() });
        if let Some(holder) = held.holders.values().next()
            && (alone || held.alone)
        {
            let (shelf, native) = &key;
            return Err(Fault::aborted(format!("{what}: {shelf} {native} is held by {holder}"))
                .hint("repeat the call when that has ended"));
        }
        held.holders.insert(id, Holder { what, since: Instant::now(), cx: cx.clone() });
        drop(table);
        Ok(Claim { claims: self.clone(), key, id })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.claims.table();
        if let Some(held) = table.held.get_mut(&self.key) {
            held.holders.remove(&self.id);
            if held.holders.is_empty() {
                table.held.remove(&self.key);
            }
        }
    }
}

/// On which volumes the node makes a file system at this moment, and since when. The record alone
/// cannot tell: it says `formatting` also when that was cut or has failed.
#[derive(Debug, Default)]
pub(crate) struct Formatting(Mutex<HashMap<VolumeId, Instant>>);

impl Formatting {
    fn map(&self) -> MutexGuard<'_, HashMap<VolumeId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begins(&self, id: &VolumeId) {
        self.map().insert(id.clone(), Instant::now());
    }

    pub(crate) fn ends(&self, id: &VolumeId) {
        self.map().remove(id);
    }

    /// Why a volume whose record says `formatting` is not copied now.
    pub(crate) fn refusal(&self, id: &VolumeId) -> Fault {
        match self.map().get(id) {
            Some(since) => Fault::aborted(format!(
                "copy volume {id}: it is held by format volume {id}, running for {:.1?}, now at \
                 \"make the file system\"",
                since.elapsed()
            ))
            .hint("repeat the call when it is mounted"),
            None => Fault::precondition(format!(
                "copy volume {id}: making its file system was begun and not finished"
            ))
            .hint("stage it (start a workload with it) once, which finishes it, then ask again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_or_many_together() {
        let claims = Claims::default();
        let a: Native = "a".parse().unwrap();
        let cx = Cx::new();
        let alone = |what: &str| claims.alone(Shelf::Volumes, &a, what.to_owned(), &cx);
        let together = |what: &str| claims.together(Shelf::Volumes, &a, what.to_owned(), &cx);
        let one = together("copy a to b").unwrap();
        let two = together("copy a to c").unwrap();
        drop(one);
        cx.step("copy the image").unwrap();
        let fault = alone("delete a").unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::Aborted);
        let text = fault.to_string();
        assert!(text.contains("delete a: volume a is held by copy a to c, running for "), "{text}");
        assert!(text.contains("now at \"copy the image\""), "{text}");
        let other = claims.alone(Shelf::Snapshots, &a, "cut".to_owned(), &cx).unwrap();
        drop((two, other));
        let held = alone("delete a").unwrap();
        assert!(together("copy a").is_err());
        assert!(alone("delete a").is_err());
        drop(held);
        assert!(claims.table().held.is_empty());
    }
}
