//! Builds csi-sanity, once for each state of tests/sanity/go.{mod,sum}.
//!
//! The module needs a newer Go than old Debian releases have. Go 1.21 and later
//! fetch the right toolchain by themselves; for an older one it is fetched the same
//! way, as the module `golang.org/toolchain`, whose files lack their x bits.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::proc;

const PACKAGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";
/// The first Go that fetches toolchains.
const FETCHES: Version = Version(1, 21);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// The binary's path; built when it is not cached (needs the network, a minute).
pub(crate) fn get() -> Result<PathBuf> {
    let module = crate::root().join("tests/sanity");
    let mod_file = fs::read_to_string(module.join("go.mod"))?;
    let mut hash = Sha256::new();
    hash.update(&mod_file);
    hash.update(fs::read(module.join("go.sum"))?);
    let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let root = larder_needs::cache_dir()?.join("sanity");
    fs::create_dir_all(&root)?;
    let binary = root.join(format!("csi-sanity-{key}"));
    let lock = File::options().create(true).append(true).open(root.join("lock"))?;
    lock.lock()?;
    if binary.exists() {
        return Ok(binary);
    }
    eprintln!("sanity: building {PACKAGE} (about a minute, once)");
    let began = Instant::now();
    let temporary = tempfile::tempdir_in(&root)?;
    let built = temporary.path().join("csi-sanity");
    let wanted = mod_file
        .lines()
        .find_map(|line| line.strip_prefix("go "))
        .context("go.mod has no go line")?;
    let mut go = go(wanted, &root)?;
    go.current_dir(&module).args(["build", "-mod=readonly", "-trimpath", "-o"]);
    proc::run(go.arg(&built).arg(PACKAGE))?;
    let version = proc::output(Command::new(&built).arg("--version")).unwrap_or_default();
    fs::rename(&built, &binary)?;
    eprintln!("sanity: built {} in {:.0} s", version.trim(), began.elapsed().as_secs_f64());
    Ok(binary)
}

/// A go command that can build for this Go version, such as `1.25.0`.
fn go(wanted: &str, root: &Path) -> Result<Command> {
    let need = parse(wanted)?;
    let have = proc::output(Command::new("go").args(["env", "GOVERSION"]).current_dir("/"))?;
    let have = parse(have.trim().trim_start_matches("go"))?;
    let mut go = Command::new("go");
    if have >= need {
        go.env("GOTOOLCHAIN", "local");
    } else if have >= FETCHES {
        go.env("GOTOOLCHAIN", format!("go{wanted}"));
    } else {
        let toolchain = fetch_toolchain(wanted, root)?;
        go = Command::new(toolchain.join("bin/go"));
        go.env("GOTOOLCHAIN", "local").env_remove("GOROOT");
    }
    Ok(go)
}

fn fetch_toolchain(wanted: &str, root: &Path) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Go toolchain for {other} (hint: install Go {wanted})"),
    };
    eprintln!("sanity: this machine's Go is too old; fetching Go {wanted}");
    let module = format!("golang.org/toolchain@v0.0.1-go{wanted}.linux-{arch}");
    let cache = root.join("go");
    let mut download = Command::new("go");
    download.args(["mod", "download", "-json", &module]).env("GOMODCACHE", &cache);
    // Outside of any module, whose go line this Go would not understand.
    let json = proc::output(download.env("GOFLAGS", "").current_dir("/"))?;
    let answer: serde_json::Value = serde_json::from_str(&json)?;
    let dir = answer.get("Dir").and_then(serde_json::Value::as_str).context("no folder named")?;
    let dir = PathBuf::from(dir);
    for part in ["bin", "pkg/tool"] {
        make_executable(&dir.join(part))?;
    }
    Ok(dir)
}

fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            make_executable(&entry?.path())?;
        }
    }
    Ok(())
}

/// `1.25.0`, `1.25` or `1.25rc1`.
fn parse(text: &str) -> Result<Version> {
    let mut parts = text.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    let version = parts.next().flatten().zip(parts.next().flatten());
    ensure!(version.is_some(), "{text:?} is no Go version");
    let (major, minor) = version.unwrap_or_default();
    Ok(Version(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_by_number() {
        assert!(parse("1.19.8").unwrap() < FETCHES);
        assert!(parse("1.9").unwrap() < parse("1.25.0").unwrap());
        assert_eq!(parse("1.26rc1").unwrap(), Version(1, 26));
        assert!(parse("devel").is_err());
    }
}
