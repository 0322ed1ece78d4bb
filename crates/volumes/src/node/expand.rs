//! Growth: the control plane made the volume larger, this node catches up.

use super::{
    ExpandRequest,
    executor::Executor,
    plan::Seen,
    record::{Phase, Record, Shows, Staged},
};
use larder_host::paths::TargetPath;
use larder_model::{Bytes, Cx, Fault, FsType, Kind, Result, VolumeId, volume::Attributes};
use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

impl Executor {
    /// See [`super::NodeEngine::expand`].
    pub(super) async fn expand(
        self: &Arc<Self>,
        request: ExpandRequest,
        path: &TargetPath,
        cx: &Cx,
    ) -> Result<Bytes> {
        let (id, staged) = self.staged_at(&request, path).await?;
        if let Some(capability) = &request.capability {
            // Here CSI has INVALID_ARGUMENT for what staging answers with FAILED_PRECONDITION.
            let invalid = |fault: Fault| fault.with_kind(Kind::Invalid).during("grow");
            self.asked(capability, &Attributes::new()).map_err(invalid)?;
            if capability.is_block() != staged.terms.block {
                return Err(Fault::invalid(
                    "grow: it is used in another way than the capability says",
                ));
            }
        }
        let Some(attachment) = &staged.attachment else {
            return Err(
                Fault::precondition("grow: it is not connected").hint("stage the volume first")
            );
        };
        cx.step("make the new size visible")?;
        let size = self.backend.connect().refresh_size(&id, attachment, cx).await?;
        if !request.range.contains(size) {
            let wanted = if size < request.range.required {
                format!("at least {} is asked for", request.range.required)
            } else {
                format!("at most {} is allowed", request.range.limit.unwrap_or_default())
            };
            return Err(Fault::out_of_range(format!("grow: it is {size} large, {wanted}"))
                .hint("the control plane grows a volume first (ControllerExpandVolume)"));
        }
        if staged.encrypted {
            self.grow_opened(&id, &request.secrets, cx).await?;
        }
        if let (Some(Shows::Device { path: device, .. }), false) =
            (&staged.shows, staged.terms.block)
        {
            if staged.reader {
                return Err(Fault::precondition("grow the file system: it is staged for reading")
                    .hint("it grows when the volume is next staged for writing"));
            }
            let (device, staging, cx) = (device.clone(), staged.path.clone(), cx.clone());
            self.blocking(move |this| {
                let Some(fs) = this.mounted_fs(&staging)? else {
                    return Err(Fault::precondition(format!(
                        "grow the file system: it is not mounted at {}",
                        staging.display()
                    ))
                    .hint("stage the volume first"));
                };
                this.grow_mounted(&device, fs, &staging, true, &cx)
            })
            .await?;
        }
        Ok(size)
    }

    /// The staging of a volume that is at `path`.
    async fn staged_at(
        self: &Arc<Self>,
        request: &ExpandRequest,
        path: &TargetPath,
    ) -> Result<(VolumeId, Staged)> {
        let volume = &request.volume;
        let loaded: Option<(Record, Seen)> = {
            let (volume, path) = (volume.to_owned(), path.clone());
            self.blocking(move |this| {
                let Some(record) = this.store.load(&volume)?.filter(|r| r.staged.is_some()) else {
                    return Ok(None);
                };
                let seen = this.see_volume(&record, path.as_path())?;
                Ok(Some((record, seen)))
            })
            .await?
        };
        let not_there = |why: &str| {
            Fault::not_found(format!("find the volume at {path}: {why}"))
                .hint("stage and publish the volume first")
        };
        match loaded {
            Some((record, seen)) => {
                let id = self.id_of(&record)?;
                let staged = record.staged.filter(|staged| staged.phase == Phase::Staged);
                let staged = staged.ok_or_else(|| not_there("it is not staged"))?;
                let here = seen.is_ours() || (staged.terms.block && staged.path == path.as_path());
                if here { Ok((id, staged)) } else { Err(not_there("something else is there")) }
            }
            None => {
                let staging = request.staging_path.as_deref();
                let block = request.capability.as_ref().is_some_and(|c| c.is_block());
                // The records were wiped, and workloads go on using it.
                let found = self.staged_without_record(volume, path, staging, block).await?;
                if let Some(found) = found {
                    return Ok(found);
                }
                // Unknown volumes and unknown places are told apart for people, not by kind.
                let id = self.parse(volume)?;
                match self.backend.provision().get_volume(&id).await {
                    Ok(_) => Err(not_there("it is not staged on this node")),
                    Err(fault) if fault.kind() == Kind::NotFound => Err(fault),
                    Err(fault) => Err(fault),
                }
            }
        }
    }

    /// What is at a path that shall show the volume of `record`: a staging path, a target, or what
    /// a caller bound from a target (kubelet does, for raw devices).
    ///
    /// # Errors
    /// As [`super::sight::look`].
    pub(super) fn see_volume(&self, record: &Record, path: &Path) -> Result<Seen> {
        let staged = record.staged.as_ref();
        let seen = self.see_staged(path, staged, Some(false))?;
        Ok(self.or_its_node(seen, path, staged.and_then(|s| s.shows.as_ref())))
    }

    /// The same of a volume whose record is lost.
    ///
    /// # Errors
    /// As [`super::sight::look`].
    pub(super) fn see_shown(&self, path: &Path, shows: &Shows) -> Result<Seen> {
        let seen = self.see(path, Some((Some(shows), None)), Some(false))?;
        Ok(self.or_its_node(seen, path, Some(shows)))
    }

    /// A device node that was made or linked rather than bound is the volume, too.
    fn or_its_node(&self, seen: Seen, path: &Path, shows: Option<&Shows>) -> Seen {
        let Some(Shows::Device { number, .. }) = shows else { return seen };
        let is_it = matches!(seen, Seen::Obstacle(_))
            && self.host.mounts.block_device(path).is_ok_and(|device| device == (*number).into());
        if is_it { Seen::Ours { read_only: false } } else { seen }
    }

    /// A mounted file system becomes as large as its device. `found`: it was mounted before this call,
    /// and may have been grown by one that was killed.
    ///
    /// # Errors
    /// Those of [`larder_host::FileSystems::size`] and [`larder_host::FileSystems::grow`].
    pub(super) fn grow_mounted(
        &self,
        device: &Path,
        fs: FsType,
        mounted_at: &Path,
        found: bool,
        cx: &Cx,
    ) -> Result<()> {
        let grows = self.is_smaller_than_device(device, fs, Some(mounted_at))?;
        if grows {
            cx.step("grow the file system")?;
            self.host.filesystems.grow(device, fs, Some(mounted_at))?;
        }
        let (FsType::Xfs, true, Some(freezer)) = (fs, grows || found, &self.freezer) else {
            return Ok(());
        };
        // Older kernels (6.1 does, 6.18 does not) replay an xfs log against the size in the superblock
        // on the device. Where growth is in the log alone, and after it the first use of the new
        // space, a power cut leaves what cannot be mounted. So growth leaves the log before anybody
        // relies on it.
        cx.step("empty the log of the grown file system")?;
        if let Err(fault) = freezer.empty_log(mounted_at) {
            let path = mounted_at.display();
            tracing::warn!(%fault, %path, "the grown file system's log is emptied by the kernel later");
        }
        Ok(())
    }

    /// A file system that this process cannot grow once it is mounted becomes as large as its device
    /// before that. Others grow faster then.
    ///
    /// # Errors
    /// As [`Self::grow_mounted`].
    pub(super) fn grow_unmounted(&self, device: &Path, fs: FsType, cx: &Cx) -> Result<()> {
        if self.host.filesystems.grows_mounted(fs)
            || !self.is_smaller_than_device(device, fs, None)?
        {
            return Ok(());
        }
        cx.step("grow the file system")?;
        self.host.filesystems.grow(device, fs, None)
    }

    /// Whether a file system has room to grow on its device.
    ///
    /// # Errors
    /// Those of [`larder_host::FileSystems::size`].
    fn is_smaller_than_device(
        &self,
        device: &Path,
        fs: FsType,
        mounted_at: Option<&Path>,
    ) -> Result<bool> {
        let size = self.host.filesystems.size(device, fs, mounted_at)?;
        // File systems use whole blocks and keep a little at the end; growing what is large enough
        // changes nothing, but writes.
        let slack = Bytes::mib(1);
        Ok(size.saturating_add(slack) < device_size(device)?)
    }
}

/// The size of a block device.
///
/// # Errors
/// See [`Fault::io`].
pub(super) fn device_size(device: &Path) -> Result<Bytes> {
    File::open(device)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .map(Bytes::new)
        .map_err(|e| Fault::io(format!("measure device {}", device.display()), e))
}
