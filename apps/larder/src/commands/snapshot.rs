//! `larder snapshot …`

use super::{answer, names, progress};
use crate::{
    cli,
    output::{self, Row},
    session::Session,
};
use anyhow::Result;
use larder_model::{Bytes, Fault};
use larder_proto::csi;
use serde::Serialize;
use std::collections::BTreeMap;

/// A snapshot as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnapshotRow {
    snapshot: String,
    size: u64,
    created: String,
    ready: bool,
    id: String,
    source_volume: String,
}

impl Row for SnapshotRow {
    const HEADINGS: &'static [&'static str] =
        &["SNAPSHOT", "SIZE", "CREATED", "READY", "ID", "SOURCE"];
    const NARROW: usize = 4;
    fn cells(&self) -> Vec<String> {
        vec![
            self.snapshot.clone(),
            Bytes::new(self.size).to_string(),
            self.created.clone(),
            self.ready.to_string(),
            self.id.clone(),
            self.source_volume.clone(),
        ]
    }
}

impl From<csi::Snapshot> for SnapshotRow {
    fn from(snapshot: csi::Snapshot) -> Self {
        let created = snapshot.creation_time.unwrap_or_default();
        let created = jiff::Timestamp::new(created.seconds, created.nanos);
        Self {
            snapshot: names::shown_snapshot(&snapshot),
            size: u64::try_from(snapshot.size_bytes).unwrap_or(0),
            created: created
                .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
                .unwrap_or_default(),
            ready: snapshot.ready_to_use,
            id: snapshot.snapshot_id,
            source_volume: snapshot.source_volume_id,
        }
    }
}

/// Runs a snapshot command.
pub(crate) async fn run(command: cli::Snapshot) -> Result<()> {
    match command {
        cli::Snapshot::Create { snapshot, parameters, target, output } => {
            let session = Session::open(&target).await?;
            let made = create(&session, &snapshot, parameters.into_iter().collect()).await;
            session.close().await;
            output::one(output.output, &made?)
        }
        cli::Snapshot::Ls { volume, target, output } => {
            let session = Session::open(&target).await?;
            let rows = list(&session, volume.as_deref()).await;
            session.close().await;
            output::list(output.output, &rows?)
        }
        cli::Snapshot::Rm { snapshots, target } => {
            let session = Session::open(&target).await?;
            let removed = remove(&session, &snapshots).await;
            session.close().await;
            Ok(removed?)
        }
        cli::Snapshot::Group(command) => super::group::run(command).await,
        cli::Snapshot::Blocks { snapshot, since, offset, target, output } => {
            let session = Session::open(&target).await?;
            let told = super::blocks::told(&session, &snapshot, since.as_deref(), offset).await;
            session.close().await;
            output::list(output.output, &told?)
        }
    }
}

async fn create(
    session: &Session,
    snapshot: &str,
    parameters: BTreeMap<String, String>,
) -> larder_model::Result<SnapshotRow> {
    let (volume, name) = names::split_snapshot(snapshot)?;
    let source_volume_id = names::volume_id(session, volume).await?;
    let name = names::snapshot_name(&source_volume_id, name);
    let request =
        csi::CreateSnapshotRequest { source_volume_id, name, parameters, ..Default::default() };
    // The cut is made when the first answer comes; a storage that goes on processing says so, and is
    // asked again until the snapshot can be used.
    loop {
        let mut controller = session.client().controller();
        let call = controller.create_snapshot(request.clone());
        let made = answer(progress::show(session, &format!("cutting {snapshot}"), call).await)?;
        let made = made
            .snapshot
            .ok_or_else(|| Fault::internal("read the driver's answer: it names no snapshot"))?;
        if made.ready_to_use {
            return Ok(made.into());
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

async fn list(session: &Session, volume: Option<&str>) -> larder_model::Result<Vec<SnapshotRow>> {
    let source_volume_id = match volume {
        Some(volume) => names::volume_id(session, volume).await?,
        None => String::new(),
    };
    let found = all(session, csi::ListSnapshotsRequest { source_volume_id, ..Default::default() });
    let found = found.await?;
    Ok(found.into_iter().map(SnapshotRow::from).collect())
}

/// All snapshots that the driver lists for that request.
pub(crate) async fn all(
    session: &Session,
    request: csi::ListSnapshotsRequest,
) -> larder_model::Result<Vec<csi::Snapshot>> {
    let mut controller = session.client().controller();
    let mut found = Vec::new();
    let mut request = csi::ListSnapshotsRequest { max_entries: 1000, ..request };
    loop {
        let page = answer(controller.list_snapshots(request.clone()).await)?;
        found.extend(page.entries.into_iter().filter_map(|e| e.snapshot));
        if page.next_token.is_empty() {
            return Ok(found);
        }
        request.starting_token = page.next_token;
    }
}

/// Deletes snapshots that exist; none when one of them does not.
async fn remove(session: &Session, snapshots: &[String]) -> larder_model::Result<()> {
    let mut ids = Vec::new();
    for snapshot in snapshots {
        ids.push(names::snapshot_id(session, snapshot).await?);
    }
    for (snapshot, snapshot_id) in snapshots.iter().zip(ids) {
        let request = csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        let mut controller = session.client().controller();
        let call = controller.delete_snapshot(request);
        answer(progress::show(session, &format!("deleting {snapshot}"), call).await)?;
    }
    Ok(())
}
