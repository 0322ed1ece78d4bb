//! The control engine over the backend in memory.

mod attach;
mod blocks;
mod capabilities;
mod codes;
mod concurrency;
mod crash;
mod create;
mod groups;
mod health;
mod listing;
mod model;
mod rows;
mod snapshots;
mod volumes;

use super::*;
use crate::testing::{Abilities, Inject, Memory, MemoryBackend, settle, spawn};
use larder_model::{
    AccessMode, AccessType, Bytes, CapacityRange, FsType, Kind, MountAccess, Secrets,
    VolumeCapability,
    topology::Segments,
    volume::{Attributes, NODE_TOPOLOGY_KEY, Volume},
};

/// A started engine over `settings`.
async fn engine_of(settings: Memory) -> (ControlEngine, MemoryBackend) {
    over(settings.build()).await
}

async fn engine() -> (ControlEngine, MemoryBackend) {
    engine_of(Memory::default()).await
}

async fn over(backend: MemoryBackend) -> (ControlEngine, MemoryBackend) {
    let engine = ControlEngine::new(Arc::new(backend.clone()), Claims::new(), None);
    engine.start().await.unwrap();
    (engine, backend)
}

fn mount(mode: AccessMode) -> VolumeCapability {
    VolumeCapability { access: AccessType::Mount(MountAccess::default()), mode }
}

fn mount_as(fs_type: &str) -> VolumeCapability {
    let access = AccessType::Mount(MountAccess { fs_type: fs_type.into(), ..Default::default() });
    VolumeCapability { access, mode: AccessMode::SingleNodeWriter }
}

fn block() -> VolumeCapability {
    VolumeCapability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter }
}

fn range(required: i64, limit: i64) -> CapacityRange {
    CapacityRange::from_csi(required, limit).unwrap()
}

fn map(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn at(node: &str) -> Segments {
    Segments::one(NODE_TOPOLOGY_KEY, node)
}

fn volume_id(text: &str) -> VolumeId {
    VolumeId(text.parse().unwrap())
}

fn snapshot_id(text: &str) -> SnapshotId {
    SnapshotId(text.parse().unwrap())
}

/// A request for a mounted volume of 1 MiB.
fn create(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        capacity: range(1 << 20, 0),
        capabilities: vec![mount(AccessMode::SingleNodeWriter)],
        ..CreateVolume::default()
    }
}

fn snapshot(name: &str, source: &str) -> CreateSnapshot {
    CreateSnapshot { name: name.into(), source_volume_id: source.into(), ..Default::default() }
}

fn group(name: &str, sources: &[&str]) -> CreateGroup {
    let source_volume_ids = sources.iter().map(|s| (*s).to_owned()).collect();
    CreateGroup { name: name.into(), source_volume_ids, ..Default::default() }
}

fn expand(volume_id: &str, required: i64) -> ExpandVolume {
    let capacity = range(required, 0);
    ExpandVolume { volume_id: volume_id.into(), capacity, ..Default::default() }
}

fn modify(volume_id: &str, tier: &str) -> ModifyVolume {
    let mutable_parameters = map(&[("tier", tier)]);
    ModifyVolume { volume_id: volume_id.into(), mutable_parameters, ..Default::default() }
}

fn attach_to(volume_id: &str, node: &str) -> AttachVolume {
    AttachVolume {
        volume_id: volume_id.into(),
        node_id: node.into(),
        capability: mount(AccessMode::SingleNodeWriter),
        readonly: false,
        context: Attributes::new(),
        secrets: Secrets::default(),
    }
}

fn detach_from(volume_id: &str, node: &str) -> DetachVolume {
    DetachVolume { volume_id: volume_id.into(), node_id: node.into(), ..Default::default() }
}

async fn delete(engine: &ControlEngine, id: &str) -> Result<()> {
    engine.delete_volume(id, Secrets::default()).await
}

async fn delete_snapshot(engine: &ControlEngine, id: &str) -> Result<()> {
    engine.delete_snapshot(id, Secrets::default()).await
}

async fn make(engine: &ControlEngine, name: &str) -> Volume {
    engine.create_volume(create(name)).await.unwrap()
}

/// The kind of a refusal.
fn kind<T: fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn nothing_is_served_before_the_backend_has_started() {
    let backend = Memory::default().build();
    let engine = ControlEngine::new(Arc::new(backend.clone()), Claims::new(), None);
    assert!(!engine.probe().await.unwrap());
    assert_eq!(kind(engine.create_volume(create("a")).await), Kind::Unavailable);
    assert_eq!(kind(delete(&engine, "default/a").await), Kind::Unavailable);
    assert_eq!(kind(engine.list_volumes(Paging::default()).await), Kind::Unavailable);

    backend.inject("start", Inject::Fail(Fault::precondition("open pool default")));
    assert_eq!(kind(engine.start().await), Kind::Precondition);
    assert!(!engine.probe().await.unwrap());
    engine.start().await.unwrap();
    assert!(engine.probe().await.unwrap());
    make(&engine, "a").await;
}

#[tokio::test]
async fn an_unhealthy_backend_fails_the_probe_with_one_code() {
    let (engine, backend) = engine().await;
    backend.inject("probe", Inject::Fail(Fault::internal("find mkfs.xfs")));
    let fault = engine.probe().await.unwrap_err();
    assert_eq!((fault.kind(), fault.what()), (Kind::Precondition, "find mkfs.xfs"));
    assert!(engine.probe().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_running_work_and_then_lets_go_of_the_pools() {
    let (engine, backend) = engine().await;
    backend.inject("ensure_volume", Inject::Sleep(Duration::from_secs(5)));
    let call = spawn({
        let engine = engine.clone();
        async move { engine.create_volume(create("a")).await }
    });
    settle().await;
    assert_eq!(engine.stop(Duration::from_secs(10)).await, []);
    assert_eq!(backend.calls("stop"), 1);
    call.await.unwrap().unwrap();
    assert_eq!(kind(engine.create_volume(create("b")).await), Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn stopping_names_what_is_still_busy_and_keeps_the_pools_for_it() {
    let (engine, backend) = engine().await;
    backend.inject("ensure_volume", Inject::Sleep(Duration::from_secs(50)));
    let call = spawn({
        let engine = engine.clone();
        async move { engine.create_volume(create("a")).await }
    });
    settle().await;
    let busy = engine.stop(Duration::from_secs(10)).await;
    assert_eq!(busy.len(), 1);
    assert_eq!((busy[0].operation, busy[0].object.as_str()), ("create volume", "default/a"));
    assert_eq!(backend.calls("stop"), 0, "the pools were let go under running work");
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn debug_output_holds_no_secrets() {
    let secrets = Secrets::new([("password".to_owned(), "hunter2".to_owned())]);
    let request = CreateVolume { secrets: secrets.clone(), ..create("a") };
    let (engine, _) = engine().await;
    let text = format!("{request:?} {engine:?} {:?}", ExpandVolume { secrets, ..expand("a", 1) });
    assert!(!text.contains("hunter2"), "{text}");
}
