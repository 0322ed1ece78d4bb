//! This backend's part of records, for `tests/fuzz`.

#![allow(missing_docs, reason = "no part of the product")]

use larder_model::{Fault, Result};

/// Reads this backend's part of the record of a volume, and writes it again.
///
/// # Errors
/// `Corrupt`.
pub fn value(text: &[u8]) -> Result<Vec<u8>> {
    let value: crate::params::Shape = serde_json::from_slice(text)
        .map_err(|e| Fault::corrupt("read a part of a record").because(e))?;
    serde_json::to_vec_pretty(&value).map_err(|e| Fault::internal("print a record").because(e))
}
