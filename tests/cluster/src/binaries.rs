//! Builds Kubernetes and what belongs to it from Go modules, once for each state of
//! `kubernetes/go.{mod,sum}`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use larder_needs::{GoModule, Purpose};

/// Programs that are built together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// What a cluster runs, kubectl and helm.
    Kubernetes,
    /// The stock CSI sidecars.
    Sidecars,
}

impl Set {
    /// Name of a program, and its package.
    const fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kubernetes => &[
                ("etcd", "go.etcd.io/etcd/server/v3"),
                ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
                ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
                ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
                ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
                ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
                ("helm", "helm.sh/helm/v3/cmd/helm"),
            ],
            Self::Sidecars => &[
                ("csi-attacher", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher"),
                (
                    "csi-provisioner",
                    "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
                ),
                ("csi-resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"),
            ],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Sidecars => "sidecars",
        }
    }
}

/// A folder of built programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The programs, built first when they are not cached (needs the network and, on
    /// two quiet processors, about ten minutes for Kubernetes).
    ///
    /// # Errors
    /// A tool is missing and cannot be installed, or the build failed.
    pub fn get(set: Set) -> Result<Self> {
        let module = GoModule::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes"))?;
        let root = crate::cache_dir()?;
        let binaries = Self { dir: root.join(format!("{}-{}", set.name(), module.key())) };
        if !binaries.dir.is_dir() {
            binaries.build(&root, &module, set)?;
        }
        // Says to `prune` that it is in use; a read-only cache is fine too.
        let _ = File::open(&binaries.dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        Ok(binaries)
    }

    /// The folder that they are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn build(&self, root: &Path, module: &GoModule, set: Set) -> Result<()> {
        larder_needs::ensure(&[Purpose::Cluster])?;
        let lock = crate::lock(&root.join("build.lock"), "builds Kubernetes")?;
        if self.dir.is_dir() {
            return Ok(());
        }
        crate::say(&format!("building {} in {} (minutes, once)", set.name(), self.dir.display()));
        let began = Instant::now();
        let temporary = tempfile::Builder::new().prefix(".build-").tempdir_in(root)?;
        let version = module.version_of("k8s.io/kubernetes").context("no k8s.io/kubernetes")?;
        let minor = version.split('.').nth(1).context("a version without a minor part")?;
        let variables = [("gitVersion", version), ("gitMajor", "1"), ("gitMinor", minor)]
            .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
        let mut go = module.go()?;
        go.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"]);
        go.arg("-ldflags").arg(format!("-s -w {}", variables.join(" ")));
        // Ends with a slash: a folder, in which each program has its package's name.
        go.arg("-o").arg(format!("{}/", temporary.path().display()));
        go.args(set.programs().iter().map(|(_, package)| package)).env("CGO_ENABLED", "0");
        // What is printed here is about the build, not what somebody asked for.
        let status = go.stdout(std::io::stderr()).status().context("failed to start go")?;
        ensure!(status.success(), "go build failed with {status}");
        let server = temporary.path().join("server");
        if server.exists() {
            fs::rename(server, temporary.path().join("etcd"))?;
        }
        for (name, _) in set.programs() {
            let path = temporary.path().join(name);
            File::open(&path)
                .and_then(|file| file.sync_all())
                .with_context(|| format!("go build made no {}", path.display()))?;
        }
        fs::rename(temporary.path(), &self.dir)?;
        // Renamed away; nothing is left to remove.
        let _ = temporary.keep();
        prune(root, set, &self.dir);
        crate::say(&format!("built {} in {:.0} s", set.name(), began.elapsed().as_secs_f64()));
        drop(lock);
        Ok(())
    }
}

/// Builds of other states that nobody used for this long go when another one is built.
const KEEP_UNUSED: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

fn prune(root: &Path, set: Set, keep: &Path) {
    let prefix = format!("{}-", set.name());
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        let old = used.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEEP_UNUSED));
        if ours && old && entry.path() != keep {
            // Another process may do the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
