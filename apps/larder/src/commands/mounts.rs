//! Mounting without an orchestrator.
//!
//! `larder volume mount` plays kubelet's part: attach where the driver asks for it, stage once per
//! volume, publish per path. What it has done it must find again in a later process, so each volume
//! mounted this way has a folder below `/run/larder/mounts/<driver>/`, named after a hash of its id:
//!
//! ```text
//! <hash>/stage          the staging path
//! <hash>/mount.json     volume, capability, paths: written before the calls that it is about
//! ```
//!
//! Everything there is gone after a reboot, and so are the mounts.

use super::{
    answer, last_copy,
    mount_point::{self, MountPoint},
    passphrase, progress,
};
use crate::session::Session;
use larder_host::durable;
use larder_model::{Fault, Kind, Result};
use larder_proto::csi::{
    self, controller_service_capability::rpc::Type as ControllerRpc,
    node_service_capability::rpc::Type as NodeRpc, volume_capability::access_mode::Mode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// What is asked of `volume mount`.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Where.
    pub(crate) path: &'a Path,
    /// Nothing may be written through this path.
    pub(crate) read_only: bool,
    /// As a device.
    pub(crate) block: bool,
    /// Mount options.
    pub(crate) options: Vec<String>,
    /// Where the passphrase of an encrypted volume is; None: a person is asked.
    pub(crate) passphrase: Option<&'a Path>,
}

/// The format that this release writes. What has no number was written before there was one, and is
/// the same; newer ones are refused.
const FORMAT: u32 = 1;

const fn first() -> u32 {
    1
}

/// One volume that was mounted by `volume mount`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mounted {
    /// Format version.
    #[serde(default = "first")]
    format: u32,
    /// Its id.
    pub(crate) volume: String,
    /// As a device.
    pub(crate) block: bool,
    /// Prepared for reading only: nothing was written to it, and nothing can be.
    #[serde(default)]
    pub(crate) reader: bool,
    /// Mount options.
    pub(crate) options: Vec<String>,
    /// Attributes of the volume.
    pub(crate) context: BTreeMap<String, String>,
    /// What attaching returned.
    pub(crate) publish_context: BTreeMap<String, String>,
    /// The node's id, where the volume was attached.
    pub(crate) attached_to: Option<String>,
    /// Where it is.
    pub(crate) targets: Vec<Target>,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Mounted {
    /// Understands `text`, which is what is at `path`.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, or of a newer release.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            #[serde(default = "first")]
            format: u32,
        }
        let Format { format } = durable::json(path, text)?;
        if format > FORMAT {
            return Err(Fault::corrupt(format!(
                "understand the record {}: it has format {format}, written by a newer version",
                path.display()
            ))
            .hint("use that version, or one that came after it"));
        }
        durable::json(path, text)
    }
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    /// The path.
    pub(crate) path: PathBuf,
    /// Nothing may be written through it.
    pub(crate) read_only: bool,
    /// What was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<MountPoint>,
}

struct Folder(PathBuf);

impl Folder {
    fn of(session: &Session, volume: &str) -> Self {
        let hash = Sha256::digest(volume.as_bytes());
        let name: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Self(session.mounts_dir().join(name))
    }
    fn stage(&self) -> PathBuf {
        self.0.join("stage")
    }
    fn record(&self) -> PathBuf {
        self.0.join("mount.json")
    }
    /// For root alone: whatever permissions a volume has, nobody comes to it but through its paths.
    fn make(&self) -> Result<()> {
        let stage = self.stage();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&stage);
        made.map_err(|e| Fault::io(format!("make {}", stage.display()), e))
    }
    fn write(&self, mounted: &Mounted) -> Result<()> {
        durable::write_json(&self.record(), mounted)
    }
    fn read(&self) -> Result<Option<Mounted>> {
        let path = self.record();
        match std::fs::read(&path) {
            Ok(text) => Mounted::parse(&path, &text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fault::io(format!("read {}", path.display()), e)),
        }
    }
    /// Only what this module made, and only when empty: `stage` may be a mount point still.
    fn remove(&self) -> Result<()> {
        for path in [self.stage(), self.record(), self.0.clone()] {
            let removed = if path == self.record() {
                std::fs::remove_file(&path)
            } else {
                std::fs::remove_dir(&path)
            };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Fault::io(format!("remove {}", path.display()), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Every volume of the driver that was mounted by `volume mount`.
///
/// # Errors
/// What reading the records can fail with.
pub(crate) fn all(session: &Session) -> Result<Vec<Mounted>> {
    let mut all: Vec<_> =
        in_folder(session.mounts_dir())?.into_iter().map(|(_, mounted)| mounted).collect();
    all.sort_by(|a, b| a.volume.cmp(&b.volume));
    Ok(all)
}

/// What is recorded in `folder`, with the staging paths.
///
/// # Errors
/// What reading the records can fail with.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<(PathBuf, Mounted)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Fault::io(format!("read {}", folder.display()), e)),
    };
    let folders = entries.filter_map(std::result::Result::ok).map(|e| Folder(e.path()));
    folders
        .filter_map(|f| Some(f.read().transpose()?.map(|mounted| (f.stage(), mounted))))
        .collect()
}

/// What the driver's node service offers here.
struct Offers {
    stage: bool,
    multi_writer: bool,
    attach: bool,
}

impl Offers {
    fn writer(&self) -> Mode {
        if self.multi_writer { Mode::SingleNodeMultiWriter } else { Mode::SingleNodeWriter }
    }
}

async fn offers(session: &Session) -> Result<Offers> {
    let client = session.client();
    let node =
        answer(client.node().node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await)?;
    let node: Vec<_> =
        node.capabilities.iter().filter_map(csi::NodeServiceCapability::kind).collect();
    let request = csi::ControllerGetCapabilitiesRequest {};
    let controller = match answer(client.controller().controller_get_capabilities(request).await) {
        Ok(controller) => controller.capabilities,
        Err(fault) if fault.kind() == Kind::Unsupported => Vec::new(),
        Err(fault) => return Err(fault),
    };
    let attach = controller.iter().any(|c| c.kind() == Some(ControllerRpc::PublishUnpublishVolume));
    Ok(Offers {
        stage: node.contains(&NodeRpc::StageUnstageVolume),
        multi_writer: node.contains(&NodeRpc::SingleNodeMultiWriter),
        attach,
    })
}

/// How the volume is used as a whole.
fn staging(mounted: &Mounted, offers: &Offers) -> csi::VolumeCapability {
    capability(mounted, if mounted.reader { Mode::SingleNodeReaderOnly } else { offers.writer() })
}

/// How it is used at a path. CSI has no mode for several readers on one node, so that they may be
/// several, they ask for a writer's mode and a read-only path.
fn publishing(mounted: &Mounted, offers: &Offers) -> csi::VolumeCapability {
    let alone = mounted.reader && !offers.multi_writer;
    capability(mounted, if alone { Mode::SingleNodeReaderOnly } else { offers.writer() })
}

fn capability(mounted: &Mounted, mode: Mode) -> csi::VolumeCapability {
    if mounted.block {
        csi::VolumeCapability::raw_block(mode)
    } else {
        let options: Vec<_> = mounted.options.iter().map(String::as_str).collect();
        csi::VolumeCapability::mounted("", &options, mode)
    }
}

/// Mounts `volume`.
///
/// # Errors
/// `Conflict` where it is mounted with other options, and whatever the driver answers.
pub(crate) async fn mount(
    session: &Session,
    volume: csi::Volume,
    request: Request<'_>,
) -> Result<()> {
    let path = std::path::absolute(request.path).map_err(|e| {
        Fault::io(format!("find the current folder for {}", request.path.display()), e)
    })?;
    let before = MountPoint::at(&path);
    let target = Target { path, read_only: request.read_only, before };
    let folder = Folder::of(session, &volume.volume_id);
    let mut found = folder.read()?;
    if let Some(rest) = found.take_if(|mounted| mounted.targets.is_empty()) {
        // An unmount that was interrupted, or a mount before its first path: begin anew.
        release(session, &folder, rest, &[], Refusal::Counts).await?;
    }
    let mut mounted = match found {
        Some(mounted) => mounted,
        None => Mounted {
            format: FORMAT,
            volume: volume.volume_id,
            block: request.block,
            reader: request.read_only,
            options: request.options.clone(),
            context: volume.volume_context,
            publish_context: BTreeMap::new(),
            attached_to: None,
            targets: Vec::new(),
            rest: Map::new(),
        },
    };
    let is_new = is_new(&mounted, &target, &request)?;
    // What is mounted somewhere is open.
    let secrets = if passphrase::is_encrypted(&mounted.context)
        && (mounted.targets.is_empty() || request.passphrase.is_some())
    {
        passphrase::secrets(request.passphrase)?
    } else {
        BTreeMap::new()
    };
    if is_new {
        mounted.targets.push(target.clone());
    }
    folder.make()?;
    folder.write(&mounted)?;

    let result = connect(session, &folder, &mut mounted, &target, secrets).await;
    match &result {
        // Not what stood there before this call, and not what still may come to stand.
        Err(fault) if is_new && fault.kind() != Kind::Deadline => {
            // The first error is the one to tell.
            let refusal = if is_uncertain(fault) { Refusal::Counts } else { Refusal::IsNothing };
            let _ = release(session, &folder, mounted, &[target], refusal).await;
        }
        _ => {}
    }
    result
}

/// Whether the target must be added to what is recorded.
///
/// # Errors
/// `Conflict`, `Precondition` where it does not go together with that.
fn is_new(mounted: &Mounted, target: &Target, request: &Request<'_>) -> Result<bool> {
    let volume = &mounted.volume;
    if (mounted.block, &mounted.options) != (request.block, &request.options) {
        return Err(Fault::conflict(format!(
            "mount volume {volume}: it is mounted with other options"
        ))
        .hint("unmount it first, or leave --block and --option as they were"));
    }
    if let Some(same) = mounted.targets.iter().find(|t| t.path == target.path) {
        if same.read_only == target.read_only {
            return Ok(false);
        }
        return Err(Fault::conflict(format!(
            "mount volume {volume}: it is at {} already, {}",
            target.path.display(),
            if same.read_only { "read-only" } else { "writable" }
        )));
    }
    if mounted.reader && !target.read_only {
        return Err(Fault::precondition(format!(
            "mount volume {volume}: it was mounted for reading only, and nothing can write to it"
        ))
        .hint(format!("larder volume unmount {volume}, or --read-only")));
    }
    Ok(true)
}

async fn connect(
    session: &Session,
    folder: &Folder,
    mounted: &mut Mounted,
    target: &Target,
    secrets: BTreeMap<String, String>,
) -> Result<()> {
    let offers = offers(session).await?;
    let capability = staging(mounted, &offers);
    let client = session.client();
    if offers.attach && mounted.attached_to.is_none() {
        let info = answer(client.node().node_get_info(csi::NodeGetInfoRequest {}).await)?;
        mounted.attached_to = Some(info.node_id.clone());
        folder.write(mounted)?;
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: mounted.volume.clone(),
            node_id: info.node_id,
            volume_capability: Some(capability.clone()),
            volume_context: mounted.context.clone(),
            ..Default::default()
        };
        let mut controller = client.controller();
        let call = controller.controller_publish_volume(request);
        let attached =
            answer(progress::show(session, &format!("attaching {}", mounted.volume), call).await)?;
        mounted.publish_context = attached.publish_context;
        folder.write(mounted)?;
    }
    let staging = folder.stage().display().to_string();
    if offers.stage {
        stage(session, folder, mounted, capability, secrets).await?;
    }
    let request = csi::NodePublishVolumeRequest {
        volume_id: mounted.volume.clone(),
        publish_context: mounted.publish_context.clone(),
        staging_target_path: if offers.stage { staging } else { String::new() },
        target_path: target.path.display().to_string(),
        volume_capability: Some(publishing(mounted, &offers)),
        readonly: target.read_only,
        volume_context: mounted.context.clone(),
        ..Default::default()
    };
    answer(client.node().node_publish_volume(request).await).map(|_| ())
}

async fn stage(
    session: &Session,
    folder: &Folder,
    mounted: &Mounted,
    capability: csi::VolumeCapability,
    secrets: BTreeMap<String, String>,
) -> Result<()> {
    let request = csi::NodeStageVolumeRequest {
        volume_id: mounted.volume.clone(),
        publish_context: mounted.publish_context.clone(),
        staging_target_path: folder.stage().display().to_string(),
        volume_capability: Some(capability),
        volume_context: mounted.context.clone(),
        secrets,
    };
    let mut node = session.client().node();
    let call = node.node_stage_volume(request);
    answer(progress::show(session, &format!("preparing {}", mounted.volume), call).await)?;
    Ok(())
}

/// Whether the volume was made for nothing but raw block access.
async fn is_raw(session: &Session, volume: &csi::Volume) -> Result<bool> {
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![csi::VolumeCapability::mounted("", &[], Mode::SingleNodeWriter)],
        ..Default::default()
    };
    let mut controller = session.client().controller();
    Ok(answer(controller.validate_volume_capabilities(request).await)?.confirmed.is_none())
}

/// Replaces a passphrase: staging does, also of what is staged already.
///
/// # Errors
/// Whatever the driver answers.
pub(crate) async fn rotate(
    session: &Session,
    volume: csi::Volume,
    secrets: BTreeMap<String, String>,
) -> Result<()> {
    let folder = Folder::of(session, &volume.volume_id);
    let offers = offers(session).await?;
    if let Some(mounted) = folder.read()?.filter(|mounted| !mounted.targets.is_empty()) {
        return stage(session, &folder, &mounted, staging(&mounted, &offers), secrets).await;
    }
    // Recorded like a mount whose paths are gone: whatever this leaves, the next mount ends.
    let mounted = Mounted {
        format: FORMAT,
        volume: volume.volume_id.clone(),
        block: is_raw(session, &volume).await?,
        reader: false,
        options: Vec::new(),
        context: volume.volume_context,
        publish_context: BTreeMap::new(),
        attached_to: None,
        targets: Vec::new(),
        rest: Map::new(),
    };
    folder.make()?;
    folder.write(&mounted)?;
    let staged = stage(session, &folder, &mounted, staging(&mounted, &offers), secrets).await;
    let released = release(session, &folder, mounted, &[], Refusal::Counts).await;
    staged.and(released)
}

/// Unmounts a volume from `path`, or from everywhere; `volume` may be a path by itself, but only one
/// that cannot be a name: what a folder of the current directory is called decides nothing.
///
/// # Errors
/// `NotFound` where nothing was mounted like that.
pub(crate) async fn unmount(
    session: &Session,
    volume: &str,
    path: Option<&Path>,
    force: bool,
) -> Result<()> {
    let absolute =
        |p: &Path| std::path::absolute(p).map_err(|e| Fault::io("find the current folder", e));
    let all = all(session)?;
    let unknown = || {
        Fault::not_found(format!("unmount {volume}: `larder volume mount` has not mounted it"))
            .hint("larder volume ls shows what is mounted where")
    };
    let (mounted, only) = if volume.starts_with(['/', '.']) && path.is_none() {
        let here = absolute(Path::new(volume))?;
        let is_here = |m: &&Mounted| m.targets.iter().any(|t| t.path == here);
        (all.iter().find(is_here).ok_or_else(unknown)?, Some(here))
    } else {
        let id = super::names::volume_id(session, volume).await?;
        let mounted = all.iter().find(|m| m.volume == id).ok_or_else(unknown)?;
        (mounted, path.map(absolute).transpose()?)
    };
    // Of a shell that stands in the volume this command has the folder, and is no user for that.
    std::env::set_current_dir("/").map_err(|e| Fault::io("leave the current folder", e))?;
    let is_meant = |t: &&Target| only.as_ref().is_none_or(|o| *o == t.path);
    let leaving: Vec<_> = mounted.targets.iter().filter(is_meant).cloned().collect();
    if leaving.is_empty() && only.is_some() {
        return Err(Fault::not_found(format!("unmount {volume}: it is not mounted there")));
    }
    let folder = Folder::of(session, &mounted.volume);
    if !force && leaving.len() == mounted.targets.len() {
        last_copy::refuse(session, &mounted.volume, &folder.stage()).await?;
    }
    release(session, &folder, mounted.clone(), &leaving, Refusal::Counts).await
}

/// What it means when the driver refuses to unpublish a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It is published still.
    Counts,
    /// Nothing: it refused to publish there, for the same reason as like as not.
    IsNothing,
}

/// Whether a call that failed like this may have had its effect.
fn is_uncertain(fault: &Fault) -> bool {
    matches!(fault.kind(), Kind::Aborted | Kind::Unavailable | Kind::Deadline | Kind::Internal)
}

/// Unpublishes `leaving`; with the last path gone also unstages and detaches.
async fn release(
    session: &Session,
    folder: &Folder,
    mut mounted: Mounted,
    leaving: &[Target],
    refusal: Refusal,
) -> Result<()> {
    let client = session.client();
    for target in leaving {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: mounted.volume.clone(),
            target_path: target.path.display().to_string(),
        };
        match answer(client.node().node_unpublish_volume(request).await) {
            Err(fault) if refusal == Refusal::Counts && !was_never_there(&fault, &target.path) => {
                return Err(fault);
            }
            _ => {}
        }
        if let Some(before) = &target.before {
            before.restore(&target.path)?;
        }
        mounted.targets.retain(|t| t != target);
        folder.write(&mounted)?;
    }
    if !mounted.targets.is_empty() {
        return Ok(());
    }
    let offers = offers(session).await?;
    if offers.stage {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: mounted.volume.clone(),
            staging_target_path: folder.stage().display().to_string(),
        };
        answer(client.node().node_unstage_volume(request).await)?;
    }
    if let Some(node_id) = &mounted.attached_to {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: mounted.volume.clone(),
            node_id: node_id.clone(),
            ..Default::default()
        };
        answer(client.controller().controller_unpublish_volume(request).await)?;
    }
    folder.remove()
}

/// Whether a driver refuses to unpublish a path at which nothing ever was: it refused to publish there
/// for the same reason. A path that stayed in the record for it would keep the volume for ever.
fn was_never_there(fault: &Fault, path: &Path) -> bool {
    !is_uncertain(fault) && mount_point::is_free(path)
}

/// Grows what is mounted of a volume, after the volume itself grew.
///
/// # Errors
/// Whatever the driver answers.
pub(crate) async fn expand(
    session: &Session,
    volume: &str,
    range: csi::CapacityRange,
    passphrase: Option<&Path>,
) -> Result<()> {
    let folder = Folder::of(session, volume);
    let Some(mounted) = folder.read()? else { return Ok(()) };
    let Some(target) = mounted.targets.first() else { return Ok(()) };
    let secrets = match passphrase::is_encrypted(&mounted.context) {
        true => passphrase::secrets(passphrase)?,
        false => BTreeMap::new(),
    };
    let request = csi::NodeExpandVolumeRequest {
        volume_id: mounted.volume.clone(),
        volume_path: target.path.display().to_string(),
        staging_target_path: folder.stage().display().to_string(),
        capacity_range: Some(range),
        volume_capability: Some(staging(&mounted, &offers(session).await?)),
        secrets,
    };
    let mut node = session.client().node();
    let call = node.node_expand_volume(request);
    answer(progress::show(session, &format!("growing {volume}"), call).await).map(|_| ())
}
