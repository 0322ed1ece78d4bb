//! Consistent copies of images, also while they are in use.
//!
//! ```text
//!                      can the pool share blocks (reflink)?
//!   in use            yes                               no
//!   ───────────────   ───────────────────────────────   ─────────────────────────────────────
//!   no                reflink                           sparse copy
//!   mounted           freeze, reflink, thaw             freeze, sparse copy, thaw; only while
//!                                                       little data is allocated
//!   raw block         sync the device, reflink          refused
//! ```
//! Why this is consistent:
//! - a frozen file system has written everything and changes nothing until it is thawed; the
//!   [`Freezer`] tells when its watchdog thawed too early, and the copy is thrown away then;
//! - `FICLONE` holds both files' inode locks and waits for direct I/O in flight (xfs and btrfs), so
//!   it is atomic against the loop driver's writes: for a raw block device the copy is what a power
//!   cut at that moment would have left (crash-consistent), and the sync before it makes sure that
//!   everything written before the call is in it. A sparse copy of a device that is being written
//!   would be a mixture of moments, which no recovery can mend: it is refused;
//! - a volume that nobody used when the copy began is looked at again when it ends. Was it attached
//!   or written meanwhile, the copy is made anew.
//!
//! A copy must own its blocks when it lies in another pool or was asked for as preallocated. A live
//! volume is then frozen only for a reflink *aside*, a file without a name that no crash can leave
//! behind, and copied from that.

use larder_host::{DeviceUser, Host, LoopInfo, copy, freeze::Freezer, freeze::Frozen};
use larder_model::{Bytes, Cx, Fault, Kind, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::mounted::{self, Top};

/// How long, and for how much, writers may be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreezeLimits {
    /// The watchdog thaws after this time, whatever happens.
    pub deadline: Duration,
    /// The most allocated data that is copied from a frozen file system where the pool cannot
    /// share blocks.
    pub copied: Bytes,
}

impl Default for FreezeLimits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), copied: Bytes::mib(256) }
    }
}

/// How often a volume may come into use or go out of it during one copy.
const ATTEMPTS: u32 = 6;

/// What a copy is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Consistency {
    /// Nobody used the volume.
    Clean,
    /// Its file system was frozen: like a clean unmount, but for a log to replay.
    Frozen,
    /// As after a power cut.
    Crash,
}

/// How blocks can be shared between the image and its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The copy is a reflink.
    Direct,
    /// The image can be reflinked where it lies, but the copy must own its blocks.
    Aside,
    /// Not at all.
    Impossible,
}

impl Sharing {
    fn next(self) -> Self {
        match self {
            Self::Direct => Self::Aside,
            Self::Aside | Self::Impossible => Self::Impossible,
        }
    }
}

/// A copy to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    /// The image.
    pub(crate) from: &'a Path,
    /// Whose image it is, for messages.
    pub(crate) whose: &'a str,
    /// A name that does not exist.
    pub(crate) to: &'a Path,
    /// What is possible.
    pub(crate) sharing: Sharing,
}

/// A device over the image.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) info: LoopInfo,
    pub(crate) top: Top,
    users: Vec<DeviceUser>,
}

impl Device {
    pub(crate) fn is_mounted(&self) -> bool {
        self.users.iter().any(|u| matches!(u, DeviceUser::Mount { .. }))
    }
}

/// What was seen of an image.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) allocated: Bytes,
    /// `(device, inode, size, mtime)`: changes when something is written to the file.
    pub(crate) version: (u64, u64, u64, i64, i64),
    /// Those that can write.
    pub(crate) writers: Vec<Device>,
}

impl Seen {
    pub(crate) fn use_of(&self) -> Vec<(u32, bool)> {
        self.writers.iter().map(|d| (d.info.number, d.is_mounted())).collect()
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    sharing: Sharing,
    /// Devices whose file systems are frozen.
    freeze: Vec<u32>,
    /// Devices that are synced.
    sync: Vec<u32>,
    consistency: Consistency,
}

/// Decides how to copy what was seen.
fn decide(seen: &Seen, sharing: Sharing, whose: &str, limit: Bytes) -> Result<Way> {
    let numbers = |mounted: bool| -> Vec<u32> {
        let those = seen.writers.iter().filter(|d| d.is_mounted() == mounted);
        those.map(|d| d.info.number).collect()
    };
    let (freeze, sync) = (numbers(true), numbers(false));
    let consistency = match (freeze.is_empty(), sync.is_empty()) {
        (true, true) => Consistency::Clean,
        (false, true) => Consistency::Frozen,
        (_, false) => Consistency::Crash,
    };
    let hint = "stop its workload first, or keep volumes in a pool on xfs (with reflink) or btrfs";
    if sharing == Sharing::Impossible && consistency == Consistency::Crash {
        return Err(Fault::precondition(format!(
            "copy {whose}: it is in use as a raw block device, and its pool cannot share blocks"
        ))
        .hint(hint));
    }
    if sharing == Sharing::Impossible && !freeze.is_empty() && seen.allocated > limit {
        return Err(Fault::precondition(format!(
            "copy {whose}: it is mounted, its pool cannot share blocks, and copying its {} would \
             stop its workload for too long (the limit is {limit})",
            seen.allocated
        ))
        .hint(hint));
    }
    // What nobody writes need not be set aside first.
    let sharing = match sharing {
        Sharing::Aside if seen.writers.is_empty() => Sharing::Impossible,
        sharing => sharing,
    };
    Ok(Way { sharing, freeze, sync, consistency })
}

/// Makes copies.
#[derive(Clone)]
pub(crate) struct Copier {
    pub(crate) host: Host,
    pub(crate) freezer: Arc<Freezer>,
    pub(crate) limits: FreezeLimits,
}

impl Copier {
    /// Copies an image, durably.
    ///
    /// # Errors
    /// `Precondition` (writes cannot be held back), `Exhausted`, `Unavailable` (it came into use again
    /// and again), I/O. Nothing is left at the target.
    pub(crate) fn copy(&self, job: &Job<'_>, cx: &Cx) -> Result<Consistency> {
        let mut sharing = job.sharing;
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            cx.step("look who uses the volume")?;
            let seen = self.observe(job.from)?;
            let way = decide(&seen, sharing, job.whose, self.limits.copied)?;
            match self.carry_out(job, &seen, &way, cx) {
                Ok(true) => {}
                // What the pool can do does not hold for this pair of files: another file system.
                Ok(false) => {
                    sharing = sharing.next();
                    continue;
                }
                Err(fault) if fault.is_simulated_crash() => return Err(fault),
                Err(fault) => {
                    // Staged or unstaged at this moment: the plan was wrong, or a device went away
                    // while it was flushed (its number may be in use again by now).
                    let changed = self.observe(job.from)?.use_of() != seen.use_of();
                    let went = !way.sync.is_empty()
                        && matches!(fault.kind(), Kind::Internal | Kind::NotFound);
                    if !changed && !went {
                        return Err(fault);
                    }
                    failed = Some(fault);
                    continue;
                }
            }
            if way.consistency == Consistency::Crash {
                return Ok(way.consistency);
            }
            let after = self.observe(job.from)?;
            let holds = match way.consistency {
                Consistency::Clean => after.writers.is_empty() && after.version == seen.version,
                // What was frozen is found by its path: unstaged at that moment it was another file
                // system, and the image may have been written to by its next user.
                _ => after.use_of() == seen.use_of(),
            };
            if holds {
                return Ok(way.consistency);
            }
            remove(job.to)?;
        }
        Err(failed.unwrap_or_else(|| {
            Fault::unavailable(format!("copy {}: it came into use while it was copied", job.whose))
                .hint("ask again")
        }))
    }

    pub(crate) fn observe(&self, image: &Path) -> Result<Seen> {
        let mut writers = Vec::new();
        for info in self.host.loops.find(image)? {
            if !info.read_only {
                let top = Top::of(&info)?;
                // Mounted where it can be frozen: nothing more is wanted of its users, and looking
                // through all processes of the machine takes longer than the copy.
                let users = match mounted::own(&self.host, &top)? {
                    Some(target) => {
                        vec![DeviceUser::Mount { pid: std::process::id(), namespace: 0, target }]
                    }
                    None => self.host.mounts.users_of_device(top.device)?,
                };
                writers.push(Device { info, top, users });
            }
        }
        let meta = std::fs::symlink_metadata(image)
            .map_err(|e| Fault::io(format!("look at image {}", image.display()), e))?;
        Ok(Seen {
            allocated: Bytes::new(meta.blocks().saturating_mul(512)),
            version: (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
            writers,
        })
    }

    /// Copies; false where blocks cannot be shared after all (nothing is left then).
    fn carry_out(&self, job: &Job<'_>, seen: &Seen, way: &Way, cx: &Cx) -> Result<bool> {
        let result = match way.sharing {
            Sharing::Direct => self
                .while_held(seen, way, cx, || {
                    cx.step("share the image's blocks")?;
                    copy::reflink_hidden(job.from, job.to)
                })
                // Writers need not wait until the copy is on disk.
                .and_then(|hidden| match hidden {
                    Some(hidden) => hidden.publish().map(|()| true),
                    None => Ok(false),
                }),
            Sharing::Aside => self
                .while_held(seen, way, cx, || {
                    cx.step("share the image's blocks")?;
                    copy::reflink_unnamed(job.from)
                })
                .map_err(|fault| if is_one_place(job) { fault } else { fault.elsewhere() })
                .and_then(|aside| match aside {
                    None => Ok(false),
                    Some(aside) => {
                        cx.step("copy the image")?;
                        let path = format!("/proc/self/fd/{}", aside.as_raw_fd());
                        copy::sparse(Path::new(&path), job.to, cx).map(|()| true)
                    }
                }),
            Sharing::Impossible => self.while_held(seen, way, cx, || {
                cx.step("copy the image")?;
                copy::sparse(job.from, job.to, cx).map(|()| true)
            }),
        };
        match result {
            Err(fault) if fault.is_simulated_crash() => Err(fault),
            Err(fault) => {
                remove(job.to)?;
                Err(fault.during(format!("copy {}", job.whose)))
            }
            done => done,
        }
    }

    /// Runs `work` while writers are held back.
    fn while_held<T>(
        &self,
        seen: &Seen,
        way: &Way,
        cx: &Cx,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        for device in seen.writers.iter().filter(|d| way.sync.contains(&d.info.number)) {
            cx.step("flush the raw block device")?;
            File::open(&device.top.path)
                .and_then(|f| f.sync_all())
                .map_err(|e| Fault::io(format!("flush {}", device.top.path.display()), e))?;
        }
        let to_freeze = seen.writers.iter().filter(|d| way.freeze.contains(&d.info.number));
        let frozen = self.freeze(to_freeze, cx)?;
        let done = work()?;
        if let Some(frozen) = frozen {
            cx.step("let writes go on")?;
            frozen.thaw().map_err(over)?;
        }
        Ok(done)
    }

    /// Holds back the writes to all of the devices at one moment; None: there are none.
    pub(crate) fn freeze<'a>(
        &self,
        devices: impl Iterator<Item = &'a Device>,
        cx: &Cx,
    ) -> Result<Option<Frozen>> {
        let mut places: Vec<PathBuf> = Vec::new();
        for device in devices {
            places.push(mounted::reach(&self.host, &device.top, &device.users)?);
        }
        if places.is_empty() {
            return Ok(None);
        }
        cx.step("hold back writes")?;
        // Its records lie elsewhere: a full /run is no want of space in the pool.
        self.freezer.freeze(&places, self.limits.deadline).map(Some).map_err(over)
    }
}

/// A freeze that took too long is over, and what was copied thrown away: no deadline of the call, after
/// which work would go on.
pub(crate) fn over(fault: Fault) -> Fault {
    let fault = fault.elsewhere();
    if fault.kind() == Kind::Deadline { fault.with_kind(Kind::Unavailable) } else { fault }
}

/// Whether image and copy lie on one file system: what is full on the one side is so on the other.
fn is_one_place(job: &Job<'_>) -> bool {
    let device = |path: Option<&Path>| path?.symlink_metadata().ok().map(|meta| meta.dev());
    device(Some(job.from)) == device(job.to.parent())
}

/// Removes a copy that is not wanted; absent: done.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::io(format!("remove the half-made copy {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_host::DeviceId;
    use rstest::rstest;

    const MOUNT: fn() -> DeviceUser =
        || DeviceUser::Mount { pid: 1, namespace: 1, target: "/m".into() };
    const OPENER: fn() -> DeviceUser =
        || DeviceUser::Opener { pid: 1, command: "dd".into(), fd: 3 };

    fn seen(allocated: Bytes, users: Option<Vec<DeviceUser>>) -> Seen {
        let info = LoopInfo {
            number: 7,
            path: "/dev/loop7".into(),
            device: DeviceId { major: 7, minor: 7 },
            backing_device: 1,
            backing_inode: 2,
            backing_file: None,
            deleted: false,
            read_only: false,
            autoclear: true,
            direct_io: true,
            sector_size: 512,
            size: Bytes::gib(1),
        };
        let writers = users.map(|users| {
            let top = Top { path: info.path.clone(), device: info.device };
            vec![Device { info, top, users }]
        });
        let writers = writers.unwrap_or_default();
        Seen { allocated, version: (0, 0, 0, 0, 0), writers }
    }

    #[rstest]
    #[case::unused(None, Consistency::Clean, [false, false])]
    #[case::mounted(Some(vec![MOUNT()]), Consistency::Frozen, [true, false])]
    #[case::mounted_and_looked_at(Some(vec![MOUNT(), OPENER()]), Consistency::Frozen, [true, false])]
    #[case::raw(Some(vec![OPENER()]), Consistency::Crash, [false, true])]
    #[case::attached_and_idle(Some(vec![]), Consistency::Crash, [false, true])]
    fn a_pool_with_reflink_copies_in_every_state(
        #[case] users: Option<Vec<DeviceUser>>,
        #[case] consistency: Consistency,
        #[case] held: [bool; 2],
    ) {
        for sharing in [Sharing::Direct, Sharing::Aside] {
            let way = decide(&seen(Bytes::gib(900), users.clone()), sharing, "x", Bytes::mib(1));
            let way = way.unwrap();
            assert_eq!(way.consistency, consistency);
            let unused = way.consistency == Consistency::Clean;
            assert_eq!(way.sharing == sharing, sharing == Sharing::Direct || !unused);
            assert_eq!([way.freeze == [7], way.sync == [7]], held);
        }
    }

    #[rstest]
    #[case::unused_and_large(None, Bytes::gib(900), None)]
    #[case::mounted_and_small(Some(vec![MOUNT()]), Bytes::mib(1), None)]
    #[case::mounted_and_large(Some(vec![MOUNT()]), Bytes::mib(2), Some(Kind::Precondition))]
    #[case::raw(Some(vec![OPENER()]), Bytes::ZERO, Some(Kind::Precondition))]
    #[case::attached_and_idle(Some(vec![]), Bytes::ZERO, Some(Kind::Precondition))]
    fn a_pool_without_reflink_copies_only_what_holds_still(
        #[case] users: Option<Vec<DeviceUser>>,
        #[case] allocated: Bytes,
        #[case] refused: Option<Kind>,
    ) {
        let way = decide(&seen(allocated, users), Sharing::Impossible, "x", Bytes::mib(1));
        assert_eq!(way.err().map(|fault| fault.kind()), refused);
    }
}
