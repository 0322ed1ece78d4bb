//! Where a volume can be used.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One place: an AND of key-value segments. Empty means everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Segments(pub BTreeMap<String, String>);

impl Segments {
    /// One key and value.
    pub fn one(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self(BTreeMap::from([(key.into(), value.into())]))
    }
    /// Whether a place described by `self` (a node) satisfies `wanted`: every wanted segment is
    /// there. Keys compare without case, as CSI asks.
    pub fn satisfies(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(key, value)| {
            self.0.iter().any(|(k, v)| k.eq_ignore_ascii_case(key) && v == value)
        })
    }
}

/// What the caller asks of a new volume's place. Entries are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TopologyRequirement {
    /// The volume must be usable from one of these (when any is given).
    pub requisite: Vec<Segments>,
    /// Tried first, from first to last.
    pub preferred: Vec<Segments>,
}

impl TopologyRequirement {
    /// Whether a volume that can be used from `place` only is acceptable.
    pub fn allows(&self, place: &Segments) -> bool {
        self.requisite.is_empty() || self.requisite.iter().any(|r| place.satisfies(r))
    }
}
