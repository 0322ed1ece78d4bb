use super::*;
use crate::provision::outcome::State;
use rstest::rstest;
use serde_json::{Value, json};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A value with `changes` merged in; null removes.
fn with(mut base: Value, changes: Value) -> Value {
    fn merge(base: &mut Value, changes: Value) {
        match (base, changes) {
            (Value::Object(base), Value::Object(changes)) => {
                for (key, value) in changes {
                    if value.is_null() {
                        base.remove(&key);
                    } else {
                        merge(base.entry(key).or_insert(Value::Null), value);
                    }
                }
            }
            (base, value) => *base = value,
        }
    }
    merge(&mut base, changes);
    base
}

fn claim() -> Value {
    json!({
        "metadata": {"name": "new", "namespace": "shop", "uid": "n"},
        "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}},
    })
}

fn old() -> Value {
    json!({
        "metadata": {"name": "old", "namespace": "shop", "uid": "o"},
        "spec": {"storageClassName": "slow", "volumeName": "pv", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound"},
    })
}

fn volume() -> Value {
    json!({
        "metadata": {"name": "pv"},
        "spec": {"csi": {"driver": "d", "volumeHandle": "h"},
                 "claimRef": {"name": "old", "namespace": "shop", "uid": "o"}},
        "status": {"phase": "Bound"},
    })
}

fn class() -> StorageClass {
    read(json!({"metadata": {"name": "fast"}, "provisioner": "d"}))
}

fn can(all: &[ControllerCan]) -> Can {
    Can { controller: all.iter().copied().collect(), ..Can::default() }
}

#[rstest]
#[case(json!({}), Some(Source::None))]
#[case(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}), Some(Source::Claim(Key::new("shop", "a"))))]
#[case(json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "a"}}), Some(Source::Claim(Key::new("shop", "a"))))]
#[case(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": ""}}), None)]
#[case(json!({"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "a"}}), None)]
#[case(json!({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "a", "namespace": "b"}}), None)]
#[case(json!({"dataSourceRef": {"apiGroup": "x.io", "kind": "Hello", "name": "a"}}),
    Some(Source::Populator(DataSource { api_group: Some("x.io".into()), kind: "Hello".into(), name: "a".into(), namespace: None })))]
#[case(json!({"dataSource": {"kind": "VolumeSnapshot", "name": "a"}}),
    Some(Source::Populator(DataSource { kind: "VolumeSnapshot".into(), name: "a".into(), ..DataSource::default() })))]
fn the_source_of_a_claim(#[case] spec: Value, #[case] wanted: Option<Source>) {
    let claim: Claim = read(with(claim(), json!({"spec": spec})));
    let found = of(&claim, &can(&[ControllerCan::CloneVolume]), false);
    if wanted.is_none() {
        assert_eq!(found.as_ref().unwrap_err().state, State::Finished);
    }
    assert_eq!(found.ok(), wanted);
}

#[test]
fn another_namespace_needs_the_switch_and_a_grant() {
    let source = json!({"kind": "PersistentVolumeClaim", "name": "a", "namespace": "b"});
    let claim: Claim = read(with(claim(), json!({"spec": {"dataSourceRef": source}})));
    let found = of(&claim, &can(&[ControllerCan::CloneVolume]), true).unwrap();
    assert_eq!(found, Source::Claim(Key::new("b", "a")));
    let grant = |namespace: &str, from: &str, name: Option<&str>| -> ReferenceGrant {
        read(json!({
            "metadata": {"name": "g", "namespace": namespace},
            "spec": {
                "from": [{"group": "", "kind": "PersistentVolumeClaim", "namespace": from}],
                "to": [{"group": "", "kind": "PersistentVolumeClaim", "name": name}],
            },
        }))
    };
    for (grant, allowed) in [
        (grant("b", "shop", None), true),
        (grant("b", "shop", Some("a")), true),
        (grant("b", "shop", Some("other")), false),
        (grant("b", "elsewhere", None), false),
        (grant("shop", "shop", None), false),
    ] {
        assert_eq!(granted(&claim, &found, &[grant]).is_ok(), allowed);
    }
    let failure = granted(&claim, &found, &[]).unwrap_err();
    assert_eq!(failure.state, State::NoChange);
    assert!(granted(&claim, &Source::Claim(Key::new("shop", "a")), &[]).is_ok());
}

#[rstest]
#[case(json!({}), json!({}), json!({}), None)]
#[case(json!({}), json!({"status": {"phase": "Pending"}}), json!({}), Some("Pending"))]
#[case(json!({}), json!({"status": {"phase": "Lost"}}), json!({}), Some("Lost"))]
#[case(json!({}), json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), json!({}), Some("deleted"))]
#[case(json!({}), json!({"spec": {"storageClassName": null}}), json!({}), Some("it has no class"))]
#[case(json!({"spec": {"storageClassName": null}}), json!({}), json!({}), Some("new claim has no class"))]
#[case(json!({"spec": {"resources": {"requests": {"storage": "1023Mi"}}}}), json!({}), json!({}), Some("asks for"))]
#[case(json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}}), json!({}), json!({}), None)]
#[case(json!({}), json!({}), json!({"spec": {"csi": {"driver": "other"}}}), Some("not one of d"))]
#[case(json!({}), json!({}), json!({"spec": {"csi": null}}), Some("not one of d"))]
#[case(json!({}), json!({}), json!({"status": {"phase": "Released"}}), Some("Released"))]
#[case(json!({}), json!({}), json!({"spec": {"claimRef": {"uid": "x"}}}), Some("another claim"))]
#[case(json!({}), json!({}), json!({"spec": {"claimRef": {"name": "x"}}}), Some("another claim"))]
#[case(json!({}), json!({}), json!({"spec": {"claimRef": {"namespace": "x"}}}), Some("another claim"))]
#[case(json!({"spec": {"volumeMode": "Block"}}), json!({}), json!({}), Some("modes differ"))]
#[case(json!({"spec": {"volumeMode": "Filesystem"}}), json!({}), json!({}), None)]
fn a_clone_is_checked(
    #[case] new: Value,
    #[case] source: Value,
    #[case] of: Value,
    #[case] refused: Option<&str>,
) {
    let (new, source): (Claim, Claim) = (read(with(claim(), new)), read(with(old(), source)));
    let volume: Volume = read(with(volume(), of));
    let found = clone(&new, &class(), &Key::new("shop", "old"), Some(&source), Some(&volume));
    match (found, refused) {
        (Ok(found), None) => {
            let Some(csi::volume_content_source::Type::Volume(from)) = found.r#type else {
                panic!()
            };
            assert_eq!(from.volume_id, "h");
        }
        (Err(failure), Some(why)) => {
            assert_eq!(failure.state, State::NoChange);
            assert!(failure.message.contains(why), "{}", failure.message);
        }
        (found, refused) => panic!("{found:?}, not {refused:?}"),
    }
}

fn snapshot() -> Value {
    json!({
        "metadata": {"name": "s", "namespace": "shop", "uid": "su"},
        "status": {"boundVolumeSnapshotContentName": "c", "readyToUse": true, "restoreSize": "2Gi"},
    })
}

fn bound() -> Value {
    json!({
        "metadata": {"name": "c"},
        "spec": {"driver": "d", "volumeSnapshotRef": {"name": "s", "namespace": "shop", "uid": "su"}},
        "status": {"snapshotHandle": "sh"},
    })
}

const DELETED: &str = "2026-01-01T00:00:00Z";

#[rstest]
#[case(json!({}), json!({}), json!({}), None)]
#[case(json!({}), json!({"metadata": {"deletionTimestamp": DELETED}}), json!({}), Some("deleted"))]
#[case(json!({}), json!({"metadata": {"deletionTimestamp": DELETED, "finalizers": [SNAPSHOT_FINALIZER]}}), json!({}), None)]
#[case(json!({}), json!({"status": {"boundVolumeSnapshotContentName": ""}}), json!({}), Some("not bound"))]
#[case(json!({}), json!({"status": null}), json!({}), Some("not bound"))]
#[case(json!({}), json!({}), json!({"spec": {"volumeSnapshotRef": {"uid": "x"}}}), Some("another snapshot"))]
#[case(json!({}), json!({}), json!({"spec": {"driver": "x"}}), Some("driver x"))]
#[case(json!({}), json!({"status": {"readyToUse": false}}), json!({}), Some("not ready"))]
#[case(json!({}), json!({"status": {"readyToUse": null}}), json!({}), Some("not ready"))]
#[case(json!({}), json!({}), json!({"status": {"snapshotHandle": null}}), Some("no handle"))]
#[case(json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}}), json!({}), json!({}), Some("needs"))]
#[case(json!({}), json!({"status": {"restoreSize": null}}), json!({}), None)]
#[case(json!({"spec": {"volumeMode": "Block"}}), json!({}), json!({"spec": {"sourceVolumeMode": "Filesystem"}}), Some(MODE_CHANGE))]
#[case(json!({"spec": {"volumeMode": "Block"}}), json!({}), json!({"spec": {"sourceVolumeMode": "Filesystem"}, "metadata": {"annotations": {MODE_CHANGE: "true"}}}), None)]
#[case(json!({"spec": {"volumeMode": "Block"}}), json!({}), json!({"spec": {"sourceVolumeMode": "Filesystem"}, "metadata": {"annotations": {MODE_CHANGE: "yes"}}}), Some(MODE_CHANGE))]
#[case(json!({"spec": {"volumeMode": "Block"}}), json!({}), json!({}), None)]
fn a_restore_is_checked(
    #[case] new: Value,
    #[case] of: Value,
    #[case] bound_to: Value,
    #[case] refused: Option<&str>,
) {
    let new: Claim = read(with(claim(), new));
    let snapshot: Snapshot = read(with(snapshot(), of));
    let content: SnapshotContent = read(with(bound(), bound_to));
    let key = Key::new("shop", "s");
    let found = restore(&new, &class(), &key, (Some(&snapshot), Some(&content)), true);
    match (found, refused) {
        (Ok(found), None) => {
            let Some(csi::volume_content_source::Type::Snapshot(from)) = found.r#type else {
                panic!()
            };
            assert_eq!(from.snapshot_id, "sh");
        }
        (Err(failure), Some(why)) => {
            assert_eq!(failure.state, State::NoChange);
            assert!(failure.message.contains(why), "{}", failure.message);
        }
        (found, refused) => panic!("{found:?}, not {refused:?}"),
    }
    assert!(restore(&new, &class(), &key, (None, None), true).is_err());
}
