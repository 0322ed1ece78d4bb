//! Unstaging: unmount, prove that nobody uses the device, disconnect, forget.
//!
//! The order is the point. A device that is let go while somebody still writes to it (a mount in
//! another namespace, an open descriptor, a device mapper target) loses data or is handed out twice,
//! so the call fails instead, and says who.

use super::{
    executor::Executor,
    plan::{self, Seen, UnstageSeen, UnstageStep},
    record::{Phase, Record, Root, Shows, Staged},
    sight,
};
use larder_host::{DeviceId, DeviceUser, paths::TargetPath};
use larder_model::{Cx, Fault, Kind, Result, VolumeId, backend::Attachment};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// udev and blkid open a device for a moment when its mount ends, and the mounts of a container that
/// ends go a little later than its processes: users are looked for this often, each time after a
/// longer pause, 1 s in all, which is less than a caller's patience.
const PATIENCE: u32 = 7;

/// What unstaging works with.
struct Work {
    record: Option<Record>,
    shows: Option<Shows>,
    root: Option<Root>,
    attachment: Option<Attachment>,
    at: Seen,
    published: Vec<PathBuf>,
}

impl Executor {
    /// See [`super::NodeEngine::unstage`].
    pub(super) async fn unstage(
        self: &Arc<Self>,
        id: &VolumeId,
        volume: &str,
        path: &TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        let mut work = self.look_before_unstage(id, volume, path, None).await?;
        if work.at == Seen::Unknown {
            // The records were wiped, or were never completed.
            let found = match self.named_by_path(id, volume, path).await? {
                Some(shows) => Some((shows, None)),
                None => self.identified(id, path, cx).await?,
            };
            if found.is_some() {
                work = self.look_before_unstage(id, volume, path, found).await?;
            }
        }
        let steps = {
            let published: Vec<_> = work.published.iter().map(PathBuf::as_path).collect();
            let staged = work.record.as_ref().and_then(|record| record.staged.as_ref());
            let seen = UnstageSeen { staged, at: &work.at, published: &published };
            plan::unstage(seen, path.as_path())?
        };
        for step in steps {
            match step {
                UnstageStep::Record => {
                    cx.step("record that the volume is being unstaged")?;
                    if let Some(record) = &mut work.record {
                        if let Some(staged) = &mut record.staged {
                            staged.phase = Phase::Unstaging;
                        }
                        record.publications.clear(); // None of them stands.
                        let record = record.clone();
                        self.blocking(move |this| this.store.save_less(&record)).await?;
                    }
                }
                UnstageStep::Unmount => {
                    // A loop device goes with its last mount, and its number is free at that moment.
                    // What is flushed now is not held to them either.
                    self.lift(id, work.shows.as_ref(), work.attachment.as_ref(), cx).await?;
                    cx.step("unmount the staging path")?;
                    let (path, shows, root) = (path.clone(), work.shows.clone(), work.root);
                    let unmounted = self.blocking(move |this| {
                        this.unmount_ours(path.as_path(), shows.as_ref(), root.as_ref())
                    });
                    if let Err(fault) = unmounted.await {
                        self.hold_again(id, cx).await;
                        return Err(fault);
                    }
                }
                UnstageStep::ProveUnused => {
                    cx.step("make sure that nobody uses the device")?;
                    if let Some(Shows::Device { number, .. }) = &work.shows {
                        let device = DeviceId::from(*number);
                        let unused = self.prove_unused(id, device, &work).await;
                        if let Err(fault) = unused {
                            self.hold_again(id, cx).await;
                            return Err(fault);
                        }
                    }
                }
                UnstageStep::Disconnect => {
                    self.lift(id, work.shows.as_ref(), work.attachment.as_ref(), cx).await?;
                    cx.step("disconnect the volume")?;
                    self.disconnect(id, work.shows.as_ref(), work.attachment.as_ref(), cx).await?;
                }
                UnstageStep::Forget => {
                    let Some(mut record) = work.record.take() else { continue };
                    cx.step("forget the staging")?;
                    record.staged = None;
                    self.blocking(move |this| this.store.save_or_forget(&record)).await?;
                }
            }
        }
        Ok(())
    }

    /// What the backend has connected, and what its mounts look like.
    async fn identified(
        self: &Arc<Self>,
        id: &VolumeId,
        path: &TargetPath,
        cx: &Cx,
    ) -> Result<Option<(Shows, Option<Attachment>)>> {
        let found = self.identify(id, cx).await.map_err(|fault| {
            let kind = match fault.kind() {
                Kind::NotFound => Kind::Precondition,
                kind => kind,
            };
            fault.during(format!("find out whether {path} shows this volume")).with_kind(kind)
        })?;
        Ok(found.map(|(shows, attachment)| (shows, Some(attachment))))
    }

    async fn look_before_unstage(
        self: &Arc<Self>,
        id: &VolumeId,
        volume: &str,
        path: &TargetPath,
        identified: Option<(Shows, Option<Attachment>)>,
    ) -> Result<Work> {
        let record = {
            let volume = volume.to_owned();
            self.blocking(move |this| this.store.load(&volume)).await?
        };
        let staged = record.as_ref().and_then(|record| record.staged.as_ref());
        // The number of a device that went with its last mount may be another volume's by now, whose
        // mounts say nothing about this one.
        let stale = match staged {
            Some(
                staged @ Staged { attachment: Some(_), shows: Some(Shows::Device { .. }), .. },
            ) => !self.is_connected(id, staged).await?,
            _ => false,
        };
        let path = path.clone();
        self.blocking(move |this| {
            let staged = record.as_ref().and_then(|record| record.staged.as_ref());
            let (identified, found) = identified.unzip();
            let shows = staged.and_then(|staged| staged.shows.clone()).or(identified);
            let root = staged.and_then(|staged| staged.root);
            let attachment =
                staged.and_then(|staged| staged.attachment.clone()).or(found.flatten());
            let known = shows.as_ref().map(|shows| (Some(shows), root.as_ref()));
            let at = this.see(path.as_path(), known, Some(false))?;
            let mut published: Vec<PathBuf> = match &record {
                Some(record) => this.standing(record)?.iter().map(|p| p.target.clone()).collect(),
                None => Vec::new(),
            };
            let staged_here = staged.is_none_or(|staged| staged.path == path.as_path());
            // Another volume may be the same directory of a server (two PersistentVolumes of one share, a
            // mount of the host's own), and nothing in the table tells the two apart.
            let telling = |shows: &&Shows| staged_here && !stale && !shows.is_network();
            if let Some(shows) = shows.as_ref().filter(telling) {
                // Mounts that no record tells of; better found before anything is unmounted.
                for entry in this.host.mounts.table()? {
                    let known = entry.target == path.as_path() || published.contains(&entry.target);
                    if !known && sight::matches(shows, &entry) {
                        published.push(entry.target);
                    }
                }
            }
            Ok(Work { shows, root, attachment, at, published, record })
        })
        .await
    }

    /// Returns once nobody uses the device, in any mount namespace.
    async fn prove_unused(
        self: &Arc<Self>,
        id: &VolumeId,
        device: DeviceId,
        work: &Work,
    ) -> Result<()> {
        let connect = self.backend.connect();
        let staged = work.record.as_ref().and_then(|record| record.staged.as_ref());
        for attempt in 1.. {
            // A loop device with autoclear is gone with its last user, and its number may be
            // somebody else's by now.
            let connected = match (staged, &work.attachment) {
                (Some(staged), Some(_)) => self.is_connected(id, staged).await?,
                (None, Some(attachment)) => connect.is_connected(id, attachment).await?,
                (_, None) => true,
            };
            if !connected {
                return Ok(());
            }
            let users = self.blocking(move |this| this.host.mounts.users_of_device(device)).await?;
            let me = std::process::id();
            let mut users: Vec<DeviceUser> = users
                .into_iter()
                .filter(|user| !matches!(user, DeviceUser::Opener { pid, .. } if *pid == me))
                .collect();
            if users.is_empty() {
                return Ok(());
            }
            if attempt < PATIENCE {
                tokio::time::sleep(Duration::from_millis(50) * attempt).await;
                continue;
            }
            users.sort();
            let names: Vec<_> = users.iter().take(5).map(DeviceUser::to_string).collect();
            let more = users.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(Fault::precondition(format!(
                "let go of device {device}: it is {}{more}",
                names.join("; ")
            ))
            .hint("end those users; the call is then repeated"));
        }
        Ok(())
    }
}
