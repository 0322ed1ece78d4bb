//! Mending what a killed process left.
//!
//! Only two folders can hold left-overs, because each change of a pool is one rename (groups of
//! snapshots, which are several, have an order of their own: see [`groups`]):
//! - `creating`: never acknowledged, never visible. Moved to `deleting` before the pool serves, since
//!   the next call for that name builds at the same place;
//! - `deleting`: gone for everybody already. Removed in a thread of its own, so that a start does
//!   not wait for a million files; a crash there is continued by the next start.
//!
//! What has a name that we do not give is left alone and said in the log.

use crate::{
    groups,
    layout::{CREATING, DELETING, LOCKS, STATIC, STATIC_RECORD, Shelf, parse_grave, parse_work},
    medium::Medium,
    pool::Pool,
};
use larder_host::{
    durable,
    lock::{AtWork, FileLock},
};
use larder_model::{Cx, Fault, Native, Result};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Called once for each opening of a pool, before it serves.
pub(crate) fn begin<M: Medium>(medium: &Arc<M>, pool: &Pool, cx: &Cx) -> Result<()> {
    if pool.was_read_only() {
        return Ok(());
    }
    if pool.config().shared {
        sweep_locks(pool)?;
    } else {
        empty_scratch(pool)?;
        // An administrator's folder: what is there may be anything, and keeps no pool from opening.
        let folder = pool.path().join(STATIC);
        if let Err(fault) = durable::sweep_temporary_of(&folder, STATIC_RECORD) {
            tracing::warn!(pool = %pool.name(), "{fault}; the next start tries again");
        }
    }
    for (path, shelf, native) in works(&pool.path().join(CREATING), parse_work)? {
        // In a shared pool another node may be building it at this moment.
        let Ok(_lock) = pool.shared_lock_now(shelf, &native) else { continue };
        let place = shelf.place(pool.path(), &native);
        if same_inode(&path, &place) {
            tracing::warn!("{} and {} are one directory", path.display(), place.display());
            continue;
        }
        cx.step("take back what was not finished")?;
        let grave = shelf.grave(pool.path(), &native);
        std::fs::rename(&path, &grave)
            .map_err(|e| Fault::io(format!("move {} aside", path.display()), e))?;
        tracing::info!(pool = %pool.name(), "took back the unfinished {shelf} {native}");
    }
    let kept = groups::mend(pool, cx)?;
    let mut graves = works(&pool.path().join(DELETING), parse_grave)?;
    graves.retain(|(path, ..)| !kept.contains(path));
    if graves.is_empty() {
        return Ok(());
    }
    let (medium, pool, cx) = (medium.clone(), pool.clone(), cx.clone());
    let sweep = move || {
        for (path, shelf, native) in graves {
            let Ok(lock) = pool.shared_lock_now(shelf, &native) else { continue };
            let buried = cx.step("remove what was deleted");
            if let Err(fault) = buried.and_then(|()| bury(&*medium, &pool, &path, &cx)) {
                tracing::warn!(pool = %pool.name(), "{fault}; the next start tries again");
            }
            if !pool.catalog().contains(shelf, &native) {
                pool.forget_locks(shelf, &native, lock);
            }
        }
    };
    std::thread::Builder::new()
        .name("larder-sweep".to_owned())
        .spawn(sweep)
        .map(drop)
        .map_err(|e| Fault::internal("start the sweeper").because(e))
}

/// Removes one folder in `deleting`. Somebody else is at it: done.
pub(crate) fn bury<M: Medium>(medium: &M, pool: &Pool, grave: &Path, cx: &Cx) -> Result<()> {
    let Some(name) = grave.file_name() else { return Ok(()) };
    if !pool.removing().insert(name.to_owned()) {
        return Ok(());
    }
    let result = clear(medium, pool, grave, cx);
    pool.removing().remove(name);
    result
}

/// Removes a folder that nobody can see: in `creating` or `deleting`.
pub(crate) fn clear<M: Medium>(medium: &M, pool: &Pool, folder: &Path, cx: &Cx) -> Result<()> {
    // It may take hours, and `larder doctor` looks at it meanwhile.
    let _at_work = AtWork::on(folder);
    if folder.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for member in groups::members_in(folder)? {
            medium.remove(pool, &member, cx)?;
        }
        medium.remove(pool, folder, cx)?;
    }
    durable::remove_tree_while(folder, &|| !pool.stopping().is_told())
}

/// The folders in `deleting` that belonged to `native`.
pub(crate) fn graves_of(pool: &Pool, shelf: Shelf, native: &Native) -> Result<Vec<PathBuf>> {
    let all = works(&pool.path().join(DELETING), parse_grave)?;
    Ok(all.into_iter().filter(|(_, s, n)| (*s, n) == (shelf, native)).map(|(p, ..)| p).collect())
}

type Work = (PathBuf, Shelf, Native);

pub(crate) fn works(
    folder: &Path,
    parse: fn(&str) -> Option<(Shelf, Native)>,
) -> Result<Vec<Work>> {
    let io = |e| Fault::io(format!("list {}", folder.display()), e);
    let mut works = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        match entry.file_name().to_str().and_then(parse) {
            Some((shelf, native)) => works.push((entry.path(), shelf, native)),
            None => tracing::warn!("leave {} alone: it is not ours", entry.path().display()),
        }
    }
    Ok(works)
}

fn same_inode(a: &Path, b: &Path) -> bool {
    match (a.symlink_metadata(), b.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn empty_scratch(pool: &Pool) -> Result<()> {
    let folder = pool.scratch();
    let io = |e| Fault::io(format!("list {}", folder.display()), e);
    for entry in std::fs::read_dir(&folder).map_err(io)? {
        durable::remove_tree(&entry.map_err(io)?.path())?;
    }
    Ok(())
}

/// Locks of what never came to exist. Whoever waits for one notices that its file was removed.
fn sweep_locks(pool: &Pool) -> Result<()> {
    for (path, shelf, native) in works(&pool.path().join(LOCKS), parse_grave)? {
        if !pool.catalog().contains(shelf, &native)
            && let Ok(Some(lock)) = FileLock::try_exclusive(&path)
        {
            let _ = std::fs::remove_file(lock.path());
        }
    }
    Ok(())
}
