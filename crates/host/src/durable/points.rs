//! Points at which a disk may fail: before each write, fsync, rename and removal that makes a record or
//! an image durable. Nothing in a release.
//!
//! With the feature `crash-points`, a file that the environment variable `LARDER_FAIL_FILE` names holds
//! `N ERRNO`: the N-th point that is reached from now on fails with that number, once, and the file is
//! gone then. A file is the switch, not the variable alone, so that a test chooses the call.

/// Comes before what touches the disk.
///
/// # Errors
/// Only in tests: the one that was ordered.
#[cfg(not(feature = "crash-points"))]
#[inline]
#[allow(clippy::unnecessary_wraps, reason = "tests have it fail")]
pub(crate) const fn reach() -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "crash-points")]
pub(crate) use ordered::reach;

#[cfg(feature = "crash-points")]
mod ordered {
    use std::{
        io::Error,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    static ORDER: LazyLock<Mutex<Option<PathBuf>>> =
        LazyLock::new(|| Mutex::new(std::env::var_os("LARDER_FAIL_FILE").map(PathBuf::from)));

    pub(crate) fn reach() -> std::io::Result<()> {
        let order = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &*order else { return Ok(()) };
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
        let Some((left, errno)) = text.split_once(' ') else { return Ok(()) };
        let (Ok(left), Ok(errno)) = (left.parse::<u32>(), errno.trim().parse()) else {
            return Ok(());
        };
        if left > 1 {
            return std::fs::write(path, format!("{} {errno}", left - 1));
        }
        std::fs::remove_file(path)?;
        Err(Error::from_raw_os_error(errno))
    }
}
