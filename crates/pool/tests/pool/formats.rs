//! Records of every release can be read, and nothing that can stand in a file makes us stumble.
//!
//! `samples/format-N` holds what releases have written. They are never changed, only added to.

use crate::support::{Bench, Calls, snapshot, spec, volume};
use larder_model::{
    Bytes, Connect, FsType, Provision,
    volume::{ContentSource, FormatState},
};
use larder_pool::{Identity, SnapshotRecord, VolumeRecord};
use proptest::prelude::*;
use std::fs;

const IDENTITY: &str = include_str!("samples/format-1/larder-pool.json");
const VOLUME: &str = include_str!("samples/format-1/volume.json");
/// With the fields that were added to format 1 since.
const VOLUME_NOTED: &str = include_str!("samples/format-1/volume-noted.json");
const SNAPSHOT: &str = include_str!("samples/format-1/snapshot.json");

#[tokio::test]
async fn a_pool_of_format_1_is_served() {
    let bench = Bench::new(&["a"]);
    let pool = bench.pool("a");
    for (folder, record) in [("volumes/restored", VOLUME), ("snapshots/snap-1", SNAPSHOT)] {
        fs::create_dir_all(pool.join(folder).join("data")).unwrap();
        fs::write(pool.join(folder).join("record.json"), record).unwrap();
    }
    fs::write(pool.join("larder-pool.json"), IDENTITY).unwrap();
    let backend = bench.start().await;
    let status = &larder_model::Backend::pool_status(&backend).await[0];
    assert_eq!(status.identity.as_deref(), Some("5f0c7c9e-6d0f-4c9a-9b0e-0d3f2f6a8c11"));
    assert!(status.warnings.is_empty(), "{status:?}");
    let found = backend.get("a/restored").await.unwrap();
    assert_eq!((found.name.as_str(), found.capacity), ("Restored Data", Bytes::gib(2)));
    assert_eq!(found.source, Some(ContentSource::Snapshot(snapshot("old-pool/snap-0"))));
    assert_eq!(found.context["fs"], "xfs");
    assert!(found.ephemeral);
    let state = backend.format_state(&volume("a/restored")).await.unwrap();
    assert_eq!(state, FormatState::Formatted { fs: FsType::Xfs });
    let snap = backend.snapshots().unwrap().get_snapshot(&snapshot("a/snap-1")).await.unwrap();
    assert_eq!((snap.source.as_str(), snap.size), ("a/pvc-1", Bytes::gib(2)));
    assert_eq!(snap.group.as_deref(), Some("a/group-1"));
}

#[test]
fn what_is_written_today_is_what_the_samples_say() {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(sample: &str) {
        let record: T = serde_json::from_str(sample).unwrap();
        let sample: serde_json::Value = serde_json::from_str(sample).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), sample);
    }
    same::<Identity>(IDENTITY);
    same::<VolumeRecord>(VOLUME);
    same::<VolumeRecord>(VOLUME_NOTED);
    same::<SnapshotRecord>(SNAPSHOT);
}

#[tokio::test]
async fn a_new_record_has_the_fields_of_its_format() {
    let bench = Bench::new(&["a"]);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let text = fs::read(bench.pool("a").join("volumes/v/record.json")).unwrap();
    let record: serde_json::Map<_, _> = serde_json::from_slice(&text).unwrap();
    type Fields = serde_json::Map<String, serde_json::Value>;
    let mut sample: Fields = serde_json::from_str(VOLUME).unwrap();
    sample.extend(serde_json::from_str::<Fields>(VOLUME_NOTED).unwrap());
    for (key, value) in &record {
        let known = sample.get(key).unwrap_or_else(|| panic!("{key} needs a sample"));
        assert_eq!(
            std::mem::discriminant(known),
            std::mem::discriminant(value),
            "{key} has another type than in format 1"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: (ProptestConfig::default().cases / 16).max(48), ..ProptestConfig::default() })]

    /// Whatever stands in a record: its volume is whole or `Corrupt`, and the other one is fine.
    #[test]
    fn random_bytes_in_a_record_are_survived(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            // A good record with one piece replaced.
            (0..VOLUME.len(), "\\PC{0,8}").prop_map(|(at, piece)| {
                let mut text = VOLUME.as_bytes().to_vec();
                let end = (at + piece.len()).min(text.len());
                text.splice(at..end, piece.bytes());
                text
            }),
        ]
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(&["a"]);
            let backend = bench.start().await;
            backend.create(&spec("a/fine")).await.unwrap();
            backend.create(&spec("a/odd")).await.unwrap();
            drop(backend);
            let record = bench.pool("a").join("volumes/odd/record.json");
            fs::write(&record, &bytes).unwrap();
            let backend = bench.start().await;
            backend.get("a/fine").await.unwrap();
            match backend.get("a/odd").await {
                Ok(found) => assert!(backend.ids().await.contains(&found.id.to_string())),
                Err(fault) => {
                    assert_eq!(fault.kind(), larder_model::Kind::Corrupt, "{fault}");
                    assert_eq!(backend.ids().await, ["a/fine"]);
                    assert!(backend.delete("a/odd").await.is_err(), "never deleted");
                    assert_eq!(fs::read(&record).unwrap(), bytes);
                }
            }
        });
    }
}
