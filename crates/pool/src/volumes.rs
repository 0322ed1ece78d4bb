//! Volumes: create, find, grow, delete.

use crate::{
    backend::Core,
    build::build,
    entry::Entry,
    layout::Shelf,
    medium::{Medium, Origin, Plan, PlanRequest},
    pool::Pool,
    record::{Access, FORMAT, FileMark, SourceRef, VolumeRecord},
    statics,
    trash::Kept,
};
use larder_model::{
    Bytes, CapacityRange, Cx, Encryption, Fault, Kind, Limits, LimitsChange, Native, Result,
    VolumeId,
    volume::{Attributes, ContentSource, FormatState, Volume, VolumeSpec, context},
};
use serde_json::Map;
use uuid::Uuid;

impl<M: Medium> Core<M> {
    pub(crate) fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        let id = &spec.id;
        let native = id.native();
        let pool = self.places.get(id.pool())?;
        let what = format!("create volume {id}");
        let _claim = self.claims.alone(Shelf::Volumes, native, what, cx)?;
        let _lock = pool.shared_lock(Shelf::Volumes, native, "use", true)?;
        self.with_room(&pool, cx, || self.make_or_match(&pool, spec, cx))
            .map_err(|fault| pool.explain(fault).during(format!("create volume {id}")))
    }

    fn make_or_match(&self, pool: &Pool, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        let native = spec.id.native();
        if let Some(entry) = pool.volume(native)? {
            return match difference(&entry, spec) {
                None => Ok(self.describe(&entry)),
                Some(what) => Err(Fault::conflict(format!("it exists, but {what}"))
                    .hint("choose another name, or ask for the same properties")),
            };
        }
        if statics::exists(&*self.medium, pool, native) {
            return Err(Fault::conflict("a static volume has that name"));
        }
        self.refuse_twins(Shelf::Volumes, pool, native, |other| {
            other.volume(native).map(|v| v.is_some_and(|v| v.record.name == spec.name.as_str()))
        })?;
        pool.refuse_read_only()?;
        let (origin, _reading) = self.origin(pool, spec, cx)?;
        let limits = if self.medium.has_limits() {
            LimitsChange::parse(&spec.mutable_parameters)?;
            Limits::of(&spec.parameters, &spec.mutable_parameters)?
        } else {
            Limits::NONE
        };
        if let Some(state) = origin.as_ref().and_then(Origin::file_system) {
            state.check_copy(spec.encryption.as_ref())?;
        }
        let request = PlanRequest { spec, origin: origin.as_ref() };
        let mut plan = self.medium.plan(pool, &request)?;
        plan.context.extend(spec.encryption.iter().flat_map(Encryption::context));
        self.refuse_too_large(pool, plan.size)?;
        let _promise = pool.promise(plan.size, plan.allocates)?;
        let record = build(&*self.medium, pool, native, cx, |folder| {
            cx.step("make the volume's data")?;
            match &origin {
                None => self.medium.create(pool, folder, &plan, cx)?,
                Some(origin) => {
                    self.medium.fill(pool, origin, folder, &plan, cx)?;
                    self.refuse_changed(origin)?;
                }
            }
            let mut record = new_record(spec, origin.as_ref(), plan);
            record.limits = limits;
            if record.file_system.is_some() {
                record.noted_of = Some(FileMark::of(&folder.join(self.medium.data_name()))?);
            }
            Ok(record)
        })?;
        Ok(self.describe(&pool.entry(native.clone(), record)))
    }

    /// The source of a new volume, kept from deletion while the returned claims live.
    fn origin(
        &self,
        pool: &Pool,
        spec: &VolumeSpec,
        cx: &Cx,
    ) -> Result<(Option<Origin>, impl Sized + use<M>)> {
        let Some(source) = &spec.source else { return Ok((None, None)) };
        let (shelf, handle) = match source {
            ContentSource::Snapshot(id) => (Shelf::Snapshots, &id.0),
            ContentSource::Volume(id) => (Shelf::Volumes, &id.0),
        };
        let native = handle.native();
        let missing = || Fault::not_found(format!("find {source}, which it shall be made from"));
        if matches!(source, ContentSource::Volume(id) if id.0 == spec.id.0) {
            return Err(missing());
        }
        let there = if handle.pool() == pool.name() {
            pool.clone()
        } else {
            self.places.get(handle.pool())?
        };
        let what = format!("copy {source} to volume {}", spec.id);
        let claim = self.claims.together(shelf, native, what, cx)?;
        let lock = there.shared_lock(shelf, native, "use", false)?;
        let origin = match source {
            ContentSource::Snapshot(_) => {
                there.snapshot(native)?.map(|entry| Origin::Snapshot(there.clone(), entry))
            }
            ContentSource::Volume(_) => {
                self.lookup(&there, native)?.map(|entry| Origin::Volume(there.clone(), entry))
            }
        };
        let origin = origin.ok_or_else(missing)?;
        if let Origin::Volume(_, entry) = &origin {
            self.refuse_formatting(&there, entry)?;
        }
        Ok((Some(origin), Some((claim, lock))))
    }

    /// While our mkfs runs, and after it was cut, a copy would hold a piece of it.
    pub(crate) fn refuse_formatting(&self, pool: &Pool, entry: &Entry) -> Result<()> {
        let is_begun = |entry: &Entry| entry.record.file_system.is_some_and(FormatState::is_begun);
        if !is_begun(entry) {
            return Ok(());
        }
        let refusal = self.formatting.refusal(&entry.id);
        // It may have ended since the record was read.
        match self.lookup(pool, entry.id.native())? {
            Some(now) if is_begun(&now) => Err(refusal),
            _ => Err(Fault::unavailable(format!(
                "copy volume {}: it was formatted or deleted at this moment",
                entry.id
            ))
            .hint("ask again")),
        }
    }

    /// A file system state that was noted before a copy must still hold after it: it says of the
    /// copy whether it may ever be formatted.
    pub(crate) fn refuse_changed(&self, origin: &Origin) -> Result<()> {
        let Origin::Volume(pool, before) = origin else { return Ok(()) };
        let after = self.lookup(pool, before.id.native())?;
        if after.is_some_and(|after| after.record.file_system == before.record.file_system) {
            return Ok(());
        }
        Err(Fault::unavailable(format!(
            "copy volume {}: it was formatted or deleted meanwhile",
            before.id
        ))
        .hint("ask again"))
    }

    /// A name belongs to one pool of a driver: callers know volumes by name until they know the id.
    /// A pool that is away cannot be asked.
    pub(crate) fn refuse_twins(
        &self,
        shelf: Shelf,
        pool: &Pool,
        native: &Native,
        same_name: impl Fn(&Pool) -> Result<bool>,
    ) -> Result<()> {
        for name in self.places.names().filter(|name| *name != pool.name()) {
            let Ok(other) = self.places.get(name) else { continue };
            // Unreadable counts as the same.
            if other.catalog().contains(shelf, native) && same_name(&other).unwrap_or(true) {
                return Err(Fault::conflict(format!("it exists in pool {name}"))
                    .hint("names are unique in all pools of a driver: choose another"));
            }
        }
        Ok(())
    }

    fn refuse_too_large(&self, pool: &Pool, size: Bytes) -> Result<()> {
        match self.medium.max_size(pool) {
            Some(max) if size > max => Err(Fault::out_of_range(format!(
                "provide {size}: the pool's file system holds at most {max} in one volume"
            ))),
            _ => Ok(()),
        }
    }

    /// The volume, created or static.
    pub(crate) fn lookup(&self, pool: &Pool, native: &Native) -> Result<Option<Entry>> {
        match pool.volume(native)? {
            Some(entry) => Ok(Some(entry)),
            None => match statics::find(&*self.medium, pool, native)? {
                Some(entry) => Ok(Some(entry)),
                None if pool.still_there() => Ok(None),
                None => Err(Fault::unavailable(format!("look into pool {}", pool.name()))),
            },
        }
    }

    /// The volume, and the pool it is in.
    pub(crate) fn find(&self, id: &VolumeId) -> Result<(Pool, Entry)> {
        let pool = self.places.get(id.pool())?;
        let entry = self.look_up(&pool, id)?;
        Ok((pool, entry))
    }

    /// The volume in its pool.
    pub(crate) fn look_up(&self, pool: &Pool, id: &VolumeId) -> Result<Entry> {
        self.lookup(pool, id.native())
            .map_err(|fault| pool.explain(fault))?
            .ok_or_else(|| Fault::not_found(format!("find volume {id}")))
    }

    pub(crate) fn delete_volume(&self, id: &VolumeId, cx: &Cx) -> Result<()> {
        let during = |fault: Fault| fault.during(format!("delete volume {id}"));
        let native = id.native();
        let pool = self.places.get(id.pool()).map_err(during)?;
        let what = format!("delete volume {id}");
        let _claim = self.claims.alone(Shelf::Volumes, native, what, cx)?;
        let lock = pool.shared_lock(Shelf::Volumes, native, "use", true)?;
        let delete = || {
            let found = self.lookup(&pool, native)?;
            match &found {
                Some(entry) if entry.is_static => {
                    return Err(Fault::precondition("it is static: an administrator put it there")
                        .hint(format!("remove {} by hand", entry.data.display())));
                }
                Some(entry) => {
                    if let Some(user) = self.medium.in_use(&pool, entry)? {
                        return Err(Fault::precondition(format!("it is in use: {user}"))
                            .hint("unpublish and unstage it first"));
                    }
                }
                None => {}
            }
            let kept = found.as_ref().and_then(|entry| Some((Kept::volume(entry)?, &*entry.data)));
            self.discard(&pool, Shelf::Volumes, native, kept, cx)
        };
        delete().map_err(|fault| during(not_absent(pool.explain(fault))))?;
        pool.forget_locks(Shelf::Volumes, native, lock);
        Ok(())
    }

    pub(crate) fn expand_volume(
        &self,
        id: &VolumeId,
        range: CapacityRange,
        cx: &Cx,
    ) -> Result<Bytes> {
        let native = id.native();
        let (pool, _) = self.find(id)?;
        let what = format!("expand volume {id}");
        let _claim = self.claims.alone(Shelf::Volumes, native, what, cx)?;
        let _lock = pool.shared_lock(Shelf::Volumes, native, "use", true)?;
        // As it is now that nobody else works on it.
        let (_, entry) = self.find(id)?;
        self.with_room(&pool, cx, || self.grow(&pool, &entry, range, cx))
            .map_err(|fault| pool.explain(fault).during(format!("expand volume {id}")))
    }

    fn grow(&self, pool: &Pool, entry: &Entry, range: CapacityRange, cx: &Cx) -> Result<Bytes> {
        let now = entry.record.size;
        if let Some(limit) = range.limit.filter(|limit| *limit < now) {
            return Err(Fault::out_of_range(format!("keep it within {limit}: it has {now}"))
                .hint("volumes never shrink"));
        }
        if range.required <= now {
            return Ok(now);
        }
        let facts = self.medium.facts();
        let size = range.pick(now, facts.min_size, facts.size_step)?;
        self.refuse_too_large(pool, size)?;
        // For callers a precondition of growing is that nobody uses the volume, and that is no remedy.
        pool.refuse_read_only().map_err(|fault| fault.with_kind(Kind::Unavailable))?;
        let more = size.saturating_sub(now);
        let _promise = pool.promise(more, self.medium.growth_allocates(pool, entry, size))?;
        // The effect first: data that is larger than its record is harmless, and the next call
        // finds the record too small and does the same again.
        cx.step("grow the volume's data")?;
        self.medium.grow(pool, entry, size, cx)?;
        cx.step("write the volume's new size")?;
        pool.update_record(entry, |record| {
            record.size = size;
            Ok(())
        })?;
        cx.step("answer")?;
        Ok(size)
    }

    /// Changes the limits in the volume's record, whoever uses the volume.
    pub(crate) fn modify_volume(
        &self,
        id: &VolumeId,
        parameters: &Attributes,
        cx: &Cx,
    ) -> Result<()> {
        let change = LimitsChange::parse(parameters)?;
        let (pool, entry) = self.find(id)?;
        if change.over(entry.record.limits) == entry.record.limits {
            return Ok(());
        }
        pool.refuse_read_only()?;
        cx.step("write the volume's limits")?;
        let written = pool.update_record(&entry, |record| {
            record.limits = change.over(record.limits);
            Ok(())
        });
        written.map(drop).map_err(|fault| pool.explain(fault).during(format!("modify volume {id}")))
    }

    /// The volume as callers see it.
    pub(crate) fn describe(&self, entry: &Entry) -> Volume {
        let record = &entry.record;
        Volume {
            id: entry.id.clone(),
            name: record.name.clone(),
            capacity: record.size,
            context: record.context.clone(),
            source: record.source.as_ref().map(|source| source.to_source(entry.id.pool())),
            topology: self.medium.facts().scope.segments().into_iter().collect(),
            created: record.created,
            is_static: entry.is_static,
            ephemeral: record.ephemeral,
            uses: Access::uses(&record.access),
            limits: record.limits,
        }
    }
}

/// A failed deletion. `NotFound` would tell the caller that the volume or snapshot is gone, whatever it
/// was that was not found on the way.
pub(crate) fn not_absent(fault: Fault) -> Fault {
    match fault.kind() {
        Kind::NotFound => fault.with_kind(Kind::Internal).hint(
            "it still exists; something in its pool is missing, which a restart mends or names",
        ),
        _ => fault,
    }
}

fn new_record(spec: &VolumeSpec, origin: Option<&Origin>, plan: Plan) -> VolumeRecord {
    VolumeRecord {
        format: FORMAT,
        id: Uuid::new_v4(),
        name: spec.name.to_string(),
        size: plan.size,
        created: jiff::Timestamp::now(),
        parameters: spec.parameters.clone(),
        mutable_parameters: spec.mutable_parameters.clone(),
        access: Access::of(&spec.capabilities),
        source: spec.source.as_ref().map(|source| SourceRef::new(source, spec.id.pool())),
        context: plan.context,
        ephemeral: spec.ephemeral,
        file_system: match origin {
            Some(origin) => origin.file_system(),
            None => plan.file_system,
        },
        noted_of: None,
        limits: Limits::NONE,
        medium: plan.medium,
        rest: Map::new(),
    }
}

/// In what the volume is not what is asked for now; None: it is.
fn difference(entry: &Entry, spec: &VolumeSpec) -> Option<String> {
    let record = &entry.record;
    if record.name != spec.name.as_str() {
        return Some(format!("it was asked for as {:?}", record.name));
    }
    if !spec.capacity.contains(record.size) {
        return Some(format!("its size is {}", record.size));
    }
    let source = record.source.as_ref().map(|source| source.to_source(entry.id.pool()));
    if source != spec.source {
        return Some(match source {
            Some(source) => format!("it was made from {source}"),
            None => "it was made empty".to_owned(),
        });
    }
    if let Some(key) = first_difference(&record.parameters, &spec.parameters)
        .or_else(|| first_difference(&record.mutable_parameters, &spec.mutable_parameters))
    {
        return Some(format!("its parameter {key} differs"));
    }
    if Encryption::of_context(&record.context).ok() != Some(spec.encryption) {
        return Some("its encryption differs".to_owned());
    }
    let asked = Access::of(&spec.capabilities);
    if let Some(access) = asked.iter().find(|access| !serves(record, access)) {
        return Some(match access {
            Access::Block => "it was not asked for as a raw block device".to_owned(),
            Access::Mount(fs) if fs.is_empty() => "it was not asked for as a mount".to_owned(),
            Access::Mount(fs) => format!("it was not asked for with file system {fs:?}"),
        });
    }
    if record.ephemeral != spec.ephemeral {
        return Some(format!("it is {}ephemeral", if record.ephemeral { "" } else { "not " }));
    }
    None
}

fn serves(record: &VolumeRecord, asked: &Access) -> bool {
    let default_fs = record.context.get(context::FS).map(String::as_str);
    record.access.iter().any(|access| match (access, asked) {
        (Access::Block, Access::Block) => true,
        (Access::Mount(have), Access::Mount(want)) => {
            let have = if have.is_empty() { default_fs.unwrap_or_default() } else { have };
            let want = if want.is_empty() { default_fs.unwrap_or_default() } else { want };
            have.is_empty() || want.is_empty() || have == want
        }
        _ => false,
    })
}

fn first_difference<'a>(a: &'a Attributes, b: &'a Attributes) -> Option<&'a str> {
    a.iter().chain(b).map(|(key, _)| key.as_str()).find(|key| a.get(*key) != b.get(*key))
}
