//! What this program does when it runs itself as a helper process.
//!
//! `larder internal statfs PATH` asks a file system for its usage, `larder internal alive PATH` whether
//! it answers at all; `larder internal mount` mounts a network file system, `larder internal detach ID PATH`
//! lets go of one, `larder internal remote` works in one; `larder internal thaw …` is the watchdog of a freeze. All are for this crate alone.

use std::{ffi::OsString, process::ExitCode};

/// Runs the helper that the arguments after `internal` name.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    match args.next() {
        Some(name) if name == "thaw" => crate::freeze::watchdog_main(args),
        Some(name) if name == "statfs" => crate::filesystems::usage::statfs_main(args),
        Some(name) if name == "alive" => crate::alive::main(args),
        Some(name) if name == "mount" => crate::mounts::network::main(),
        Some(name) if name == "detach" => crate::mounts::detach::main(args),
        Some(name) if name == "remote" => crate::remote::main(),
        _ => ExitCode::from(64),
    }
}
