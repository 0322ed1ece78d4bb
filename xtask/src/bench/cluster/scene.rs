//! A cluster with Larder in it, and what the benchmarks ask of it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use larder_cluster::{Cluster, Options, larder};
use serde_json::{Value, json};

const NAMESPACE: &str = "larder";
/// For what must happen, however busy the machine is.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// The class whose volumes are made at once, by either node.
pub(super) const NOW: &str = "bench-now";
/// The same on the first node.
pub(super) const HERE: &str = "bench-here";
/// The chart's class: volumes are made for the first pod.
pub(super) const LATE: &str = "larder-dir";
const DRIVER: &str = "dir.csi.larder.dev";

pub(super) struct Scene {
    pub(super) cluster: Cluster,
}

/// Brings a cluster up with the program in it, measures, and ends it.
pub(super) fn with(
    program: &Path,
    controller_manager: &[String],
    measure: impl FnOnce(&Scene) -> Result<()>,
) -> Result<()> {
    let options = Options { nodes: 2, controller_manager: controller_manager.to_vec() };
    let cluster = Cluster::throw_away(&format!("bench-{}", std::process::id()), &options)?;
    let scene = Scene { cluster };
    scene.install(program)?;
    measure(&scene)?;
    scene.cluster.down()
}

impl Scene {
    fn install(&self, program: &Path) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let archive = folder.path().join("larder.tar");
        larder::write_stripped(program, &format!("{}:bench", larder::IMAGE), &archive)?;
        self.cluster.import_image(&archive)?;
        self.cluster.kubectl(["create", "namespace", NAMESPACE])?;
        let label = "pod-security.kubernetes.io/enforce=privileged";
        self.cluster.kubectl(["label", "namespace", NAMESPACE, label])?;
        let chart = crate::root().join("deploy/chart").display().to_string();
        let repository = format!("image.repository={}", larder::IMAGE);
        let words = ["install", "larder", &chart, "--namespace", NAMESPACE, "--set", &repository];
        self.cluster.helm(words.into_iter().chain(["--set", "image.tag=bench"]))?;
        for node in ["node1", "node2"] {
            let known = |node: &Value| {
                (node.pointer("/spec/drivers")?.as_array()?.len() == 2).then_some(())
            };
            self.cluster.wait_for(&["csinode", node], PATIENCE, known)?;
        }
        let csi_node = self.cluster.get(["csinode", "node1"])?;
        let drivers = csi_node.pointer("/spec/drivers").and_then(Value::as_array);
        let ours = drivers.into_iter().flatten().find(|driver| driver["name"] == DRIVER);
        let key = ours.and_then(|d| d.pointer("/topologyKeys/0")?.as_str());
        let key = key.context("the driver has told no topology")?;
        let node = self.cluster.get(["node", "node1"])?;
        let here = node.pointer("/metadata/labels").and_then(|labels| labels.get(key));
        let only = json!([{ "matchLabelExpressions": [{ "key": key, "values": [here] }] }]);
        for (name, allowed) in [(NOW, json!([])), (HERE, only)] {
            let class = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
                "provisioner": DRIVER, "volumeBindingMode": "Immediate", "allowVolumeExpansion": true,
                "allowedTopologies": allowed,
            });
            self.cluster.apply(&class.to_string())?;
        }
        // Idle is after the start.
        std::thread::sleep(Duration::from_secs(10));
        Ok(())
    }

    /// Names of Larder's pods, and their nodes.
    pub(super) fn pods(&self) -> Result<Vec<(String, String)>> {
        let words =
            ["pods", "--namespace", NAMESPACE, "--selector", "app.kubernetes.io/name=larder"];
        let pods = self.cluster.get(words)?;
        let text = |pod: &Value, at: &str| {
            pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let items = pods["items"].as_array().context("no list")?;
        Ok(items.iter().map(|p| (text(p, "/metadata/name"), text(p, "/spec/nodeName"))).collect())
    }

    /// The metrics of one of Larder's pods.
    pub(super) fn metrics_of(&self, pod: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9808/proxy/metrics");
        self.cluster.kubectl(["get", "--raw", &path])
    }

    /// The metrics of the API server.
    pub(super) fn metrics(&self) -> Result<String> {
        self.cluster.kubectl(["get", "--raw", "/metrics"])
    }

    /// Makes objects, by several kubectl at once: one is held back by its own limit of requests.
    pub(super) fn create(&self, objects: &[Value]) -> Result<()> {
        let size = objects.len().div_ceil(8).max(1);
        let mut running: Vec<Child> = Vec::new();
        for part in objects.chunks(size) {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": part });
            let mut file = tempfile::tempfile()?;
            std::io::Write::write_all(&mut file, list.to_string().as_bytes())?;
            std::io::Seek::rewind(&mut file)?;
            let mut kubectl = self.cluster.kubectl_command();
            kubectl.args(["create", "--filename", "-"]).stdin(file).stdout(Stdio::null());
            running.push(kubectl.spawn()?);
        }
        for mut child in running {
            ensure!(child.wait()?.success(), "kubectl create failed");
        }
        Ok(())
    }

    /// Begins to watch: each line is an object, by `columns`.
    pub(super) fn watch(&self, words: &[&str], columns: &str) -> Result<Watch<'_>> {
        // A line is a watch event, and the object is within it.
        let columns = columns.replace(":.", ":.object.");
        let mut arguments = vec!["get".to_owned()];
        arguments.extend(words.iter().map(|word| (*word).to_owned()));
        arguments.extend(["--watch", "--no-headers", "--output-watch-events"].map(str::to_owned));
        arguments.extend(["--output".to_owned(), format!("custom-columns=EVENT:.type,{columns}")]);
        let (child, lines) = self.watcher(&arguments)?;
        Ok(Watch { scene: self, arguments, child, lines })
    }

    fn watcher(&self, arguments: &[String]) -> Result<(Child, mpsc::Receiver<(Instant, String)>)> {
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args(arguments).stdout(Stdio::piped());
        let mut child = kubectl.spawn().context("failed to start kubectl")?;
        let out = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        // It has asked for the list when it is this old.
        std::thread::sleep(Duration::from_millis(700));
        Ok((child, lines))
    }

    /// Waits until there is no PersistentVolume.
    pub(super) fn no_volumes(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.cluster.kubectl(["get", "pv", "--output", "name"])?.trim().is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("volumes are gone: not within {PATIENCE:?}");
    }
}

/// A kubectl that prints a line for each change.
pub(super) struct Watch<'a> {
    scene: &'a Scene,
    arguments: Vec<String>,
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Watch<'_> {
    /// Waits until `done` says so of a line (`EVENT COLUMN …`); when that line came. The API server ends
    /// watches of those that are slow to read: then there is another, which begins with all objects as
    /// they are.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&[&str]) -> bool,
    ) -> Result<Instant> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (at, line) = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("{what}: not within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    self.child.wait()?;
                    (self.child, self.lines) = self.scene.watcher(&self.arguments)?;
                    continue;
                }
            };
            if done(&line.split_whitespace().collect::<Vec<_>>()) {
                return Ok(at);
            }
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A claim.
pub(super) fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": { "requests": { "storage": size } },
        },
    })
}

/// A pod on the first node, with a claim or an emptyDir.
pub(super) fn pod(name: &str, claim: Option<&str>) -> Value {
    let volume = match claim {
        Some(claim) => json!({ "name": "data", "persistentVolumeClaim": { "claimName": claim } }),
        None => json!({ "name": "data", "emptyDir": {} }),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": "node1" }, "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": larder_cluster::BUSYBOX, "command": ["sleep", "100000"],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [volume],
        },
    })
}
