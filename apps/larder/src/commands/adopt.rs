//! `larder adopt`: the volumes of a pool, from its directory alone.
//!
//! A pool's records hold everything that is needed to use its volumes. When configuration, node records
//! and cluster are lost, this reads them back and writes what the cluster has to be told. Nothing is
//! locked, opened or changed.

use crate::{
    backends, cli,
    exit::Found,
    output::{self, Format, Row},
};
use anyhow::Result;
use larder_host::Host;
use larder_model::{
    Bytes, DriverName, Fault, NodeName, PoolName, VolumeId,
    volume::{Attributes, FormatState, NODE_TOPOLOGY_KEY, context},
};
use larder_pool::{
    Access,
    look::{Look, look},
    record::VolumeRecord,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// A volume as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Adopted {
    id: String,
    name: String,
    size: u64,
    fs: String,
    /// `mount`, `block` or `mount,block`.
    access: String,
    origin: &'static str,
    context: Attributes,
}

impl Row for Adopted {
    const HEADINGS: &'static [&'static str] =
        &["ID", "NAME", "SIZE", "FS", "ACCESS", "ORIGIN", "CONTEXT"];
    const NARROW: usize = 6;
    fn cells(&self) -> Vec<String> {
        let context: Vec<_> = self.context.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            self.id.clone(),
            self.name.clone(),
            Bytes::new(self.size).to_string(),
            self.fs.clone(),
            self.access.clone(),
            self.origin.to_owned(),
            context.join(","),
        ]
    }
}

/// Runs `larder adopt`.
pub(crate) async fn run(flags: cli::Adopt) -> Result<()> {
    let path = std::path::absolute(&flags.pool)
        .map_err(|e| Fault::io(format!("find the pool {}", flags.pool.display()), e))?;
    let place = path.clone();
    let (found, backend, is_dir) = larder_host::blocking(move || see(&place)).await?;
    let driver: DriverName = match flags.driver {
        // As everywhere, a driver may be named by its backend.
        Some(word)
            if crate::backends::find(word.as_str()).is_some() && word.as_str() != backend =>
        {
            return Err(Fault::conflict(format!(
                "adopt {} for driver {word}: it is a pool of backend {backend}",
                path.display()
            ))
            .into());
        }
        Some(driver) if driver.as_str() != backend => driver,
        _ => format!("{backend}.csi.larder.dev").parse()?,
    };
    let (volumes, problems) = volumes(&found, &flags.pool_name, is_dir);
    match flags.output.output {
        Format::Yaml => {
            let node = node(flags.node)?;
            for volume in &volumes {
                let name = object_name(&flags.name_prefix, &volume.id)?;
                let manifest = manifest(volume, &name, &driver, &node, flags.shared);
                output::line(format!("---\n{}", serde_yaml_ng::to_string(&manifest)?.trim_end()))?;
            }
        }
        format => output::list(format, &volumes)?,
    }
    for problem in &problems {
        output::note(format!("left out: {problem}"));
    }
    let snapshots = found.0.snapshots.len();
    if snapshots > 0 {
        output::note(format!(
            "not listed: {snapshots} snapshots; with the pool configured, larder snapshot ls shows them"
        ));
    }
    if problems.is_empty() { Ok(()) } else { Err(Found.into()) }
}

/// The pool and the size of its file system, its backend, and whether its volumes are directories.
type Seen = ((Look, Bytes), &'static str, bool);

fn see(path: &Path) -> larder_model::Result<Seen> {
    let host = Host::real();
    host.filesystems.answers(path)?;
    let identity = larder_pool::identity(path)?.ok_or_else(|| {
        Fault::not_found(format!(
            "adopt {}: it is no pool: its identity is missing",
            path.display()
        ))
        .hint("mount what holds the pool; larder-pool.json must be in it")
    })?;
    let kind = backends::find(&identity.backend).ok_or_else(|| {
        Fault::invalid(format!(
            "adopt {}: it is a pool of backend {:?}, which this release does not have",
            path.display(),
            identity.backend
        ))
    })?;
    let total = host.filesystems.usage(path)?.total;
    let names = kind.names.ok_or_else(|| {
        Fault::invalid(format!("adopt {}: {} has no such pools", path.display(), kind.name))
    })?;
    Ok(((look(path, names)?, total), kind.name, names.is_dir))
}

fn node(given: Option<NodeName>) -> larder_model::Result<NodeName> {
    match given {
        Some(node) => Ok(node),
        None => rustix::system::uname().nodename().to_string_lossy().parse(),
    }
}

/// The volumes, sorted by id, and in words what cannot be one.
fn volumes(seen: &(Look, Bytes), pool: &PoolName, is_dir: bool) -> (Vec<Adopted>, Vec<String>) {
    let (look, total) = seen;
    let (mut volumes, mut problems) = (Vec::new(), Vec::new());
    for item in &look.volumes {
        let folder = item.folder.display();
        match (&item.record, item.found) {
            (Some(Ok(record)), Some(data)) if data.is_right => {
                if !is_dir && data.size < record.size.get() {
                    problems.push(format!(
                        "{folder}: its data ends after {} of {} bytes",
                        data.size, record.size
                    ));
                } else if record.ephemeral {
                    problems.push(format!("{folder}: it belonged to a pod and ended with it"));
                } else {
                    let id = VolumeId::new(pool.clone(), item.native.clone());
                    volumes.push(created(id.as_str(), record, is_dir));
                }
            }
            (Some(Ok(_)), _) => problems.push(format!("{folder}: its data is missing or replaced")),
            (Some(Err(fault)), _) => problems.push(format!("{folder}: cannot {fault}")),
            (None, _) => problems.push(format!(
                "{folder}: it has no record (hint: move its data into the pool's folder static)"
            )),
        }
    }
    for item in &look.statics {
        let native = match &item.native {
            Ok(native) if look.volumes.iter().any(|v| v.native == *native) => {
                problems.push(format!(
                    "{}: a created volume of that name hides it",
                    item.path.display()
                ));
                continue;
            }
            Ok(native) => native,
            Err(why) => {
                problems.push(format!("{}: {why}", item.path.display()));
                continue;
            }
        };
        let recorded = match &item.record {
            Some(Ok(record)) => file_system(record),
            _ => String::new(),
        };
        volumes.push(Adopted {
            id: VolumeId::new(pool.clone(), native.clone()).as_str().to_owned(),
            name: native.to_string(),
            // A directory has no size of its own.
            size: if is_dir { total.get() } else { item.found.size },
            fs: recorded,
            access: if is_dir { "mount" } else { "mount,block" }.to_owned(),
            origin: "static",
            context: Attributes::new(),
        });
    }
    volumes.sort_by(|a, b| a.id.cmp(&b.id));
    (volumes, problems)
}

fn created(id: &str, record: &VolumeRecord, is_dir: bool) -> Adopted {
    let block = record.access.contains(&Access::Block);
    let mount = record.access.is_empty() || record.access.iter().any(|a| *a != Access::Block);
    let access = match (mount, block || (record.access.is_empty() && !is_dir)) {
        (true, true) => "mount,block",
        (false, true) => "block",
        (_, false) => "mount",
    };
    Adopted {
        id: id.to_owned(),
        name: record.name.clone(),
        size: record.size.get(),
        fs: if is_dir || !mount { String::new() } else { file_system(record) },
        access: access.to_owned(),
        origin: "created",
        context: record.context.clone(),
    }
}

/// What is on it, else what it was made for.
fn file_system(record: &VolumeRecord) -> String {
    match record.file_system.and_then(FormatState::file_system) {
        Some(fs) => fs.to_string(),
        None => record.context.get(context::FS).cloned().unwrap_or_default(),
    }
}

/// What the PersistentVolume is called: the volume's own name where Kubernetes accepts that (a DNS-1123
/// subdomain), else what is left of it with a digest of the id.
///
/// # Errors
/// `Invalid` where the prefix makes it none.
fn object_name(prefix: &str, id: &str) -> larder_model::Result<String> {
    let native = id.rsplit('/').next().unwrap_or(id);
    let plain = format!("{prefix}{native}");
    if is_subdomain(&plain) {
        return Ok(plain);
    }
    let labels = native.split('.').map(|label| label.trim_matches('-'));
    let labels: Vec<_> = labels.filter(|label| !label.is_empty()).collect();
    let readable = if labels.is_empty() { "volume".to_owned() } else { labels.join(".") };
    let digest: String =
        Sha256::digest(id).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{prefix}{readable}-{digest}");
    if is_subdomain(&name) {
        return Ok(name);
    }
    Err(Fault::invalid(format!("call a PersistentVolume {name:?}")).hint(
        "a --name-prefix has small letters, digits, dots and dashes, and begins with a letter",
    ))
}

fn is_subdomain(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        is_end(bytes.first())
            && is_end(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// What Kubernetes is told of it. Reclaiming never deletes it: the claim it had is not known.
fn manifest(
    volume: &Adopted,
    name: &str,
    driver: &DriverName,
    node: &NodeName,
    shared: bool,
) -> Value {
    let mode = if volume.access == "block" { "Block" } else { "Filesystem" };
    let mut csi = json!({ "driver": driver.as_str(), "volumeHandle": volume.id });
    if !volume.fs.is_empty() {
        csi["fsType"] = json!(volume.fs);
    }
    if !volume.context.is_empty() {
        csi["volumeAttributes"] = json!(volume.context);
    }
    let mut spec = json!({
        "capacity": { "storage": volume.size.to_string() },
        "volumeMode": mode,
        "accessModes": [if shared { "ReadWriteMany" } else { "ReadWriteOnce" }],
        "persistentVolumeReclaimPolicy": "Retain",
        "csi": csi,
    });
    if !shared {
        let here = json!({ "key": NODE_TOPOLOGY_KEY, "operator": "In", "values": [node.as_str()] });
        spec["nodeAffinity"] =
            json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [here] }] } });
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": { "pv.kubernetes.io/provisioned-by": driver.as_str() },
        },
        "spec": spec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistent_volumes_get_names_that_kubernetes_accepts() {
        let name = |prefix, id| object_name(prefix, id).ok();
        assert_eq!(name("", "default/pvc-1").as_deref(), Some("pvc-1"));
        assert_eq!(name("n1-", "default/a.b").as_deref(), Some("n1-a.b"));
        for id in ["default/a..b", "default/-a-.-b", "default/a.", "default/..."] {
            assert!(name("", id).is_some_and(|name| is_subdomain(&name)), "{id}");
        }
        assert_ne!(name("", "default/a..b"), name("", "default/a.-b"));
        assert_eq!(name("UPPER-", "default/a"), None);
    }
}
