//! Volumes that grow and change under running pods.

use serde_json::{Value, json};

use crate::support::{
    COUNTS, PATIENCE, bound, claim, clean, cluster, counts_on, event, larder, node_of, pod,
};

/// The size that a file system at /data has in a pod, in KiB.
fn size(namespace: &larder_cluster::Namespace<'_>, name: &str) -> u64 {
    let text = namespace.kubectl(["exec", name, "--", "df", "-kP", "/data"]).unwrap();
    text.lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_volume_grows_while_a_pod_writes_to_it() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("grow").unwrap();
    for (class, from, to) in [("loop-xfs", "320Mi", "640Mi"), ("dir-now", "32Mi", "96Mi")] {
        let mut small = claim(class, class);
        small["spec"]["resources"]["requests"]["storage"] = json!(from);
        namespace.apply(&small.to_string()).unwrap();
        namespace.apply(&pod(class, class, false, COUNTS).to_string()).unwrap();
        namespace.wait_for_pod(class, "Running", PATIENCE).unwrap();
        counts_on(&namespace, class);
        let before = size(&namespace, class);
        let more = json!({ "spec": { "resources": { "requests": { "storage": to } } } });
        let words = ["patch", "persistentvolumeclaim", class, "--patch", &more.to_string()];
        namespace.kubectl(words).unwrap();
        let has = |claim: &Value| {
            let status = &claim["status"];
            let over = status["capacity"]["storage"] == to
                && status["allocatedResourceStatuses"].is_null()
                && status["conditions"].is_null();
            over.then(|| claim.clone())
        };
        let grown = namespace.wait_for(&["persistentvolumeclaim", class], PATIENCE, has).unwrap();
        assert_eq!(grown["status"]["allocatedResources"]["storage"], to);
        let volume = cluster.get(["persistentvolume", &bound(&namespace, class)]).unwrap();
        assert_eq!(volume["spec"]["capacity"]["storage"], to);
        counts_on(&namespace, class);
        if class == "loop-xfs" {
            let after = size(&namespace, class);
            assert!(2 * after > 3 * before, "{before} KiB, and then {after}");
            event(&namespace, class, "FileSystemResizeRequired", "");
        }
        event(&namespace, class, "Resizing", "is resizing volume");
        let pod = cluster.get(["pod", class, "--namespace", namespace.name()]).unwrap();
        assert_eq!(pod.pointer("/status/containerStatuses/0/restartCount"), Some(&json!(0)));
    }
    clean(&cluster, &namespace);
}

#[test]
fn a_volume_whose_pool_has_no_room_says_so_and_another_size_may_be_asked_for() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("too-large").unwrap();
    namespace.apply(&claim("data", "loop-now").to_string()).unwrap();
    bound(&namespace, "data");
    let ask = |size: &str| {
        let more = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let words = ["patch", "persistentvolumeclaim", "data", "--patch", &more.to_string()];
        namespace.kubectl(words)
    };
    // More than any driver of ours can ever make.
    ask("9000Pi").unwrap();
    event(&namespace, "data", "VolumeResizeFailed", "code = ");
    ask("40Mi").unwrap();
    let has = |claim: &Value| (claim["status"]["capacity"]["storage"] == "40Mi").then_some(());
    namespace.apply(&pod("uses", "data", false, "sleep 1000").to_string()).unwrap();
    namespace.wait_for(&["persistentvolumeclaim", "data"], PATIENCE, has).unwrap();
    clean(&cluster, &namespace);
}

#[test]
fn the_limits_of_a_volume_change_while_a_pod_writes_to_it() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("limits").unwrap();
    let mut first = claim("data", "loop-late");
    first["spec"]["volumeAttributesClassName"] = json!("slow");
    namespace.apply(&first.to_string()).unwrap();
    namespace.apply(&pod("writes", "data", false, COUNTS).to_string()).unwrap();
    let running = namespace.wait_for_pod("writes", "Running", PATIENCE).unwrap();
    let node = node_of(&cluster, &running);
    let volume = bound(&namespace, "data");
    let shown = || larder(node, "loop.volumes.test", &["volume", "show", &volume]);
    assert!(shown().contains("maxWriteBps=4Mi"), "{}", shown());

    let name = |class: &str| {
        let change = json!({ "spec": { "volumeAttributesClassName": class } }).to_string();
        let words = ["patch", "persistentvolumeclaim", "data", "--patch", &change];
        namespace.kubectl(words).unwrap();
    };
    let current = |claim: &Value, class: &str| {
        let status = &claim["status"];
        let settled = status["modifyVolumeStatus"].is_null() && status["conditions"].is_null();
        (settled && status["currentVolumeAttributesClassName"] == class).then_some(())
    };
    let words = ["persistentvolumeclaim", "data"];
    name("fast");
    namespace.wait_for(&words, PATIENCE, |claim| current(claim, "fast")).unwrap();
    assert!(shown().contains("maxWriteBps=64Mi"), "{}", shown());
    let object = cluster.get(["persistentvolume", &volume]).unwrap();
    assert_eq!(object["spec"]["volumeAttributesClassName"], "fast");
    event(&namespace, "data", "VolumeModifySuccessful", "fast");
    counts_on(&namespace, "writes");

    // What the driver cannot do, what is not there, and back.
    name("wrong");
    event(&namespace, "data", "VolumeModifyFailed", "InvalidArgument");
    let infeasible = |claim: &Value| {
        (claim.pointer("/status/modifyVolumeStatus/status")? == "Infeasible").then_some(())
    };
    namespace.wait_for(&words, PATIENCE, infeasible).unwrap();
    name("nowhere");
    event(&namespace, "data", "VolumeModifyFailed", "nowhere does not exist");
    name("slow");
    namespace.wait_for(&words, PATIENCE, |claim| current(claim, "slow")).unwrap();
    assert!(shown().contains("maxWriteBps=4Mi"), "{}", shown());
    counts_on(&namespace, "writes");
    clean(&cluster, &namespace);
}
