//! Snapshots of an export: copies of volumes' files beside the records.
//!
//! ```text
//! (nothing) ──record: creating──▶ copy ─▶ in its place ──record: ready──▶ exists
//! exists ──record: deleting──▶ files removed ──record removed──▶
//! ```
//! Every step can be done twice; what is `creating` goes on with the next equal call.

use crate::{
    copies::{Copy, may_go_on},
    export::Export,
    place::OURS,
    record::{self, FORMAT, State},
    volumes::{self, overtaken},
};
use larder_host::remote::Visit;
use larder_model::{
    Bytes, Cx, Fault, Kind, Native, PoolName, Result, SnapshotId, VolumeId,
    id::quoted,
    volume::{Snapshot, SnapshotSpec},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// So often what another process changes under our hands is looked at again.
const ATTEMPTS: u32 = 5;

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) format: u32,
    /// The name as the caller wrote it.
    pub(crate) name: String,
    /// The volume that it is of.
    pub(crate) source: Native,
    /// The volume's size then.
    pub(crate) size: Bytes,
    /// When its copy began.
    pub(crate) created: jiff::Timestamp,
    pub(crate) state: State,
    /// Which call makes it, as long as it is being made: no other one ends it or takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attempt: Option<Uuid>,
    /// What a deletion that was cut has left in its place is not removed yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unswept: bool,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// The folder of records and copies.
pub(crate) fn folder() -> String {
    format!("{OURS}/snapshots")
}

fn path(native: &Native) -> String {
    format!("{}/{native}.json", folder())
}

/// Where its files are.
pub(crate) fn data(native: &Native) -> String {
    format!("{}/{native}.files", folder())
}

/// The snapshots that have a record.
pub(crate) fn names(visit: &Visit) -> Result<Vec<Native>> {
    let files = visit.names(&folder())?;
    Ok(files.iter().filter_map(|file| file.strip_suffix(".json")?.parse().ok()).collect())
}

/// The snapshot's record, whatever its state.
pub(crate) fn read(visit: &Visit, native: &Native) -> Result<Option<Record>> {
    let path = path(native);
    visit.read(&path)?.map(|text| record::understand(&path, &text)).transpose()
}

fn write(visit: &Visit, native: &Native, record: &Record) -> Result<()> {
    visit.write(&path(native), &record::text(record)?)
}

/// The snapshot that exists.
///
/// # Errors
/// `NotFound`.
pub(crate) fn find(export: &Export, visit: &Visit, native: &Native) -> Result<Record> {
    match read(visit, native)? {
        Some(record) if record.state == State::Ready => return Ok(record),
        Some(_) => {}
        None => export.confirm(visit)?,
    }
    Err(Fault::not_found(format!("find snapshot {}/{native}", export.name)))
}

/// Cuts the snapshot, or returns the one that an equal call cut.
pub(crate) fn ensure(export: &Export, spec: &SnapshotSpec, cx: &Cx) -> Result<Record> {
    if let Some(key) = spec.parameters.keys().next() {
        return Err(Fault::invalid(format!("use parameter {}", quoted(key)))
            .hint("snapshots of nfs have no parameters"));
    }
    let (native, source) = (spec.id.native(), spec.source.native());
    let visit = export.visit()?;
    for _ in 0..ATTEMPTS {
        match read(&visit, native)? {
            Some(record) if record.state == State::Ready => {
                return match difference(&record, spec) {
                    None => Ok(record),
                    Some(what) => Err(Fault::conflict(format!(
                        "create snapshot {}: it exists, but {what}",
                        spec.id
                    ))
                    .hint("choose another name, or delete the other one")),
                };
            }
            Some(record)
                if record.state == State::Creating && difference(&record, spec).is_none() =>
            {
                let volume = volumes::find(export, &visit, source)?;
                let record = take_over(&visit, native, record, cx)?;
                return complete(&visit, native, volume.sub_dir.as_str(), record, cx);
            }
            Some(record) if record.state == State::Creating => {
                let record = take_over(&visit, native, record, cx)?;
                remove(&visit, native, &record, cx)?;
            }
            Some(record) => remove(&visit, native, &record, cx)?,
            None => export.confirm(&visit)?,
        }
        let volume = volumes::find(export, &visit, source)?;
        cx.step("write the snapshot's record")?;
        visit.make_dir(&folder(), 0o700, 0o700)?;
        let record = Record {
            format: FORMAT,
            name: spec.name.to_string(),
            source: source.clone(),
            size: volume.size,
            created: jiff::Timestamp::now(),
            state: State::Creating,
            attempt: Some(Uuid::new_v4()),
            unswept: true,
            rest: Map::new(),
        };
        match visit.write_new(&path(native), &record::text(&record)?) {
            // Another process was quicker: what it makes is its own.
            Err(fault) if fault.kind() == Kind::Conflict => {}
            written => {
                written?;
                return complete(&visit, native, volume.sub_dir.as_str(), record, cx);
            }
        }
    }
    Err(overtaken())
}

/// Makes what is being made this call's. Whoever was at it ends without an effect.
fn take_over(visit: &Visit, native: &Native, mut record: Record, cx: &Cx) -> Result<Record> {
    cx.step("take over what was begun")?;
    if !is_mine(visit, native, &record)? {
        return Err(overtaken());
    }
    record.attempt = Some(Uuid::new_v4());
    write(visit, native, &record)?;
    Ok(record)
}

/// Whether the snapshot is still as this call has left it.
fn is_mine(visit: &Visit, native: &Native, mine: &Record) -> Result<bool> {
    Ok(read(visit, native)?.is_some_and(|now| {
        (now.state, now.attempt, now.created) == (mine.state, mine.attempt, mine.created)
    }))
}

/// Copies what the record says, or takes it back.
fn complete(visit: &Visit, native: &Native, from: &str, record: Record, cx: &Cx) -> Result<Record> {
    let mine = record.clone();
    fill(visit, native, from, record, cx).map_err(|fault| {
        if may_go_on(&fault) {
            return fault;
        }
        let removed = match is_mine(visit, native, &mine) {
            Ok(true) => remove(visit, native, &mine, cx),
            other => other.map(drop),
        };
        match removed {
            Ok(()) => fault,
            Err(second) => fault.during(format!("(and could not clean up: {second})")),
        }
    })
}

fn fill(visit: &Visit, native: &Native, from: &str, mut record: Record, cx: &Cx) -> Result<Record> {
    let copy = Copy::of_snapshot(native);
    let still_mine = |record: &Record| match is_mine(visit, native, record)? {
        true => Ok(()),
        false => Err(overtaken()),
    };
    if record.unswept {
        cx.step("remove what a former snapshot has left")?;
        still_mine(&record)?;
        discard(visit, native, cx)?;
        record.unswept = false;
        write(visit, native, &record)?;
    }
    // Nothing else has a name in this folder, so what is there is the complete copy.
    if visit.look(&data(native))?.is_none() {
        cx.step("copy the volume's files")?;
        copy.make(visit, from, cx)?;
        cx.step("move the snapshot to its place")?;
        still_mine(&record)?;
    }
    copy.publish(visit, &data(native))?;
    cx.step("write that the snapshot is complete")?;
    still_mine(&record)?;
    record.state = State::Ready;
    record.attempt = None;
    write(visit, native, &record)?;
    Ok(record)
}

/// Deletes the snapshot; an absent one is deleted.
pub(crate) fn delete(export: &Export, native: &Native, cx: &Cx) -> Result<()> {
    let visit = export.visit()?;
    let Some(mut record) = read(&visit, native)? else { return export.confirm(&visit) };
    match record.state {
        State::Creating => record = take_over(&visit, native, record, cx)?,
        State::Ready => {
            cx.step("write that the snapshot goes")?;
            if !is_mine(&visit, native, &record)? {
                return Err(overtaken());
            }
            record.state = State::Deleting;
            match write(&visit, native, &record) {
                // A full server must be able to get room back. Half a snapshot must never seem whole, so its
                // record goes first; what a cut leaves then, the next snapshot of this name removes.
                Err(fault) if fault.kind() == Kind::Exhausted => {
                    tracing::warn!("delete snapshot {native} without a note of it: {fault}");
                    visit.remove_file(&path(native))?;
                    return discard(&visit, native, cx);
                }
                written => written?,
            }
        }
        State::Deleting => {}
    }
    remove(&visit, native, &record, cx)
}

/// Removes what there is of a snapshot that nobody is shown, and its record; nothing, where another process
/// has done it, and the name may be a new snapshot's.
fn remove(visit: &Visit, native: &Native, record: &Record, cx: &Cx) -> Result<()> {
    cx.step("remove the snapshot's files")?;
    if !is_mine(visit, native, record)? {
        return Err(overtaken());
    }
    Copy::of_snapshot(native).discard(visit, cx)?;
    // Out of its place as a whole: what is there counts as complete.
    cx.step("take the snapshot from its place")?;
    if !is_mine(visit, native, record)? {
        return Err(overtaken());
    }
    match Copy::of_snapshot(native).take_back(visit, &data(native)) {
        Err(fault) if fault.kind() == Kind::Exhausted => visit.remove_file(&path(native))?,
        taken => drop(taken?),
    }
    discard(visit, native, cx)?;
    cx.step("remove the snapshot's record")?;
    if !is_mine(visit, native, record)? {
        return Ok(());
    }
    visit.remove_file(&path(native))
}

fn discard(visit: &Visit, native: &Native, cx: &Cx) -> Result<()> {
    Copy::of_snapshot(native).discard(visit, cx)?;
    visit.remove_tree(&data(native), cx)
}

/// In what the snapshot is not what is asked for now; None: it is.
fn difference(record: &Record, spec: &SnapshotSpec) -> Option<String> {
    if record.source != *spec.source.native() {
        return Some(format!("it is of volume {}", record.source));
    }
    let other = record.name != spec.name.as_str();
    other.then(|| format!("it was asked for as {:?}", record.name))
}

/// The snapshot as callers see it.
pub(crate) fn describe(pool: &PoolName, native: Native, record: Record) -> Snapshot {
    Snapshot {
        id: SnapshotId::new(pool.clone(), native),
        name: record.name,
        source: VolumeId::new(pool.clone(), record.source),
        size: record.size,
        created: record.created,
        ready: true,
        group: None,
        topology: Vec::new(),
    }
}
