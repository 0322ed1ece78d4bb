//! `larder trash …`

use super::{answer, names, progress};
use crate::{
    cli,
    output::{self, Row},
    session::Session,
};
use anyhow::Result;
use larder_model::{Bytes, Fault, Period};
use larder_proto::larder;
use serde::Serialize;

/// Something in the trash as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TrashRow {
    id: String,
    kind: String,
    name: String,
    size: u64,
    deleted: String,
    /// When it will be removed; none: not by itself.
    due: Option<String>,
    origin: String,
    source_volume: Option<String>,
    allocated: u64,
    pool: String,
}

impl Row for TrashRow {
    const HEADINGS: &'static [&'static str] =
        &["ID", "KIND", "NAME", "SIZE", "DELETED", "REMOVED", "ORIGIN", "SOURCE", "ALLOCATED"];
    const NARROW: usize = 6;
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.name.clone(),
            Bytes::new(self.size).to_string(),
            self.deleted.clone(),
            self.due.clone().unwrap_or_else(|| "never".to_owned()),
            self.origin.clone(),
            self.source_volume.clone().unwrap_or_default(),
            super::pool::rounded(self.allocated),
        ]
    }
}

impl From<larder::Trashed> for TrashRow {
    fn from(item: larder::Trashed) -> Self {
        let size = |n: i64| u64::try_from(n).unwrap_or(0);
        let time = |millis: i64| {
            let time = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        };
        Self {
            id: item.id,
            kind: item.kind,
            name: item.name,
            size: size(item.size_bytes),
            deleted: time(item.deleted_unix_millis),
            due: (item.due_unix_millis != 0).then(|| time(item.due_unix_millis)),
            origin: item.origin,
            source_volume: (!item.source.is_empty()).then_some(item.source),
            allocated: size(item.allocated_bytes),
            pool: item.pool,
        }
    }
}

/// What came back.
#[derive(Debug, Serialize)]
struct RestoredRow {
    kind: String,
    id: String,
}

impl Row for RestoredRow {
    const HEADINGS: &'static [&'static str] = &["KIND", "ID"];
    const NARROW: usize = 2;
    fn cells(&self) -> Vec<String> {
        vec![self.kind.clone(), self.id.clone()]
    }
}

/// What went.
#[derive(Debug, Serialize)]
struct EmptiedRow {
    removed: i64,
    allocated: u64,
}

impl Row for EmptiedRow {
    const HEADINGS: &'static [&'static str] = &["REMOVED", "ALLOCATED"];
    const NARROW: usize = 2;
    fn cells(&self) -> Vec<String> {
        vec![self.removed.to_string(), super::pool::rounded(self.allocated)]
    }
}

/// Runs a trash command.
pub(crate) async fn run(command: cli::Trash) -> Result<()> {
    match command {
        cli::Trash::Ls { target, output } => {
            let session = Session::open(&target).await?;
            let listed = list(&session).await;
            session.close().await;
            let rows: Vec<TrashRow> = listed?.into_iter().map(TrashRow::from).collect();
            output::list(output.output, &rows)
        }
        cli::Trash::Restore { id, name, target, output } => {
            let session = Session::open(&target).await?;
            let restored = restore(&session, &id, name.as_deref()).await;
            session.close().await;
            output::one(output.output, &restored?)
        }
        cli::Trash::Rm { ids, target } => {
            let session = Session::open(&target).await?;
            let removed = remove(&session, &ids).await;
            session.close().await;
            Ok(removed?)
        }
        cli::Trash::Empty { older_than, target, output } => {
            let session = Session::open(&target).await?;
            let emptied = empty(&session, older_than).await;
            session.close().await;
            output::one(output.output, &emptied?)
        }
    }
}

async fn list(session: &Session) -> larder_model::Result<Vec<larder::Trashed>> {
    let mut admin = session.client().admin();
    Ok(answer(admin.list_trash(larder::ListTrashRequest {}).await)?.trash)
}

/// What has that id in the trash.
async fn find(session: &Session, id: &str) -> larder_model::Result<larder::Trashed> {
    let found = list(session).await?.into_iter().find(|item| item.id == id);
    found.ok_or_else(|| {
        Fault::not_found(format!("find {id:?} in the trash"))
            .hint("larder trash ls shows the ids; it may have been restored or removed already")
    })
}

async fn restore(
    session: &Session,
    id: &str,
    name: Option<&str>,
) -> larder_model::Result<RestoredRow> {
    let item = find(session, id).await?;
    let name = match name {
        // Its CSI name holds its volume's.
        Some(name) if item.kind == "snapshot" => names::snapshot_name(&item.source, name),
        Some("") => return Err(Fault::invalid("restore under an empty name")),
        name => name.unwrap_or_default().to_owned(),
    };
    let request = larder::RestoreTrashRequest { id: item.id, name };
    let mut admin = session.client().admin();
    let call = admin.restore_trash(request);
    let restored = answer(progress::show(session, &format!("restoring {id}"), call).await)?;
    Ok(RestoredRow { kind: item.kind, id: restored.id })
}

/// Removes what is there; nothing when one of them is not.
async fn remove(session: &Session, ids: &[String]) -> larder_model::Result<()> {
    for id in ids {
        find(session, id).await?;
    }
    for id in ids {
        let mut admin = session.client().admin();
        let call = admin.remove_trash(larder::RemoveTrashRequest { id: id.clone() });
        answer(progress::show(session, &format!("removing {id}"), call).await)?;
    }
    Ok(())
}

async fn empty(session: &Session, older_than: Option<Period>) -> larder_model::Result<EmptiedRow> {
    let seconds = older_than.map_or(0, Period::seconds);
    let older_than_seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let mut admin = session.client().admin();
    let call = admin.empty_trash(larder::EmptyTrashRequest { older_than_seconds });
    let done = answer(progress::show(session, "emptying the trash", call).await)?;
    let allocated = u64::try_from(done.allocated_bytes).unwrap_or(0);
    Ok(EmptiedRow { removed: done.removed, allocated })
}
