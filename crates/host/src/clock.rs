//! What time it is, by both clocks that outlive a process.

use crate::boot_id;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A moment.
///
/// The wall clock can be set: it jumps. The time since boot cannot, counts sleep as well, and ends with
/// the boot that it belongs to. Two moments of one boot are therefore compared by the latter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    pub wall: Timestamp,
    /// The boot that `uptime` counts from.
    pub boot: String,
    /// Since boot, sleep included.
    pub uptime: Duration,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let uptime = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(uptime.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(uptime.tv_nsec).unwrap_or(0);
        Self { wall: Timestamp::now(), boot: boot_id(), uptime: Duration::new(seconds, nanos) }
    }
}
