//! How much more a pool can promise and hold.
//!
//! Two questions, both asked before anything is made:
//! - *promises*: the sizes of all volumes together stay below `overprovision` × (size of the file
//!   system − `reserve`), where that is configured;
//! - *space*: what is taken at once (preallocation, copies without reflink) is free now, above the
//!   `reserve`.
//!
//! Operations under way count, so two at a time cannot both take the last of it. Snapshots are not
//! promises: they draw on what is free as their volume diverges, which is what `reserve` is for.

use crate::{medium::Medium, pool::Pool};
use larder_model::{
    Bytes, Fault, Result,
    volume::{Attributes, Capacity},
};

/// What operations under way will have taken when they end.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    size: Bytes,
    space: Bytes,
}

/// A share of what is left, until dropped: by then it has become visible in the pool itself.
#[derive(Debug)]
#[must_use = "the promise ends when this is dropped"]
pub(crate) struct Promise {
    pool: Pool,
    size: Bytes,
    space: Bytes,
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.pool.promised();
        promised.size = promised.size.saturating_sub(self.size);
        promised.space = promised.space.saturating_sub(self.space);
    }
}

impl Pool {
    /// Promises `size` more to a volume that has its space already.
    ///
    /// # Errors
    /// As [`Pool::promise`].
    pub(crate) fn promise_size(&self, size: Bytes) -> Result<Promise> {
        self.promise_all(size, Bytes::ZERO, false)
    }

    /// Promises `size` more to a volume, `space` of it to be taken at once.
    ///
    /// # Errors
    /// `Exhausted`, saying what is left.
    pub(crate) fn promise(&self, size: Bytes, space: Bytes) -> Result<Promise> {
        self.promise_all(size, space, self.config().reserve > Bytes::ZERO || space > Bytes::ZERO)
    }

    fn promise_all(&self, size: Bytes, space: Bytes, asks_space: bool) -> Result<Promise> {
        let config = self.config();
        let promise = Promise { pool: self.clone(), size, space };
        // Counted first, asked then: of two at a time at most one is refused that need not be.
        let (others_size, others_space) = {
            let mut promised = self.promised();
            let others = (promised.size, promised.space);
            promised.size = promised.size.saturating_add(size);
            promised.space = promised.space.saturating_add(space);
            others
        };
        if config.overprovision.is_none() && !asks_space {
            return Ok(promise);
        }
        let usage = self.host().filesystems.usage(self.path())?;
        // First, since no room that somebody makes would help.
        if let Some(factor) = config.overprovision.filter(|_| size > Bytes::ZERO) {
            let limit = scaled(usage.total.saturating_sub(config.reserve), factor);
            let given = self.catalog().provisioned()?.saturating_add(others_size);
            if given.saturating_add(size) > limit {
                return Err(Fault::exhausted(format!(
                    "promise {size} in pool {}: {given} of {limit} are promised already",
                    self.name()
                ))
                .hint("delete volumes, enlarge the pool, or raise `overprovision`"));
            }
        }
        let left = usage.available.saturating_sub(config.reserve).saturating_sub(others_space);
        if asks_space && (left < space || left == Bytes::ZERO) {
            let reserve = if config.reserve > Bytes::ZERO {
                format!(" beside the reserve of {}", config.reserve)
            } else {
                String::new()
            };
            let what = format!("find {space} in pool {}: {left} are free{reserve}", self.name());
            // What others are about to take is theirs, and is waited for: it is no reason to remove
            // anything.
            let needs = config.reserve.saturating_add(space.max(Bytes::new(1)));
            return Err(Fault::no_room(what, needs)
                .hint("delete volumes or snapshots, or enlarge the pool's file system"));
        }
        Ok(promise)
    }

    /// What can still be provisioned: the unpromised part of the limit, and of what is free as much
    /// as may be promised of it.
    pub(crate) fn capacity<M: Medium>(
        &self,
        medium: &M,
        parameters: &Attributes,
    ) -> Result<Capacity> {
        let config = self.config();
        let smallest = Some(medium.facts().min_size);
        if self.is_read_only() || medium.suits(self, parameters).is_err() {
            return Ok(Capacity { available: Bytes::ZERO, largest: Some(Bytes::ZERO), smallest });
        }
        let usage = self.host().filesystems.usage(self.path())?;
        // What is in the trash makes room when it is needed.
        let free = usage.available.saturating_add(self.bin().allocated()).min(usage.total);
        let mut available = free.saturating_sub(config.reserve);
        if let Some(factor) = config.overprovision {
            let limit = scaled(usage.total.saturating_sub(config.reserve), factor);
            let given = self.catalog().provisioned()?;
            available = scaled(available, factor).min(limit.saturating_sub(given));
        }
        let largest = medium.max_size(self).map(|max| max.min(available));
        Ok(Capacity { available, largest, smallest })
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a limit need not be exact to the byte; the cast saturates, and the factor is positive"
)]
fn scaled(bytes: Bytes, factor: f64) -> Bytes {
    Bytes::new((bytes.get() as f64 * factor) as u64)
}
