//! `larder snapshot group …`

use super::{
    answer, names, progress,
    snapshot::{self, SnapshotRow},
};
use crate::{cli::SnapshotGroup, output, session::Session};
use anyhow::Result;
use larder_model::{Fault, Kind, RequestedName};
use larder_proto::{csi, larder::ListPoolsRequest};

/// Runs a command on a group of snapshots.
pub(super) async fn run(command: SnapshotGroup) -> Result<()> {
    match command {
        SnapshotGroup::Create { name, volumes, target, output } => {
            let session = Session::open(&target).await?;
            let made = create(&session, &name, &volumes).await;
            session.close().await;
            output::list(output.output, &rows(made?))
        }
        SnapshotGroup::Ls { name, target, output } => {
            let session = Session::open(&target).await?;
            let found = list(&session, &name).await;
            session.close().await;
            let (snapshots, whole) = found?;
            output::list(output.output, &rows(snapshots))?;
            Ok(whole?)
        }
        SnapshotGroup::Rm { name, target } => {
            let session = Session::open(&target).await?;
            let removed = remove(&session, &name).await;
            session.close().await;
            Ok(removed?)
        }
    }
}

fn rows(snapshots: Vec<csi::Snapshot>) -> Vec<SnapshotRow> {
    snapshots.into_iter().map(SnapshotRow::from).collect()
}

async fn create(
    session: &Session,
    name: &str,
    volumes: &[String],
) -> larder_model::Result<Vec<csi::Snapshot>> {
    let mut source_volume_ids = Vec::new();
    for volume in volumes {
        source_volume_ids.push(names::volume_id(session, volume).await?);
    }
    let request = csi::CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids,
        ..Default::default()
    };
    let mut groups = session.client().group_controller();
    let call = groups.create_volume_group_snapshot(request);
    let made = answer(progress::show(session, &format!("cutting group {name}"), call).await)?;
    Ok(made.group_snapshot.map(|group| group.snapshots).unwrap_or_default())
}

/// The group's snapshots that there are; an error where they are not all of it.
async fn list(
    session: &Session,
    name: &str,
) -> larder_model::Result<(Vec<csi::Snapshot>, larder_model::Result<()>)> {
    let (id, snapshots) = members(session, name).await?;
    let ids = snapshots.iter().map(|s| s.snapshot_id.clone()).collect();
    let whole = match get(session, &id, ids).await {
        Err(fault) if fault.kind() == Kind::Unsupported => Ok(()),
        whole => whole,
    };
    Ok((snapshots, whole))
}

async fn get(session: &Session, id: &str, snapshot_ids: Vec<String>) -> larder_model::Result<()> {
    let request = csi::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        snapshot_ids,
        ..Default::default()
    };
    answer(session.client().group_controller().get_volume_group_snapshot(request).await).map(drop)
}

/// The id of a group of which no snapshot is left; None: there is none.
async fn without_members(session: &Session, name: &str) -> larder_model::Result<Option<String>> {
    let mut ids = Vec::new();
    if name.contains('/') {
        ids.push(name.to_owned());
    } else if let Ok(name) = name.parse::<RequestedName>() {
        let pools = session.client().admin().list_pools(ListPoolsRequest {}).await;
        // Other drivers do not tell their pools.
        let pools = answer(pools).map(|listed| listed.pools).unwrap_or_default();
        ids.extend(pools.into_iter().map(|pool| format!("{}/{}", pool.name, name.native())));
    }
    for id in ids {
        match get(session, &id, Vec::new()).await {
            Err(fault) if matches!(fault.kind(), Kind::NotFound | Kind::Unsupported) => {}
            // Whatever else is wrong with it: it is there.
            _ => return Ok(Some(id)),
        }
    }
    Ok(None)
}

/// The group's id and snapshots.
async fn members(
    session: &Session,
    name: &str,
) -> larder_model::Result<(String, Vec<csi::Snapshot>)> {
    let all = snapshot::all(session, csi::ListSnapshotsRequest::default()).await?;
    let ours = |group: &str| {
        group == name || group.rsplit('/').next().is_some_and(|native| native == name)
    };
    let all = all.into_iter().filter(|s| ours(&s.group_snapshot_id)).collect::<Vec<_>>();
    let Some(id) = all.first().map(|s| s.group_snapshot_id.clone()) else {
        if let Some(id) = without_members(session, name).await? {
            return Ok((id, Vec::new()));
        }
        return Err(Fault::not_found(format!("find group {name}"))
            .hint("larder snapshot ls shows the snapshots that there are"));
    };
    if all.iter().any(|s| s.group_snapshot_id != id) {
        return Err(Fault::invalid(format!("find group {name}: several have that name"))
            .hint("write POOL/NAME"));
    }
    Ok((id, all))
}

async fn remove(session: &Session, name: &str) -> larder_model::Result<()> {
    let (group_snapshot_id, members) = members(session, name).await?;
    let snapshot_ids = members.into_iter().map(|s| s.snapshot_id).collect();
    let request = csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id,
        snapshot_ids,
        ..Default::default()
    };
    let mut groups = session.client().group_controller();
    let call = groups.delete_volume_group_snapshot(request);
    answer(progress::show(session, &format!("deleting group {name}"), call).await).map(drop)
}
