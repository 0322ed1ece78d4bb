//! The ioctls that freeze and thaw (`include/uapi/linux/fs.h`).

#![allow(unsafe_code, reason = "ioctls without a safe wrapper")]

use rustix::{fd::AsFd, io::Result};

/// Writes everything to disk and blocks all writers. `EBUSY`: it is frozen already.
pub(super) fn freeze(directory: impl AsFd) -> Result<()> {
    // SAFETY: FIFREEZE takes no argument.
    unsafe { crate::sys::ioctl_number(directory, 0xC004_5877, 0) }.map(drop)
}

/// Lets writers go on. `EINVAL`: it is not frozen.
pub(super) fn thaw(directory: impl AsFd) -> Result<()> {
    // SAFETY: FITHAW takes no argument.
    unsafe { crate::sys::ioctl_number(directory, 0xC004_5878, 0) }.map(drop)
}

/// Makes this process live through what a service manager sends to all processes of a service.
pub(super) fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: SIG_IGN is a valid disposition for these signals; no handler code is involved.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
