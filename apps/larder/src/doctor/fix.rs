//! What mends a finding. Every fix can be repeated, checks once more what it acts on, and fails where
//! that is not what was found.

use super::encrypted;
use crate::{
    cli::Target,
    commands::{answer, mounts},
    config::Settings,
    session::Session,
    wiring,
};
use larder_host::{
    DeviceId, Host, MountEntry, Unmount, durable, loops::Backing, luks::Opened, sockets,
};
use larder_model::{DriverName, Fault, Limits, Result};
use larder_proto::csi;
use rustix::fs::OFlags;
use std::{
    fmt,
    fs::{OpenOptions, Permissions},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long what a start removes in the background may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What mends a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fix {
    /// The driver's start, which takes back what was not finished and removes what was deleted.
    Start {
        /// Which.
        driver: DriverName,
        /// Gone afterwards.
        gone: Vec<PathBuf>,
    },
    /// Thaws what is recorded as frozen.
    Thaw,
    /// Unmounts a mount of something that was removed.
    Unmount {
        /// Where.
        target: PathBuf,
        /// What must be mounted there: file system, and place in it.
        shows: (DeviceId, PathBuf),
    },
    /// Detaches a loop device that nobody uses.
    Detach {
        /// Its path, for people.
        path: PathBuf,
        /// Which.
        number: u32,
        /// What must be behind it.
        backing: Backing,
    },
    /// Takes the limits of a device away to which nothing is attached.
    Unlimit(DeviceId),
    /// Closes an encrypted volume that nobody uses.
    Close(Box<Opened>),
    /// Unpublishes and unstages through the driver, which refuses what is in use.
    Release {
        /// Which.
        driver: DriverName,
        /// The volume.
        volume: String,
        /// Published there.
        targets: Vec<PathBuf>,
        /// Staged there.
        staging: Option<PathBuf>,
        /// Nothing is mounted at the targets.
        gone: bool,
    },
    /// `volume unmount`.
    Forget {
        /// Which.
        driver: DriverName,
        /// The volume.
        volume: String,
        /// Nothing is mounted at these.
        gone: Vec<PathBuf>,
    },
    /// Removes a socket that nobody serves.
    RemoveSocket(PathBuf),
    /// Removes a folder with nothing in it.
    RemoveEmptyFolder(PathBuf),
    /// Takes permissions away from others.
    Restrict {
        /// Of what.
        path: PathBuf,
        /// As it is.
        mode: u32,
        /// As it shall be.
        right: u32,
    },
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { driver, .. } => {
                write!(f, "start driver {driver} for a moment: its start mends it")
            }
            Self::Thaw => f.write_str("thaw it"),
            Self::Unmount { target, .. } => write!(f, "unmount {}", target.display()),
            Self::Close(opened) => write!(f, "close {}", opened.name),
            Self::Detach { path, .. } => write!(f, "detach {}", path.display()),
            Self::Unlimit(device) => write!(f, "take the limits of device {device} away"),
            Self::Release { volume, targets, staging, .. } => {
                let places = targets.iter().chain(staging).map(|p| p.display().to_string());
                let places: Vec<_> = places.collect();
                write!(f, "let driver unmount volume {volume} from {}", places.join(", "))
            }
            Self::Forget { volume, .. } => write!(f, "larder volume unmount {volume}"),
            Self::RemoveSocket(path) => write!(f, "remove the socket {}", path.display()),
            Self::RemoveEmptyFolder(path) => {
                write!(f, "remove the empty folder {}", path.display())
            }
            Self::Restrict { path, right, .. } => write!(f, "chmod {right:04o} {}", path.display()),
        }
    }
}

impl Fix {
    /// Takes `other` along, where one run does both.
    pub(crate) fn join(&mut self, other: &Self) -> bool {
        match (self, other) {
            (Self::Start { driver, gone }, Self::Start { driver: other, gone: more })
                if driver == other =>
            {
                gone.extend_from_slice(more);
                true
            }
            (this, other) => this == other,
        }
    }

    /// Unmounts `entry`.
    pub(crate) fn unmount(entry: &MountEntry) -> Self {
        Self::Unmount { target: entry.target.clone(), shows: (entry.device, entry.root.clone()) }
    }

    /// Does it.
    ///
    /// # Errors
    /// Where it cannot be done, or is not what was found; nothing is half-done then.
    pub(crate) async fn apply(self, settings: &Settings, target: &Target) -> anyhow::Result<()> {
        match self {
            Self::Start { driver, gone } => start(settings, target, &driver, &gone).await,
            Self::Thaw => Ok(wiring::thaw(settings).await.map(drop)?),
            Self::Release { driver, volume, targets, staging, gone } => {
                let session = open(settings, target, &driver).await?;
                let not_mounted = if gone { not_mounted(&targets) } else { Ok(()) };
                let released = match not_mounted {
                    Ok(()) => release(&session, &volume, &targets, staging.as_deref()).await,
                    Err(fault) => Err(fault),
                };
                session.close().await;
                Ok(released?)
            }
            Self::Forget { driver, volume, gone } => {
                let session = open(settings, target, &driver).await?;
                let forgotten = match not_mounted(&gone) {
                    Ok(()) => mounts::unmount(&session, &volume, None, false).await,
                    Err(fault) => Err(fault),
                };
                session.close().await;
                Ok(forgotten?)
            }
            Self::Unmount { target, shows } => {
                Ok(larder_host::blocking(move || unmount(&Host::real(), &target, &shows)).await?)
            }
            Self::Detach { number, backing, .. } => {
                let detach = move || Host::real().loops.detach(number, backing);
                Ok(larder_host::blocking(detach).await?)
            }
            Self::Unlimit(device) => {
                let host = Host::real().with_cgroup(settings.cgroup.clone());
                Ok(larder_host::blocking(move || unlimit(&host, device)).await?)
            }
            Self::Close(opened) => {
                let close = move || encrypted::close(&Host::real(), &opened);
                Ok(larder_host::blocking(close).await?)
            }
            Self::RemoveSocket(path) => Ok(sockets::remove_dead(&path)?),
            Self::RemoveEmptyFolder(path) => Ok(remove_empty(&path)?),
            Self::Restrict { path, mode, right } => Ok(restrict(&path, mode, right)?),
        }
    }
}

fn unlimit(host: &Host, device: DeviceId) -> Result<()> {
    if host.is_attached(device)? {
        return Err(Fault::precondition(format!(
            "take the limits of device {device} away: it is attached by now"
        )));
    }
    host.throttle.set(device, Limits::NONE)
}

async fn open(settings: &Settings, target: &Target, name: &DriverName) -> anyhow::Result<Session> {
    let driver = settings.drivers.iter().find(|driver| driver.name == *name);
    let driver = driver.ok_or_else(|| Fault::not_found(format!("find driver {name}")))?;
    Session::of_driver(settings, driver.clone(), target).await
}

async fn start(
    settings: &Settings,
    target: &Target,
    name: &DriverName,
    gone: &[PathBuf],
) -> anyhow::Result<()> {
    let session = open(settings, target, name).await?;
    let done = if session.is_local() {
        wait_for(gone).await
    } else {
        Err(Fault::precondition(format!("start driver {name}: another process serves it by now"))
            .hint("restart that process: its start mends it"))
    };
    session.close().await;
    Ok(done?)
}

/// Removal of what was deleted goes on in the background of a start.
async fn wait_for(gone: &[PathBuf]) -> Result<()> {
    let stays = |path: &&PathBuf| path.symlink_metadata().is_ok() || is_being_removed(path);
    let end = Instant::now() + PATIENCE;
    while let Some(path) = gone.iter().find(stays) {
        if Instant::now() > end {
            let left = gone.iter().filter(stays).count();
            return Err(Fault::unavailable(format!(
                "take away {}: {left} of {} are there still",
                path.display(),
                gone.len()
            ))
            .hint("the driver's log says why; run it again"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Somebody may have mounted it while we waited for the driver.
fn not_mounted(targets: &[PathBuf]) -> Result<()> {
    let host = Host::real();
    for target in targets {
        if host.mounts.is_mount_point(target)? {
            return Err(Fault::precondition(format!(
                "forget what was mounted at {}: it is mounted by now",
                target.display()
            )));
        }
    }
    Ok(())
}

/// What a start takes out of `creating` goes through `deleting`, under its name and a unique end.
fn is_being_removed(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
    if !folder.ends_with("creating") {
        return false;
    }
    let begin = format!("{}.", name.to_string_lossy());
    let graves =
        std::fs::read_dir(folder.with_file_name("deleting")).into_iter().flatten().flatten();
    graves.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&begin))
}

async fn release(
    session: &Session,
    volume: &str,
    targets: &[PathBuf],
    staging: Option<&Path>,
) -> Result<()> {
    let mut node = session.client().node();
    for target in targets {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: target.display().to_string(),
        };
        answer(node.node_unpublish_volume(request).await)?;
    }
    if let Some(staging) = staging {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: staging.display().to_string(),
        };
        answer(node.node_unstage_volume(request).await)?;
    }
    Ok(())
}

fn unmount(host: &Host, target: &Path, shows: &(DeviceId, PathBuf)) -> Result<()> {
    // The kernel's names, marks included: what is on top must be what was found.
    let top = host.mounts.table()?.into_iter().rfind(|entry| entry.target == target);
    match top {
        None => Ok(()),
        Some(top) if (top.device, &top.root) == (shows.0, &shows.1) => {
            host.mounts.unmount(target, Unmount::Normal)
        }
        Some(_) => Err(Fault::precondition(format!(
            "unmount {}: something else is mounted there by now",
            target.display()
        ))),
    }
}

fn remove_empty(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::io(format!("remove the empty folder {}", path.display()), e))
        }
        _ => path.parent().map_or(Ok(()), durable::sync_dir),
    }
}

/// Others may write to the folder that holds it, so what is looked at and what is changed are one open
/// file, and never what a link leads to.
fn restrict(path: &Path, mode: u32, right: u32) -> Result<()> {
    let io = |e| Fault::io(format!("change the permissions of {}", path.display()), e);
    let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits().cast_signed();
    // O_PATH opens sockets, too, and waits for nobody; the kernel wants some mode all the same.
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if meta.is_symlink() || meta.mode() & 0o7777 != mode {
        return Err(Fault::precondition(format!(
            "change the permissions of {}: they are not as they were",
            path.display()
        )));
    }
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(opened, Permissions::from_mode(right)).map_err(io)
}

/// What became of a fix.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    /// The finding's id.
    pub(crate) id: String,
    /// What was to be done.
    pub(crate) fix: String,
    /// `done`, `gone` (something else mended it before) or `failed`.
    pub(crate) result: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Outcome {
    fn of(finding: &super::Finding, result: &'static str, error: Option<String>) -> Self {
        let fix = finding.fix.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { id: finding.id.clone(), fix, result, error }
    }
    /// It is done.
    pub(crate) fn done(finding: &super::Finding) -> Self {
        Self::of(finding, "done", None)
    }
    /// There was nothing to do any more.
    pub(crate) fn gone(finding: &super::Finding) -> Self {
        Self::of(finding, "gone", None)
    }
    /// It failed.
    pub(crate) fn failed(finding: &super::Finding, error: String) -> Self {
        Self::of(finding, "failed", Some(error))
    }
}
