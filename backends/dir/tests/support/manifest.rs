//! An independent description of a tree: everything that a faithful copy must keep, read with plain
//! `std` and `getxattr`, sharing no code with what makes the copies.

use rustix::fs::SeekFrom;
use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    hash::{DefaultHasher, Hasher},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

/// What one name in a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds; of directories too.
    pub(crate) mtime: (i64, i64),
    pub(crate) size: u64,
    /// A hash of the content, or the target of a symbolic link.
    pub(crate) content: Vec<u8>,
    /// Where data lies: (offset, length) runs, as SEEK_DATA and SEEK_HOLE tell.
    pub(crate) data: Vec<(u64, u64)>,
    /// Name and value; ACLs are among them.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) rdev: u64,
    /// All names of this inode inside the tree, sorted: hard links.
    pub(crate) names: Vec<PathBuf>,
}

/// Every entry below `root`, by its relative path; the root itself is the empty path.
pub(crate) fn manifest(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut inodes: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = root.join(&relative);
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { path };
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            for child in fs::read_dir(&path).unwrap() {
                todo.push(relative.join(child.unwrap().file_name()));
            }
        } else {
            inodes.entry((meta.dev(), meta.ino())).or_default().push(relative.clone());
        }
        entries.insert(relative, (entry(&path, &meta), (meta.dev(), meta.ino())));
    }
    inodes.values_mut().for_each(|names| names.sort());
    entries
        .into_iter()
        .map(|(path, (mut entry, inode))| {
            entry.names = inodes.get(&inode).cloned().unwrap_or_default();
            (path, entry)
        })
        .collect()
}

fn entry(path: &Path, meta: &Metadata) -> Entry {
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () => "block device",
    };
    let (content, data) = match kind {
        "file" => read(path),
        "symlink" => (fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(), Vec::new()),
        _ => Default::default(),
    };
    let xattrs = xattr::list(path)
        .unwrap()
        // xfs shows each ACL a second time, in its own form.
        .filter(|name| !name.as_bytes().starts_with(b"trusted.SGI_ACL_"))
        .map(|name| {
            let value = xattr::get(path, &name).unwrap().unwrap_or_default();
            (name.as_bytes().to_vec(), value)
        })
        .collect();
    Entry {
        kind,
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        // The size of a directory depends on its history and on the file system.
        size: if kind == "directory" { 0 } else { meta.size() },
        content,
        data,
        xattrs,
        rdev: meta.rdev(),
        names: Vec::new(),
    }
}

fn read(path: &Path) -> (Vec<u8>, Vec<(u64, u64)>) {
    let mut file = File::open(path).unwrap();
    let mut hash = DefaultHasher::new();
    let (mut buffer, zeros) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        // Holes are read like everything else, but need not be hashed.
        if buffer[..n] != zeros[..n] {
            hash.write_u64(offset);
            hash.write(&buffer[..n]);
        }
        offset += n as u64;
    }
    hash.write_u64(offset);
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        runs.push((start, end - start));
        at = end;
    }
    (hash.finish().to_le_bytes().to_vec(), runs)
}

/// Fails with the first differences, readably.
pub(crate) fn assert_same(original: &BTreeMap<PathBuf, Entry>, copy: &BTreeMap<PathBuf, Entry>) {
    let mut differences = Vec::new();
    for (path, entry) in original {
        match copy.get(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(found) if found != entry => {
                differences.push(format!("{}: {entry:?}\n   became {found:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    for path in copy.keys().filter(|path| !original.contains_key(*path)) {
        differences.push(format!("{} was not there", path.display()));
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(5)].join("\n")
    );
}
