//! What `get volumes` shows.

use super::world;
use crate::why::listed;
use serde_json::{Value, json};

#[test]
fn a_volume_is_listed_with_claim_node_users_and_what_is_not_settled() {
    let mut see = world::works();
    see.claims[0]["status"]["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True"}, {"type": "Resizing", "status": "False"}]);
    let rows = listed(&see);
    let row = &rows[0];
    assert_eq!(
        (row.volume.as_str(), row.claim.as_str(), row.size.as_str()),
        ("pv-1", "ns/data", "1Gi")
    );
    assert_eq!(
        (row.nodes.as_slice(), row.used_by.as_slice()),
        (&["n1".to_owned()][..], &["web".to_owned()][..])
    );
    assert_eq!(row.conditions, ["FileSystemResizePending"]);
    assert_eq!((row.state.as_str(), row.driver.as_str(), row.handle.as_str()), ("Bound", "d", "h"));
}

#[test]
fn volumes_without_csi_are_left_out_and_released_ones_say_so() {
    let mut see = world::works();
    see.claims.clear();
    see.volumes[0]["status"]["phase"] = json!("Released");
    see.volumes[0]["spec"]["nodeAffinity"] = Value::Null;
    see.volumes.push(json!({"metadata": {"name": "nfs"}, "spec": {"nfs": {}}}));
    let rows = listed(&see);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].conditions, ["its claim is gone"]);
    assert_eq!(rows[0].nodes, ["n1"], "where it is attached");
    assert!(rows[0].used_by.is_empty());
}
