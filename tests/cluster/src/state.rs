//! What is written down about a cluster, so that another process, or one after a crash,
//! can use it and end it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{machine::Machine, network::Network, process::Process};

/// A cluster's file `cluster.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    pub(crate) network: Network,
    /// The control machine first.
    pub(crate) machines: Vec<Machine>,
    /// Folder of the programs that it runs.
    pub(crate) binaries: PathBuf,
    /// containerd's way of storing layers.
    pub(crate) snapshotter: String,
    /// The process whose end makes it useless.
    #[serde(default)]
    pub(crate) owner: Option<Process>,
    /// Whether `up` came to its end.
    pub(crate) complete: bool,
}

/// The folders of a cluster; they need not exist.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// All that goes with the cluster.
    pub(crate) home: PathBuf,
    /// Logs, which outlive it until the next one of its name.
    pub(crate) logs: PathBuf,
    lock: PathBuf,
}

impl Folders {
    /// Those of the cluster of this name.
    pub(crate) fn of(name: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 30 && name.chars().all(legal),
            "{name:?} is no cluster name (hint: up to 30 of a-z, 0-9 and -)"
        );
        let root = crate::cache_dir()?;
        for dir in ["run", "logs", "locks"] {
            fs::create_dir_all(root.join(dir))?;
        }
        Ok(Self {
            home: root.join("run").join(name),
            logs: root.join("logs").join(name),
            lock: root.join("locks").join(name),
        })
    }

    /// Whoever makes or ends the cluster holds this.
    pub(crate) fn lock(&self) -> Result<File> {
        crate::lock(&self.lock, "makes or ends this cluster")
    }

    fn state(&self) -> PathBuf {
        self.home.join("cluster.json")
    }

    /// What is written down, if there is such a cluster.
    pub(crate) fn load(&self) -> Result<Option<State>> {
        let path = self.state();
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path)?;
        let state = serde_json::from_str(&text)
            .with_context(|| format!("{} was written by another version", path.display()))?;
        Ok(Some(state))
    }

    /// Writes it down, whole or not at all.
    pub(crate) fn save(&self, state: &State) -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(&self.home)?;
        serde_json::to_writer_pretty(&file, state)?;
        file.persist(self.state())?;
        Ok(())
    }

    /// Held while a network is chosen, until its routes exist.
    pub(crate) fn network_lock() -> Result<File> {
        crate::lock(&crate::cache_dir()?.join("network.lock"), "sets up a network")
    }
}

/// The clusters that exist, whole or in part.
///
/// # Errors
/// The cache folder cannot be read.
pub fn names() -> Result<Vec<String>> {
    let dir = crate::cache_dir()?.join("run");
    let entries = if dir.exists() { Some(fs::read_dir(&dir)?) } else { None };
    let mut names: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// A machine's folder.
pub(crate) fn machine_dir(home: &Path, name: &str) -> PathBuf {
    home.join("machines").join(name)
}
