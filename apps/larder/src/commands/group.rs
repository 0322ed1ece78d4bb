//! `larder snapshot group …`

use super::{
    answer, names, progress,
    snapshot::{self, SnapshotRow},
};
use crate::{cli::SnapshotGroup, output, session::Session};
use anyhow::Result;
use larder_model::Fault;
use larder_proto::csi;

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
            let found = members(&session, &name).await;
            session.close().await;
            output::list(output.output, &rows(found?.1))
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
