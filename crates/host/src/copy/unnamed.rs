//! A reflink without a name: what must not be left behind by a crash cannot be.

use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};
use std::{fs::File, path::Path};

/// Makes a file without a name that shares all blocks of `from`, beside it (`O_TMPFILE`,
/// `FICLONE`); None where the file system cannot. It exists as long as it is open, and can be read
/// as `/proc/self/fd/N`.
///
/// # Errors
/// `NotFound`; `Exhausted`; see [`Fault::io`].
pub fn reflink_unnamed(from: &Path) -> Result<Option<File>> {
    let what = || format!("share the blocks of {}", from.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let source =
        rustix::fs::openat(CWD, from, flags, Mode::empty()).map_err(|e| io_fault(what(), e))?;
    let Some(dir) = from.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Err(Fault::invalid(format!("{}: it is no absolute path", what())));
    };
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let copy = match rustix::fs::openat(CWD, dir, flags, Mode::from_raw_mode(0o600)) {
        Ok(copy) => copy,
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Ok(None),
        Err(e) => return Err(io_fault(what(), e)),
    };
    match rustix::fs::ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(Some(File::from(copy))),
        // INVAL: the two files differ in what forbids sharing (nodatacow on btrfs).
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => {
            Ok(None)
        }
        Err(e) => Err(io_fault(what(), e)),
    }
}
