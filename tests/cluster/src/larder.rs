//! Builds Larder's image without a container engine: what `docker build .` makes.
//!
//! ```text
//! packages ─ mmdebstrap ─ deploy/image/collect.sh ─► tools.tar   (a layer, once, cached)
//! the program                                     ─► a layer     ─► OCI archive
//! ```
//! The program runs on the machine's C library, so the tools are of the oldest Debian
//! that has it. Equal packages and programs give equal bytes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use larder_needs::Purpose;
use sha2::{Digest as _, Sha256};

use crate::{
    oci::{Image, Layer},
    process,
};

/// What tests call the image.
pub const IMAGE: &str = "larder.test/larder";

const COLLECT: &str = include_str!("../../../deploy/image/collect.sh");
const PACKAGES: &str = include_str!("../../../deploy/image/packages");
#[cfg(test)]
const DOCKERFILE: &str = include_str!("../../../Dockerfile");

/// Debian releases by their C library, oldest first.
const RELEASES: [(&str, (u32, u32)); 2] = [("bookworm", (2, 36)), ("trixie", (2, 41))];
/// A name without a folder of its own.
const TOOLS: &str = "image-tools";

/// What an image is made of, and how large that is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The layer with the tools.
    pub tools: u64,
    /// The layer with the program.
    pub program: u64,
}

/// Writes the image of a program under a full name, such as `example.org/larder:1.0`.
///
/// # Errors
/// A tool is missing and cannot be installed, the packages cannot be had, or writing failed.
pub fn write(program: &Path, reference: &str, to: &Path) -> Result<Size> {
    let tools = fs::read(tools()?)?;
    let mut layer = Layer::new();
    layer.dir("usr", 0o755)?.dir("usr/bin", 0o755)?;
    layer.copy("usr/bin/larder", 0o755, program)?;
    let size = Size { tools: tools.len() as u64, program: fs::metadata(program)?.len() };
    let image = Image::new()
        .archive(tools)
        .layer(layer)?
        .env("PATH", "/usr/sbin:/usr/bin")
        .label("org.opencontainers.image.title", "Larder")
        .label("org.opencontainers.image.licenses", "Apache-2.0")
        .label("org.opencontainers.image.source", "https://github.com/larder-dev/larder")
        .entrypoint(["/usr/bin/larder"])
        .command(["serve"]);
    let folder = to.parent().context("the archive has no folder")?;
    fs::create_dir_all(folder)?;
    let file = tempfile::NamedTempFile::new_in(folder)?;
    image.write(reference, file.as_file())?;
    file.persist(to).with_context(|| format!("failed to write {}", to.display()))?;
    Ok(size)
}

/// The image of a debug build for tests, without what only debuggers read.
///
/// # Errors
/// As [`write`], or the program cannot be stripped.
pub fn write_stripped(program: &Path, reference: &str, to: &Path) -> Result<Size> {
    let folder = tempfile::tempdir()?;
    let stripped = folder.path().join("larder");
    let mut strip = Command::new("strip");
    process::output(strip.arg("-o").arg(&stripped).arg(program))?;
    write(&stripped, reference, to)
}

/// The layer of everything but Larder itself.
fn tools() -> Result<PathBuf> {
    let glibc = process::output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let version = version(&glibc).with_context(|| format!("no glibc version in {glibc:?}"))?;
    let release = RELEASES.iter().find(|(_, glibc)| *glibc >= version);
    let (release, _) = release.context("no Debian release with this C library is known here")?;
    let mut hash = Sha256::new();
    [*release, COLLECT, PACKAGES].iter().for_each(|part| hash.update(part));
    let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let folder = crate::cache_dir()?.join("images");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{TOOLS}-{release}-{key}.tar"));
    if path.exists() {
        return Ok(path);
    }
    larder_needs::ensure(&[Purpose::Image])?;
    let _lock = crate::lock(&folder.join("tools.lock"), "collects what is in the image")?;
    if path.exists() {
        return Ok(path);
    }
    let began = Instant::now();
    let made = tempfile::NamedTempFile::new_in(&folder)?;
    collect(release, made.path())?;
    ensure!(made.as_file().metadata()?.len() > 0, "mmdebstrap made no archive");
    File::open(made.path())?.sync_all()?;
    made.persist(&path)?;
    crate::say(&format!("image: tools of {release} after {:.0} s", began.elapsed().as_secs_f64()));
    Ok(path)
}

/// Unpacks the packages, and takes what is wanted from them.
fn collect(release: &str, to: &Path) -> Result<()> {
    let to = to.to_str().context("the cache path is not UTF-8")?;
    ensure!(!to.contains(['\'', '"', ' ', '\\']), "the cache path {to} needs quoting");
    // The script runs coreutils and sed of this machine, but links are looked up in the tree.
    let packages: Vec<_> = PACKAGES.split_whitespace().chain(["coreutils"]).collect();
    let script = format!(
        "cat >\"$1/collect.sh\" <<'LARDER_END'\n{COLLECT}LARDER_END\n\
         sh \"$1/collect.sh\" \"$1\" \"$1/.out\" && \
         tar -C \"$1/.out\" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 \
         --format=gnu -cf \"$1/tools.tar\" ."
    );
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=extract", "--format=null"])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--extract-hook={script}"))
        .arg(format!("--extract-hook=download /tools.tar {to}"))
        .args([release, "/dev/null"]);
    if Path::new("/var/tmp").is_dir() {
        // /tmp may be in memory and forbid device nodes.
        command.env("TMPDIR", "/var/tmp");
    }
    process::output(&mut command).context("failed to collect what is in the image").map(drop)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_makes_the_same_of_the_same_packages() {
        for part in [
            "deploy/image/packages deploy/image/collect.sh",
            "sh /collect.sh / /out",
            "COPY --from=build /larder /usr/bin/larder",
            "ENV PATH=/usr/sbin:/usr/bin",
            "ENTRYPOINT [\"/usr/bin/larder\"]",
            "CMD [\"serve\"]",
        ] {
            assert!(DOCKERFILE.contains(part), "{part}");
        }
    }

    #[test]
    fn the_version_of_the_c_library_is_understood() {
        assert_eq!(version("glibc 2.36\n"), Some((2, 36)));
        assert_eq!(version("musl"), None);
    }
}
