//! What pods ask of volumes on real storage: inline volumes that live as long as the pod, and files
//! that belong to its group.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod support;

use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use rstest::rstest;
use std::{fs, os::unix::fs::MetadataExt};
use support::{Server, Site, create, leaks};

const SIZE: i64 = 320 << 20;
const GROUP: u32 = 4711;

async fn served(backend: &'static str) -> (Site, Server) {
    let site = Site::new(backend, "xfs");
    for made in ["staging", "pods"] {
        fs::create_dir_all(site.path(made)).unwrap();
    }
    let mut server = site.server();
    assert!(server.ready().await);
    (site, server)
}

/// Handles of inline volumes are made by kubelet: `csi-` and a checksum.
const INLINE: &str = "csi-6f1ed002ab5595859014ebf0951522d9aa3f0a8b3c1c7d0e5a1b2c3d4e5f6a7b";

async fn publish_inline(site: &Site, server: &Server) {
    let request = csi::NodePublishVolumeRequest {
        volume_id: INLINE.to_owned(),
        target_path: site.path("pods/inline").display().to_string(),
        volume_capability: Some(csi::VolumeCapability::mounted("", &[], Mode::SingleNodeWriter)),
        volume_context: [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("size", "320Mi"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        ..Default::default()
    };
    server.client.node().node_publish_volume(request).await.unwrap();
}

async fn unpublish_inline(site: &Site, server: &Server) {
    let request = csi::NodeUnpublishVolumeRequest {
        volume_id: INLINE.to_owned(),
        target_path: site.path("pods/inline").display().to_string(),
    };
    server.client.node().node_unpublish_volume(request).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn an_inline_volume_lives_as_long_as_its_pod_also_when_the_server_is_killed(
    #[values("dir", "loop")] backend: &'static str,
) {
    let (site, mut server) = served(backend).await;
    publish_inline(&site, &server).await;
    let file = site.path("pods/inline/cache");
    fs::write(&file, "of the pod").unwrap();
    // kubelet repeats; the volume is the same.
    publish_inline(&site, &server).await;
    assert_eq!(fs::read(&file).unwrap(), b"of the pod");

    server.kill();
    assert_eq!(fs::read(&file).unwrap(), b"of the pod");
    server = site.server();
    assert!(server.ready().await);
    publish_inline(&site, &server).await;
    assert_eq!(fs::read(&file).unwrap(), b"of the pod");

    unpublish_inline(&site, &server).await;
    unpublish_inline(&site, &server).await;
    assert!(!file.exists());
    assert!(server.stop().success());
    assert_eq!(leaks::find(site.dir.path(), site.pool.path()), [""; 0]);
}

#[rstest]
#[tokio::test]
async fn files_belong_to_the_pods_group_and_so_does_what_is_made_later(
    #[values("dir", "loop")] backend: &'static str,
) {
    let (site, mut server) = served(backend).await;
    let mut capability = csi::VolumeCapability::mounted("", &[], Mode::SingleNodeWriter);
    let mut controller = server.client.controller();
    let made = controller.create_volume(create("v", SIZE, capability.clone())).await.unwrap();
    let volume = made.into_inner().volume.unwrap();
    if let Some(csi::volume_capability::AccessType::Mount(mount)) = &mut capability.access_type {
        mount.volume_mount_group = GROUP.to_string();
    }
    let target = site.path("pods/v");
    site.stage_and_publish(&server, &volume, &capability, &target).await;
    let top = fs::metadata(&target).unwrap();
    assert_eq!((top.gid(), top.mode() & 0o2070), (GROUP, 0o2070));
    fs::create_dir(target.join("later")).unwrap();
    fs::write(target.join("later/file"), "x").unwrap();
    assert_eq!(fs::metadata(target.join("later/file")).unwrap().gid(), GROUP);

    let target_path = target.display().to_string();
    let volume_id = volume.volume_id;
    let request = csi::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
    server.client.node().node_unpublish_volume(request).await.unwrap();
    let staging_target_path = site.path("staging").display().to_string();
    let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
    server.client.node().node_unstage_volume(request).await.unwrap();
    assert!(server.stop().success());
}
