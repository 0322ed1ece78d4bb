//! Project ids: which number stands for which volume on a file system with project quota.
//!
//! Project ids are shared by everything on a file system: other pools, other processes of Larder,
//! kubelet's own quotas, administrators' `/etc/projects`. Nobody keeps a register, so an id is
//! *claimed* like this, on a directory that is still empty:
//!
//! ```text
//!  draw a random id ─▶ free? ──no──▶ draw again
//!                       │yes
//!            marker file project.<id> beside the data      durable intent: what a crash leaves
//!                       │                                  is found again through it
//!            the directory gets the id
//!                       │
//!            one inode counted for the id? ──no──▶ somebody else took it too: draw again
//!                       │yes: ours
//!            limit
//! ```
//!
//! Two claimants of one number both put their directory on it before they count, so at least one of
//! them (in fact the later one) counts more than its own inode and goes away.
//!
//! The marker is a file name, not file contents: names are written in the file system's journal in
//! the order in which they were made, so after a power cut the directory never has an id that
//! no marker tells. It lies in the volume's folder, which workloads never see; what a workload does
//! to the project of its own top directory (`chattr -p`) can therefore not lead us to limits of
//! others.

use larder_host::{Usage, quota};
use larder_model::{Bytes, Cx, Fault, Kind, Result};
use std::{
    fs::{File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Where ids are drawn from: a range that neither small hand-made numbers nor kubelet's quotas
/// (from 1,048,577 upwards) reach, and that is positive also for tools that read it as signed.
const RANGE: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x7fff_ffff;

const MARKER: &str = "project.";

/// How often an id is drawn before it is said that none can be found. With a billion to draw from,
/// the second draw is already rare.
const DRAWS: usize = 32;

/// The kernel's side, so that tests can play a crowded file system.
pub(crate) trait Projects {
    /// Whether nothing has the id: no inode, no limit.
    fn is_free(&self, dir: &Path, id: u32) -> Result<bool>;
    /// Gives a directory and everything in it the id.
    fn set(&self, dir: &Path, id: u32) -> Result<()>;
    /// The id of a directory; None for none.
    fn of(&self, dir: &Path) -> Result<Option<u32>>;
    /// How full an id is; its total is its limit.
    fn usage(&self, dir: &Path, id: u32) -> Result<Usage>;
    /// Limits an id; None lifts.
    fn limit(&self, dir: &Path, id: u32, bytes: Option<Bytes>, inodes: Option<u64>) -> Result<()>;
    /// A random number.
    fn draw(&self) -> u64 {
        // Seeded by the operating system, different for every call.
        RandomState::new().hash_one(std::process::id())
    }
}

/// The kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel;

impl Projects for Kernel {
    fn is_free(&self, dir: &Path, id: u32) -> Result<bool> {
        quota::is_free(dir, id)
    }
    fn set(&self, dir: &Path, id: u32) -> Result<()> {
        quota::set_project(dir, id)
    }
    fn of(&self, dir: &Path) -> Result<Option<u32>> {
        quota::project_of(dir)
    }
    fn usage(&self, dir: &Path, id: u32) -> Result<Usage> {
        quota::project_usage(dir, id)
    }
    fn limit(&self, dir: &Path, id: u32, bytes: Option<Bytes>, inodes: Option<u64>) -> Result<()> {
        quota::limit_project(dir, id, bytes, inodes)
    }
}

/// What a volume shall be held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) bytes: Bytes,
    pub(crate) inodes: Option<u64>,
}

/// The id that was claimed for the volume in `folder`; None: none was.
pub(crate) fn claimed(folder: &Path) -> Result<Option<u32>> {
    Ok(marker(folder)?.map(|(id, _)| id))
}

fn marker(folder: &Path) -> Result<Option<(u32, PathBuf)>> {
    let what = || format!("look for a project id in {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Fault::io(what(), e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Fault::io(what(), e))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|n| n.strip_prefix(MARKER)).and_then(|n| n.parse().ok());
        if let Some(id) = id.filter(|id| RANGE.contains(id)) {
            return Ok(Some((id, entry.path())));
        }
    }
    Ok(None)
}

/// Writes the intent to use `id`, in place of an earlier one.
fn mark(folder: &Path, id: u32) -> Result<()> {
    let what = || format!("write project id {id} into {}", folder.display());
    let path = folder.join(format!("{MARKER}{id}"));
    match marker(folder)? {
        Some((_, earlier)) => std::fs::rename(earlier, path),
        None => create_new(&path).map(drop),
    }
    .map_err(|e| Fault::io(what(), e))
}

fn create_new(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Claims an id for the new, empty directory `data` in `folder`.
///
/// # Errors
/// `Exhausted` when no free id is found.
pub(crate) fn claim(projects: &impl Projects, folder: &Path, data: &Path, cx: &Cx) -> Result<u32> {
    for _ in 0..DRAWS {
        let id = drawn(projects);
        if !projects.is_free(data, id)? {
            continue;
        }
        cx.step("write the project id beside the volume")?;
        mark(folder, id)?;
        cx.step("give the directory its project id")?;
        projects.set(data, id)?;
        if projects.usage(data, id)?.inodes_used == 1 {
            return Ok(id);
        }
    }
    Err(Fault::exhausted(format!(
        "find a free project id on the file system of {}",
        data.display()
    ))
    .hint("something uses very many of them: look at repquota -P or xfs_quota report -p"))
}

fn drawn(projects: &impl Projects) -> u32 {
    let span = u64::from(RANGE.end() - RANGE.start()) + 1;
    let offset = projects.draw() % span;
    RANGE.start() + u32::try_from(offset).unwrap_or_default()
}

/// Whether the volume is held to `limit` as it should be.
pub(crate) fn is_held(
    projects: &impl Projects,
    id: u32,
    data: &Path,
    limit: Limit,
) -> Result<bool> {
    if projects.of(data)? != Some(id) {
        return Ok(false);
    }
    let usage = projects.usage(data, id)?;
    Ok(usage.total == limit.bytes && limit.inodes.is_none_or(|inodes| usage.inodes == inodes))
}

/// Makes sure that the volume is held to `limit`: also after its directory was restored from a
/// backup without project ids, or a workload changed the id of its top directory.
pub(crate) fn hold(
    projects: &impl Projects,
    folder: &Path,
    data: &Path,
    limit: Limit,
    cx: &Cx,
) -> Result<()> {
    let Some(mut id) = claimed(folder)? else { return Ok(()) };
    if is_held(projects, id, data, limit)? {
        return Ok(());
    }
    if projects.of(data)? != Some(id) {
        // On another file system than the one it was claimed on, somebody may have it already.
        if !projects.is_free(data, id)? && !is_own(projects, id, data)? {
            id = (0..DRAWS)
                .map(|_| drawn(projects))
                .find_map(|id| {
                    projects.is_free(data, id).map(|free| free.then_some(id)).transpose()
                })
                .unwrap_or_else(|| {
                    Err(Fault::exhausted(format!("find a free project id for {}", data.display())))
                })?;
            cx.step("write the project id beside the volume")?;
            mark(folder, id)?;
        }
        cx.step("give the directory its project id")?;
        projects.set(data, id)?;
    }
    cx.step("limit the volume's size")?;
    projects.limit(data, id, Some(limit.bytes), limit.inodes)
}

/// Whether an id that is in use is still this volume's: only the top directory was changed, and
/// something in it still has the id.
fn is_own(projects: &impl Projects, id: u32, data: &Path) -> Result<bool> {
    let what = || format!("look into {}", data.display());
    for entry in std::fs::read_dir(data).map_err(|e| Fault::io(what(), e))? {
        let entry = entry.map_err(|e| Fault::io(what(), e))?;
        let kind = entry.file_type().map_err(|e| Fault::io(what(), e))?;
        // Symlinks would be followed, pipes would block.
        if !kind.is_dir() && !kind.is_file() {
            continue;
        }
        match projects.of(&entry.path()) {
            Ok(Some(found)) if found == id => return Ok(true),
            Ok(_) => {}
            Err(fault) if fault.kind() == Kind::NotFound => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(false)
}

/// Lifts the limit of a volume that is being removed, so that its id is free again once its files
/// are gone. `data` may be missing already. False: the directory does not have its id any more
/// (a workload changed it) while other inodes do; call again when everything in it is removed.
pub(crate) fn release(projects: &impl Projects, folder: &Path, data: &Path) -> Result<bool> {
    let Some(id) = claimed(folder)? else { return Ok(true) };
    let has_it = match projects.of(data) {
        Ok(project) => project == Some(id),
        Err(fault) if fault.kind() == Kind::NotFound => false,
        Err(fault) => return Err(fault),
    };
    // Without a directory that has it, the id may have gone to somebody else: then it has inodes.
    if !has_it && projects.usage(folder, id)?.inodes_used > 0 {
        return Ok(false);
    }
    projects.limit(folder, id, None, None)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, collections::BTreeMap};

    /// A file system with project quota, in memory: directories by path, each one inode.
    #[derive(Default)]
    struct Fake {
        of: RefCell<BTreeMap<PathBuf, u32>>,
        /// Inodes and limits by id.
        foreign: BTreeMap<u32, u64>,
        limits: RefCell<BTreeMap<u32, Limit>>,
        draws: RefCell<Vec<u64>>,
        /// Ids that look free and turn out to be taken by the time they are counted.
        raced: Vec<u32>,
    }

    const TOTAL: Bytes = Bytes::gib(100);

    impl Projects for Fake {
        fn is_free(&self, _: &Path, id: u32) -> Result<bool> {
            let held = self.of.borrow().values().any(|project| *project == id);
            Ok(!held && !self.foreign.contains_key(&id) && !self.limits.borrow().contains_key(&id))
        }
        fn set(&self, dir: &Path, id: u32) -> Result<()> {
            self.of.borrow_mut().insert(dir.to_owned(), id);
            Ok(())
        }
        fn of(&self, dir: &Path) -> Result<Option<u32>> {
            Ok(self.of.borrow().get(dir).copied())
        }
        fn usage(&self, _: &Path, id: u32) -> Result<Usage> {
            let own = self.of.borrow().values().filter(|project| **project == id).count() as u64;
            let raced = u64::from(self.raced.contains(&id));
            let limit = self.limits.borrow().get(&id).copied();
            Ok(Usage {
                total: limit.map_or(TOTAL, |l| l.bytes),
                inodes: limit.and_then(|l| l.inodes).unwrap_or(1_000_000),
                inodes_used: own + raced + self.foreign.get(&id).copied().unwrap_or(0),
                ..Usage::default()
            })
        }
        fn limit(
            &self,
            _: &Path,
            id: u32,
            bytes: Option<Bytes>,
            inodes: Option<u64>,
        ) -> Result<()> {
            match bytes {
                Some(bytes) => self.limits.borrow_mut().insert(id, Limit { bytes, inodes }),
                None => self.limits.borrow_mut().remove(&id),
            };
            Ok(())
        }
        fn draw(&self) -> u64 {
            self.draws.borrow_mut().pop().unwrap_or(7)
        }
    }

    const FIRST: u32 = *RANGE.start();
    const LIMIT: Limit = Limit { bytes: Bytes::gib(1), inodes: Some(10) };

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        (folder, data)
    }

    #[test]
    fn an_id_that_somebody_has_is_not_taken() {
        let (folder, data) = folder();
        let fake = Fake {
            foreign: BTreeMap::from([(FIRST + 1, 5), (FIRST + 2, 0)]),
            draws: RefCell::new(vec![3, 2, 1]),
            ..Fake::default()
        };
        assert_eq!(claim(&fake, folder.path(), &data, &Cx::new()).unwrap(), FIRST + 3);
        assert_eq!(claimed(folder.path()).unwrap(), Some(FIRST + 3));
    }

    #[test]
    fn of_two_who_take_one_id_at_a_time_the_one_who_notices_goes_away() {
        let (folder, data) = folder();
        let fake =
            Fake { raced: vec![FIRST + 1], draws: RefCell::new(vec![2, 1]), ..Fake::default() };
        assert_eq!(claim(&fake, folder.path(), &data, &Cx::new()).unwrap(), FIRST + 2);
        assert_eq!(fake.of(&data).unwrap(), Some(FIRST + 2));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "one marker, the data");
    }

    #[test]
    fn a_file_system_without_free_ids_is_exhausted() {
        let (folder, data) = folder();
        let fake = Fake { foreign: BTreeMap::from([(FIRST + 7, 1)]), ..Fake::default() };
        let fault = claim(&fake, folder.path(), &data, &Cx::new()).unwrap_err();
        assert_eq!(fault.kind(), Kind::Exhausted);
    }

    #[test]
    fn real_draws_lie_in_the_range_and_differ() {
        let drawn: std::collections::BTreeSet<u32> = (0..100).map(|_| drawn(&Kernel)).collect();
        assert!(drawn.iter().all(|id| RANGE.contains(id)));
        assert!(drawn.len() > 90, "{drawn:?}");
    }

    #[test]
    fn a_lost_limit_and_a_lost_id_are_put_back() {
        let (folder, data) = folder();
        let fake = Fake::default();
        let cx = Cx::new();
        let id = claim(&fake, folder.path(), &data, &cx).unwrap();
        assert!(!is_held(&fake, id, &data, LIMIT).unwrap());
        hold(&fake, folder.path(), &data, LIMIT, &cx).unwrap();
        assert!(is_held(&fake, id, &data, LIMIT).unwrap());
        fake.of.borrow_mut().clear();
        assert!(!is_held(&fake, id, &data, LIMIT).unwrap());
        // Something inside still has the id, so it is still ours.
        let inside = data.join("inside");
        std::fs::create_dir(&inside).unwrap();
        fake.set(&inside, id).unwrap();
        hold(&fake, folder.path(), &data, LIMIT, &cx).unwrap();
        assert!(is_held(&fake, id, &data, LIMIT).unwrap());
        assert_eq!(claimed(folder.path()).unwrap(), Some(id));
    }

    #[test]
    fn a_copied_pool_does_not_share_ids_with_its_original() {
        let (folder, data) = folder();
        let fake = Fake { draws: RefCell::new(vec![9]), ..Fake::default() };
        let id = claim(&fake, folder.path(), &data, &Cx::new()).unwrap();
        hold(&fake, folder.path(), &data, LIMIT, &Cx::new()).unwrap();
        let (copy, copied) = self::folder();
        std::fs::copy(
            folder.path().join(format!("{MARKER}{id}")),
            copy.path().join(format!("{MARKER}{id}")),
        )
        .unwrap();
        hold(&fake, copy.path(), &copied, LIMIT, &Cx::new()).unwrap();
        let other = claimed(copy.path()).unwrap().unwrap();
        assert_ne!(other, id);
        assert!(is_held(&fake, other, &copied, LIMIT).unwrap());
        assert!(is_held(&fake, id, &data, LIMIT).unwrap());
    }

    #[test]
    fn removal_lifts_the_limit_of_its_own_id_only() {
        let (folder, data) = folder();
        let fake = Fake::default();
        let id = claim(&fake, folder.path(), &data, &Cx::new()).unwrap();
        hold(&fake, folder.path(), &data, LIMIT, &Cx::new()).unwrap();
        // A workload gave its top directory the project of another volume.
        fake.limit(&data, FIRST + 99, Some(TOTAL), None).unwrap();
        fake.set(&data, FIRST + 99).unwrap();
        fake.set(&data.join("inside"), id).unwrap();
        assert!(!release(&fake, folder.path(), &data).unwrap(), "its files still count");
        fake.of.borrow_mut().clear();
        std::fs::remove_dir(&data).unwrap();
        assert!(release(&fake, folder.path(), &data).unwrap());
        assert_eq!(fake.limits.borrow().keys().collect::<Vec<_>>(), [&(FIRST + 99)]);
        assert!(release(&fake, folder.path(), &data).unwrap(), "repeated");
    }

    #[test]
    fn names_that_are_no_marker_are_not_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["project.7", "project.x", "project.", "project.99999999999", "data"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(claimed(folder.path()).unwrap(), None);
        assert_eq!(claimed(&folder.path().join("absent")).unwrap(), None);
    }
}
