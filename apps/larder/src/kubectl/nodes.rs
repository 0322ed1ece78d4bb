//! What the nodes themselves know: asked through `kubectl exec` in Larder's own pods, which runs
//! `larder` there. Everything is a look, and what cannot be asked is noted.

use super::flags::Cluster;
use larder_controllers::{
    api::{Object, Pod},
    client::Kube,
    why::{Snapshot, State, Told, text},
};
use larder_host::command::{Command, Output};
use larder_model::{Fault, Result};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf, time::Duration};

/// Larder's pods, as the chart labels them.
const OURS: &str = "labelSelector=app.kubernetes.io%2Fname%3Dlarder";
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod of Larder's that runs.
#[derive(Debug, Clone)]
pub(super) struct OurPod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    /// Of the DaemonSet.
    pub(super) on_node: bool,
    pub(super) running: bool,
}

/// Larder's pods of a namespace; empty: of all.
pub(super) async fn pods(kube: &Kube, namespace: &str) -> Result<Vec<OurPod>> {
    let found = kube.look_all(Pod::PLACE, namespace, OURS).await?;
    let of = |object: Value| OurPod {
        namespace: text(&object, "/metadata/namespace").to_owned(),
        name: text(&object, "/metadata/name").to_owned(),
        node: text(&object, "/spec/nodeName").to_owned(),
        on_node: text(&object, "/metadata/labels/app.kubernetes.io~1component") == "node",
        running: text(&object, "/status/phase") == "Running",
    };
    Ok(found.into_iter().map(of).collect())
}

/// Asks the nodes of volumes about them.
pub(super) async fn ask(
    kube: &Kube,
    cluster: &Cluster,
    volumes: &BTreeSet<String>,
    see: &mut Snapshot,
) {
    if volumes.is_empty() {
        return;
    }
    let pods = match pods(kube, "").await {
        Ok(pods) => pods,
        Err(fault) => return see.unseen.push(format!("ask the nodes: {fault}")),
    };
    let mut told = Vec::new();
    for name in volumes {
        let found = see.volumes.iter().find(|v| text(v, "/metadata/name") == name);
        let Some(volume) = found else { continue };
        let nodes = larder_controllers::why::nodes_of(see, volume);
        for pod in pods.iter().filter(|p| p.on_node && p.running && nodes.contains(&p.node)) {
            match one(cluster, pod, volume) {
                Ok(Some(answer)) => told.push(answer),
                Ok(None) => {}
                Err(fault) => see.unseen.push(format!("ask node {}: {fault}", pod.node)),
            }
        }
    }
    see.told = told;
}

/// What one node says of a volume; None: its driver is not there.
fn one(cluster: &Cluster, pod: &OurPod, volume: &Value) -> Result<Option<Told>> {
    let (driver, handle) =
        (text(volume, "/spec/csi/driver"), text(volume, "/spec/csi/volumeHandle"));
    let of = ["--driver", driver, "--timeout", "15", "--output", "json"];
    let doctor = larder(cluster, pod, ["doctor"].into_iter().chain(of))?;
    let report = match doctor.code() {
        Some(0 | 8) => serde_json::from_slice::<Value>(&doctor.stdout).unwrap_or_default(),
        // It does not serve that driver.
        Some(3) => return Ok(None),
        _ => {
            return Err(Fault::unavailable(format!(
                "run `larder doctor`: {}",
                doctor.stderr.trim()
            )));
        }
    };
    let findings =
        report.pointer("/findings").and_then(Value::as_array).cloned().unwrap_or_default();
    let finding = findings.iter().find(|finding| text(finding, "/volume") == handle);
    let told = |state, what: String, mend: &str| Told {
        volume: text(volume, "/metadata/name").to_owned(),
        by: format!("node {}", pod.node),
        state,
        what,
        mend: mend.to_owned(),
    };
    if let Some(finding) = finding {
        let state = if text(finding, "/severity") == "note" { State::Ok } else { State::Stuck };
        return Ok(Some(told(state, text(finding, "/what").to_owned(), text(finding, "/mend"))));
    }
    let shown = larder(cluster, pod, ["volume", "show", handle].into_iter().chain(of))?;
    Ok(Some(match shown.code() {
        Some(0) => {
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            let health = shown.pointer("/health").and_then(Value::as_array);
            let health: Vec<_> = health.into_iter().flatten().filter_map(Value::as_str).collect();
            let health = if health.is_empty() { "not told".to_owned() } else { health.join("; ") };
            told(State::Ok, format!("volume {handle} is there; health: {health}"), "")
        }
        Some(3) => told(
            State::Stuck,
            format!("its pool has no volume {handle}"),
            "look at the pools: larder pool ls, larder trash ls; a pool that is not mounted looks empty",
        ),
        _ => told(State::Unknown, format!("no answer: {}", shown.stderr.trim()), ""),
    }))
}

/// Runs `larder` in one of its pods.
pub(super) fn larder<'a>(
    cluster: &Cluster,
    pod: &OurPod,
    words: impl IntoIterator<Item = &'a str>,
) -> Result<Output> {
    let place = ["--namespace", pod.namespace.as_str(), "exec", pod.name.as_str(), "--", "larder"];
    let mut command = Command::new(kubectl()?).deadline(PATIENCE);
    // It finds cluster, login and helpers by the caller's environment.
    for name in ["HOME", "PATH", "KUBECONFIG", "XDG_CONFIG_HOME", "USER"] {
        if let Some(value) = std::env::var_os(name) {
            command = command.env(name, value);
        }
    }
    if let Some(file) = &cluster.kubeconfig {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        command = command.arg("--kubeconfig").arg(file);
    }
    if let Some(context) = &cluster.context {
        command = command.arg("--context").arg(context);
    }
    command.args(place).args(words).run_any()
}

/// Where kubectl is: whoever uses its plugin has it.
fn kubectl() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|p| p.is_file());
    found.and_then(|path| std::path::absolute(path).ok()).ok_or_else(|| {
        Fault::precondition("run kubectl: it is not in the PATH")
            .hint("install kubectl, or leave it out with --no-nodes")
    })
}
