//! File-based pools: everything that backends which keep volumes in a directory have in common.
//!
//! A *pool* is a directory with an identity. A [`Medium`] says what one volume in it is made of (a
//! directory, an image file) and how that is made, copied, cut, grown and removed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`medium`] | what a backend implements |
//! | [`record`] | what is written beside each volume and snapshot, and its format versions |
//! | [`config`] | how a pool is configured |
//! | [`pool`] | an open pool, as a medium sees it |

pub mod config;
pub mod medium;
pub mod pool;
pub mod record;

pub use config::{MountRule, PoolConfig};
pub use medium::{Medium, Origin, Plan, PlanRequest, PoolTraits, SnapshotFacts, StaticFacts};
pub use pool::{Entry, Pool, SnapshotEntry};
pub use record::{Access, SnapshotRecord, SourceRef, VolumeRecord};
