//! A driver over the backend in memory, on a kernel in memory, and how it is called.

use crate::valid;
use larder_csi::{Client, Driver, Endpoint, Settings, layers::CallMetrics};
use larder_host::{LoopRequest, fake::FakeKernel};
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
    pub(crate) kernel: FakeKernel,
    folder: tempfile::TempDir,
}

impl Rig {
    /// A driver that has not started.
    pub(crate) fn new(memory: Memory) -> Self {
        Self::with(memory, FakeKernel::new(), |_| {})
    }

    /// The same, on a kernel and with other settings.
    pub(crate) fn with(
        memory: Memory,
        kernel: FakeKernel,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::on(memory.build(), kernel, change)
    }

    /// The same, on storage that exists.
    pub(crate) fn on(
        backend: MemoryBackend,
        kernel: FakeKernel,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What kubelet makes before it calls.
        for made in ["staging", "pod"] {
            std::fs::create_dir(folder.path().join(made)).unwrap();
        }
        let shared = Arc::new(backend.clone()) as Arc<dyn Backend>;
        let (name, node): (DriverName, NodeName) =
            ("memory.test".parse().unwrap(), valid::NODE.parse().unwrap());
        let claims = Claims::new();
        let config = NodeConfig {
            state_dir: folder.path().join("state"),
            boot_id: "boot-1".to_owned(),
            ..NodeConfig::new(name.clone(), node.clone())
        };
        let engine = NodeEngine::new(shared.clone(), kernel.host(), config, claims.clone());
        let in_use = Arc::new(engine.clone());
        let control = ControlEngine::new(shared, claims, Some(in_use));
        engine.set_inline_volumes(Arc::new(control.clone()));
        let mut settings = Settings::new(name, node);
        change(&mut settings);
        let driver = Driver::new(control, Some(engine), settings, metrics());
        Self { backend, driver, kernel, folder }
    }

    /// A driver that serves no node, and is ready.
    pub(crate) async fn without_node() -> Self {
        let rig = Self::new(Memory::default());
        let control = ControlEngine::new(Arc::new(rig.backend.clone()), Claims::new(), None);
        let settings = Settings::new(rig.driver.name().clone(), valid::NODE.parse().unwrap());
        let rig = Self { driver: Driver::new(control, None, settings, metrics()), ..rig };
        rig.driver.start().await.unwrap();
        rig
    }

    /// A driver that is ready.
    pub(crate) async fn ready(memory: Memory) -> Self {
        Self::new(memory).started().await
    }

    /// Starts it.
    pub(crate) async fn started(self) -> Self {
        self.driver.start().await.unwrap();
        self
    }

    /// A driver that is ready, with the volume and the snapshots of [`crate::valid`].
    pub(crate) async fn filled(memory: Memory) -> Self {
        let rig = Self::ready(memory).await;
        rig.fill().await;
        rig
    }

    /// Makes the volume and the snapshots of [`crate::valid`].
    pub(crate) async fn fill(&self) {
        let mut controller = self.driver.client().controller();
        let create = csi::CreateVolumeRequest {
            name: "vol".to_owned(),
            // For both ways of using it: it is kept to what it was made for.
            volume_capabilities: vec![valid::mounted(), valid::block()],
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
    }

    /// Makes the group of [`crate::valid`], of one volume; returns its member.
    pub(crate) async fn group(&self) -> String {
        let request = csi::CreateVolumeGroupSnapshotRequest {
            name: "group".to_owned(),
            source_volume_ids: vec![valid::VOLUME.to_owned()],
            ..Default::default()
        };
        let mut client = self.driver.client().group_controller();
        let group = client.create_volume_group_snapshot(request).await.unwrap();
        group.into_inner().group_snapshot.unwrap().snapshots.remove(0).snapshot_id
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in its folder, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder().join(name).to_str().unwrap().to_owned()
    }

    /// Where it can be served.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.path("csi/csi.sock").parse().unwrap()
    }

    /// A client over a real unix socket.
    pub(crate) async fn remote(&self) -> Client {
        self.driver.listen(&self.endpoint()).await.unwrap();
        Client::connect(&self.endpoint()).unwrap()
    }
}

fn metrics() -> CallMetrics {
    CallMetrics::register(&mut prometheus_client::registry::Registry::default())
}

/// Longer than anything in these tests takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Volumes whose data is a directory, so that they can be mounted.
pub(crate) fn directories() -> Memory {
    let data = tempfile::tempdir().unwrap();
    let source = move |request: &ConnectRequest| {
        let path = data.path().join(request.id.native().as_str());
        std::fs::create_dir_all(&path).unwrap();
        Ok(Source::Directory { path })
    };
    Memory { source: Some(Arc::new(source)), ..Memory::default() }
}

/// Volumes whose data is a loop device over an image of 1 GiB.
pub(crate) fn devices(kernel: &FakeKernel) -> Memory {
    let data = tempfile::tempdir().unwrap();
    let loops = kernel.host().loops;
    let source = move |request: &ConnectRequest| {
        let image = data.path().join(request.id.native().as_str());
        let file = std::fs::File::options().create(true).append(true).open(&image).unwrap();
        file.set_len(1 << 30).unwrap();
        if let Some(attached) = loops.find(&image)?.pop() {
            return Ok(Source::Device { path: attached.path, hold: None });
        }
        let device = loops.attach(&LoopRequest {
            image,
            read_only: false,
            autoclear: !request.capability.is_block(),
            direct_io: false,
            sector_size: 512,
        })?;
        Ok(Source::Device { path: device.path, hold: Some(device.hold) })
    };
    Memory { source: Some(Arc::new(source)), ..Memory::default() }
}
