//! `larder snapshot blocks`

use super::{answer, names};
use crate::{output::Row, session::Session};
use larder_model::{Fault, Result};
use larder_proto::csi::{self, BlockMetadata};
use serde::Serialize;

/// A run of bytes as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlocksRow {
    offset: i64,
    size: i64,
}

impl Row for BlocksRow {
    const HEADINGS: &'static [&'static str] = &["OFFSET", "SIZE"];
    const NARROW: usize = 2;
    fn cells(&self) -> Vec<String> {
        vec![self.offset.to_string(), self.size.to_string()]
    }
}

/// What holds data in the snapshot, or what differs from another.
///
/// # Errors
/// As the driver says.
pub(super) async fn told(
    session: &Session,
    snapshot: &str,
    since: Option<&str>,
    offset: u64,
) -> Result<Vec<BlocksRow>> {
    let starting_offset = i64::try_from(offset)
        .map_err(|_| Fault::out_of_range(format!("start at byte {offset}")))?;
    let snapshot_id = names::snapshot_id(session, snapshot).await?;
    let mut client = session.client().snapshot_metadata();
    let mut rows = Vec::new();
    let mut keep = |blocks: Vec<BlockMetadata>| {
        let row = |b: BlockMetadata| BlocksRow { offset: b.byte_offset, size: b.size_bytes };
        rows.extend(blocks.into_iter().map(row));
    };
    if let Some(base) = since {
        let request = csi::GetMetadataDeltaRequest {
            base_snapshot_id: names::snapshot_id(session, base).await?,
            target_snapshot_id: snapshot_id,
            starting_offset,
            ..Default::default()
        };
        let mut stream = answer(client.get_metadata_delta(request).await)?;
        while let Some(page) = stream.message().await.map_err(|s| larder_csi::client::fault(&s))? {
            keep(page.block_metadata);
        }
    } else {
        let request =
            csi::GetMetadataAllocatedRequest { snapshot_id, starting_offset, ..Default::default() };
        let mut stream = answer(client.get_metadata_allocated(request).await)?;
        while let Some(page) = stream.message().await.map_err(|s| larder_csi::client::fault(&s))? {
            keep(page.block_metadata);
        }
    }
    Ok(rows)
}
