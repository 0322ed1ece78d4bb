//! Which directory is whose.
//!
//! Templates give any name, so two volumes could get one directory, or one within another's: deleting the
//! one would delete the other. So every directory that is a volume's has a twin under `.larder/places`,
//! with a file in it that says whose it is.
//!
//! ```text
//! .larder/places/team/data/.volume   "pvc-1": team/data is pvc-1's
//! ```
//! A directory is free when neither it nor any above it is a volume's, and none below it. Another process
//! may claim at the same time, so a claim is written first and looked around from afterwards: of two that
//! are in each other's way, one at least sees the other, and gives way.
//!
//! What a killed call has left is no claim: its volume is not there, has another directory, or is still not
//! complete after an hour.

use crate::{
    export::Export,
    place::{HOLDER, OURS, SubDir},
    record::{Record, State},
    volumes,
};
use larder_host::remote::{Thing, Visit};
use larder_model::{Cx, Fault, Kind, Native, Result};

/// So often what changes under our hands is looked at again.
const ATTEMPTS: u32 = 5;
/// Making a directory takes moments: who has not done it by then, is dead.
const ABANDONED: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

fn twin(directory: &str) -> String {
    format!("{OURS}/places/{directory}")
}

fn file(directory: &str) -> String {
    format!("{}/{HOLDER}", twin(directory))
}

/// Whose the directory is.
pub(crate) fn holder(visit: &Visit, directory: &SubDir) -> Result<Option<String>> {
    held_by(visit, directory.as_str())
}

fn held_by(visit: &Visit, directory: &str) -> Result<Option<String>> {
    Ok(visit.read(&file(directory))?.map(|text| text.trim().to_owned()))
}

/// Whether the directory is the volume's.
pub(crate) fn is_held(visit: &Visit, directory: &SubDir, native: &Native) -> Result<bool> {
    Ok(holder(visit, directory)?.as_deref() == Some(native.as_str()))
}

/// What stands in the way of a claim.
struct Taken {
    what: &'static str,
    directory: String,
    whose: String,
}

/// Makes `directory` the volume's. Repeated: it is.
///
/// # Errors
/// `Precondition` when it, one above it or one below it is another volume's; `Aborted` when another is
/// claiming at the same time.
pub(crate) fn claim(
    export: &Export,
    visit: &Visit,
    directory: &SubDir,
    native: &Native,
    cx: &Cx,
) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let tried = {
            let _alone = export.claiming();
            attempt(visit, directory, native)
        };
        let (taken, kind) = match tried {
            Ok(None) => return Ok(()),
            Ok(Some(taken)) => taken,
            // Another process let go of a neighbour, and of the twins that it shared with us.
            Err(fault) if fault.kind() == Kind::NotFound => continue,
            Err(fault) => return Err(fault),
        };
        if !dispel(export, visit, &taken, cx)? {
            let Taken { what, directory: there, whose } = taken;
            let text = format!("use directory {directory}: {what} {there} is volume {whose}'s");
            return Err(Fault::new(kind, text).hint(
                "let subDir name one directory for each volume, as in \
                 ${pvc.metadata.namespace}/${pvc.metadata.name}",
            ));
        }
    }
    Err(Fault::aborted(format!("claim directory {directory}: others claim beside it all the time"))
        .hint("repeat the call"))
}

fn attempt(visit: &Visit, directory: &SubDir, native: &Native) -> Result<Option<(Taken, Kind)>> {
    let path = directory.as_str();
    if let Some(taken) = in_the_way(visit, directory)? {
        return Ok(Some((taken, Kind::Precondition)));
    }
    visit.make_dir(&twin(path), 0o700, 0o700)?;
    match visit.write_new(&file(path), &format!("{native}\n")) {
        Err(fault) if fault.kind() == Kind::Conflict => match holder(visit, directory)? {
            Some(whose) if whose == native.as_str() => {}
            Some(whose) => {
                let taken = Taken { what: "the directory", directory: path.to_owned(), whose };
                return Ok(Some((taken, Kind::Precondition)));
            }
            None => return Err(fault.with_kind(Kind::Aborted)),
        },
        done => done?,
    }
    let Some(taken) = in_the_way(visit, directory)? else { return Ok(None) };
    free(visit, directory, native)?;
    Ok(Some((taken, Kind::Aborted)))
}

/// What above the directory, or below it, is a volume's.
fn in_the_way(visit: &Visit, directory: &SubDir) -> Result<Option<Taken>> {
    for above in directory.above() {
        if let Some(whose) = held_by(visit, above)? {
            return Ok(Some(Taken { what: "above it", directory: above.to_owned(), whose }));
        }
    }
    let mut todo = vec![directory.as_str().to_owned()];
    while let Some(directory) = todo.pop() {
        for name in visit.names(&twin(&directory))?.into_iter().filter(|name| name != HOLDER) {
            let below = format!("{directory}/{name}");
            // What a killed helper has left is a file.
            if !matches!(visit.look(&twin(&below))?, Some(Thing::Directory)) {
                continue;
            }
            match held_by(visit, &below)? {
                Some(whose) => {
                    return Ok(Some(Taken { what: "in it", directory: below, whose }));
                }
                None => todo.push(below),
            }
        }
    }
    Ok(None)
}

/// Removes what only seems to be a claim; false: it is one.
fn dispel(export: &Export, visit: &Visit, taken: &Taken, cx: &Cx) -> Result<bool> {
    let (Ok(native), Ok(directory)) =
        (taken.whose.parse::<Native>(), taken.directory.parse::<SubDir>())
    else {
        return Ok(false);
    };
    let record = volumes::read(visit, &native)?;
    match record {
        None => export.confirm(visit)?,
        Some(record) if is_abandoned(&record) => {
            volumes::discard(export, visit, &native, record, cx)?
        }
        Some(record) if record.sub_dir == directory => return Ok(false),
        Some(record) if record.archive.as_ref() == Some(&directory) => return Ok(false),
        // A deletion that is just choosing where to, in another process.
        Some(record) if record.on_delete == crate::OnDelete::Archive => return Ok(false),
        Some(_) => {}
    }
    tracing::warn!("volume {native} left a claim of {directory} behind: it is removed");
    let _alone = export.claiming();
    free(visit, &directory, &native)?;
    Ok(true)
}

fn is_abandoned(record: &Record) -> bool {
    let age = jiff::Timestamp::now().duration_since(record.created);
    // Copies may take any time.
    record.state == State::Creating && record.source.is_none() && age > ABANDONED
}

/// Frees the directory, if it is the volume's.
pub(crate) fn release(
    export: &Export,
    visit: &Visit,
    directory: &SubDir,
    native: &Native,
) -> Result<()> {
    let _alone = export.claiming();
    free(visit, directory, native)
}

fn free(visit: &Visit, directory: &SubDir, native: &Native) -> Result<()> {
    if is_held(visit, directory, native)? {
        visit.remove_file(&file(directory.as_str()))?;
    }
    let all: Vec<&str> = directory.above().chain([directory.as_str()]).collect();
    for directory in all.into_iter().rev() {
        let twin = twin(directory);
        let gone = visit.remove_dir(&twin)? || sweep(visit, &twin)? && visit.remove_dir(&twin)?;
        if !gone {
            break;
        }
    }
    Ok(())
}

/// Removes what killed helpers have left, where there is nothing else.
fn sweep(visit: &Visit, twin: &str) -> Result<bool> {
    let names = visit.names(twin)?;
    let left = |name: &String| name.starts_with(larder_host::remote::TEMPORARY);
    if !names.iter().all(left) {
        return Ok(false);
    }
    for name in names {
        let path = format!("{twin}/{name}");
        if matches!(visit.look(&path)?, Some(Thing::Directory)) {
            return Ok(false);
        }
        visit.remove_file(&path)?;
    }
    Ok(true)
}
