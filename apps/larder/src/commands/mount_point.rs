//! The directory that stood at a path before a volume was mounted there.
//!
//! Unpublishing removes what is at the path, as kubelet wants it; what a person had made there comes
//! back as it was.

use larder_host::Host;
use larder_model::{Fault, Result};
use serde::{Deserialize, Serialize};
use std::{
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
};

/// A directory, but for its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MountPoint {
    /// Permission bits.
    mode: u32,
    /// User id.
    user: u32,
    /// Group id.
    group: u32,
}

impl MountPoint {
    /// What stands at `path`; None: nothing, or no directory.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let meta = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
        Some(Self { mode: meta.mode() & 0o7777, user: meta.uid(), group: meta.gid() })
    }

    /// Makes it again, where nothing is by now.
    ///
    /// # Errors
    /// See [`Fault::io`].
    pub(crate) fn restore(&self, path: &Path) -> Result<()> {
        let restore = || {
            match std::fs::DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
                made => made?,
            }
            std::os::unix::fs::lchown(path, Some(self.user), Some(self.group))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(self.mode))
        };
        restore().map_err(|e| Fault::io(format!("make the directory {} again", path.display()), e))
    }
}

/// Whether nothing is mounted at `path`.
pub(crate) fn is_free(path: &Path) -> bool {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return true };
    // The kernel's table has no symbolic links.
    let path = std::fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned()).join(name);
    Host::real().mounts.mounts_at(&path).is_ok_and(|mounts| mounts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was_and_what_is_there_by_then_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("srv");
        assert_eq!(MountPoint::at(&path), None);
        std::fs::DirBuilder::new().mode(0o751).create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2751)).unwrap();
        let found = MountPoint::at(&path).unwrap();
        std::fs::remove_dir(&path).unwrap();
        found.restore(&path).unwrap();
        assert_eq!(MountPoint::at(&path).as_ref(), Some(&found));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        found.restore(&path).unwrap();
        assert_ne!(MountPoint::at(&path).as_ref(), Some(&found));
    }
}
