//! A driver over the backend in memory, and how it is called.

use larder_csi::{Client, Driver, Endpoint, Settings, layers::CallMetrics};
use larder_model::Backend;
use larder_volumes::{
    Claims, ControlEngine,
    testing::{Memory, MemoryBackend},
};
use std::{sync::Arc, time::Duration};

/// A driver for tests. Its folder goes with it.
pub(crate) struct Rig {
    pub(crate) backend: MemoryBackend,
    pub(crate) driver: Driver,
    folder: tempfile::TempDir,
}

impl Rig {
    /// A driver that has not started.
    pub(crate) fn new(memory: Memory) -> Self {
        Self::with(memory, |_| {})
    }

    /// The same, with other settings.
    pub(crate) fn with(memory: Memory, change: impl FnOnce(&mut Settings)) -> Self {
        let backend = memory.build();
        let control =
            ControlEngine::new(Arc::new(backend.clone()) as Arc<dyn Backend>, Claims::new(), None);
        let mut settings = Settings::new("memory.test".parse().unwrap(), "node-1".parse().unwrap());
        change(&mut settings);
        let metrics = CallMetrics::register(&mut prometheus_client::registry::Registry::default());
        let driver = Driver::new(control, settings, metrics);
        Self { backend, driver, folder: tempfile::tempdir().unwrap() }
    }

    /// A driver that is ready.
    pub(crate) async fn ready(memory: Memory) -> Self {
        let rig = Self::new(memory);
        rig.driver.start().await.unwrap();
        rig
    }

    /// Where it can be served.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.folder.path().join("csi/csi.sock").to_str().unwrap().parse().unwrap()
    }

    /// A client over a real unix socket.
    pub(crate) async fn remote(&self) -> Client {
        self.driver.listen(&self.endpoint()).await.unwrap();
        Client::connect(&self.endpoint()).unwrap()
    }
}

/// Longer than anything in these tests takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);
