//! The `nfs` backend: a volume is a directory of an export, which nodes mount from its server.
//!
//! ```text
//!  control plane                                server                      node
//!  call ─▶ helper process ──a mount of its own──▶ share/.larder/volumes/x.json
//!          (killable, in time)                    share/<subDir>  ◀──mount── staging ──bind──▶ pod
//! ```
//! Mounting is the node engine's, touching the export is a helper's ([`larder_host::remote`]): no thread
//! of this process ever waits for a server. What is left is here:
//!
//! | module | what it holds |
//! |---|---|
//! | `config` | how an export is configured |
//! | `place` | servers, shares, directories, and templates of their names: parsed once |
//! | `parameters` | StorageClass parameters |
//! | `record` | what is kept beside the volumes |
//! | `export` | an export: its identity, visits |
//! | `copies` | copies of directories, begun, gone on with, moved to their place |
//! | `snapshots` | cut, delete, find |
//! | `claims` | which directory is whose |
//! | `volumes` | create, find, grow |
//! | `deletion` | delete, archive |
//! | `status` | how an export is |
//! | `backend` | the traits |
//!
//! Invariants:
//! - Nothing is done in an export without its identity, and nothing in another one than before.
//! - A directory belongs to one volume, and none lies within another's.
//! - Only a directory that was made for its volume is ever removed; one that was found there stays.
//! - Records are written before effects. A record that says that its volume goes is the commit.

mod backend;
mod claims;
mod config;
mod copies;
mod deletion;
mod export;
mod parameters;
mod place;
mod record;
mod snapshots;
mod status;
mod volumes;

pub use config::{ExportConfig, OnDelete};
pub use parameters::PARAMETERS;
pub use place::{Server, Share, SubDir};

use larder_host::Host;
use larder_model::{Backend, Fault, PoolName, Result};
use std::{collections::BTreeMap, sync::Arc};

/// The pool of volumes that are in no export of ours: an administrator named their server.
const STATIC: &str = "static";

/// How the backend is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The exports, by the name of their pool.
    pub exports: BTreeMap<PoolName, ExportConfig>,
}

/// The backend, not started.
///
/// # Errors
/// `Invalid`, naming the export and what is wrong with it.
pub fn new(settings: Settings, host: &Host) -> Result<Arc<dyn Backend>> {
    check(&settings.exports)?;
    Ok(Arc::new(backend::Nfs::new(settings, host)))
}

/// Refuses what cannot work, before anything is touched.
///
/// # Errors
/// `Invalid`, naming the export.
pub fn check(exports: &BTreeMap<PoolName, ExportConfig>) -> Result<()> {
    if let Some(name) = exports.keys().find(|name| name.as_str() == STATIC) {
        return Err(Fault::invalid(format!("use {name} as the name of an export"))
            .hint("volumes that are in no configured export have this one; choose another"));
    }
    Ok(())
}
