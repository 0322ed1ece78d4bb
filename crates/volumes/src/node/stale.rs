//! What network mounts show: how the kernel tells of them, and what their server has no more (ESTALE), which
//! is told, and replaced when a workload starts.

use super::{
    executor::Executor,
    record::{Record, Shows, Staged},
};
use larder_host::paths::TargetPath;
use larder_model::{Fault, Result};
use std::sync::Arc;

/// ESTALE.
pub(super) const STALE: i32 = 116;

impl Executor {
    /// Notes in `record` how the kernel shows what is staged at `path`.
    ///
    /// # Errors
    /// `Precondition` where it is not there.
    pub(super) async fn note_how_it_is_shown(
        self: &Arc<Self>,
        record: &mut Record,
        path: &TargetPath,
    ) -> Result<()> {
        let (at, staged) = (path.clone(), record.staged.clone());
        let top = self.blocking(move |this| {
            let seen = this.see_staged(at.as_path(), staged.as_ref(), Some(false))?;
            Ok(this.host.mounts.mounts_at(at.as_path())?.pop().filter(|_| seen.is_ours()))
        });
        let top = top.await?.ok_or_else(|| {
            Fault::precondition(format!("stage at {path}: it is no longer mounted there"))
                .hint("somebody unmounted it, or mounted something over it; the call is repeated")
        })?;
        if let Some(shows) = record.shows_mut() {
            shows.show_as(top.source);
        }
        Ok(())
    }

    /// What a server has no more, under the staging path: nobody can use it, so it makes room for a new
    /// mount. Workloads that have it keep what they have, and are healed by their restart.
    ///
    /// # Errors
    /// As [`super::sight::look`].
    pub(super) async fn let_go_of_stale(
        self: &Arc<Self>,
        volume: String,
        path: &TargetPath,
    ) -> Result<()> {
        let path = path.clone();
        self.blocking(move |this| {
            let record = this.store.load(&volume)?;
            let staged = record.as_ref().and_then(|record| record.staged.as_ref());
            let Some(staged) = staged.filter(|staged| staged.path == path.as_path()) else {
                return Ok(());
            };
            if !this.is_stale(staged)? {
                return Ok(());
            }
            tracing::warn!(path = %staged.path.display(), "unmount what its server has no more");
            this.unmount_ours(&staged.path, staged.shows.as_ref(), staged.root.as_ref())
        })
        .await
    }

    /// Whether the staging mount shows what its server has no more (ESTALE). A server that does not
    /// answer is none of these: it may come back with it.
    ///
    /// # Errors
    /// As [`super::sight::look`].
    pub(super) fn is_stale(&self, staged: &Staged) -> Result<bool> {
        let network = staged.shows.as_ref().is_some_and(Shows::is_network);
        if !network || !self.see_staged(&staged.path, Some(staged), Some(false))?.is_ours() {
            return Ok(false);
        }
        let asked = self.host.filesystems.usage(&staged.path);
        Ok(asked.is_err_and(|fault| fault.os_error() == Some(STALE)))
    }
}
