//! A real Kubernetes for tests: etcd, API server, controller manager and scheduler,
//! and nodes with their own kubelet, containerd, mount table and network.
//!
//! ```text
//! binaries  kubernetes/go.mod ─ go build ─► etcd, kube-…, kubelet, kubectl, helm  (once, cached)
//! machine   namespaces + a root of its own + process 1 ─► Machine (control, node1, node2)
//! larder    Debian packages + the program ─► its image, without a container engine
//! network   bridge in the control machine ─ veth ─► nodes, host; a subnet of pods per node
//! cluster   up ─► Cluster ─ kubectl, nodes, services ─ down ─► nothing is left
//! ```
//!
//! Invariants:
//! - All that runs, is mounted or is configured for a cluster lives in namespaces that
//!   end with the first process of a machine, and which process that is, is written
//!   down before it does anything: [`down`] leaves nothing, also after a crash.
//! - A machine sees none of the host's mounts, and the host none of a machine's: it
//!   keeps no file system of another test busy.
//! - Nothing listens on the host; clusters do not fight over ports.
//! - Paths in a machine are those of a real node: `/var/lib/kubelet`,
//!   `/run/containerd/containerd.sock`, `/etc/cni/net.d`.
//! - Once binaries are cached nothing is fetched; pods use images that were imported.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "test harness: starts programs, waits for them and says what takes long; no runtime to block"
)]

mod binaries;
mod cgroups;
mod cluster;
mod config;
mod down;
mod images;
mod kubectl;
pub mod larder;
mod machine;
mod namespace;
mod network;
pub mod oci;
mod pki;
mod process;
mod state;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub use binaries::{Binaries, Set};
pub use cluster::{Cluster, Options, unable};
pub use down::down;
pub use images::BUSYBOX;
pub use machine::Machine;
pub use namespace::Namespace;
pub use state::names;

/// The variable by which `cargo xtask cluster test` tells tests which cluster is theirs.
pub const NAME_VARIABLE: &str = "LARDER_CLUSTER";

/// The folder of all builds and clusters.
fn cache_dir() -> Result<PathBuf> {
    let dir = larder_needs::cache_dir()?.join("cluster");
    fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    Ok(dir)
}

/// Takes a lock; it is released when the file is dropped.
fn lock(path: &Path, what: &str) -> Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    if file.try_lock().is_err() {
        say(&format!("waiting for another process that {what}"));
        file.lock().with_context(|| format!("failed to lock {}", path.display()))?;
    }
    Ok(file)
}

fn say(message: &str) {
    eprintln!("cluster: {message}");
}
