//! The `dir` backend: a volume is a directory in a pool.
//!
//! ```text
//! volumes/pvc-1/data ──bind mount (node engine)──▶ the workload's directory
//!        │   held to its size by project quota (ext4, xfs) or its qgroup (btrfs), or by nothing
//!        ├─ cut ───▶ snapshots/s/data        btrfs: a read-only snapshot of the subvolume, at once
//!        └─ fill ──▶ volumes/pvc-2/data      else: file by file, sharing blocks (xfs) or copying
//! ```
//! Names, records, locks, paging and recovery are the pool's ([`larder_pool`]); mounting is the node
//! engine's. What is left is here:
//!
//! | module | what it holds |
//! |---|---|
//! | `medium` | what the pool asks of a directory: plan, create, fill, cut, grow, remove, connect |
//! | `parameters` | StorageClass parameters |
//! | `ground` | what the file system below a pool can do |
//! | `project` | project ids: claimed without a register, found again after a crash |
//! | `record` | this backend's part of the pool's records |
//! | `subvolumes` | whole copies of btrfs subvolumes, nested ones included |
//! | `measure` | counting what a volume holds where the kernel does not |
//! | `check` | looking without changing: capabilities, places, usage, health |
//!
//! Invariants:
//! - A volume's folder is 0700, so only whoever is given a volume by a mount comes to its data,
//!   whatever permissions the data directory has.
//! - No symlink that a workload made is ever followed, in copying, measuring or removing.
//! - A project id is written beside the volume before the volume gets it, and its limit is lifted
//!   only while it is certain to be this volume's.
//! - A volume is not deleted while anything on the machine has it mounted.

mod check;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ground;
mod measure;
mod medium;
mod parameters;
mod project;
mod record;
mod subvolumes;

pub use parameters::PARAMETERS;

use larder_host::{
    Host,
    quota::{self, Enforcement},
};
use larder_model::{Backend, Fault, NodeName, PoolName, Result, volume::Scope};
use larder_pool::{LocalBackend, OwnerNote, PoolConfig};
use std::{collections::BTreeMap, sync::Arc};

/// How the data in its pools is called.
pub const NAMES: larder_pool::DataNames =
    larder_pool::DataNames { data: "data", static_suffix: "", is_dir: true, notes: "project." };

/// How the backend is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The pools: all on this node, or all `shared`.
    pub pools: BTreeMap<PoolName, PoolConfig>,
}

/// The `dir` backend.
#[derive(Debug)]
pub struct DirBackend(());

impl DirBackend {
    /// The backend, not started. `note` is what others read in the pools' locks.
    ///
    /// # Errors
    /// `Invalid`, naming the pool and the key.
    #[allow(clippy::new_ret_no_self, reason = "callers know backends by their trait only")]
    pub fn new(
        settings: Settings,
        host: &Host,
        node: NodeName,
        note: OwnerNote,
    ) -> Result<Arc<dyn Backend>> {
        refuse_file_systems(&settings.pools)?;
        let scope = scope(&settings.pools, node)?;
        let medium = medium::Directories::new(host.clone(), scope);
        let backend = LocalBackend::new(medium, host.clone(), note, settings.pools)?;
        Ok(Arc::new(backend))
    }
}

/// Looks at pools before any is opened: what a person should know of each, as far as it can be seen
/// now. Changes nothing.
///
/// # Errors
/// `Invalid`, where [`DirBackend::new`] would refuse them.
pub fn advise(pools: &BTreeMap<PoolName, PoolConfig>) -> Result<Vec<(PoolName, String)>> {
    refuse_file_systems(pools)?;
    scope(pools, "any".parse()?)?;
    let mut advice = Vec::new();
    for (name, config) in pools {
        // What is not there yet is told by others.
        // One that does not answer is told elsewhere, and must not be waited for.
        let answers = larder_host::Host::real().filesystems.answers(&config.path).is_ok();
        if answers && let Ok(Enforcement::None { why }) = quota::detect(&config.path) {
            advice.push((name.clone(), ground::unenforced(name, config, &why)));
        }
    }
    Ok(advice)
}

fn refuse_file_systems(pools: &BTreeMap<PoolName, PoolConfig>) -> Result<()> {
    match pools.iter().find_map(|(name, config)| Some((name, config.fs?))) {
        None => Ok(()),
        Some((name, fs)) => Err(Fault::invalid(format!("use fs: {fs} for pool {name}"))
            .hint("a directory has no file system of its own; leave fs out")),
    }
}

/// Topology is announced per driver, so one driver's pools are all of one sort.
fn scope(pools: &BTreeMap<PoolName, PoolConfig>, node: NodeName) -> Result<Scope> {
    let shared = |wanted| pools.iter().find(|(_, config)| config.shared == wanted);
    match (shared(true), shared(false)) {
        (Some((shared, _)), Some((local, _))) => Err(Fault::invalid(format!(
            "use the shared pool {shared} and the node's own pool {local} in one driver"
        ))
        .hint("configure two drivers: volumes of one are tied to a node, those of the other not")),
        (Some(_), None) => Ok(Scope::Everywhere),
        (None, _) => Ok(Scope::Node(node)),
    }
}
