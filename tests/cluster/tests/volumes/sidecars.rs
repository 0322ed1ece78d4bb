//! Larder's driver under the stock Go sidecars, and what becomes of their volumes when they go.

use std::fs;

use larder_cluster::{Binaries, Cluster, Machine, Set};
use serde_json::{Value, json};

use crate::support::{
    COUNTS, HOME, PATIENCE, SYSTEM, alone, bound, claim, class, clean, counted, counts_on, feed,
    home, kubeconfig, pod, put, wait_for_driver,
};

const DRIVER: &str = "stock.volumes.test";
const SOCKET: &str = "/var/lib/kubelet/plugins/stock.volumes.test/csi.sock";
const SIDECARS: [&str; 2] = ["csi-provisioner", "csi-resizer"];

fn objects() -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount",
          "metadata": { "name": "stock", "namespace": SYSTEM } },
        // What they need is their own matter.
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
          "metadata": { "name": "larder-volumes-stock" },
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                       "name": "cluster-admin" },
          "subjects": [{ "kind": "ServiceAccount", "name": "stock", "namespace": SYSTEM }] },
        { "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": { "name": DRIVER },
          "spec": { "attachRequired": false, "podInfoOnMount": false } },
        class("stock", DRIVER, "WaitForFirstConsumer",
              &json!({ "csi.storage.k8s.io/fstype": "xfs" })),
    ]})
}

/// Starts the driver anew; `own`: with Larder's controllers.
fn serve(cluster: &Cluster, node: &Machine, own: bool) {
    let mut config = json!({
        "node": node.name(), "stateDir": "/run/larder-stock",
        "drivers": [{
            "name": DRIVER, "backend": "loop", "register": true, "endpoint": format!("unix://{SOCKET}"),
            "pools": { "default": { "path": format!("{HOME}/stock"), "create": true } },
        }],
    });
    if own {
        config["kubernetes"] =
            json!({ "kubeconfig": format!("{HOME}/stock.kubeconfig"), "namespace": SYSTEM });
    }
    fs::write(home(node).join("stock.yaml"), config.to_string()).unwrap();
    end(node, "larder-stock", "TERM");
    let (program, file) = (format!("{HOME}/larder"), format!("{HOME}/stock.yaml"));
    let words = [program.as_str(), "serve", "--config", file.as_str()];
    node.start_service("larder-stock", words).unwrap();
    wait_for_driver(cluster, node, DRIVER);
}

fn end(node: &Machine, service: &str, signal: &str) {
    if node.is_running(service) {
        node.stop_service(service, signal).unwrap();
    }
}

/// As their documentation runs them for storage of one node.
fn start_sidecars(node: &Machine) {
    let binaries = Binaries::get(Set::Sidecars).unwrap();
    let (name, config) =
        (format!("NODE_NAME={}", node.name()), format!("--kubeconfig={HOME}/stock.kubeconfig"));
    let address = format!("--csi-address={SOCKET}");
    for sidecar in SIDECARS {
        put(&binaries.path(sidecar), &home(node).join(sidecar));
        end(node, sidecar, "KILL");
        let program = format!("{HOME}/{sidecar}");
        let mut words = vec!["env", &name, &program, &address, &config, "--timeout=60s"];
        if sidecar == "csi-provisioner" {
            words.extend(["--node-deployment", "--strict-topology", "--extra-create-metadata"]);
        }
        node.start_service(sidecar, words).unwrap();
    }
}

/// A pod on that node.
fn pod_on(node: &Machine, name: &str, claim: &str) -> String {
    let mut object = pod(name, claim, false, COUNTS);
    object["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node.name() });
    object.to_string()
}

#[test]
fn the_stock_sidecars_work_with_our_driver_and_what_they_made_is_ours_when_they_go() {
    let (cluster, _guard) = alone();
    let node = &cluster.nodes()[1];
    feed(&cluster, &["apply", "--filename", "-"], &objects());
    fs::write(home(node).join("stock.kubeconfig"), kubeconfig(&cluster, node, "stock").to_string())
        .unwrap();
    serve(&cluster, node, false);
    start_sidecars(node);
    let namespace = cluster.namespace("stock").unwrap();

    let sized = |name: &str| {
        let mut claim = claim(name, "stock");
        claim["spec"]["resources"]["requests"]["storage"] = json!("320Mi");
        claim
    };
    namespace.apply(&sized("data").to_string()).unwrap();
    namespace.apply(&pod_on(node, "writes", "data")).unwrap();
    let running = namespace.wait_for_pod("writes", "Running", PATIENCE);
    assert!(running.is_ok(), "{running:?}; {}", node.log_end("csi-provisioner"));
    counts_on(&namespace, "writes");
    let volume = bound(&namespace, "data");
    let object = cluster.get(["persistentvolume", &volume]).unwrap();
    let annotation = |name: &str| object["metadata"]["annotations"][name].clone();
    assert_eq!(annotation("pv.kubernetes.io/provisioned-by"), DRIVER);
    assert!(object.pointer("/spec/nodeAffinity").is_some(), "{object:#}");

    // A clone, and growth under the pod.
    let mut copy = sized("copy");
    copy["spec"]["dataSource"] = json!({ "kind": "PersistentVolumeClaim", "name": "data" });
    namespace.apply(&copy.to_string()).unwrap();
    namespace.apply(&pod_on(node, "copies", "copy")).unwrap();
    namespace.wait_for_pod("copies", "Running", PATIENCE).unwrap();
    let grown = |size: &'static str| {
        let more = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let words = ["patch", "persistentvolumeclaim", "data", "--patch", &more.to_string()];
        namespace.kubectl(words).unwrap();
        let has = |claim: &Value| (claim["status"]["capacity"]["storage"] == size).then_some(());
        let has = namespace.wait_for(&["persistentvolumeclaim", "data"], PATIENCE, has);
        assert!(has.is_ok(), "{has:?}; {}", node.log_end("csi-resizer"));
    };
    grown("480Mi");
    counts_on(&namespace, "writes");

    // Deleted by them: nothing is left.
    namespace.kubectl(["delete", "pod", "copies"]).unwrap();
    namespace.kubectl(["delete", "persistentvolumeclaim", "copy"]).unwrap();
    let copies = |list: &Value| {
        let items = list["items"].as_array()?;
        let of = |v: &Value| v.pointer("/spec/claimRef/name").is_some_and(|name| name == "copy");
        (!items.iter().any(of)).then_some(())
    };
    cluster.wait_for(&["persistentvolumes"], PATIENCE, copies).unwrap();

    // Larder's own controllers take over, under a pod that goes on.
    SIDECARS.into_iter().for_each(|sidecar| end(node, sidecar, "TERM"));
    let before = counted(&namespace, "writes");
    serve(&cluster, node, true);
    grown("640Mi");
    counts_on(&namespace, "writes");
    assert!(counted(&namespace, "writes") > before);
    let pod = cluster.get(["pod", "writes", "--namespace", namespace.name()]).unwrap();
    assert_eq!(pod.pointer("/status/containerStatuses/0/restartCount"), Some(&json!(0)));
    clean(&cluster, &namespace);
    let (program, file) = (format!("{HOME}/larder"), format!("{HOME}/stock.yaml"));
    let words = [&program, "volume", "ls", "--output", "json", "--config", &file];
    assert_eq!(node.run(words).unwrap().trim(), "[]");
    end(node, "larder-stock", "TERM");
}
