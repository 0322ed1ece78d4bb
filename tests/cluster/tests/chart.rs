//! The chart on a real cluster: Larder as pods, under the chart's ServiceAccounts.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test starts programs and waits, and a broken helper fails it"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use larder_cluster::{BUSYBOX, Cluster, Machine, Namespace, larder};
use serde_json::{Value, json};

/// There is one chart in a cluster at a time.
static ALONE: Mutex<()> = Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(240);
const RELEASE: &str = "larder";

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart")
}

/// The values files that stand for a way to use the chart.
fn ways() -> Vec<PathBuf> {
    let files = std::fs::read_dir(chart().join("ci")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

/// Brings the program that is tested to all nodes, under these tags.
fn import(cluster: &Cluster, tags: &[&str]) {
    tags.iter().for_each(|tag| import_as(cluster, &format!("{}:{tag}", larder::IMAGE)));
}

fn import_as(cluster: &Cluster, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("larder.tar");
    larder::write_stripped(Path::new(&program()), name, &archive).unwrap();
    cluster.import_image(&archive).unwrap();
}

fn program() -> String {
    std::env::var("LARDER_BIN").unwrap()
}

/// The objects of a text, by kind, namespace and name.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let texts = format!("\n{text}");
    let all = texts.split("\n---").map(|text| serde_yaml_ng::from_str(text).unwrap());
    let name = |object: &Value| {
        let of = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        format!("{} {} {}", of("/kind"), of("/metadata/namespace"), of("/metadata/name"))
    };
    all.filter(|object: &Value| object.is_object()).map(|object| (name(&object), object)).collect()
}

#[test]
fn larder_manifests_gives_what_helm_gives() {
    let cluster = Cluster::of_tests().unwrap();
    let chart = chart().display().to_string();
    for way in ways() {
        let values = way.to_str().unwrap();
        let words = ["template", "larder", &chart, "--kube-version", "1.36.0", "--no-hooks"];
        let same = ["--namespace", "there", "--values", values, "--set", "metrics.port=9909"];
        let helm = cluster.helm(words.into_iter().chain(same)).unwrap();
        let mut larder = Command::new(program());
        larder.arg("manifests").args(same);
        if !std::fs::read_to_string(&way).unwrap().contains("namespace: { create") {
            // Helm makes it by itself, or not.
            larder.args(["--set", "namespace.create=false"]);
        }
        let output = larder.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let own = String::from_utf8(output.stdout)
            .unwrap()
            .replace("app.kubernetes.io/managed-by: larder", "app.kubernetes.io/managed-by: Helm");
        let (helm, own) = (objects(&helm), objects(&own));
        assert!(helm.len() > 8, "{values}: {:?}", helm.keys());
        assert_eq!(helm.keys().collect::<Vec<_>>(), own.keys().collect::<Vec<_>>(), "{values}");
        for (name, object) in &helm {
            assert!(*object == own[name], "{values}: {name}: {object:#}\nis not\n{:#}", own[name]);
        }
    }
}

#[test]
fn the_quick_start_works_word_for_word() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::of_tests().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    import_as(&cluster, &format!("ghcr.io/larder-dev/larder:{version}"));
    for node in cluster.nodes() {
        let busybox = "docker.io/library/busybox:1.36";
        let words = ["ctr", "--namespace", "k8s.io", "images", "tag", "--force", BUSYBOX, busybox];
        node.run(words).unwrap();
    }
    let page = include_str!("../../../docs/install.md");
    let (_, page) = page.split_once("## Quick start").unwrap();
    let (page, _) = page.split_once("\n## ").unwrap();
    let blocks: Vec<_> = page.split("```sh\n").skip(1).collect();
    assert_eq!(blocks.len(), 2);
    let mut printed = String::new();
    for block in blocks {
        let (script, _) = block.split_once("```").unwrap();
        let mut bash = cluster.tool("bash");
        bash.args(["-euc", script]).current_dir(chart().join("../.."));
        let output = bash.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        printed.push_str(&String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{script}{printed}{stderr}");
    }
    assert!(printed.contains("20"), "the pod's date: {printed}");
    let claim = cluster.get(["pvc", "data"]).unwrap();
    let volume = claim.pointer("/spec/volumeName").and_then(Value::as_str).unwrap();
    cluster.kubectl(["delete", "pod,pvc", "data"]).unwrap();
    cluster.kubectl(["wait", "--for=delete", "--timeout=240s", "pv", volume]).unwrap();
    cluster.helm(["uninstall", "larder", "--namespace", "larder", "--wait"]).unwrap();
    cluster.kubectl(["delete", "namespace", "larder"]).unwrap();
}

#[test]
fn every_way_to_use_the_chart_is_clean_and_the_api_server_takes_what_it_gives() {
    let cluster = Cluster::of_tests().unwrap();
    let namespace = cluster.namespace("ways").unwrap();
    let storage = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "storage"}});
    cluster.apply(&storage.to_string()).unwrap();
    let chart = chart().display().to_string();
    for way in ways() {
        let values = way.to_str().unwrap();
        cluster.helm(["lint", &chart, "--strict", "--values", values]).unwrap();
        // helm was built without a version of Kubernetes and would take it for an old one.
        let words = ["template", RELEASE, &chart, "--kube-version", "1.36.0", "--values", values];
        let text =
            cluster.helm(words.into_iter().chain(["--namespace", namespace.name()])).unwrap();
        // The Prometheus operator is not in this cluster.
        let known = text.split("\n---").filter(|text| !text.contains("monitoring.coreos.com"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), known.collect::<Vec<_>>().join("\n---")).unwrap();
        let file = file.path().to_str().unwrap();
        let taken = cluster.kubectl(["apply", "--dry-run=server", "--filename", file]);
        assert!(taken.as_ref().is_ok_and(|text| text.contains("daemonset")), "{values}: {taken:?}");
    }
    cluster.kubectl(["delete", "namespace", "storage", "--wait=false"]).unwrap();
}

#[test]
fn a_value_that_nobody_knows_is_refused() {
    let cluster = Cluster::of_tests().unwrap();
    let chart = chart().display().to_string();
    for wrong in ["nodes.x=1", "drivers.dir.backend=zfs", "kubelet.root=var", "log.format=xml"] {
        let words = ["template", RELEASE, &chart, "--kube-version", "1.36.0", "--set", wrong];
        assert!(cluster.helm(words).is_err(), "{wrong}");
    }
}

#[test]
fn every_program_in_the_image_starts() {
    let cluster = Cluster::of_tests().unwrap();
    import(&cluster, &["programs"]);
    let namespace = cluster.namespace("programs").unwrap();
    let programs = [
        ["blkid", "-V"],
        ["btrfs", "--version"],
        ["cryptsetup", "--version"],
        ["dmsetup", "help"],
        ["e2fsck", "-V"],
        ["findmnt", "-V"],
        ["fstrim", "-V"],
        ["losetup", "-V"],
        ["lsblk", "-V"],
        ["mkfs.btrfs", "--version"],
        ["mkfs.ext4", "-V"],
        ["mkfs.xfs", "-V"],
        ["mount", "-V"],
        ["umount", "-V"],
        ["wipefs", "-V"],
        ["xfs_db", "-V"],
        ["xfs_growfs", "-V"],
        ["xfs_io", "-V"],
        ["xfs_repair", "-V"],
        ["larder", "--version"],
    ];
    let image = format!("{}:programs", larder::IMAGE);
    let container = |command: &[&str; 2]| json!({"name": command[0].replace(['.', '_'], "-"), "image": image, "command": command});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "programs" },
        "spec": {
            "nodeName": "node2", "restartPolicy": "Never",
            "initContainers": programs.iter().map(container).collect::<Vec<_>>(),
            "containers": [{ "name": "last", "image": image, "args": ["--version"] }],
        },
    });
    namespace.apply(&pod.to_string()).unwrap();
    let text = namespace.output_of_pod("programs", PATIENCE).unwrap();
    assert!(text.starts_with("larder "), "{text}");
}

/// The chart in a cluster, gone with the test however it ends.
struct Release<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace<'a>,
}

impl Release<'_> {
    /// helm with a command for the release, and what it printed on failure.
    fn helm(&self, words: &[&str]) -> Result<String, String> {
        let mut helm = self.cluster.helm_command();
        helm.args(words).args(["--namespace", self.namespace.name()]);
        let output = helm.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Installs or upgrades to the image of a tag.
    fn deploy(&self, command: &str, tag: &str, more: &[&str]) {
        let (chart, image) = (chart().display().to_string(), larder::IMAGE);
        let (image, tag) = (format!("image.repository={image}"), format!("image.tag={tag}"));
        let words = [command, RELEASE, &chart, "--set", &image, "--set", &tag];
        self.helm(&[&words, more].concat()).unwrap();
        self.wait();
    }

    /// Waits until both nodes run what was last asked for, and kubelet knows both drivers there.
    fn wait(&self) {
        let both = |set: &Value| {
            let of = |path: &str| set.pointer(path).and_then(Value::as_i64).unwrap_or_default();
            let seen = of("/status/observedGeneration") == of("/metadata/generation");
            let ready = ["numberReady", "updatedNumberScheduled", "numberAvailable"]
                .iter()
                .all(|count| of(&format!("/status/{count}")) == 2);
            (seen && ready).then_some(())
        };
        let waited = self.namespace.wait_for(&["daemonset", "larder-node"], PATIENCE, both);
        waited.unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        for node in ["node1", "node2"] {
            let known = |node: &Value| {
                let drivers = node.pointer("/spec/drivers")?.as_array()?;
                (drivers.len() == 2).then_some(())
            };
            self.cluster.wait_for(&["csinode", node], PATIENCE, known).unwrap();
        }
    }

    fn logs(&self) -> String {
        let words = ["logs", "daemonset/larder-node", "--all-pods", "--prefix", "--tail=40"];
        let pods = self.namespace.kubectl(["describe", "pods"]).unwrap_or_default();
        format!("{}\n{pods}", self.namespace.kubectl(words).unwrap_or_default())
    }

    /// Whether the ServiceAccount of the nodes may do that.
    fn may(&self, verb: &str, what: &str, namespace: &str) -> bool {
        let account = format!("system:serviceaccount:{}:larder-node", self.namespace.name());
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args(["auth", "can-i", verb, what, "--as", &account, "--namespace", namespace]);
        kubectl.output().unwrap().status.success()
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let _ = self.helm(&["uninstall", RELEASE, "--no-hooks", "--ignore-not-found", "--wait"]);
    }
}

/// A pod that writes one number after the other, and never one twice.
struct Writer<'a> {
    namespace: &'a Namespace<'a>,
    backend: &'static str,
    volume: String,
    container: String,
    node: String,
    mounts: Vec<String>,
}

impl<'a> Writer<'a> {
    fn start(cluster: &Cluster, namespace: &'a Namespace<'a>, backend: &'static str) -> Self {
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": backend },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": format!("larder-{backend}"),
                "resources": { "requests": { "storage": "64Mi" } },
            },
        });
        let script = "i=$(wc -l </data/log 2>/dev/null || echo 0); \
            while :; do i=$((i+1)); echo $i >>/data/log; sync; sleep 0.1; done";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": backend },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "securityContext": { "runAsUser": 1000, "fsGroup": 2000 },
                "containers": [{
                    "name": "main", "image": BUSYBOX, "command": ["sh", "-ec", script],
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": backend } }],
            },
        });
        namespace.apply(&claim.to_string()).unwrap();
        namespace.apply(&pod.to_string()).unwrap();
        let pod = namespace.wait_for_pod(backend, "Running", PATIENCE).unwrap();
        let text = |value: &Value, path: &str| {
            value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let claim = namespace.wait_for(&["pvc", backend], PATIENCE, |c| Some(c.clone())).unwrap();
        let mut writer = Self {
            namespace,
            backend,
            volume: text(&claim, "/spec/volumeName"),
            container: text(&pod, "/status/containerStatuses/0/containerID"),
            node: text(&pod, "/spec/nodeName"),
            mounts: Vec::new(),
        };
        writer.mounts = writer.mounts_now(cluster);
        assert!(!writer.mounts.is_empty(), "{} is mounted", writer.volume);
        writer
    }

    /// Where the volume is mounted on its node.
    fn mounts_now(&self, cluster: &Cluster) -> Vec<String> {
        let node = cluster.nodes().iter().find(|node| node.name() == self.node).unwrap();
        let table = node.run(["cat", "/proc/self/mountinfo"]).unwrap();
        let at = |line: &str| line.split(' ').nth(4).map(str::to_owned);
        let of = |path: &String| path.contains("/var/lib/kubelet/") && path.contains(&self.volume);
        let mut all: Vec<_> = table.lines().filter_map(at).filter(of).collect();
        all.sort();
        all
    }

    /// The very same container goes on writing, nothing is missing, and nothing was mounted twice.
    fn is_undisturbed(&self, cluster: &Cluster) {
        let lines = || -> u64 {
            let words = ["exec", self.backend, "--", "wc", "-l", "/data/log"];
            let text = self.namespace.kubectl(words).unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (before, began) = (lines(), std::time::Instant::now());
        while lines() == before {
            assert!(began.elapsed() < PATIENCE, "{} does not go on", self.backend);
        }
        let check = "awk '$1 != NR { print \"line\", NR, \"is\", $1; exit 1 }' /data/log";
        self.namespace.kubectl(["exec", self.backend, "--", "sh", "-c", check]).unwrap();
        let pod = self.namespace.wait_for_pod(self.backend, "Running", PATIENCE).unwrap();
        let container = pod.pointer("/status/containerStatuses/0/containerID").unwrap();
        assert_eq!(*container, self.container.as_str(), "it was not restarted");
        assert_eq!(self.mounts_now(cluster), self.mounts, "{} is mounted as before", self.backend);
    }

    /// The pod goes, and then the claim with its volume.
    fn end(&self, cluster: &Cluster) {
        self.namespace.kubectl(["delete", "pod", self.backend]).unwrap();
        self.namespace.kubectl(["delete", "pvc", self.backend]).unwrap();
        let words = ["wait", "--for=delete", "--timeout=240s", "pv", &self.volume];
        cluster.kubectl(words).unwrap();
        assert_eq!(self.mounts_now(cluster), Vec::<String>::new());
    }
}

fn kill_larder(node: &Machine) {
    // The machine has process numbers of its own: it is Larder of this node and of nobody else.
    node.run(["pkill", "-KILL", "-x", "larder"]).unwrap();
}

#[test]
fn pods_write_on_while_the_chart_is_upgraded_rolled_back_killed_and_uninstalled() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::of_tests().unwrap();
    import(&cluster, &["old", "new"]);
    let namespace = cluster.namespace("chart").unwrap();
    let release = Release { cluster: &cluster, namespace: &namespace };
    let began = std::time::Instant::now();
    release.deploy("install", "old", &[]);
    println!("installed, with both drivers on both nodes: {:.1} s", began.elapsed().as_secs_f64());

    // As little as it takes.
    assert!(release.may("create", "persistentvolumes", "default"));
    assert!(release.may("create", "csistoragecapacities", namespace.name()));
    for (verb, what) in [
        ("get", "secrets"),
        ("list", "pods"),
        ("list", "nodes"),
        ("create", "csistoragecapacities"),
        ("create", "leases"),
        ("delete", "persistentvolumeclaims"),
        ("create", "pods"),
    ] {
        assert!(!release.may(verb, what, "default"), "{verb} {what}");
    }

    let began = std::time::Instant::now();
    let writers = ["dir", "loop"].map(|backend| Writer::start(&cluster, &namespace, backend));
    println!("two claims and their pods run: {:.1} s", began.elapsed().as_secs_f64());
    let undisturbed = |what: &str| {
        writers.iter().for_each(|writer| writer.is_undisturbed(&cluster));
        println!("undisturbed by {what}");
    };

    cluster.nodes().iter().for_each(kill_larder);
    release.wait();
    undisturbed("kill -9 on both nodes");
    let words = ["delete", "pods", "--selector", "app.kubernetes.io/component=node"];
    namespace.kubectl(words).unwrap();
    release.wait();
    undisturbed("a restart of both pods");
    release.deploy("upgrade", "new", &["--set", "log.level=debug"]);
    undisturbed("an upgrade");
    release.helm(&["rollback", RELEASE, "1"]).unwrap();
    release.wait();
    undisturbed("a rollback");

    let refused = release.helm(&["uninstall", RELEASE]).unwrap_err();
    assert!(refused.contains("larder-uninstall"), "{refused}");
    let why = namespace.kubectl(["logs", "job/larder-uninstall"]).unwrap();
    assert!(why.contains("2 PersistentVolumes") && why.contains(&writers[0].volume), "{why}");
    release.wait();
    undisturbed("an uninstallation that was refused");
    release.helm(&["rollback", RELEASE]).unwrap();
    release.wait();

    release.helm(&["uninstall", RELEASE, "--no-hooks", "--wait"]).unwrap();
    undisturbed("an uninstallation that was not");
    release.deploy("install", "old", &[]);
    undisturbed("another installation");
    writers.iter().for_each(|writer| writer.end(&cluster));
    release.helm(&["uninstall", RELEASE, "--wait"]).unwrap();
    let left = cluster.kubectl(["get", "csidrivers,clusterroles", "--output", "name"]).unwrap();
    assert!(!left.contains("larder"), "{left}");
}

#[test]
fn volumes_of_a_pool_that_all_nodes_see_are_made_by_the_deployment_and_nobody_else() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::of_tests().unwrap();
    import(&cluster, &["shared"]);
    let namespace = cluster.namespace("shared").unwrap();
    let release = Release { cluster: &cluster, namespace: &namespace };
    // The nodes of this cluster share no file system: all is on one.
    let on_one = json!({ "nodeSelector": { "kubernetes.io/hostname": "node1" } });
    let path = format!("/var/lib/{}", namespace.name());
    let values = json!({
        "image": { "repository": larder::IMAGE, "tag": "shared" },
        "drivers": {
            "dir": { "enabled": false }, "loop": { "enabled": false },
            "team": {
                "enabled": true, "name": "team.csi.example.org", "backend": "dir",
                "pools": { "default": { "path": path, "shared": true, "create": true } },
                "storageClasses": { "team": {} },
            },
        },
        "node": on_one, "controller": on_one,
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let (chart, file) = (chart().display().to_string(), file.path().to_str().unwrap().to_owned());
    release.helm(&["install", RELEASE, &chart, "--values", &file]).unwrap();
    let works = |set: &Value| (set.pointer("/status/availableReplicas")? == 2).then_some(());
    let waited = namespace.wait_for(&["deployment", "larder-controller"], PATIENCE, works);
    waited.unwrap_or_else(|error| panic!("{error:#}\n{}", release.logs()));
    assert!(!release.may("create", "persistentvolumes", "default"), "the nodes make nothing");

    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "team" },
        "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "team",
            "resources": { "requests": { "storage": "64Mi" } },
        },
    });
    namespace.apply(&claim.to_string()).unwrap();
    let bound = |claim: &Value| (claim.pointer("/status/phase")? == "Bound").then_some(());
    namespace.wait_for(&["pvc", "team"], PATIENCE, bound).unwrap();
    let lease = namespace.kubectl(["get", "leases", "--output", "yaml"]).unwrap();
    assert!(lease.contains("holderIdentity: larder-controller-"), "{lease}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "team" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": "node1" }, "restartPolicy": "Never",
            "securityContext": { "runAsUser": 1000, "fsGroup": 2000 },
            "containers": [{
                "name": "main", "image": BUSYBOX,
                "command": ["sh", "-ec", "echo written >/data/x; cat /data/x"],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "team" } }],
        },
    });
    namespace.apply(&pod.to_string()).unwrap();
    assert_eq!(namespace.output_of_pod("team", PATIENCE).unwrap(), "written\n");
    let claim = cluster.get(["pvc", "team", "--namespace", namespace.name()]).unwrap();
    let volume = claim.pointer("/spec/volumeName").and_then(Value::as_str).unwrap();
    namespace.kubectl(["delete", "pod,pvc", "team"]).unwrap();
    cluster.kubectl(["wait", "--for=delete", "--timeout=240s", "pv", volume]).unwrap();
}
