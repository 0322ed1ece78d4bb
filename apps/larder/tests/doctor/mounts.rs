//! Mounts, and records of them.

use crate::{
    doctor, found_and_mended,
    support::{Site, capability},
    text, told,
};
use larder_host::{
    Host,
    mounts::{BindRequest, Unmount},
};
use larder_proto::csi;
use std::path::{Path, PathBuf};

fn is_mounted(path: &Path) -> bool {
    Host::real().mounts.is_mount_point(path).unwrap()
}
fn umount(path: &Path) {
    Host::real().mounts.unmount(path, Unmount::Normal).unwrap();
}
fn bind(source: &Path, target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    let request =
        BindRequest { source: source.into(), target: target.into(), ..BindRequest::default() };
    Host::real().mounts.bind(&request).unwrap();
}

/// The folder of `volume mount` for the only volume that it has.
fn folder(site: &Site) -> PathBuf {
    let driver = site.path("mounts").join(&site.driver);
    std::fs::read_dir(driver).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn mounts_of_a_directory_that_was_removed_are_unmounted() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    site.ok(&["volume", "create", "b"]);
    site.ok(&["volume", "mount", "a", text(&site.path("a"))]);
    site.ok(&["volume", "mount", "b", text(&site.path("b"))]);
    std::fs::write(site.path("b/file"), "precious").unwrap();
    let by_hand = site.path("by-hand");
    bind(&site.pool.path().join("volumes/a/data"), &by_hand);
    let stage = site.path("mounts").join(&site.driver);
    let stages: Vec<_> =
        std::fs::read_dir(stage).unwrap().map(|e| e.unwrap().path().join("stage")).collect();
    std::fs::remove_dir_all(site.pool.path().join("volumes/a")).unwrap();
    let report = doctor(&site, &[]);
    let of_a: Vec<_> = told(&report).into_iter().map(|(_, place, _)| place).collect();
    let stage = stages.iter().find(|stage| of_a.iter().any(|p| p == text(stage))).unwrap();
    found_and_mended(
        &site,
        &[
            ("mount-of-deleted-volume", stage, true),
            ("mount-of-deleted-volume", &site.path("a"), true),
            ("mount-of-deleted-volume", &by_hand, true),
        ],
    );
    assert!(!is_mounted(&by_hand) && !is_mounted(&site.path("a")));
    assert_eq!(std::fs::read(site.path("b/file")).unwrap(), b"precious");
    site.ok(&["volume", "unmount", "b"]);
}

#[test]
fn a_removed_directory_in_use_stays_mounted_and_the_answer_says_why() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let by_hand = site.path("by-hand");
    bind(&site.pool.path().join("volumes/a/data"), &by_hand);
    let inside = std::fs::File::open(&by_hand).unwrap();
    std::fs::remove_dir_all(site.pool.path().join("volumes/a")).unwrap();
    let report = doctor(&site, &["--fix", "--yes"]);
    assert_eq!(report["fixes"][0]["result"], "failed", "{report:#}");
    assert!(report["fixes"][0]["error"].as_str().unwrap().contains("by-hand"), "{report:#}");
    assert!(is_mounted(&by_hand));
    drop(inside);
    found_and_mended(&site, &[("mount-of-deleted-volume", &by_hand, true)]);
}

#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
fn a_bind_mount_that_nothing_knows_is_told_and_left_to_a_person(#[case] backend: &'static str) {
    let site = Site::new(backend, "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    site.ok(&["volume", "mount", "a", text(&site.path("a"))]);
    std::fs::write(site.path("a/file"), "precious").unwrap();
    let by_hand = site.path("by-hand");
    bind(&site.path("a"), &by_hand);
    found_and_mended(&site, &[("mount-unrecorded", &by_hand, false)]);
    assert_eq!(std::fs::read(by_hand.join("file")).unwrap(), b"precious");
    umount(&by_hand);
    assert_eq!(told(&doctor(&site, &[])), []);
    site.ok(&["volume", "unmount", "a"]);
}

#[rstest::rstest]
#[case::dir("dir", false)]
#[case::loops("loop", false)]
#[case::served("loop", true)]
#[tokio::test]
async fn a_staging_folder_whose_records_are_gone_is_unstaged_once_nobody_sees_it(
    #[case] backend: &'static str,
    #[case] served: bool,
) {
    let site = Site::new(backend, "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let here = site.path("a");
    site.ok(&["volume", "mount", "a", text(&here)]);
    std::fs::write(here.join("file"), "precious").unwrap();
    let stage = folder(&site).join("stage");
    std::fs::remove_file(folder(&site).join("mount.json")).unwrap();
    std::fs::remove_dir_all(site.path("state")).unwrap();
    let mut server = served.then(|| site.server());
    if let Some(server) = &mut server {
        assert!(server.ready().await);
    }
    // A workload may be using it through the other one.
    found_and_mended(
        &site,
        &[("mount-unrecorded", &stage, false), ("mount-unrecorded", &here, false)],
    );
    assert_eq!(std::fs::read(here.join("file")).unwrap(), b"precious");
    umount(&here);
    found_and_mended(&site, &[("mount-unrecorded", &stage, true)]);
    assert!(!is_mounted(&stage));
    site.ok(&["volume", "mount", "a", text(&here)]);
    assert_eq!(std::fs::read(here.join("file")).unwrap(), b"precious");
    site.ok(&["volume", "unmount", "a"]);
}

#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
fn a_mount_that_was_unmounted_past_larder_is_forgotten(#[case] backend: &'static str) {
    let site = Site::new(backend, "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    site.ok(&["volume", "mount", "a", text(&site.path("a"))]);
    std::fs::write(site.path("a/file"), "precious").unwrap();
    let record = folder(&site).join("mount.json");
    umount(&site.path("a"));
    found_and_mended(&site, &[("mount-record-stale", &record, true)]);
    site.ok(&["volume", "mount", "a", text(&site.path("a"))]);
    assert_eq!(std::fs::read(site.path("a/file")).unwrap(), b"precious");
    let (record, stage) = (folder(&site).join("mount.json"), folder(&site).join("stage"));
    umount(&site.path("a"));
    umount(&stage);
    found_and_mended(&site, &[("mount-record-stale", &record, true)]);
    site.ok(&["volume", "rm", "a"]);
}

/// Stages and publishes as kubelet does.
async fn publish(server: &crate::support::Server, site: &Site, name: &str) -> (PathBuf, PathBuf) {
    let (stage, target) = (site.path(&format!("stage-{name}")), site.path(&format!("pod-{name}")));
    std::fs::create_dir(&stage).unwrap();
    let volume_id = format!("default/{name}");
    let staging_target_path = text(&stage).to_owned();
    let volume_capability = Some(capability(false, ""));
    let request = csi::NodeStageVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: staging_target_path.clone(),
        volume_capability: volume_capability.clone(),
        ..Default::default()
    };
    server.client.node().node_stage_volume(request).await.unwrap();
    let request = csi::NodePublishVolumeRequest {
        volume_id,
        staging_target_path,
        target_path: text(&target).to_owned(),
        volume_capability,
        ..Default::default()
    };
    server.client.node().node_publish_volume(request).await.unwrap();
    (stage, target)
}

#[tokio::test]
async fn node_records_of_what_does_not_stand_are_mended_with_and_without_a_driver() {
    let site = Site::new("dir", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    for name in ["a", "b", "c"] {
        site.ok(&["volume", "create", name]);
    }
    let (a, b, c) = (
        publish(&server, &site, "a").await,
        publish(&server, &site, "b").await,
        publish(&server, &site, "c").await,
    );
    assert_eq!(told(&doctor(&site, &[])), []);
    umount(&a.1);
    umount(&b.1);
    umount(&b.0);
    found_and_mended(
        &site,
        &[
            ("publication-gone", &a.1, true),
            ("publication-gone", &b.1, true),
            ("staging-gone", &b.0, true),
        ],
    );
    site.ok(&["volume", "rm", "b"]);
    assert!(is_mounted(&a.0) && is_mounted(&c.0) && is_mounted(&c.1));

    server.kill();
    let socket = site.endpoint().path().to_owned();
    umount(&a.0);
    found_and_mended(&site, &[("staging-gone", &a.0, true), ("socket-stale", &socket, true)]);
    site.ok(&["volume", "rm", "a"]);

    // Of another boot, and no record at all.
    let records = site.path("state").join(&site.driver);
    let of_c = std::fs::read_dir(&records).unwrap().map(|e| e.unwrap().path());
    let of_c = of_c.into_iter().find(|p| p.extension().is_some_and(|e| e == "json")).unwrap();
    umount(&c.1);
    umount(&c.0);
    let text = std::fs::read_to_string(&of_c).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record["bootId"] = "before".into();
    std::fs::write(&of_c, serde_json::to_vec(&record).unwrap()).unwrap();
    let damaged = records.join(format!("{}.json", "0".repeat(64)));
    std::fs::write(&damaged, "{").unwrap();
    found_and_mended(
        &site,
        &[("node-record-of-another-boot", &of_c, true), ("node-record-unreadable", &damaged, true)],
    );
    site.ok(&["volume", "rm", "c"]);

    // Of a later release: this one leaves it where it is.
    let newer = records.join(format!("{}.json", "1".repeat(64)));
    std::fs::write(&newer, r#"{"format": 2, "other": true}"#).unwrap();
    found_and_mended(&site, &[("node-record-newer", &newer, false)]);
    site.ok(&["volume", "ls"]);
    assert_eq!(std::fs::read(&newer).unwrap(), br#"{"format": 2, "other": true}"#);
}

/// Whatever a process that is killed while it stages leaves, doctor finds it and the volume is free
/// again.
#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
#[tokio::test]
async fn a_staging_that_was_cut_at_any_step_is_told_and_taken_back(#[case] backend: &'static str) {
    let site = Site::new(backend, "xfs");
    let stage = site.path("stage");
    std::fs::create_dir(&stage).unwrap();
    let mut unfinished = 0;
    for n in 1.. {
        site.ok(&["volume", "create", "a", "--size", "320Mi"]);
        let mut server = site.server_that_crashes_at(n);
        let staged = if server.ready().await {
            let request = csi::NodeStageVolumeRequest {
                volume_id: "default/a".to_owned(),
                staging_target_path: text(&stage).to_owned(),
                volume_capability: Some(capability(false, "")),
                ..Default::default()
            };
            server.client.node().node_stage_volume(request).await.is_ok()
        } else {
            false
        };
        server.kill();
        if staged {
            let found = told(&doctor(&site, &[]));
            assert!(found.iter().all(|(kind, ..)| kind == "socket-stale"), "it stands: {found:?}");
            break;
        }
        let found = told(&doctor(&site, &[]));
        unfinished += usize::from(found.iter().any(|(kind, ..)| kind == "staging-unfinished"));
        let after = doctor(&site, &["--fix", "--yes"]);
        assert_eq!(told(&after), [], "step {n}: {found:?}");
        assert!(!is_mounted(&stage), "step {n}: {found:?}");
        site.ok(&["volume", "rm", "a"]);
    }
    assert!(unfinished > 1, "found {unfinished} times");
}
