//! Volumes of a real NFS server, in a virtual machine: from creation to deletion, with a server that dies,
//! comes back, refuses, or is full.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs as a user would")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod node;
mod refusals;
mod server;
mod site;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;

use larder_proto::csi;
use server::{ADDRESS, server};
use site::{Site, code, published_options};
use std::{
    fs,
    time::{Duration, Instant},
};

#[tokio::test]
async fn a_volume_lives_on_a_server_from_creation_to_deletion() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("pvc-1", &[("subDir", "team/data")]).await.unwrap();
    assert_eq!(volume.volume_context["subDir"], "team/data");
    assert_eq!(volume.volume_context["server"], ADDRESS);

    let target = larder.publish(&volume).await.unwrap();
    let options = published_options(&target);
    for wanted in ["vers=4.2", "hard"] {
        assert!(options.iter().any(|o| o == wanted), "{wanted}: {options:?}");
    }
    fs::write(target.join("file"), "written by a pod").unwrap();
    let there = export.join("team/data/file");
    assert_eq!(fs::read_to_string(&there).unwrap(), "written by a pod");
    // Equal calls change nothing.
    assert_eq!(larder.publish(&volume).await.unwrap(), target);
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: target.display().to_string(),
        staging_target_path: String::new(),
    };
    let stats = larder.node().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert!(stats.usage[0].total > 0 && stats.usage[1].used > 0, "{stats:?}");

    larder.unpublish(&volume).await.unwrap();
    larder.delete(&volume.volume_id).await.unwrap();
    assert!(!export.join("team/data").exists());
    assert_eq!(site.mounts(), [""; 0]);
    assert!(
        larder
            .controller()
            .list_volumes(csi::ListVolumesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
}

#[tokio::test]
async fn volumes_are_mounted_in_the_version_that_is_asked_for() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    for (options, wanted) in
        [("vers=4.1", "vers=4.1"), ("vers=3, nolock", "vers=3"), ("nconnect=2", "nconnect=2")]
    {
        let site = Site::new(&export, options);
        let larder = site.serve().await;
        let volume = larder.create("versions", &[]).await.unwrap();
        let target = larder.publish(&volume).await.unwrap();
        let found = published_options(&target);
        assert!(found.iter().any(|o| o == wanted), "{wanted}: {found:?}");
        fs::write(target.join("file"), "x").unwrap();
        larder.unpublish(&volume).await.unwrap();
        larder.delete(&volume.volume_id).await.unwrap();
    }
}

/// kubernetes/kubernetes#72048, #123960, #31272; rook/rook#6327.
#[tokio::test]
async fn a_dead_server_blocks_no_call_of_others_and_its_volumes_are_let_go() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let dead = larder.create("dead", &[]).await.unwrap();
    let other = larder.create("other", &[]).await.unwrap();
    let target = larder.publish(&dead).await.unwrap();
    fs::write(target.join("file"), "acknowledged").unwrap();
    fs::File::open(target.join("file")).unwrap().sync_all().unwrap();

    server.fall_silent();
    let mut stuck =
        support::shell(&format!("exec cat {}/absent/*", target.display())).spawn().unwrap();
    // Whoever needs the server is told so, again and again.
    for _ in 0..3 {
        let status = larder.create("new", &[]).await.unwrap_err();
        assert_eq!(status.code(), code("UNAVAILABLE"), "{status:?}");
    }
    let status = larder.delete(&other.volume_id).await.unwrap_err();
    assert_eq!(status.code(), code("UNAVAILABLE"), "{status:?}");
    let status = larder.publish_at(&other, "second").await.unwrap_err();
    assert_eq!(status.code(), code("UNAVAILABLE"), "{status:?}");
    // Volumes that are somewhere else go on.
    let local = larder.create_local("local").await.unwrap();
    larder.delete_local(&local.volume_id).await.unwrap();
    larder.probe().await;

    let began = Instant::now();
    larder.unpublish(&dead).await.unwrap();
    let took = began.elapsed();
    println!("unpublish and unstage on a dead server took {took:.1?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(site.mounts(), [""; 0]);
    stuck.kill().unwrap();

    server.wake();
    let until = Instant::now() + Duration::from_secs(120);
    while larder.delete(&other.volume_id).await.is_err() {
        assert!(Instant::now() < until, "the server answers again, and Larder does not");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let target = larder.publish(&dead).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "acknowledged");
    larder.unpublish(&dead).await.unwrap();
    stuck.wait().unwrap();
}

#[tokio::test]
async fn a_workload_goes_on_over_a_restart_of_the_server_and_of_larder() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let mut larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    let script = format!(
        "for i in $(seq 40); do echo $i >> {0}/log; sync {0}/log; sleep 0.2; done",
        target.display()
    );
    let mut writer = support::shell(&script).spawn().unwrap();
    larder.kill();
    let larder = site.serve().await;
    // It dies without a word.
    server.fall_silent();
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.restart();
    server.wake();
    assert!(writer.wait().unwrap().success());
    let written = fs::read_to_string(export.join("v/log")).unwrap();
    let expected: String = (1..=40).map(|n| format!("{n}\n")).collect();
    assert_eq!(written, expected);
    larder.unpublish(&volume).await.unwrap();
    larder.delete(&volume.volume_id).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}

/// kubernetes-csi/csi-driver-smb#164, #419, #563.
#[tokio::test]
async fn what_the_server_has_no_more_is_told_and_healed_when_a_workload_starts() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let old = larder.publish(&volume).await.unwrap();
    // Restored from a backup: another directory with the same name.
    fs::rename(export.join("v"), export.join("lost")).unwrap();
    fs::remove_dir_all(export.join("lost")).unwrap();
    fs::create_dir(export.join("v")).unwrap();
    fs::write(export.join("v/file"), "restored").unwrap();
    let stale = |path: &std::path::Path| {
        let found = fs::read_dir(path).map(|entries| entries.count());
        found.is_err_and(|e| e.raw_os_error() == Some(116))
    };
    let until = Instant::now() + Duration::from_secs(90);
    while !stale(&old) {
        assert!(Instant::now() < until, "the kernel does not find out");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let health = csi::NodeGetVolumeHealthRequest {
        volume_id: volume.volume_id.clone(),
        volume_publish_path: old.display().to_string(),
        ..Default::default()
    };
    let health = larder.node().node_get_volume_health(health).await.unwrap().into_inner();
    assert!(format!("{health:?}").contains("MountStale"), "{health:?}");

    let new = larder.publish_at(&volume, "restarted").await.unwrap();
    assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "restored");
    larder.unpublish_at(&volume, "restarted").await.unwrap();
    larder.unpublish(&volume).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}

#[tokio::test]
async fn killed_at_every_step_of_staging_and_publishing_nothing_is_lost_or_mounted_twice() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    drop(larder);
    for step in 1..30 {
        let larder = site.serve_and_crash_at(step).await;
        let survived = larder.publish(&volume).await.is_ok();
        drop(larder);
        let larder = site.serve().await;
        let target = larder.publish(&volume).await.unwrap();
        fs::write(target.join("file"), step.to_string()).unwrap();
        assert_eq!(fs::read_to_string(export.join("v/file")).unwrap(), step.to_string());
        assert_eq!(site.mounts().len(), 2, "{:?}", site.mounts());
        larder.unpublish(&volume).await.unwrap();
        assert_eq!(site.mounts(), [""; 0]);
        if survived {
            assert!(step > 5, "there are only {step} steps");
            return;
        }
    }
    panic!("it never ends");
}

/// A file of `examples/nfs`.
fn example(name: &str) -> serde_yaml_ng::Value {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/nfs").join(name);
    serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[tokio::test]
async fn the_examples_work_as_they_are_written() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let keys = example("config.yaml")["drivers"][0]["exports"]["default"].clone();
    let text = |key: &str| serde_json::to_string(&keys[key]).unwrap();
    assert_eq!((&*text("server"), &*text("create")), ("\"nas.example\"", "true"));
    let site =
        Site::of(&format!("share: {}, mountOptions: {}", export.display(), text("mountOptions")));
    let larder = site.serve().await;

    let class = example("storageclass.yaml");
    let mut parameters: Vec<(String, String)> =
        serde_yaml_ng::from_value::<std::collections::BTreeMap<_, _>>(class["parameters"].clone())
            .unwrap()
            .into_iter()
            .collect();
    for (key, value) in [("name", "data"), ("namespace", "team")] {
        parameters.push((format!("csi.storage.k8s.io/pvc/{key}"), value.to_owned()));
    }
    let parameters: Vec<_> = parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let volume = larder.create("pvc-1", &parameters).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("file"), "x").unwrap();
    larder.unpublish(&volume).await.unwrap();
    larder.delete(&volume.volume_id).await.unwrap();
    assert_eq!(fs::read_to_string(export.join("team/archived-data/file")).unwrap(), "x");

    let csi_of = &example("persistentvolume.yaml")["spec"]["csi"];
    let own = |key: &str| csi_of["volumeAttributes"][key].as_str().unwrap().to_owned();
    fs::create_dir(export.join(own("subDir"))).unwrap();
    let context = [
        ("server".to_owned(), ADDRESS.to_owned()),
        ("share".to_owned(), export.display().to_string()),
        ("subDir".to_owned(), own("subDir")),
    ];
    let volume = csi::Volume {
        volume_id: csi_of["volumeHandle"].as_str().unwrap().to_owned(),
        volume_context: context.into(),
        ..Default::default()
    };
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("file"), "x").unwrap();
    larder.unpublish(&volume).await.unwrap();
    assert!(export.join(own("subDir")).join("file").exists());
}
