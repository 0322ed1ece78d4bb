//! Programs built from Go modules: pinned by a go.mod and go.sum in the repository,
//! cached under a key of the two.
//!
//! A module may need a newer Go than old Debian releases have. Go 1.21 and later
//! fetch the right toolchain by themselves; for an older one it is fetched the same
//! way, as the module `golang.org/toolchain`, whose files lack their x bits.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// The first Go that fetches toolchains.
const FETCHES: Version = Version(1, 21);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// A folder with a go.mod and a go.sum.
#[derive(Clone, Debug)]
pub struct GoModule {
    dir: PathBuf,
    text: String,
    key: String,
}

impl GoModule {
    /// Reads the two files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
        };
        let text = read("go.mod")?;
        let mut hash = Sha256::new();
        hash.update(&text);
        hash.update(read("go.sum")?);
        let key = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { dir: dir.to_owned(), text, key })
    }

    /// Names this state of the module: equal keys, equal builds.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The version of a module that go.mod requires.
    #[must_use]
    pub fn version_of(&self, module: &str) -> Option<&str> {
        let words = self.text.lines().map(|line| {
            line.trim().strip_prefix("require ").unwrap_or(line.trim()).split_whitespace()
        });
        words.filter_map(|mut words| (words.next()? == module).then(|| words.next())?).next()
    }

    /// A go command in the module's folder, of a version that can build it.
    ///
    /// # Errors
    /// There is no Go, or the right toolchain cannot be fetched.
    pub fn go(&self) -> Result<Command> {
        let wanted = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix("go "))
            .context("go.mod has no go line")?;
        let mut go = go(wanted.trim())?;
        go.current_dir(&self.dir).stdin(Stdio::null());
        Ok(go)
    }
}

/// A go command that can build for this Go version, such as `1.25.0`.
fn go(wanted: &str) -> Result<Command> {
    let need = parse(wanted)?;
    let have = output(Command::new("go").args(["env", "GOVERSION"]).current_dir("/"))?;
    let have = parse(have.trim().trim_start_matches("go"))?;
    let mut go = Command::new("go");
    if have >= need {
        go.env("GOTOOLCHAIN", "local");
    } else if have >= FETCHES {
        go.env("GOTOOLCHAIN", format!("go{wanted}"));
    } else {
        let toolchain = fetch_toolchain(wanted)?;
        go = Command::new(toolchain.join("bin/go"));
        go.env("GOTOOLCHAIN", "local").env_remove("GOROOT");
    }
    Ok(go)
}

fn fetch_toolchain(wanted: &str) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Go toolchain for {other} (hint: install Go {wanted})"),
    };
    crate::say(&format!("this machine's Go is too old; fetching Go {wanted}"));
    let module = format!("golang.org/toolchain@v0.0.1-go{wanted}.linux-{arch}");
    let cache = crate::cache_dir()?.join("go");
    let mut download = Command::new("go");
    download.args(["mod", "download", "-json", &module]).env("GOMODCACHE", &cache);
    // Outside of any module, whose go line this Go would not understand.
    let json = output(download.env("GOFLAGS", "").current_dir("/"))?;
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

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().context("failed to start go")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go failed with {}: {}", output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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

    #[test]
    fn the_version_of_a_required_module_is_found() {
        let text = "module x\n\nrequire a.b/one v1.2.3\nrequire (\n\ta.b/c v4.5.6 // indirect\n)\n";
        let module = GoModule { dir: PathBuf::new(), text: text.into(), key: String::new() };
        assert_eq!(module.version_of("a.b/one"), Some("v1.2.3"));
        assert_eq!(module.version_of("a.b/c"), Some("v4.5.6"));
        assert_eq!(module.version_of("a.b/d"), None);
    }
}
