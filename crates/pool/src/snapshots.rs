//! Snapshots: cut, find, delete.
//!
//! A snapshot lives in its volume's pool as a copy of its own: deleting the volume leaves it whole.

use crate::{
    backend::Core,
    build::build,
    entry::{Entry, SnapshotEntry},
    groups,
    layout::Shelf,
    medium::{Medium, Origin, SnapshotFacts},
    pool::Pool,
    record::{FORMAT, SnapshotRecord},
    trash::Kept,
    volumes::not_absent,
};
use larder_model::{
    Bytes, Cx, Fault, Result, SnapshotId, VolumeId,
    volume::{Snapshot, SnapshotSpec},
};
use serde_json::Map;
use uuid::Uuid;

impl<M: Medium> Core<M> {
    pub(crate) fn ensure_snapshot(&self, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let id = &spec.id;
        if id.pool() != spec.source.pool() {
            return Err(Fault::invalid(format!(
                "cut snapshot {id} of volume {}: it lives in its volume's pool",
                spec.source
            )));
        }
        let pool = self.places.get(id.pool())?;
        let what = format!("cut snapshot {id}");
        let _claim = self.claims.alone(Shelf::Snapshots, id.native(), what, cx)?;
        let _lock = pool.shared_lock(Shelf::Snapshots, id.native(), "use", true)?;
        self.with_room(&pool, cx, || self.cut_or_match(&pool, spec, cx))
            .map_err(|fault| pool.explain(fault).during(format!("cut snapshot {id}")))
    }

    fn cut_or_match(&self, pool: &Pool, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let native = spec.id.native();
        let source = spec.source.native();
        if let Some(entry) = pool.snapshot(native)? {
            let record = &entry.record;
            let what = if record.source != *source {
                format!(
                    "it is of volume {}",
                    VolumeId::new(pool.name().clone(), record.source.clone())
                )
            } else if record.name != spec.name.as_str() {
                format!("it was asked for as {:?}", record.name)
            } else {
                return Ok(self.describe_snapshot(&entry));
            };
            return Err(Fault::conflict(format!("it exists, but {what}"))
                .hint("choose another name, or delete the other one"));
        }
        self.refuse_twins(Shelf::Snapshots, pool, native, |other| {
            other.snapshot(native).map(|s| s.is_some_and(|s| s.record.name == spec.name.as_str()))
        })?;
        self.medium.check_snapshot_parameters(&spec.parameters)?;
        pool.refuse_read_only()?;
        let what = format!("cut volume {} as snapshot {}", spec.source, spec.id);
        let _reading = self.claims.together(Shelf::Volumes, source, what, cx)?;
        let _lock = pool.shared_lock(Shelf::Volumes, source, "use", false)?;
        let volume = self
            .lookup(pool, source)?
            .ok_or_else(|| Fault::not_found(format!("find volume {}", spec.source)))?;
        self.refuse_formatting(pool, &volume)?;
        let _promise = pool.promise(Bytes::ZERO, Bytes::ZERO)?;
        let record = build(&*self.medium, pool, native, cx, |folder| {
            cx.step("cut the volume's data")?;
            let created = jiff::Timestamp::now();
            let facts = self.medium.cut(pool, &volume, folder, cx)?;
            self.refuse_changed(&Origin::Volume(pool.clone(), volume.clone()))?;
            Ok(new_record(spec, &volume, facts, created))
        })?;
        Ok(self.describe_snapshot(&pool.snapshot_entry(native.clone(), record)))
    }

    pub(crate) fn delete_snapshot(&self, id: &SnapshotId, cx: &Cx) -> Result<()> {
        let during = |fault: Fault| fault.during(format!("delete snapshot {id}"));
        let native = id.native();
        let pool = self.places.get(id.pool()).map_err(during)?;
        let what = format!("delete snapshot {id}");
        let _claim = self.claims.alone(Shelf::Snapshots, native, what, cx)?;
        let lock = pool.shared_lock(Shelf::Snapshots, native, "use", true)?;
        let delete = || {
            let found = pool.snapshot(native)?;
            // Nothing else would delete one whose group does not exist, or does not know it.
            if let Some(entry) = &found
                && let Some(group) = &entry.record.group
                && self.is_member(&pool, group, entry)?
            {
                let group = groups::shown(id, group);
                return Err(Fault::invalid(format!("it is a member of group {group}"))
                    .hint("delete the group"));
            }
            let kept = found.as_ref().map(|entry| (Kept::snapshot(entry), &*entry.data));
            self.discard(&pool, Shelf::Snapshots, native, kept, cx)
        };
        delete().map_err(|fault| during(not_absent(pool.explain(fault))))?;
        pool.forget_locks(Shelf::Snapshots, native, lock);
        Ok(())
    }

    pub(crate) fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let pool = self.places.get(id.pool())?;
        let entry = pool
            .snapshot(id.native())?
            .ok_or_else(|| Fault::not_found(format!("find snapshot {id}")))?;
        Ok(self.describe_snapshot(&entry))
    }

    pub(crate) fn describe_snapshot(&self, entry: &SnapshotEntry) -> Snapshot {
        let record = &entry.record;
        Snapshot {
            id: entry.id.clone(),
            name: record.name.clone(),
            source: VolumeId::new(entry.id.pool().clone(), record.source.clone()),
            size: record.size,
            created: record.created,
            ready: true,
            group: record.group.as_ref().map(|group| groups::shown(&entry.id, group)),
            topology: self.medium.facts().scope.segments().into_iter().collect(),
        }
    }
}

/// The record of what was just cut from `volume`.
pub(crate) fn new_record(
    spec: &SnapshotSpec,
    volume: &Entry,
    facts: SnapshotFacts,
    created: jiff::Timestamp,
) -> SnapshotRecord {
    SnapshotRecord {
        format: FORMAT,
        id: Uuid::new_v4(),
        name: spec.name.to_string(),
        source: spec.source.native().clone(),
        source_id: volume.record.id,
        size: facts.size,
        created,
        parameters: spec.parameters.clone(),
        group: None,
        file_system: volume.record.file_system,
        source_medium: volume.record.medium.clone(),
        medium: facts.medium,
        rest: Map::new(),
    }
}
