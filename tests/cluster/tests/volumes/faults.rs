//! What goes wrong, and what people are told.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    COUNTS, PATIENCE, alone, bound, claim, class, clean, cluster, counts_on, event, feed, node_of,
    pod, wait_for_driver,
};

#[test]
fn a_claim_that_cannot_be_provided_for_has_an_event_with_a_remedy() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("wrong").unwrap();
    let unique = namespace.name();
    let secret = |name: &str, namespace: &str| {
        json!({
            "csi.storage.k8s.io/provisioner-secret-name": name,
            "csi.storage.k8s.io/provisioner-secret-namespace": namespace,
        })
    };
    let cases = [
        ("pool", json!({ "pool": "nowhere" }), "nowhere"),
        ("unknown", json!({ "colour": "blue" }), "colour"),
        ("reserved", json!({ "csi.storage.k8s.io/colour": "blue" }), "csi.storage.k8s.io/colour"),
        ("half", json!({ "csi.storage.k8s.io/provisioner-secret-name": "a" }), "both keys"),
        ("template", secret("${pvc.colour}", "default"), "pvc.colour"),
        ("secret", secret("none-of-that-name", "default"), "none-of-that-name"),
    ];
    for (name, parameters, part) in &cases {
        let class_name = format!("{unique}-{name}");
        let class = class(&class_name, "loop.volumes.test", "Immediate", parameters);
        cluster.apply(&class.to_string()).unwrap();
        namespace.apply(&claim(name, &class_name).to_string()).unwrap();
        let message = event(&namespace, name, "ProvisioningFailed", part);
        println!("{name}: {message}");
    }
    // What was missing comes, and the claim is provided for.
    let words = ["create", "secret", "generic", "none-of-that-name", "--from-literal=key=value"];
    cluster.kubectl(words.into_iter().chain(["--namespace=default"])).unwrap();
    bound(&namespace, "secret");
    cluster.kubectl(["delete", "secret", "none-of-that-name", "--namespace=default"]).unwrap();
    clean(&cluster, &namespace);
    for (name, ..) in &cases {
        let class = format!("{unique}-{name}");
        cluster.kubectl(["delete", "storageclass", &class]).unwrap();
    }
}

#[test]
fn a_missing_rule_is_named_in_an_event_and_the_claim_goes_on_when_it_is_granted() {
    let (cluster, _guard) = alone();
    let namespace = cluster.namespace("denied").unwrap();
    let role = cluster.get(["clusterrole", "larder-volumes-node"]).unwrap();
    let mut less = role.clone();
    less["rules"][0]["verbs"] = json!(["get", "list", "watch", "patch", "delete"]);
    let replace = |object: &serde_json::Value| {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"].take();
        feed(&cluster, &["replace", "--filename", "-"], &object);
    };
    replace(&less);
    namespace.apply(&claim("data", "dir-now").to_string()).unwrap();
    let message = event(&namespace, "data", "ProvisioningFailed", "grant the ServiceAccount");
    assert!(message.contains("persistentvolumes") && message.contains("create"), "{message}");
    replace(&role);
    bound(&namespace, "data");
    clean(&cluster, &namespace);
}

#[test]
fn pods_go_on_writing_when_the_process_of_their_node_is_killed() {
    let (cluster, _guard) = alone();
    let namespace = cluster.namespace("killed").unwrap();
    for class in ["loop-late", "dir-late"] {
        namespace.apply(&claim(class, class).to_string()).unwrap();
        let mut pod = pod(class, class, false, COUNTS);
        pod["spec"]["nodeName"] = json!(null);
        pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": "node1" });
        namespace.apply(&pod.to_string()).unwrap();
    }
    for class in ["loop-late", "dir-late"] {
        namespace.wait_for_pod(class, "Running", PATIENCE).unwrap();
    }
    let node = &cluster.nodes()[0];
    let mounts = || {
        let text = node.run(["cat", "/proc/self/mountinfo"]).unwrap();
        let points = text.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned());
        let mut ours: Vec<_> = points.filter(|p| p.contains("/var/lib/kubelet")).collect();
        ours.sort();
        ours
    };
    let before = mounts();
    for _ in 0..3 {
        node.restart_service("larder", "KILL").unwrap();
        wait_for_driver(&cluster, node, "loop.volumes.test");
        counts_on(&namespace, "loop-late");
        counts_on(&namespace, "dir-late");
    }
    assert_eq!(mounts(), before, "nothing is mounted twice, and nothing is gone");
    // And it works on.
    namespace.apply(&claim("after", "loop-now").to_string()).unwrap();
    namespace.apply(&pod("after", "after", false, "echo works >/data/a").to_string()).unwrap();
    namespace.wait_for_pod("after", "Succeeded", PATIENCE).unwrap();
    clean(&cluster, &namespace);
}

#[test]
fn an_api_server_that_is_away_for_a_while_loses_nothing() {
    let (cluster, _guard) = alone();
    let namespace = cluster.namespace("away").unwrap();
    namespace.apply(&claim("before", "loop-late").to_string()).unwrap();
    namespace.apply(&pod("before", "before", false, COUNTS).to_string()).unwrap();
    let running = namespace.wait_for_pod("before", "Running", PATIENCE).unwrap();
    let node = node_of(&cluster, &running);
    let process = node.service_pid("larder");
    namespace.apply(&claim("during", "dir-now").to_string()).unwrap();
    cluster.control().stop_service("kube-apiserver", "KILL").unwrap();
    std::thread::sleep(Duration::from_secs(8));
    cluster.control().restart_service("kube-apiserver", "KILL").unwrap();
    let words = ["get", "--raw=/readyz"];
    let began = std::time::Instant::now();
    while cluster.kubectl(words).is_err() {
        assert!(began.elapsed() < PATIENCE, "the API server does not come back");
        std::thread::sleep(Duration::from_millis(300));
    }
    bound(&namespace, "during");
    namespace.apply(&claim("after", "loop-now").to_string()).unwrap();
    bound(&namespace, "after");
    counts_on(&namespace, "before");
    assert_eq!(node.service_pid("larder"), process, "the process is the same");
    let all = cluster.get(["persistentvolumes"]).unwrap();
    let ours = all["items"].as_array().unwrap().iter().filter(|volume| {
        volume.pointer("/spec/claimRef/namespace") == Some(&json!(namespace.name()))
    });
    assert_eq!(ours.count(), 3, "one for each claim");
    clean(&cluster, &namespace);
}
