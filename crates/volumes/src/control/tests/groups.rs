//! Group snapshots.

use super::*;
use larder_model::volume::GroupSnapshot;

async fn two_volumes() -> (ControlEngine, MemoryBackend) {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    (engine, backend)
}

fn members(group: &GroupSnapshot) -> GroupMembers {
    GroupMembers {
        group_snapshot_id: group.id.to_string(),
        snapshot_ids: group.snapshots.iter().map(|s| s.id.to_string()).collect(),
    }
}

#[tokio::test]
async fn a_group_is_the_same_whatever_the_order_of_its_volumes() {
    let (engine, _) = two_volumes().await;
    let first = engine.create_group(group("g", &["default/b", "default/a"])).await.unwrap();
    assert_eq!(first.id.as_str(), "default/g");
    let sources: Vec<_> = first.snapshots.iter().map(|s| s.source.as_str()).collect();
    assert_eq!(sources, ["default/a", "default/b"]);
    for snapshot in &first.snapshots {
        assert_eq!(snapshot.group.as_deref(), Some("default/g"));
        assert!(snapshot.id.native().as_str().starts_with("g-"), "{}", snapshot.id);
        assert_eq!(snapshot.topology, [at("node-1")]);
    }
    let again = group("g", &["default/a", "default/b", "default/a"]);
    assert_eq!(engine.create_group(again).await.unwrap(), first);
    assert_eq!(engine.get_group(members(&first)).await.unwrap(), first);
}

#[tokio::test]
async fn a_group_name_is_taken_by_its_set_of_volumes() {
    let (engine, _) = two_volumes().await;
    engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    assert_eq!(kind(engine.create_group(group("g", &["default/a"])).await), Kind::Conflict);
    let elsewhere = CreateVolume { parameters: map(&[("pool", "other")]), ..create("c") };
    engine.create_volume(elsewhere).await.unwrap();
    assert_eq!(kind(engine.create_group(group("g", &["other/c"])).await), Kind::Conflict);
    let mixed = group("h", &["default/a", "other/c"]);
    assert_eq!(kind(engine.create_group(mixed).await), Kind::Precondition);
}

#[tokio::test]
async fn a_repeated_group_is_found_when_its_volumes_are_gone() {
    let (engine, _) = two_volumes().await;
    let first = engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    delete(&engine, "default/a").await.unwrap();
    let again = group("g", &["default/a", "default/b"]);
    assert_eq!(engine.create_group(again).await.unwrap(), first);
}

#[tokio::test]
async fn long_group_names_give_legal_and_distinct_members() {
    let (engine, _) = two_volumes().await;
    for name in ["x".repeat(128), "Ein Name mit Leerzeichen und Umlauten: äöü".into()] {
        let made = engine.create_group(group(&name, &["default/a", "default/b"])).await.unwrap();
        assert_ne!(made.snapshots[0].id, made.snapshots[1].id);
    }
}

#[tokio::test]
async fn groups_are_refused_for_what_is_missing() {
    let (engine, backend) = two_volumes().await;
    for (name, sources, expected) in [
        ("", &["default/a"][..], Kind::Invalid),
        ("g", &[], Kind::Invalid),
        ("g", &["default/a", ""], Kind::Invalid),
        ("g", &["default/a", "what?"], Kind::NotFound),
        ("g", &["default/a", "default/none"], Kind::NotFound),
        ("g", &["gone/a"], Kind::Unavailable),
    ] {
        let result = engine.create_group(group(name, sources)).await;
        assert_eq!(kind(result), expected, "{name:?} {sources:?}");
    }
    assert_eq!(backend.calls("ensure_group"), 0);
}

#[tokio::test]
async fn without_room_no_member_is_left_behind() {
    let (engine, backend) =
        engine_of(Memory { pool_size: Bytes::mib(3), ..Default::default() }).await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    let before = backend.inventory();
    // There is room for one member but not for two: nothing may stay.
    let fault = engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(backend.inventory(), before);
}

#[tokio::test]
async fn a_member_is_not_deleted_alone() {
    let (engine, _) = two_volumes().await;
    let made = engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    let member = made.snapshots[0].id.as_str();
    let fault = delete_snapshot(&engine, member).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("belongs to group default/g"), "{fault}");
    engine.get_snapshot(member).await.unwrap();
}

#[tokio::test]
async fn deleting_a_group_takes_all_members_and_is_repeatable() {
    let (engine, backend) = two_volumes().await;
    let made = engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    let right = members(&made);
    let with = |ids: &[&str]| GroupMembers {
        snapshot_ids: ids.iter().map(|s| (*s).to_owned()).collect(),
        ..right.clone()
    };
    let one = made.snapshots[0].id.as_str();
    for wrong in [&[one][..], &[one, "default/none"], &[one, "what?"], &[], &[""]] {
        assert_eq!(kind(engine.delete_group(with(wrong)).await), Kind::Invalid, "{wrong:?}");
        assert_eq!(kind(engine.get_group(with(wrong)).await), Kind::Invalid, "{wrong:?}");
    }
    backend.set_in_use("default/g", true);
    assert_eq!(kind(engine.delete_group(right.clone()).await), Kind::Precondition);
    backend.set_in_use("default/g", false);
    engine.delete_group(right.clone()).await.unwrap();
    assert_eq!(kind(engine.get_snapshot(one).await), Kind::NotFound);
    engine.delete_group(right.clone()).await.unwrap();
    engine.delete_group(with(&["what?"])).await.unwrap();
    assert_eq!(kind(engine.get_group(right.clone()).await), Kind::NotFound);
    for (id, deleted, got) in [
        ("what?", None, Kind::NotFound),
        ("", Some(Kind::Invalid), Kind::Invalid),
        ("gone/g", Some(Kind::Unavailable), Kind::Unavailable),
    ] {
        let other = GroupMembers { group_snapshot_id: id.into(), ..right.clone() };
        let result = engine.delete_group(other.clone()).await;
        assert_eq!(result.err().map(|f| f.kind()), deleted, "{id:?}");
        assert_eq!(kind(engine.get_group(other).await), got, "{id:?}");
    }
}
