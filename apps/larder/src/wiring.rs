//! Puts a driver together: backend, engines, services.

use crate::{
    backends::{self, Parts},
    config::{DriverSettings, Settings},
    logging,
};
use larder_csi::{Client, Driver, layers::CallMetrics};
use larder_host::{HelperProgram, Host, freeze::Freezer};
use larder_model::{Fault, Result};
use larder_volumes::{
    Claims, ControlEngine,
    node::{NodeConfig, NodeEngine},
};
use prometheus_client::registry::Registry;
use std::{os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration};

/// What the drivers of a process share.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    host: Host,
    freezer: Arc<Freezer>,
    metrics: CallMetrics,
}

impl Common {
    /// Prepares the state folder and thaws whatever a killed process left frozen: before anything
    /// else, because somebody may be waiting for that.
    ///
    /// # Errors
    /// Where the state folder cannot be made.
    pub(crate) async fn new(settings: &Settings, registry: &mut Registry) -> Result<Self> {
        let (freezer, thawed) = recover(settings).await?;
        for mount in thawed {
            tracing::warn!(mount = %mount.display(), "thawed a file system that a killed process had frozen");
        }
        let host = Host::real().with_cgroup(settings.cgroup.clone());
        Ok(Self { host, freezer, metrics: CallMetrics::register(registry) })
    }

    /// One driver, not started.
    ///
    /// # Errors
    /// `Invalid`, naming the key, where its settings cannot be used.
    pub(crate) fn driver(&self, settings: &Settings, driver: &DriverSettings) -> Result<Driver> {
        let kind = backends::find(&driver.backend)
            .ok_or_else(|| Fault::invalid(format!("use backend {:?}", driver.backend)))?;
        let parts =
            Parts { driver, node: &settings.node, host: &self.host, freezer: &self.freezer };
        let backend = (kind.make)(parts)?;
        let claims = Claims::new();
        let config = NodeConfig {
            state_dir: settings.state_dir.clone(),
            freezer: Some(self.freezer.clone()),
            ..NodeConfig::new(driver.name.clone(), settings.node.clone())
        };
        let node = NodeEngine::new(backend.clone(), self.host.clone(), config, claims.clone());
        let control = ControlEngine::new(backend, claims, Some(Arc::new(node.clone())));
        node.set_inline_volumes(Arc::new(control.clone()));
        let about = larder_csi::Settings {
            manifest: [("backend".to_owned(), driver.backend.clone())].into(),
            set_log_level: Some(Arc::new(logging::set_level)),
            ..larder_csi::Settings::new(driver.name.clone(), settings.node.clone())
        };
        Ok(Driver::new(control, Some(node), about, self.metrics.clone()))
    }
}

/// A freezer that protects pools and records, after it thawed what is recorded; and what that was.
async fn recover(settings: &Settings) -> Result<(Arc<Freezer>, Vec<PathBuf>)> {
    let freezes = settings.state_dir.join("freezes");
    let mut protected: Vec<PathBuf> =
        settings.drivers.iter().flat_map(|d| d.pools.values()).map(|p| p.path.clone()).collect();
    protected.push(settings.state_dir.clone());
    let freezer = Arc::new(Freezer::new(freezes.clone(), HelperProgram::default(), protected));
    let recovering = freezer.clone();
    let thawed = larder_host::blocking(move || {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&freezes);
        made.map_err(|e| {
            Fault::io(format!("make the state folder {}", freezes.display()), e)
                .hint("run as root, or choose another stateDir")
        })?;
        recovering.recover()
    })
    .await?;
    Ok((freezer, thawed))
}

/// Thaws whatever a killed process left frozen; returns the mount points.
///
/// # Errors
/// As [`Freezer::recover`].
pub(crate) async fn thaw(settings: &Settings) -> Result<Vec<PathBuf>> {
    Ok(recover(settings).await?.1)
}

/// A driver that this process serves to itself.
#[derive(Debug)]
pub(crate) struct Served(Driver);

impl Served {
    /// Calls in process.
    pub(crate) fn client(&self) -> Client {
        self.0.client()
    }
    /// Lets go of the pools once running work is done, or after `patience`.
    pub(crate) async fn stop(self, patience: Duration) {
        let _ = self.0.shutdown(patience).await;
    }
}

/// Starts a driver for one command, within `patience`.
///
/// # Errors
/// What starting can fail with; `Unavailable` where the pool stays with somebody else.
pub(crate) async fn serve_to_ourselves(
    settings: &Settings,
    driver: &DriverSettings,
    patience: Duration,
) -> Result<Served> {
    let common = Common::new(settings, &mut Registry::default()).await?;
    let driver = common.driver(settings, driver)?;
    tokio::time::timeout(patience, driver.start()).await.map_err(|_| {
        Fault::unavailable(format!(
            "start driver {} in {patience:?}: its pool is held by another process",
            driver.name()
        ))
        .hint("larder pool ls, or fuser on the pool's .larder/lock, shows which")
    })??;
    Ok(Served(driver))
}
