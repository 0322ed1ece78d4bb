//! The trash: what was deleted is moved aside and kept for a while, where the pool asks for it.
//!
//! ```text
//!            record, rename                     rename                 removal
//!  volumes/ ───────────────▶ trash/ ─────────────────────▶ deleting/ ─────────▶
//!            ◀───────────────         due, asked for, or
//!                 restore             its space is needed
//! ```
//! Each arrow is one rename, so what is killed on the way is in one place or the other, and the record in
//! `trash/` (written before the first, removed after the others) is the only thing left over. From the
//! first rename on the volume is gone for every caller; its name is free. Its data is as it was: quota
//! ids, subvolumes and shared blocks stay until it is really removed.
//!
//! What is in it counts as free: it is no promise, and it yields to whoever finds no room, the oldest first:
//! see [`yielding`].

mod bin;
mod empty;
pub(crate) mod look;
mod record;
mod restore;
mod yielding;

pub(crate) use bin::{Bin, Stop};
pub(crate) use empty::Emptier;
pub use look::{TrashFault, TrashItem};
pub(crate) use record::Kept;
pub use record::{TrashRecord, TrashSort};
pub(crate) use yielding::Yielding;

use crate::{
    LocalBackend,
    backend::Core,
    build::raze,
    entry::{Entry, SnapshotEntry},
    layout::{Shelf, TRASH},
    medium::Medium,
    pool::Pool,
};
use async_trait::async_trait;
use bin::{is_absent, record_path};
use larder_host::{clock::Moment, durable};
use larder_model::{
    Cx, Fault, Native, Period, PoolName, RequestedName, Result, SnapshotId, VolumeId,
    trash::{Removed, Trash, Trashed},
};
use std::{io::ErrorKind, path::Path};

impl Kept {
    /// A volume, as long as it is one that is worth to be kept: those of a pod end with it.
    pub(crate) fn volume(entry: &Entry) -> Option<Self> {
        let record = &entry.record;
        (!record.ephemeral).then(|| Self {
            sort: TrashSort::Volume,
            native: entry.id.native().clone(),
            name: record.name.clone(),
            record: record.id,
            source: None,
            size: record.size,
        })
    }

    pub(crate) fn snapshot(entry: &SnapshotEntry) -> Self {
        let record = &entry.record;
        Self {
            sort: TrashSort::Snapshot,
            native: entry.id.native().clone(),
            name: record.name.clone(),
            record: record.id,
            source: Some(record.source.clone()),
            size: record.size,
        }
    }
}

impl<M: Medium> Core<M> {
    /// Takes `native` away, as [`raze`] does; where the pool has a trash, into that. `kept` is None for
    /// what is absent, and for what is never kept.
    pub(crate) fn discard(
        &self,
        pool: &Pool,
        shelf: Shelf,
        native: &Native,
        kept: Option<(Kept, &Path)>,
        cx: &Cx,
    ) -> Result<()> {
        match kept {
            // Without data there is nothing to restore.
            Some((kept, data)) if pool.config().trash.is_some() && !is_absent(data) => {
                self.put(pool, kept, data, cx)
            }
            _ => {
                let sort =
                    if shelf == Shelf::Volumes { TrashSort::Volume } else { TrashSort::Snapshot };
                if pool.bin().holds(sort, native) {
                    // An earlier call may have failed between the rename and this.
                    sync(pool, shelf)?;
                }
                raze(&*self.medium, pool, shelf, native, cx)
            }
        }
    }

    fn put(&self, pool: &Pool, kept: Kept, data: &Path, cx: &Cx) -> Result<()> {
        let (shelf, native) = (kept.sort.shelf(), kept.native.clone());
        // For a guess how much its removal would free; nothing depends on it.
        let allocated = self.medium.takes(pool, data).unwrap_or_default();
        let record = TrashRecord::new(kept, pool.name(), allocated, Moment::now());
        let file = record_path(pool.path(), &record);
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|e| Fault::internal("write down what goes into the trash").because(e))?;
        cx.step("write the trash's record")?;
        let written = self.with_room(pool, cx, || durable::write(&file, &text));
        match written {
            Err(fault) if fault.is_no_room() => {
                // Whoever deletes on a full disk needs the space.
                tracing::warn!(pool = %pool.name(), "{shelf} {native} is deleted at once: {fault}");
                return raze(&*self.medium, pool, shelf, &native, cx);
            }
            written => written?,
        }
        cx.step("move it into the trash")?;
        let place = shelf.place(pool.path(), &native);
        let folder = pool.path().join(TRASH).join(record.folder());
        let moved = pool.while_current(|| match std::fs::rename(&place, &folder) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound && is_absent(&place) => {
                if pool.still_there() {
                    return Ok(false);
                }
                Err(Fault::unavailable(format!("move {} aside", place.display())).because(e))
            }
            Err(e) => Err(Fault::io(format!("move {} into the trash", place.display()), e)),
        });
        if !matches!(moved, Ok(true)) {
            if let Err(fault) = durable::remove_file(&file) {
                tracing::warn!("{fault}; the next start tries again");
            }
            if !moved? {
                tracing::warn!("{} vanished before its deletion", place.display());
            }
            pool.catalog().remove(shelf, &native);
            return Ok(());
        }
        pool.catalog().remove(shelf, &native);
        pool.bin().add(record);
        self.medium.moved(data);
        cx.step("make its deletion durable")?;
        sync(pool, shelf)
    }

    fn list_trash(&self) -> Result<Vec<Trashed>> {
        let now = Moment::now();
        let mut found = Vec::new();
        for name in self.places.names() {
            let pool = self.places.get(name).map_err(|fault| fault.during("list the trash"))?;
            let retention = pool.config().trash;
            found.extend(pool.bin().all(&now).into_iter().map(|r| describe(&r, name, retention)));
        }
        found.sort_by(|a, b| (b.deleted, &b.id).cmp(&(a.deleted, &a.id)));
        Ok(found)
    }

    /// The pool that has that in its trash; None: none has.
    ///
    /// # Errors
    /// `Unavailable` where none has it and one cannot be asked.
    fn pool_with(&self, id: &str) -> Result<Option<Pool>> {
        let mut away = None;
        for name in self.places.names() {
            match self.places.get(name) {
                Ok(pool) if pool.bin().has(id) => return Ok(Some(pool)),
                Ok(_) => {}
                Err(fault) => away = Some(fault),
            }
        }
        away.map_or(Ok(None), Err)
    }
}

fn describe(record: &TrashRecord, pool: &PoolName, retention: Option<Period>) -> Trashed {
    let id = |native: &Native| VolumeId::new(pool.clone(), native.clone()).to_string();
    let due =
        retention.and_then(|retention| record.deleted.checked_add(retention.as_duration()).ok());
    Trashed {
        id: record.id.clone(),
        pool: pool.clone(),
        sort: record.sort.sort(),
        origin: match record.sort {
            TrashSort::Volume => id(&record.native),
            TrashSort::Snapshot => SnapshotId::new(pool.clone(), record.native.clone()).to_string(),
        },
        name: record.name.clone(),
        source: record.source.as_ref().map(id),
        size: record.size,
        allocated: record.allocated,
        deleted: record.deleted,
        due,
    }
}

/// Makes durable what was moved between a shelf and the trash.
fn sync(pool: &Pool, shelf: Shelf) -> Result<()> {
    durable::sync_dir(&pool.path().join(TRASH))?;
    durable::sync_dir(&shelf.folder(pool.path()))
}

#[async_trait]
impl<M: Medium> Trash for LocalBackend<M> {
    async fn list_trash(&self) -> Result<Vec<Trashed>> {
        self.run(Core::list_trash).await
    }
    async fn restore(&self, id: &str, name: Option<&RequestedName>, cx: &Cx) -> Result<String> {
        let (id, name, cx) = (id.to_owned(), name.cloned(), cx.clone());
        self.run(move |core| core.restore(&id, name.as_ref(), &cx)).await
    }
    async fn remove(&self, id: &str, cx: &Cx) -> Result<()> {
        let (id, cx) = (id.to_owned(), cx.clone());
        self.run(move |core| core.remove_from_trash(&id, &cx)).await
    }
    async fn empty(&self, older_than: Option<Period>, cx: &Cx) -> Result<Removed> {
        let cx = cx.clone();
        self.run(move |core| core.empty_trash(older_than, &cx)).await
    }
}
