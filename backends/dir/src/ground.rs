//! What the file system below a pool can do for directories.
//!
//! Looked at once, when the pool is opened. What is asked of the kernel later (is this volume's
//! limit still in force?) is asked anew each time.

use larder_host::{
    DeviceId, Host, btrfs, copy,
    quota::{self, Enforcement},
};
use larder_model::{Fault, Kind, PoolName, Result};
use larder_pool::{Pool, PoolConfig, PoolTraits};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What holds a volume to its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// Project quota (ext4, xfs).
    Project,
    /// The qgroup of its subvolume (btrfs).
    Qgroup,
    /// Nothing.
    Unenforced {
        /// Why, and what could be done.
        why: String,
    },
}

/// How a directory is copied within the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// Volumes are btrfs subvolumes; a copy is a snapshot: at once, at one moment, taking no space.
    Subvolumes,
    /// File by file, sharing blocks.
    Reflinks,
    /// File by file, byte by byte.
    Bytes,
    /// The pool is read-only, so that it could not be tried out.
    Unknown,
}

/// The file system below a pool.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// Its kind, as the kernel writes it: `xfs`, `nfs4`.
    pub(crate) fs: String,
    /// Its device: equal for pools on one file system.
    pub(crate) device: DeviceId,
    pub(crate) sizes: Sizes,
    pub(crate) copies: Copies,
}

impl Ground {
    /// Finds out.
    pub(crate) fn look(host: &Host, config: &PoolConfig) -> Result<Self> {
        let path = &config.path;
        let (fs, device) = file_system_of(host, path)?;
        let sizes = match quota::detect(path)? {
            Enforcement::Project => Sizes::Project,
            Enforcement::BtrfsQgroup => Sizes::Qgroup,
            Enforcement::None { why } => Sizes::Unenforced { why },
        };
        let copies = if btrfs::is_btrfs(path)? {
            Copies::Subvolumes
        } else {
            match copy::reflink_supported(&config.scratch()) {
                Ok(true) => Copies::Reflinks,
                Ok(false) => Copies::Bytes,
                // A pool that is read-only (and may never have got such a folder), or full to the last
                // block, opens all the same.
                Err(fault)
                    if matches!(
                        fault.kind(),
                        Kind::Precondition | Kind::NotFound | Kind::Exhausted
                    ) =>
                {
                    Copies::Unknown
                }
                Err(fault) => return Err(fault),
            }
        };
        Ok(Self { fs, device, sizes, copies })
    }

    /// The ground of an open pool.
    pub(crate) fn of(pool: &Pool) -> Result<&Self> {
        pool.traits().detail().ok_or_else(|| {
            Fault::internal(format!("use pool {}: it was opened by another backend", pool.name()))
        })
    }

    /// Whether two pools lie on one file system.
    pub(crate) fn is_same_file_system(&self, other: &Self) -> bool {
        self.device == other.device
    }

    /// What people are told of a pool on this ground.
    pub(crate) fn traits(self, name: &PoolName, config: &PoolConfig) -> PoolTraits {
        let warnings = self.warnings(name, config);
        let traits = PoolTraits::new(self.to_string(), self);
        warnings.into_iter().fold(traits, PoolTraits::warning)
    }

    fn warnings(&self, name: &PoolName, config: &PoolConfig) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Sizes::Unenforced { why } = &self.sizes {
            warnings.push(unenforced(name, config, why));
        }
        if self.copies == Copies::Bytes {
            warnings.push(format!(
                "pool {name} is on {} without reflink: snapshots and clones are full copies, which \
                 take time and space",
                self.fs
            ));
        }
        warnings
    }
}

/// What it means for a pool that nothing holds its volumes to their size.
pub(crate) fn unenforced(name: &PoolName, config: &PoolConfig, why: &str) -> String {
    let meaning = if config.require_quota {
        "new volumes are refused, because the pool says requireQuota"
    } else {
        "a volume can take all that is free"
    };
    format!("sizes in pool {name} are not enforced ({meaning}): {why}")
}

/// `xfs, reflink, project quota`.
impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copies = match self.copies {
            Copies::Subvolumes => ", subvolumes",
            Copies::Reflinks => ", reflink",
            Copies::Bytes => ", full copies",
            Copies::Unknown => ", read-only or full",
        };
        let sizes = match self.sizes {
            Sizes::Project => ", project quota",
            Sizes::Qgroup => ", qgroups",
            Sizes::Unenforced { .. } => ", sizes not enforced",
        };
        write!(f, "{}{copies}{sizes}", self.fs)
    }
}

/// Kind and device of the file system that `path` lies on, from the mount table: btrfs gives each
/// subvolume an `st_dev` of its own, and only the table shows the number that they share.
fn file_system_of(host: &Host, path: &Path) -> Result<(String, DeviceId)> {
    let real: PathBuf = path
        .canonicalize()
        .map_err(|e| Fault::io(format!("resolve the path {}", path.display()), e))?;
    let table = host.mounts.table()?;
    // Of several mounts on one place the last one is on top.
    let holds = |m: &&larder_host::MountEntry| real.starts_with(&m.target);
    let entry = table.iter().filter(holds).max_by_key(|m| m.target.components().count());
    let entry = entry.ok_or_else(|| {
        Fault::internal(format!("find the file system of {} in the mount table", path.display()))
    })?;
    Ok((entry.fs_type.clone(), entry.device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(sizes: Sizes, copies: Copies) -> Ground {
        Ground { fs: "ext4".into(), device: DeviceId { major: 8, minor: 1 }, sizes, copies }
    }

    #[test]
    fn a_pool_whose_sizes_are_not_enforced_says_so_and_why() {
        let name = "default".parse().unwrap();
        let mut config = PoolConfig::new("/p");
        let ground =
            ground(Sizes::Unenforced { why: "mount it with prjquota".into() }, Copies::Bytes);
        let warnings = ground.warnings(&name, &config);
        assert!(warnings[0].contains("not enforced") && warnings[0].ends_with("with prjquota"));
        assert!(warnings[1].contains("full copies"), "{warnings:?}");
        assert_eq!(ground.to_string(), "ext4, full copies, sizes not enforced");
        config.require_quota = true;
        assert!(ground.warnings(&name, &config)[0].contains("refused"));
    }

    #[test]
    fn a_pool_that_lacks_nothing_has_no_warnings() {
        let name = "default".parse().unwrap();
        let config = PoolConfig::new("/p");
        for (sizes, copies) in
            [(Sizes::Project, Copies::Reflinks), (Sizes::Qgroup, Copies::Subvolumes)]
        {
            assert_eq!(ground(sizes, copies).warnings(&name, &config), [] as [&str; 0]);
        }
    }
}
