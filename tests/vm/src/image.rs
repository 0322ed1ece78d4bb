//! Builds and caches what a machine boots from.
//!
//! The cache key covers everything that goes in (release, packages, the scripts
//! under `guest/`), so that a change makes a new image and an old checkout finds its
//! own. A folder appears under its key by one rename, complete: whoever sees it may
//! use it without a lock. Building is serialised by a lock file, so that machines
//! started together build once.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use larder_needs::Purpose;
use sha2::{Digest as _, Sha256};

const BUILD: &str = include_str!("../guest/build.sh");
const INIT: &str = include_str!("../guest/init.sh");

/// A Debian release that can be the guest.
struct Release {
    suite: &'static str,
    glibc: (u32, u32),
    kernel: &'static str,
}

/// Oldest first. The generic kernel, because the cloud kernels have no 9p.
const RELEASES: &[Release] = &[
    Release { suite: "bookworm", glibc: (2, 36), kernel: "linux-image-amd64" },
    Release { suite: "trixie", glibc: (2, 41), kernel: "linux-image-amd64" },
];

/// What the guest has on top of a minimal Debian.
const PACKAGES: &[&str] = &[
    // boot and image build
    "busybox-static",
    "cpio",
    "erofs-utils",
    "kmod",
    "udev",
    "xz-utils",
    "zstd",
    // base tools
    "iproute2",
    "procps",
    "util-linux",
    "mount",
    "strace",
    "fio",
    // file systems
    "acl",
    "attr",
    "btrfs-progs",
    "e2fsprogs",
    "fuse3",
    "quota",
    "xfsprogs",
    // block devices
    "cryptsetup-bin",
    "dmsetup",
    "lvm2",
    "thin-provisioning-tools",
    // network storage
    "nfs-common",
    "nfs-kernel-server",
    "nvme-cli",
    "open-iscsi",
];

/// Images that nobody used for this long are removed when another one is built.
const KEEP_UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// A cached image.
#[derive(Clone, Debug)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The image for this host, or of the release in `LARDER_VM_RELEASE`, built first when it is not cached (about a minute,
    /// needs the network).
    ///
    /// # Errors
    /// A tool is missing and cannot be installed, the host is not x86-64, or the
    /// build failed (the message has the end of its log).
    pub fn get() -> Result<Self> {
        let release = match std::env::var("LARDER_VM_RELEASE") {
            Ok(name) => named(&name)?,
            Err(_) => release_for(host_glibc()?)?,
        };
        let root = cache_dir()?;
        let image = Self { dir: root.join(key(release)) };
        if !image.dir.is_dir() {
            image.build(&root, release)?;
        }
        // Says to `prune` that it is in use; a read-only cache is fine too.
        let _ = File::open(&image.dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        Ok(image)
    }

    /// The uncompressed kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The initial RAM disk.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.cpio")
    }

    /// The read-only root file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.erofs")
    }

    /// Names this image: equal keys, equal contents.
    #[must_use]
    pub fn key(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    fn build(&self, root: &Path, release: &Release) -> Result<()> {
        ensure!(cfg!(target_arch = "x86_64"), "virtual machines need an x86-64 host");
        larder_needs::ensure(&[Purpose::Vm])?;
        let lock = lock(root)?;
        if self.dir.is_dir() {
            return Ok(());
        }
        eprintln!("vm: building the image in {} (about a minute, once)", self.dir.display());
        let began = Instant::now();
        let temporary = tempfile::Builder::new().prefix(".build-").tempdir_in(root)?;
        debootstrap(release, temporary.path(), &root.join("build.log"))?;
        for file in ["vmlinux", "initrd.cpio", "root.erofs"] {
            let path = temporary.path().join(file);
            let file = File::open(&path).with_context(|| format!("no {}", path.display()))?;
            ensure!(file.metadata()?.len() > 0, "{} is empty", path.display());
            file.sync_all()?;
        }
        fs::rename(temporary.path(), &self.dir)?;
        // Renamed away; nothing is left to remove.
        let _ = temporary.keep();
        prune(root, &self.dir);
        eprintln!("vm: image built in {:.0} s", began.elapsed().as_secs_f64());
        drop(lock);
        Ok(())
    }
}

/// The folder of all images and of the harness's other cached facts.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let dir = larder_needs::cache_dir()?.join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    Ok(dir)
}

/// Takes the lock on the cache; it is released when the file is dropped.
pub(crate) fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::options().create(true).append(true).open(&path)?;
    if file.try_lock().is_err() {
        eprintln!("vm: waiting for another process that prepares the image");
        file.lock().with_context(|| format!("failed to lock {}", path.display()))?;
    }
    Ok(file)
}

fn key(release: &Release) -> String {
    let mut hash = Sha256::new();
    for part in [release.suite, release.kernel, BUILD, INIT].iter().chain(PACKAGES) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", release.suite)
}

fn host_glibc() -> Result<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let output = output.context("failed to run getconf (hint: install libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_glibc(&text).with_context(|| format!("no glibc version in {text:?}"))
}

fn parse_glibc(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

fn named(suite: &str) -> Result<&'static Release> {
    let known = || RELEASES.iter().map(|release| release.suite).collect::<Vec<_>>().join(", ");
    let found = RELEASES.iter().find(|release| release.suite == suite);
    found.with_context(|| format!("LARDER_VM_RELEASE={suite} is not one of {}", known()))
}

/// The oldest release on which binaries built on the host run.
fn release_for(glibc: (u32, u32)) -> Result<&'static Release> {
    RELEASES.iter().find(|release| release.glibc >= glibc).with_context(|| {
        format!("no Debian release with glibc {}.{} or newer is known here", glibc.0, glibc.1)
    })
}

/// Makes the Debian tree and, with the tree's own tools, the three files in `out`.
fn debootstrap(release: &Release, out: &Path, log: &Path) -> Result<()> {
    let log_file = File::create(log)?;
    let hook = format!(
        "cat > \"$1/init.sh\" <<'LARDER_END'\n{INIT}LARDER_END\n\
         cat > \"$1/build.sh\" <<'LARDER_END'\n{BUILD}LARDER_END\n\
         KERNEL={} chroot \"$1\" sh /build.sh",
        release.kernel
    );
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--format=null"])
        .arg("--aptopt=APT::Install-Recommends \"false\"");
    for folder in ["man", "doc", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    command
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--customize-hook={hook}"));
    for file in ["vmlinux", "initrd.cpio", "root.erofs"] {
        let target = out.join(file);
        let target = target.to_str().context("the cache path is not UTF-8")?;
        ensure!(!target.contains(['\'', '"', ' ', '\\']), "the cache path {target} needs quoting");
        command.arg(format!("--customize-hook=download /.vm/{file} {target}"));
    }
    command.args([release.suite, "/dev/null"]);
    if Path::new("/var/tmp").is_dir() {
        // /tmp may be in memory and forbid device nodes.
        command.env("TMPDIR", "/var/tmp");
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        .status()
        .context("failed to start mmdebstrap")?;
    if !status.success() {
        let why = build_errors(log);
        bail!("mmdebstrap failed with {status} (all of it: {}):\n{why}", log.display());
    }
    Ok(())
}

/// The lines of a failed build that tell why: mmdebstrap repeats the whole hook,
/// which would hide them.
fn build_errors(log: &Path) -> String {
    let text = tail(log, 400);
    let begin = text.find("E: setup failed").or_else(|| text.find("E: command failed"));
    let before: Vec<_> = text[..begin.unwrap_or(text.len())].lines().collect();
    before[before.len().saturating_sub(15)..].join("\n")
}

fn prune(root: &Path, current: &Path) {
    let old = |path: &Path| {
        let age = fs::metadata(path).and_then(|meta| meta.modified()).map(|time| time.elapsed());
        matches!(age, Ok(Ok(age)) if age > KEEP_UNUSED)
    };
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != current && path.join("root.erofs").exists() && old(&path) {
            // Best effort: a left-over costs space, nothing else.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The last lines of a text file, for error messages.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_the_oldest_release_whose_c_library_is_not_older() {
        assert_eq!(release_for((2, 31)).unwrap().suite, "bookworm");
        assert_eq!(release_for((2, 36)).unwrap().suite, "bookworm");
        assert_eq!(release_for((2, 39)).unwrap().suite, "trixie");
        assert!(release_for((3, 0)).is_err());
    }

    #[test]
    fn the_c_library_version_is_read_from_getconf() {
        assert_eq!(parse_glibc("glibc 2.36\n"), Some((2, 36)));
        assert_eq!(parse_glibc("musl"), None);
    }

    #[test]
    fn a_release_can_be_asked_for_by_name() {
        assert_eq!(named("trixie").unwrap().suite, "trixie");
        assert!(named("etch").is_err());
    }

    #[test]
    fn each_release_has_a_key_of_its_own() {
        assert_ne!(key(&RELEASES[0]), key(&RELEASES[1]));
        assert!(key(&RELEASES[0]).starts_with("bookworm-"));
    }
}
