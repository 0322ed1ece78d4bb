//! Without records: whose is what is at a path?
//!
//! The kernel knows what is mounted there, and the backend knows what it has connected for a volume.
//! Both are only looked at: workloads may be using what is asked about.

use super::{
    executor::Executor,
    plan::Seen,
    record::{Later, Phase, Shows, Staged, Terms},
    sight,
};
use larder_host::paths::TargetPath;
use larder_model::{
    AccessMode, AccessType, Cx, MountAccess, Result, VolumeCapability, VolumeId,
    backend::Attachment, volume::Attributes,
};
use std::{path::Path, sync::Arc};

impl Executor {
    /// What is connected for a volume of which no record is left, and what its mounts look like;
    /// None: nothing is.
    ///
    /// # Errors
    /// Those of [`larder_model::Connect::find`].
    pub(super) async fn identify(
        self: &Arc<Self>,
        id: &VolumeId,
        cx: &Cx,
    ) -> Result<Option<(Shows, Attachment)>> {
        cx.step("find what is connected")?;
        let Some((source, attachment)) = self.backend.connect().find(id).await? else {
            return Ok(None);
        };
        let id = id.clone();
        let shows = self
            .blocking(move |this| {
                let shows = sight::shows(&this.host, &source)?;
                this.above(&id, shows)
            })
            .await?;
        Ok(Some((shows, attachment)))
    }

    /// What a mount looks like that is at the very path which a caller names for the volume, where volumes
    /// like it are network mounts. Neither their server nor the table tells more than the caller. None: it
    /// is none, or the place of another volume.
    ///
    /// # Errors
    /// As [`larder_host::Mounts::table`]; those of [`super::record::Store::all`].
    pub(super) async fn named_by_path(
        self: &Arc<Self>,
        id: &VolumeId,
        volume: &str,
        path: &TargetPath,
    ) -> Result<Option<Shows>> {
        let kinds = self.backend.connect().mounted_as(id);
        if kinds.is_empty() {
            return Ok(None);
        }
        let (volume, path) = (volume.to_owned(), path.as_path().to_owned());
        self.blocking(move |this| {
            let top = this.host.mounts.mounts_at(&path)?.pop();
            let Some(top) = top.filter(|top| kinds.contains(&&*top.fs_type)) else {
                return Ok(None);
            };
            let (records, _) = this.store.all()?;
            let mut others = records.iter().filter(|record| record.volume != volume);
            let of_another = others.any(|record| {
                let staged = record.staged.as_ref().is_some_and(|staged| staged.path == path);
                this.store.is_current(record) && (staged || record.publication(&path).is_some())
            });
            let (fs_type, source) = (top.fs_type, top.source);
            let shows = Shows::FileSystem { fs_type, source, shown: None, mounting: false };
            Ok((!of_another).then_some(shows))
        })
        .await
    }

    /// What a record would tell of the volume that is at `path`; None: it is not there. `staging` is
    /// where the caller says that it is staged, `block` how the caller says that it is used.
    ///
    /// # Errors
    /// Those of [`larder_model::Connect::find`]; `NotFound` for an id that cannot be ours.
    pub(super) async fn staged_without_record(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
        staging: Option<&Path>,
        block: bool,
    ) -> Result<Option<(VolumeId, Staged)>> {
        let id = match self.inline_behind(volume).await? {
            Some(id) => id,
            None => self.parse(volume)?,
        };
        let at = {
            let path = path.clone();
            self.blocking(move |this| this.see(path.as_path(), None, None)).await?
        };
        // A raw device is staged without a mount: its staging path is an empty directory.
        let raw = block && matches!(at, Seen::Directory { empty: true });
        if !raw && !matches!(at, Seen::Unknown | Seen::Obstacle(_)) {
            return Ok(None);
        }
        let Some((shows, attachment)) = self.identify(&id, &Cx::new()).await? else {
            return Ok(None);
        };
        let (opened, path, staging) = (id.clone(), path.clone(), staging.map(Path::to_owned));
        let staged = self
            .blocking(move |this| {
                let shown = |path: &Path| this.see_shown(path, &shows);
                let path = path.as_path();
                if !raw && !shown(path)?.is_ours() {
                    return Ok(None);
                }
                let is_node = this.host.mounts.block_device(path).is_ok();
                let access = if raw || is_node {
                    AccessType::Block
                } else {
                    AccessType::Mount(MountAccess::default())
                };
                let staging = match staging.as_deref() {
                    Some(staging) if shown(staging)?.is_ours() => staging,
                    _ => path,
                };
                let top = this.host.mounts.top_at(staging)?;
                let capability = VolumeCapability { access, mode: AccessMode::SingleNodeWriter };
                let encrypted = this.is_opened_as(&opened, &shows)?;
                Ok(Some(Staged {
                    phase: Phase::Staged,
                    path: staging.to_owned(),
                    terms: Terms::new(&capability, &Attributes::new()),
                    attachment: Some(attachment),
                    shows: Some(shows),
                    root: None,
                    reader: top.is_some_and(|entry| entry.is_read_only()),
                    encrypted,
                    later: Later::new(),
                }))
            })
            .await?;
        Ok(staged.map(|staged| (id, staged)))
    }
}
