//! The `loop` backend: a volume is an image file in a pool, and a loop device over it.
//!
//! ```text
//! volumes/pvc-1/image ──loop device──▶ file system (ext4, xfs, btrfs) or raw block device
//!        │
//!        ├─ cut ───▶ snapshots/s/image        reflink: shared blocks (xfs, btrfs)
//!        └─ fill ──▶ volumes/pvc-2/image      otherwise a sparse copy
//! ```
//! Names, records, locks and recovery are the pool's ([`larder_pool`]); mounting and formatting are
//! the node engine's. What is left is here:
//!
//! | module | what it holds |
//! |---|---|
//! | `medium` | what the pool asks of an image: plan, create, fill, cut, grow, remove, connect |
//! | `params` | StorageClass parameters, and what a new volume will be |
//! | `copying` | consistent copies of images that are in use: freezing, reflinks |
//! | `blocks` | which blocks of a snapshot are allocated, or changed since another |
//! | `together` | copies of several images at one moment |
//! | `devices` | one image, one loop device; a number is proven before every use |
//! | `mounted` | where a device's file system can be reached |
//! | `health` | missing, truncated and replaced images, lost devices, file system errors |
//! | `btrfs` | an own fsid for copies of btrfs |
//!
//! Start-up: what a killed process left under `creating/` and `deleting/` is removed by the pool,
//! through [`larder_pool::Medium::remove`], which detaches devices first. A device over an existing
//! volume's image is never detached at start-up: whether a raw block device is staged for a workload
//! that does not have it open just now is written in the node's records, and the node engine decides.

mod blocks;
mod btrfs;
mod copying;
mod devices;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod medium;
mod mounted;
mod params;
mod together;

pub use copying::FreezeLimits;
pub use medium::LoopMedium;
pub use params::PARAMETERS;

use larder_host::{Host, freeze::Freezer};
use larder_model::{Backend, Fault, NodeName, PoolName, Result};
use larder_pool::{LocalBackend, OwnerNote, PoolConfig};
use std::{collections::BTreeMap, sync::Arc};

/// How the data in its pools is called.
pub const NAMES: larder_pool::DataNames =
    larder_pool::DataNames { data: "image", static_suffix: ".img", is_dir: false, notes: "" };

/// How the backend is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The pools.
    pub pools: BTreeMap<PoolName, PoolConfig>,
    /// How long, and for how much, writers may be held back.
    pub freeze: FreezeLimits,
}

/// The backend, not started. `note` is what others read in the pools' locks; `freezer` protects the
/// file systems of all pools and of our own state, and its recovery ran before.
///
/// # Errors
/// `Invalid`, naming the pool and the key.
pub fn new(
    settings: Settings,
    host: &Host,
    node: NodeName,
    freezer: Arc<Freezer>,
    note: OwnerNote,
) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(local(settings, host, node, freezer, note)?))
}

/// As [`new`], with its own type.
///
/// # Errors
/// As [`new`].
pub fn local(
    settings: Settings,
    host: &Host,
    node: NodeName,
    freezer: Arc<Freezer>,
    note: OwnerNote,
) -> Result<LocalBackend<LoopMedium>> {
    if let Some((name, _)) = settings.pools.iter().find(|(_, config)| config.shared) {
        return Err(Fault::invalid(format!("use shared: true for pool {name}")).hint(
            "an image attached on two nodes is a destroyed file system: leave it out, and give \
             each node a pool of its own",
        ));
    }
    let medium = LoopMedium::new(host.clone(), node, freezer, settings.freeze);
    LocalBackend::new(medium, host.clone(), note, settings.pools)
}
