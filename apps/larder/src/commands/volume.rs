//! `larder volume …`

use super::{answer, limits, mounts, names, passphrase, progress};
use crate::{
    cli::{self, CreateVolume},
    output::{self, Row},
    session::Session,
};
use anyhow::Result;
use larder_model::{Bytes, Fault, params::RESERVED};
use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// A volume as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeRow {
    pub(crate) id: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    encrypted: bool,
    mounted: Vec<String>,
    health: Vec<String>,
    topology: Vec<BTreeMap<String, String>>,
    context: BTreeMap<String, String>,
}

impl Row for VolumeRow {
    const HEADINGS: &'static [&'static str] =
        &["VOLUME", "SIZE", "FROM", "MOUNTED", "ENCRYPTED", "HEALTH", "TOPOLOGY", "CONTEXT"];
    const NARROW: usize = 4;
    fn cells(&self) -> Vec<String> {
        let pairs = |map: &BTreeMap<String, String>| {
            map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        };
        vec![
            self.id.clone(),
            Bytes::new(self.size).to_string(),
            self.source.clone().unwrap_or_default(),
            self.mounted.join(","),
            if self.encrypted { "yes" } else { "" }.to_owned(),
            self.health.join("; "),
            self.topology.iter().map(pairs).collect::<Vec<_>>().join(" or "),
            pairs(&self.context),
        ]
    }
}

fn row(volume: csi::Volume, mounts: &[mounts::Mounted]) -> VolumeRow {
    use csi::volume_content_source::Type;
    let source = volume.content_source.and_then(|s| s.r#type).map(|source| match source {
        Type::Snapshot(s) => format!("snapshot {}", s.snapshot_id),
        Type::Volume(v) => format!("volume {}", v.volume_id),
    });
    let mounted = mounts.iter().filter(|m| m.volume == volume.volume_id);
    VolumeRow {
        size: u64::try_from(volume.capacity_bytes).unwrap_or(0),
        source,
        mounted: mounted
            .flat_map(|m| m.targets.iter().map(|t| t.path.display().to_string()))
            .collect(),
        encrypted: passphrase::is_encrypted(&volume.volume_context),
        health: Vec::new(),
        topology: volume.accessible_topology.into_iter().map(|t| t.segments).collect(),
        context: volume.volume_context,
        id: volume.volume_id,
    }
}

/// Runs a volume command.
pub(crate) async fn run(command: cli::Volume) -> Result<()> {
    match command {
        cli::Volume::Create(flags) => create(flags).await,
        cli::Volume::Ls { target, output } => {
            let session = Session::open(&target).await?;
            let rows = list(&session).await;
            session.close().await;
            output::list(output.output, &rows?)
        }
        cli::Volume::Show { volume, target, output } => {
            let session = Session::open(&target).await?;
            let shown = limits::show(&session, &volume).await;
            session.close().await;
            output::one(output.output, &shown?)
        }
        cli::Volume::Modify(flags) => {
            let session = Session::open(&flags.target).await?;
            let modified = limits::modify(&session, &flags).await;
            session.close().await;
            output::one(flags.output.output, &modified?)
        }
        cli::Volume::Expand { volume, size, passphrase_file, target, output } => {
            let session = Session::open(&target).await?;
            let grown = expand(&session, &volume, size, passphrase_file.as_deref()).await;
            session.close().await;
            output::one(output.output, &grown?)
        }
        cli::Volume::Mount { volume, path, read_only, block, options, passphrase_file, target } => {
            let session = Session::open(&target).await?;
            let passphrase = passphrase_file.as_deref();
            let request = mounts::Request { path: &path, read_only, block, options, passphrase };
            let mounted = mount(&session, &volume, request).await;
            session.close().await;
            Ok(mounted?)
        }
        cli::Volume::RotateKey { volume, old_passphrase_file, passphrase_file, target } => {
            let session = Session::open(&target).await?;
            let files = (old_passphrase_file.as_deref(), passphrase_file.as_deref());
            let rotated = rotate(&session, &volume, files).await;
            session.close().await;
            Ok(rotated?)
        }
        cli::Volume::Unmount { volume, path, force, target } => {
            let session = Session::open(&target).await?;
            let unmounted = mounts::unmount(&session, &volume, path.as_deref(), force).await;
            session.close().await;
            Ok(unmounted?)
        }
        cli::Volume::Rm { volumes, target } => {
            let session = Session::open(&target).await?;
            let removed = remove(&session, &volumes).await;
            session.close().await;
            Ok(removed?)
        }
    }
}

async fn create(flags: CreateVolume) -> Result<()> {
    let session = Session::open(&flags.target).await?;
    let created = request(&session, &flags).await;
    session.close().await;
    output::one(flags.output.output, &created?)
}

async fn request(session: &Session, flags: &CreateVolume) -> larder_model::Result<VolumeRow> {
    let mut parameters = BTreeMap::new();
    for (key, value) in &flags.parameters {
        if key.starts_with(RESERVED) {
            return Err(Fault::invalid(format!("set parameter {key}: it belongs to Kubernetes")));
        }
        parameters.insert(key.clone(), value.clone());
    }
    if let Some(pool) = &flags.pool {
        parameters.insert("pool".to_owned(), pool.clone());
    }
    let source = match &flags.from {
        None => None,
        Some(text) => Some(source(session, text).await?),
    };
    let capability = match flags.block {
        true => csi::VolumeCapability::raw_block(Mode::SingleNodeWriter),
        false => {
            let fs = flags.fs.map_or("", larder_model::FsType::as_str);
            csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter)
        }
    };
    // Other drivers' names are theirs to judge.
    let name = if session.is_foreign() { &flags.name } else { names::new_volume(&flags.name)? };
    let request = csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: flags
            .size
            .map(|size| csi::CapacityRange { required_bytes: size.as_i64(), limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        parameters,
        volume_content_source: source,
        ..csi::CreateVolumeRequest::default()
    };
    let mut controller = session.client().controller();
    let call = controller.create_volume(request);
    let created = answer(progress::show(session, &format!("creating {}", flags.name), call).await)?;
    let volume = created
        .volume
        .ok_or_else(|| Fault::internal("read the driver's answer: it names no volume"))?;
    Ok(row(volume, &[]))
}

async fn source(session: &Session, text: &str) -> larder_model::Result<csi::VolumeContentSource> {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let source = if text.contains('@') {
        Type::Snapshot(SnapshotSource { snapshot_id: names::snapshot_id(session, text).await? })
    } else {
        Type::Volume(VolumeSource { volume_id: names::volume_id(session, text).await? })
    };
    Ok(csi::VolumeContentSource { r#type: Some(source) })
}

async fn list(session: &Session) -> larder_model::Result<Vec<VolumeRow>> {
    let mounts = mounts::all(session)?;
    let entry = |(volume, condition): (csi::Volume, Option<csi::VolumeCondition>)| VolumeRow {
        health: condition.map(told).into_iter().collect(),
        ..row(volume, &mounts)
    };
    Ok(entries(session).await?.into_iter().map(entry).collect())
}

/// A condition as `volume show` tells it.
fn told(condition: csi::VolumeCondition) -> String {
    if condition.abnormal { condition.message } else { "ok".to_owned() }
}

/// Every volume of the driver.
pub(crate) async fn all(session: &Session) -> larder_model::Result<Vec<csi::Volume>> {
    Ok(entries(session).await?.into_iter().map(|(volume, _)| volume).collect())
}

/// The same, with their condition where the driver tells it.
async fn entries(
    session: &Session,
) -> larder_model::Result<Vec<(csi::Volume, Option<csi::VolumeCondition>)>> {
    let mut controller = session.client().controller();
    let mut volumes = Vec::new();
    let mut token = String::new();
    loop {
        let request = csi::ListVolumesRequest { max_entries: 1000, starting_token: token };
        let page = answer(controller.list_volumes(request).await)?;
        volumes.extend(page.entries.into_iter().filter_map(|entry| {
            Some((entry.volume?, entry.status.and_then(|status| status.volume_condition)))
        }));
        token = page.next_token;
        if token.is_empty() {
            return Ok(volumes);
        }
    }
}

/// One volume, by whatever means the driver has.
pub(crate) async fn get(session: &Session, id: &str) -> larder_model::Result<csi::Volume> {
    let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let found = answer(session.client().controller().controller_get_volume(request).await);
    match found {
        Ok(found) => found
            .volume
            .ok_or_else(|| Fault::internal("read the driver's answer: it names no volume")),
        Err(fault) if fault.kind() == larder_model::Kind::Unsupported => all(session)
            .await?
            .into_iter()
            .find(|v| v.volume_id == id)
            .ok_or_else(|| Fault::not_found(format!("find volume {id}"))),
        Err(fault) => Err(fault),
    }
}

/// One volume with its health.
///
/// # Errors
/// Where the driver cannot tell.
pub(crate) async fn show(session: &Session, volume: &str) -> larder_model::Result<VolumeRow> {
    let id = names::volume_id(session, volume).await?;
    let mut shown = row(get(session, &id).await?, &mounts::all(session)?);
    let request = csi::ControllerGetVolumeHealthRequest { volume_id: id, ..Default::default() };
    match answer(session.client().controller().controller_get_volume_health(request).await) {
        Ok(health) => {
            let entries = health.volume_health.unwrap_or_default().health_statuses;
            shown.health =
                entries.into_iter().map(|e| format!("{}: {}", e.reason, e.message)).collect();
            if shown.health.is_empty() {
                shown.health.push("ok".to_owned());
            }
        }
        Err(fault) if fault.kind() == larder_model::Kind::Unsupported => {}
        Err(fault) => shown.health.push(fault.to_string()),
    }
    Ok(shown)
}

async fn mount(
    session: &Session,
    volume: &str,
    request: mounts::Request<'_>,
) -> larder_model::Result<()> {
    let id = names::volume_id(session, volume).await?;
    let volume = get(session, &id).await?;
    mounts::mount(session, volume, request).await
}

/// Replaces the passphrase of an encrypted volume.
async fn rotate(
    session: &Session,
    volume: &str,
    (old, new): (Option<&Path>, Option<&Path>),
) -> larder_model::Result<()> {
    let id = names::volume_id(session, volume).await?;
    let volume = get(session, &id).await?;
    if !passphrase::is_encrypted(&volume.volume_context) {
        return Err(Fault::precondition(format!(
            "replace the passphrase of volume {id}: it has none"
        )));
    }
    let secrets = passphrase::replacing(old, new)?;
    mounts::rotate(session, volume, secrets).await
}

/// Grows the volume, and the file systems of its mounts.
async fn expand(
    session: &Session,
    volume: &str,
    size: Bytes,
    passphrase: Option<&Path>,
) -> larder_model::Result<VolumeRow> {
    let id = names::volume_id(session, volume).await?;
    let range = csi::CapacityRange { required_bytes: size.as_i64(), limit_bytes: 0 };
    let request = csi::ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(range),
        ..Default::default()
    };
    let mut controller = session.client().controller();
    let call = controller.controller_expand_volume(request);
    let grown = answer(progress::show(session, &format!("growing {id}"), call).await)?;
    if grown.node_expansion_required {
        mounts::expand(session, &id, range, passphrase).await?;
    }
    Ok(row(get(session, &id).await?, &mounts::all(session)?))
}

/// Deletes volumes that exist: CSI answers OK to the deletion of what it never heard of, and a person
/// who mistyped a name must not be told that it is gone. Nothing is deleted when one is not there.
async fn remove(session: &Session, volumes: &[String]) -> larder_model::Result<()> {
    let mounts = mounts::all(session)?;
    let mut ids = Vec::new();
    for volume in volumes {
        let id = names::volume_id(session, volume).await?;
        if let Some(mounted) = mounts.iter().find(|m| m.volume == id)
            && let Some(target) = mounted.targets.first()
        {
            return Err(Fault::precondition(format!(
                "delete volume {id}: it is mounted at {}",
                target.path.display()
            ))
            .hint(format!("larder volume unmount {volume}")));
        }
        match get(session, &id).await {
            Ok(_) => {}
            // A driver that neither lists nor shows: the id has to do.
            Err(fault) if fault.kind() == larder_model::Kind::Unsupported => {}
            Err(fault) if fault.kind() == larder_model::Kind::NotFound => {
                return Err(Fault::not_found(format!("delete volume {id}: there is none"))
                    .hint("larder volume ls shows the ids"));
            }
            Err(fault) => return Err(fault),
        }
        ids.push(id);
    }
    for id in ids {
        let request = csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        let mut controller = session.client().controller();
        let call = controller.delete_volume(request);
        answer(progress::show(session, &format!("deleting {id}"), call).await)?;
    }
    Ok(())
}
