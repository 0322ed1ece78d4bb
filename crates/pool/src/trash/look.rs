//! What is wrong in a trash, seen from outside: see [`crate::look`].

use super::{TrashRecord, bin::RECORD};
use crate::{layout::parse_grave, look, record::parse};
use larder_model::{Fault, Result};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

/// Something in the trash that is not as it should be.
#[derive(Debug)]
pub struct TrashItem {
    /// What.
    pub path: PathBuf,
    /// How long nothing has changed at it.
    pub age: Duration,
    /// Why.
    pub why: TrashFault,
}

/// What is wrong with it.
#[derive(Debug)]
pub enum TrashFault {
    /// A record, and nothing it could be about: a deletion that was cut before its commit, or what was in
    /// the trash has left.
    RecordOfNothing,
    /// A volume or snapshot that no record tells of.
    NoRecord,
    /// Its record cannot be used.
    BadRecord(Fault),
    /// What was deleted has lost its data: nothing can be restored.
    NoData {
        /// What it is called in the trash.
        id: String,
    },
}

/// Looks at the trash in `folder`; what has no place there goes to `foreign`. `data`: how the data of a
/// volume is called.
pub(crate) fn look(
    folder: &Path,
    data: &str,
    foreign: &mut Vec<PathBuf>,
) -> Result<Vec<TrashItem>> {
    let (mut folders, mut records) = (BTreeSet::new(), Vec::new());
    for path in look::list(folder)? {
        let Some(meta) = look::stat(&path)? else { continue };
        let name = look::name_of(&path).to_owned();
        match name.strip_suffix(RECORD) {
            _ if look::is_temporary(&name) => {}
            Some(of) if meta.is_file() => records.push((of.to_owned(), path)),
            None if meta.is_dir() && parse_grave(&name).is_some() => {
                folders.insert(path);
            }
            _ => foreign.push(path),
        }
    }
    let mut items = Vec::new();
    let mut tell = |path: PathBuf, why| -> Result<()> {
        // Gone meanwhile: restored, or removed for good.
        let Some(meta) = look::stat(&path)? else { return Ok(()) };
        items.push(TrashItem { path, age: look::age(&meta), why });
        Ok(())
    };
    for (of, path) in records {
        let place = folder.join(&of);
        let there = folders.remove(&place);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            text => text.map_err(|e| Fault::io(format!("read {}", path.display()), e)),
        };
        match text.and_then(|text| parse::<TrashRecord>(&path, &text)) {
            Ok(record) if record.folder() != of => {
                let fault =
                    Fault::corrupt(format!("use {} as the record of that name", path.display()))
                        .hint("it is of something else; look where it comes from");
                tell(path, TrashFault::BadRecord(fault))?;
            }
            Ok(_) if !there => tell(path, TrashFault::RecordOfNothing)?,
            Ok(record) if look::stat(&place.join(data))?.is_none() => {
                tell(place, TrashFault::NoData { id: record.id })?;
            }
            Ok(_) => {}
            Err(fault) => tell(path, TrashFault::BadRecord(fault))?,
        }
    }
    for path in folders {
        tell(path, TrashFault::NoRecord)?;
    }
    Ok(items)
}
