//! Gives memory back that calls have freed, once they are over.
//!
//! One list of ten thousand volumes takes 16 MB, in pieces, and the C library would keep them for ever.

use larder_host::memory;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(5);
/// Less is not worth the look.
const GROWN: u64 = 4 << 20;

/// While it grows by more in a period, somebody still works with it.
const STILL: u64 = 256 << 10;

/// Whether it is time: what is held has grown since it was `kept`, and grows no more.
fn is_time(kept: u64, before: u64, now: u64) -> bool {
    now > kept.saturating_add(GROWN) && now <= before.saturating_add(STILL)
}

/// Looks until `stop`.
pub(crate) async fn keep_small(stop: CancellationToken) {
    // What comes in the first seconds is freed later, too.
    let Ok(mut kept) = memory::anonymous() else { return };
    let mut before = kept;
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let Ok(now) = memory::anonymous() else { return };
        if is_time(kept, before, now) {
            kept = tokio::task::spawn_blocking(|| {
                memory::give_back();
                memory::anonymous().unwrap_or(0)
            })
            .await
            .unwrap_or(u64::MAX);
        }
        kept = kept.min(now);
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_has_grown_and_grows_no_more_is_given_back() {
        assert!(!is_time(10 * MIB, 10 * MIB, 13 * MIB), "too little");
        assert!(!is_time(10 * MIB, 10 * MIB, 35 * MIB), "at work");
        assert!(is_time(10 * MIB, 35 * MIB, 35 * MIB));
        assert!(is_time(10 * MIB, 35 * MIB, 35 * MIB + 4096), "a log line");
        assert!(is_time(10 * MIB, 35 * MIB, 20 * MIB));
    }
}
