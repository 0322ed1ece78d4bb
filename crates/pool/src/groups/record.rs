//! What is written down of a group.

use crate::{
    catalog::Record,
    layout::Shelf,
    record::{FORMAT, Versioned},
};
use larder_model::{Bytes, Native};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// What is known of a group of snapshots. Versions as for the other records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupRecord {
    /// Format version.
    format: u32,
    /// Unique for ever.
    pub(crate) id: Uuid,
    /// The name as the caller wrote it.
    pub(crate) name: String,
    /// When it was cut.
    pub(crate) created: jiff::Timestamp,
    /// Its snapshots, in the order of their names.
    pub(crate) members: Vec<Member>,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A snapshot that belongs to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Member {
    /// Its name.
    pub(crate) native: Native,
    /// Its record's id: what has the name and another id is not it, and is never deleted for it.
    pub(crate) id: Uuid,
    /// The volume that it was cut from.
    pub(crate) source: Native,
}

impl GroupRecord {
    pub(super) fn new(name: &str, created: jiff::Timestamp, mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.native.cmp(&b.native));
        let id = Uuid::new_v4();
        Self { format: FORMAT, id, name: name.to_owned(), created, members, rest: Map::new() }
    }
}

impl Versioned for GroupRecord {
    fn format(&self) -> u32 {
        self.format
    }
}

impl Record for GroupRecord {
    const SHELF: Shelf = Shelf::Groups;
    fn size(&self) -> Bytes {
        Bytes::ZERO
    }
    fn cut_from(&self) -> Option<&Native> {
        None
    }
}
