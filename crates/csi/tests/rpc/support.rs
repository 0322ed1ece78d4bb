//! A driver over the backend in memory, and how it is called.

use crate::valid;
use larder_csi::{Client, Driver, Endpoint, Settings, layers::CallMetrics};
use larder_host::fake::FakeKernel;
use larder_model::{
    Backend, DriverName, NodeName,
    backend::{ConnectRequest, Source},
};
use larder_proto::csi;
use larder_volumes::{
    Claims, ControlEngine,
    node::{NodeConfig, NodeEngine},
    testing::{Memory, MemoryBackend},
};
use std::{path::Path, sync::Arc, time::Duration};

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
        let folder = tempfile::tempdir().unwrap();
        let backend = memory.build();
        let shared = Arc::new(backend.clone()) as Arc<dyn Backend>;
        let (name, node): (DriverName, NodeName) =
            ("memory.test".parse().unwrap(), "node-1".parse().unwrap());
        let claims = Claims::new();
        let config = NodeConfig {
            state_dir: folder.path().join("state"),
            boot_id: "boot-1".to_owned(),
            ..NodeConfig::new(name.clone(), node.clone())
        };
        let host = FakeKernel::new().host();
        let engine = NodeEngine::new(shared.clone(), host, config, claims.clone());
        let in_use = Arc::new(engine.clone());
        let control = ControlEngine::new(shared, claims, Some(in_use));
        engine.set_inline_volumes(Arc::new(control.clone()));
        let mut settings = Settings::new(name, node);
        change(&mut settings);
        let metrics = CallMetrics::register(&mut prometheus_client::registry::Registry::default());
        let driver = Driver::new(control, Some(engine), settings, metrics);
        Self { backend, driver, folder }
    }

    /// A driver that serves no node.
    pub(crate) async fn without_node() -> Self {
        let rig = Self::new(Memory::default());
        let control = ControlEngine::new(Arc::new(rig.backend.clone()), Claims::new(), None);
        let settings = Settings::new(rig.driver.name().clone(), "node-1".parse().unwrap());
        let metrics = CallMetrics::register(&mut prometheus_client::registry::Registry::default());
        let rig = Self { driver: Driver::new(control, None, settings, metrics), ..rig };
        rig.driver.start().await.unwrap();
        rig
    }

    /// A driver that is ready.
    pub(crate) async fn ready(memory: Memory) -> Self {
        let rig = Self::new(memory);
        rig.driver.start().await.unwrap();
        rig
    }

    /// A driver that is ready, with the volume and the snapshots of [`crate::valid`].
    pub(crate) async fn filled(memory: Memory) -> Self {
        let rig = Self::ready(memory).await;
        for folder in ["staging", "pod"] {
            std::fs::create_dir(rig.folder().join(folder)).unwrap();
        }
        let mut controller = rig.driver.client().controller();
        let create = csi::CreateVolumeRequest {
            name: "vol".to_owned(),
            volume_capabilities: vec![valid::mounted()],
            ..Default::default()
        };
        controller.create_volume(create).await.unwrap();
        for name in ["snap", "snap-2"] {
            let create = csi::CreateSnapshotRequest {
                name: name.to_owned(),
                source_volume_id: valid::VOLUME.to_owned(),
                ..Default::default()
            };
            controller.create_snapshot(create).await.unwrap();
        }
        rig
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
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

/// Volumes whose data is a directory, so that they can be mounted.
pub(crate) fn mountable() -> Memory {
    let data = tempfile::tempdir().unwrap();
    let source = move |request: &ConnectRequest| {
        let path = data.path().join(request.id.native().as_str());
        std::fs::create_dir_all(&path).unwrap();
        Ok(Source::Directory { path })
    };
    Memory { source: Some(Arc::new(source)), ..Memory::default() }
}
