//! Groups that are not as they should be.

use super::{GroupRecord, disk};
use crate::{
    catalog::read_record,
    layout::{MEMBERS, RECORD, Shelf},
    pool::Pool,
};
use larder_model::{Native, Result};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A snapshot that a group's record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name.
    pub native: Native,
    /// The id in its record.
    pub id: Uuid,
}

/// A group's folder, seen from outside.
#[derive(Debug)]
pub struct GroupItem {
    /// Its name.
    pub native: Native,
    /// The folder.
    pub folder: PathBuf,
    /// Its snapshots, as its record has them.
    pub members: Result<Vec<GroupMember>>,
    /// It exists, and its snapshots are still on their way to their places.
    pub under_way: bool,
    /// What else is in the folder.
    pub strays: Vec<PathBuf>,
}

impl GroupItem {
    /// Looks at the group in `folder`; None: it is gone.
    pub(crate) fn look(
        native: Native,
        folder: PathBuf,
        list: impl Fn(&Path) -> Result<Vec<PathBuf>>,
    ) -> Result<Option<Self>> {
        let members = match read_record::<GroupRecord>(&folder) {
            Ok(None) => return Ok(None),
            Ok(Some((record, _))) => {
                let members = record.members.into_iter();
                Ok(members.map(|m| GroupMember { native: m.native, id: m.id }).collect())
            }
            Err(fault) => Err(fault),
        };
        let inside = folder.join(MEMBERS);
        let under_way = inside.symlink_metadata().is_ok();
        let is_name = |path: &Path| {
            path.file_name().and_then(|name| name.to_str()?.parse::<Native>().ok()).is_some()
        };
        let ours = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            matches!(name, RECORD | MEMBERS) || (name.starts_with('.') && name.contains(".tmp-"))
        };
        let mut strays = list(&folder)?;
        strays.retain(|path| !ours(path));
        if inside.is_dir() {
            strays.extend(list(&inside)?.into_iter().filter(|path| !is_name(path)));
        }
        Ok(Some(Self { native, folder, members, under_way, strays }))
    }
}

/// The groups in `pool` that lack a snapshot, in words, the first few.
pub(crate) fn incomplete(pool: &Pool) -> Result<Vec<String>> {
    let catalog = pool.catalog();
    let groups = catalog.page::<GroupRecord>(None, usize::MAX, None)?;
    let lacking = groups.into_iter().filter_map(|(native, record)| {
        let is_there = |member: &Native| catalog.contains(Shelf::Snapshots, member);
        let missing = record.members.into_iter().find(|member| !is_there(&member.native))?;
        (!disk::is_under_way(pool, &native)).then(|| {
            format!(
                "group {native}: its snapshot {} is missing; restore it, or delete the group",
                missing.native
            )
        })
    });
    Ok(lacking.take(10).collect())
}
