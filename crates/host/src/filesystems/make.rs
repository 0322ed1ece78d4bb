//! Making file systems.

use super::{Found, probe::probe};
use crate::{command::Command, sys::io_fault};
use larder_model::{Bytes, Fault, FsType, Kind, Result};
use rustix::fs::{CWD, Mode, OFlags};
use std::{path::Path, time::Duration};

const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// The least device that mkfs of today accepts for each kind, and that is of any use.
pub fn least_size(fs: FsType) -> Bytes {
    match fs {
        FsType::Ext4 => Bytes::mib(4),
        // mkfs.xfs: "Filesystem must be larger than 300MB."
        FsType::Xfs => Bytes::mib(300),
        // mkfs.btrfs: 109 MiB with the default profiles; less is a file system that is full at once.
        FsType::Btrfs => Bytes::mib(128),
    }
}

/// See [`super::FileSystems::make`] and [`super::FileSystems::make_again`].
pub(super) fn make(device: &Path, fs: FsType, options: &[String], again: bool) -> Result<()> {
    let what = || format!("make {fs} on {}", device.display());
    check_options(fs, options)?;
    let size = device_size(device).map_err(|e| e.during(what()))?;
    if size < least_size(fs) {
        return Err(Fault::out_of_range(format!("{}: {size} is too small", what()))
            .hint(format!("{fs} needs at least {}", least_size(fs))));
    }
    if !again {
        // mkfs.ext4 asks nobody when it has no terminal: it would overwrite what is there.
        match probe(device)? {
            Found::Blank => {}
            Found::FileSystem(found) => return Err(occupied(what(), &found.to_string())),
            Found::Other(found) => return Err(occupied(what(), &found)),
        }
    }
    let command = Command::new(format!("mkfs.{fs}")).arg("-q");
    let command = match fs {
        // No discard: a new image is holes already, and discarding a large device takes minutes.
        // Inode tables are zeroed by the kernel after the first mount; the journal is zeroed now,
        // because a stale one could be replayed after an early crash. No reserve for root, which
        // would only hide space from the workload.
        FsType::Ext4 => {
            command.args(["-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0"])
        }
        FsType::Xfs | FsType::Btrfs => command.arg("-K"),
    };
    let command = match fs {
        FsType::Xfs | FsType::Btrfs if again => command.arg("-f"),
        _ => command,
    };
    let command = command.args(options).arg("--").arg(device).deadline(DEADLINE);
    let line = command.line();
    let output = command.run_any().map_err(|e| e.during(what()))?;
    if !output.status.success() {
        let said = output.stderr.trim().lines().collect::<Vec<_>>().join("; ");
        return Err(refused(format!("{}: {line}: {said}", what()), &said, options));
    }
    match probe(device)? {
        Found::FileSystem(found) if found == fs => Ok(()),
        found => Err(Fault::internal(format!("{}: afterwards {found:?} is there", what()))
            .hint("check the mkfs options")),
    }
}

fn occupied(what: String, found: &str) -> Fault {
    Fault::precondition(format!("{what}: it is not blank, {found} was found"))
        .hint("if the data may go, empty the device yourself (wipefs); it is never done for you")
}

fn refused(what: String, said: &str, options: &[String]) -> Fault {
    let said = said.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|w| said.contains(w));
    if any(&["in use", "mounted", "busy", "already contains", "appears to contain"]) {
        return Fault::precondition(what).hint("the device is in use or holds something");
    }
    if any(&["too small", "must be larger", "not enough space"]) {
        return Fault::out_of_range(what);
    }
    if !options.is_empty()
        && any(&["usage", "invalid", "unknown", "unrecognized", "illegal", "bad option", "must be"])
    {
        return Fault::invalid(what).hint(format!("check the mkfs options {}", options.join(" ")));
    }
    if any(&["no space left"]) {
        return Fault::exhausted(what);
    }
    Fault::internal(what)
}

fn device_size(device: &Path) -> Result<Bytes> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let what = || format!("see how large {} is", device.display());
    let fd =
        rustix::fs::openat(CWD, device, flags, Mode::empty()).map_err(|e| io_fault(what(), e))?;
    crate::sys::block_device_size(&fd).map(Bytes::new).map_err(|e| {
        io_fault(what(), e).with_kind(Kind::Precondition).hint("it must be a block device")
    })
}

/// Options come from a StorageClass: they may tune the file system, but not turn mkfs onto another
/// device or file, or make it force.
fn check_options(fs: FsType, options: &[String]) -> Result<()> {
    for option in options {
        let wrong =
            |why: &str| Fault::invalid(format!("use option {option:?} for mkfs.{fs}: {why}"));
        let short = option.strip_prefix('-').filter(|o| !o.starts_with('-'));
        if option.contains(['/', '\0', '\n']) {
            return Err(wrong("it names a path"));
        }
        if short.is_some_and(|flags| flags.chars().count() != 1) {
            return Err(wrong("give each flag and its value as an option of its own"));
        }
        let forcing = match fs {
            FsType::Ext4 => ["-F", "-S", "-n", "-V", "-d", "-z"].as_slice(),
            FsType::Xfs => &["-f", "-N", "-V", "-p"],
            FsType::Btrfs => &["-f", "-V", "-r"],
        };
        let long = ["--force", "--version", "--help", "--rootdir", "--"];
        if forcing.contains(&option.as_str())
            || long
                .iter()
                .any(|l| option == l || (l.len() > 2 && option.starts_with(&format!("{l}="))))
        {
            return Err(wrong("it is not allowed here"));
        }
        // GNU getopt takes any unambiguous beginning of a long option.
        let beginning = option.split('=').next().unwrap_or(option);
        if beginning.len() > 2 && "--force".starts_with(beginning) {
            return Err(wrong("it is not allowed here"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_force_or_lead_elsewhere_are_refused() {
        let refused = |fs, option: &str| {
            let fault = check_options(fs, &[option.to_owned()]).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{option}");
        };
        for option in ["-F", "-S", "-n", "-qF", "/dev/sda", "journal=/dev/sdb"] {
            refused(FsType::Ext4, option);
        }
        for option in ["-f", "-Kf", "--", "-N"] {
            refused(FsType::Xfs, option);
        }
        for option in ["-f", "--force", "--fo", "--rootdir=x"] {
            refused(FsType::Btrfs, option);
        }
        let fine = ["-O", "quota,project", "-E", "quotatype=prjquota", "-b", "4096"];
        check_options(FsType::Ext4, &fine.map(str::to_owned)).unwrap();
    }
}
