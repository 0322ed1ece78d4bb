//! Static volumes: directories or images that an administrator put into the pool's `static` folder.
//!
//! They are volumes like others, with these differences: they are found by looking, not by a
//! record; their record (`static/<native>.larder.json`) appears when there is something to remember
//! (a format state); and they are never deleted by us. Their files are the administrator's, who may
//! replace one or write over it at any time: a record counts only for the very file that it was
//! noted of, and `formatting` in it never allows to format again. A name that a created volume has, too, means
//! the created one; the static one is named in the pool's warnings.

use crate::{
    entry::Entry,
    layout::{STATIC, STATIC_RECORD},
    medium::{Medium, StaticFacts},
    pool::{Pool, static_record},
    record::{FORMAT, FileMark, VolumeRecord, parse},
};
use larder_model::{Bytes, Fault, Native, Result, VolumeId};
use serde_json::Map;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// The data of static volume `native`, if it is there.
fn data_path<M: Medium>(medium: &M, pool: &Pool, native: &Native) -> Option<PathBuf> {
    // That would be the record of another one.
    let name = format!("{native}{}", medium.static_suffix());
    (!name.ends_with(STATIC_RECORD)).then(|| pool.path().join(STATIC).join(name))
}

/// Whether there is one called `native`, of whatever kind.
pub(crate) fn exists<M: Medium>(medium: &M, pool: &Pool, native: &Native) -> bool {
    data_path(medium, pool, native).is_some_and(|path| path.symlink_metadata().is_ok())
}

/// The static volume `native`.
pub(crate) fn find<M: Medium>(medium: &M, pool: &Pool, native: &Native) -> Result<Option<Entry>> {
    let Some(data) = data_path(medium, pool, native) else { return Ok(None) };
    let id = VolumeId::new(pool.name().clone(), native.clone());
    let meta = match data.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fault::io(format!("look at {}", data.display()), e)),
    };
    if meta.is_symlink() {
        return Err(Fault::precondition(format!(
            "use static volume {id}: {} is a symlink",
            data.display()
        ))
        .hint("move the data itself there; a pool's volumes never lie outside of it"));
    }
    let StaticFacts { size, context, medium: value, file_system } = medium.look(pool, &data)?;
    let created = meta.modified().ok().and_then(|t| jiff::Timestamp::try_from(t).ok());
    // What was noted of another file is nothing known of this one.
    let mark = FileMark::new(&meta);
    let record = read_record(&static_record(pool.path(), native))?
        .filter(|record| record.noted_of.is_none_or(|noted| noted == mark));
    let record = match record {
        Some(record) => VolumeRecord {
            size: if size > Bytes::ZERO { size } else { record.size },
            context,
            medium: value,
            ..record
        },
        None => VolumeRecord {
            format: FORMAT,
            id: Uuid::nil(),
            name: native.to_string(),
            size,
            created: created.unwrap_or_default(),
            parameters: Default::default(),
            mutable_parameters: Default::default(),
            limits: Default::default(),
            access: Vec::new(),
            source: None,
            context,
            ephemeral: false,
            file_system,
            noted_of: None,
            medium: value,
            rest: Map::new(),
        },
    };
    Ok(Some(Entry { id, record, folder: pool.path().join(STATIC), data, is_static: true }))
}

/// A static volume's record, if it has one yet.
pub(crate) fn read_record(path: &Path) -> Result<Option<VolumeRecord>> {
    match std::fs::read(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Fault::io(format!("read {}", path.display()), e)),
    }
}

/// The names of all static volumes, sorted.
pub(crate) fn names<M: Medium>(medium: &M, pool: &Pool) -> Result<Vec<Native>> {
    let folder = pool.path().join(STATIC);
    let io = |e| Fault::io(format!("list {}", folder.display()), e);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        // A read-only pool may never have got the folder.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        let Some(name) = name.to_str().filter(|name| !name.ends_with(STATIC_RECORD)) else {
            continue;
        };
        if let Some(Ok(native)) = name.strip_suffix(medium.static_suffix()).map(str::parse) {
            names.push(native);
        }
    }
    names.sort_unstable();
    Ok(names)
}
