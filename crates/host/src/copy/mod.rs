//! Copies: reflinks, sparse files, whole trees.

mod unnamed;

pub use unnamed::reflink_unnamed;

use larder_model::{Cx, Fault, Result};
use std::path::Path;

/// How the contents of files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Shared blocks; a file system that cannot is an error.
    Reflink,
    /// Real copies that keep holes.
    Copy,
    /// Shared blocks where possible, real copies otherwise.
    Auto,
}

/// How a tree is copied.
#[derive(Debug, Clone, Copy)]
pub struct TreeOptions {
    /// How contents are copied.
    pub mode: Mode,
    /// How many files at a time; 0: as many as the machine has processors, at most 8.
    pub threads: usize,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { mode: Mode::Auto, threads: 0 }
    }
}

/// What a copy of a tree did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeReport {
    /// Files, directories, links and special files that are there now.
    pub entries: u64,
    /// Files whose blocks are shared.
    pub reflinked: u64,
    /// Bytes that were really copied.
    pub bytes: u64,
}

/// Makes `to` a file that shares all blocks of `from` (`FICLONE`); false where the file system
/// cannot, and nothing is left then. `to` must not exist. The new file is durable and has mode 0600.
///
/// # Errors
/// `Conflict` when `to` exists; `Exhausted`; see [`Fault::io`].
pub fn reflink(_from: &Path, _to: &Path) -> Result<bool> {
    Err(Fault::unsupported("copy"))
}

/// Copies the file `from` to a new file `to`, keeping holes, durably (mode 0600). Progress in bytes
/// goes to `cx`. On failure `to` is removed.
///
/// # Errors
/// `Conflict` when `to` exists; `Exhausted`; see [`Fault::io`].
pub fn sparse(_from: &Path, _to: &Path, _cx: &Cx) -> Result<()> {
    Err(Fault::unsupported("copy"))
}

/// Copies everything in directory `from` into directory `to` (made when absent), including the
/// attributes of `from` itself. Repeating a copy that was cut completes it.
///
/// # Errors
/// `Exhausted`; `Precondition` when something else has a name in `to`; see [`Fault::io`].
pub fn tree(_from: &Path, _to: &Path, _options: TreeOptions, _cx: &Cx) -> Result<TreeReport> {
    Err(Fault::unsupported("copy"))
}

/// Whether files in directory `dir` can share blocks; tried out with two temporary files.
///
/// # Errors
/// See [`Fault::io`].
pub fn reflink_supported(_dir: &Path) -> Result<bool> {
    Err(Fault::unsupported("copy"))
}
