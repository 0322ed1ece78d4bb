//! File-based pools: everything that backends which keep volumes in a directory have in common.
//!
//! A *pool* is a directory with an identity. A [`Medium`] says what one volume in it is made of (a
//! directory, an image file) and how that is made, copied, cut, grown and removed.
//!
//! From it [`LocalBackend`] implements all of [`larder_model::Backend`]: names and records, locks,
//! idempotency, listing, capacity, undo, recovery after a crash, pools that go away and come back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`medium`] | what a backend implements |
//! | [`backend`] | [`LocalBackend`] |
//! | [`config`] | how a pool is configured |
//! | [`identity`] | what proves that a directory is a pool |
//! | [`owner`] | which process owns a pool |
//! | [`record`] | what is written beside each volume and snapshot, and its format versions |
//! | [`entry`] | a volume or snapshot as a medium sees it |
//! | [`pool`] | an open pool; away and back |
//! | [`look`](mod@look) | what is in a pool, seen from outside |
//! | `layout` | names inside a pool |
//! | `places` | the configured pools, start and hand-over |
//! | `catalog` | the records in memory |
//! | `build` | creation and deletion by one rename, and what a power cut can leave |
//! | `recover` | mending what a killed process left |
//! | `claims` | who works on which name |
//! | `trash` | what was deleted and is kept for a while |
//! | `room` | over-provisioning, reserve, capacity |
//! | `groups` | snapshots of several volumes, made and deleted as a whole |
//! | `blocks` | allocated and changed blocks of snapshots |
//! | `volumes`, `snapshots`, `statics`, `listing`, `health`, `node` | the operations |

pub mod backend;
mod blocks;
mod build;
mod catalog;
mod claims;
pub mod config;
pub mod entry;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod groups;
mod health;
pub mod identity;
mod layout;
mod listing;
pub mod look;
pub mod medium;
mod node;
pub mod owner;
mod places;
pub mod pool;
pub mod record;
mod recover;
mod room;
mod snapshots;
mod statics;
mod trash;
mod volumes;

pub use backend::LocalBackend;
pub use config::{MountRule, PoolConfig};
pub use entry::{Entry, SnapshotEntry};
pub use identity::{Identity, init, read as identity};
pub use look::DataNames;
pub use medium::{
    Blocks, Medium, Origin, Part, Plan, PlanRequest, PoolTraits, SnapshotFacts, StaticFacts,
};
pub use owner::{OwnerNote, owner};
pub use pool::Pool;
pub use record::{Access, FileMark, SnapshotRecord, SourceRef, VolumeRecord};
pub use trash::{TrashRecord, TrashSort};
