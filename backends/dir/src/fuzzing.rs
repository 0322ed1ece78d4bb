//! This backend's parts of records, for `tests/fuzz`.

#![allow(missing_docs, reason = "no part of the product")]

use larder_model::{Fault, Result};
use serde::{Serialize, de::DeserializeOwned};

/// Reads this backend's part of the record of a volume or of a snapshot, and writes it again.
///
/// # Errors
/// `Corrupt`.
pub fn value(snapshot: bool, text: &[u8]) -> Result<Vec<u8>> {
    if snapshot {
        again::<crate::record::SnapshotValue>(text)
    } else {
        again::<crate::record::Value>(text)
    }
}

fn again<T: Serialize + DeserializeOwned>(text: &[u8]) -> Result<Vec<u8>> {
    let value: T = serde_json::from_slice(text)
        .map_err(|e| Fault::corrupt("read a part of a record").because(e))?;
    serde_json::to_vec_pretty(&value).map_err(|e| Fault::internal("print a record").because(e))
}
