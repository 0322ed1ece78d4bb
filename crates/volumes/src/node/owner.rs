//! One process at a time works with a driver's records.
//!
//! In a rolling update the next process starts while this one still works. Where pools have locks that
//! keeps the two apart; a shared, read-only or absent pool has none, and to the newcomer a staging that
//! is under way looks like one that was cut. So the records have a lock of their own:
//!
//! ```text
//!  old:  … works ─ drained ─ stop ─┐
//!  new:  starts ─ waits ───────────┴─▶ recover ─ works …
//! ```
//! The lock is the kernel's and ends with its holder, however that ends. It stands in the records'
//! folder: who wipes that while a process works with it gives up its protection, too.

use super::executor::Executor;
use larder_host::lock::{self, FileLock, Holder};
use larder_model::Result;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How often a newcomer looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The lock, while it is held.
#[derive(Debug, Default)]
pub(super) struct Owner(Mutex<Option<FileLock>>);

impl Owner {
    fn held(&self) -> std::sync::MutexGuard<'_, Option<FileLock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of it.
    pub(super) fn leave(&self) {
        *self.held() = None;
    }
}

impl Executor {
    /// Waits until nobody else works with the records. Held already: done.
    ///
    /// # Errors
    /// See [`FileLock::try_exclusive`].
    pub(super) async fn take_records(self: &Arc<Self>) -> Result<()> {
        let mut told = false;
        while !self.blocking(Self::try_records).await? {
            if !told {
                told = true;
                let path = self.store.lock();
                let pid = lock::holder(&path).map_or(0, |holder| holder.pid);
                tracing::warn!(pid, lock = %path.display(), "another process works with this node's records: waiting for it to end");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn try_records(&self) -> Result<bool> {
        let mut held = self.owner.held();
        if held.is_some() {
            return Ok(true);
        }
        self.store.prepare()?;
        let Some(lock) = FileLock::try_exclusive(&self.store.lock())? else { return Ok(false) };
        let holder = Holder {
            pid: std::process::id(),
            what: "larder".to_owned(),
            // The mounts that the records speak of are those of this namespace.
            mount_namespace: larder_host::mount_namespace(),
            ..Holder::default()
        };
        if let Err(fault) = lock.announce(&holder) {
            tracing::warn!("cannot note who works with the records: {fault}");
        }
        *held = Some(lock);
        Ok(true)
    }
}
