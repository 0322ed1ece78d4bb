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

/// Looks until `stop`.
pub(crate) async fn keep_small(stop: CancellationToken) {
    let mut kept = u64::MAX;
    let mut before = 0;
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let Ok(now) = memory::anonymous() else { return };
        // While it grows somebody still works with it.
        if now > kept.saturating_add(GROWN) && now <= before {
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
