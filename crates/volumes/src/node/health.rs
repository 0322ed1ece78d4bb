//! What is wrong with a volume on this node.

use super::{
    HealthRequest, VolumeHealth,
    executor::Executor,
    plan::Seen,
    record::{Phase, Record, Shows},
    sight,
    stale::STALE,
};
use larder_host::MountEntry;
use larder_model::{
    Kind, Result, VolumeId,
    backend::Attachment,
    volume::{HealthEntry, HealthStatus},
};
use std::{path::Path, sync::Arc};

fn entry(status: HealthStatus, reason: &'static str, message: String) -> HealthEntry {
    HealthEntry { status, reason, message }
}

impl Executor {
    /// See [`super::NodeEngine::volume_health`].
    pub(super) async fn volume_health(
        self: &Arc<Self>,
        request: HealthRequest,
    ) -> Result<VolumeHealth> {
        let volume = request.volume.clone();
        let (record, found) = self
            .blocking(move |this| {
                let record = this.store.load(&request.volume)?;
                let found = match &record {
                    Some(record) => this.mount_health(record, &request)?,
                    None => Vec::new(),
                };
                Ok((record, found))
            })
            .await?;
        let (id, attachment) = match &record {
            Some(record) => {
                let staged = record.staged.as_ref();
                (self.id_of(record)?, staged.and_then(|staged| staged.attachment.clone()))
            }
            None => (self.parse(&volume)?, None),
        };
        self.with_backend(found, &id, attachment.as_ref()).await
    }

    /// What the mounts of a volume tell, and what its backend does.
    pub(super) async fn with_backend(
        &self,
        mut found: VolumeHealth,
        id: &VolumeId,
        attachment: Option<&Attachment>,
    ) -> Result<VolumeHealth> {
        found.extend(self.backend.connect().node_health(id, attachment).await?);
        // CSI: a pair of status and reason stands once per volume.
        let mut seen = Vec::new();
        found.retain(|entry| {
            let new = !seen.contains(&(entry.status, entry.reason));
            seen.push((entry.status, entry.reason));
            new
        });
        Ok(found)
    }

    pub(super) fn mount_health(
        &self,
        record: &Record,
        request: &HealthRequest,
    ) -> Result<VolumeHealth> {
        let mut found = Vec::new();
        let Some(staged) = &record.staged else { return Ok(found) };
        match staged.phase {
            Phase::Staged => {}
            Phase::Staging => found.push(entry(
                HealthStatus::Degraded,
                "StagingUnfinished",
                format!("staging at {} was begun and has not ended", staged.path.display()),
            )),
            Phase::Unstaging => found.push(entry(
                HealthStatus::Degraded,
                "UnstagingUnfinished",
                format!("unstaging from {} was begun and has not ended", staged.path.display()),
            )),
        }
        let asked = |path: &Option<std::path::PathBuf>, there: &Path| {
            path.as_ref().is_none_or(|path| path == there)
        };
        if staged.phase == Phase::Staged && !staged.terms.block {
            if asked(&request.staging_path, &staged.path) {
                self.check_mount(record, &staged.path, "Staging", staged.reader, &mut found)?;
            } else if let Some(path) = &request.staging_path {
                found.push(entry(
                    HealthStatus::Inaccessible,
                    "StagedElsewhere",
                    format!("it is staged at {}, not at {}", staged.path.display(), path.display()),
                ));
            }
        }
        for publication in &record.publications {
            if asked(&request.publish_path, &publication.target) {
                let reader = staged.reader || publication.readonly;
                self.check_mount(record, &publication.target, "Publish", reader, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Whether the volume is mounted at `path` as it should be.
    fn check_mount(
        &self,
        record: &Record,
        path: &Path,
        what: &'static str,
        reader: bool,
        found: &mut VolumeHealth,
    ) -> Result<()> {
        let staging = what == "Staging";
        let at = path.display();
        match self.see_volume(record, path)? {
            Seen::Ours { .. } | Seen::Unknown => {}
            Seen::Foreign(other) => {
                let reason = if staging { "StagingOvermounted" } else { "TargetOvermounted" };
                let message = format!("{other} is mounted over it at {at}; unmount that");
                found.push(entry(HealthStatus::Inaccessible, reason, message));
                return Ok(());
            }
            _ => {
                let reason = if staging { "StagingMountMissing" } else { "TargetMountMissing" };
                let message = format!("it is no longer mounted at {at}; restart the workload");
                found.push(entry(HealthStatus::Inaccessible, reason, message));
                return Ok(());
            }
        }
        let block = record.staged.as_ref().is_some_and(|staged| staged.terms.block);
        let network =
            record.staged.as_ref().and_then(|s| s.shows.as_ref()).is_some_and(Shows::is_network);
        let Some(top) = sight::top_at(&self.host, path, network)?.filter(|_| !block) else {
            return Ok(());
        };
        if is_deleted(&top) {
            let message = format!("what is mounted at {at} was deleted under it");
            found.push(entry(HealthStatus::DataLoss, "DirectoryDeleted", message));
        }
        if top.is_read_only() && !reader {
            let message = format!(
                "it is read-only at {at} although it was mounted for writing: the kernel does that \
                 when a file system has errors; look at the kernel log"
            );
            found.push(entry(HealthStatus::Degraded, "MountReadOnly", message));
        }
        match self.host.filesystems.usage(path) {
            Ok(_) => {}
            Err(fault) if network && fault.os_error() == Some(STALE) => {
                let message = format!(
                    "what is mounted at {at} is gone from its server: {fault}; restart the workload, \
                     which mounts it anew"
                );
                found.push(entry(HealthStatus::Inaccessible, "MountStale", message));
            }
            Err(fault) if network && fault.kind() == Kind::Unavailable => {
                let message = format!("its server does not answer: {fault}");
                found.push(entry(HealthStatus::Inaccessible, "ServerUnreachable", message));
            }
            Err(fault) => {
                let message = format!("its file system does not answer at {at}: {fault}");
                found.push(entry(HealthStatus::Inaccessible, "FileSystemFailed", message));
            }
        }
        Ok(())
    }
}

/// The kernel marks the root of a bind mount whose directory was removed.
fn is_deleted(entry: &MountEntry) -> bool {
    entry.root.as_os_str().as_encoded_bytes().ends_with(b"//deleted")
}
