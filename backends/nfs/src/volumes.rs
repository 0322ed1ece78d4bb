//! Volumes of an export: create, delete, find, grow.
//!
//! ```text
//! (nothing) ──record: creating──▶ claim ─▶ directory ──record: ready──▶ exists
//! exists ──record: deleting──▶ directory moved aside ─▶ data removed ─▶ claim freed ──record removed──▶
//! ```
//! Every step can be done twice. What is `creating` was never acknowledged: the next equal call finishes
//! it, any other takes it back. What is `deleting` is gone, and the repeated deletion finishes it.

use crate::{
    claims,
    config::OnDelete,
    copies::{Copy, may_go_on},
    export::Export,
    parameters::VolumeParameters,
    place::{self, OURS, SubDir},
    record::{self, FORMAT, Record, Source, State},
    snapshots,
};
use larder_host::remote::{Thing, Visit};
use larder_model::{
    Bytes, CapacityRange, Cx, Fault, Kind, Native, Result,
    volume::{ContentSource, VolumeSpec},
};
use serde_json::Map;

/// The size of a volume whose caller asks for none.
pub(crate) const DEFAULT_SIZE: Bytes = Bytes::gib(1);
/// Nothing holds a volume to its size, so any will do.
pub(crate) const STEP: Bytes = Bytes::new(1);
/// So many archives of one name.
const MOST_ARCHIVES: u32 = 10_000;

/// The volume's record, whatever its state.
pub(crate) fn read(visit: &Visit, native: &Native) -> Result<Option<Record>> {
    let path = record::path(native);
    visit.read(&path)?.map(|text| record::understand(&path, &text)).transpose()
}

fn write(visit: &Visit, native: &Native, record: &Record) -> Result<()> {
    visit.write(&record::path(native), &record::text(record)?)
}

/// The volume that exists.
///
/// # Errors
/// `NotFound`.
pub(crate) fn find(export: &Export, visit: &Visit, native: &Native) -> Result<Record> {
    let found = read(visit, native)?.filter(|record| record.state == State::Ready);
    found.ok_or_else(|| Fault::not_found(format!("find volume {}/{native}", export.name)))
}

/// Makes the volume, or returns the one that an equal call made.
pub(crate) fn ensure(export: &Export, spec: &VolumeSpec, cx: &Cx) -> Result<Record> {
    let native = spec.id.native();
    let parameters = VolumeParameters::read(&spec.parameters)?;
    let sub_dir = match &parameters.sub_dir {
        Some(template) => place::directory(template, spec.name.as_str(), &spec.about)?,
        None => native.as_str().parse()?,
    };
    let source = source(spec)?;
    let visit = export.visit()?;
    match read(&visit, native)? {
        Some(record) if record.state == State::Ready => {
            return match difference(&record, spec, &sub_dir, source.as_ref()) {
                None => Ok(record),
                Some(what) => Err(Fault::conflict(format!("create volume {}: {what}", spec.id))
                    .hint("choose another name, or ask for what exists")),
            };
        }
        Some(record) if record.state == State::Deleting => finish(&visit, native, record, cx)?,
        // A copy that was cut goes on.
        Some(record)
            if source.is_some()
                && difference(&record, spec, &sub_dir, source.as_ref()).is_none() =>
        {
            return complete(export, &visit, native, record, None, cx);
        }
        Some(record) => take_back(&visit, native, record, cx)?,
        None => {}
    }
    let record = Record {
        format: FORMAT,
        name: spec.name.to_string(),
        size: spec.capacity.pick(DEFAULT_SIZE, STEP, STEP)?,
        created: jiff::Timestamp::now(),
        state: State::Creating,
        found: match visit.look(sub_dir.as_str())? {
            None => false,
            Some(_) if source.is_some() => {
                return Err(Fault::precondition(format!("copy to directory {sub_dir}: it exists"))
                    .hint("choose another subDir: a copy gets a directory of its own"));
            }
            Some(Thing::Directory { .. }) => true,
            Some(Thing::Other) => {
                return Err(Fault::precondition(format!("use directory {sub_dir}: it is a file"))
                    .hint("choose another subDir"));
            }
        },
        sub_dir,
        on_delete: parameters.on_delete.unwrap_or(export.config.on_delete),
        source,
        copied: false,
        archive: None,
        parameters: spec.parameters.clone(),
        rest: Map::new(),
    };
    cx.step("write the volume's record")?;
    visit.write_new(&record::path(native), &record::text(&record)?)?;
    complete(export, &visit, native, record, parameters.mode, cx)
}

/// Makes what the record says, or takes it back.
fn complete(
    export: &Export,
    visit: &Visit,
    native: &Native,
    record: Record,
    mode: Option<u32>,
    cx: &Cx,
) -> Result<Record> {
    let is_copy = record.source.is_some();
    make(export, visit, native, record, mode, cx).map_err(|fault| {
        if fault.is_simulated_crash() || (is_copy && may_go_on(&fault)) {
            return fault;
        }
        // As it is written by now.
        let taken = read(visit, native)
            .and_then(|found| found.map_or(Ok(()), |found| take_back(visit, native, found, cx)));
        match taken {
            Ok(()) => fault,
            Err(second) => fault.during(format!("(and could not clean up: {second})")),
        }
    })
}

fn make(
    export: &Export,
    visit: &Visit,
    native: &Native,
    mut record: Record,
    mode: Option<u32>,
    cx: &Cx,
) -> Result<Record> {
    cx.step("claim the volume's directory")?;
    {
        let _alone = export.claiming();
        claims::claim(visit, &record.sub_dir, native)?;
    }
    if let Some(source) = &record.source {
        let copy = Copy::of_volume(native);
        if !record.copied {
            let from = match source {
                Source::Snapshot(native) => {
                    snapshots::find(export, visit, native)?;
                    snapshots::data(native)
                }
                Source::Volume(native) => find(export, visit, native)?.sub_dir.to_string(),
            };
            cx.step("copy the files")?;
            copy.make(visit, &from, cx)?;
            cx.step("write that the copy is complete")?;
            record.copied = true;
            write(visit, native, &record)?;
        }
        cx.step("move the copy to its place")?;
        copy.publish(visit, record.sub_dir.as_str())?;
    } else if !record.found {
        cx.step("make the volume's directory")?;
        let path = record.sub_dir.as_str();
        if !visit.make_dir(path, mode.unwrap_or(0o755), 0o755)? {
            // Somebody made it since it was looked for. It is not ours to remove.
            record.found = true;
        }
    }
    cx.step("write that the volume is complete")?;
    record.state = State::Ready;
    write(visit, native, &record)?;
    Ok(record)
}

/// Takes back what was never acknowledged. A directory that holds anything stays, but for a copy that we
/// have put there.
fn take_back(visit: &Visit, native: &Native, mut record: Record, cx: &Cx) -> Result<()> {
    let ours = claims::holder(visit, &record.sub_dir)?.as_deref() == Some(native.as_str());
    if record.source.is_some() {
        let copy = Copy::of_volume(native);
        if record.copied {
            if ours && !copy.is_here(visit)? {
                // It was moved to its place: nothing else takes it away from there.
                copy.take_back(visit, record.sub_dir.as_str())?;
            }
            // From here on, what has its name is not it.
            record.copied = false;
            write(visit, native, &record)?;
        }
        cx.step("remove the copy")?;
        copy.discard(visit, cx)?;
    } else if ours && !record.found {
        visit.remove_dir(record.sub_dir.as_str())?;
    }
    claims::release(visit, &record.sub_dir, native)?;
    visit.remove_file(&record::path(native))
}

/// Deletes the volume; an absent one is deleted.
pub(crate) fn delete(export: &Export, native: &Native, cx: &Cx) -> Result<()> {
    let visit = export.visit()?;
    let Some(mut record) = read(&visit, native)? else { return Ok(()) };
    match record.state {
        State::Creating => return take_back(&visit, native, record, cx),
        State::Ready => {
            if record.on_delete == OnDelete::Archive && !record.found {
                record.archive = Some(free_archive(&visit, &record.sub_dir)?);
            }
            record.state = State::Deleting;
            cx.step("write that the volume goes")?;
            match write(&visit, native, &record) {
                // A full server must be able to get room back. Without the record a deletion that is cut
                // leaves a volume without its directory, which the repeated one removes.
                Err(fault) if fault.kind() == Kind::Exhausted => {
                    tracing::warn!("delete {native} without a note of it: {fault}");
                }
                written => written?,
            }
        }
        State::Deleting => {}
    }
    finish(&visit, native, record, cx)
}

fn free_archive(visit: &Visit, sub_dir: &SubDir) -> Result<SubDir> {
    for n in 1..MOST_ARCHIVES {
        let name = sub_dir.renamed(|name| match n {
            1 => format!("archived-{name}"),
            n => format!("archived-{name}-{n}"),
        })?;
        if visit.look(name.as_str())?.is_none() {
            return Ok(name);
        }
    }
    Err(Fault::precondition(format!("archive {sub_dir}: there are too many archives of it"))
        .hint("remove old ones from the export"))
}

/// Carries out what a record that says `deleting` says.
fn finish(visit: &Visit, native: &Native, record: Record, cx: &Cx) -> Result<()> {
    let ours = claims::holder(visit, &record.sub_dir)?.as_deref() == Some(native.as_str());
    let grave = format!("{OURS}/deleting/{native}");
    // Where a former attempt came further, the directory's name may be another volume's by now.
    if ours && !record.found {
        cx.step("move the volume's directory aside")?;
        match (record.on_delete, &record.archive) {
            (OnDelete::Retain, _) => {}
            (OnDelete::Archive, Some(archive)) => {
                visit.rename(record.sub_dir.as_str(), archive.as_str())?;
            }
            (OnDelete::Delete | OnDelete::Archive, _) => {
                if visit.look(record.sub_dir.as_str())?.is_some() {
                    // Of a volume that had this name before.
                    visit.remove_tree(&grave, cx)?;
                    match move_aside(visit, record.sub_dir.as_str(), &grave) {
                        Err(fault) if fault.kind() == Kind::Exhausted => {
                            visit.remove_tree(record.sub_dir.as_str(), cx)?;
                        }
                        moved => drop(moved?),
                    }
                }
            }
        }
    }
    cx.step("remove the volume's data")?;
    visit.remove_tree(&grave, cx)?;
    cx.step("free the volume's directory")?;
    claims::release(visit, &record.sub_dir, native)?;
    cx.step("remove the volume's record")?;
    visit.remove_file(&record::path(native))
}

fn move_aside(visit: &Visit, directory: &str, grave: &str) -> Result<bool> {
    match visit.rename(directory, grave) {
        // An export that was put back from a backup may lack the folder, which is empty mostly.
        Err(fault) if fault.kind() == Kind::NotFound => {
            visit.make_dir(&format!("{OURS}/deleting"), 0o700, 0o700)?;
            visit.rename(directory, grave)
        }
        moved => moved,
    }
}

/// Notes a larger size.
pub(crate) fn expand(
    export: &Export,
    native: &Native,
    range: CapacityRange,
    cx: &Cx,
) -> Result<Bytes> {
    let visit = export.visit()?;
    let mut record = find(export, &visit, native)?;
    if let Some(limit) = range.limit.filter(|limit| *limit < record.size) {
        return Err(Fault::out_of_range(format!("keep it within {limit}: it has {}", record.size))
            .hint("volumes never shrink"));
    }
    if range.required <= record.size {
        return Ok(record.size);
    }
    record.size = range.pick(record.size, STEP, STEP)?;
    cx.step("write the volume's new size")?;
    write(&visit, native, &record)?;
    Ok(record.size)
}

/// What the volume is to be a copy of.
fn source(spec: &VolumeSpec) -> Result<Option<Source>> {
    let (pool, source) = match &spec.source {
        None => return Ok(None),
        Some(ContentSource::Snapshot(id)) => (id.pool(), Source::Snapshot(id.native().clone())),
        Some(ContentSource::Volume(id)) => (id.pool(), Source::Volume(id.native().clone())),
    };
    if pool != spec.id.pool() {
        return Err(Fault::invalid(format!(
            "copy from pool {pool} to pool {}: they may be on different servers",
            spec.id.pool()
        ))
        .hint("leave the parameter pool out: a copy then lives beside its source"));
    }
    Ok(Some(source))
}

/// In what the volume is not what is asked for now; None: it is.
fn difference(
    record: &Record,
    spec: &VolumeSpec,
    sub_dir: &SubDir,
    source: Option<&Source>,
) -> Option<String> {
    if record.name != spec.name.as_str() {
        return Some(format!("it was asked for as {:?}", record.name));
    }
    if !spec.capacity.contains(record.size) {
        return Some(format!("its size is {}", record.size));
    }
    if record.sub_dir != *sub_dir {
        return Some(format!("its directory is {}", record.sub_dir));
    }
    if record.source.as_ref() != source {
        return Some("it is a copy of something else, or of nothing".to_owned());
    }
    let (had, asked) = (&record.parameters, &spec.parameters);
    let key = had.keys().chain(asked.keys()).find(|key| had.get(*key) != asked.get(*key))?;
    Some(format!("its parameter {key} differs"))
}

/// A fault about a volume that exists, or existed: what was not found on the way is not the volume.
pub(crate) fn not_absent(fault: Fault) -> Fault {
    match fault.kind() {
        Kind::NotFound => fault.with_kind(Kind::Internal),
        _ => fault,
    }
}
