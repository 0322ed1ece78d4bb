//! Parsers of this crate, for `tests/fuzz`.

#![allow(missing_docs, missing_debug_implementations, reason = "no part of the product")]

use crate::config::{self, Settings};
use larder_model::{Fault, Result};
use std::path::{Path, PathBuf};

/// A configuration that was read.
pub struct Read {
    /// As `larder config show` prints it.
    pub shown: String,
    /// It can be served.
    pub fine: bool,
    /// Folders of its pools.
    pub pools: Vec<PathBuf>,
    /// Sockets.
    pub sockets: Vec<PathBuf>,
}

/// Reads a configuration, without a look at the machine.
///
/// # Errors
/// Those of reading.
pub fn config(text: &str) -> Result<Read> {
    let settings: Settings = config::read(text)?;
    let shown = serde_yaml_ng::to_string(&settings);
    let shown = shown.map_err(|e| Fault::internal("print the settings").because(e))?;
    let fine = !config::check_by_itself(&settings).iter().any(|problem| problem.fatal);
    let drivers = || settings.drivers.iter();
    let pools = drivers().flat_map(|d| d.pools.values().map(|pool| pool.path.clone()));
    let sockets = drivers().map(|d| d.endpoint.path().to_owned());
    Ok(Read { shown, fine, pools: pools.collect(), sockets: sockets.collect() })
}

/// Reads the record of a volume that `volume mount` mounted, and writes it again.
///
/// # Errors
/// Those of reading.
pub fn mounted(text: &[u8]) -> Result<Vec<u8>> {
    let record = crate::commands::mounts::Mounted::parse(Path::new("/mount.json"), text)?;
    serde_json::to_vec_pretty(&record).map_err(|e| Fault::internal("print a record").because(e))
}
