//! `kubectl larder`, as kubectl starts it, on a cluster in which things are really stuck.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test starts programs and waits, and a broken helper fails it"
)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use larder_cluster::{BUSYBOX, Cluster, Namespace, larder};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(240);
const SECRET: &str = "hunter2-in-a-secret";

/// The chart, and the program as a plugin of kubectl.
struct Scene<'a> {
    cluster: &'a Cluster,
    release: &'a Namespace<'a>,
    folder: tempfile::TempDir,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster, release: &'a Namespace<'a>) -> Self {
        let (folder, program) =
            (tempfile::tempdir().unwrap(), std::env::var("LARDER_BIN").unwrap());
        std::os::unix::fs::symlink(&program, folder.path().join("kubectl-larder")).unwrap();
        let archive = folder.path().join("larder.tar");
        let image = format!("{}:kubectl", larder::IMAGE);
        larder::write_stripped(Path::new(&program), &image, &archive).unwrap();
        cluster.import_image(&archive).unwrap();
        let this = Self { cluster, release, folder };
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart");
        let chart = chart.display().to_string();
        let (image, tag) = (format!("image.repository={}", larder::IMAGE), "image.tag=kubectl");
        this.helm(&["install", "larder", &chart, "--set", &image, "--set", tag]);
        for node in ["node1", "node2"] {
            // Other tests may have left theirs there.
            let known = |node: &Value| {
                let drivers = node.pointer("/spec/drivers")?.as_array()?;
                let has = |name: &str| drivers.iter().any(|driver| driver["name"] == name);
                (has("dir.csi.larder.dev") && has("loop.csi.larder.dev")).then_some(())
            };
            this.cluster.wait_for(&["csinode", node], PATIENCE, known).unwrap();
        }
        this
    }

    fn helm(&self, words: &[&str]) {
        let mut helm = self.cluster.helm_command();
        let output = helm.args(words).args(["--namespace", self.release.name()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// `kubectl larder …`: its exit status, and what it prints.
    fn larder(&self, words: &[&str]) -> (i32, String) {
        let mut kubectl = self.cluster.kubectl_command();
        let mut path = vec![self.folder.path().to_owned(), self.cluster.binaries().to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        kubectl.env("PATH", std::env::join_paths(path).unwrap()).current_dir(self.folder.path());
        let output = kubectl.arg("larder").args(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let printed = text(&output.stdout);
        let said = if printed.is_empty() { text(&output.stderr) } else { printed };
        (output.status.code().unwrap_or(-1), said)
    }

    /// Asks until `kind` is what something waits for or is stuck on; the report.
    fn why(&self, namespace: &Namespace<'_>, subject: &str, kind: &str) -> Value {
        let began = Instant::now();
        loop {
            let words = ["why", subject, "--namespace", namespace.name(), "--output", "json"];
            let (status, printed) = self.larder(&words);
            let report: Value = serde_json::from_str(&printed).unwrap_or_default();
            let found = report.pointer("/cause/kind").and_then(Value::as_str).unwrap_or("ok");
            if found == kind {
                let stuck = report["state"] == "stuck";
                assert_eq!(status, if stuck { 8 } else { 0 }, "{printed}");
                return report;
            }
            assert!(began.elapsed() < PATIENCE, "{subject} is not {kind}: {status} {printed}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let mut helm = self.cluster.helm_command();
        helm.args(["uninstall", "larder", "--no-hooks", "--ignore-not-found", "--wait"]);
        let _ = helm.args(["--namespace", self.release.name()]).output();
    }
}

fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": { "requests": { "storage": size } },
        },
    })
}

fn pod(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sleep", "100000"],
                "env": [{ "name": "LOGIN", "value": SECRET }],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}

fn class(name: &str, driver: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
        "provisioner": driver, "parameters": parameters,
    })
}

#[test]
fn what_is_stuck_is_named_with_its_cause_and_what_works_is_told_with_the_records_of_its_node() {
    let cluster = Cluster::of_tests().unwrap();
    let release = cluster.namespace("plugin").unwrap();
    let label =
        ["label", "namespace", release.name(), "pod-security.kubernetes.io/enforce=privileged"];
    cluster.kubectl(label).unwrap();
    let scene = Scene::new(&cluster, &release);
    let namespace = cluster.namespace("why").unwrap();
    let apply = |object: Value| namespace.apply(&object.to_string()).unwrap();
    let unique = namespace.name();

    // A pod that works, and its volume, as the node's own records have it.
    apply(claim("works", "larder-loop", "32Mi"));
    apply(pod("works", "works"));
    namespace.wait_for_pod("works", "Running", PATIENCE).unwrap();
    let report = scene.why(&namespace, "pod/works", "ok");
    let records = report["chain"].as_array().unwrap().iter().find(|step| step["link"] == "records");
    let what = records.unwrap_or_else(|| panic!("{report:#}"))["what"].as_str().unwrap();
    assert!(what.contains("is there; health: ok"), "{report:#}");

    // Stuck in earnest.
    apply(claim("class", "no-such-class", "32Mi"));
    scene.why(&namespace, "pvc/class", "class-missing");
    apply(claim("unused", "larder-loop", "32Mi"));
    assert_eq!(scene.why(&namespace, "pvc/unused", "waits-for-consumer")["state"], "waiting");
    let (absent, secret) = (format!("{unique}-absent"), format!("{unique}-secret"));
    cluster.apply(&class(&absent, "absent.csi.test", &json!({})).to_string()).unwrap();
    apply(claim("driver", &absent, "32Mi"));
    scene.why(&namespace, "pvc/driver", "driver-nowhere");
    let named = json!({
        "csi.storage.k8s.io/provisioner-secret-name": "login",
        "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
    });
    cluster.apply(&class(&secret, "loop.csi.larder.dev", &named).to_string()).unwrap();
    apply(claim("secret", &secret, "32Mi"));
    let report = scene.why(&namespace, "pvc/secret", "secret-missing");
    assert_eq!(report["cause"]["object"], format!("secret/{unique}/login"));
    apply(claim("large", "larder-loop", "900Ti"));
    apply(pod("large", "large"));
    let report = scene.why(&namespace, "pod/large", "no-capacity");
    assert!(report["cause"]["do"].as_str().unwrap().contains("pool"), "{report:#}");
    let protected = ["delete", "pvc", "works", "--wait=false"];
    namespace.kubectl(protected).unwrap();
    let report = scene.why(&namespace, "pvc/works", "finalizer");
    assert!(report["cause"]["what"].as_str().unwrap().contains("works"), "{report:#}");
    assert!(report["cause"]["since"].is_string(), "{report:#}");
    // For people.
    let (status, text) = scene.larder(&["why", "pvc/class", "-n", unique]);
    assert_eq!(status, 8, "{text}");
    for part in ["pvc/class in namespace", ": stuck", "do:", "no-such-class"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(scene.larder(&["why", "pvc/none", "-n", unique]).0, 3);

    let (status, text) = scene.larder(&["get", "volumes", "-n", unique, "-o", "json"]);
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, rows.as_array().unwrap().len()), (0, 1), "{text}");
    assert_eq!(rows[0]["claim"], format!("{unique}/works"));
    assert_eq!((&rows[0]["usedBy"], &rows[0]["state"]), (&json!(["works"]), &json!("Bound")));
    assert_eq!(rows[0]["conditions"], json!(["its claim is being deleted"]));

    bundle(&scene, &namespace);
    namespace.kubectl(["delete", "pods", "--all"]).unwrap();
    namespace.kubectl(["delete", "persistentvolumeclaims", "--all"]).unwrap();
    cluster.kubectl(["delete", "storageclass", &absent, &secret]).unwrap();
    let volume = rows[0]["volume"].as_str().unwrap();
    cluster.kubectl(["wait", "--for=delete", "--timeout=240s", "pv", volume]).unwrap();
}

/// A bundle has what is needed, and no secret, wherever one was put.
fn bundle(scene: &Scene<'_>, namespace: &Namespace<'_>) {
    let literal = format!("--from-literal=key={SECRET}");
    namespace.kubectl(["create", "secret", "generic", "other", &literal]).unwrap();
    let annotate = ["annotate", "pvc", "class", &format!("example.org/api-token={SECRET}")];
    namespace.kubectl(annotate).unwrap();
    let (status, printed) = scene.larder(&["support-bundle", "--file", "bundle.tar"]);
    assert_eq!(status, 0, "{printed}");
    let file: PathBuf = scene.folder.path().join("bundle.tar");
    let mut all = String::new();
    let mut names = Vec::new();
    let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().display().to_string());
        std::io::Read::read_to_string(&mut entry, &mut all).unwrap();
    }
    assert!(!all.contains(SECRET), "a secret is in the bundle");
    let ends = [
        "cluster/nodes.json",
        "cluster/persistentvolumes.json",
        "daemonsets.json",
        "log.txt",
        "doctor.json",
        "readyz.txt",
        "not-collected.txt",
    ];
    for end in ends.iter().copied().chain([format!("why/{}_class.json", namespace.name()).as_str()])
    {
        assert!(names.iter().any(|name| name.ends_with(end)), "{end}: {names:?}");
    }
    let doctors = names.iter().filter(|name| name.ends_with("doctor.json")).count();
    assert_eq!(doctors, 2, "one for each node: {names:?}");
    // A file that is there is not written over.
    assert_ne!(scene.larder(&["support-bundle", "--file", "bundle.tar"]).0, 0);
}
