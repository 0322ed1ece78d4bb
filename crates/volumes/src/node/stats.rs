//! How full volumes are. Kubelet asks for every volume of every pod once a minute.

use super::{
    HealthRequest, Usage, VolumeHealth, VolumeStats,
    executor::Executor,
    expand::device_size,
    record::{Shows, Staged},
};
use larder_host::paths::TargetPath;
use larder_model::{Fault, Result, VolumeId, volume::VolumeUsage};
use std::sync::Arc;

/// A volume at a path, and what the first look has found out already.
struct Looked {
    id: VolumeId,
    staged: Staged,
    usage: Option<VolumeStats>,
    /// What its mounts tell; None: not asked, or there is no record of them.
    findings: Option<Result<VolumeHealth>>,
}

impl Executor {
    /// See [`super::NodeEngine::stats`].
    pub(super) async fn stats(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
    ) -> Result<VolumeStats> {
        let looked = self.look_for_stats(volume, path, false).await?;
        self.measure(&looked, path).await
    }

    /// See [`super::NodeEngine::stats_and_health`].
    pub(super) async fn stats_and_health(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
    ) -> Result<(VolumeStats, Result<VolumeHealth>)> {
        let mut looked = self.look_for_stats(volume, path, true).await?;
        let findings = looked.findings.take().transpose();
        let health = async {
            let attachment = looked.staged.attachment.as_ref();
            self.with_backend(findings?.unwrap_or_default(), &looked.id, attachment).await
        };
        let (stats, health) = futures::future::join(self.measure(&looked, path), health).await;
        Ok((stats?, health))
    }

    /// What is not known by now of how full the volume is.
    async fn measure(self: &Arc<Self>, looked: &Looked, path: &TargetPath) -> Result<VolumeStats> {
        if let Some(usage) = looked.usage {
            return Ok(usage);
        }
        let (id, staged) = (&looked.id, &looked.staged);
        let path = path.as_path().to_owned();
        match staged.shows.clone() {
            Some(Shows::Device { path: device, .. }) if staged.terms.block => {
                // Its number may be another volume's by now.
                if !self.is_connected(id, staged).await? {
                    return Err(Fault::not_found(format!(
                        "measure {}: it is no longer the volume's device",
                        device.display()
                    ))
                    .hint("unpublish and unstage the volume, then publish it again"));
                }
                let device = device.clone();
                self.blocking(move |_| Ok(VolumeStats::Block { total: device_size(&device)? }))
                    .await
            }
            // A device's file system is the volume's alone: statfs is right about it.
            Some(Shows::Device { .. }) => self.blocking(move |this| this.statfs(&path)).await,
            _ => match self.backend.connect().usage(id).await? {
                Some(usage) => Ok(from_backend(usage)),
                None => self.blocking(move |this| this.statfs(&path)).await,
            },
        }
    }

    /// The volume and its staging, where it is at that path; with what its mounts tell of its health
    /// where that is `wanted` and a record tells of its mounts.
    async fn look_for_stats(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
        wanted: bool,
    ) -> Result<Looked> {
        let nothing = || {
            Fault::not_found(format!("find it at {path}"))
                .hint("it is neither staged nor published there")
        };
        let recorded = {
            let (volume, path) = (volume.to_owned(), path.clone());
            self.blocking(move |this| {
                let Some(record) = this.store.load(&volume)? else { return Ok(None) };
                let Some(staged) = record.staged.clone() else { return Ok(None) };
                if !this.see_volume(&record, path.as_path())?.is_ours() {
                    return Ok(Some(None));
                }
                let request = || HealthRequest {
                    volume,
                    publish_path: Some(path.as_path().to_owned()),
                    staging_path: None,
                };
                let findings = wanted.then(|| this.mount_health(&record, &request()));
                // A device's file system is the volume's alone: statfs is right about it.
                let is_device = matches!(staged.shows, Some(Shows::Device { .. }));
                let usage = match is_device && !staged.terms.block {
                    true => Some(this.statfs(path.as_path())?),
                    false => None,
                };
                let id = this.id_of(&record)?;
                Ok(Some(Some(Looked { id, staged, usage, findings })))
            })
            .await?
        };
        match recorded {
            Some(Some(looked)) => Ok(looked),
            Some(None) => Err(nothing()),
            None => {
                let found = self.staged_without_record(volume, path, None, false).await?;
                let (id, staged) = found.ok_or_else(nothing)?;
                Ok(Looked { id, staged, usage: None, findings: None })
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
