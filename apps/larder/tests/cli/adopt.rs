//! `larder adopt`: everything but the pool is lost, and every volume is used again with its data.

use crate::support::{DRIVER, Site, program};
use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::HashMap, path::Path};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What adopt prints of a pool, with nothing else in reach; its exit status.
fn adopt(pool: &Path, more: &[&str]) -> (String, String, Option<i32>) {
    let mut command = program();
    command.args(["adopt", "--pool", text(pool)]).args(more).env("LARDER_CONFIG", "/no/such/file");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

fn manifests(pool: &Path) -> Vec<Value> {
    let more = ["-o", "yaml", "--driver", DRIVER, "--node", "n1"];
    let (yaml, said, _) = adopt(pool, &more);
    let documents = serde_yaml_ng::Deserializer::from_str(&yaml);
    documents
        .map(|d| Value::deserialize(d).unwrap_or_else(|e| panic!("{e}: {yaml} {said}")))
        .collect()
}

/// Uses a volume as kubelet does with such a PersistentVolume; returns what is in its file.
async fn read_through(server: &crate::support::Server, site: &Site, manifest: &Value) -> String {
    let spec = &manifest["spec"];
    assert_eq!(manifest["kind"], "PersistentVolume");
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(spec["csi"]["driver"], DRIVER);
    assert!(spec["capacity"]["storage"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    let term = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(term["values"], serde_json::json!(["n1"]));
    let name = manifest["metadata"]["name"].as_str().unwrap();
    let volume_id = spec["csi"]["volumeHandle"].as_str().unwrap().to_owned();
    let volume_context: HashMap<String, String> =
        serde_json::from_value(spec["csi"]["volumeAttributes"].clone()).unwrap_or_default();
    let fs = spec["csi"]["fsType"].as_str().unwrap_or_default();
    let block = spec["volumeMode"] == "Block";
    let capability = match block {
        true => csi::VolumeCapability::raw_block(Mode::SingleNodeWriter),
        false => csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter),
    };
    let (stage, target) = (site.path(&format!("s-{name}")), site.path(&format!("t-{name}")));
    std::fs::create_dir(&stage).unwrap();
    let mut node = server.client.node();
    let request = csi::NodeStageVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: text(&stage).to_owned(),
        volume_capability: Some(capability.clone()),
        volume_context: volume_context.clone().into_iter().collect(),
        ..Default::default()
    };
    node.node_stage_volume(request).await.unwrap();
    let request = csi::NodePublishVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: text(&stage).to_owned(),
        target_path: text(&target).to_owned(),
        volume_capability: Some(capability),
        volume_context: volume_context.into_iter().collect(),
        ..Default::default()
    };
    node.node_publish_volume(request).await.unwrap();
    let found = if block {
        let mut first = [0; 8];
        let mut device = std::fs::File::open(&target).unwrap();
        std::io::Read::read_exact(&mut device, &mut first).unwrap();
        String::from_utf8(first.to_vec()).unwrap()
    } else {
        std::fs::read_to_string(target.join("file")).unwrap()
    };
    let request = csi::NodeUnpublishVolumeRequest {
        volume_id: volume_id.clone(),
        target_path: text(&target).to_owned(),
    };
    node.node_unpublish_volume(request).await.unwrap();
    let staging_target_path = text(&stage).to_owned();
    let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
    node.node_unstage_volume(request).await.unwrap();
    found
}

#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
#[tokio::test]
async fn from_the_pool_alone_every_volume_is_listed_and_used_again_with_its_data(
    #[case] backend: &'static str,
) {
    let site = Site::new(backend, "xfs");
    let pool = site.pool.path().to_owned();
    for name in ["data", "Odd Name"] {
        site.ok(&["volume", "create", name, "--size", "320Mi"]);
        let here = site.path("here");
        site.ok(&["volume", "mount", name, text(&here)]);
        std::fs::write(here.join("file"), "precious").unwrap();
        site.ok(&["volume", "unmount", name]);
    }
    let statics = pool.join("static");
    let mut expected = 3;
    if backend == "loop" {
        expected += 1;
        site.ok(&["volume", "create", "raw", "--size", "16Mi", "--block"]);
        site.ok(&["volume", "mount", "raw", text(&site.path("raw")), "--block"]);
        std::fs::write(site.path("raw"), "precious").unwrap();
        site.ok(&["volume", "unmount", "raw"]);
        std::fs::copy(pool.join("volumes/data/image"), statics.join("old.img")).unwrap();
        site.ok(&["volume", "create", "short", "--size", "16Mi", "--block"]);
        let short = std::fs::File::options().write(true).open(pool.join("volumes/short/image"));
        short.unwrap().set_len(1 << 20).unwrap();
    } else {
        std::fs::create_dir(statics.join("old")).unwrap();
        std::fs::write(statics.join("old/file"), "precious").unwrap();
    }
    // What cannot be a volume.
    site.ok(&["volume", "create", "broken", "--size", "320Mi"]);
    std::fs::write(pool.join("volumes/broken/record.json"), "{").unwrap();
    std::fs::write(statics.join("Not A Name.txt"), "x").unwrap();

    for lost in ["state", "mounts", "run"] {
        let _ = std::fs::remove_dir_all(site.path(lost));
    }
    std::fs::remove_file(site.config()).unwrap();

    let (list, said, status) = adopt(&pool, &["-o", "json"]);
    assert_eq!(status, Some(8), "{said}");
    assert!(said.contains("volumes/broken") && said.contains("Not A Name.txt"), "{said}");
    assert_eq!(said.contains("volumes/short: its data ends"), backend == "loop", "{said}");
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(list.len(), expected, "{list:#?}");
    let of = |id: &str| list.iter().find(|v| v["id"] == id).unwrap_or_else(|| panic!("{list:#?}"));
    assert_eq!(of("default/data")["size"], 320 << 20);
    assert_eq!(of("default/data")["fs"], if backend == "loop" { "xfs" } else { "" });
    assert_eq!(of("default/old")["origin"], "static");
    assert!(list.iter().any(|volume| volume["name"] == "Odd Name"));
    if backend == "loop" {
        assert_eq!(of("default/raw")["access"], "block");
    }
    assert!(adopt(&pool, &[]).0.contains("default/data"));
    let other = adopt(&pool, &["-o", "json", "--pool-name", "fast"]).0;
    assert!(other.contains("fast/data"), "{other}");

    site.configure(&site.config(), &site.endpoint());
    let mut server = site.server();
    assert!(server.ready().await);
    let manifests = manifests(&pool);
    assert_eq!(manifests.len(), expected, "beside a running driver, too");
    for manifest in &manifests {
        assert_eq!(read_through(&server, &site, manifest).await, "precious", "{manifest:#}");
    }
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn what_is_no_pool_is_not_adopted_and_an_untouched_pool_is_adopted_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (_, said, status) = adopt(dir.path(), &[]);
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("its identity is missing") && said.contains("hint"), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let (_, said, status) = adopt(site.pool.path(), &["-o", "yaml"]);
    assert_eq!(status, Some(0), "{said}");
    // A backend's word names its driver here, too, and not that of another backend.
    let (yaml, _, _) = adopt(site.pool.path(), &["-o", "yaml", "--driver", "dir"]);
    assert!(yaml.contains("driver: dir.csi.larder.dev"), "{yaml}");
    let (_, said, status) = adopt(site.pool.path(), &["-o", "yaml", "--driver", "loop"]);
    assert!(status != Some(0) && said.contains("a pool of backend dir"), "{said}");
}
