//! Deletion of volumes.
//!
//! ```text
//! exists ──record: deleting──▶ directory moved aside ─▶ data removed ─▶ claim freed ──record removed──▶
//! ```
//! Every step can be done twice. What is `deleting` is gone, and the repeated deletion finishes it. An
//! archive's name is claimed as a volume's directory is, so that no volume gets what is archived there.

use crate::{
    claims,
    config::OnDelete,
    export::Export,
    place::{OURS, SubDir},
    record::{self, Record, State},
    volumes::{self, overtaken, read, write},
};
use larder_host::remote::Visit;
use larder_model::{Cx, Fault, Kind, Native, Result};

/// So many archives of one name.
const MOST_ARCHIVES: u32 = 10_000;

/// Deletes the volume; an absent one is deleted.
pub(crate) fn delete(export: &Export, native: &Native, cx: &Cx) -> Result<()> {
    let visit = export.visit()?;
    let Some(mut record) = read(&visit, native)? else { return export.confirm(&visit) };
    match record.state {
        State::Creating => return volumes::discard(export, &visit, native, record, cx),
        State::Ready => {
            if record.on_delete == OnDelete::Archive && !record.found {
                record.archive = Some(choose_archive(export, &visit, &record, native, cx)?);
            }
            cx.step("write that the volume goes")?;
            if !goes_on(&visit, native, &record)? {
                return Ok(());
            }
            record.state = State::Deleting;
            note(&visit, native, &record)?;
        }
        State::Deleting => {}
    }
    finish(export, &visit, native, record, cx)
}

/// A full server must be able to get room back. Without the record a deletion that is cut leaves a volume
/// without its directory, which the repeated one removes.
fn note(visit: &Visit, native: &Native, record: &Record) -> Result<()> {
    match write(visit, native, record) {
        Err(fault) if fault.kind() == Kind::Exhausted => {
            tracing::warn!("delete {native} without a note of it: {fault}");
            Ok(())
        }
        written => written,
    }
}

fn archive_name(sub_dir: &SubDir, n: u32) -> Result<SubDir> {
    sub_dir.renamed(|name| match n {
        1 => format!("archived-{name}"),
        n => format!("archived-{name}-{n}"),
    })
}

/// Refuses what could never be archived.
///
/// # Errors
/// `Invalid`.
pub(crate) fn check_archive(sub_dir: &SubDir) -> Result<()> {
    archive_name(sub_dir, MOST_ARCHIVES).map(drop).map_err(|_| {
        Fault::invalid(format!(
            "use directory {sub_dir} with onDelete=archive: its name is too long"
        ))
        .hint("choose a shorter subDir: archived- is put before it, and a number after it")
    })
}

/// Finds a name that is free and makes it the volume's.
fn choose_archive(
    export: &Export,
    visit: &Visit,
    record: &Record,
    native: &Native,
    cx: &Cx,
) -> Result<SubDir> {
    for n in 1..MOST_ARCHIVES {
        let name = archive_name(&record.sub_dir, n)?;
        if visit.look(name.as_str())?.is_some() {
            continue;
        }
        match claims::claim(export, visit, &name, native, cx) {
            // Somebody may have made it before it was ours.
            Ok(()) if visit.look(name.as_str())?.is_some() => {
                claims::release(export, visit, &name, native)?;
            }
            Ok(()) => return Ok(name),
            Err(fault) if matches!(fault.kind(), Kind::Precondition | Kind::Aborted) => {}
            // The rename needs no room.
            Err(fault) if fault.kind() == Kind::Exhausted => return Ok(name),
            Err(fault) => return Err(fault),
        }
    }
    Err(Fault::precondition(format!(
        "archive {}: there are too many archives of it",
        record.sub_dir
    ))
    .hint("remove old ones from the export"))
}

/// Whether this deletion is still the one to be carried out. Another process may have ended it, and the
/// name may be a new volume's.
fn goes_on(visit: &Visit, native: &Native, record: &Record) -> Result<bool> {
    match read(visit, native)? {
        None => Ok(false),
        Some(now) if now.created == record.created && now.state != State::Creating => Ok(true),
        Some(_) => Err(overtaken()),
    }
}

/// Carries out what a record that says `deleting` says.
pub(crate) fn finish(
    export: &Export,
    visit: &Visit,
    native: &Native,
    mut record: Record,
    cx: &Cx,
) -> Result<()> {
    if !goes_on(visit, native, &record)? {
        return Ok(());
    }
    let ours = claims::is_held(visit, &record.sub_dir, native)?;
    let grave = format!("{OURS}/deleting/{native}");
    // Where a former attempt came further, the directory's name may be another volume's by now.
    if ours && !record.found {
        cx.step("move the volume's directory aside")?;
        if !goes_on(visit, native, &record)? {
            return Ok(());
        }
        match record.on_delete {
            OnDelete::Retain => {}
            OnDelete::Archive => archive(export, visit, native, &mut record, cx)?,
            OnDelete::Delete => {
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
    if !goes_on(visit, native, &record)? {
        return Ok(());
    }
    claims::release(export, visit, &record.sub_dir, native)?;
    if let Some(archive) = &record.archive {
        claims::release(export, visit, archive, native)?;
    }
    cx.step("remove the volume's record")?;
    if !goes_on(visit, native, &record)? {
        return Ok(());
    }
    visit.remove_file(&record::path(native))
}

/// Gives the directory its archive's name, or another one where that was taken meanwhile.
fn archive(
    export: &Export,
    visit: &Visit,
    native: &Native,
    record: &mut Record,
    cx: &Cx,
) -> Result<()> {
    loop {
        let to = match &record.archive {
            Some(archive) => archive.clone(),
            None => {
                let chosen = choose_archive(export, visit, record, native, cx)?;
                record.archive = Some(chosen.clone());
                note(visit, native, record)?;
                chosen
            }
        };
        match visit.rename(record.sub_dir.as_str(), to.as_str()) {
            Err(fault) if fault.kind() == Kind::Conflict => {
                claims::release(export, visit, &to, native)?;
                record.archive = None;
            }
            renamed => return renamed.map(drop),
        }
    }
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
