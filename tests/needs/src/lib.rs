//! The one list of what Larder needs on a machine besides Rust.
//!
//! Every developer command and every test that lacks something comes here: as root
//! on Debian or Ubuntu what is missing is installed (and said so), otherwise the
//! error names the exact command to run. Nothing is downloaded while nothing is
//! missing, so a machine that was set up once works offline.
//!
//! ```text
//! ensure(purposes) ── nothing missing ───────────────────────────► Ok
//!        └─ missing ─┬─ root and apt-get ─► apt-get update, install ─► look again
//!                    └─ otherwise ────────► error with the command to run
//! ```

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "developer tool: installs packages with apt-get and says so; no runtime to block"
)]

mod go;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

pub use go::GoModule;

/// What somebody wants to do on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Compile the workspace.
    Build,
    /// Run `larder demo`.
    Demo,
    /// Run the unit, integration and system tests.
    Test,
    /// Start virtual machines.
    Vm,
    /// Build and run the CSI conformance suite.
    Sanity,
    /// Run a Kubernetes cluster.
    Cluster,
    /// Build and run the fuzz targets.
    Fuzz,
    /// Build the container image.
    Image,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 8] = [
        Self::Build,
        Self::Demo,
        Self::Test,
        Self::Vm,
        Self::Sanity,
        Self::Cluster,
        Self::Fuzz,
        Self::Image,
    ];
}

/// How to tell that a package is there without asking the package manager.
#[derive(Clone, Copy, Debug)]
enum Probe {
    /// A command on `PATH` or in an sbin folder.
    Command(&'static str),
    /// A file that only this package brings.
    File(&'static str),
}

/// One line of the list.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Debian package.
    pub package: &'static str,
    probe: Probe,
    /// Who needs it.
    purposes: &'static [Purpose],
    /// What for, in a few words.
    pub why: &'static str,
}

impl Need {
    /// Whether it is there.
    #[must_use]
    pub fn is_met(&self) -> bool {
        match self.probe {
            Probe::Command(name) => find_command(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
        }
    }

    /// Whether one of these purposes needs it.
    #[must_use]
    pub fn serves(&self, purposes: &[Purpose]) -> bool {
        self.purposes.iter().any(|own| purposes.contains(own))
    }
}

use Probe::{Command as Cmd, File};
use Purpose::{Build, Cluster, Demo, Fuzz, Image, Sanity, Test, Vm};

const fn need(
    package: &'static str,
    probe: Probe,
    purposes: &'static [Purpose],
    why: &'static str,
) -> Need {
    Need { package, probe, purposes, why }
}

/// The list. One line per package; the probe is what the code really calls.
pub const NEEDS: &[Need] = &[
    need("gcc", Cmd("cc"), &[Build], "linking"),
    need("libc6-dev", File("/usr/include/stdlib.h"), &[Build], "linking"),
    need("g++", Cmd("c++"), &[Fuzz], "building libFuzzer"),
    need("git", Cmd("git"), &[Test], "checks look at the files under version control"),
    need(
        "util-linux",
        Cmd("losetup"),
        &[Demo, Test, Sanity, Vm, Cluster],
        "loop devices, setpriv, namespaces",
    ),
    need("mount", Cmd("mount"), &[Demo, Test, Sanity, Cluster], "mounting pools"),
    need("e2fsprogs", Cmd("mkfs.ext4"), &[Demo, Test, Sanity, Vm], "ext4"),
    need("xfsprogs", Cmd("mkfs.xfs"), &[Demo, Test, Sanity], "xfs, reflink pools"),
    need("btrfs-progs", Cmd("mkfs.btrfs"), &[Demo, Test, Sanity], "btrfs"),
    need("quota", Cmd("repquota"), &[Test], "reading quotas back in tests"),
    need("attr", Cmd("setfattr"), &[Test], "extended attributes in tests"),
    need("acl", Cmd("setfacl"), &[Test], "access lists in tests"),
    need("kmod", Cmd("modprobe"), &[Demo, Test], "loading file system modules"),
    need("procps", Cmd("ps"), &[Test], "process lists in tests"),
    need("qemu-system-x86", Cmd("qemu-system-x86_64"), &[Vm], "virtual machines"),
    need("mmdebstrap", Cmd("mmdebstrap"), &[Vm, Image], "building images of Debian packages"),
    need(
        "debian-archive-keyring",
        File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        &[Vm, Image],
        "verifying the packages of images",
    ),
    need(
        "ca-certificates",
        File("/etc/ssl/certs/ca-certificates.crt"),
        &[Sanity, Cluster],
        "Go modules",
    ),
    need("golang-go", Cmd("go"), &[Sanity, Cluster], "building csi-sanity and Kubernetes"),
    need("iproute2", Cmd("ip"), &[Cluster], "the cluster's network"),
    need("containerd", Cmd("containerd"), &[Cluster], "the nodes' containers"),
    need("runc", Cmd("runc"), &[Cluster], "the nodes' containers"),
    need("containernetworking-plugins", File("/usr/lib/cni/ptp"), &[Cluster], "the pods' network"),
    need(
        "busybox-static",
        // The package busybox has the same command, which is not static.
        File("/var/lib/dpkg/info/busybox-static.list"),
        &[Cluster],
        "images of the test pods",
    ),
];

/// What an ordinary user needs on top to unpack the guest's root image.
const ROOTLESS_VM: Need = need("uidmap", Cmd("newuidmap"), &[Vm], "building images without root");

/// What is missing for these purposes.
#[must_use]
pub fn missing(purposes: &[Purpose]) -> Vec<Need> {
    let rootless = (!is_root()).then_some(ROOTLESS_VM);
    NEEDS
        .iter()
        .copied()
        .chain(rootless)
        .filter(|need| need.serves(purposes) && !need.is_met())
        .collect()
}

/// Makes sure that everything for these purposes is there.
///
/// # Errors
/// Not root or no apt-get: names what is missing and the command that installs it.
/// The installation failed, or did not bring what was missing.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    let lacking = missing(purposes);
    if lacking.is_empty() {
        return Ok(());
    }
    let install = install_command(&lacking);
    let named = describe(&lacking);
    if find_command("apt-get").is_none() {
        bail!(
            "missing {named} (hint: install them with your package manager; there is no apt-get)"
        );
    }
    if !is_root() {
        bail!("missing {named} (hint: run as root: apt-get update && {install})");
    }
    say(&format!("missing {named}; running: {install}"));
    apt_get(&["update", "-qq"])
        // One unreachable third-party repository fails the whole update.
        .unwrap_or_else(|error| say(&format!("{error:#}; trying to install all the same")));
    let packages = packages(&lacking);
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(packages.iter());
    apt_get(&args)?;
    let lacking = missing(purposes);
    if !lacking.is_empty() {
        bail!("{} still missing after {install}", describe(&lacking));
    }
    Ok(())
}

/// The command that installs these packages.
#[must_use]
pub fn install_command(needs: &[Need]) -> String {
    let packages: Vec<_> = packages(needs).into_iter().collect();
    format!("apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Finds a command like a root shell would: `PATH`, then the sbin folders, which an
/// ordinary user's `PATH` lacks on Debian.
#[must_use]
pub fn find_command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The folder for what is expensive to make and can be made again:
/// `$XDG_CACHE_HOME/larder`, else `~/.cache/larder`. Created when absent.
///
/// # Errors
/// Neither variable gives an absolute path, or the folder cannot be made.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("no cache folder (hint: set HOME or XDG_CACHE_HOME)")?;
    let dir = base.join("larder");
    std::fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    Ok(dir)
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn say(message: &str) {
    eprintln!("setup: {message}");
}

fn packages(needs: &[Need]) -> BTreeSet<&'static str> {
    needs.iter().map(|need| need.package).collect()
}

fn describe(needs: &[Need]) -> String {
    let lines: Vec<_> =
        needs.iter().map(|need| format!("{} ({})", need.package, need.why)).collect();
    lines.join(", ")
}

fn apt_get(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Standard output belongs to the command that somebody ran.
        .stdout(std::io::stderr())
        .status()
        .context("failed to start apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed with {status}", args.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_has_at_least_one_need() {
        for purpose in Purpose::ALL {
            assert!(NEEDS.iter().any(|need| need.serves(&[purpose])), "{purpose:?}");
        }
    }

    #[test]
    fn no_package_is_listed_twice() {
        let unique = packages(NEEDS);
        assert_eq!(unique.len(), NEEDS.len());
    }

    #[test]
    fn a_missing_command_is_found_missing_and_a_present_one_is_not() {
        let absent = need("nothing", Cmd("no-such-command-anywhere"), &[Build], "a test");
        let present = need("bash", Cmd("sh"), &[Build], "a test");
        assert!(!absent.is_met());
        assert!(present.is_met());
    }

    #[test]
    fn the_install_command_names_every_package_once() {
        let (one, other) = (
            need("git", Cmd("git"), &[Build], "a test"),
            need("gcc", Cmd("cc"), &[Build], "a test"),
        );
        let command = install_command(&[one, other, one]);
        assert_eq!(command, "apt-get install -y --no-install-recommends gcc git");
    }
}
