//! What looks gone only because doctor, or kubelet, works in another place.

use crate::{
    doctor, expected,
    support::{self, Site, capability, create},
    text, told,
};
use larder_host::{
    Host,
    mounts::{BindRequest, Unmount},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    process::Stdio,
    time::{Duration, Instant},
};

/// A shell in a mount namespace of its own, which runs doctor there once it is told to.
async fn doctor_in_a_namespace_of_its_own(site: &Site) -> std::process::Child {
    let script =
        format!("read _; exec '{}' doctor --fix --yes -o json", env!("CARGO_BIN_EXE_larder"));
    let mut shell = support::shell(&format!("exec unshare -m sh -c \"{script}\""));
    let shell = shell.env("LARDER_CONFIG", site.config()).stdin(Stdio::piped());
    let child = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let end = Instant::now() + Duration::from_secs(60);
    while namespace(&child.id().to_string()) == namespace("self") {
        assert!(Instant::now() < end, "unshare made no namespace");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child
}

#[rstest::rstest]
#[case::served(true)]
#[case::mounted_by_commands(false)]
#[tokio::test]
async fn a_doctor_in_another_mount_namespace_says_so_and_touches_no_mount(#[case] served: bool) {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let mut other = doctor_in_a_namespace_of_its_own(&site).await;
    let mut server = served.then(|| site.server());
    if let Some(server) = &mut server {
        assert!(server.ready().await);
    }
    let here = site.path("a");
    site.ok(&["volume", "mount", "a", text(&here)]);
    std::fs::write(here.join("file"), "precious").unwrap();
    other.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut report = String::new();
    other.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(other.wait().unwrap().code(), Some(8), "{report}");
    let report: Value = serde_json::from_str(&report).unwrap();
    let records = site.path("state").join(&site.driver);
    assert_eq!(told(&report), expected(&[("mounts-elsewhere", &records, false)]), "{report:#}");
    assert_eq!(report["fixes"], serde_json::json!([]));
    assert_eq!(std::fs::read(here.join("file")).unwrap(), b"precious");
    assert_eq!(told(&doctor(&site, &[])), [], "here everything is as it should be");
    site.ok(&["volume", "unmount", "a"]);
}

#[tokio::test]
async fn what_kubelet_binds_of_a_published_volume_is_its_own_until_the_volume_is_unpublished() {
    let site = Site::new("dir", "xfs");
    let kubelet = site.path("kubelet");
    let config = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), format!("kubeletDir: {}\n{config}", kubelet.display())).unwrap();
    let mut server = site.server();
    assert!(server.ready().await);
    let capability = capability(false, "");
    let mut controller = server.client.controller();
    let made = controller.create_volume(create("a", 1 << 20, capability.clone()));
    let volume = made.await.unwrap().into_inner().volume.unwrap();
    let pod = kubelet.join("pods/1");
    let target = pod.join("volumes/kubernetes.io~csi/a/mount");
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::create_dir(site.path("staging")).unwrap();
    site.stage_and_publish(&server, &volume, &capability, &target).await;
    let subpath = pod.join("volume-subpaths/a/main/0");
    std::fs::create_dir_all(&subpath).unwrap();
    let mounts = Host::real().mounts;
    let bind =
        BindRequest { source: target.clone(), target: subpath.clone(), ..BindRequest::default() };
    mounts.bind(&bind).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
    let request = larder_proto::csi::NodeUnpublishVolumeRequest {
        volume_id: volume.volume_id,
        target_path: text(&target).to_owned(),
    };
    server.client.node().node_unpublish_volume(request).await.unwrap();
    assert_eq!(told(&doctor(&site, &[])), expected(&[("mount-unrecorded", &subpath, false)]));
    mounts.unmount(&subpath, Unmount::Normal).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
}

#[tokio::test]
async fn a_pool_that_its_server_refuses_is_told_in_the_servers_words() {
    let site = Site::new("dir", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    site.ok(&["volume", "create", "a"]);
    // Another pool has come into the place of the one that is served.
    let identity = site.pool.path().join("larder-pool.json");
    let before = std::fs::read(&identity).unwrap();
    let mut other: Value = serde_json::from_slice(&before).unwrap();
    other["id"] = "00000000-0000-4000-8000-000000000000".into();
    let moved = site.pool.path().with_file_name("served");
    std::fs::rename(site.pool.path(), &moved).unwrap();
    std::fs::create_dir(site.pool.path()).unwrap();
    std::fs::write(&identity, serde_json::to_vec(&other).unwrap()).unwrap();
    let report = doctor(&site, &["--fix", "--yes"]);
    let refused = ("pool-refused".to_owned(), site.pool.path().display().to_string(), false);
    assert!(told(&report).contains(&refused), "{report:#}");
    std::fs::remove_dir_all(site.pool.path()).unwrap();
    std::fs::rename(&moved, site.pool.path()).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
}
