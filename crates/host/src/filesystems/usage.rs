//! How full a file system is.
//!
//! `statfs` on a dead network mount can hang for ever, and so can the walk to it. Where the path
//! leads to such a mount ([`super::way`]), a helper process asks instead, and is killed at the
//! deadline.

use super::{
    Usage,
    way::{self, MOST_STUCK},
};
use crate::{
    HelperProgram,
    command::{self, Command},
    sys::io_fault,
};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::{fs::StatVfs, io::Errno};
use std::{ffi::OsString, io::Write, path::Path, process::ExitCode, time::Duration};

/// How long a file system may take to answer.
const DEADLINE: Duration = Duration::from_secs(8);
/// See [`super::FileSystems::usage`].
pub(super) fn usage(path: &Path, helper: &HelperProgram) -> Result<Usage> {
    let what = || format!("ask how full {} is", path.display());
    if let Some(place) = way::walk(path).map_err(|e| io_fault(what(), e))? {
        // Through /proc, because an O_PATH descriptor itself is enough for fstatfs.
        let stat = rustix::fs::fstatvfs(&place).map_err(|e| io_fault(what(), e))?;
        return Ok(from_statvfs(&stat));
    }
    if command::stuck() >= MOST_STUCK {
        return Err(Fault::unavailable(format!("{}: too many such questions hang", what()))
            .hint("a network or FUSE file system does not answer; see the kernel log"));
    }
    let Some((program, arguments)) = helper.0.split_first() else {
        return Err(Fault::internal(format!("{}: no helper program is known", what())));
    };
    let output = Command::new(program)
        .args(arguments)
        .arg("statfs")
        .arg(path)
        .deadline(DEADLINE)
        .run_any()
        .map_err(|e| match e.kind() {
            Kind::Deadline => Fault::unavailable(format!("{}: it does not answer", what()))
                .hint("its server or daemon is gone or overloaded"),
            _ => e.during(what()),
        })?;
    match output.code() {
        Some(0) => serde_json::from_slice(&output.stdout).map_err(|e| {
            Fault::internal(format!("{}: the helper's answer makes no sense", what())).because(e)
        }),
        // The helper's way to hand over an errno: its number on stderr.
        _ => Err(match output.stderr.trim().parse() {
            Ok(code) => {
                let error = Errno::from_raw_os_error(code);
                let fault = io_fault(what(), error);
                match error {
                    Errno::NOTCONN | Errno::IO | Errno::STALE => fault.with_kind(Kind::Unavailable),
                    _ => fault,
                }
            }
            Err(_) => Fault::internal(format!("{}: helper: {}", what(), output.stderr.trim())),
        }),
    }
}

/// Asks without any precaution: for the fake kernel, whose files are all local.
pub(crate) fn usage_here(path: &Path) -> Result<Usage> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| io_fault(format!("ask how full {} is", path.display()), e))?;
    Ok(from_statvfs(&stat))
}

/// What the helper process does: prints the usage of `path` as JSON, or an errno to stderr.
#[allow(clippy::print_stdout, clippy::print_stderr, reason = "this is how the helper answers")]
pub(crate) fn statfs_main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(64);
    };
    match rustix::fs::statvfs(Path::new(&path)) {
        Ok(stat) => match serde_json::to_string(&from_statvfs(&stat)) {
            Ok(text) if writeln!(std::io::stdout(), "{text}").is_ok() => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}", e.raw_os_error());
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn from_statvfs(stat: &StatVfs) -> Usage {
    let bytes = |blocks: u64| Bytes::new(blocks.saturating_mul(stat.f_frsize));
    Usage {
        total: bytes(stat.f_blocks),
        available: bytes(stat.f_bavail),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
        inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
    }
}
