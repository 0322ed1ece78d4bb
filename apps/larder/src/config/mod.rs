//! The configuration: one YAML file, checked whole before anything is touched.
//!
//! ```yaml
//! node: worker-1                    # default: $NODE_NAME, then the host name
//! drivers:
//!   - name: loop.csi.larder.dev
//!     backend: loop
//!     endpoint: unix:///run/larder/loop/csi.sock      # default: kubelet's plugins folder
//!     pools:
//!       default: { path: /var/lib/larder/loop, fs: xfs }
//! ```
//!
//! Reading has three stages: the *file* ([`file::File`], serde, unknown keys refused with their
//! path), the *settings* ([`Settings`], every default filled in), and the *check* ([`check`], which
//! finds everything that is wrong, not just the first).

mod check;
mod file;

#[cfg(feature = "fuzzing")]
pub(crate) use check::check_by_itself;
pub(crate) use check::{check, refusal};
pub(crate) use file::Kubernetes;

use crate::{backends, logging::LogFormat};
use clap::{Args, ValueHint};
use larder_backend_nfs::ExportConfig;
use larder_csi::Endpoint;
use larder_model::{DriverName, Fault, NodeName, PoolName, Result};
use larder_pool::PoolConfig;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where the configuration is looked for.
pub(crate) const DEFAULT_PATH: &str = "/etc/larder/config.yaml";
/// Where node records are kept.
pub(crate) const DEFAULT_STATE: &str = "/run/larder/state";
const DEFAULT_KUBELET: &str = "/var/lib/kubelet";

/// Everything that is configured, with the defaults filled in.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    /// The node's name.
    pub(crate) node: NodeName,
    /// Node records; lost at a reboot without harm.
    pub(crate) state_dir: PathBuf,
    /// kubelet's root.
    pub(crate) kubelet_dir: PathBuf,
    /// Where volumes are limited; None: in the cgroup of kubelet's pods.
    pub(crate) cgroup: Option<PathBuf>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub(crate) http: Option<SocketAddr>,
    /// Logs.
    pub(crate) log: Log,
    /// How long a stopping process waits for running calls, in seconds.
    pub(crate) shutdown_grace_seconds: u64,
    /// The drivers.
    pub(crate) drivers: Vec<DriverSettings>,
    /// The controllers for our drivers; None: they run elsewhere.
    pub(crate) kubernetes: Option<Kubernetes>,
}

/// Logs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Log {
    /// Text or JSON.
    pub(crate) format: LogFormat,
    /// `info`, or a filter as in `info,larder_csi=debug`.
    pub(crate) level: String,
}

/// One driver.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DriverSettings {
    /// Its CSI name.
    pub(crate) name: DriverName,
    /// The kind of storage.
    pub(crate) backend: String,
    /// Its socket.
    #[serde(serialize_with = "as_text")]
    pub(crate) endpoint: Endpoint,
    /// kubelet learns of the driver through a socket in its plugins_registry folder.
    pub(crate) register: bool,
    /// Its pools that are directories.
    pub(crate) pools: BTreeMap<PoolName, PoolConfig>,
    /// Its pools that are exports of servers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) exports: BTreeMap<PoolName, ExportConfig>,
}

impl DriverSettings {
    /// The names of all its pools.
    pub(crate) fn pool_names(&self) -> impl Iterator<Item = &PoolName> {
        self.pools.keys().chain(self.exports.keys())
    }
}

fn as_text<S: serde::Serializer>(value: &Endpoint, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

/// What `larder serve` is told on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeFlags {
    /// Configuration file [env: LARDER_CONFIG=] [default: /etc/larder/config.yaml].
    #[arg(long, value_hint = ValueHint::FilePath, conflicts_with_all = ["backend", "pool", "name"])]
    pub(crate) config: Option<PathBuf>,
    /// Serve one driver of this kind without a configuration file.
    #[arg(long, requires = "pool")]
    pub(crate) backend: Option<String>,
    /// Its pool: a directory, for nfs an export as SERVER:/SHARE. An empty one is initialised.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "backend")]
    pub(crate) pool: Option<PathBuf>,
    /// Its socket. Also overrides the one of a configuration with a single driver.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "unix:///PATH")]
    pub(crate) endpoint: Option<Endpoint>,
    /// Its CSI name [default: BACKEND.csi.larder.dev].
    #[arg(long, requires = "backend")]
    pub(crate) name: Option<DriverName>,
    /// The node's name.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: Option<NodeName>,
    /// Serve /metrics, /healthz and /readyz there.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Folder of the node records.
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Limit volumes in this cgroup [default: the one of kubelet's pods].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cgroup: Option<PathBuf>,
    /// Log level, or a filter as in info,larder_csi=debug.
    #[arg(long, env = "LARDER_LOG")]
    pub(crate) log_level: Option<String>,
    /// Log format.
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
    /// How long a stopping process waits for running calls.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) shutdown_grace: Option<u64>,
}

/// Reads a configuration file.
///
/// # Errors
/// `NotFound` without a file, `Invalid` with the path of the key for what cannot be read.
pub(crate) fn load(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Fault::io(format!("read configuration {}", path.display()), e)
            .hint("write one (see docs/configuration.md), or name it with --config")
    })?;
    read(&text).map_err(|fault| fault.during(format!("read {}", path.display())))
}

/// Understands a configuration's text.
///
/// # Errors
/// `Invalid` with the path of the key.
pub(crate) fn read(text: &str) -> Result<Settings> {
    settings(file::parse(text)?)
}

/// The settings of `larder serve`: from the file, or from flags alone.
///
/// # Errors
/// As [`load`].
pub(crate) fn of_serve(flags: &ServeFlags) -> Result<Settings> {
    let mut settings = match (&flags.config, &flags.backend, &flags.pool) {
        (None, Some(backend), Some(pool)) => single(backend, pool, flags)?,
        // Not through clap: an exported variable is no conflict with --backend.
        (config, ..) => {
            let exported = std::env::var_os("LARDER_CONFIG").map(PathBuf::from);
            let config = config.clone().or(exported);
            load(config.as_deref().unwrap_or_else(|| Path::new(DEFAULT_PATH)))?
        }
    };
    match (&flags.endpoint, settings.drivers.as_mut_slice()) {
        (Some(endpoint), [driver]) => driver.endpoint = endpoint.clone(),
        (Some(endpoint), drivers) => {
            return Err(Fault::invalid(format!(
                "serve at {endpoint}: the configuration has {} drivers, and each needs an endpoint \
                 of its own",
                drivers.len()
            ))
            .hint(
                "leave --endpoint and $CSI_ENDPOINT out, and set drivers[].endpoint in the file",
            ));
        }
        (None, _) => {}
    }
    if let Some(node) = &flags.node {
        settings.node = node.clone();
    }
    if let Some(dir) = &flags.state_dir {
        settings.state_dir.clone_from(dir);
    }
    if let Some(cgroup) = &flags.cgroup {
        settings.cgroup = Some(cgroup.clone());
    }
    settings.http = flags.http.or(settings.http);
    if let Some(level) = &flags.log_level {
        settings.log.level.clone_from(level);
    }
    if let Some(format) = flags.log_format {
        settings.log.format = format;
    }
    if let Some(grace) = flags.shutdown_grace {
        settings.shutdown_grace_seconds = grace;
    }
    Ok(settings)
}

/// One driver over one directory, as `serve --backend B --pool DIR` asks for.
fn single(backend: &str, pool: &Path, flags: &ServeFlags) -> Result<Settings> {
    let name = match &flags.name {
        Some(name) => name.clone(),
        None => format!("{backend}.csi.larder.dev").parse()?,
    };
    let mut driver = file::Driver {
        name,
        backend: backend.to_owned(),
        endpoint: None,
        register: false,
        pools: BTreeMap::new(),
        exports: BTreeMap::new(),
    };
    if backends::find(backend).is_some_and(|kind| kind.exports) {
        let export: ExportConfig = pool.to_string_lossy().parse()?;
        driver.exports.insert("default".parse()?, ExportConfig { create: true, ..export });
    } else {
        let pool = std::path::absolute(pool).map_err(|e| {
            Fault::io(format!("find the current folder for pool {}", pool.display()), e)
        })?;
        let pool = PoolConfig { create: true, ..PoolConfig::new(pool) };
        driver.pools.insert("default".parse()?, pool);
    }
    settings(file::File { drivers: vec![driver], ..file::File::default() })
}

/// Fills in the defaults.
pub(crate) fn settings(file: file::File) -> Result<Settings> {
    let node = match file.node {
        Some(node) => node,
        None => match std::env::var("NODE_NAME") {
            Ok(name) if !name.is_empty() => name.parse()?,
            _ => rustix::system::uname().nodename().to_string_lossy().parse()?,
        },
    };
    let kubelet_dir = file.kubelet_dir.unwrap_or_else(|| DEFAULT_KUBELET.into());
    let drivers = file.drivers.into_iter().map(|driver| {
        let endpoint = match driver.endpoint {
            Some(endpoint) => endpoint,
            None => format!("unix://{}/plugins/{}/csi.sock", kubelet_dir.display(), driver.name)
                .parse()?,
        };
        let file::Driver { name, backend, register, pools, exports, .. } = driver;
        Ok(DriverSettings { name, backend, endpoint, register, pools, exports })
    });
    Ok(Settings {
        node,
        drivers: drivers.collect::<Result<_>>()?,
        state_dir: file.state_dir.unwrap_or_else(|| DEFAULT_STATE.into()),
        kubelet_dir,
        cgroup: file.cgroup,
        http: file.http,
        log: Log {
            format: file.log.format,
            level: file.log.level.unwrap_or_else(|| "info".to_owned()),
        },
        shutdown_grace_seconds: file.shutdown_grace_seconds.unwrap_or(25),
        kubernetes: file.kubernetes,
    })
}
