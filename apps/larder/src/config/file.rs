//! The file as it is written.

use crate::logging::LogFormat;
use larder_backend_nfs::ExportConfig;
use larder_csi::Endpoint;
use larder_model::{DriverName, Fault, NodeName, PoolName, Result};
use larder_pool::PoolConfig;
use serde::{Deserialize, Deserializer};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) node: Option<NodeName>,
    #[serde(default)]
    pub(crate) state_dir: Option<PathBuf>,
    #[serde(default)]
    pub(crate) kubelet_dir: Option<PathBuf>,
    #[serde(default)]
    pub(crate) cgroup: Option<PathBuf>,
    #[serde(default)]
    pub(crate) http: Option<SocketAddr>,
    #[serde(default)]
    pub(crate) log: Log,
    #[serde(default)]
    pub(crate) shutdown_grace_seconds: Option<u64>,
    #[serde(default)]
    pub(crate) drivers: Vec<Driver>,
    #[serde(default)]
    pub(crate) kubernetes: Option<Kubernetes>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: None,
            capacity: false,
            extra_create_metadata: false,
            resizer: true,
            drivers: None,
        }
    }
}

impl Kubernetes {
    /// Whether the controllers work for this driver.
    pub(crate) fn is_for(&self, driver: &DriverName) -> bool {
        self.drivers.as_ref().is_none_or(|drivers| drivers.contains(driver))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Kubernetes {
    /// A kubeconfig; None: `$KUBECONFIG`, or the pod's ServiceAccount.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespace of leases and capacity objects; None: the pod's.
    pub(crate) namespace: Option<String>,
    /// The scheduler is told how much room there is.
    pub(crate) capacity: bool,
    /// Drivers are told the names of claim and volume.
    pub(crate) extra_create_metadata: bool,
    /// Volumes grow, and VolumeAttributesClasses are put in force.
    pub(crate) resizer: bool,
    /// Only for these drivers; None: all. The others have their controllers in another process.
    pub(crate) drivers: Option<Vec<DriverName>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    #[serde(default)]
    pub(crate) format: LogFormat,
    #[serde(default)]
    pub(crate) level: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Driver {
    pub(crate) name: DriverName,
    pub(crate) backend: String,
    #[serde(default, deserialize_with = "endpoint")]
    pub(crate) endpoint: Option<Endpoint>,
    #[serde(default)]
    pub(crate) register: bool,
    #[serde(default)]
    pub(crate) pools: BTreeMap<PoolName, PoolConfig>,
    /// Pools that are exports of servers.
    #[serde(default)]
    pub(crate) exports: BTreeMap<PoolName, ExportConfig>,
}

fn endpoint<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Endpoint>, D::Error> {
    let text = Option::<String>::deserialize(d)?;
    text.map(|t| t.parse().map_err(serde::de::Error::custom)).transpose()
}

/// Reads the file's text.
///
/// # Errors
/// `Invalid` that names the key's path and, where known, the line.
pub(crate) fn parse(text: &str) -> Result<File> {
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    let yaml = serde_yaml_ng::Deserializer::from_str(text);
    serde_path_to_error::deserialize(yaml).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { "the top level".to_owned() } else { path };
        Fault::invalid(format!("accept {path}: {}", error.into_inner()))
            .hint("docs/configuration.md lists every key")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_form_is_read() {
        let file = parse(
            "node: worker-1\n\
             drivers:\n\
             - name: loop.csi.larder.dev\n\
             \x20 backend: loop\n\
             \x20 endpoint: unix:///run/larder/loop/csi.sock\n\
             \x20 pools:\n\
             \x20   default: { path: /var/lib/larder/loop, fs: xfs }\n",
        )
        .unwrap();
        let settings = crate::config::settings(file).unwrap();
        assert_eq!(settings.node.as_str(), "worker-1");
        assert_eq!(settings.drivers[0].endpoint.to_string(), "unix:///run/larder/loop/csi.sock");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_path() {
        let wrong = [
            ("nod: x", "nod", "unknown field"),
            ("drivers: [{name: a, backend: dir, pool: {}}]", "drivers[0]", "pool"),
            (
                "drivers: [{name: a, backend: dir, pools: {p: {pth: /x}}}]",
                "drivers[0].pools.p",
                "pth",
            ),
            ("drivers: [{name: -a, backend: dir}]", "drivers[0].name", "-a"),
            ("drivers: [{name: a, backend: dir, endpoint: tcp://x}]", "drivers[0].endpoint", "tcp"),
            ("http: nonsense", "http", "address"),
        ];
        for (text, path, key) in wrong {
            let fault = parse(text).unwrap_err().to_string();
            assert!(fault.contains(path) && fault.contains(key), "{text}: {fault}");
        }
    }
}
