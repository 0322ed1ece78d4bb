//! Image files: what loop volumes are made of.

use crate::{durable, sys::io_fault};
use larder_model::{Bytes, Fault, Result};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags};
use std::{fs::File, os::unix::fs::MetadataExt, path::Path};

/// Makes a sparse file of `size` bytes (mode 0600), durably. It uses no space until written.
///
/// # Errors
/// `Conflict` when the name is taken; `OutOfRange` for a size the file system cannot hold;
/// `Exhausted`. Nothing is left behind.
pub fn create_sparse(path: &Path, size: Bytes) -> Result<()> {
    create(path, size, |_| Ok(()))
}

/// Makes a file of `size` bytes (mode 0600) whose space is reserved, durably. It reads as zeros.
///
/// # Errors
/// As [`create_sparse`]; `Exhausted` when the space is not there.
pub fn preallocate(path: &Path, size: Bytes) -> Result<()> {
    create(path, size, |file| reserve(file, path, Bytes::ZERO, size))
}

/// Opens an image; symlinks are not followed, and nothing waits for a pipe's other end.
///
/// # Errors
/// `Precondition` where it is no ordinary file; see [`Fault::io`].
pub(crate) fn open(path: &Path, read_only: bool) -> Result<File> {
    let what = || format!("open image {}", path.display());
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(what(), e))?;
    if file.metadata().map_err(|e| Fault::io(what(), e))?.is_file() {
        Ok(file)
    } else {
        Err(Fault::precondition(format!("{}: it is no ordinary file", what())))
    }
}

fn create(path: &Path, size: Bytes, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let what = || format!("make image {} of {size}", path.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => File::from(fd),
        Err(e @ rustix::io::Errno::EXIST) => {
            return Err(io_fault(what(), e).with_kind(larder_model::Kind::Conflict));
        }
        Err(e) => return Err(io_fault(what(), e)),
    };
    let filled = set_size(&file, size, &what)
        .and_then(|()| fill(&file))
        .and_then(|()| sync(&file).map_err(|e| Fault::io(what(), e)));
    if let Err(fault) = filled {
        let _ = std::fs::remove_file(path);
        return Err(fault);
    }
    durable::sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Grows the file to `size`, durably; the new part reads as zeros. Never shrinks: a file that is as
/// large or larger is left as it is. Returns the size that it has now.
///
/// # Errors
/// `NotFound`; `OutOfRange`; `Exhausted`.
pub fn grow(path: &Path, size: Bytes) -> Result<Bytes> {
    let what = || format!("grow image {} to {size}", path.display());
    let (file, now) = open_for_growth(path, &what)?;
    if now >= size {
        return Ok(now);
    }
    set_size(&file, size, &what)?;
    sync(&file).map_err(|e| Fault::io(what(), e))?;
    Ok(size)
}

/// As [`grow`], with the space of the whole file reserved. On failure the size is what it was.
///
/// # Errors
/// As [`grow`]; `Exhausted` when the space is not there.
pub fn grow_preallocated(path: &Path, size: Bytes) -> Result<Bytes> {
    let what = || format!("grow image {} to {size}", path.display());
    let (file, now) = open_for_growth(path, &what)?;
    if now >= size {
        return Ok(now);
    }
    // Reserve first, beyond the end: a failure then changes no size that others can see.
    reserve(&file, path, now, size)?;
    set_size(&file, size, &what)?;
    sync(&file).map_err(|e| Fault::io(what(), e))?;
    Ok(size)
}

/// Reserves the space of a whole file that exists: what is a hole gets blocks that read as zeros,
/// what has blocks keeps them (also those shared with other files).
///
/// # Errors
/// `NotFound`; `Exhausted` when the space is not there.
pub fn reserve_all(path: &Path) -> Result<()> {
    let what = || format!("reserve the space of image {}", path.display());
    let (file, size) = open_for_growth(path, &what)?;
    reserve(&file, path, Bytes::ZERO, size)?;
    sync(&file).map_err(|e| Fault::io(what(), e))
}

fn sync(file: &File) -> std::io::Result<()> {
    durable::reach()?;
    file.sync_all()
}

fn open_for_growth(path: &Path, what: &impl Fn() -> String) -> Result<(File, Bytes)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(what(), e))?;
    let meta = file.metadata().map_err(|e| Fault::io(what(), e))?;
    if !meta.is_file() {
        return Err(Fault::precondition(format!("{}: it is no ordinary file", what())));
    }
    Ok((file, Bytes::new(meta.len())))
}

fn set_size(file: &File, size: Bytes, what: &impl Fn() -> String) -> Result<()> {
    file.set_len(size.get()).map_err(|e| match e.kind() {
        std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::InvalidInput => {
            Fault::out_of_range(format!("{}: the file system below cannot hold it", what()))
                .because(e)
        }
        _ => Fault::io(what(), e),
    })
}

/// Reserves `from..to`; what was reserved by a failed attempt is given back.
fn reserve(file: &File, path: &Path, from: Bytes, to: Bytes) -> Result<()> {
    let what = || format!("reserve {to} for image {}", path.display());
    let length = to.saturating_sub(from).get();
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from.get(), length) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                // Setting the size it has cuts what was reserved beyond the end.
                if let Ok(meta) = file.metadata() {
                    let _ = file.set_len(meta.len());
                }
                let fault = io_fault(what(), e);
                return Err(match e {
                    rustix::io::Errno::OPNOTSUPP => fault
                        .with_kind(larder_model::Kind::Precondition)
                        .hint("the file system below cannot reserve space; use a sparse image"),
                    _ => fault,
                });
            }
        }
    }
}

/// How much space the file takes where it lies: less than its size when sparse, and counted in full
/// for each of several reflinked files that share blocks.
///
/// # Errors
/// `NotFound`.
pub fn allocated(path: &Path) -> Result<Bytes> {
    std::fs::symlink_metadata(path)
        .map(|m| Bytes::new(m.blocks().saturating_mul(512)))
        .map_err(|e| Fault::io(format!("look at image {}", path.display()), e))
}
