//! After a start: what did the process before us leave?
//!
//! | record | what is done |
//! |---|---|
//! | of another boot | forgotten: mounts and devices died with it; an inline volume is kept while its pod exists, else deleted |
//! | staging begun, nothing published | taken back: nobody was told that it succeeded |
//! | unstaging begun | finished |
//! | published where nothing is mounted | that publication is forgotten |
//! | staged, but its mount and its device are gone | taken back |
//! | inline, published nowhere | deleted |
//! | everything else | left alone: a workload is using it; its limits are set again |
//! | of a newer version | left: that version knows what it tells of, and its volume is refused until then |
//! | unreadable | set aside |
//!
//! Invariant: no mount that a workload can see is touched.

use super::{
    Recovered, UnpublishRequest,
    executor::Executor,
    record::{Phase, Record},
};
use larder_host::paths::TargetPath;
use larder_model::{Cx, Fault, Result};
use std::{path::PathBuf, sync::Arc};

impl Executor {
    /// See [`super::NodeEngine::recover`].
    pub(super) async fn recover(self: Arc<Self>, cx: &Cx) -> Result<Recovered> {
        let (records, mut told) = self.blocking(Self::read_all).await?;
        for record in records {
            let volume = record.volume.clone();
            match self.recover_one(record, cx).await {
                Ok(Some(mended)) => {
                    tracing::info!(volume, "mended: {mended}");
                    told.mended.push(format!("{volume}: {mended}"));
                }
                Ok(None) => told.live += 1,
                Err(fault) if fault.is_simulated_crash() => return Err(fault),
                Err(fault) => {
                    tracing::warn!(volume, %fault, "left as it is");
                    told.left.push(format!("{volume}: {fault}"));
                }
            }
        }
        Ok(told)
    }

    /// The records; what is none is set aside, so that its volume can be used again.
    fn read_all(&self) -> Result<(Vec<Record>, Recovered)> {
        self.store.prepare()?;
        self.store.sweep()?;
        let (records, damaged) = self.store.all()?;
        let mut told = Recovered::default();
        for bad in damaged {
            if bad.newer {
                tracing::warn!("left as it is: {}", bad.fault);
                told.left.push(bad.fault.to_string());
                continue;
            }
            let aside = bad.path.with_extension("damaged");
            let (from, fault) = (bad.path.display(), bad.fault);
            match larder_host::durable::rename(&bad.path, &aside) {
                Ok(()) => {
                    told.mended.push(format!("{from}: set aside as {}: {fault}", aside.display()));
                }
                Err(second) => told.left.push(format!("{from}: {fault}; {second}")),
            }
        }
        Ok((records, told))
    }

    /// Mends what one record tells of. None: it is in use and was left alone.
    async fn recover_one(self: &Arc<Self>, record: Record, cx: &Cx) -> Result<Option<String>> {
        if !self.store.is_current(&record) {
            return self.recover_other_boot(record, cx).await.map(Some);
        }
        let (mut record, gone, standing) = {
            cx.step("look at what a former process left")?;
            self.blocking(move |this| this.drop_vanished(record)).await?
        };
        let mut mended = Vec::new();
        if !gone.is_empty() {
            let gone: Vec<_> = gone.iter().map(|p| p.display().to_string()).collect();
            mended.push(format!("forgot publications that are gone: {}", gone.join(", ")));
        }
        let volume = record.volume.clone();
        if record.inline.is_some() && standing == 0 {
            let target = gone.first().cloned();
            match target {
                Some(target_path) => {
                    let request = UnpublishRequest { volume, target_path };
                    self.clear_inline(request, cx).await?;
                }
                None => self.end_inline(&volume, cx).await?,
            }
            mended.push("deleted the inline volume that was published nowhere".to_owned());
            return Ok(Some(mended.join("; ")));
        }
        if let Some(staged) = record.staged.clone()
            && standing == 0
        {
            let id = self.id_of(&record)?;
            let path = TargetPath::parse(&staged.path.to_string_lossy(), "recorded path")?;
            let unfinished = match staged.phase {
                Phase::Staging => Some("took back a staging that was not finished"),
                Phase::Unstaging => {
                    self.unstage(&id, &volume, &path, cx).await?;
                    mended.push("finished unstaging".to_owned());
                    return Ok(Some(mended.join("; ")));
                }
                Phase::Staged => {
                    let at = {
                        let staged = staged.clone();
                        self.blocking(move |this| {
                            this.see_staged(&staged.path, Some(&staged), Some(false))
                        })
                        .await?
                    };
                    let lost = !at.is_ours() && !self.stands(&id, Some(&staged), &at).await?;
                    lost.then_some("took back a staging whose mount and device are gone")
                }
            };
            if let Some(what) = unfinished {
                self.take_back(&id, &mut record, cx).await?;
                mended.push(what.to_owned());
                return Ok(Some(mended.join("; ")));
            }
        }
        if let Some(staged) = &record.staged {
            let id = self.id_of(&record)?;
            self.hold_staged(&id, staged, cx).await?;
        }
        Ok((!mended.is_empty()).then(|| mended.join("; ")))
    }

    /// Forgets publications that are not mounted; returns them, and how many stand.
    fn drop_vanished(&self, mut record: Record) -> Result<(Record, Vec<PathBuf>, usize)> {
        let standing: Vec<PathBuf> =
            self.standing(&record)?.iter().map(|p| p.target.clone()).collect();
        let (kept, gone) =
            record.publications.into_iter().partition(|p| standing.contains(&p.target));
        record.publications = kept;
        let gone: Vec<PathBuf> =
            Vec::into_iter(gone).map(|p: super::record::Publication| p.target).collect();
        if !gone.is_empty() {
            for target in &gone {
                // An empty target that a killed publish made; whatever else is there stays.
                let parsed = TargetPath::parse(&target.to_string_lossy(), "recorded target")?;
                let _ = self.remove_target(&parsed);
            }
            self.store.save_or_forget(&record)?;
        }
        Ok((record, gone, standing.len()))
    }

    /// Nothing of another boot is left but inline volumes.
    async fn recover_other_boot(self: &Arc<Self>, record: Record, cx: &Cx) -> Result<String> {
        let volume = record.volume.clone();
        let Some(inline) = &record.inline else {
            cx.step("forget a record of another boot")?;
            self.blocking(move |this| this.store.forget(&volume)).await?;
            return Ok("forgot what was in use before the reboot".to_owned());
        };
        // Kubelet publishes a pod's volumes again after a reboot, or unpublishes them when the pod
        // is gone. It removes the pod's directory last, so a target without one comes no more.
        let pod_exists = record
            .publications
            .iter()
            .any(|p| p.target.parent().is_some_and(std::path::Path::is_dir));
        if pod_exists {
            return Ok(format!("kept inline volume {} for its pod", inline.id()?));
        }
        cx.step("delete an inline volume of another boot")?;
        let mut kept = self.store.blank(&volume);
        kept.inline.clone_from(&record.inline);
        self.save(&kept).await?;
        self.end_inline(&volume, cx).await.map_err(|fault: Fault| {
            fault.during("delete the inline volume of a pod that is gone")
        })?;
        Ok("deleted the inline volume of a pod that is gone".to_owned())
    }
}
