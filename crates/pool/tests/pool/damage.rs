//! Records that cannot be read, of newer releases, lost, or of somebody else.

use crate::support::{Bench, Calls, spec, volume};
use larder_model::{Backend, Connect, Kind, Provision, volume::FormatState};
use rstest::rstest;
use std::fs;

#[rstest]
#[case::empty("")]
#[case::no_json("\0\0\0\0")]
#[case::half("{\"format\":1,\"id\":\"67e5")]
#[case::other_json("[1, 2]")]
#[case::fields_missing("{\"format\":1}")]
#[case::newer("{\"format\":2}")]
#[tokio::test]
async fn a_volume_with_a_broken_record_is_refused_and_the_others_go_on(#[case] text: &str) {
    let bench = Bench::default();
    let backend = bench.start().await;
    for id in ["a/fine", "a/bad"] {
        backend.create(&spec(id)).await.unwrap();
    }
    backend.cut("a/s", "a/bad").await.unwrap();
    drop(backend);
    let shelves = [bench.pool("a").join("volumes/bad"), bench.pool("a").join("snapshots/s")];
    let good = shelves.each_ref().map(|folder| fs::read(folder.join("record.json")).unwrap());
    for folder in &shelves {
        fs::write(folder.join("record.json"), text).unwrap();
    }
    let backend = bench.start().await;
    for fault in [
        backend.get("a/bad").await.map(drop),
        backend.create(&spec("a/bad")).await.map(drop),
        backend.delete("a/bad").await,
        backend.grow("a/bad", larder_model::Bytes::gib(9)).await.map(drop),
        backend.cut("a/t", "a/bad").await.map(drop),
        backend.format_state(&volume("a/bad")).await.map(drop),
        backend.set_format_state(&volume("a/bad"), FormatState::Raw).await,
        backend.cut("a/s", "a/bad").await.map(drop),
        backend.uncut("a/s").await,
        // The name is taken, for all that is known.
        backend.create(&spec("b/bad")).await.map(drop).map_err(|f| match f.kind() {
            Kind::Conflict => f.with_kind(Kind::Corrupt),
            _ => f,
        }),
    ] {
        assert_eq!(fault.as_ref().unwrap_err().kind(), Kind::Corrupt, "{fault:?}");
    }
    if text.contains('2') && !text.starts_with('[') {
        let text = backend.get("a/bad").await.unwrap_err().to_string();
        assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
    }
    assert_eq!(backend.ids().await, ["a/fine"]);
    backend.create(&spec("a/new")).await.unwrap();
    backend.delete("a/fine").await.unwrap();
    let status = &backend.pool_status().await[0];
    assert_eq!((status.volumes, status.warnings.len()), (2, 2), "{status:?}");
    let health = backend.storage_health().await;
    assert_eq!(health[0].reason, "RecordsUnreadable");
    for folder in &shelves {
        assert_eq!(fs::read_to_string(folder.join("record.json")).unwrap(), text, "untouched");
        assert!(folder.join("data/content").exists());
    }
    // A restored record works at once.
    for (folder, good) in shelves.iter().zip(good) {
        fs::write(folder.join("record.json"), good).unwrap();
    }
    backend.get("a/bad").await.unwrap();
    backend.uncut("a/s").await.unwrap();
    backend.delete("a/bad").await.unwrap();
    assert_eq!(bench.state().len(), 1);
    assert!(backend.storage_health().await.is_empty());
}

#[tokio::test]
async fn what_a_newer_release_has_added_to_a_record_is_kept() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    drop(backend);
    let record = bench.pool("a").join("volumes/v/record.json");
    let text = fs::read_to_string(&record).unwrap();
    let added = "{\"encryption\":{\"cipher\":\"aes\",\"slots\":[1,2]},";
    fs::write(&record, text.replacen('{', added, 1)).unwrap();
    let backend = bench.start().await;
    backend.grow("a/v", larder_model::Bytes::gib(2)).await.unwrap();
    backend.set_format_state(&volume("a/v"), FormatState::Raw).await.unwrap();
    let after: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!(after["encryption"]["slots"][1], 2);
    assert_eq!(after["size"], 2_u64 << 30);
    assert_eq!(after["fileSystem"]["state"], "raw");
}

#[tokio::test]
async fn a_folder_without_a_record_is_never_taken_over() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let volumes = bench.pool("a").join("volumes");
    // One appears while we run, one is there at the start, one is a file, one is empty.
    for name in ["mine", "empty"] {
        fs::create_dir(volumes.join(name)).unwrap();
    }
    fs::write(volumes.join("mine/precious"), "x").unwrap();
    fs::write(volumes.join("file"), "x").unwrap();
    fs::create_dir(volumes.join("Not A Name")).unwrap();
    let mut backend = backend;
    for _ in 0..2 {
        for name in ["mine", "empty", "file"] {
            let fault = backend.create(&spec(&format!("a/{name}"))).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Corrupt, "{name}: {fault}");
            assert!(volumes.join(name).exists());
        }
        assert_eq!(backend.ids().await, [""; 0]);
        drop(backend);
        backend = bench.start().await;
    }
    for name in ["mine", "empty", "file"] {
        let fault = backend.delete(&format!("a/{name}")).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Corrupt, "{name}: {fault}");
    }
    assert_eq!(fs::read_to_string(volumes.join("mine/precious")).unwrap(), "x");
    assert!(bench.tickets().is_empty(), "what was begun was taken back");
}

#[tokio::test]
async fn a_volume_whose_folder_vanished_can_be_deleted_and_made_again() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    fs::remove_dir_all(bench.pool("a").join("volumes/v")).unwrap();
    let health = backend.health().unwrap().volume_health(&volume("a/v")).await.unwrap();
    assert_eq!(health[0].reason, "DataMissing");
    backend.delete("a/v").await.unwrap();
    assert_eq!(backend.get("a/v").await.unwrap_err().kind(), Kind::NotFound);
    backend.create(&spec("a/v")).await.unwrap();
}

#[tokio::test]
async fn temporary_files_of_a_killed_write_go_with_the_next() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let folder = bench.pool("a").join("volumes/v");
    fs::write(folder.join(".record.json.tmp-1-2-3"), "half").unwrap();
    fs::write(bench.pool("a").join(".larder/scratch/junk"), "half").unwrap();
    backend.set_format_state(&volume("a/v"), FormatState::Raw).await.unwrap();
    drop(backend);
    let _backend = bench.start().await;
    assert_eq!(bench.state().len(), 1);
}

#[tokio::test]
async fn a_deletion_that_finds_its_pool_damaged_does_not_say_that_the_volume_is_gone() {
    let bench = Bench::new(&["a"]);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    fs::remove_dir(bench.pool("a").join("deleting")).unwrap();
    for fault in [backend.delete("a/v").await.unwrap_err(), backend.uncut("a/s").await.unwrap_err()]
    {
        assert_eq!(fault.kind(), Kind::Internal, "{fault}");
    }
    assert_eq!(backend.ids().await, ["a/v"], "it is there, and known");
    assert_eq!(backend.snapshot_ids().await, ["a/s"]);
    // A start makes the folder again.
    drop(backend);
    let backend = bench.start().await;
    backend.delete("a/v").await.unwrap();
    backend.uncut("a/s").await.unwrap();
    crate::support::settled(&bench).await;
    assert_eq!(bench.state().len(), 0);
}
