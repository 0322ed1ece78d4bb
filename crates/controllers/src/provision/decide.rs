//! Whether a claim is for us, and whether a volume is to be deleted.

use super::persistent_volume::FINALIZER;
use crate::{
    api::{Claim, StorageClass, Volume},
    cache::{MIGRATED, PROVISIONED_BY, PROVISIONER, PROVISIONER_BETA},
};

/// The node that the scheduler has chosen for the first user of a claim.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const SELECTED_NODE_ALPHA: &str = "volume.alpha.kubernetes.io/selected-node";

/// What of the cluster decides about a claim.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Our driver.
    pub driver: &'a str,
    /// The claim.
    pub claim: &'a Claim,
    /// Its class, if it is one of ours.
    pub class: Option<&'a StorageClass>,
    /// Whether the volume `pvc-UID` is in the cache.
    pub done: bool,
    /// In node-local mode: our node.
    pub local: Option<&'a str>,
}

/// What to do about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimStep {
    /// It is not for us, not yet, or done.
    Nothing,
    /// It cannot be done yet, and why.
    Wait(String),
    /// Its volume is to be made; on that node, where one was chosen.
    Provision(Option<String>),
    /// Node-local mode, and no node was chosen: any may take it.
    Offer,
}

/// The node that was chosen for a claim.
pub fn selected_node(claim: &Claim) -> Option<&str> {
    let chosen = |key| claim.metadata.annotation(key).filter(|n| !n.is_empty());
    chosen(SELECTED_NODE).or_else(|| chosen(SELECTED_NODE_ALPHA))
}

/// Whether the volume of that claim is one that we were told to make.
pub fn is_ours(driver: &str, claim: &Claim) -> bool {
    let meta = &claim.metadata;
    let told = meta.annotation(PROVISIONER).or_else(|| meta.annotation(PROVISIONER_BETA));
    told == Some(driver)
}

/// What to do about a claim, in the order in which the Go sidecar looks.
pub fn claim(observed: Observed<'_>) -> ClaimStep {
    let Observed { driver, claim, class, done, local } = observed;
    if !claim.spec.volume_name.is_empty() || !is_ours(driver, claim) {
        return ClaimStep::Nothing;
    }
    let selected = selected_node(claim);
    if let (Some(node), Some(ours)) = (selected, local)
        && node != ours
    {
        return ClaimStep::Nothing;
    }
    let Some(class) = class else {
        let name = claim.spec.storage_class_name.as_deref().unwrap_or_default();
        return ClaimStep::Wait(format!(
            "there is no StorageClass {name:?} of driver {driver} (hint: make it, or delete the claim)"
        ));
    };
    if class.waits_for_consumer()
        && claim.metadata.annotation(SELECTED_NODE).is_none_or(str::is_empty)
    {
        return ClaimStep::Nothing;
    }
    if done || class.provisioner != driver {
        return ClaimStep::Nothing;
    }
    match (selected, local) {
        (None, Some(_)) => ClaimStep::Offer,
        (selected, _) => ClaimStep::Provision(selected.map(str::to_owned)),
    }
}

/// What to do about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStep {
    /// Nothing.
    Nothing,
    /// It is to be kept until its storage is deleted.
    AddFinalizer,
    /// Its storage stays when it goes.
    RemoveFinalizer,
    /// Its storage is deleted, and then it.
    Delete,
}

/// What to do about a volume.
pub fn volume(driver: &str, volume: &Volume) -> VolumeStep {
    let (meta, spec) = (&volume.metadata, &volume.spec);
    let ours = match meta.annotation(PROVISIONED_BY) {
        Some(by) => by == driver || meta.annotation(MIGRATED) == Some(driver),
        None => spec.csi.as_ref().is_some_and(|csi| csi.driver == driver),
    };
    if !ours {
        return VolumeStep::Nothing;
    }
    let protected = meta.has_finalizer(FINALIZER);
    match spec.persistent_volume_reclaim_policy.as_str() {
        "Retain" | "Recycle" if protected => VolumeStep::RemoveFinalizer,
        "Delete" => match volume.status.phase.as_str() {
            "Bound" if !protected && !meta.is_deleting() => VolumeStep::AddFinalizer,
            // Deleted by somebody who took our finalizer away: that was meant.
            "Released" if protected || !meta.is_deleting() => VolumeStep::Delete,
            _ => VolumeStep::Nothing,
        },
        _ => VolumeStep::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    const LATE: &str = "WaitForFirstConsumer";

    fn provision(node: Option<&str>) -> ClaimStep {
        ClaimStep::Provision(node.map(str::to_owned))
    }

    #[rstest]
    #[case(json!({PROVISIONER: "d"}), "", "Immediate", None, provision(None))]
    #[case(json!({PROVISIONER_BETA: "d"}), "", "Immediate", None, provision(None))]
    #[case(json!({PROVISIONER: "other", PROVISIONER_BETA: "d"}), "", "Immediate", None, ClaimStep::Nothing)]
    #[case(json!({}), "", "Immediate", None, ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d"}), "pv", "Immediate", None, ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d"}), "", LATE, None, ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE: ""}), "", LATE, None, ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE: "n1"}), "", LATE, None, provision(Some("n1")))]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE_ALPHA: "n1"}), "", LATE, None, ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE_ALPHA: "n1"}), "", "Immediate", None, provision(Some("n1")))]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE: "n1"}), "", LATE, Some("n1"), provision(Some("n1")))]
    #[case(json!({PROVISIONER: "d", SELECTED_NODE: "n1"}), "", LATE, Some("n2"), ClaimStep::Nothing)]
    #[case(json!({PROVISIONER: "d"}), "", "Immediate", Some("n1"), ClaimStep::Offer)]
    #[case(json!({PROVISIONER: "d"}), "", LATE, Some("n1"), ClaimStep::Nothing)]
    fn claims_are_taken_when_it_is_time(
        #[case] annotations: Value,
        #[case] volume: &str,
        #[case] binding: &str,
        #[case] local: Option<&str>,
        #[case] wanted: ClaimStep,
    ) {
        let one: Claim = serde_json::from_value(json!({
            "metadata": {"annotations": annotations}, "spec": {"volumeName": volume},
        }))
        .unwrap();
        let class: StorageClass =
            serde_json::from_value(json!({"provisioner": "d", "volumeBindingMode": binding}))
                .unwrap();
        let of = |class, done| claim(Observed { driver: "d", claim: &one, class, done, local });
        assert_eq!(of(Some(&class), false), wanted);
        assert_eq!(of(Some(&class), true), ClaimStep::Nothing);
        if matches!(wanted, ClaimStep::Provision(_)) {
            assert!(matches!(of(None, false), ClaimStep::Wait(_)));
        }
    }

    #[rstest]
    #[case("Bound", "Delete", false, false, VolumeStep::AddFinalizer)]
    #[case("Bound", "Delete", true, false, VolumeStep::Nothing)]
    #[case("Bound", "Delete", false, true, VolumeStep::Nothing)]
    #[case("Available", "Delete", false, false, VolumeStep::Nothing)]
    #[case("Bound", "Retain", true, false, VolumeStep::RemoveFinalizer)]
    #[case("Released", "Recycle", true, false, VolumeStep::RemoveFinalizer)]
    #[case("Released", "Retain", false, false, VolumeStep::Nothing)]
    #[case("Released", "Delete", true, false, VolumeStep::Delete)]
    #[case("Released", "Delete", false, false, VolumeStep::Delete)]
    #[case("Released", "Delete", true, true, VolumeStep::Delete)]
    #[case("Released", "Delete", false, true, VolumeStep::Nothing)]
    #[case("Failed", "Delete", true, false, VolumeStep::Nothing)]
    #[case("Released", "", true, false, VolumeStep::Nothing)]
    fn volumes_are_kept_and_deleted_as_their_policy_says(
        #[case] phase: &str,
        #[case] policy: &str,
        #[case] protected: bool,
        #[case] deleting: bool,
        #[case] wanted: VolumeStep,
    ) {
        let of = |by: Value, driver: &str| {
            let finalizers: Vec<_> = protected.then_some(FINALIZER).into_iter().collect();
            let one: Volume = serde_json::from_value(json!({
                "metadata": {
                    "annotations": by, "finalizers": finalizers,
                    "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
                },
                "spec": {"csi": {"driver": driver}, "persistentVolumeReclaimPolicy": policy},
                "status": {"phase": phase},
            }))
            .unwrap();
            volume("d", &one)
        };
        assert_eq!(of(json!({PROVISIONED_BY: "d"}), "d"), wanted);
        assert_eq!(of(json!({}), "d"), wanted, "static");
        assert_eq!(of(json!({PROVISIONED_BY: "other"}), "d"), VolumeStep::Nothing);
        assert_eq!(of(json!({}), "other"), VolumeStep::Nothing);
    }
}
