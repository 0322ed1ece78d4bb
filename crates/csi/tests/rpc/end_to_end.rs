//! A volume's whole life over a unix socket, with the calls of provisioner and kubelet.

use crate::{
    support::{Rig, devices, directories},
    valid::{self, block},
};
use larder_host::{Usage, fake::FakeKernel};
use larder_model::Bytes;
use larder_proto::csi::{self, VolumeCapability, volume_usage::Unit};
use larder_volumes::testing::Memory;
use std::path::Path;

/// Create, attach, stage, publish, measure, grow, and back. Every call twice, as callers do.
async fn life(rig: &Rig, capability: VolumeCapability) {
    let client = rig.remote().await;
    let (mut controller, mut node) = (client.controller(), client.node());
    let [staging, target] = ["staging", "pod/target"].map(|name| rig.path(name));
    let volume_capability = Some(capability.clone());
    let is_block = capability.access_type == block().access_type;

    let mut volume = None;
    for _ in 0..2 {
        let create = csi::CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
            volume_capabilities: vec![capability.clone()],
            ..Default::default()
        };
        volume = controller.create_volume(create).await.unwrap().into_inner().volume;
    }
    let volume = volume.unwrap();
    assert_eq!(volume.capacity_bytes, 1 << 30);
    assert_eq!(volume.accessible_topology.len(), 1);
    let volume_id = volume.volume_id.clone();

    let mut publish_context = Default::default();
    for _ in 0..2 {
        let attach = csi::ControllerPublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: valid::NODE.to_owned(),
            volume_capability: volume_capability.clone(),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        let attached = controller.controller_publish_volume(attach).await.unwrap().into_inner();
        publish_context = attached.publish_context;
    }
    for _ in 0..2 {
        let stage = csi::NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.clone(),
            volume_capability: volume_capability.clone(),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        node.node_stage_volume(stage).await.unwrap();
    }
    for _ in 0..2 {
        let publish = csi::NodePublishVolumeRequest {
            volume_id: volume_id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.clone(),
            target_path: target.clone(),
            volume_capability: volume_capability.clone(),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        node.node_publish_volume(publish).await.unwrap();
    }
    // The target is ours to make: a directory, or a file for a device.
    let made = std::fs::symlink_metadata(&target).unwrap();
    assert_eq!((made.is_dir(), made.is_file()), (!is_block, is_block));
    let targets = rig.kernel.mounted().iter().filter(|at| *at == Path::new(&target)).count();
    assert_eq!(targets, 1, "nothing is stacked: {:?}", rig.kernel.mounted());

    rig.kernel.set_usage(
        Path::new(&target),
        Usage {
            total: Bytes::new(1000),
            available: Bytes::new(600),
            used: Bytes::new(400),
            inodes: 100,
            inodes_free: 90,
            inodes_used: 10,
        },
    );
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: volume_id.clone(),
        volume_path: target.clone(),
        ..Default::default()
    };
    let stats = node.node_get_volume_stats(stats).await.unwrap().into_inner();
    let usage: Vec<_> =
        stats.usage.iter().map(|u| (u.unit(), u.total, u.used, u.available)).collect();
    if is_block {
        assert_eq!(usage, [(Unit::Bytes, 1 << 30, 0, 0)]);
    } else {
        assert_eq!(usage, [(Unit::Bytes, 1000, 400, 600), (Unit::Inodes, 100, 10, 90)]);
    }
    let condition = stats.volume_condition.unwrap();
    assert!(!condition.abnormal, "{condition:?}");

    // What is in use is not deleted.
    let delete = csi::DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
    let refused = controller.delete_volume(delete.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);

    for _ in 0..2 {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: volume_id.clone(),
            target_path: target.clone(),
        };
        node.node_unpublish_volume(unpublish).await.unwrap();
    }
    assert!(!Path::new(&target).exists(), "the target is ours to remove");
    for _ in 0..2 {
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: staging.clone(),
        };
        node.node_unstage_volume(unstage).await.unwrap();
    }
    assert!(Path::new(&staging).is_dir(), "the staging path is the caller's");
    assert_eq!(rig.kernel.mounted(), Vec::<std::path::PathBuf>::new());
    for _ in 0..2 {
        let detach = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: valid::NODE.to_owned(),
            ..Default::default()
        };
        controller.controller_unpublish_volume(detach).await.unwrap();
    }
    for _ in 0..2 {
        controller.delete_volume(delete.clone()).await.unwrap();
    }
    let left = controller.list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
    assert!(left.into_inner().entries.is_empty());
    let busy = rig.driver.shutdown(crate::support::LONG).await;
    assert!(busy.is_empty(), "{busy:?}");
}

#[tokio::test]
async fn a_directory_lives_from_create_to_delete() {
    life(&Rig::ready(directories()).await, valid::mounted()).await;
}

#[tokio::test]
async fn a_device_is_formatted_mounted_and_let_go() {
    let kernel = FakeKernel::new();
    let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
    life(&rig, valid::mounted()).await;
    assert!(rig.kernel.attached().is_empty());
}

#[tokio::test]
async fn a_raw_device_lives_from_create_to_delete() {
    let kernel = FakeKernel::new();
    let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
    life(&rig, block()).await;
}

/// A raw device that nobody formatted yet could never be formatted after a workload had it.
#[tokio::test]
async fn a_volume_is_confirmed_and_staged_only_as_what_it_was_made_for() {
    let kernel = FakeKernel::new();
    let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
    let client = rig.remote().await;
    for (name, right, wrong) in
        [("mounted", valid::mounted(), block()), ("raw", block(), valid::mounted())]
    {
        let create = csi::CreateVolumeRequest {
            name: name.to_owned(),
            volume_capabilities: vec![right.clone()],
            ..Default::default()
        };
        client.controller().create_volume(create).await.unwrap();
        for (capability, fits) in [(wrong, false), (right, true)] {
            let validate = csi::ValidateVolumeCapabilitiesRequest {
                volume_id: format!("default/{name}"),
                volume_capabilities: vec![capability.clone()],
                ..Default::default()
            };
            let answer = client.controller().validate_volume_capabilities(validate).await.unwrap();
            assert_eq!(answer.into_inner().confirmed.is_some(), fits, "{name}");
            let stage = csi::NodeStageVolumeRequest {
                volume_id: format!("default/{name}"),
                staging_target_path: rig.path("staging"),
                volume_capability: Some(capability),
                ..Default::default()
            };
            let staged = client.node().node_stage_volume(stage).await;
            assert_eq!(staged.is_ok(), fits, "{name}: {staged:?}");
            if let Err(refused) = staged {
                assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
            }
        }
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: format!("default/{name}"),
            staging_target_path: rig.path("staging"),
        };
        client.node().node_unstage_volume(unstage).await.unwrap();
    }
}

/// A read-only mount of a device node keeps nobody from writing through it.
#[tokio::test]
async fn a_raw_device_is_published_read_only_only_when_it_is_staged_for_reading() {
    use csi::volume_capability::access_mode::Mode;
    let kernel = FakeKernel::new();
    let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
    rig.fill().await;
    let client = rig.remote().await;
    let reader = VolumeCapability::raw_block(Mode::SingleNodeReaderOnly);
    for (capability, allowed) in [(block(), false), (reader, true)] {
        let stage = csi::NodeStageVolumeRequest {
            volume_id: valid::VOLUME.to_owned(),
            staging_target_path: rig.path("staging"),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        client.node().node_stage_volume(stage).await.unwrap();
        let publish = csi::NodePublishVolumeRequest {
            volume_id: valid::VOLUME.to_owned(),
            staging_target_path: rig.path("staging"),
            target_path: rig.path("pod/target"),
            volume_capability: Some(capability),
            readonly: true,
            ..Default::default()
        };
        let published = client.node().node_publish_volume(publish).await;
        assert_eq!(published.is_ok(), allowed, "{published:?}");
        if let Err(refused) = published {
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        }
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: valid::VOLUME.to_owned(),
            target_path: rig.path("pod/target"),
        };
        client.node().node_unpublish_volume(unpublish).await.unwrap();
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: valid::VOLUME.to_owned(),
            staging_target_path: rig.path("staging"),
        };
        client.node().node_unstage_volume(unstage).await.unwrap();
    }
}

/// kubelet knows such a volume by an id of its own, never stages it, and speaks of it twice.
#[tokio::test]
async fn an_inline_volume_is_made_and_deleted_with_its_pod() {
    let rig = Rig::ready(directories()).await;
    let client = rig.remote().await;
    let volume_id = "csi-5f2a7c0e9b1d3f4a6c8e0b2d4f6a8c0e".to_owned();
    let target_path = rig.path("pod/inline");
    for _ in 0..2 {
        let publish = csi::NodePublishVolumeRequest {
            volume_id: volume_id.clone(),
            target_path: target_path.clone(),
            volume_capability: Some(valid::mounted()),
            volume_context: valid::map(&[("csi.storage.k8s.io/ephemeral", "true")]),
            ..Default::default()
        };
        client.node().node_publish_volume(publish).await.unwrap();
    }
    assert_eq!(rig.backend.calls("delete_volume"), 0);
    assert!(rig.backend.inventory().contains("volume"));
    for _ in 0..2 {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: volume_id.clone(),
            target_path: target_path.clone(),
        };
        client.node().node_unpublish_volume(unpublish).await.unwrap();
    }
    assert!(!Path::new(&target_path).exists());
    assert!(rig.kernel.mounted().is_empty());
    assert!(!rig.backend.inventory().contains("volume"), "{}", rig.backend.inventory());
}

#[tokio::test]
async fn many_drivers_are_served_by_one_process() {
    let rigs = [Rig::ready(Memory::default()).await, Rig::ready(Memory::default()).await];
    for rig in &rigs {
        let client = rig.remote().await;
        let create = csi::CreateVolumeRequest {
            name: "same-name".to_owned(),
            volume_capabilities: vec![valid::mounted()],
            ..Default::default()
        };
        client.controller().create_volume(create).await.unwrap();
    }
    let busy = rigs[0].driver.shutdown(crate::support::LONG).await;
    assert!(busy.is_empty());
    let client = larder_csi::Client::connect(&rigs[1].endpoint()).unwrap();
    let probe = client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(true));
}
