//! How full volumes are. Kubelet asks for every volume of every pod once a minute.

use super::{
    Usage, VolumeStats,
    executor::Executor,
    expand::device_size,
    record::{Record, Shows},
};
use larder_host::paths::TargetPath;
use larder_model::{Fault, Result, volume::VolumeUsage};
use std::{path::PathBuf, sync::Arc};

/// Where the figures come from.
enum Found {
    Here(VolumeStats),
    /// Mounted; the backend may know better than statfs.
    Ask(Box<Record>, PathBuf),
}

impl Executor {
    /// See [`super::NodeEngine::stats`].
    pub(super) async fn stats(
        self: &Arc<Self>,
        volume: &str,
        path: &TargetPath,
    ) -> Result<VolumeStats> {
        let found = {
            let (volume, path) = (volume.to_owned(), path.clone());
            self.blocking(move |this| this.look_for_stats(&volume, &path)).await?
        };
        let (record, path) = match found {
            Found::Here(stats) => return Ok(stats),
            Found::Ask(record, path) => (record, path),
        };
        let id = self.id_of(&record)?;
        if let Some(usage) = self.backend.connect().usage(&id).await? {
            return Ok(from_backend(usage));
        }
        self.blocking(move |this| this.statfs(&path)).await
    }

    fn look_for_stats(&self, volume: &str, path: &TargetPath) -> Result<Found> {
        let path = path.as_path();
        let nothing = || {
            Fault::not_found(format!("find it at {}", path.display()))
                .hint("it is neither staged nor published there")
        };
        let record = self.store.load(volume)?.ok_or_else(nothing)?;
        let staged = record.staged.as_ref().ok_or_else(nothing)?;
        if !self.see_volume(&record, path)?.is_ours() {
            return Err(nothing());
        }
        match &staged.shows {
            Some(Shows::Device { path: device, .. }) if staged.terms.block => {
                Ok(Found::Here(VolumeStats::Block { total: device_size(device)? }))
            }
            // A device's file system is the volume's alone: statfs is right about it.
            Some(Shows::Device { .. }) => self.statfs(path).map(Found::Here),
            _ => Ok(Found::Ask(Box::new(record), path.to_owned())),
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
