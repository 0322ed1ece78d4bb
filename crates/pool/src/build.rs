//! Making something visible by one rename, and taking it away by one.
//!
//! ```text
//! creating/volume-x/   made empty
//!                      the medium makes its data, durably
//!                      record.json written and fsynced
//! volumes/x/           renamed: this is the commit
//!                      volumes/ fsynced: now it may be acknowledged
//! ```
//! **What a power cut can leave.** Before the acknowledgement: nothing, a folder in `creating` with
//! anything in it, or the whole volume. After it: the whole volume. That rests on:
//! - *ext4, xfs*: a name, the inode it names and a rename travel in one journal (ext4) or log (xfs)
//!   in the order in which they happened. fsync of the record forces everything before it, so also
//!   the names on the way to it; fsync of `volumes` after the rename forces the rename. Contents of
//!   files are not in the journal: that is why the medium fsyncs what it wrote.
//! - *btrfs*: fsync writes a log of that file alone, plus new ancestors and new entries of a synced
//!   directory; a directory that was renamed or holds a new subvolume makes fsync commit the whole
//!   transaction instead. Other new files are logged with their names but without contents or size,
//!   which is again what the medium's own fsync is for.
//! - *tmpfs*: nothing survives, nothing is half.
//!
//! The fsync of `creating/volume-x` itself is not needed for any of these, so a creation costs one
//! durable record and not two. A rename is atomic on all of them: the folder is never in both places.
//! The tests cut the power (they copy the disk of a mounted file system, at each step and
//! after each acknowledgement) and look.

use crate::{
    catalog::Record,
    layout::{DELETING, RECORD, Shelf},
    medium::Medium,
    pool::{Pool, text_of},
    recover,
};
use larder_host::durable;
use larder_model::{Cx, Fault, Kind, Native, Result};
use std::{io::ErrorKind, os::unix::fs::DirBuilderExt, path::Path};

/// The steps' names, as they are shown to people.
struct Steps {
    make: &'static str,
    record: &'static str,
    commit: &'static str,
    sync: &'static str,
}

fn steps(shelf: Shelf) -> Steps {
    match shelf {
        Shelf::Volumes => Steps {
            make: "make the volume's folder",
            record: "write the volume's record",
            commit: "make the volume visible",
            sync: "make the volume durable",
        },
        Shelf::Snapshots => Steps {
            make: "make the snapshot's folder",
            record: "write the snapshot's record",
            commit: "make the snapshot visible",
            sync: "make the snapshot durable",
        },
        Shelf::Groups => Steps {
            make: "make the group's folder",
            record: "write the group's record",
            commit: "make the group visible",
            sync: "make the group durable",
        },
    }
}

/// Builds `native`: `fill` makes the data in the folder it is given and says what the record shall
/// be. On failure nothing is left.
pub(crate) fn build<M: Medium, R: Record>(
    medium: &M,
    pool: &Pool,
    native: &Native,
    cx: &Cx,
    fill: impl FnOnce(&Path) -> Result<R>,
) -> Result<R> {
    let shelf = R::SHELF;
    let site = shelf.building_site(pool.path(), native);
    let result = build_at(medium, pool, &site, native, cx, fill);
    if let Err(fault) = result {
        if fault.is_simulated_crash() {
            return Err(fault);
        }
        return Err(match recover::clear(medium, pool, &site, cx) {
            Ok(()) => fault,
            Err(second) => fault.during(format!("(and could not clean up: {second})")),
        });
    }
    result
}

fn build_at<M: Medium, R: Record>(
    medium: &M,
    pool: &Pool,
    site: &Path,
    native: &Native,
    cx: &Cx,
    fill: impl FnOnce(&Path) -> Result<R>,
) -> Result<R> {
    let shelf = R::SHELF;
    let names = steps(shelf);
    cx.step(names.make)?;
    make_site(medium, pool, site, cx)?;
    let record = fill(site)?;
    cx.step(names.record)?;
    let text = text_of(&record)?;
    durable::write_new(&site.join(RECORD), &text)?;
    cx.step(names.commit)?;
    let place = shelf.place(pool.path(), native);
    pool.while_current(|| publish(site, &place))?;
    let synced = cx.step(names.sync).and_then(|()| durable::sync_dir(&shelf.folder(pool.path())));
    if let Err(fault) = synced {
        if !fault.is_simulated_crash() {
            // It must not be there when we say that it is not.
            durable::rename_new_unsynced(&place, site)?;
        }
        return Err(fault);
    }
    pool.catalog().put(native, &record, text);
    Ok(record)
}

fn make_site<M: Medium>(medium: &M, pool: &Pool, site: &Path, cx: &Cx) -> Result<()> {
    let mkdir = || std::fs::DirBuilder::new().mode(0o700).create(site);
    let made = match mkdir() {
        // Left by a call that failed and could not clean up. Claimed by us, so nobody is at it.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            recover::clear(medium, pool, site, cx)?;
            mkdir()
        }
        other => other,
    };
    made.map_err(|e| Fault::io(format!("make {}", site.display()), e))
}

/// Renames a folder into place, never over anything.
fn publish(site: &Path, place: &Path) -> Result<()> {
    durable::rename_new_unsynced(site, place).map_err(|fault| match fault.kind() {
        Kind::Conflict => fault
            .with_kind(Kind::Corrupt)
            .hint("look at it; it was not made by this driver, or its record is lost"),
        _ => fault,
    })
}

fn is_absent(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// Takes `native` away: it is gone when this returns, also after a power cut; then its data is
/// removed. Absent: what an earlier call could not remove is removed.
pub(crate) fn raze<M: Medium>(
    medium: &M,
    pool: &Pool,
    shelf: Shelf,
    native: &Native,
    cx: &Cx,
) -> Result<()> {
    let place = shelf.place(pool.path(), native);
    if pool.catalog().contains(shelf, native) {
        cx.step("move it aside")?;
        let grave = shelf.grave(pool.path(), native);
        let moved = pool.while_current(|| match std::fs::rename(&place, &grave) {
            Ok(()) => Ok(true),
            Err(e) if is_absent(&e) && place.symlink_metadata().is_err_and(|e| is_absent(&e)) => {
                if pool.still_there() {
                    return Ok(false);
                }
                Err(Fault::unavailable(format!("move {} aside", place.display())).because(e))
            }
            Err(e) => Err(Fault::io(format!("move {} aside", place.display()), e)),
        })?;
        pool.catalog().remove(shelf, native);
        if !moved {
            tracing::warn!("{} vanished before its deletion", place.display());
        }
    }
    let graves = recover::graves_of(pool, shelf, native)?;
    if !graves.is_empty() {
        cx.step("make its deletion durable")?;
        durable::sync_dir(&pool.path().join(DELETING))?;
        durable::sync_dir(&shelf.folder(pool.path()))?;
    }
    for grave in graves {
        cx.step("remove its data")?;
        recover::bury(medium, pool, &grave, cx)?;
    }
    Ok(())
}
