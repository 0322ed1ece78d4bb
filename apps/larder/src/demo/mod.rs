//! `larder demo`: what Larder does, on real volumes, in seconds, leaving nothing behind.
//!
//! The demo is a user: it runs this very program with the commands that a person would type, and
//! prints them. It works in a mount namespace of its own ([`enter_namespace`]), so that even a killed
//! demo leaves no mount; what else it makes lies in one temporary folder, which the next demo removes.
//!
//! As root it makes a pool on a loop-mounted xfs and uses `loop` volumes; as an ordinary user it
//! becomes root of a user namespace and uses `dir` volumes on the temporary folder, and says what
//! that leaves out.

mod bench;
mod data;
mod leftovers;
mod process;
mod script;

use crate::cli;
use anyhow::{Context, Result};
use rustix::thread::UnshareFlags;
use tokio::signal::unix::{SignalKind, signal};

/// Gives the demo mounts of its own. Called before any thread is started: a threaded process cannot
/// change its user namespace.
///
/// # Errors
/// Where the kernel forbids it.
pub(crate) fn enter_namespace() -> Result<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let user = if uid.is_root() { UnshareFlags::empty() } else { UnshareFlags::NEWUSER };
    unshare(user | UnshareFlags::NEWNS).with_context(|| {
        if uid.is_root() {
            "failed to enter a mount namespace (hint: the container needs CAP_SYS_ADMIN)".to_owned()
        } else {
            "failed to enter a user namespace (hint: run the demo as root, or allow it with \
             sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0)"
                .to_owned()
        }
    })?;
    if !uid.is_root() {
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {} 1", uid.as_raw())),
            ("gid_map", format!("0 {} 1", gid.as_raw())),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text)
                .with_context(|| format!("failed to write /proc/self/{file}"))?;
        }
    }
    // Nothing that is mounted here shall be seen outside; what is unmounted outside shall not be kept
    // in use from here.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::REC
            | rustix::mount::MountPropagationFlags::DOWNSTREAM,
    )
    .context("failed to make the demo's mounts its own")
}

#[allow(
    unsafe_code,
    reason = "rustix marks unshare unsafe because of CLONE_FILES, which is not used"
)]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the process has one thread, and its descriptor table stays shared.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Whether the demo has the real root's powers.
fn is_real_root() -> bool {
    // In the initial user namespace the map covers all ids.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::getuid().is_root() && map.split_whitespace().nth(2) == Some("4294967295")
}

fn interrupted() -> anyhow::Error {
    anyhow::anyhow!("failed to finish the demo: interrupted")
}

/// Runs the demo.
pub(crate) async fn run(flags: cli::Demo) -> Result<()> {
    let (mut interrupt, mut terminate, mut hang_up) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    );
    let mut bench = bench::Bench::set_up(is_real_root(), flags.keep).await?;
    let result = tokio::select! {
        result = script::play(&mut bench) => result,
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
        _ = hang_up.recv() => Err(interrupted()),
    };
    let cleaned = bench.tear_down().await;
    let report = bench.report();
    report.print(flags.output.output)?;
    result?;
    cleaned?;
    anyhow::ensure!(report.failed() == 0, "failed: {} checks of the demo", report.failed());
    Ok(())
}
