//! Where the pools have room.

use serde_json::{Value, json};

use crate::support::{COUNTS, PATIENCE, SYSTEM, claim, clean, cluster, counts_on, full, pod};

#[test]
fn pods_go_where_their_volumes_have_room_and_wait_where_none_has() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("room").unwrap();
    let full = full(&cluster).name();
    let told = |list: &Value| {
        let of_class = list["items"].as_array()?.iter().filter(|c| c["storageClassName"] == "room");
        let (mut none, mut some) = (0, 0);
        for object in of_class {
            let here = object["nodeTopology"]["matchLabels"].as_object()?;
            let here = here.values().any(|node| node == full);
            match (here, object["capacity"] == "0") {
                (true, true) => none += 1,
                (false, false) => some += 1,
                _ => return None,
            }
        }
        (none == 1 && some == 1).then_some(())
    };
    let words = ["csistoragecapacities", "--namespace", SYSTEM];
    cluster.wait_for(&words, PATIENCE, told).unwrap();

    for name in ["a", "b", "c"] {
        namespace.apply(&claim(name, "room").to_string()).unwrap();
        namespace.apply(&pod(name, name, false, COUNTS).to_string()).unwrap();
    }
    for name in ["a", "b", "c"] {
        let running = namespace.wait_for_pod(name, "Running", PATIENCE).unwrap();
        assert_ne!(running["spec"]["nodeName"], full, "{name} is where there is no room");
        counts_on(&namespace, name);
    }

    let mut large = claim("large", "room");
    large["spec"]["resources"]["requests"]["storage"] = json!("90Ti");
    namespace.apply(&large.to_string()).unwrap();
    namespace.apply(&pod("large", "large", false, COUNTS).to_string()).unwrap();
    let waits = |pod: &Value| {
        let conditions = pod.pointer("/status/conditions")?.as_array()?;
        let placed = conditions.iter().find(|c| c["type"] == "PodScheduled")?;
        let why = placed["message"].as_str()?;
        why.contains("did not have enough free storage").then_some(())
    };
    namespace.wait_for(&["pod", "large"], PATIENCE, waits).unwrap();
    let words = ["persistentvolumeclaim", "large", "--namespace", namespace.name()];
    let pending = cluster.get(words).unwrap();
    assert_eq!(pending["status"]["phase"], "Pending");
    assert!(pending.pointer("/spec/volumeName").is_none(), "{pending:#}");
    clean(&cluster, &namespace);
}
