//! Small helpers around system calls.

use larder_model::Fault;
use rustix::io::Errno;

/// A fault from a failed system call; its kind is read off the error.
pub(crate) fn io_fault(what: impl Into<String>, error: Errno) -> Fault {
    Fault::io(what, std::io::Error::from(error))
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
