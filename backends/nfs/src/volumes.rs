//! Volumes of an export: create, find, grow.
//!
//! ```text
//! (nothing) ──record: creating──▶ claim ─▶ directory ──record: ready──▶ exists
//! ```
//! Every step can be done twice. What is `creating` was never acknowledged: the next equal call finishes
//! it, any other takes it back.
//!
//! Nothing keeps two processes from working in one export: a failed leader's calls may still end in its
//! driver. So a record that is `creating` says which call makes it. Another one that goes on with it, or
//! takes it back, first writes itself there; whoever is not there any more writes nothing, removes nothing,
//! and is ABORTED.

use crate::{
    claims,
    config::OnDelete,
    copies::{Copy, may_go_on},
    deletion,
    export::Export,
    parameters::VolumeParameters,
    place::{self, SubDir},
    record::{self, FORMAT, Record, Source, State},
    snapshots,
};
use larder_host::remote::{Thing, Visit};
use larder_model::{
    Bytes, CapacityRange, Cx, Fault, Kind, Native, Result,
    volume::{ContentSource, VolumeSpec},
};
use serde_json::Map;
use uuid::Uuid;

/// The size of a volume whose caller asks for none.
pub(crate) const DEFAULT_SIZE: Bytes = Bytes::gib(1);
/// Nothing holds a volume to its size, so any will do.
pub(crate) const STEP: Bytes = Bytes::new(1);
/// So often what another process changes under our hands is looked at again.
const ATTEMPTS: u32 = 5;

/// The volume's record, whatever its state.
pub(crate) fn read(visit: &Visit, native: &Native) -> Result<Option<Record>> {
    let path = record::path(native);
    visit.read(&path)?.map(|text| record::understand(&path, &text)).transpose()
}

pub(crate) fn write(visit: &Visit, native: &Native, record: &Record) -> Result<()> {
    visit.write(&record::path(native), &record::text(record)?)
}

/// The volume that exists.
///
/// # Errors
/// `NotFound`.
pub(crate) fn find(export: &Export, visit: &Visit, native: &Native) -> Result<Record> {
    match read(visit, native)? {
        Some(record) if record.state == State::Ready => return Ok(record),
        Some(_) => {}
        None => export.confirm(visit)?,
    }
    Err(Fault::not_found(format!("find volume {}/{native}", export.name)))
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
    let on_delete = parameters.on_delete.unwrap_or(export.config.on_delete);
    if on_delete == OnDelete::Archive {
        deletion::check_archive(&sub_dir)?;
    }
    let visit = export.visit_to_create()?;
    for _ in 0..ATTEMPTS {
        match read(&visit, native)? {
            Some(record) if record.state == State::Ready => {
                return match difference(&record, spec, &sub_dir, source.as_ref()) {
                    None => Ok(record),
                    Some(what) => {
                        Err(Fault::conflict(format!("create volume {}: {what}", spec.id))
                            .hint("choose another name, or ask for what exists"))
                    }
                };
            }
            Some(record) if record.state == State::Deleting => {
                deletion::finish(export, &visit, native, record, cx)?;
            }
            // What was cut goes on.
            Some(record) if difference(&record, spec, &sub_dir, source.as_ref()).is_none() => {
                let record = take_over(&visit, native, record, cx)?;
                return complete(export, &visit, native, record, parameters.mode, cx);
            }
            Some(record) => discard(export, &visit, native, record, cx)?,
            None => export.confirm(&visit)?,
        }
        let record = Record {
            format: FORMAT,
            name: spec.name.to_string(),
            size: spec.capacity.pick(DEFAULT_SIZE, STEP, STEP)?,
            created: jiff::Timestamp::now(),
            state: State::Creating,
            found: is_found(&visit, &sub_dir, source.is_some())?,
            sub_dir: sub_dir.clone(),
            on_delete,
            source: source.clone(),
            copied: false,
            archive: None,
            attempt: Some(Uuid::new_v4()),
            parameters: spec.parameters.clone(),
            rest: Map::new(),
        };
        cx.step("write the volume's record")?;
        match visit.write_new(&record::path(native), &record::text(&record)?) {
            // Another process was quicker: what it makes is its own.
            Err(fault) if fault.kind() == Kind::Conflict => {}
            written => {
                written?;
                return complete(export, &visit, native, record, parameters.mode, cx);
            }
        }
    }
    Err(overtaken())
}

/// Whether the directory is there before its volume.
fn is_found(visit: &Visit, sub_dir: &SubDir, is_copy: bool) -> Result<bool> {
    match visit.look(sub_dir.as_str())? {
        None => Ok(false),
        Some(_) if is_copy => {
            Err(Fault::precondition(format!("copy to directory {sub_dir}: it exists"))
                .hint("choose another subDir: a copy gets a directory of its own"))
        }
        Some(Thing::Directory) => Ok(true),
        Some(Thing::Other) => {
            Err(Fault::precondition(format!("use directory {sub_dir}: it is a file"))
                .hint("choose another subDir"))
        }
    }
}

/// Another call, in another process, works on the same.
pub(crate) fn overtaken() -> Fault {
    Fault::aborted("go on: another call works on it in another process").hint("repeat the call")
}

/// Makes what is being made this call's. Whoever was at it ends without an effect.
fn take_over(visit: &Visit, native: &Native, mut record: Record, cx: &Cx) -> Result<Record> {
    cx.step("take over what was begun")?;
    still_mine(visit, native, &record)?;
    record.attempt = Some(Uuid::new_v4());
    write(visit, native, &record)?;
    Ok(record)
}

/// Whether what is being made is still as this call has read or written it.
///
/// # Errors
/// `Aborted` when it is not.
fn still_mine(visit: &Visit, native: &Native, mine: &Record) -> Result<()> {
    match read(visit, native)? {
        Some(now) if now.state == State::Creating && now.attempt == mine.attempt => Ok(()),
        _ => Err(overtaken()),
    }
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
    let mine = record.clone();
    make(export, visit, native, record, mode, cx).map_err(|fault| {
        // It goes on with the next equal call.
        if may_go_on(&fault) && fault.kind() != Kind::Aborted || fault.is_simulated_crash() {
            return fault;
        }
        match undo(export, visit, native, &mine, cx) {
            Ok(()) => fault,
            Err(second) => fault.during(format!("(and could not clean up: {second})")),
        }
    })
}

/// Takes back what this call has made, and nothing else.
fn undo(export: &Export, visit: &Visit, native: &Native, mine: &Record, cx: &Cx) -> Result<()> {
    match read(visit, native)? {
        Some(now) if now.state == State::Creating && now.attempt == mine.attempt => {
            take_back(export, visit, native, now, cx)
        }
        // Whoever has overtaken us uses the same directory.
        Some(now) if now.sub_dir == mine.sub_dir => Ok(()),
        _ => {
            if mine.source.is_none()
                && !mine.found
                && claims::is_held(visit, &mine.sub_dir, native)?
            {
                visit.remove_dir(mine.sub_dir.as_str())?;
            }
            claims::release(export, visit, &mine.sub_dir, native)
        }
    }
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
    claims::claim(export, visit, &record.sub_dir, native, cx)?;
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
            still_mine(visit, native, &record)?;
            write(visit, native, &record)?;
        }
        cx.step("move the copy to its place")?;
        still_mine(visit, native, &record)?;
        copy.publish(visit, record.sub_dir.as_str())?;
    } else if !record.found {
        cx.step("make the volume's directory")?;
        still_mine(visit, native, &record)?;
        make_directory(visit, &record.sub_dir, mode.unwrap_or(0o755))?;
    }
    cx.step("write that the volume is complete")?;
    still_mine(visit, native, &record)?;
    record.state = State::Ready;
    record.attempt = None;
    write(visit, native, &record)?;
    Ok(record)
}

/// The directory was absent before it was claimed. What is there by now and empty was made by an attempt
/// that was cut, or by a message that the server got twice: it is ours as well.
fn make_directory(visit: &Visit, sub_dir: &SubDir, mode: u32) -> Result<()> {
    let path = sub_dir.as_str();
    if visit.make_dir(path, mode, 0o755)? {
        return Ok(());
    }
    if !visit.is_empty(path)? {
        return Err(Fault::precondition(format!(
            "use directory {path}: somebody made it meanwhile"
        ))
        .hint("repeat the call: then it is used as it is, and never removed"));
    }
    visit.set_mode(path, mode)
}

/// Takes back what was never acknowledged, whoever made it.
pub(crate) fn discard(
    export: &Export,
    visit: &Visit,
    native: &Native,
    record: Record,
    cx: &Cx,
) -> Result<()> {
    let record = take_over(visit, native, record, cx)?;
    take_back(export, visit, native, record, cx)
}

/// Takes back what was never acknowledged and is this call's. A directory that holds anything stays, but
/// for a copy that we have put there.
fn take_back(
    export: &Export,
    visit: &Visit,
    native: &Native,
    mut record: Record,
    cx: &Cx,
) -> Result<()> {
    let ours = claims::is_held(visit, &record.sub_dir, native)?;
    if record.source.is_some() {
        let copy = Copy::of_volume(native);
        if record.copied {
            if ours && !copy.is_here(visit)? {
                // It was moved to its place: nothing else takes it away from there.
                copy.take_back(visit, record.sub_dir.as_str())?;
            }
            // From here on, what has its name is not it.
            record.copied = false;
            still_mine(visit, native, &record)?;
            write(visit, native, &record)?;
        }
        cx.step("remove the copy")?;
        still_mine(visit, native, &record)?;
        copy.discard(visit, cx)?;
    } else if ours && !record.found {
        visit.remove_dir(record.sub_dir.as_str())?;
    }
    claims::release(export, visit, &record.sub_dir, native)?;
    still_mine(visit, native, &record)?;
    visit.remove_file(&record::path(native))
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
