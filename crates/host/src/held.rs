//! How much a tree holds, counted by walking it.

use crate::{descend, sys::io_fault};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{collections::BTreeSet, path::Path, time::Instant};

/// What a tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes on the file system (allocated blocks; holes take none, hard links count once).
    pub bytes: Bytes,
    /// Files, directories and whatever else has an inode.
    pub inodes: u64,
}

/// Walks the tree at `root`, not into what is mounted in it or into subvolumes nested in it, and
/// whatever happens to it meanwhile never out of it. None: not done at `deadline`.
///
/// # Errors
/// `NotFound`; `Precondition` when something else has its name, also a symlink to a directory. What vanishes during the walk is not counted.
pub fn held(root: &Path, deadline: Option<Instant>) -> Result<Option<Held>> {
    let failed = |e: Errno| -> Fault { io_fault(format!("measure {}", root.display()), e) };
    let flags = descend::flags() | OFlags::DIRECTORY;
    let fd = match rustix::fs::openat(CWD, root, flags, Mode::empty()) {
        Err(e @ (Errno::NOTDIR | Errno::LOOP)) => {
            return Err(failed(e)
                .with_kind(Kind::Precondition)
                .hint("it is a symlink or a file, and neither is followed"));
        }
        fd => fd.map_err(failed)?,
    };
    let top = rustix::fs::fstat(&fd).map_err(failed)?;
    // stat(2): in units of 512 bytes, whatever the file system's block size.
    let (mut blocks, mut inodes) = (top.st_blocks.cast_unsigned(), 1);
    let mut linked = BTreeSet::new();
    let mut late = false;
    descend::descend(fd, &failed, &mut |directory| {
        let mut left = Vec::new();
        late = late || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late {
            return Ok(left);
        }
        descend::names(directory, &failed, &mut |name| {
            let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            let stat = match rustix::fs::statat(directory, name, at) {
                Ok(stat) if stat.st_dev == top.st_dev => stat,
                Ok(_) | Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(failed(e)),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                left.push(name.to_owned());
            } else if stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                return Ok(());
            }
            blocks = blocks.saturating_add(stat.st_blocks.cast_unsigned());
            inodes += 1;
            Ok(())
        })?;
        Ok(left)
    })?;
    Ok((!late).then(|| Held { bytes: Bytes::new(blocks.saturating_mul(512)), inodes }))
}
