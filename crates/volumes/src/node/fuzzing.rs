//! Private parsers, for `tests/fuzz`.

use super::record::Record;
use larder_model::{Fault, Result};
use std::path::Path;

/// Reads a record and writes it again.
///
/// # Errors
/// Those of reading.
pub fn record(text: &[u8]) -> Result<Vec<u8>> {
    let record = Record::parse(Path::new("/records/x"), text)?;
    serde_json::to_vec_pretty(&record).map_err(|e| Fault::internal("print a record").because(e))
}
