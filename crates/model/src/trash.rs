//! What was deleted and is kept for a while.

use crate::{
    bytes::Bytes,
    cx::Cx,
    fault::Result,
    id::{PoolName, RequestedName},
    period::Period,
};
use async_trait::async_trait;

/// A volume or a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

/// Something in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    /// What it is called in the trash: unique, also among things that had one name.
    pub id: String,
    /// Its pool.
    pub pool: PoolName,
    /// What it is.
    pub sort: Sort,
    /// The id that it had.
    pub origin: String,
    /// The name as its creator wrote it.
    pub name: String,
    /// Of a snapshot: the id of the volume that it was cut from.
    pub source: Option<String>,
    /// Its size.
    pub size: Bytes,
    /// What it took of the pool when it was deleted; blocks that it shares with others count as well.
    pub allocated: Bytes,
    /// When it was deleted.
    pub deleted: jiff::Timestamp,
    /// When it will be removed; None: the pool has no trash (any more), so it stays until somebody
    /// removes it or its space is needed.
    pub due: Option<jiff::Timestamp>,
}

/// What was removed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// How many things.
    pub count: u64,
    /// What they took; see [`Trashed::allocated`].
    pub allocated: Bytes,
}

/// The trash of all pools of a driver.
#[async_trait]
pub trait Trash: Send + Sync {
    /// What is in it, the latest deletion first.
    ///
    /// # Errors
    /// `Unavailable` when a pool is away: a list is never short.
    async fn list_trash(&self) -> Result<Vec<Trashed>>;

    /// Puts something back, under `name` where one is given; returns its id, which is the former one
    /// where the name is. It is whole when this returns, also after a power cut.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` (the name is taken); `Exhausted` (its size cannot be promised any more).
    async fn restore(&self, id: &str, name: Option<&RequestedName>, cx: &Cx) -> Result<String>;

    /// Removes something for good. What is not there is a success.
    ///
    /// # Errors
    /// `Aborted` while it is being restored or removed; `Unavailable`.
    async fn remove(&self, id: &str, cx: &Cx) -> Result<()>;

    /// Removes for good what was deleted longer ago than `older_than`; None: all.
    ///
    /// # Errors
    /// As [`Trash::remove`]; what was removed before stays removed.
    async fn empty(&self, older_than: Option<Period>, cx: &Cx) -> Result<Removed>;
}
