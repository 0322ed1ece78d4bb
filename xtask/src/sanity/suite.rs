//! Builds csi-sanity, once for each state of tests/sanity/go.{mod,sum}.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use anyhow::Result;
use larder_needs::GoModule;

use crate::proc;

const PACKAGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";

/// The binary's path; built when it is not cached (needs the network, a minute).
pub(crate) fn get() -> Result<PathBuf> {
    let module = GoModule::open(&crate::root().join("tests/sanity"))?;
    let root = larder_needs::cache_dir()?.join("sanity");
    fs::create_dir_all(&root)?;
    let binary = root.join(format!("csi-sanity-{}", module.key()));
    let lock = File::options().create(true).append(true).open(root.join("lock"))?;
    lock.lock()?;
    if binary.exists() {
        return Ok(binary);
    }
    eprintln!("sanity: building {PACKAGE} (about a minute, once)");
    let began = Instant::now();
    let temporary = tempfile::tempdir_in(&root)?;
    let built = temporary.path().join("csi-sanity");
    let mut go = module.go()?;
    go.args(["build", "-mod=readonly", "-trimpath", "-o"]);
    proc::run(go.arg(&built).arg(PACKAGE))?;
    let version = proc::output(Command::new(&built).arg("--version")).unwrap_or_default();
    fs::rename(&built, &binary)?;
    eprintln!("sanity: built {} in {:.0} s", version.trim(), began.elapsed().as_secs_f64());
    Ok(binary)
}
