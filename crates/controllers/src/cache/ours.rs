//! What concerns our drivers, and is kept.
//!
//! An object that concerns none of them never gets into memory: a cluster has ten thousands of
//! claims, and a driver a few.

use crate::api::{Attachment, AttributesClass, Claim, CsiNode, Node, StorageClass, Volume};
use std::collections::BTreeSet;

/// Who was told to make the volume of a claim; written by kube-controller-manager.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Its former name, still written beside it.
pub const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The CSI driver that has taken over from one that was part of Kubernetes.
pub const MIGRATED: &str = "pv.kubernetes.io/migrated-to";
/// Who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The drivers of this process.
#[derive(Debug, Clone, Default)]
pub struct Ours {
    drivers: BTreeSet<String>,
}

impl Ours {
    /// Those drivers.
    pub fn new(drivers: impl IntoIterator<Item = String>) -> Self {
        Self { drivers: drivers.into_iter().collect() }
    }

    fn has(&self, name: Option<&str>) -> bool {
        name.is_some_and(|n| self.drivers.contains(n))
    }

    /// A claim that one of our drivers is to provide for, or may have provided for: one that is bound
    /// and was not provisioned by anybody may be bound to a volume of ours. One that waits for its
    /// first user and is made from another claim keeps that one from being deleted.
    pub(super) fn claim(&self, claim: Claim) -> Option<Claim> {
        let meta = &claim.metadata;
        let told = meta.annotation(PROVISIONER).or_else(|| meta.annotation(PROVISIONER_BETA));
        let keep = match told {
            Some(_) if self.has(meta.annotation(MIGRATED)) => true,
            Some(name) => self.has(Some(name)),
            None => {
                let sourced =
                    claim.spec.data_source.is_some() || claim.spec.data_source_ref.is_some();
                !claim.spec.volume_name.is_empty() || sourced
            }
        };
        keep.then_some(claim)
    }

    /// A volume of one of our drivers.
    pub(super) fn volume(&self, volume: Volume) -> Option<Volume> {
        let meta = &volume.metadata;
        let keep = self.has(volume.spec.csi.as_ref().map(|c| c.driver.as_str()))
            || self.has(meta.annotation(PROVISIONED_BY))
            || self.has(meta.annotation(MIGRATED));
        keep.then_some(volume)
    }

    /// A class of one of our drivers.
    pub(super) fn class(&self, class: StorageClass) -> Option<StorageClass> {
        self.has(Some(&class.provisioner)).then_some(class)
    }

    /// Any VolumeAttributesClass: which claims name it is not known here.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self, reason = "one of several doors")]
    pub(super) fn attributes_class(&self, class: AttributesClass) -> Option<AttributesClass> {
        Some(class)
    }

    /// An attachment of one of our drivers.
    pub(super) fn attachment(&self, attachment: Attachment) -> Option<Attachment> {
        self.has(Some(&attachment.spec.attacher)).then_some(attachment)
    }

    /// Any node; of it, only what topology is made of.
    #[allow(clippy::unnecessary_wraps, reason = "one of several doors")]
    pub(super) fn node(&self, mut node: Node) -> Option<Node> {
        node.metadata.annotations.clear();
        node.metadata.finalizers.clear();
        Some(node)
    }

    /// Any node, with our drivers only. One that has none of them just now may be about to register
    /// one; one that is not there is no place for a volume.
    #[allow(clippy::unnecessary_wraps, reason = "one of several doors")]
    pub(super) fn csi_node(&self, mut node: CsiNode) -> Option<CsiNode> {
        node.metadata.annotations.clear();
        node.spec.drivers.retain(|d| self.drivers.contains(&d.name));
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case(json!({"metadata": {"annotations": {PROVISIONER: "ours"}}}), true)]
    #[case(json!({"metadata": {"annotations": {PROVISIONER_BETA: "ours"}}}), true)]
    #[case(json!({"metadata": {"annotations": {PROVISIONER: "theirs"}}}), false)]
    #[case(json!({"metadata": {"annotations": {PROVISIONER: "theirs", PROVISIONER_BETA: "ours"}}}), false)]
    #[case(json!({"metadata": {"annotations": {PROVISIONER: "kubernetes.io/x", MIGRATED: "ours"}}}), true)]
    #[case(json!({"metadata": {}}), false)]
    #[case(json!({"spec": {"volumeName": "static"}}), true)]
    #[case(json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}}), true)]
    fn only_claims_that_concern_us_are_kept(#[case] claim: serde_json::Value, #[case] kept: bool) {
        let ours = Ours::new(["ours".to_owned()]);
        let claim: Claim = serde_json::from_value(claim).unwrap();
        assert_eq!(ours.claim(claim).is_some(), kept);
    }

    #[test]
    fn a_node_keeps_our_drivers_only() {
        let ours = Ours::new(["ours".to_owned()]);
        let drivers = |names: &[&str]| {
            let drivers: Vec<_> = names.iter().map(|n| json!({"name": n, "nodeID": "n"})).collect();
            serde_json::from_value::<CsiNode>(json!({"spec": {"drivers": drivers}})).unwrap()
        };
        assert_eq!(ours.csi_node(drivers(&["theirs"])).unwrap().spec.drivers.len(), 0);
        assert_eq!(ours.csi_node(drivers(&["a", "ours", "b"])).unwrap().spec.drivers.len(), 1);
    }
}
