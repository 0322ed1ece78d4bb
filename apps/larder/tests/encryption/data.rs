//! Copies of encrypted volumes.

use crate::lab::{KEY, Lab, each, key};
use larder_proto::csi::{self, volume_content_source::*};
use std::fs;
use tonic::Code;

pub(crate) fn copy(lab: &Lab, name: &str, source: Type) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
        ..lab.request(name)
    }
}

pub(crate) fn of_snapshot() -> Type {
    Type::Snapshot(SnapshotSource { snapshot_id: "default/s".to_owned() })
}

fn of_volume() -> Type {
    Type::Volume(VolumeSource { volume_id: "default/a".to_owned() })
}

/// What the record of the snapshot says.
pub(crate) fn consistency(lab: &Lab) -> String {
    let record = fs::read_to_string(lab.site.pool.path().join("snapshots/s/record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    record["medium"]["consistency"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_volume_is_frozen_for_its_snapshot_and_all_copies_open_at_once() {
    for pool in each(&["xfs", "ext4"]) {
        let lab = Lab::on(pool, false).await;
        lab.create("a").await;
        let target = lab.open("a", KEY).await;
        // Not flushed: only freezing brings it into the copy.
        fs::write(target.join("data"), "precious").unwrap();
        lab.snapshot("a", "s").await;
        assert_eq!(consistency(&lab), "frozen");
        fs::write(target.join("later"), "x").unwrap();
        lab.make(copy(&lab, "restored", of_snapshot())).await.unwrap();
        lab.make(copy(&lab, "cloned", of_volume())).await.unwrap();
        for (volume, later) in [("restored", false), ("cloned", true)] {
            let target = lab.open(volume, KEY).await;
            assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
            assert_eq!(target.join("later").exists(), later);
        }
        assert_eq!(lab.opened().len(), 3);
        let refused = lab.stage("cloned", key("wrong")).await;
        assert!(refused.is_ok(), "it is staged: {refused:?}");
        // A copy has its source's bytes.
        let mut plain = copy(&lab, "plain", of_snapshot());
        plain.parameters = crate::lab::plain();
        let refused = lab.make(plain).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        for volume in ["a", "restored", "cloned"] {
            lab.close(volume).await;
        }
        lab.delete_snapshot("s").await;
        for volume in ["a", "restored", "cloned"] {
            lab.delete(volume).await;
        }
        assert!(lab.is_clean());
    }
}
