//! Allocated and changed blocks of snapshots.
//!
//! Nothing is claimed: reading is never held up, and a snapshot's data never changes. What may happen
//! is that a snapshot is deleted while it is read, and that its name is given to another: so both are
//! looked for again afterwards, and must be the same.

use crate::{
    LocalBackend,
    backend::Core,
    entry::SnapshotEntry,
    medium::{Blocks, Medium},
    pool::Pool,
};
use async_trait::async_trait;
use larder_model::{
    Fault, Result, SnapshotId,
    backend::{ChangedBlocks, FoundExtents},
};

impl<M: Medium> Core<M> {
    fn blocks(
        &self,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        wanted: Blocks,
    ) -> Result<FoundExtents> {
        let pool = self.places.get(target.pool())?;
        if let Some(base) = base.filter(|base| base.pool() != target.pool()) {
            return Err(Fault::invalid(format!(
                "compare snapshot {base} with snapshot {target}: they are in two pools"
            )));
        }
        let work = || {
            let find = |id| find(&pool, id);
            let (before, now) = (base.map(find).transpose()?, find(target)?);
            // The medium may know of less that a workload sees.
            let size = now.record.size;
            if wanted.offset > size.get() {
                return Err(Fault::out_of_range(format!(
                    "start at byte {}: it has {size}",
                    wanted.offset
                )));
            }
            let told = self.medium.blocks(&pool, before.as_ref(), &now, wanted);
            // Gone, or another by now: that is what to say, whatever was read.
            for entry in before.iter().chain([&now]) {
                if find(&entry.id)?.record.id != entry.record.id {
                    return Err(gone(&entry.id));
                }
            }
            told
        };
        work().map_err(|fault| {
            pool.explain(fault).during(format!("tell the blocks of snapshot {target}"))
        })
    }
}

fn find(pool: &Pool, id: &SnapshotId) -> Result<SnapshotEntry> {
    pool.snapshot(id.native())?.ok_or_else(|| gone(id))
}

fn gone(id: &SnapshotId) -> Fault {
    Fault::not_found(format!("find snapshot {id}"))
}

#[async_trait]
impl<M: Medium> ChangedBlocks for LocalBackend<M> {
    async fn extents(
        &self,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        offset: u64,
        max: usize,
    ) -> Result<FoundExtents> {
        let (base, target) = (base.cloned(), target.clone());
        self.run(move |core| core.blocks(base.as_ref(), &target, Blocks { offset, max })).await
    }
}
