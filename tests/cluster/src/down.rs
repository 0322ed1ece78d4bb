//! Ends a cluster, from what is written down about it, and looks whether it is gone.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{cgroups, machine::Machine, network, process, state::Folders};

/// Ends the cluster of this name, whole or not, so that nothing of it is left but its
/// logs. No cluster of this name is no error.
///
/// # Errors
/// Something of it does not end; the message says what. It can be repeated.
pub fn down(name: &str) -> Result<()> {
    let folders = Folders::of(name)?;
    let lock = folders.lock()?;
    tear_down(name, &folders)?;
    drop(lock);
    Ok(())
}

/// Ends the throw-away clusters whose owners were killed.
pub(crate) fn end_orphans() -> Result<()> {
    for name in crate::names()? {
        // One that is being ended by somebody else may be gone, or half-read.
        let state = Folders::of(&name)?.load().ok().flatten();
        let owner = state.and_then(|state| state.owner);
        if owner.is_some_and(|owner| !owner.is_alive()) {
            crate::say(&format!("the owner of {name} was killed; ending it"));
            down(&name)?;
        }
    }
    Ok(())
}

/// [`down`], by one who holds the lock.
pub(crate) fn tear_down(name: &str, folders: &Folders) -> Result<()> {
    let mut mounted = BTreeSet::new();
    if let Some(state) = folders.load()? {
        mounted = state
            .machines
            .iter()
            .filter(|machine| machine.is_alive())
            .flat_map(own_mounts)
            .collect();
        // Nodes first: what they unmount may want the network.
        for machine in state.machines.iter().rev() {
            machine.kill().with_context(|| format!("failed to end {}", machine.name()))?;
        }
        network::disconnect(state.network);
    }
    cgroups::remove(name)?;
    detach_loops(&folders.home, &mounted)?;
    if folders.home.exists() {
        remove(&folders.home)?;
    }
    let left = cgroups::left(name);
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    Ok(())
}

fn remove(home: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let inside = format!(" {}/", home.display());
    ensure!(
        !mounts.contains(&inside),
        "something is mounted in {} (hint: unmount it and repeat)",
        home.display()
    );
    fs::remove_dir_all(home).with_context(|| format!("failed to remove {}", home.display()))
}

/// A loop device and what it is on.
#[derive(Debug, PartialEq, Eq)]
struct Loop {
    name: String,
    /// Its own number, if a file system on it is looked for.
    number: Option<String>,
    disk: String,
    inode: u64,
}

/// Loop devices belong to the host's kernel and outlive the machine that attached them.
/// Those on a file of the cluster go: on its disk, told by the file's number because its
/// path was another one in the machine, or on a file system that only its machines had
/// mounted, or on a file system on such a loop device.
fn detach_loops(home: &Path, mounted: &BTreeSet<String>) -> Result<()> {
    let words = ["--list", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-INO"];
    let list = process::output(Command::new("losetup").args(words))?;
    let mut loops = parse_loops(&list)?;
    if loops.is_empty() {
        return Ok(());
    }
    let mut files = BTreeSet::new();
    if home.exists() {
        find_files(home, &mut files)?;
    }
    let mut disks = mounted.clone();
    let mut ours: Vec<Loop> = Vec::new();
    while let Some(index) = loops.iter().position(|found| {
        disks.contains(&found.disk) || files.contains(&(found.disk.clone(), found.inode))
    }) {
        let found = loops.swap_remove(index);
        disks.extend(found.number.clone());
        ours.push(found);
    }
    // Those on top of others first.
    for found in ours.iter().rev() {
        let detached = process::output(Command::new("losetup").args(["--detach", &found.name]));
        // It may have gone by itself with its last user.
        if let Err(error) = detached
            && fs::exists(format!("/sys/block/{}/loop", found.name.trim_start_matches("/dev/")))?
        {
            return Err(error);
        }
    }
    Ok(())
}

fn parse_loops(json: &str) -> Result<Vec<Loop>> {
    // No loop devices, no output.
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list: Value = serde_json::from_str(json)?;
    let rows = list.pointer("/loopdevices").and_then(Value::as_array);
    let text = |row: &Value, column: &str| -> Option<String> {
        match row.get(column)? {
            // Older versions pad, and write numbers as text.
            Value::String(text) => Some(text.trim().to_owned()),
            other => Some(other.to_string()),
        }
    };
    let parse = |row: &Value| -> Option<Loop> {
        let name = text(row, "name")?;
        let number = fs::metadata(&name).ok().map(|metadata| device(metadata.rdev()));
        let inode = text(row, "back-ino")?.parse().ok()?;
        Some(Loop { name, number, disk: text(row, "back-maj:min")?, inode })
    };
    Ok(rows.into_iter().flatten().filter_map(parse).collect())
}

fn device(number: u64) -> String {
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

/// Numbers of the file systems that a machine has mounted and this process has not.
fn own_mounts(machine: &Machine) -> BTreeSet<String> {
    let numbers = |path: PathBuf| -> BTreeSet<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| Some(line.split(' ').nth(2)?.to_owned())).collect()
    };
    let folder = machine.root().parent().map(|dir| dir.join("mountinfo")).unwrap_or_default();
    &numbers(folder) - &numbers("/proc/self/mountinfo".into())
}

/// Disk and inode of every plain file.
fn find_files(dir: &Path, found: &mut BTreeSet<(String, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find_files(&entry.path(), found)?;
        } else if kind.is_file() {
            let metadata = entry.metadata()?;
            found.insert((device(metadata.dev()), metadata.ino()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_devices_are_read_with_padding_and_without() {
        let json = r#"{"loopdevices": [
            {"name":"/dev/null", "back-maj:min":"   254:0  ", "back-ino":26},
            {"name":"/no/such", "back-maj:min":"7:1", "back-ino":"27"},
            {"name":"/no/such", "back-maj:min":null, "back-ino":null}]}"#;
        let loops = parse_loops(json).unwrap();
        let told = |found: &Loop| (found.disk.clone(), found.inode);
        assert_eq!(
            loops.iter().map(told).collect::<Vec<_>>(),
            [("254:0".to_owned(), 26), ("7:1".to_owned(), 27)]
        );
        assert_eq!(loops[0].number.as_deref(), Some("1:3"));
        assert_eq!(loops[1].number, None);
        assert_eq!(parse_loops("").unwrap(), []);
    }
}
