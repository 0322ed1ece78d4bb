//! Volumes from claim to end.

use std::time::Instant;

use serde_json::json;

use crate::support::{PATIENCE, bound, claim, clean, cluster, node_of, pod};

#[test]
fn a_claim_of_either_driver_and_binding_mode_gets_a_volume_that_keeps_its_data_and_leaves_nothing()
{
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("life").unwrap();
    for class in ["dir-late", "dir-now", "loop-late", "loop-now"] {
        let began = Instant::now();
        namespace.apply(&claim(class, class).to_string()).unwrap();
        let writer = format!("{class}-writer");
        let script = "echo kept >/data/file; sync /data/file; sleep 1000";
        namespace.apply(&pod(&writer, class, false, script).to_string()).unwrap();
        namespace.wait_for_pod(&writer, "Running", PATIENCE).unwrap();
        println!("{class}: claim and pod run after {:.2?}", began.elapsed());
        bound(&namespace, class);
        namespace.kubectl(["delete", "pod", &writer]).unwrap();
        let reader = format!("{class}-reader");
        let reads = pod(&reader, class, false, "cat /data/file");
        namespace.apply(&reads.to_string()).unwrap();
        assert_eq!(namespace.output_of_pod(&reader, PATIENCE).unwrap(), "kept\n");
    }
    let took = clean(&cluster, &namespace);
    println!("four volumes are gone after {took:.2?}");
}

#[test]
fn a_block_volume_keeps_what_is_written_to_it() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("block").unwrap();
    let mut raw = claim("raw", "loop-late");
    raw["spec"]["volumeMode"] = json!("Block");
    namespace.apply(&raw.to_string()).unwrap();
    let script = "echo kept | dd of=/dev/data bs=512 seek=7 conv=sync,fsync 2>/dev/null";
    namespace.apply(&pod("writes", "raw", true, script).to_string()).unwrap();
    namespace.wait_for_pod("writes", "Succeeded", PATIENCE).unwrap();
    let script = "dd if=/dev/data bs=512 skip=7 count=1 2>/dev/null | head -n 1";
    namespace.apply(&pod("reads", "raw", true, script).to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("reads", PATIENCE).unwrap(), "kept\n");
    clean(&cluster, &namespace);
}

#[test]
fn a_claim_for_one_pod_has_one_pod() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("one-pod").unwrap();
    let mut mine = claim("mine", "dir-late");
    mine["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    namespace.apply(&mine.to_string()).unwrap();
    namespace.apply(&pod("first", "mine", false, "sleep 1000").to_string()).unwrap();
    namespace.wait_for_pod("first", "Running", PATIENCE).unwrap();
    namespace.apply(&pod("second", "mine", false, "sleep 1000").to_string()).unwrap();
    let refused = namespace.wait_for(&["pod", "second"], PATIENCE, |pod| {
        let conditions = pod.pointer("/status/conditions")?.as_array()?;
        let placed = conditions.iter().find(|c| c["type"] == "PodScheduled")?;
        (placed["status"] == "False").then(|| placed["message"].to_string())
    });
    let refused = refused.unwrap();
    assert!(refused.contains("ReadWriteOncePod"), "{refused}");
    namespace.kubectl(["delete", "pod", "first"]).unwrap();
    namespace.wait_for_pod("second", "Running", PATIENCE).unwrap();
    clean(&cluster, &namespace);
}

#[test]
fn a_clone_has_the_data_of_its_source_and_a_life_of_its_own() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("clone").unwrap();
    namespace.apply(&claim("source", "loop-late").to_string()).unwrap();
    let script = "echo kept >/data/file; sync /data/file";
    namespace.apply(&pod("writes", "source", false, script).to_string()).unwrap();
    let writes = namespace.wait_for_pod("writes", "Succeeded", PATIENCE).unwrap();
    let node = node_of(&cluster, &writes).name().to_owned();

    let mut copy = claim("copy", "loop-late");
    copy["spec"]["dataSource"] = json!({ "kind": "PersistentVolumeClaim", "name": "source" });
    namespace.apply(&copy.to_string()).unwrap();
    let mut reads = pod("reads", "copy", false, "cat /data/file; echo other >/data/file");
    // Where its source is: it could not be made elsewhere.
    reads["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    namespace.apply(&reads.to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("reads", PATIENCE).unwrap(), "kept\n");

    // The source is free again, and goes while its copy stays.
    namespace.kubectl(["delete", "pods", "--all"]).unwrap();
    let again = pod("again", "source", false, "cat /data/file");
    namespace.apply(&again.to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("again", PATIENCE).unwrap(), "kept\n");
    namespace.kubectl(["delete", "pod", "again"]).unwrap();
    namespace.kubectl(["delete", "persistentvolumeclaim", "source", "--timeout=180s"]).unwrap();
    namespace.apply(&pod("last", "copy", false, "cat /data/file").to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("last", PATIENCE).unwrap(), "other\n");
    clean(&cluster, &namespace);
}
