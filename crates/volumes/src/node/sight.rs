//! What is at a path, and whether it is ours.
//!
//! The hot paths ask with one statx (`Mounts::mount_root`); the whole mount table is read only where
//! that does not tell: after a crash, after the records were wiped, to name what is in the way, and
//! for network file systems, whose mounts must never be touched to find out about them.

use super::record::{Root, Shows};
use larder_host::{DeviceId, Host, MountEntry, MountRoot};
use larder_model::{Fault, Kind, Result, backend::Source};
use std::{fs, io, os::unix::fs::FileTypeExt, path::Path};

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing.
    Missing,
    /// A directory, nothing mounted on it.
    Directory {
        /// Nothing is in it.
        empty: bool,
    },
    /// A plain file, nothing mounted on it.
    File {
        /// It has no contents.
        empty: bool,
    },
    /// Something a volume cannot be put at, in words.
    Obstacle(&'static str),
    /// A mount point.
    Mounted(MountRoot),
}

/// Looks at `path` without following a final symlink.
///
/// # Errors
/// `Internal`; never guesses.
pub(super) fn look(host: &Host, path: &Path) -> Result<Place> {
    match host.mounts.mount_root(path) {
        Ok(Some(root)) => return Ok(Place::Mounted(root)),
        Ok(None) => {}
        Err(fault) if fault.kind() == Kind::Unavailable => {
            // A dead network mount: the table knows of it without asking its server.
            if let Some(top) = host.mounts.mounts_at(path)?.pop() {
                return Ok(Place::Mounted(from_table(&top)));
            }
            return Err(fault);
        }
        Err(fault) => return Err(fault),
    }
    let what = |e| Fault::io(format!("look at {}", path.display()), e);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Place::Missing);
        }
        Err(e) => return Err(what(e)),
    };
    let kind = meta.file_type();
    Ok(if kind.is_dir() {
        let mut entries = fs::read_dir(path).map_err(what)?;
        Place::Directory { empty: entries.next().is_none() }
    } else if kind.is_file() {
        Place::File { empty: meta.len() == 0 }
    } else if kind.is_symlink() {
        Place::Obstacle("a symlink")
    } else if kind.is_block_device() || kind.is_char_device() {
        Place::Obstacle("a device node")
    } else {
        Place::Obstacle("a socket or fifo")
    })
}

/// The same of a path where a network file system is known to be mounted: the table tells without asking
/// its server, which may never answer.
///
/// # Errors
/// As [`look`].
pub(super) fn look_in_table(host: &Host, path: &Path) -> Result<Place> {
    match host.mounts.mounts_at(path)?.pop() {
        Some(top) => Ok(Place::Mounted(from_table(&top))),
        None => look(host, path),
    }
}

/// The topmost mount at `path`, where `network` tells whether that may be one that hangs.
///
/// # Errors
/// As [`larder_host::Mounts::table`].
pub(super) fn top_at(host: &Host, path: &Path, network: bool) -> Result<Option<MountEntry>> {
    if network { Ok(host.mounts.mounts_at(path)?.pop()) } else { host.mounts.top_at(path) }
}

fn from_table(entry: &MountEntry) -> MountRoot {
    MountRoot { mount: entry.id, device: entry.device, inode: 0 }
}

/// What a mount of `source` will look like in the mount table.
///
/// # Errors
/// `NotFound` when device or directory are gone; `Precondition`.
pub(super) fn shows(host: &Host, source: &Source) -> Result<Shows> {
    Ok(match source {
        Source::Device { path, .. } => {
            Shows::Device { path: path.clone(), number: host.mounts.block_device(path)?.into() }
        }
        Source::Directory { path } => {
            let (device, root) = locate(&host.mounts.table()?, path)?;
            Shows::Directory { number: device.into(), root }
        }
        Source::FileSystem { fs_type, source, .. } => {
            let (fs_type, source) = (fs_type.clone(), source.clone());
            Shows::FileSystem { fs_type, source, shown: None, mounting: false }
        }
    })
}

/// Where `directory` lies inside its file system, as the mount table will tell of a bind of it.
fn locate(table: &[MountEntry], directory: &Path) -> Result<(DeviceId, std::path::PathBuf)> {
    let what = || format!("look at directory {}", directory.display());
    let real = fs::canonicalize(directory).map_err(|e| Fault::io(what(), e))?;
    let holder = table
        .iter()
        .filter(|entry| real.starts_with(&entry.target))
        // Of several mounts at one place the last is on top.
        .max_by_key(|entry| entry.target.components().count())
        .ok_or_else(|| Fault::internal(format!("{}: no mount holds it", what())))?;
    let inside = real.strip_prefix(&holder.target).unwrap_or(Path::new(""));
    let root =
        if inside.as_os_str().is_empty() { holder.root.clone() } else { holder.root.join(inside) };
    Ok((holder.device, root))
}

/// Whether `entry` is a mount of what `shows` describes.
pub(super) fn matches(shows: &Shows, entry: &MountEntry) -> bool {
    match shows {
        Shows::Device { path, number } => {
            entry.device == DeviceId::from(*number)
                // btrfs has device numbers of its own.
                || (entry.fs_type == "btrfs" && is_named(&entry.source, path, *number))
        }
        Shows::Directory { number, root } => {
            entry.device == DeviceId::from(*number) && undeleted(&entry.root) == undeleted(root)
        }
        Shows::FileSystem { fs_type, source, shown, mounting } => {
            let nfs = |kind: &str| matches!(kind, "nfs" | "nfs4");
            let as_shown = shown.as_ref().is_some_and(|shown| entry.source == *shown);
            (entry.source == *source || as_shown || *mounting)
                && (entry.fs_type == *fs_type || (nfs(&entry.fs_type) && nfs(fs_type)))
        }
    }
}

/// Whether `source` names the device: device-mapper devices have two names, and udev's scan for btrfs
/// changes the one that the mount shows to the other.
fn is_named(source: &str, path: &Path, number: super::record::Number) -> bool {
    let dm = || format!("/dev/dm-{}", DeviceId::from(number).minor);
    Path::new(source) == path || (path.starts_with("/dev/mapper") && source == dm())
}

/// The kernel marks the root of a bind mount whose directory was removed.
fn undeleted(root: &Path) -> &[u8] {
    let bytes = root.as_os_str().as_encoded_bytes();
    bytes.strip_suffix(b"//deleted").unwrap_or(bytes)
}

/// Whether the mount `seen` at `path` is one of the volume that `shows` describes. `root` is what
/// its staging mount showed, where that is known: then one comparison tells.
///
/// # Errors
/// As [`larder_host::Mounts::table`].
pub(super) fn is_ours(
    host: &Host,
    shows: Option<&Shows>,
    root: Option<&Root>,
    path: &Path,
    seen: &MountRoot,
) -> Result<bool> {
    if root.is_some_and(|root| root.is_shown_by(seen)) {
        return Ok(true);
    }
    let Some(shows) = shows else { return Ok(false) };
    if let Shows::Device { number, .. } = shows
        && host.mounts.block_device(path).is_ok_and(|device| device == DeviceId::from(*number))
    {
        return Ok(true); // The device node itself, bound over a file.
    }
    let top = top_at(host, path, shows.is_network())?;
    Ok(top.is_some_and(|entry| matches(shows, &entry)))
}

/// What is mounted at `path`, in words for a refusal.
pub(super) fn described(host: &Host, path: &Path) -> String {
    // The table: whoever is there may have a dead server.
    match host.mounts.mounts_at(path).map(|mut stack| stack.pop()) {
        Ok(Some(top)) => format!("{} {} ({})", top.fs_type, top.source, top.device),
        _ => "another mount".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_host::mounts::parse_mountinfo;

    fn entry(line: &str) -> MountEntry {
        parse_mountinfo(line.as_bytes()).unwrap().pop().unwrap()
    }

    #[test]
    fn a_mount_is_ours_by_device_by_btrfs_source_by_directory_or_by_export() {
        let device = Shows::Device {
            path: "/dev/loop3".into(),
            number: DeviceId { major: 7, minor: 3 }.into(),
        };
        let ext4 = entry("36 35 7:3 / /s rw - ext4 /dev/loop3 rw");
        let btrfs = entry("36 35 0:51 / /s rw - btrfs /dev/loop3 rw");
        let other = entry("36 35 7:4 / /s rw - ext4 /dev/loop4 rw");
        assert!(matches(&device, &ext4) && matches(&device, &btrfs) && !matches(&device, &other));

        let directory = Shows::Directory {
            number: DeviceId { major: 8, minor: 1 }.into(),
            root: "/pool/a".into(),
        };
        assert!(matches(&directory, &entry("36 35 8:1 /pool/a /s rw - ext4 /dev/sda1 rw")));
        assert!(matches(
            &directory,
            &entry("36 35 8:1 /pool/a//deleted /s rw - ext4 /dev/sda1 rw")
        ));
        assert!(!matches(&directory, &entry("36 35 8:1 /pool/ab /s rw - ext4 /dev/sda1 rw")));
        assert!(!matches(&directory, &entry("36 35 8:2 /pool/a /s rw - ext4 /dev/sda2 rw")));

        let mut nfs = Shows::FileSystem {
            fs_type: "nfs".into(),
            source: "server:/a".into(),
            shown: None,
            mounting: false,
        };
        let (asked, led_to) = (
            entry("36 35 0:9 / /s rw - nfs4 server:/a rw"),
            entry("36 35 0:9 / /s rw - nfs4 server:/b rw"),
        );
        let local = entry("36 35 0:9 / /s rw - tmpfs server:/a rw");
        assert!(matches(&nfs, &asked) && !matches(&nfs, &led_to) && !matches(&nfs, &local));
        nfs.begin_to_mount();
        assert!(matches(&nfs, &asked) && matches(&nfs, &led_to) && !matches(&nfs, &local));
        nfs.show_as("server:/c".into());
        assert!(matches(&nfs, &asked) && !matches(&nfs, &led_to) && !matches(&nfs, &local));
        nfs.show_as("server:/b".into());
        assert!(matches(&nfs, &asked) && matches(&nfs, &led_to) && !matches(&nfs, &local));
    }

    #[test]
    fn a_directory_is_located_in_the_innermost_topmost_mount_that_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let inner = fs::canonicalize(dir.path()).unwrap().join("p/v");
        fs::create_dir_all(&inner).unwrap();
        let parent = inner.parent().unwrap().display().to_string();
        let table = [
            entry("1 0 8:1 / / rw - ext4 /dev/sda1 rw"),
            entry(&format!("2 1 8:2 /below {parent} rw - ext4 /dev/sda2 rw")),
            entry(&format!("3 2 8:3 /x {parent} rw - ext4 /dev/sda3 rw")),
            entry(&format!("4 1 8:4 / {parent}-not rw - ext4 /dev/sda4 rw")),
        ];
        let (device, root) = locate(&table, &inner).unwrap();
        assert_eq!((device.minor, root.as_path()), (3, Path::new("/x/v")));
        let (_, root) = locate(&table, inner.parent().unwrap()).unwrap();
        assert_eq!(root, Path::new("/x"));
        let missing = locate(&table, &inner.join("no")).unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
    }
}
