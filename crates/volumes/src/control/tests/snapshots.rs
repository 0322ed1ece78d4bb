//! Snapshots.

use super::*;

#[tokio::test]
async fn a_repeated_snapshot_is_the_same_one_with_its_current_readiness() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    let first = engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    assert_eq!((first.id.as_str(), first.source.as_str()), ("default/s", "default/a"));
    assert_eq!(first.topology, [at("node-1")]);
    assert!(first.ready);
    assert_eq!(engine.create_snapshot(snapshot("s", "default/a")).await.unwrap(), first);
    backend.set_ready(&snapshot_id("default/s"), false);
    assert!(!engine.create_snapshot(snapshot("s", "default/a")).await.unwrap().ready);
}

#[tokio::test]
async fn a_snapshot_name_is_taken_in_every_pool() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    let elsewhere = CreateVolume { parameters: map(&[("pool", "other")]), ..create("c") };
    engine.create_volume(elsewhere).await.unwrap();
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    for source in ["default/b", "other/c"] {
        let fault = engine.create_snapshot(snapshot("s", source)).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Conflict);
        assert!(fault.to_string().contains("snapshot default/s of volume default/a"), "{fault}");
    }
    engine.create_snapshot(snapshot("s2", "other/c")).await.unwrap();
}

#[tokio::test]
async fn a_repeated_snapshot_is_found_when_its_volume_is_gone() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    let first = engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    delete(&engine, "default/a").await.unwrap();
    assert_eq!(engine.create_snapshot(snapshot("s", "default/a")).await.unwrap(), first);
    assert_eq!(kind(engine.create_snapshot(snapshot("t", "default/a")).await), Kind::NotFound);
}

#[tokio::test]
async fn snapshots_are_refused_for_bad_names_sources_and_parameters() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    for (name, source, expected) in [
        ("", "default/a", Kind::Invalid),
        ("a\0", "default/a", Kind::Invalid),
        ("s", "", Kind::Invalid),
        ("s", "what?", Kind::NotFound),
        ("s", "default/none", Kind::NotFound),
        ("s", "gone/a", Kind::Unavailable),
    ] {
        assert_eq!(
            kind(engine.create_snapshot(snapshot(name, source)).await),
            expected,
            "{name:?}"
        );
    }
    let with =
        |key: &str| CreateSnapshot { parameters: map(&[(key, "x")]), ..snapshot("s", "default/a") };
    assert_eq!(kind(engine.create_snapshot(with("speed")).await), Kind::Invalid);
    engine.create_snapshot(with("csi.storage.k8s.io/volumesnapshot/name")).await.unwrap();

    let place = |requisite: Vec<Segments>| CreateSnapshot {
        topology: Some(TopologyRequirement { requisite, preferred: Vec::new() }),
        ..snapshot("t", "default/a")
    };
    assert_eq!(kind(engine.create_snapshot(place(vec![at("node-2")])).await), Kind::Exhausted);
    assert_eq!(kind(engine.create_snapshot(place(Vec::new())).await), Kind::Invalid);
    engine.create_snapshot(place(vec![at("node-1")])).await.unwrap();
    backend.lose_pool("other", true);
    engine.create_snapshot(snapshot("u", "default/a")).await.unwrap();
}

#[tokio::test]
async fn without_room_no_snapshot_is_left_behind() {
    let (engine, backend) =
        engine_of(Memory { pool_size: Bytes::mib(1), ..Default::default() }).await;
    make(&engine, "a").await;
    let before = backend.inventory();
    assert_eq!(kind(engine.create_snapshot(snapshot("s", "default/a")).await), Kind::Exhausted);
    assert_eq!(backend.inventory(), before);
}

#[tokio::test]
async fn deleting_snapshots_is_repeatable() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    backend.set_in_use("default/s", true);
    assert_eq!(kind(delete_snapshot(&engine, "default/s").await), Kind::Precondition);
    backend.set_in_use("default/s", false);
    for absent in ["default/s", "default/s", "default/none", "what?", "../s"] {
        delete_snapshot(&engine, absent).await.unwrap();
    }
    assert_eq!(kind(delete_snapshot(&engine, "").await), Kind::Invalid);
    assert_eq!(kind(delete_snapshot(&engine, "gone/s").await), Kind::Unavailable);
    assert_eq!(kind(engine.get_snapshot("default/s").await), Kind::NotFound);
    assert_eq!(kind(engine.get_snapshot("what?").await), Kind::NotFound);
    assert_eq!(kind(engine.get_snapshot("").await), Kind::Invalid);
}
