//! How much a directory holds, counted by walking it: for volumes whose size nothing enforces, so
//! that the kernel keeps no count of them.
//!
//! A walk costs about a microsecond per file when the tree is cached, and far more when it is not.
//! Therefore a result is used again for fifty times as long as the walk took (ten seconds at
//! least), and a walk that is not done after two seconds is given up for ten minutes: the caller
//! then shows the figures of the whole file system.

use larder_model::{Bytes, Fault, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const BUDGET: Duration = Duration::from_secs(2);
const LEAST_AGE: Duration = Duration::from_secs(10);
const REST: u32 = 50;
const GIVEN_UP: Duration = Duration::from_secs(600);
/// Results that nobody asked for in this time are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// What a tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    /// Bytes on the file system (allocated blocks; holes take none, hard links count once).
    pub(crate) bytes: Bytes,
    /// Files, directories and whatever else has an inode.
    pub(crate) inodes: u64,
}

/// Walks the tree at `root`, not into other file systems or subvolumes mounted or nested in it.
/// None: not done at `deadline`.
///
/// # Errors
/// `NotFound` when there is no such directory; what vanishes during the walk is not counted.
pub(crate) fn walk(root: &Path, deadline: Option<Instant>) -> Result<Option<Held>> {
    let what = || format!("measure {}", root.display());
    let top = std::fs::symlink_metadata(root).map_err(|e| Fault::io(what(), e))?;
    let mut held = Held { bytes: blocks(&top), inodes: 1 };
    let mut linked = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Ok(None);
        }
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if is_passing(&e) => continue,
            Err(e) => return Err(Fault::io(what(), e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Fault::io(what(), e))?;
            // Does not follow symlinks.
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if is_passing(&e) => continue,
                Err(e) => return Err(Fault::io(what(), e)),
            };
            if meta.dev() != top.dev() {
                continue;
            }
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            }
            held.bytes = held.bytes.saturating_add(blocks(&meta));
            held.inodes += 1;
        }
    }
    Ok(Some(held))
}

/// Gone, replaced by something else, or too deep for a path: nothing that a measure should fail of.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
    )
}

fn blocks(meta: &std::fs::Metadata) -> Bytes {
    // stat(2): in units of 512 bytes, whatever the file system's block size.
    Bytes::new(meta.blocks().saturating_mul(512))
}

/// Results of walks.
#[derive(Debug, Default)]
pub(crate) struct Measures(Mutex<BTreeMap<PathBuf, Measure>>);

#[derive(Debug, Clone, Copy)]
struct Measure {
    held: Option<Held>,
    fresh_until: Instant,
    asked: Instant,
}

impl Measures {
    /// What `root` holds, or held a short time ago. None: the tree is too large to tell.
    pub(crate) fn of(&self, root: &Path) -> Result<Option<Held>> {
        let begun = Instant::now();
        {
            let mut known = self.lock();
            known.retain(|_, m| begun.duration_since(m.asked) < FORGOTTEN);
            if let Some(measure) = known.get_mut(root) {
                measure.asked = begun;
                if begun < measure.fresh_until {
                    return Ok(measure.held);
                }
            }
        }
        let held = walk(root, Some(begun + BUDGET))?;
        let age = match held {
            Some(_) => (begun.elapsed() * REST).max(LEAST_AGE),
            None => GIVEN_UP,
        };
        let measure = Measure { held, fresh_until: Instant::now() + age, asked: begun };
        self.lock().insert(root.to_owned(), measure);
        Ok(held)
    }

    /// The latest result for `root`, however old, without walking.
    pub(crate) fn last(&self, root: &Path) -> Option<Held> {
        self.lock().get(root)?.held
    }

    /// Forgets a volume that is removed.
    pub(crate) fn forget(&self, root: &Path) {
        self.lock().remove(root);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Measure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn holes_take_nothing_and_hard_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let empty = walk(root, None).unwrap().unwrap();
        assert_eq!(empty.inodes, 1);
        fs::File::create(root.join("hole")).unwrap().set_len(1 << 40).unwrap();
        fs::write(root.join("data"), vec![1; 1 << 20]).unwrap();
        fs::File::open(root.join("data")).unwrap().sync_all().unwrap();
        fs::hard_link(root.join("data"), root.join("again")).unwrap();
        std::os::unix::fs::symlink("/", root.join("everything")).unwrap();
        let full = walk(root, None).unwrap().unwrap();
        assert_eq!(full.inodes, 4, "the top, the hole, the data, the symlink");
        let grown = full.bytes.saturating_sub(empty.bytes).get();
        assert!((1 << 20..=(1 << 20) + (64 << 10)).contains(&grown), "{grown}");
    }

    #[test]
    fn a_result_is_used_again_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let measures = Measures::default();
        assert_eq!(measures.last(dir.path()), None);
        let first = measures.of(dir.path()).unwrap();
        fs::write(dir.path().join("new"), "x").unwrap();
        assert_eq!(measures.of(dir.path()).unwrap(), first);
        measures.forget(dir.path());
        assert_eq!(measures.of(dir.path()).unwrap().unwrap().inodes, 2);
        assert_eq!(measures.last(dir.path()).unwrap().inodes, 2);
    }

    #[test]
    fn a_walk_that_takes_too_long_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(walk(dir.path(), Some(Instant::now())).unwrap(), None);
    }

    #[test]
    fn an_absent_tree_cannot_be_measured() {
        let dir = tempfile::tempdir().unwrap();
        let fault = Measures::default().of(&dir.path().join("absent")).unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::NotFound);
    }
}
