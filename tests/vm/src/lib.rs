//! Throw-away Debian machines under QEMU, for what a host kernel lacks or must not
//! be asked to do: quotas, power cuts, modules, a foreign mount table.
//!
//! ```text
//! image    Debian packages ─ mmdebstrap ─► vmlinux + initrd + root.erofs   (once, cached)
//! machine  image + shared folders + disks + command ─ QEMU ─► Running
//! running  Running ─ wait ─► Output{Exited}     ─ power_cut ─► Output{PowerCut}
//! replay   a recorded Disk after a cut ─► every disk that the cut could have left
//! ```
//!
//! Invariants:
//! - The root image is read-only and shared by all machines; a machine's writes to
//!   its root live in its memory. Nothing of a machine survives but its [`Disk`]s
//!   and what it wrote to a shared folder.
//! - Only Debian packages go into the image, of the oldest Debian release whose
//!   C library is at least as new as the host's: binaries built on the host run in
//!   the guest.
//! - Once the image is cached nothing is fetched.
//! - A machine dies with the process that started it, also when that is killed.
//! - Output is passed through unchanged, standard output and standard error apart.
//!
//! ```no_run
//! let output = larder_vm::Machine::new().run(["mkfs.xfs", "-V"])?;
//! assert!(output.success());
//! # anyhow::Ok(())
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "test harness: starts QEMU and mmdebstrap and says what takes long; no runtime to block"
)]

mod accel;
mod disk;
mod image;
mod machine;
mod replay;
mod running;

pub use accel::Accel;
pub use disk::{Cache, Disk};
pub use image::Image;
pub use machine::{Machine, Streams};
pub use replay::{CrashState, WriteLog};
pub use running::{End, Output, Running};
