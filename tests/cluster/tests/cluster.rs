//! What the cluster of the tests can do, before anything of Larder is in it.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test starts programs and waits, and a broken helper fails it"
)]

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use larder_cluster::{BUSYBOX, Cluster};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// Held for writing by the test that stops parts of the cluster.
static SHARED: RwLock<()> = RwLock::new(());

/// The cluster of the tests, whole while the guard lives.
fn cluster() -> (Cluster, RwLockReadGuard<'static, ()>) {
    // Another test that failed did not break the lock.
    let guard = SHARED.read().unwrap_or_else(PoisonError::into_inner);
    (Cluster::of_tests().unwrap(), guard)
}

/// A pod of one container, which runs a script.
fn pod(name: &str, node: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": BUSYBOX, "command": ["sh", "-ec", script] }],
        },
    })
}

/// Gives a pod's container a volume at /data.
fn with_volume(mut pod: Value, source: Value, propagation: &str) -> Value {
    let mut volume = source;
    volume["name"] = json!("data");
    pod["spec"]["volumes"] = json!([volume]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] =
        json!([{ "name": "data", "mountPath": "/data", "mountPropagation": propagation }]);
    container["securityContext"] = json!({ "privileged": true });
    pod
}

fn host_path(path: &str) -> Value {
    json!({ "hostPath": { "path": path, "type": "DirectoryOrCreate" } })
}

#[test]
fn both_nodes_are_ready_under_the_version_that_go_mod_pins() {
    let (cluster, _guard) = cluster();
    let nodes = cluster.get(["nodes"]).unwrap();
    let nodes = nodes["items"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        assert_eq!(ready["status"], "True", "{ready}");
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap();
        assert!(version.starts_with("v1.36."), "{version}");
    }
    let version: Value =
        serde_json::from_str(&cluster.kubectl(["get", "--raw", "/version"]).unwrap()).unwrap();
    assert_eq!(version["minor"], "36");
    assert!(cluster.helm(["list"]).is_ok());
}

#[test]
fn a_pod_runs_on_each_node_and_its_output_comes_back() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("each-node").unwrap();
    for node in ["node1", "node2"] {
        namespace.apply(&pod(node, node, "echo here is $(hostname)").to_string()).unwrap();
    }
    for node in ["node1", "node2"] {
        assert_eq!(namespace.output_of_pod(node, PATIENCE).unwrap(), format!("here is {node}\n"));
    }
}

#[test]
fn a_command_runs_in_a_running_pod() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("exec").unwrap();
    namespace.apply(&pod("sleeps", "node2", "sleep 1000").to_string()).unwrap();
    namespace.wait_for_pod("sleeps", "Running", PATIENCE).unwrap();
    assert_eq!(namespace.kubectl(["exec", "sleeps", "--", "echo", "x y"]).unwrap(), "x y\n");
}

#[test]
fn a_pod_uses_a_static_volume_through_its_claim_and_the_next_pod_finds_the_data() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("static").unwrap();
    let name = namespace.name();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
        "spec": {
            "capacity": { "storage": "1Mi" }, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": { "namespace": name, "name": "claim" },
            "hostPath": { "path": format!("/var/lib/{name}"), "type": "DirectoryOrCreate" },
        },
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "claim" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name,
            "resources": { "requests": { "storage": "1Mi" } },
        },
    });
    cluster.apply(&volume.to_string()).unwrap();
    namespace.apply(&claim.to_string()).unwrap();
    let source = json!({ "persistentVolumeClaim": { "claimName": "claim" } });
    let writer = pod("writer", "node1", "echo kept >/data/file");
    namespace.apply(&with_volume(writer, source.clone(), "None").to_string()).unwrap();
    namespace.wait_for_pod("writer", "Succeeded", PATIENCE).unwrap();
    let reader = pod("reader", "node1", "cat /data/file");
    namespace.apply(&with_volume(reader, source, "None").to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("reader", PATIENCE).unwrap(), "kept\n");
    cluster.kubectl(["delete", "persistentvolume", name, "--wait=false"]).unwrap();
}

#[test]
fn a_pod_talks_to_the_api_server_as_its_service_account_and_gets_what_its_role_grants() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("account").unwrap();
    // Without a kubeconfig kubectl does what every program in a pod does.
    let programs = host_path(&cluster.binaries().display().to_string());
    let script = "export HOME=/tmp; /data/kubectl get --raw /version | grep gitVersion; \
                  /data/kubectl get configmaps --output name 2>&1 || true";
    for node in ["node1", "node2"] {
        let name = format!("without-{node}");
        let pod = with_volume(pod(&name, node, script), programs.clone(), "None");
        namespace.apply(&pod.to_string()).unwrap();
        let text = namespace.output_of_pod(&name, PATIENCE).unwrap();
        assert!(text.contains("v1.36."), "{text}");
        let user = format!("system:serviceaccount:{}:default", namespace.name());
        assert!(text.contains("Forbidden") && text.contains(&user), "{text}");
    }
    let words = ["create", "role", "reads", "--verb=get,list", "--resource=configmaps"];
    namespace.kubectl(words).unwrap();
    let account = format!("--serviceaccount={}:default", namespace.name());
    namespace.kubectl(["create", "rolebinding", "reads", "--role=reads", &account]).unwrap();
    let with = with_volume(pod("with", "node1", script), programs, "None");
    namespace.apply(&with.to_string()).unwrap();
    let text = namespace.output_of_pod("with", PATIENCE).unwrap();
    assert!(text.contains("configmap/kube-root-ca.crt"), "{text}");
}

#[test]
fn a_mount_that_a_pod_makes_in_a_shared_folder_is_seen_by_other_pods_of_its_node_only() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("propagation").unwrap();
    let path = format!("/var/lib/{}", namespace.name());
    let maker = pod(
        "maker",
        "node1",
        "mkdir -p /data/m; mount -t tmpfs larder-test /data/m; echo seen >/data/m/file; sleep 1000",
    );
    let maker = with_volume(maker, host_path(&path), "Bidirectional");
    namespace.apply(&maker.to_string()).unwrap();
    namespace.wait_for_pod("maker", "Running", PATIENCE).unwrap();
    let script = "mkdir -p /data/m; for i in $(seq 300); do \
                  [ ! -e /data/m/file ] || exit 0; sleep 0.1; done; exit 1";
    let look = with_volume(pod("look", "node1", script), host_path(&path), "HostToContainer");
    namespace.apply(&look.to_string()).unwrap();
    namespace.wait_for_pod("look", "Succeeded", PATIENCE).unwrap();

    let mounts =
        |machine: &larder_cluster::Machine| machine.run(["cat", "/proc/self/mountinfo"]).unwrap();
    let (one, two) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    assert!(mounts(one).contains(&path), "node1 itself sees it");
    assert!(!mounts(two).contains(&path), "node2 does not");
    let here = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!here.contains(namespace.name()), "nor does the host");
    // It outlives the pod that made it, as a volume outlives a restart of its driver.
    namespace.kubectl(["delete", "pod", "maker"]).unwrap();
    assert_eq!(one.run(["cat", &format!("{path}/m/file")]).unwrap(), "seen\n");
    one.run(["umount", &format!("{path}/m")]).unwrap();
}

#[test]
fn a_pod_with_an_empty_volume_starts_soon() {
    let (cluster, _guard) = cluster();
    let namespace = cluster.namespace("empty").unwrap();
    let mut times = Vec::new();
    for round in 0..3 {
        let name = format!("empty-{round}");
        let path = format!(
            "/api/v1/namespaces/{}/pods?watch=1&fieldSelector=metadata.name={name}",
            namespace.name()
        );
        let mut watch = cluster.kubectl_command();
        watch.args(["get", "--raw", &path]).stdout(Stdio::piped());
        let mut watch = watch.spawn().unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let pod = pod(&name, "node1", "sleep 1000");
        let pod = with_volume(pod, json!({ "emptyDir": {} }), "None");
        namespace.apply(&pod.to_string()).unwrap();
        let mut began = None;
        for line in lines {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let began = *began.get_or_insert_with(Instant::now);
            if event.pointer("/object/status/phase").is_some_and(|phase| phase == "Running") {
                times.push(began.elapsed());
                break;
            }
        }
        watch.kill().unwrap();
        watch.wait().unwrap();
    }
    times.sort();
    println!("a pod with an emptyDir runs after {times:.2?} (middle: {:.2?})", times[1]);
    assert!(times[0] < Duration::from_secs(30), "{times:?}");
}

#[test]
fn a_kubelet_may_write_to_its_own_node_and_no_other() {
    let (cluster, _guard) = cluster();
    let annotate = |node: &str| {
        let mut kubectl = cluster.kubectl_command();
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig_of(&cluster.nodes()[0]));
        let words = ["annotate", "--overwrite", "node", node, "larder.test/by=node1"];
        kubectl.args(words).output().unwrap()
    };
    assert!(annotate("node1").status.success());
    let refused = annotate("node2");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && stderr.contains("only its own Node"), "{stderr}");
}

#[test]
fn pods_outlive_a_killed_kubelet_and_a_killed_api_server() {
    let _guard = SHARED.write().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::of_tests().unwrap();
    let namespace = cluster.namespace("restart").unwrap();
    namespace.apply(&pod("stays", "node2", "sleep 1000").to_string()).unwrap();
    let before = namespace.wait_for_pod("stays", "Running", PATIENCE).unwrap();
    let id = "/status/containerStatuses/0/containerID";

    cluster.nodes()[1].restart_service("kubelet", "KILL").unwrap();
    namespace.apply(&pod("after", "node2", "echo works").to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("after", PATIENCE).unwrap(), "works\n");

    cluster.control().restart_service("kube-apiserver", "KILL").unwrap();
    let pod = namespace.wait_for_pod("stays", "Running", PATIENCE).unwrap();
    assert_eq!(pod.pointer(id), before.pointer(id), "the container is the same");
}
