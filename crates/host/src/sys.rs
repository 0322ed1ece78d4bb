//! Small helpers around system calls.

use larder_model::Fault;
use rustix::io::Errno;

/// A fault from a failed system call; its kind is read off the error.
pub(crate) fn io_fault(what: impl Into<String>, error: Errno) -> Fault {
    Fault::io(what, std::io::Error::from(error))
}

/// Numbers of capabilities (capabilities(7)).
pub(crate) const SYS_ADMIN: u32 = 21;
/// See [`SYS_ADMIN`].
pub(crate) const SYS_RESOURCE: u32 = 24;

/// Whether this process has a capability in the first user namespace (whose map is the identity for all
/// ids): elsewhere the kernel does not let it do what concerns the machine.
pub(crate) fn may(capability: u32) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
    let capable = read("status").and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        Some(u64::from_str_radix(line.trim(), 16).ok()? >> capability & 1 == 1)
    });
    let first =
        read("uid_map").is_some_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    capable == Some(true) && first
}

/// Waits on this (blocking) thread.
#[allow(
    clippy::disallowed_methods,
    reason = "everything in this crate is blocking; async callers come through `blocking`"
)]
pub(crate) fn sleep(time: std::time::Duration) {
    std::thread::sleep(time);
}

/// The one place where a process is made.
#[allow(clippy::disallowed_methods, reason = "this is the door that the ban points to")]
pub(crate) fn command(program: &std::path::Path) -> std::process::Command {
    std::process::Command::new(program)
}

/// Makes the kernel kill the child when the thread that starts it ends. That thread waits for the
/// child, so it ends first only together with this process.
#[allow(unsafe_code, reason = "pre_exec")]
pub(crate) fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec in the child of a threaded process, where only
    // async-signal-safe calls are allowed: prctl and getppid are plain system calls, and nothing
    // is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(std::io::Error::from(rustix::io::Errno::SRCH))
            }
        });
    }
}

/// Has the C library give back what it keeps for later. Others than GNU's keep little.
#[allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Hands open descriptors to the child, under the numbers that they have here.
#[allow(unsafe_code, reason = "pre_exec")]
pub(crate) fn inherit(command: &mut std::process::Command, fds: &[rustix::fd::OwnedFd]) {
    use rustix::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::process::CommandExt;
    if fds.is_empty() {
        return;
    }
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: as in `die_with_parent`, only plain system calls; the descriptors are open in the child,
    // which is a copy of this process, as the caller holds them until it has started.
    unsafe {
        command.pre_exec(move || {
            for number in &numbers {
                let fd = BorrowedFd::borrow_raw(*number);
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Whether a terminal shows what is typed.
#[allow(unsafe_code, reason = "termios")]
pub(crate) fn set_echo(terminal: &std::fs::File, on: bool) -> rustix::io::Result<()> {
    use rustix::fd::AsRawFd;
    let fd = terminal.as_raw_fd();
    // SAFETY: a `termios` is plain data that the kernel fills; the descriptor is borrowed for both calls.
    unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(fd, &mut modes) < 0 {
            return Err(last_error());
        }
        modes.c_lflag = if on { modes.c_lflag | libc::ECHO } else { modes.c_lflag & !libc::ECHO };
        if libc::tcsetattr(fd, libc::TCSAFLUSH, &modes) < 0 {
            return Err(last_error());
        }
    }
    Ok(())
}

/// An ioctl whose argument is a pointer to `T`, read or written by the kernel. Returns its result.
///
/// # Safety
/// `T` must be the type that `request` takes.
#[allow(unsafe_code, reason = "ioctls without a safe wrapper")]
pub(crate) unsafe fn ioctl<T>(
    fd: impl rustix::fd::AsFd,
    request: u32,
    argument: &mut T,
) -> rustix::io::Result<i32> {
    use rustix::fd::AsRawFd;
    let fd = fd.as_fd();
    // SAFETY: the descriptor is borrowed for the call; the pointer is valid for reads and writes of
    // a `T`, which the caller promises is what this request expects.
    let result = unsafe {
        libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument))
    };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// An ioctl whose argument is a plain number, or nothing. Returns its result.
///
/// # Safety
/// `request` must not take a pointer.
#[allow(unsafe_code, reason = "ioctls without a safe wrapper")]
pub(crate) unsafe fn ioctl_number(
    fd: impl rustix::fd::AsFd,
    request: u32,
    argument: libc::c_ulong,
) -> rustix::io::Result<i32> {
    use rustix::fd::AsRawFd;
    let fd = fd.as_fd();
    // SAFETY: the descriptor is borrowed for the call; the argument is a number, not a pointer, as
    // the caller promises.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, argument) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// The error of the system call that has just failed on this thread.
pub(crate) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Size in bytes of an open block device.
#[allow(unsafe_code, reason = "BLKGETSIZE64 has no safe wrapper")]
pub(crate) fn block_device_size(device: impl rustix::fd::AsFd) -> rustix::io::Result<u64> {
    const BLKGETSIZE64: u32 = 0x8008_1272;
    let mut size: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64.
    unsafe { ioctl(device, BLKGETSIZE64, &mut size) }?;
    Ok(size)
}
