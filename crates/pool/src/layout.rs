//! Names inside a pool.
//!
//! ```text
//! POOL/
//!   larder-pool.json              identity: proves that this directory is the pool
//!   .larder/lock                  held by the one process that owns the pool, with a note who it is
//!   .larder/locks/…               shared pools: one lock per volume or snapshot in use
//!   .larder/scratch/              temporary files
//!   volumes/<native>/             record.json and the medium's data
//!   snapshots/<native>/           likewise
//!   groups/<native>/              record.json, which names the group's snapshots
//!   groups/<native>/members/…     snapshots of a new group, on their way to snapshots/
//!   creating/volume-<native>/     under construction; becomes visible by being renamed
//!   creating/snapshot-<native>/
//!   creating/group-<native>/
//!   deleting/volume-<native>.…/   renamed aside, being removed
//!   trash/volume-<native>.<id>/   deleted and kept for a while; <id>.json beside it is its record
//!   static/<native>…              put there by an administrator; <native>.larder.json is its record
//! ```

use larder_model::Native;
use std::{
    fmt,
    path::{Path, PathBuf},
};

pub(crate) const RECORD: &str = "record.json";
pub(crate) const IDENTITY: &str = "larder-pool.json";
pub(crate) const CREATING: &str = "creating";
pub(crate) const DELETING: &str = "deleting";
pub(crate) const TRASH: &str = "trash";
pub(crate) const STATIC: &str = "static";
/// In a group's folder: its snapshots, until they are in their own places.
pub(crate) const MEMBERS: &str = "members";
pub(crate) const LOCKS: &str = ".larder/locks";
pub(crate) const SCRATCH: &str = ".larder/scratch";
/// Follows the name of a static volume in the name of its record.
pub(crate) const STATIC_RECORD: &str = ".larder.json";
/// What makes up a pool besides its identity, parents first.
pub(crate) const FOLDERS: [&str; 10] = [
    ".larder",
    LOCKS,
    SCRATCH,
    "volumes",
    "snapshots",
    "groups",
    CREATING,
    DELETING,
    TRASH,
    STATIC,
];

pub(crate) fn owner_lock(pool: &Path) -> PathBuf {
    pool.join(".larder").join("lock")
}

/// Volumes, snapshots and groups of snapshots: key spaces of names in one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shelf {
    Volumes,
    Snapshots,
    Groups,
}

impl Shelf {
    /// One item, in words and in names: `volume`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Volumes => "volume",
            Self::Snapshots => "snapshot",
            Self::Groups => "group",
        }
    }
    /// Where all of them are.
    pub(crate) fn folder(self, pool: &Path) -> PathBuf {
        pool.join(match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
            Self::Groups => "groups",
        })
    }
    /// Where one of them is.
    pub(crate) fn place(self, pool: &Path, native: &Native) -> PathBuf {
        self.folder(pool).join(native)
    }
    /// Where one of them is built.
    pub(crate) fn building_site(self, pool: &Path, native: &Native) -> PathBuf {
        pool.join(CREATING).join(format!("{self}-{native}"))
    }
    /// A fresh name for one of them on its way out.
    pub(crate) fn grave(self, pool: &Path, native: &Native) -> PathBuf {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        pool.join(DELETING).join(format!("{self}-{native}.{}", &unique[..12]))
    }
    /// The lock file of one of them, in a shared pool.
    pub(crate) fn lock(self, pool: &Path, native: &Native, what: &str) -> PathBuf {
        pool.join(LOCKS).join(format!("{self}-{native}.{what}"))
    }
}

impl fmt::Display for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What `name`, in `deleting` or `.larder/locks`, belongs to.
pub(crate) fn parse_grave(name: &str) -> Option<(Shelf, Native)> {
    parse_work(name.rsplit_once('.')?.0)
}

/// What `name`, in `creating`, is; None: it is not ours.
pub(crate) fn parse_work(name: &str) -> Option<(Shelf, Native)> {
    [Shelf::Volumes, Shelf::Snapshots, Shelf::Groups].into_iter().find_map(|shelf| {
        let native = name.strip_prefix(shelf.word())?.strip_prefix('-')?;
        Some((shelf, native.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_names_are_read_back_and_foreign_ones_are_not() {
        let native: Native = "a.b-c".parse().unwrap();
        for shelf in [Shelf::Volumes, Shelf::Snapshots, Shelf::Groups] {
            let site = shelf.building_site(Path::new("/p"), &native);
            let name = site.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_work(name), Some((shelf, native.clone())));
            let grave = shelf.grave(Path::new("/p"), &native);
            let grave = grave.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_grave(grave), Some((shelf, native.clone())));
        }
        for foreign in ["", "x", "volume", "volume-", "volume-A", "image-a", "volume-../x"] {
            assert_eq!(parse_work(foreign), None, "{foreign}");
        }
    }
}
