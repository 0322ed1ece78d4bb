//! Paths that come from outside.

use larder_model::{Fault, Result};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A place where a caller wants a volume: absolute, normal, below the root.
///
/// The caller's orchestrator owns the directories above it (kubelet's tree may itself be reached
/// through a symlink); the last component is ours: it is never followed when it is a symlink.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPath(PathBuf);

impl TargetPath {
    /// Reads a path from a request. `field` names it in faults: `target_path`.
    ///
    /// # Errors
    /// `Invalid` when it is empty, relative, `/` itself, longer than 4095 bytes, or holds `..` or NUL.
    pub fn parse(text: &str, field: &str) -> Result<Self> {
        let wrong = |why: &str| Fault::invalid(format!("accept {field} {text:?}: {why}"));
        if text.is_empty() {
            return Err(Fault::invalid(format!("accept {field}: it is empty")));
        }
        if text.len() > 4095 {
            return Err(Fault::invalid(format!("accept {field}: it is longer than 4095 bytes")));
        }
        if text.contains('\0') {
            return Err(wrong("it holds a NUL"));
        }
        if !text.starts_with('/') {
            return Err(wrong("it is not absolute"));
        }
        let mut path = PathBuf::from("/");
        for component in text.split('/') {
            match component {
                "" | "." => {}
                ".." => return Err(wrong("it holds \"..\"")),
                name if name.len() > 255 => {
                    return Err(wrong("a name in it is longer than 255 bytes"));
                }
                name => path.push(name),
            }
        }
        if path == Path::new("/") {
            return Err(wrong("it is the root directory"));
        }
        Ok(Self(path))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Makes it an (empty) directory, mode 0750, with parents that are missing. It is a directory
    /// already: done.
    ///
    /// # Errors
    /// `Precondition` when it is a symlink or anything but a directory; see [`Fault::io`].
    pub fn prepare_dir(&self) -> Result<()> {
        Err(Fault::unsupported("paths"))
    }

    /// Makes it an (empty) file, mode 0600, as the place for a block device. It is a file or block
    /// device already: done.
    ///
    /// # Errors
    /// `Precondition` when it is a symlink or a directory; see [`Fault::io`].
    pub fn prepare_file(&self) -> Result<()> {
        Err(Fault::unsupported("paths"))
    }

    /// Removes what `prepare_…` made: an empty directory or an empty file. Absent: done.
    ///
    /// # Errors
    /// `Precondition` when it is not empty, a symlink, or something is mounted on it.
    pub fn remove(&self) -> Result<()> {
        Err(Fault::unsupported("paths"))
    }
}

impl AsRef<Path> for TargetPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl fmt::Debug for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
