//! A driver's life: not ready, ready, failed, draining, gone.

use crate::support::{LONG, Rig};
use larder_csi::State;
use larder_model::Fault;
use larder_proto::{csi, larder};
use larder_volumes::testing::{Inject, Memory};
use std::time::Duration;
use tonic::Code;

fn create(name: &str) -> csi::CreateVolumeRequest {
    use csi::volume_capability::access_mode::Mode;
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![csi::VolumeCapability::mounted("", &[], Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_driver_says_who_it_is_before_it_is_ready_and_works_only_afterwards() {
    let rig = Rig::new(Memory::default());
    for client in [rig.driver.client(), rig.remote().await] {
        let info = client.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap();
        assert_eq!(info.into_inner().name, "memory.test");
        let probe = client.identity().probe(csi::ProbeRequest {}).await.unwrap();
        assert_eq!(probe.into_inner().ready, Some(false));
        let refused = client.controller().create_volume(create("early")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("hint"), "{refused:?}");
    }
    rig.driver.start().await.unwrap();
    let client = rig.driver.client();
    assert_eq!(
        client.identity().probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready,
        Some(true)
    );
    let created = client.controller().create_volume(create("early")).await.unwrap();
    assert_eq!(created.into_inner().volume.unwrap().volume_id, "default/early");
}

#[tokio::test]
async fn a_driver_that_cannot_start_says_why_and_can_be_started_again() {
    let rig = Rig::new(Memory::default());
    rig.backend.inject("start", Inject::Fail(Fault::unavailable("find pool default")));
    rig.driver.start().await.unwrap_err();
    let client = rig.driver.client();
    let probe = client.identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert_eq!(probe.code(), Code::FailedPrecondition);
    assert!(probe.message().contains("find pool default"), "{probe:?}");
    let refused = client.controller().create_volume(create("v")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    rig.driver.start().await.unwrap();
    client.controller().create_volume(create("v")).await.unwrap();
}

#[tokio::test]
async fn a_backend_that_cannot_work_makes_probe_fail() {
    let rig = Rig::ready(Memory::default()).await;
    rig.backend.inject("probe", Inject::Fail(Fault::unavailable("reach the server")));
    let probe = rig.driver.client().identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert_eq!(probe.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn shutdown_waits_for_what_runs_and_answers_it() {
    let rig = Rig::ready(Memory::default()).await;
    let client = rig.remote().await;
    rig.backend.inject("ensure_volume", Inject::Sleep(Duration::from_millis(300)));
    let mut controller = client.controller();
    let running =
        tokio::task::JoinSet::from_iter([
            async move { controller.create_volume(create("slow")).await },
        ]);
    while rig.driver.operations().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let busy = rig.driver.shutdown(LONG).await;
    assert!(busy.is_empty(), "{busy:?}");
    let answers = running.join_all().await;
    answers[0].as_ref().unwrap();
    assert!(matches!(rig.driver.state(), State::Stopped));
    assert!(!rig.endpoint().path().exists());
    assert_eq!(rig.backend.calls("stop"), 1);
    let late = rig.driver.client().controller().create_volume(create("late")).await.unwrap_err();
    assert_eq!(late.code(), Code::Unavailable);
}

/// A successor waits for the pools; who is connected to us and says nothing must not hold them.
#[tokio::test]
async fn the_pools_are_let_go_before_peers_have_gone() {
    let rig = Rig::ready(Memory::default()).await;
    let client = rig.remote().await;
    client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    let _silent = tokio::net::UnixStream::connect(rig.endpoint().path()).await.unwrap();
    let driver = rig.driver.clone();
    let begun = std::time::Instant::now();
    let mut ending = tokio::task::JoinSet::new();
    ending.spawn(async move { driver.shutdown(LONG).await });
    while rig.backend.calls("stop") == 0 {
        assert!(begun.elapsed() < LONG, "the pools are held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let busy = ending.join_next().await.unwrap().unwrap();
    assert!(busy.is_empty(), "{busy:?}");
    assert!(begun.elapsed() > Duration::from_millis(400), "the peer is waited for afterwards");
}

#[tokio::test]
async fn shutdown_names_what_is_still_busy_and_keeps_its_pools() {
    let rig = Rig::ready(Memory::default()).await;
    rig.backend.inject("ensure_volume", Inject::Sleep(LONG));
    let client = rig.driver.client();
    let call = client.controller();
    let gave_up = tokio::time::timeout(Duration::from_millis(50), {
        let mut call = call.clone();
        async move { call.create_volume(create("stuck")).await }
    });
    gave_up.await.unwrap_err();
    let mut admin = client.admin();
    let shown = admin.list_operations(larder::ListOperationsRequest {}).await.unwrap();
    let shown = shown.into_inner().operations;
    assert_eq!(
        (shown[0].operation.as_str(), shown[0].object.as_str()),
        ("create volume", "default/stuck")
    );
    assert!(shown[0].age_millis >= 40);
    let busy = rig.driver.shutdown(Duration::from_millis(100)).await;
    assert_eq!(busy.len(), 1);
    assert_eq!(busy[0].object, "default/stuck");
    assert_eq!(rig.backend.calls("stop"), 0);
}
