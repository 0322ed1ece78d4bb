//! Allocated and changed blocks of snapshots, as a stream of pages.

use super::{BlockPage, BlockStream, ControlEngine, Inner, QueryBlocks, accept};
use futures::{StreamExt, stream};
use larder_model::{
    Bytes, Fault, Result, SnapshotId,
    backend::{ChangedBlocks, FoundExtents},
    volume::Extent,
};
use std::sync::Arc;

/// Extents in a page when the caller does not care: about 90 KB on the wire, far below gRPC's
/// 4 MiB.
const DEFAULT_PAGE: usize = 4096;
/// Extents in a page at most, whatever the caller asks: about 1.5 MB on the wire.
const MAX_PAGE: usize = 65_536;
/// A stretch in which nothing is found gets a block that counts as changed at its end, so that a caller
/// whose stream is cut (external-snapshot-metadata ends them after ten minutes) goes on from there
/// instead of from its last change, for ever. Only where bytes are compared: 16 GiB take minutes there.
const STRETCH: u64 = 16 << 30;
/// The size of that block.
const MARK: u64 = 4096;

impl ControlEngine {
    /// GetMetadataAllocated and GetMetadataDelta. The first page is read before this returns, so
    /// that a refusal is an error of the call and not of the stream.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (snapshots of two volumes, negative page), `NotFound`, `OutOfRange`
    /// (offset), `Precondition` (not tracked: back up in full), `Unavailable`.
    pub async fn blocks(&self, query: QueryBlocks) -> Result<BlockStream> {
        self.check_ready()?;
        let inner = self.0.clone();
        inner.changed_blocks()?;
        let target = inner.snapshot_id(&query.snapshot_id)?;
        let base = query.base_snapshot_id.as_deref().map(|id| inner.handle(id, "base_snapshot_id"));
        let base = base.transpose()?.map(SnapshotId);
        let max = accept::page_size(query.max_results, "max_results")?.unwrap_or(DEFAULT_PAGE);
        let offset = u64::try_from(query.starting_offset).map_err(|_| {
            Fault::out_of_range(format!(
                "start at offset {}: it is negative",
                query.starting_offset
            ))
        })?;
        let cut = inner.moments(base.as_ref(), &target).await?;
        let max = max.min(MAX_PAGE);
        let mut walk = Walk { inner, base, target, cut, max, offset, quiet: 0, size: None };
        let first = walk.page().await?;
        let rest = stream::try_unfold(walk, async |mut walk| {
            Ok(walk.page().await?.map(|page| (page, walk)))
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }
}

impl Inner {
    fn changed_blocks(&self) -> Result<&dyn ChangedBlocks> {
        let blocks = self.backend.provision().changed_blocks();
        blocks.ok_or_else(|| self.unsupported("tell changed blocks"))
    }

    /// When the snapshots were cut, which tells them from later ones of their names.
    async fn moments(&self, base: Option<&SnapshotId>, target: &SnapshotId) -> Result<Moments> {
        let snapshots = self.snapshots()?;
        let Some(base) = base else {
            return Ok((None, snapshots.get_snapshot(target).await?.created));
        };
        let of = (snapshots.get_snapshot(base).await?, snapshots.get_snapshot(target).await?);
        if of.0.source == of.1.source {
            return Ok((Some(of.0.created), of.1.created));
        }
        Err(Fault::invalid(format!(
            "compare snapshot {base} of volume {} with snapshot {target} of volume {}",
            of.0.source, of.1.source
        ))
        .hint("both must be snapshots of one volume"))
    }
}

/// When base and target were cut.
type Moments = (Option<jiff::Timestamp>, jiff::Timestamp);

/// Where a stream is.
struct Walk {
    inner: Arc<Inner>,
    base: Option<SnapshotId>,
    target: SnapshotId,
    cut: Moments,
    max: usize,
    /// The first byte not yet told of.
    offset: u64,
    /// How many bytes were looked at since the last extent.
    quiet: u64,
    /// The volume's size, once known.
    size: Option<Bytes>,
}

impl Walk {
    /// The next page, which may be empty where looking takes long; None at the end.
    async fn page(&mut self) -> Result<Option<BlockPage>> {
        if self.size.is_some_and(|size| self.offset >= size.get()) {
            return Ok(None);
        }
        let blocks = self.inner.changed_blocks()?;
        let FoundExtents { mut extents, size: volume_capacity, next } =
            blocks.extents(self.base.as_ref(), &self.target, self.offset, self.max).await?;
        if self.inner.moments(self.base.as_ref(), &self.target).await? != self.cut {
            return Err(Fault::aborted(format!(
                "tell the blocks of snapshot {}: a snapshot was deleted and made anew meanwhile",
                self.target
            ))
            .hint("begin again"));
        }
        if self.size.is_none() && self.offset > volume_capacity.get() {
            return Err(Fault::out_of_range(format!(
                "start at offset {}: snapshot {} has {volume_capacity}",
                self.offset, self.target
            )));
        }
        self.check(&extents, next, volume_capacity)?;
        self.quiet = if extents.is_empty() { self.quiet + (next - self.offset) } else { 0 };
        if self.quiet >= STRETCH && next < volume_capacity.get() {
            let offset = (next - 1) / MARK * MARK;
            extents.push(Extent { offset, length: next - offset });
            self.quiet = 0;
        }
        self.size = Some(volume_capacity);
        self.offset = next;
        Ok(Some(BlockPage { volume_capacity, extents }))
    }

    /// A backup made from a disordered stream could
    /// not be restored, so order, overlap and size are proven here for every backend.
    fn check(&self, extents: &[Extent], goes_on: u64, size: Bytes) -> Result<()> {
        let broken = |what: &str| {
            Err(Fault::internal(format!("tell the blocks of snapshot {}: {what}", self.target)))
        };
        if self.size.is_some_and(|known| known != size) {
            return broken("the size of the volume changed during the stream");
        }
        let mut end = self.offset;
        for (n, extent) in extents.iter().enumerate() {
            let Some(next) = extent.offset.checked_add(extent.length) else {
                return broken("an extent ends beyond all numbers");
            };
            // Only the first of the whole stream may begin before the offset asked for.
            let overlaps = extent.offset < end && !(n == 0 && self.size.is_none());
            if overlaps || next <= end || next > size.get() {
                return broken("the extents are not in order");
            }
            end = next;
        }
        let is_end = goes_on == size.get();
        if goes_on < end || goes_on > size.get() || (goes_on == self.offset && !is_end) {
            return broken("it does not go on where it ended");
        }
        Ok(())
    }
}
