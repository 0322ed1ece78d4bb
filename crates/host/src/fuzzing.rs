//! Private parsers, for `tests/fuzz`.

#![allow(missing_docs, reason = "no part of the product")]

use crate::{MountEntry, durable, freeze, lock::Holder, mounts};
use larder_model::{Fault, Result};
use serde::Serialize;
use std::path::Path;

pub fn mounts_at(text: &[u8], target: &Path) -> Option<Vec<MountEntry>> {
    mounts::at(text, target)
}

/// Reads a freeze record and writes it again.
///
/// # Errors
/// Those of reading.
pub fn freeze_record(text: &[u8]) -> Result<Vec<u8>> {
    printed(&freeze::Record::parse(Path::new("/records/x"), text)?)
}

/// Reads a lock's note and writes it again.
///
/// # Errors
/// Those of reading.
pub fn holder(text: &[u8]) -> Result<Vec<u8>> {
    printed(&durable::json::<Holder>(Path::new("/lock"), text)?)
}

fn printed<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Fault::internal("print a record").because(e))
}
