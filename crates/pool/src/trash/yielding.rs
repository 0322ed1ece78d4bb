//! How the trash yields to what finds no room.
//!
//! What is removed here cannot be had back, so each removal needs a reason of its own:
//! - a shortage whose size is known (preallocation, full copies, the reserve) removes nothing when all of
//!   the trash would not be enough, or when the room is there by now;
//! - one that only the kernel speaks of (`ENOSPC`) counts when this very pool is nearly full;
//! - what is being removed already, whoever does it, is waited for, and so is what the file system gives
//!   back in the background;
//! - one thing is removed at a time, in one pool by one caller; the others look again then;
//! - what removing one thing did not help, removing a second one is not expected to.

use super::bin::Taken;
use crate::{backend::Core, medium::Medium, pool::Pool};
use larder_host::{Usage, btrfs, clock::Moment, durable};
use larder_model::{Bytes, Cx, Fault, Kind, Result};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long removals under way and deleted subvolumes are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Free space that has not risen for so long does not rise any more: file systems give it back in the
/// background.
const STILL: Duration = Duration::from_secs(1);
/// How long room is waited for that is there, but promised to calls under way.
const PROMISED: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Who makes room in a pool.
#[derive(Debug, Default)]
pub(crate) struct Yielding {
    alone: Mutex<()>,
    /// How often something was removed.
    rounds: AtomicU64,
}

impl Yielding {
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Acquire)
    }
}

/// What room is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// So much must be free: less helps nobody.
    Exactly(Bytes),
    /// So much should be free: what comes near is better than nothing.
    Reserve(Bytes),
    /// The kernel found no room, and nobody knows for how much.
    Unknown,
}

impl Want {
    /// Whether there is room; `total` is what the file system holds.
    fn is_met(self, usage: &Usage) -> bool {
        match self {
            Self::Exactly(needs) | Self::Reserve(needs) => usage.available >= needs,
            Self::Unknown => !is_nearly_full(usage),
        }
    }
}

/// Whether a file system has so little left that it may have said so. Nobody knows how much was asked
/// for: what it has is far more than a record and a few directories need.
fn is_nearly_full(usage: &Usage) -> bool {
    let little = (usage.total.get() / 100).clamp(16 << 20, 1 << 30);
    let few = (usage.inodes / 100).max(16);
    usage.available.get() < little || (usage.inodes > 0 && usage.inodes_free < few)
}

/// What came of making room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It is there by now.
    Found,
    /// Something was removed; whether the file system has more since.
    Made { helped: bool },
    /// Nothing in the trash would help.
    None,
}

impl<M: Medium> Core<M> {
    /// Does `work`; as long as that finds no room which the trash can make, the oldest in it is removed
    /// and it is done again.
    pub(crate) fn with_room<T>(
        &self,
        pool: &Pool,
        cx: &Cx,
        mut work: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut helpless = false;
        let mut found: Option<Instant> = None;
        loop {
            let rounds = pool.yielding().rounds();
            let fault = match work() {
                Err(fault) => fault,
                done => return done,
            };
            let Some(shortage) = fault.shortage() else { return Err(fault) };
            if helpless {
                return Err(fault);
            }
            let want = shortage.needs.map_or(Want::Unknown, Want::Exactly);
            match self.make_room(pool, want, Some(rounds), cx) {
                Ok(Room::Made { helped }) => helpless = !helped,
                Ok(Room::Found) => {
                    // Calls under way hold it: they take it, or give it back.
                    let since = *found.get_or_insert_with(Instant::now);
                    if since.elapsed() > PROMISED || pool.stopping().wait(LOOK_AGAIN * 5) {
                        return Err(fault);
                    }
                }
                Ok(Room::None) => return Err(fault),
                Err(second) if second.is_simulated_crash() => return Err(second),
                Err(second) => {
                    return Err(fault.during(format!("(and cannot empty the trash: {second})")));
                }
            }
        }
    }

    /// Removes the oldest in the pool's trash, where that may help. `rounds`: how often something had
    /// been removed when there was no room.
    pub(super) fn make_room(
        &self,
        pool: &Pool,
        want: Want,
        rounds: Option<u64>,
        cx: &Cx,
    ) -> Result<Room> {
        let look = || pool.host().filesystems.usage(pool.path());
        let _alone = pool.yielding().alone();
        if rounds.is_some_and(|rounds| rounds != pool.yielding().rounds()) {
            return Ok(Room::Made { helped: true });
        }
        let first = look()?;
        let is_idle = !pool.bin().is_removing();
        if (pool.bin().is_empty() && is_idle) || is_hopeless(pool, want, &first, is_idle) {
            return Ok(Room::None);
        }
        let waited = await_removals(pool, want)?;
        let before = look()?;
        if want != Want::Unknown && want.is_met(&before) {
            return Ok(Room::Found);
        }
        if waited && before.available > first.available {
            return Ok(Room::Made { helped: true });
        }
        if pool.stopping().is_told() || is_hopeless(pool, want, &before, true) {
            return Ok(Room::None);
        }
        let Some(allocated) = self.remove_oldest(pool, cx)? else { return Ok(Room::None) };
        pool.yielding().rounds.fetch_add(1, Ordering::AcqRel);
        let after = await_freed(pool, want, before.available, allocated)?;
        let inodes = want == Want::Unknown && after.inodes_free > before.inodes_free;
        Ok(Room::Made { helped: after.available > before.available || inodes })
    }

    /// Removes the oldest that can be removed; what it took, as far as is known. None: nothing is left.
    fn remove_oldest(&self, pool: &Pool, cx: &Cx) -> Result<Option<Bytes>> {
        let now = Moment::now();
        for record in pool.bin().all(&now) {
            let taken: Taken<'_> = match pool.take_from_trash(&record.id) {
                Ok(Some(taken)) => taken,
                // Gone, or somebody has it just now.
                Ok(None) => continue,
                Err(fault) if fault.kind() == Kind::Aborted => continue,
                Err(fault) => return Err(fault),
            };
            match self.expunge(pool, &taken, cx) {
                // Not proven to be what was deleted: it stays, and keeps nothing else.
                Err(fault) if fault.kind() == Kind::Corrupt => {
                    tracing::warn!(pool = %pool.name(), "{fault}");
                    continue;
                }
                removed => removed?,
            }
            tracing::warn!(
                pool = %pool.name(),
                "{} {} was removed from the trash before its time: the pool is full",
                record.sort.shelf(), record.native
            );
            return Ok(Some(record.allocated));
        }
        Ok(None)
    }
}

/// Whether nothing that could be removed would help. `is_idle`: nothing is being removed, of which
/// nobody knows how much it gives.
fn is_hopeless(pool: &Pool, want: Want, usage: &Usage, is_idle: bool) -> bool {
    match want {
        Want::Exactly(needs) => {
            let most = pool.bin().most().map(|most| usage.available.saturating_add(most));
            needs > usage.total || (is_idle && most.is_some_and(|most| needs > most))
        }
        Want::Reserve(_) => false,
        Want::Unknown => !is_nearly_full(usage),
    }
}

/// Waits for what is being removed already, unless there is room; whether there was anything.
fn await_removals(pool: &Pool, want: Want) -> Result<bool> {
    let begun = Instant::now();
    let is_met = || Ok::<_, Fault>(want.is_met(&pool.host().filesystems.usage(pool.path())?));
    if is_met()? {
        return Ok(false);
    }
    let is_removing = || pool.bin().is_removing() || !pool.removing().is_empty();
    let any = is_removing();
    while is_removing() && begun.elapsed() < PATIENCE {
        if pool.stopping().wait(LOOK_AGAIN) || is_met()? {
            return Ok(any);
        }
    }
    give_back(pool)?;
    Ok(any)
}

/// Waits until what was deleted is given back, as far as the file system can be asked for that.
fn give_back(pool: &Pool) -> Result<()> {
    let begun = Instant::now();
    durable::sync_filesystem(pool.path())?;
    let goes_on = || begun.elapsed() < PATIENCE && !pool.stopping().wait(LOOK_AGAIN);
    if let Err(fault) = btrfs::clean(pool.path(), goes_on) {
        tracing::debug!(pool = %pool.name(), "{fault}");
    }
    Ok(())
}

/// Waits until what was removed, which took `allocated`, is free: until it is enough, and not much
/// longer than it goes on to become more.
fn await_freed(pool: &Pool, want: Want, before: Bytes, allocated: Bytes) -> Result<Usage> {
    let look = || pool.host().filesystems.usage(pool.path());
    give_back(pool)?;
    let expected = before.saturating_add(Bytes::new(allocated.get() / 2));
    let begun = Instant::now();
    let (mut most, mut since) = (before, begun);
    loop {
        let now = look()?;
        if now.available > most {
            (most, since) = (now.available, Instant::now());
        }
        let is_enough = want.is_met(&now) || now.available > expected;
        let is_over = since.elapsed() > STILL || begun.elapsed() > PATIENCE;
        if is_enough || is_over || pool.stopping().wait(LOOK_AGAIN) {
            return Ok(now);
        }
    }
}
