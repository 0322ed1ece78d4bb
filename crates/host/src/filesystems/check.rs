//! Checking before mounting.

use crate::command::{Command, Output};
use larder_model::{Fault, FsType, Result};
use std::{path::Path, time::Duration};

/// A full check of a large file system takes long; cutting it would only make it start anew.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// See [`super::FileSystems::check`].
pub(super) fn check(device: &Path, fs: FsType) -> Result<()> {
    match fs {
        FsType::Ext4 => e2fsck(device, &["-p"]),
        // Their logs are replayed by mounting; their repair tools are for people.
        FsType::Xfs | FsType::Btrfs => Ok(()),
    }
}

/// Runs e2fsck: it may replay the journal and mend what needs no decision (exit codes 1 and 2).
pub(super) fn e2fsck(device: &Path, flags: &[&str]) -> Result<()> {
    let what = || format!("check ext4 on {}", device.display());
    let output = Command::new("e2fsck").args(flags).arg(device).deadline(DEADLINE).run_any()?;
    match output.code() {
        Some(0) => Ok(()),
        Some(code @ 1..=3) => {
            tracing::warn!(
                device = %device.display(), code, said = told(&output),
                "e2fsck corrected errors"
            );
            Ok(())
        }
        Some(code) if code & 4 != 0 => Err(Fault::precondition(format!(
            "{}: errors are left that need a person: {}",
            what(),
            told(&output)
        ))
        .hint(format!("look at it with e2fsck -n {} and make a copy first", device.display()))),
        code => Err(Fault::precondition(format!(
            "{}: e2fsck ended with {code:?}: {}",
            what(),
            told(&output)
        ))
        .hint("it must hold an ext4 file system that is mounted nowhere")),
    }
}

fn told(output: &Output) -> String {
    let text = format!("{}\n{}", output.text(), output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("; ")
}
