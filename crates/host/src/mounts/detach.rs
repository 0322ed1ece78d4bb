//! Lets go of mounts whose server may be dead.
//!
//! A lazy unmount itself asks nobody, but the last one of a file system ends that, in the thread that
//! asked: what was not written yet is written, a session is ended, and where the server is silent that
//! may keep the thread for as long as it likes (unwritten pages of NFS keep the file system in being
//! themselves, on the kernels we have tried; others wait). So a helper process does it, and after a while the
//! mount table decides:
//!
//! ```text
//!  helper ──▶ umount2(MNT_DETACH) ──▶ gone from the table ──▶ writes what is left ──▶ ends
//!                                              │ not ended in time: done all the same
//! ```
//! - The helper is not killed then: it may hold the last data of processes that were killed, and writes
//!   them when the server is back. For the same reason nothing is forced (`MNT_FORCE`): that fails what
//!   *all* mounts of the same export wait for.
//! - It is the last of its file system, so a dead server holds one for each export, however many calls
//!   come.

use super::{MountEntry, Mounts, RealMounts};
use crate::{HelperProgram, command, filesystems::way, remote::wire::Told, sys};
use larder_model::{Fault, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mount::UnmountFlags,
    process::{Pid, PidfdFlags, Signal},
};
use std::{
    ffi::OsString,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// How long the end of a file system is waited for, so that what a pod wrote is on the server when the
/// next node mounts it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a helper that could not even begin may take to die.
const DEATH: Duration = Duration::from_secs(2);

/// Whether the end of a file system of this kind may wait for others. FUSE without a device asks its
/// daemon nothing then.
pub(super) fn may_hang(fs_type: &str) -> bool {
    !way::is_local_kind(fs_type) && fs_type != "fuse" && !fs_type.starts_with("fuse.")
}

/// Detaches `top`, which is at `target`.
pub(super) fn detach(target: &Path, top: &MountEntry, helper: &HelperProgram) -> Result<()> {
    let what = || format!("detach {}", target.display());
    let Some((program, arguments)) = helper.0.split_first() else {
        return Err(Fault::internal(format!("{}: no helper program is known", what())));
    };
    command::stuck(); // Reaps.
    let mut started = sys::command(Path::new(program));
    started.args(arguments).arg("detach").arg(top.id.to_string()).arg(target);
    started.env_clear().env("LC_ALL", "C").current_dir("/");
    started.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut started, 0);
    sys::die_with_parent(&mut started);
    let mut child =
        started.spawn().map_err(|e| Fault::io(format!("{}: start a helper", what()), e))?;
    let is_there = || -> Result<bool> {
        Ok(RealMounts::new().mounts_at(target)?.iter().any(|entry| entry.id == top.id))
    };
    let line = format!("detach {}", target.display());
    if !ended(&child, PATIENCE) {
        let there = is_there();
        if matches!(there, Ok(false)) {
            tracing::warn!(
                target = %target.display(), source = top.source,
                "its server is silent: the last data go there when it is back"
            );
            child.stdout = None;
            command::leave_alone(child, &line);
            return Ok(());
        }
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        command::leave_behind(child, &line, DEATH);
        there?;
        return Err(Fault::unavailable(format!(
            "{}: it was not done in {} s",
            what(),
            PATIENCE.as_secs()
        ))
        .hint("this machine is overloaded; the call is repeated"));
    }
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        let _ = stdout.read_to_end(&mut said);
    }
    let status = child.wait().map_err(|e| Fault::io(what(), e))?;
    if !is_there()? {
        return Ok(());
    }
    Err(match serde_json::from_slice::<Told>(&said) {
        Ok(told) => told.into(),
        Err(_) => Fault::internal(format!("{}: its helper ended with {status}", what())),
    })
}

/// Whether it ends in time.
fn ended(child: &Child, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    let Ok(pidfd) = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else {
        return false;
    };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) if !left.is_zero() => {}
            Ok(n) => return n > 0,
            Err(_) => return false,
        }
    }
}

/// What the helper process does.
#[allow(clippy::print_stdout, reason = "this is how the helper answers")]
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let id = arguments.next().and_then(|id| id.to_str()?.parse::<u64>().ok());
    let (Some(id), Some(target), None) = (id, arguments.next(), arguments.next()) else {
        return ExitCode::from(64);
    };
    let Err(fault) = detach_now(id, &PathBuf::from(target)) else { return ExitCode::SUCCESS };
    if let Ok(text) = serde_json::to_string(&Told::from(&fault)) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    ExitCode::FAILURE
}

fn detach_now(id: u64, target: &Path) -> Result<()> {
    let what = || format!("detach {}", target.display());
    // Who asked may be gone, and somebody else may have mounted something since.
    if RealMounts::new().mounts_at(target)?.pop().is_none_or(|top| top.id != id) {
        return Err(Fault::aborted(format!("{}: something else is mounted there now", what())));
    }
    // From here on nobody's end is ours: a killed flush loses data.
    rustix::process::set_parent_process_death_signal(None).map_err(|e| sys::io_fault(what(), e))?;
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .map_err(|e| sys::io_fault(what(), e))
}
