//! Who works on which name just now, in this process.
//!
//! The engines claim ids; what they cannot know is that making volume B reads volume A, or that one
//! name is asked for in two pools at once. A claim is for one *name* in all pools of the driver:
//! alone (create, delete, grow, cut the snapshot of that name) or together with others (being
//! copied from). A claim never waits: `Aborted` names what is going on, and callers ask again.

use crate::layout::Shelf;
use larder_model::{Fault, Native, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Debug, Default, Clone)]
pub(crate) struct Claims(Arc<Mutex<HashMap<Key, Held>>>);

type Key = (Shelf, Native);

#[derive(Debug)]
struct Held {
    /// 0: alone.
    sharers: usize,
    what: String,
}

/// Let go of by dropping it.
#[derive(Debug)]
#[must_use = "the claim ends when this is dropped"]
pub(crate) struct Claim {
    claims: Claims,
    key: Key,
}

impl Claims {
    /// Claims the name alone. `what` fits after "it is being".
    pub(crate) fn alone(&self, shelf: Shelf, native: &Native, what: &str) -> Result<Claim> {
        self.claim((shelf, native.clone()), what, true)
    }

    /// Claims the name together with others who do so.
    pub(crate) fn together(&self, shelf: Shelf, native: &Native, what: &str) -> Result<Claim> {
        self.claim((shelf, native.clone()), what, false)
    }

    fn claim(&self, key: Key, what: &str, alone: bool) -> Result<Claim> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get_mut(&key) {
            None => {
                let held = Held { sharers: usize::from(!alone), what: what.to_owned() };
                map.insert(key.clone(), held);
            }
            Some(held) if !alone && held.sharers > 0 => held.sharers += 1,
            Some(held) => {
                let (shelf, native) = &key;
                return Err(Fault::aborted(format!(
                    "work on {shelf} {native}: it is being {}",
                    held.what
                ))
                .hint("ask again"));
            }
        }
        drop(map);
        Ok(Claim { claims: self.clone(), key })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut map = self.claims.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = map.get_mut(&self.key)
            && held.sharers > 1
        {
            held.sharers -= 1;
        } else {
            map.remove(&self.key);
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
        let one = claims.together(Shelf::Volumes, &a, "copied to b").unwrap();
        let two = claims.together(Shelf::Volumes, &a, "copied to c").unwrap();
        drop(one);
        let fault = claims.alone(Shelf::Volumes, &a, "deleted").unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::Aborted);
        assert!(fault.to_string().contains("being copied to b"), "{fault}");
        let other = claims.alone(Shelf::Snapshots, &a, "cut").unwrap();
        drop((two, other));
        let alone = claims.alone(Shelf::Volumes, &a, "deleted").unwrap();
        assert!(claims.together(Shelf::Volumes, &a, "copied").is_err());
        assert!(claims.alone(Shelf::Volumes, &a, "deleted").is_err());
        drop(alone);
        assert!(claims.0.lock().unwrap().is_empty());
    }
}
