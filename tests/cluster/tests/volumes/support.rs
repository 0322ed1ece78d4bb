//! The cluster with Larder in it, and the objects that tests make.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use larder_cluster::{BUSYBOX, Cluster, Machine, Namespace};
use serde_json::{Value, json};

/// For what must happen, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Where Larder's objects are.
pub(crate) const SYSTEM: &str = "larder-volumes";
/// On the nodes: program, configuration, pools.
pub(crate) const HOME: &str = "/var/lib/larder-volumes";

/// Held for writing by tests that stop parts of what all of them use.
static SHARED: RwLock<()> = RwLock::new(());
static STARTED: Once = Once::new();

/// The cluster with Larder on both nodes, whole while the guard lives.
pub(crate) fn cluster() -> (Cluster, RwLockReadGuard<'static, ()>) {
    // Another test that failed did not break the lock.
    let guard = SHARED.read().unwrap_or_else(PoisonError::into_inner);
    (started(), guard)
}

/// As [`cluster`], for a test that stops parts of it.
pub(crate) fn alone() -> (Cluster, RwLockWriteGuard<'static, ()>) {
    let guard = SHARED.write().unwrap_or_else(PoisonError::into_inner);
    (started(), guard)
}

fn started() -> Cluster {
    let cluster = Cluster::of_tests().unwrap();
    STARTED.call_once(|| install(&cluster));
    cluster
}

fn install(cluster: &Cluster) {
    feed(cluster, &["apply", "--filename", "-"], &objects());
    for node in cluster.nodes() {
        let home = node.root().join(HOME.trim_start_matches('/'));
        fs::create_dir_all(&home).unwrap();
        let config = kubeconfig(cluster, node, "larder");
        fs::write(home.join("kubeconfig"), config.to_string()).unwrap();
        fs::write(home.join("config.yaml"), configuration(cluster, node).to_string()).unwrap();
        // As the kernel runs it: another one beside it until it has the name.
        let larder = std::env::var("LARDER_BIN").unwrap();
        put(Path::new(&larder), &home.join("larder"));
        if node.is_running("larder") {
            node.stop_service("larder", "KILL").unwrap();
        }
        let (program, file) = (format!("{HOME}/larder"), format!("{HOME}/config.yaml"));
        node.start_service("larder", [program.as_str(), "serve", "--config", file.as_str()])
            .unwrap();
    }
    for node in cluster.nodes() {
        wait_for_driver(cluster, node, "loop.volumes.test");
        wait_for_driver(cluster, node, "dir.volumes.test");
        wait_for_driver(cluster, node, "room.volumes.test");
    }
}

/// Runs kubectl with an object as its input, in whatever namespace that is.
pub(crate) fn feed(cluster: &Cluster, words: &[&str], object: &Value) {
    let mut kubectl = cluster.kubectl_command();
    kubectl.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = kubectl.spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{words:?} {object}");
}

/// Copies a program to where an older one may be running.
pub(crate) fn put(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(&beside, to).unwrap();
}

/// Waits until kubelet knows a driver.
pub(crate) fn wait_for_driver(cluster: &Cluster, node: &Machine, driver: &str) {
    let has = |object: &Value| {
        let drivers = object.pointer("/spec/drivers")?.as_array()?;
        drivers.iter().any(|d| d["name"] == driver).then_some(())
    };
    let known = cluster.wait_for(&["csinode", node.name()], PATIENCE, has);
    assert!(known.is_ok(), "{known:?}; {}", node.log_end("larder"));
}

/// A kubeconfig with which a program on a node is that ServiceAccount.
pub(crate) fn kubeconfig(cluster: &Cluster, node: &Machine, account: &str) -> Value {
    let words = ["create", "token", account, "--namespace", SYSTEM, "--duration=24h"];
    let token = cluster.kubectl(words).unwrap();
    let mut command = cluster.kubectl_command();
    command.arg("--kubeconfig").arg(cluster.kubeconfig_of(node));
    let output = command.args(["config", "view", "--raw", "--output=json"]).output().unwrap();
    let mut config: Value = serde_json::from_slice(&output.stdout).unwrap();
    config["users"][0]["user"] = json!({ "token": token.trim() });
    config
}

fn configuration(cluster: &Cluster, node: &Machine) -> Value {
    let driver = |name: &str, backend: &str, reserve: &str| {
        json!({
            "name": format!("{name}.volumes.test"), "backend": backend, "register": true,
            "pools": { "default": {
                "path": format!("{HOME}/{name}"), "create": true, "reserve": reserve,
            } },
        })
    };
    // The nodes share a disk: that one of them has no room there is said, not so.
    let room = if node.name() == full(cluster).name() { "100Ti" } else { "0" };
    json!({
        "node": node.name(), "stateDir": "/run/larder-volumes", "http": "127.0.0.1:9810",
        "log": { "level": "info,larder_controllers=debug" },
        "drivers": [
            driver("dir", "dir", "0"), driver("loop", "loop", "0"), driver("room", "loop", room),
        ],
        "kubernetes": {
            "kubeconfig": format!("{HOME}/kubeconfig"), "namespace": SYSTEM, "capacity": true,
        },
    })
}

/// The node whose pool of driver `room.volumes.test` has no room; the other one's has.
pub(crate) fn full(cluster: &Cluster) -> &Machine {
    &cluster.nodes()[0]
}

/// What docs/kubernetes.md says that node-local drivers need, classes, and so on.
fn objects() -> Value {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    let storage = "storage.k8s.io";
    let rules = json!([
        rule("", &["persistentvolumes"], &["get", "list", "watch", "create", "patch", "delete"]),
        rule("", &["persistentvolumeclaims"], &["get", "list", "watch", "patch"]),
        rule("", &["persistentvolumeclaims/status"], &["patch"]),
        rule("", &["events"], &["create", "patch"]),
        rule("", &["pods"], &["list"]),
        rule("", &["secrets"], &["get"]),
        rule(storage, &["storageclasses"], &["list", "watch"]),
        rule(storage, &["volumeattributesclasses"], &["get", "list", "watch"]),
    ]);
    let central = json!([
        rule(storage, &["csinodes"], &["list", "watch"]),
        rule(storage, &["volumeattachments"], &["get", "list", "watch", "patch"]),
        rule(storage, &["volumeattachments/status"], &["patch"]),
        rule("coordination.k8s.io", &["leases"], &["get", "create", "patch"]),
    ]);
    let here = json!([
        rule(storage, &["csistoragecapacities"], &["list", "watch", "create", "patch", "delete"]),
        rule("", &["pods"], &["get"]),
        rule("apps", &["replicasets"], &["get"]),
    ]);
    let role = |name: &str, rules: &Value| json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name }, "rules": rules });
    let bound = |role: &str, account: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": format!("{role}-{account}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": SYSTEM }],
        })
    };
    let account = |name: &str| json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": SYSTEM } });
    let mut items = vec![
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": SYSTEM } }),
        account("larder"),
        account("central"),
        role("larder-volumes-node", &rules),
        role("larder-volumes-central", &central),
        bound("larder-volumes-node", "larder"),
        bound("larder-volumes-node", "central"),
        bound("larder-volumes-central", "central"),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": here,
            "metadata": { "name": "larder-volumes-capacity", "namespace": SYSTEM },
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "larder-volumes-capacity", "namespace": SYSTEM },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
                "name": "larder-volumes-capacity",
            },
            "subjects": [{ "kind": "ServiceAccount", "name": "larder", "namespace": SYSTEM }],
        }),
    ];
    for driver in ["dir", "loop", "room", "attach"] {
        items.push(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
            "metadata": { "name": format!("{driver}.volumes.test") },
            "spec": {
                "attachRequired": driver == "attach", "podInfoOnMount": false,
                "storageCapacity": driver == "room",
            },
        }));
    }
    for (name, driver, binding) in [
        ("dir-late", "dir.volumes.test", "WaitForFirstConsumer"),
        ("dir-now", "dir.volumes.test", "Immediate"),
        ("loop-late", "loop.volumes.test", "WaitForFirstConsumer"),
        ("loop-now", "loop.volumes.test", "Immediate"),
        ("room", "room.volumes.test", "WaitForFirstConsumer"),
        ("attach", "attach.volumes.test", "Immediate"),
    ] {
        items.push(class(name, driver, binding, &json!({})));
    }
    // The kernel grows it under its users without further rights.
    let xfs = json!({ "csi.storage.k8s.io/fstype": "xfs" });
    items.push(class("loop-xfs", "loop.volumes.test", "WaitForFirstConsumer", &xfs));
    for (name, rate) in [("slow", "4Mi"), ("fast", "64Mi"), ("wrong", "much")] {
        items.push(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass",
            "metadata": { "name": name }, "driverName": "loop.volumes.test",
            "parameters": { "maxWriteBps": rate },
        }));
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A StorageClass.
pub(crate) fn class(name: &str, driver: &str, binding: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
        "provisioner": driver, "volumeBindingMode": binding, "allowVolumeExpansion": true,
        "parameters": parameters,
    })
}

/// A claim of 32 MiB.
pub(crate) fn claim(name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": { "requests": { "storage": "32Mi" } },
        },
    })
}

/// A pod that runs a script, with a claim at /data (a raw block claim: as /dev/data).
pub(crate) fn pod(name: &str, claim: &str, block: bool, script: &str) -> Value {
    let mut container =
        json!({ "name": "main", "image": BUSYBOX, "command": ["sh", "-ec", script] });
    match block {
        true => {
            container["volumeDevices"] = json!([{ "name": "data", "devicePath": "/dev/data" }]);
            container["securityContext"] = json!({ "privileged": true });
        }
        false => container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]),
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}

/// A script that counts into /data/count for ever, each number on the disk before the next, and ends
/// when one could not be written.
pub(crate) const COUNTS: &str = "i=0; while true; do i=$((i+1)); echo $i >/data/next; sync /data/next; mv /data/next /data/count; sleep 0.1; done";

/// How far a pod with that script has counted.
pub(crate) fn counted(namespace: &Namespace<'_>, pod: &str) -> u64 {
    let text = namespace.kubectl(["exec", pod, "--", "cat", "/data/count"]).unwrap();
    text.trim().parse().unwrap()
}

/// Waits until a pod with that script has counted on.
pub(crate) fn counts_on(namespace: &Namespace<'_>, pod: &str) {
    let (before, began) = (counted(namespace, pod), Instant::now());
    while counted(namespace, pod) <= before {
        assert!(began.elapsed() < PATIENCE, "{pod} stays at {before}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Deletes pods and claims, and waits until no trace of the claims' volumes is left: in the cluster,
/// on the nodes, in the pools. Returns how long the volumes took.
pub(crate) fn clean(cluster: &Cluster, namespace: &Namespace<'_>) -> Duration {
    let claims = cluster.get(["persistentvolumeclaims", "--namespace", namespace.name()]).unwrap();
    let claims = claims["items"].as_array().unwrap();
    let volumes: Vec<_> =
        claims.iter().filter_map(|c| c.pointer("/spec/volumeName")?.as_str()).collect();
    namespace.kubectl(["delete", "pods", "--all"]).unwrap();
    let began = Instant::now();
    namespace.kubectl(["delete", "persistentvolumeclaims", "--all", "--wait=false"]).unwrap();
    for volume in &volumes {
        let filter = format!("metadata.name={volume}");
        let words = ["persistentvolumes", "--field-selector", filter.as_str()];
        let gone = cluster
            .wait_for(&words, PATIENCE, |list| list["items"].as_array()?.is_empty().then_some(()));
        gone.unwrap();
    }
    let took = began.elapsed();
    for node in cluster.nodes() {
        let mounts = node.run(["cat", "/proc/self/mountinfo"]).unwrap();
        let listed = list(node);
        for volume in &volumes {
            assert!(!mounts.contains(volume), "{volume} is mounted: {mounts}");
            assert!(!listed.contains(volume), "{volume} is in a pool: {listed}");
        }
    }
    took
}

/// What `larder volume ls` of a node says of all drivers.
fn list(node: &Machine) -> String {
    let one = |driver: &str| larder(node, driver, &["volume", "ls", "--output", "json"]);
    ["dir.volumes.test", "loop.volumes.test", "room.volumes.test"].map(one).concat()
}

/// Runs the command line for a driver of a node.
pub(crate) fn larder(node: &Machine, driver: &str, words: &[&str]) -> String {
    let program = format!("{HOME}/larder");
    let file = format!("{HOME}/config.yaml");
    let own = ["--config", file.as_str(), "--driver", driver];
    let all = std::iter::once(program.as_str()).chain(words.iter().copied()).chain(own);
    node.run(all).unwrap()
}

/// The PersistentVolume of a claim, once it is bound.
pub(crate) fn bound(namespace: &Namespace<'_>, claim: &str) -> String {
    let name = |object: &Value| {
        let bound = object.pointer("/status/phase")? == "Bound";
        bound.then(|| object["spec"]["volumeName"].as_str().unwrap().to_owned())
    };
    namespace.wait_for(&["persistentvolumeclaim", claim], PATIENCE, name).unwrap()
}

/// Waits for an event about an object; its message.
pub(crate) fn event(namespace: &Namespace<'_>, name: &str, reason: &str, part: &str) -> String {
    let filter = format!("involvedObject.name={name},reason={reason}");
    let words = ["events", "--field-selector", filter.as_str()];
    let found = namespace.wait_for(&words, PATIENCE, |list| {
        let items = list["items"].as_array()?;
        let messages = items.iter().filter_map(|event| event["message"].as_str());
        messages.into_iter().find(|message| message.contains(part)).map(str::to_owned)
    });
    found.unwrap()
}

/// Folder of the node, as the host sees it.
pub(crate) fn home(node: &Machine) -> PathBuf {
    node.root().join(HOME.trim_start_matches('/'))
}

/// The node that a pod runs on.
pub(crate) fn node_of<'a>(cluster: &'a Cluster, pod: &Value) -> &'a Machine {
    let name = pod["spec"]["nodeName"].as_str().unwrap();
    cluster.nodes().iter().find(|node| node.name() == name).unwrap()
}
