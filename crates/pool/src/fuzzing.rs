//! Private parsers, for `tests/fuzz`.

#![allow(missing_docs, reason = "no part of the product")]

use crate::{
    groups::GroupRecord,
    identity::Identity,
    layout::{Shelf, parse_grave, parse_work},
    record::{SnapshotRecord, Versioned, VolumeRecord, parse},
    trash::TrashRecord,
};
use larder_model::{Fault, Native, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

pub const KINDS: [&str; 5] = ["volume", "snapshot", "group", "identity", "trash"];

/// Reads a record of one of [`KINDS`] and writes it again.
///
/// # Errors
/// Those of reading.
pub fn record(kind: &str, text: &[u8]) -> Result<Vec<u8>> {
    match kind {
        "volume" => again::<VolumeRecord>(text),
        "snapshot" => again::<SnapshotRecord>(text),
        "group" => again::<GroupRecord>(text),
        "identity" => again::<Identity>(text),
        _ => again::<TrashRecord>(text),
    }
}

fn again<T: Versioned + Serialize>(text: &[u8]) -> Result<Vec<u8>> {
    let record: T = parse(Path::new("/pool/record.json"), text)?;
    serde_json::to_vec_pretty(&record).map_err(|e| Fault::internal("print a record").because(e))
}

/// Where in `pool` a name leads to.
pub fn places(pool: &Path, native: &Native) -> Vec<PathBuf> {
    [Shelf::Volumes, Shelf::Snapshots, Shelf::Groups]
        .into_iter()
        .flat_map(|shelf| {
            let lock = shelf.lock(pool, native, "use");
            [shelf.place(pool, native), shelf.building_site(pool, native), lock]
        })
        .collect()
}

/// What a name in `creating` or `deleting` belongs to, and the name that it is built under.
pub fn work(name: &str) -> Vec<(Native, PathBuf)> {
    let found = [parse_work(name), parse_grave(name)].into_iter().flatten();
    found
        .map(|(shelf, native)| {
            let site = shelf.building_site(Path::new("/pool"), &native);
            (native, site)
        })
        .collect()
}
