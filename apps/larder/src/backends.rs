//! The backends of this build: the one list. A new backend is one line here.

use crate::config::DriverSettings;
use larder_host::{Host, freeze::Freezer};
use larder_model::{Backend, NodeName, PoolName, Result, backend::Parameter};
use larder_pool::{OwnerNote, PoolConfig};
use std::{collections::BTreeMap, sync::Arc};

/// What every backend is made from.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// The driver's settings.
    pub(crate) driver: &'a DriverSettings,
    /// The node's name.
    pub(crate) node: &'a NodeName,
    /// The operating system.
    pub(crate) host: &'a Host,
    /// Freezes file systems, but never those that hold a pool or our records.
    pub(crate) freezer: &'a Arc<Freezer>,
}

impl Parts<'_> {
    /// What others read in the pools' locks.
    fn note(&self) -> OwnerNote {
        OwnerNote::this(self.driver.name.as_str(), Some(self.driver.endpoint.to_string()))
    }
}

/// A driver's pools in the configuration.
type Pools = BTreeMap<PoolName, PoolConfig>;

/// What a person should know of them.
type Advice = Vec<(PoolName, String)>;

/// A kind of storage.
#[derive(Debug)]
pub(crate) struct BackendKind {
    /// Its name in the configuration.
    pub(crate) name: &'static str,
    /// The parameters that its StorageClasses take.
    pub(crate) parameters: &'static [Parameter],
    /// Its volumes are block devices, which can be encrypted.
    pub(crate) devices: bool,
    /// Its pools are exports of servers, and not directories.
    pub(crate) exports: bool,
    /// How the data in its pools is called, where they are directories.
    pub(crate) names: Option<larder_pool::DataNames>,
    /// Looks at its pools in the configuration: an error that is fatal, and warnings.
    pub(crate) advise: fn(&Pools) -> Result<Advice>,
    /// Makes it, not started.
    pub(crate) make: fn(Parts<'_>) -> Result<Arc<dyn Backend>>,
}

/// The list.
pub(crate) const KINDS: &[BackendKind] = &[
    BackendKind {
        name: "dir",
        parameters: larder_backend_dir::PARAMETERS,
        devices: false,
        exports: false,
        names: Some(larder_backend_dir::NAMES),
        advise: larder_backend_dir::advise,
        make: dir,
    },
    BackendKind {
        name: "loop",
        parameters: larder_backend_loop::PARAMETERS,
        devices: true,
        exports: false,
        names: Some(larder_backend_loop::NAMES),
        advise: |_| Ok(Vec::new()),
        make: r#loop,
    },
    BackendKind {
        name: "nfs",
        parameters: larder_backend_nfs::PARAMETERS,
        devices: false,
        exports: true,
        names: None,
        advise: |_| Ok(Vec::new()),
        make: nfs,
    },
];

/// The kind of that name.
pub(crate) fn find(name: &str) -> Option<&'static BackendKind> {
    KINDS.iter().find(|k| k.name == name)
}

fn dir(parts: Parts<'_>) -> Result<Arc<dyn Backend>> {
    let settings = larder_backend_dir::Settings { pools: parts.driver.pools.clone() };
    larder_backend_dir::DirBackend::new(settings, parts.host, parts.node.clone(), parts.note())
}

fn nfs(parts: Parts<'_>) -> Result<Arc<dyn Backend>> {
    let settings = larder_backend_nfs::Settings { exports: parts.driver.exports.clone() };
    larder_backend_nfs::new(settings, parts.host)
}

fn r#loop(parts: Parts<'_>) -> Result<Arc<dyn Backend>> {
    let settings = larder_backend_loop::Settings {
        pools: parts.driver.pools.clone(),
        ..larder_backend_loop::Settings::default()
    };
    larder_backend_loop::new(
        settings,
        parts.host,
        parts.node.clone(),
        parts.freezer.clone(),
        parts.note(),
    )
}
