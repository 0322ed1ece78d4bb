//! Out of the trash again.

use super::{TrashSort, bin::Taken, sync};
use crate::{
    backend::Core,
    catalog::{Record, read_record},
    layout::{RECORD, Shelf},
    medium::Medium,
    pool::{Pool, text_of},
    record::{SnapshotRecord, VolumeRecord},
    statics,
};
use larder_host::durable;
use larder_model::{Cx, Fault, Kind, Native, RequestedName, Result, VolumeId};
use uuid::Uuid;

/// What a restoration asks of both sorts of records.
trait Named: Record {
    fn id(&self) -> Uuid;
    fn name(&mut self) -> &mut String;
}

impl Named for VolumeRecord {
    fn id(&self) -> Uuid {
        self.id
    }
    fn name(&mut self) -> &mut String {
        &mut self.name
    }
}

impl Named for SnapshotRecord {
    fn id(&self) -> Uuid {
        self.id
    }
    fn name(&mut self) -> &mut String {
        &mut self.name
    }
}

impl<M: Medium> Core<M> {
    pub(super) fn restore(
        &self,
        id: &str,
        name: Option<&RequestedName>,
        cx: &Cx,
    ) -> Result<String> {
        let what = format!("restore {id} from the trash");
        let absent = || {
            Fault::not_found(format!("{what}: it is not there"))
                .hint("larder trash ls shows what is; it may have been restored or removed already")
        };
        let pool = self.pool_with(id)?.ok_or_else(absent)?;
        let restore = || {
            let taken = pool.take_from_trash(id)?.ok_or_else(absent)?;
            let native = name.map_or_else(|| taken.record.native.clone(), RequestedName::native);
            let name = name.map_or(taken.record.name.as_str(), RequestedName::as_str);
            match taken.record.sort {
                TrashSort::Volume => {
                    self.restore_as::<VolumeRecord>(&pool, &taken, &native, name, cx)?;
                }
                TrashSort::Snapshot => {
                    self.restore_as::<SnapshotRecord>(&pool, &taken, &native, name, cx)?;
                }
            }
            Ok(VolumeId::new(pool.name().clone(), native).to_string())
        };
        restore().map_err(|fault: Fault| pool.explain(fault).during(&what))
    }

    fn restore_as<R: Named>(
        &self,
        pool: &Pool,
        taken: &Taken<'_>,
        native: &Native,
        name: &str,
        cx: &Cx,
    ) -> Result<()> {
        let shelf = R::SHELF;
        let what = format!("restore {shelf} {}/{native} from the trash", pool.name());
        let _claim = self.claims.alone(shelf, native, what, cx)?;
        let is_taken = || {
            Fault::conflict(format!("the name of {shelf} {}/{native} is taken", pool.name()))
                .hint("choose another one: larder trash restore ID --as NAME")
        };
        let is_static = shelf == Shelf::Volumes && statics::exists(&*self.medium, pool, native);
        if pool.catalog().contains(shelf, native) || is_static {
            return Err(is_taken());
        }
        self.refuse_twins(shelf, pool, native, |_| Ok(true))?;
        pool.refuse_read_only()?;
        let folder = taken.folder();
        let found = read_record::<R>(&folder)?;
        let (mut record, mut text) = found.ok_or_else(|| {
            Fault::corrupt(format!("{} is gone", folder.display()))
                .hint("somebody removed it by hand; larder trash rm forgets it")
        })?;
        if record.id() != taken.record.record {
            return Err(Fault::corrupt(format!(
                "{} holds another {shelf} than was deleted",
                folder.display()
            )));
        }
        // A volume is a promise again; it takes no space that it has not.
        let _promise = pool.promise_size(if shelf == Shelf::Volumes {
            record.size()
        } else {
            larder_model::Bytes::ZERO
        })?;
        if record.name() != name {
            name.clone_into(record.name());
            text = text_of(&record)?;
            cx.step("write the restored name")?;
            durable::sweep_temporary(&folder)?;
            self.with_room(pool, cx, || durable::write(&folder.join(RECORD), &text))?;
        }
        cx.step("take it out of the trash")?;
        let place = shelf.place(pool.path(), native);
        pool.while_current(|| durable::rename_new_unsynced(&folder, &place))
            .map_err(|fault| if fault.kind() == Kind::Conflict { is_taken() } else { fault })?;
        let synced = cx.step("make what was restored durable").and_then(|()| sync(pool, shelf));
        if let Err(fault) = synced {
            if !fault.is_simulated_crash() {
                // It must not be there when we say that it is not.
                durable::rename_new_unsynced(&place, &folder)?;
            }
            return Err(fault);
        }
        pool.catalog().put(native, &record, text);
        taken.gone();
        cx.step("remove the trash's record")?;
        if let Err(fault) = taken.forget() {
            tracing::warn!("{fault}; the next start tries again");
        }
        tracing::info!(pool = %pool.name(), "{shelf} {native} was restored from the trash");
        Ok(())
    }
}
