//! What a claim is made from, and whether that can be.

use super::outcome::Failure;
use crate::{
    api::{
        Claim, DataSource, Key, Object, Quantity, ReferenceGrant, Snapshot, SnapshotContent,
        StorageClass, Volume,
    },
    driver::{Can, ControllerCan},
};
use larder_model::Fault;
use larder_proto::csi;

/// Keeps the source of a running clone.
pub const CLONE_FINALIZER: &str = "provisioner.storage.kubernetes.io/cloning-protection";
/// Keeps the source of a running restore.
pub const SNAPSHOT_FINALIZER: &str =
    "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection";
const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";
const MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";

/// A source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An empty volume.
    None,
    /// A claim is cloned.
    Claim(Key),
    /// A snapshot is restored.
    Snapshot(Key),
    /// Somebody else fills the volume: this claim is not for us.
    Populator(DataSource),
}

/// The source of a claim.
///
/// # Errors
/// Final: a source without a name, one that the driver cannot copy, or one of another namespace
/// where that is switched off.
pub fn of(claim: &Claim, can: &Can, cross_namespace: bool) -> Result<Source, Failure> {
    let refuse = |fault: Fault| Failure::finished(&fault);
    let spec = &claim.spec;
    let (source, namespace) = match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), _) => (source, None),
        (None, Some(source)) => (source, source.namespace.as_deref().filter(|n| !n.is_empty())),
        (None, None) => return Ok(Source::None),
    };
    if namespace.is_some() && !cross_namespace {
        return Err(refuse(
            Fault::invalid("use a data source of another namespace: that is switched off").hint(
                "switch on the feature gate CrossNamespaceVolumeDataSource, or copy within the namespace",
            ),
        ));
    }
    let key = Key::new(namespace.unwrap_or(&claim.metadata.namespace), &source.name);
    let (found, needed, word) = match (source.group(), source.kind.as_str()) {
        (SNAPSHOT_GROUP, "VolumeSnapshot") => {
            (Source::Snapshot(key), ControllerCan::CreateDeleteSnapshot, "snapshots")
        }
        ("", "PersistentVolumeClaim") => (Source::Claim(key), ControllerCan::CloneVolume, "clones"),
        _ => return Ok(Source::Populator(source.clone())),
    };
    if source.name.is_empty() {
        return Err(refuse(Fault::invalid("use the data source: it has no name")));
    }
    if !can.control(needed) {
        return Err(refuse(Fault::unsupported(format!(
            "make the volume from {} {}: the driver offers no {word}",
            source.kind, source.name
        ))));
    }
    Ok(found)
}

/// Whether a claim of another namespace may refer to the source.
///
/// # Errors
/// No change: the grant may come.
pub fn granted(claim: &Claim, source: &Source, grants: &[ReferenceGrant]) -> Result<(), Failure> {
    let (group, kind, key) = match source {
        Source::Snapshot(key) => (SNAPSHOT_GROUP, "VolumeSnapshot", key),
        Source::Claim(key) => ("", "PersistentVolumeClaim", key),
        Source::None | Source::Populator(_) => return Ok(()),
    };
    if key.namespace == claim.metadata.namespace {
        return Ok(());
    }
    let grants = grants.iter().filter(|g| g.metadata.namespace == key.namespace);
    let allows = |grant: &ReferenceGrant| {
        let from = grant.spec.from.iter().any(|f| {
            f.group.is_empty()
                && f.kind == "PersistentVolumeClaim"
                && f.namespace == claim.metadata.namespace
        });
        let to = grant.spec.to.iter().any(|t| {
            let name = t.name.as_deref().unwrap_or_default();
            t.group == group && t.kind == kind && (name.is_empty() || name == key.name)
        });
        from && to
    };
    if grants.into_iter().any(allows) {
        return Ok(());
    }
    Err(Failure::no_change(
        &Fault::precondition(format!(
            "make the volume from {kind} {key}: no ReferenceGrant allows it"
        ))
        .hint(format!("make a ReferenceGrant in namespace {}", key.namespace)),
    ))
}

/// What is cloned.
///
/// # Errors
/// No change: what is missing may come.
pub fn clone(
    claim: &Claim,
    class: &StorageClass,
    key: &Key,
    source: Option<&Claim>,
    volume: Option<&Volume>,
) -> Result<csi::VolumeContentSource, Failure> {
    let refuse =
        |why: String| Failure::no_change(&Fault::precondition(format!("clone claim {key}: {why}")));
    let source = source.ok_or_else(|| {
        refuse("it is not bound to a volume of this driver, or does not exist".to_owned())
    })?;
    if source.status.phase != "Bound" {
        return Err(refuse(format!("it is {}, not Bound", word(&source.status.phase))));
    }
    if source.metadata.is_deleting() {
        return Err(refuse("it is being deleted".to_owned()));
    }
    if source.spec.storage_class_name.is_none() {
        return Err(refuse("it has no class".to_owned()));
    }
    if claim.spec.storage_class_name.is_none() {
        return Err(refuse("the new claim has no class".to_owned()));
    }
    let (wanted, there) = (claim.spec.requested(), source.spec.requested());
    if wanted < there {
        return Err(refuse(format!(
            "the new claim asks for {wanted} bytes, and it has asked for {there}"
        )));
    }
    let volume = volume.ok_or_else(|| refuse("its volume is not known yet".to_owned()))?;
    let csi = volume.spec.csi.as_ref().filter(|c| c.driver == class.provisioner);
    let csi =
        csi.ok_or_else(|| refuse(format!("its volume is not one of {}", class.provisioner)))?;
    if volume.status.phase != "Bound" {
        return Err(refuse(format!("its volume is {}, not Bound", word(&volume.status.phase))));
    }
    let bound = volume.spec.claim_ref.as_ref();
    let same = bound.is_some_and(|r| {
        let meta = &source.metadata;
        r.uid == meta.uid && r.namespace == meta.namespace && r.name == meta.name
    });
    if !same {
        return Err(refuse("its volume belongs to another claim".to_owned()));
    }
    if source.spec.is_block() != claim.spec.is_block() {
        return Err(refuse("the volume modes differ".to_owned()));
    }
    let from = csi::volume_content_source::VolumeSource { volume_id: csi.volume_handle.clone() };
    Ok(content(csi::volume_content_source::Type::Volume(from)))
}

/// What is restored.
///
/// # Errors
/// No change: what is missing may come.
pub fn restore(
    claim: &Claim,
    class: &StorageClass,
    key: &Key,
    (snapshot, bound): (Option<&Snapshot>, Option<&SnapshotContent>),
    keep_mode: bool,
) -> Result<csi::VolumeContentSource, Failure> {
    let refuse = |why: String| {
        Failure::no_change(&Fault::precondition(format!("restore snapshot {key}: {why}")))
    };
    let snapshot = snapshot.ok_or_else(|| refuse("it does not exist".to_owned()))?;
    let meta = snapshot.meta();
    if meta.is_deleting() && !meta.has_finalizer(SNAPSHOT_FINALIZER) {
        return Err(refuse("it is being deleted".to_owned()));
    }
    let status = snapshot.status.as_ref();
    let status = status
        .filter(|s| s.bound_volume_snapshot_content_name.as_deref().is_some_and(|n| !n.is_empty()))
        .ok_or_else(|| refuse("it is not bound to a content yet".to_owned()))?;
    let bound = bound.ok_or_else(|| refuse("its content does not exist".to_owned()))?;
    let back = &bound.spec.volume_snapshot_ref;
    if back.uid != meta.uid || back.namespace != meta.namespace || back.name != meta.name {
        return Err(refuse("its content belongs to another snapshot".to_owned()));
    }
    if bound.spec.driver != class.provisioner {
        return Err(refuse(format!("it is of driver {}", bound.spec.driver)));
    }
    if status.ready_to_use != Some(true) {
        return Err(refuse("it is not ready to use".to_owned()));
    }
    let handle = bound.status.as_ref().and_then(|s| s.snapshot_handle.clone());
    let handle = handle.ok_or_else(|| refuse("its content has no handle".to_owned()))?;
    let (wanted, least) =
        (claim.spec.requested(), status.restore_size.as_ref().map_or(0, Quantity::bytes));
    if wanted < least {
        return Err(refuse(format!(
            "the claim asks for {wanted} bytes, and the snapshot needs {least}"
        )));
    }
    if let (true, Some(was), Some(wanted)) =
        (keep_mode, &bound.spec.source_volume_mode, &claim.spec.volume_mode)
        && was != wanted
        && !bound.metadata.annotation(MODE_CHANGE).is_some_and(is_true)
    {
        return Err(refuse(format!(
            "it was {was} and the claim asks for {wanted} (hint: an administrator allows that with annotation {MODE_CHANGE}=true on content {})",
            bound.metadata.name
        )));
    }
    let from = csi::volume_content_source::SnapshotSource { snapshot_id: handle };
    Ok(content(csi::volume_content_source::Type::Snapshot(from)))
}

/// What Go's `strconv.ParseBool` takes for true.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn word(phase: &str) -> &str {
    if phase.is_empty() { "Pending" } else { phase }
}

fn content(from: csi::volume_content_source::Type) -> csi::VolumeContentSource {
    csi::VolumeContentSource { r#type: Some(from) }
}

#[cfg(test)]
mod tests;
