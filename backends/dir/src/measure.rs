//! How much a directory holds, counted by walking it: for volumes whose size nothing enforces, so
//! that the kernel keeps no count of them.
//!
//! A walk costs about a microsecond per file when the tree is cached, and far more when it is not.
//! Therefore a result is used again for fifty times as long as the walk took (ten seconds at
//! least), and a walk that is not done after two seconds is given up for ten minutes: the caller
//! then shows the figures of the whole file system.

pub(crate) use larder_host::held::{Held, held as walk};
use larder_model::Result;
use std::{
    collections::BTreeMap,
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
    fn a_directory_that_is_swapped_for_a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        for n in 0..50 {
            fs::create_dir_all(outside.path().join(format!("{n}"))).unwrap();
        }
        let root = dir.path();
        fs::create_dir(root.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("b")).unwrap();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let swapped = root.to_owned();
        let swapper = std::thread::spawn(move || {
            let [a, b, c] = ["a", "b", "c"].map(|name| swapped.join(name));
            while end.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                fs::rename(&a, &c).unwrap();
                fs::rename(&b, &a).unwrap();
                fs::rename(&c, &b).unwrap();
            }
        });
        for _ in 0..20_000 {
            let held = walk(root, None).unwrap().unwrap();
            assert!(held.inodes <= 4, "it went out of its tree: {held:?}");
        }
        drop(ended);
        swapper.join().unwrap();
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
