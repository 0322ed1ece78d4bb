//! What a run may not leave: mounts, loop devices, files.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::bench::Bench;

/// Everything below the bench that a driver makes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    mounts: BTreeSet<PathBuf>,
    loops: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Traces {
    /// Looks now.
    pub(crate) fn of(bench: &Bench) -> Result<Self> {
        let root = bench.path("");
        let mut files = BTreeSet::new();
        for folder in [bench.path("target"), bench.path("staging")] {
            walk(&folder, 0, &mut files)?;
        }
        // At the top of these are the identity and the folders for volumes, records and
        // so on, which a driver makes when it first needs them.
        let housekeeping = bench.pool().join(".larder");
        for folder in [bench.pool(), bench.state(), housekeeping.clone()] {
            walk(&folder, 1, &mut files)?;
        }
        files.retain(|path| path.parent() != Some(&housekeeping));
        Ok(Self {
            mounts: mounts_below(&root)?.into_iter().collect(),
            loops: loops_below(&root)?.into_iter().map(|(_, file)| file).collect(),
            files,
        })
    }

    /// What is there `after` and was not before.
    pub(crate) fn compare(&self, after: &Self) -> Vec<String> {
        let kinds = [
            ("mount", &self.mounts, &after.mounts),
            ("loop device of", &self.loops, &after.loops),
            ("file", &self.files, &after.files),
        ];
        let mut leaks = Vec::new();
        for (kind, before, after) in kinds {
            let left = after.difference(before);
            leaks.extend(left.map(|path| format!("left behind: {kind} {}", path.display())));
        }
        leaks
    }
}

/// All files and folders at least so deep below a folder that exists.
fn walk(folder: &Path, depth: u32, into: &mut BTreeSet<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("failed to list {}", folder.display()));
        }
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), depth.saturating_sub(1), into)?;
        }
        if depth == 0 {
            into.insert(entry.path());
        }
    }
    Ok(())
}

/// The mount points below a folder.
pub(crate) fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_mounts(&text).into_iter().filter(|path| path.starts_with(folder)).collect())
}

/// Mount points are the fifth field, with blanks and the like in octal.
fn parse_mounts(text: &str) -> Vec<PathBuf> {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits = bytes.by_ref().take(3);
            out.push(digits.fold(0_u8, |code, digit| code.wrapping_mul(8).wrapping_add(digit & 7)));
        } else {
            out.push(byte);
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The loop devices whose files are below a folder: device and file.
pub(crate) fn loops_below(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        // The kernel says so behind the name of a file that is gone.
        let file = file.trim_end_matches('\n').trim_end_matches(" (deleted)");
        if Path::new(file).starts_with(folder) {
            found.push((Path::new("/dev").join(entry.file_name()), file.into()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_blanks_in_them() {
        let text = "36 35 98:0 /a /mnt/b\\040c rw master:1 - ext3 /dev/root rw\n";
        assert_eq!(parse_mounts(text), [PathBuf::from("/mnt/b c")]);
    }

    #[test]
    fn only_what_came_in_between_is_a_leak() {
        let set = |names: &[&str]| names.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let before =
            Traces { mounts: set(&[]), loops: set(&["/i"]), files: set(&["/id", "/gone"]) };
        let after =
            Traces { mounts: set(&["/m"]), loops: set(&["/i"]), files: set(&["/id", "/v"]) };
        assert_eq!(before.compare(&after), ["left behind: mount /m", "left behind: file /v"]);
        assert!(before.compare(&before).is_empty());
    }

    #[test]
    fn files_are_found_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "").unwrap();
        let mut found = BTreeSet::new();
        walk(dir.path(), 0, &mut found).unwrap();
        walk(&dir.path().join("absent"), 0, &mut found).unwrap();
        assert_eq!(found.len(), 3);
        found.clear();
        walk(dir.path(), 1, &mut found).unwrap();
        assert_eq!(found, BTreeSet::from(["a/b", "a/b/c"].map(|name| dir.path().join(name))));
    }
}
