//! `kubectl larder support-bundle`: what somebody needs who is to find a fault, in one file.
//!
//! ```text
//! cluster/KIND.json         objects of the storage of the cluster
//! larder/NAMESPACE/…        Larder's own objects; of each pod: log, the log before, doctor, readyz
//! why/NAMESPACE_CLAIM.json  of claims that are not bound: the chain
//! not-collected.txt         what could not be had, and why
//! ```
//! Nothing is written before it went through [`super::redact`]; Secrets are not asked for.

use super::{flags::SupportBundle, nodes, redact};
use crate::output;
use anyhow::{Context, Result};
use larder_controllers::{
    api::{
        Attachment, AttributesClass, CapacityObject, Claim, CsiNode, Node, Object, Place,
        StorageClass, Volume,
    },
    client::Kube,
    events::EVENTS,
    why::{self, Subject, text},
};
use serde_json::Value;
use std::{fs::File, io::Write, path::PathBuf};

/// As many claims that are not bound are explained.
const EXPLAINED: usize = 20;

const fn place(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Place {
    Place { group, version, kind, plural, namespaced: true }
}

/// Of the namespaces that have Larder's pods.
const OWN: [Place; 6] = [
    place("apps", "v1", "DaemonSet", "daemonsets"),
    place("apps", "v1", "Deployment", "deployments"),
    place("", "v1", "ConfigMap", "configmaps"),
    EVENTS,
    place("coordination.k8s.io", "v1", "Lease", "leases"),
    place("", "v1", "Pod", "pods"),
];

/// Runs `kubectl larder support-bundle`.
pub(crate) async fn run(flags: SupportBundle) -> Result<()> {
    let kube = flags.cluster.kube().await?;
    let now = jiff::Timestamp::now();
    let name = format!("larder-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let file = flags.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
    let made = private(&file).with_context(|| format!("failed to write {}", file.display()))?;
    let mut bundle = Bundle { tar: tar::Builder::new(made), name, now, missing: Vec::new() };
    bundle.cluster(&kube).await?;
    bundle.own(&kube, &flags).await?;
    bundle.why(&kube).await?;
    let missing = std::mem::take(&mut bundle.missing).join("\n");
    bundle.write("not-collected.txt", &missing)?;
    bundle.tar.into_inner().and_then(|mut file| file.flush())?;
    if !missing.is_empty() {
        output::note(format!(
            "not everything could be had: see not-collected.txt ({} lines)",
            missing.lines().count()
        ));
    }
    output::line(file.display().to_string())
}

/// Names of objects are not for everybody, either. A file that is there stays.
fn private(file: &std::path::Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create_new(true).mode(0o600).open(file)
}

struct Bundle {
    tar: tar::Builder<File>,
    name: String,
    now: jiff::Timestamp,
    missing: Vec<String>,
}

impl Bundle {
    fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len())?);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.now.as_second()).unwrap_or(0));
        let path = format!("{}/{path}", self.name);
        Ok(self.tar.append_data(&mut header, path, text.as_bytes())?)
    }

    /// An object as it is, but for its secrets.
    fn object(&mut self, path: &str, mut object: Value) -> Result<()> {
        redact::object(&mut object);
        self.write(path, &serde_json::to_string_pretty(&object)?)
    }

    async fn list(&mut self, kube: &Kube, place: Place, namespace: &str) -> Vec<Value> {
        match kube.look_all(place, namespace, "").await {
            Ok(found) => return found,
            Err(error) if error.is_not_found() => {}
            Err(error) => self.missing.push(error.to_string()),
        }
        Vec::new()
    }

    async fn cluster(&mut self, kube: &Kube) -> Result<()> {
        let kinds = [
            Node::PLACE,
            CsiNode::PLACE,
            why::CSI_DRIVERS,
            StorageClass::PLACE,
            AttributesClass::PLACE,
            Volume::PLACE,
            Claim::PLACE,
            Attachment::PLACE,
            CapacityObject::PLACE,
        ];
        for place in kinds {
            let found = self.list(kube, place, "").await;
            self.object(&format!("cluster/{}.json", place.plural), found.into())?;
        }
        let mut events = self.list(kube, EVENTS, "").await;
        events.retain(|event| {
            let (kind, reason) = (text(event, "/involvedObject/kind"), text(event, "/reason"));
            matches!(kind, "PersistentVolumeClaim" | "PersistentVolume" | "Node")
                || ["Mount", "Attach", "Volume"].iter().any(|word| reason.contains(word))
        });
        self.object("cluster/events.json", events.into())
    }

    async fn own(&mut self, kube: &Kube, flags: &SupportBundle) -> Result<()> {
        let pods = nodes::pods(kube, flags.namespace.as_deref().unwrap_or_default()).await;
        let pods = pods.unwrap_or_else(|fault| {
            self.missing
                .push(format!("find Larder's pods: {fault}; --namespace names its namespace"));
            Vec::new()
        });
        let namespaces: std::collections::BTreeSet<_> =
            pods.iter().map(|p| p.namespace.clone()).collect();
        for namespace in &namespaces {
            for place in OWN {
                let found = self.list(kube, place, namespace).await;
                self.object(&format!("larder/{namespace}/{}.json", place.plural), found.into())?;
            }
        }
        for pod in &pods {
            let folder = format!("larder/{}/{}", pod.namespace, pod.name);
            for (file, query) in [("log.txt", ""), ("log-before.txt", "&previous=true")] {
                let path = format!(
                    "/api/v1/namespaces/{}/pods/{}/log?tailLines={}&timestamps=true{query}",
                    pod.namespace, pod.name, flags.lines
                );
                self.page(kube, &format!("{folder}/{file}"), &path).await?;
            }
            if !pod.running || flags.no_nodes {
                continue;
            }
            let path =
                format!("/api/v1/namespaces/{}/pods/{}:9808/proxy/readyz", pod.namespace, pod.name);
            self.page(kube, &format!("{folder}/readyz.txt"), &path).await?;
            match nodes::larder(&flags.cluster, pod, ["doctor", "--output", "json"]) {
                Ok(told) if matches!(told.code(), Some(0 | 8)) => {
                    let report = serde_json::from_slice(&told.stdout).unwrap_or_default();
                    self.object(&format!("{folder}/doctor.json"), report)?;
                }
                Ok(told) => self.missing.push(format!(
                    "doctor of {}: {}",
                    pod.name,
                    redact::text(told.stderr.trim())
                )),
                Err(fault) => self.missing.push(format!("doctor of {}: {fault}", pod.name)),
            }
        }
        Ok(())
    }

    async fn page(&mut self, kube: &Kube, file: &str, path: &str) -> Result<()> {
        match kube.page(path).await {
            Ok(text) => self.write(file, &redact::text(&text)),
            // There is no log from before where nothing was restarted.
            Err(_) if path.contains("previous=true") => Ok(()),
            Err(error) => {
                self.missing.push(format!("{file}: {error}"));
                Ok(())
            }
        }
    }

    async fn why(&mut self, kube: &Kube) -> Result<()> {
        let claims = self.list(kube, Claim::PLACE, "").await;
        let pending = claims.iter().filter(|claim| text(claim, "/status/phase") != "Bound");
        for claim in pending.take(EXPLAINED) {
            let (namespace, name) =
                (text(claim, "/metadata/namespace"), text(claim, "/metadata/name"));
            let subject = Subject::Claim(name.to_owned());
            let report = match why::gather(kube, namespace, &subject).await {
                Ok(see) => why::explain(&see, &subject),
                Err(fault) => Err(fault),
            };
            match report {
                Ok(report) => {
                    let report = serde_json::to_value(&report)?;
                    self.object(&format!("why/{namespace}_{name}.json"), report)?;
                }
                Err(fault) => self.missing.push(fault.to_string()),
            }
        }
        Ok(())
    }
}
