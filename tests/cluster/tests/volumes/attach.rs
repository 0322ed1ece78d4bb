//! `larder controllers` for a driver of somebody else's, whose volumes must be attached.

use std::{
    path::Path,
    sync::Once,
    thread,
    time::{Duration, Instant},
};

use larder_cluster::{Cluster, Machine};
use serde_json::{Value, json};

use crate::{
    driver::{BROKEN, NAME, SERVES, SOCKET},
    support::{
        HOME, PATIENCE, SYSTEM, alone, bound, claim, cluster, event, home, kubeconfig, pod, put,
        wait_for_driver,
    },
};

static STARTED: Once = Once::new();
const CANDIDATES: [&str; 2] = ["controllers-a", "controllers-b"];

/// The driver on node1, and two processes that would work for it.
fn start(cluster: &Cluster) -> &Machine {
    let node = &cluster.nodes()[0];
    STARTED.call_once(|| {
        let config = kubeconfig(cluster, node, "central").to_string();
        std::fs::write(home(node).join("central.kubeconfig"), config).unwrap();
        put(&std::env::current_exe().unwrap(), &home(node).join("driver"));
        for service in CANDIDATES.iter().copied().chain(["attach-driver"]) {
            if node.is_running(service) {
                node.stop_service(service, "KILL").unwrap();
            }
        }
        let (serves, program) = (format!("{SERVES}={}", node.name()), format!("{HOME}/driver"));
        let name = "driver::the_driver_of_the_attach_tests";
        let words = ["env", &serves, &program, "--exact", name, "--nocapture"];
        node.start_service("attach-driver", words).unwrap();
        wait_for_driver(cluster, node, NAME);
        CANDIDATES.iter().for_each(|name| candidate(node, name));
    });
    node
}

/// Starts one of the processes, under a host name of its own: that is who it is.
fn candidate(node: &Machine, name: &str) {
    let script = format!(
        "hostname {name}; exec {HOME}/larder controllers --csi-address unix://{SOCKET} \
         --kubeconfig {HOME}/central.kubeconfig --leader-election \
         --leader-election-namespace {SYSTEM} --reconcile-sync 2s --retry-interval-max 20s \
         --log-level info,larder_controllers=debug"
    );
    node.start_service(name, ["unshare", "--uts", "sh", "-c", script.as_str()]).unwrap();
}

/// Who holds a Lease.
fn holder(cluster: &Cluster, lease: &str) -> String {
    let found = cluster.wait_for(&["lease", lease, "--namespace", SYSTEM], PATIENCE, |lease| {
        let holder = lease.pointer("/spec/holderIdentity")?.as_str()?;
        (!holder.is_empty()).then(|| holder.to_owned())
    });
    found.unwrap()
}

/// Waits until nothing is attached any more for a volume.
fn detached(cluster: &Cluster, volume: &str) {
    let none = |list: &Value| {
        let items = list["items"].as_array()?;
        let path = "/spec/source/persistentVolumeName";
        let of = |item: &Value| item.pointer(path).is_some_and(|name| name == volume);
        (!items.iter().any(of)).then_some(())
    };
    cluster.wait_for(&["volumeattachments"], PATIENCE, none).unwrap();
}

/// The attachment of a volume.
fn attachment(cluster: &Cluster, volume: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = cluster.wait_for(&["volumeattachments"], PATIENCE, |list| {
        let items = list["items"].as_array()?;
        let of = |item: &&Value| {
            item.pointer("/spec/source/persistentVolumeName").is_some_and(|name| name == volume)
        };
        items.iter().find(of).filter(|item| wanted(item)).cloned()
    });
    found.unwrap()
}

#[test]
fn a_volume_is_attached_for_its_pod_and_detached_and_deleted_after_it() {
    let (cluster, _guard) = cluster();
    let node = start(&cluster);
    let namespace = cluster.namespace("attach").unwrap();
    namespace.apply(&claim("data", "attach").to_string()).unwrap();
    let began = Instant::now();
    let mut uses = pod("uses", "data", false, "echo kept >/data/file; sleep 1000");
    uses["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node.name() });
    namespace.apply(&uses.to_string()).unwrap();
    namespace.wait_for_pod("uses", "Running", PATIENCE).unwrap();
    println!("claim and pod with attachment run after {:.2?}", began.elapsed());
    let volume = bound(&namespace, "data");

    let one = attachment(&cluster, &volume, |one| one["status"]["attached"] == true);
    let finalizer = "external-attacher/attach-volumes-test";
    assert_eq!(one["metadata"]["finalizers"], json!([finalizer]));
    assert_eq!(one["metadata"]["annotations"]["csi.alpha.kubernetes.io/node-id"], "id-of-node1");
    assert_eq!(one["status"]["attachmentMetadata"]["device"], volume);
    let object = cluster.get(["persistentvolume", &volume]).unwrap();
    let finalizers = object["metadata"]["finalizers"].as_array().unwrap();
    assert!(finalizers.contains(&json!(finalizer)), "{finalizers:?}");

    // It grows only while nobody uses it.
    let more = json!({ "spec": { "resources": { "requests": { "storage": "64Mi" } } } });
    let words = ["patch", "persistentvolumeclaim", "data", "--patch", &more.to_string()];
    namespace.kubectl(words).unwrap();
    event(&namespace, "data", "VolumeResizeFailed", "grows only while nobody uses it");
    event(&namespace, "data", "VolumeResizeFailed", "pod uses does");
    namespace.kubectl(["delete", "pod", "uses"]).unwrap();
    let has = |claim: &Value| (claim["status"]["capacity"]["storage"] == "64Mi").then_some(());
    namespace.wait_for(&["persistentvolumeclaim", "data"], PATIENCE, has).unwrap();
    event(&namespace, "data", "VolumeResizeSuccessful", "");

    namespace.kubectl(["delete", "persistentvolumeclaim", "data"]).unwrap();
    detached(&cluster, &volume);
    let began = Instant::now();
    let filter = format!("metadata.name={volume}");
    let words = ["persistentvolumes", "--field-selector", filter.as_str()];
    let gone = |list: &Value| list["items"].as_array().is_some_and(Vec::is_empty).then_some(());
    cluster.wait_for(&words, PATIENCE, gone).unwrap();
    println!("detached, and the volume is gone {:.2?} later", began.elapsed());
    assert!(!home(node).join("attach").join(&volume).exists());
}

#[test]
fn what_cannot_be_attached_says_why_and_is_attached_when_it_can() {
    let (cluster, _guard) = alone();
    let node = start(&cluster);
    let namespace = cluster.namespace("slots").unwrap();
    let broken = node.root().join(BROKEN.trim_start_matches('/'));
    std::fs::write(&broken, "").unwrap();
    namespace.apply(&claim("data", "attach").to_string()).unwrap();
    let mut uses = pod("uses", "data", false, "sleep 1000");
    uses["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node.name() });
    namespace.apply(&uses.to_string()).unwrap();
    let volume = bound(&namespace, "data");
    let failed = |one: &Value| one["status"]["attachError"]["errorCode"] == 8;
    let one = attachment(&cluster, &volume, failed);
    let message = one["status"]["attachError"]["message"].to_string();
    assert!(message.contains("no slot is free"), "{message}");
    event(&namespace, "uses", "FailedAttachVolume", "no slot is free");
    std::fs::remove_file(&broken).unwrap();
    namespace.wait_for_pod("uses", "Running", PATIENCE).unwrap();
    let one = attachment(&cluster, &volume, |one| one["status"]["attached"] == true);
    assert!(one["status"]["attachError"].is_null());
    namespace.kubectl(["delete", "pod", "uses"]).unwrap();
    namespace.kubectl(["delete", "persistentvolumeclaim", "data"]).unwrap();
    detached(&cluster, &volume);
}

#[test]
fn another_process_goes_on_when_the_leader_is_killed() {
    let (cluster, _guard) = alone();
    let node = start(&cluster);
    let namespace = cluster.namespace("leader").unwrap();
    let ours = "larder-attach-volumes-test";
    let first = holder(&cluster, ours);
    // Also those that the Go sidecars would take.
    for lease in [
        "attach-volumes-test",
        "external-attacher-leader-attach-volumes-test",
        "external-resizer-attach-volumes-test",
    ] {
        assert_eq!(holder(&cluster, lease), first, "{lease}");
    }
    assert!(CANDIDATES.contains(&first.as_str()), "{first}");
    node.stop_service(&first, "KILL").unwrap();
    let began = Instant::now();
    while holder(&cluster, "external-resizer-attach-volumes-test") == first {
        thread::sleep(Duration::from_millis(300));
    }
    let took = began.elapsed();
    println!("the next leader has all leases {took:.2?} after the first was killed");
    // They run out together, after 15 seconds: one after the other it would be a minute.
    assert!(took < Duration::from_secs(55), "{took:.2?}");
    namespace.apply(&claim("data", "attach").to_string()).unwrap();
    let volume = bound(&namespace, "data");
    let second = holder(&cluster, ours);
    assert_ne!(first, second);
    candidate(node, &first);
    thread::sleep(Duration::from_secs(6));
    assert_eq!(holder(&cluster, ours), second, "who comes back follows");
    namespace.kubectl(["delete", "persistentvolumeclaim", "data"]).unwrap();
    let gone = |path: &Path| {
        let began = Instant::now();
        while path.exists() {
            assert!(began.elapsed() < PATIENCE, "{} is still there", path.display());
            thread::sleep(Duration::from_millis(300));
        }
    };
    gone(&home(node).join("attach").join(&volume));
}
