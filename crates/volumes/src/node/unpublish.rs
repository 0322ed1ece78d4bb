//! Unpublishing: unmount what is ours at the target, remove the target, forget.

use super::{
    executor::Executor,
    plan::{self, Seen, UnpublishStep},
    record::Shows,
};
use larder_host::paths::TargetPath;
use larder_model::{Cx, Fault, Kind, Result};
use std::sync::Arc;

impl Executor {
    /// See [`super::NodeEngine::unpublish`].
    pub(super) async fn unpublish(
        self: &Arc<Self>,
        volume: &str,
        target: &TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        let unknown = {
            let (volume, target, cx) = (volume.to_owned(), target.clone(), cx.clone());
            self.blocking(move |this| this.unpublish_trip(&volume, &target, None, &cx)).await?
        };
        if unknown {
            self.unpublish_unknown(volume, target, cx).await?;
        }
        self.end_inline(volume, cx).await
    }

    /// Does it all, unless something is mounted there of which no record tells (true).
    fn unpublish_trip(
        &self,
        volume: &str,
        target: &TargetPath,
        identified: Option<&Shows>,
        cx: &Cx,
    ) -> Result<bool> {
        let record = self.store.load(volume)?;
        let staged = record.as_ref().and_then(|record| record.staged.as_ref());
        let shows = staged.and_then(|staged| staged.shows.as_ref()).or(identified);
        let root = staged.and_then(|staged| staged.root.as_ref());
        let path = target.as_path();
        let known = shows.map(|shows| (Some(shows), root));
        let at = self.see(path, known, Some(false))?;
        if at == Seen::Unknown {
            return Ok(true);
        }
        let recorded = record.as_ref().is_some_and(|record| record.publication(path).is_some());
        for step in plan::unpublish(&at, recorded, path)? {
            match step {
                UnpublishStep::Unmount => {
                    cx.step("unmount the target")?;
                    self.unmount_ours(path, shows, root)?;
                }
                UnpublishStep::RemoveTarget => {
                    cx.step("remove the target")?;
                    self.remove_target(target)?;
                }
                UnpublishStep::Forget => {
                    let Some(record) = record.as_ref().filter(|_| recorded) else { continue };
                    cx.step("forget the publication")?;
                    let mut record = record.clone();
                    record.unpublish(path);
                    self.store.save_less(&record)?;
                }
            }
        }
        Ok(false)
    }

    /// The records were wiped: only the backend can tell whether that mount is this volume's; of network
    /// mounts the caller.
    async fn unpublish_unknown(
        self: &Arc<Self>,
        volume: &str,
        target: &TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        let cannot_tell = |fault: Fault| {
            fault
                .during(format!("find out whether {target} shows this volume"))
                .with_kind(Kind::Precondition)
                .hint("look at what is mounted there, and unmount it by hand")
        };
        let id = match self.inline_behind(volume).await? {
            Some(id) => id,
            None => self.parse(volume).map_err(cannot_tell)?,
        };
        let shows = match self.named_by_path(&id, volume, target).await? {
            Some(shows) => shows,
            None => match self.identify(&id, cx).await {
                Ok(Some((shows, _))) => shows,
                Ok(None) => {
                    return Err(cannot_tell(Fault::precondition("it is connected nowhere")));
                }
                Err(fault) if fault.kind() == Kind::NotFound => return Err(cannot_tell(fault)),
                Err(fault) => return Err(fault),
            },
        };
        let (volume, target, cx) = (volume.to_owned(), target.clone(), cx.clone());
        self.blocking(move |this| this.unpublish_trip(&volume, &target, Some(&shows), &cx))
            .await
            .map(|_| ())
    }
}
