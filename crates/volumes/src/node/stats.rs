//! How full volumes are. Kubelet asks for every volume of every pod once a minute.

use super::{
    Usage, VolumeStats,
    executor::Executor,
    expand::device_size,
    record::{Shows, Staged},
};
use larder_host::paths::TargetPath;
use larder_model::{Fault, Result, VolumeId, volume::VolumeUsage};
use std::sync::Arc;

impl Executor {
    /// See [`super::NodeEngine::stats`].
    pub(super) async fn stats(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
    ) -> Result<VolumeStats> {
        let (id, staged) = self.look_for_stats(volume, path).await?;
        let path = path.as_path().to_owned();
        match staged.shows {
            Some(Shows::Device { path: device, .. }) if staged.terms.block => {
                // Its number may be another volume's by now.
                let connected = match &staged.attachment {
                    Some(attachment) => {
                        self.backend.connect().is_connected(&id, attachment).await?
                    }
                    None => false,
                };
                if !connected {
                    return Err(Fault::not_found(format!(
                        "measure {}: it is no longer the volume's device",
                        device.display()
                    ))
                    .hint("unpublish and unstage the volume, then publish it again"));
                }
                self.blocking(move |_| Ok(VolumeStats::Block { total: device_size(&device)? }))
                    .await
            }
            // A device's file system is the volume's alone: statfs is right about it.
            Some(Shows::Device { .. }) => self.blocking(move |this| this.statfs(&path)).await,
            _ => match self.backend.connect().usage(&id).await? {
                Some(usage) => Ok(from_backend(usage)),
                None => self.blocking(move |this| this.statfs(&path)).await,
            },
        }
    }

    /// The volume and its staging, where it is at that path.
    async fn look_for_stats(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
    ) -> Result<(VolumeId, Staged)> {
        let nothing = || {
            Fault::not_found(format!("find it at {path}"))
                .hint("it is neither staged nor published there")
        };
        let recorded = {
            let (volume, path) = (volume.to_owned(), path.clone());
            self.blocking(move |this| {
                let Some(record) = this.store.load(&volume)? else { return Ok(None) };
                let Some(staged) = record.staged.clone() else { return Ok(None) };
                let here = this.see_volume(&record, path.as_path())?.is_ours();
                Ok(Some((record, here.then_some(staged))))
            })
            .await?
        };
        match recorded {
            Some((record, Some(staged))) => Ok((self.id_of(&record)?, staged)),
            Some((_, None)) => Err(nothing()),
            None => {
                self.staged_without_record(volume, path, None, false).await?.ok_or_else(nothing)
            }
        }
    }

    fn statfs(&self, path: &std::path::Path) -> Result<VolumeStats> {
        let usage = self.host.filesystems.usage(path)?;
        Ok(from_backend(VolumeUsage {
            total: usage.total,
            available: usage.available,
            used: usage.used,
            inodes: usage.inodes,
            inodes_free: usage.inodes_free,
            inodes_used: usage.inodes_used,
        }))
    }
}

fn from_backend(usage: VolumeUsage) -> VolumeStats {
    VolumeStats::Mounted {
        bytes: Usage {
            total: usage.total.get(),
            available: usage.available.get(),
            used: usage.used.get(),
        },
        inodes: Usage {
            total: usage.inodes,
            available: usage.inodes_free,
            used: usage.inodes_used,
        },
    }
}
