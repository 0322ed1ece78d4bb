//! A group's folders: its members' way to their places, and their way out.

use super::GroupRecord;
use crate::{
    catalog::{names, read_record},
    layout::{DELETING, MEMBERS, Shelf, parse_grave},
    medium::Medium,
    pool::{Pool, text_of},
    record::SnapshotRecord,
    recover,
};
use larder_host::durable;
use larder_model::{Cx, Fault, Kind, Native, Result};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The folders of a group's snapshots that are not in their own places.
pub(crate) fn members_in(group: &Path) -> Result<Vec<PathBuf>> {
    let folder = group.join(MEMBERS);
    match folder.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {}
        _ => return Ok(Vec::new()),
    }
    Ok(names(&folder)?.into_iter().map(|native| folder.join(native)).collect())
}

/// Whether the group `native` is on its way: committed, but its snapshots are not all seen yet.
pub(super) fn is_under_way(pool: &Pool, native: &Native) -> bool {
    Shelf::Groups.place(pool.path(), native).join(MEMBERS).symlink_metadata().is_ok()
}

/// Moves the snapshots of a group that is durable to their places. Done already: nothing happens.
///
/// # Errors
/// `Corrupt` where something else has the place of one; I/O.
pub(super) fn show_members(pool: &Pool, native: &Native, cx: &Cx) -> Result<()> {
    let place = Shelf::Groups.place(pool.path(), native);
    let folder = place.join(MEMBERS);
    if !is_under_way(pool, native) {
        return Ok(());
    }
    for member in names(&folder)? {
        cx.step("make the group's members visible")?;
        let from = folder.join(&member);
        let to = Shelf::Snapshots.place(pool.path(), &member);
        pool.while_current(|| durable::rename_new_unsynced(&from, &to)).map_err(|fault| {
            if fault.kind() == Kind::Conflict {
                fault.with_kind(Kind::Corrupt).hint(
                    "look at what is there: it was not made by this driver, or its record is lost",
                )
            } else {
                fault
            }
        })?;
    }
    cx.step("make the group's members durable")?;
    durable::sync_dir(&Shelf::Snapshots.folder(pool.path()))?;
    durable::sync_dir(&folder)?;
    // All of them: an attempt before this one may have moved some.
    let members = pool.catalog().get::<GroupRecord>(native)?.map(|record| record.members);
    for member in members.unwrap_or_default() {
        let place = Shelf::Snapshots.place(pool.path(), &member.native);
        match read_record::<SnapshotRecord>(&place)? {
            Some((record, _)) if record.id == member.id => {
                let text = text_of(&record)?;
                pool.catalog().put(&member.native, &record, text);
            }
            _ => {}
        }
    }
    // From here on nobody takes it for a group that is under way.
    std::fs::remove_dir(&folder).map_err(|e| {
        let what = format!("remove the empty folder {}", folder.display());
        match e.kind() {
            ErrorKind::DirectoryNotEmpty => {
                let left = std::fs::read_dir(&folder).into_iter().flatten().flatten();
                let left: Vec<_> = left.take(3).map(|e| e.path().display().to_string()).collect();
                let hint = format!("move away what is not of this driver: {}", left.join(", "));
                Fault::corrupt(what).because(e).hint(hint)
            }
            _ => Fault::io(what, e),
        }
    })
}

/// Takes the group away, as a whole: it is gone when this returns, also after a power cut; then the
/// snapshots follow. Absent: what an earlier call could not remove is removed.
pub(super) fn raze<M: Medium>(medium: &M, pool: &Pool, native: &Native, cx: &Cx) -> Result<()> {
    let place = Shelf::Groups.place(pool.path(), native);
    if pool.catalog().contains(Shelf::Groups, native) {
        cx.step("move the group aside")?;
        let grave = Shelf::Groups.grave(pool.path(), native);
        pool.while_current(|| match std::fs::rename(&place, &grave) {
            Err(e) if e.kind() == ErrorKind::NotFound && pool.still_there() => Ok(()),
            moved => moved.map_err(|e| Fault::io(format!("move {} aside", place.display()), e)),
        })?;
        pool.catalog().remove(Shelf::Groups, native);
    }
    for grave in recover::graves_of(pool, Shelf::Groups, native)? {
        cx.step("make the group's deletion durable")?;
        durable::sync_dir(&pool.path().join(DELETING))?;
        durable::sync_dir(&Shelf::Groups.folder(pool.path()))?;
        let members = move_members_aside(pool, &grave, cx)?;
        for member in members {
            for grave in recover::graves_of(pool, Shelf::Snapshots, &member)? {
                cx.step("remove a member's data")?;
                recover::bury(medium, pool, &grave, cx)?;
            }
        }
        cx.step("remove the group's record")?;
        recover::bury(medium, pool, &grave, cx)?;
    }
    Ok(())
}

/// Moves aside, durably, the snapshots of the group whose folder `grave` is in `deleting`. Their
/// names are returned, also of those that were moved before.
fn move_members_aside(pool: &Pool, grave: &Path, cx: &Cx) -> Result<Vec<Native>> {
    let record = match read_record::<GroupRecord>(grave) {
        Ok(Some((record, _))) => record,
        // It never was complete, or nothing tells what belonged to it: nothing is deleted for it.
        Ok(None) => return Ok(Vec::new()),
        Err(fault) if fault.kind() == Kind::Corrupt => {
            tracing::debug!("{}: {fault}", grave.display());
            return Ok(Vec::new());
        }
        Err(fault) => return Err(fault),
    };
    for member in &record.members {
        let place = Shelf::Snapshots.place(pool.path(), &member.native);
        match read_record::<SnapshotRecord>(&place) {
            Ok(Some((found, _))) if found.id == member.id => {}
            Ok(_) => continue,
            Err(fault) => {
                tracing::warn!("leave a member of group {} alone: {fault}", record.name);
                continue;
            }
        }
        cx.step("move a member aside")?;
        let grave = Shelf::Snapshots.grave(pool.path(), &member.native);
        pool.while_current(|| {
            std::fs::rename(&place, &grave)
                .map_err(|e| Fault::io(format!("move {} aside", place.display()), e))
        })?;
        pool.catalog().remove(Shelf::Snapshots, &member.native);
    }
    cx.step("make the members' deletion durable")?;
    durable::sync_dir(&pool.path().join(DELETING))?;
    durable::sync_dir(&Shelf::Snapshots.folder(pool.path()))?;
    Ok(record.members.into_iter().map(|member| member.native).collect())
}

/// Finishes what a killed process began and had promised by the group's own rename: groups whose
/// snapshots are not all in their places, and snapshots of groups that are deleted. Called once for
/// each opening of a pool, before it serves. What is returned must stay in `deleting`: it still says which
/// snapshots belong to it.
pub(crate) fn mend(pool: &Pool, cx: &Cx) -> Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for (grave, shelf, native) in recover::works(&pool.path().join(DELETING), parse_grave)? {
        if shelf != Shelf::Groups {
            continue;
        }
        let Ok(_lock) = pool.shared_lock_now(shelf, &native) else { continue };
        // The rename was seen: from now on it holds.
        durable::sync_dir(&pool.path().join(DELETING))?;
        durable::sync_dir(&Shelf::Groups.folder(pool.path()))?;
        if !is_mended(pool, &native, move_members_aside(pool, &grave, cx).map(drop))? {
            kept.push(grave);
        }
    }
    for native in names(&Shelf::Groups.folder(pool.path()))? {
        if !is_under_way(pool, &native) {
            continue;
        }
        let Ok(_lock) = pool.shared_lock_now(Shelf::Groups, &native) else { continue };
        durable::sync_dir(&Shelf::Groups.folder(pool.path()))?;
        is_mended(pool, &native, show_members(pool, &native, cx))?;
    }
    Ok(kept)
}

/// One damaged group must not keep its pool away: it says so itself when it is asked for. What went
/// wrong because the pool went away is the pool's.
fn is_mended(pool: &Pool, native: &Native, mended: Result<()>) -> Result<bool> {
    match mended {
        Err(fault) if !fault.is_simulated_crash() && pool.still_there() => {
            tracing::warn!(pool = %pool.name(), "leave group {native} as it is: {fault}");
            Ok(false)
        }
        mended => mended.map(|()| true),
    }
}
