//! What is written into claims and volumes on the way.

use super::decide::{
    self, CONTROLLER_RESIZE_IN_PROGRESS, CONTROLLER_RESIZE_INFEASIBLE, NODE_RESIZE_PENDING,
};
use crate::{
    api::{Claim, Quantity, Volume},
    conditions::{self, RESIZE, has, holds, merged},
};
use serde_json::{Value, json};

/// On a volume that the node must grow, too: how large it was for its users.
pub(super) const FORMER_SIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
/// On a claim that the node need not grow.
pub(super) const NO_NODE: &str = "volume.kubernetes.io/node-expansion-not-required";
const PENDING: &str = "FileSystemResizePending";
const WAITING: &str =
    "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

/// Growing to that size begins; None: the claim says so already.
pub(super) fn began(claim: &Claim, size: &Quantity) -> Option<Value> {
    let status = &claim.status;
    let again = decide::state(claim) == CONTROLLER_RESIZE_IN_PROGRESS;
    let promised = status.allocated_resources.storage.as_ref() == Some(size);
    let noted = claim.metadata.annotation(NO_NODE).is_some();
    if again && promised && !noted && has(&status.conditions, "Resizing") {
        return None;
    }
    let resizing = [holds("Resizing", "", "")];
    let mut change = json!({"status": {
        "conditions": merged(&status.conditions, &RESIZE, &resizing, again),
        "allocatedResources": {"storage": size},
        "allocatedResourceStatuses": {"storage": CONTROLLER_RESIZE_IN_PROGRESS},
    }});
    if noted {
        change["metadata"]["annotations"] = json!({NO_NODE: null});
    }
    Some(change)
}

/// The volume has that size; None: it is known to have.
pub(super) fn volume(volume: &Volume, claim: &Claim, size: &Quantity, node: bool) -> Option<Value> {
    let mut change = json!({});
    if volume.spec.capacity.storage.as_ref() != Some(size) {
        change["spec"] = json!({"capacity": {"storage": size}});
    }
    if node
        && volume.metadata.annotation(FORMER_SIZE).is_none()
        && let Some(former) = &claim.status.capacity.storage
    {
        change["metadata"] = json!({"annotations": {FORMER_SIZE: former}});
    }
    (change != json!({})).then_some(change)
}

/// The controller is done, and the node is not; None: the claim says so, or the node is done by now.
pub(super) fn nodes_turn(claim: &Claim) -> Option<Value> {
    if decide::state(claim) != CONTROLLER_RESIZE_IN_PROGRESS {
        return None;
    }
    let pending = [holds(PENDING, "", WAITING)];
    Some(json!({"status": {
        "conditions": merged(&claim.status.conditions, &RESIZE, &pending, true),
        "allocatedResourceStatuses": {"storage": NODE_RESIZE_PENDING},
    }}))
}

/// The claim has that size, without the node.
pub(super) fn done(claim: &Claim, size: &Quantity) -> Value {
    json!({
        "metadata": {"annotations": {NO_NODE: "true"}},
        "status": {
            "capacity": {"storage": size},
            "conditions": merged(&claim.status.conditions, &RESIZE, &[], false),
            "allocatedResourceStatuses": {"storage": null},
        },
    })
}

/// It has failed; None: the claim says so already.
pub(super) fn failed(claim: &Claim, message: &str, infeasible: bool) -> Option<Value> {
    let now = &claim.status.conditions;
    let error = [holds("ControllerResizeError", "", message)];
    let said = now.iter().any(|c| c.r#type == error[0].r#type && c.message == message);
    let state = match infeasible {
        true => CONTROLLER_RESIZE_INFEASIBLE,
        false => CONTROLLER_RESIZE_IN_PROGRESS,
    };
    if said && decide::state(claim) == state {
        return None;
    }
    Some(json!({"status": {
        "conditions": conditions::merged(now, &RESIZE, &error, true),
        "allocatedResourceStatuses": {"storage": state},
    }}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(value: Value) -> Claim {
        serde_json::from_value(value).unwrap()
    }

    fn types(change: &Value) -> Vec<String> {
        let all = change["status"]["conditions"].as_array().unwrap();
        all.iter().map(|c| c["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_begins_is_promised_and_said_once() {
        let size: Quantity = "10Gi".parse().unwrap();
        let new = claim(json!({
            "metadata": {"annotations": {NO_NODE: "true"}},
            "status": {"conditions": [
                {"type": "NodeResizeError", "status": "True"}, {"type": "Other", "status": "True"},
            ]},
        }));
        let change = began(&new, &size).unwrap();
        assert_eq!(types(&change), ["Other", "Resizing"]);
        assert_eq!(change["status"]["allocatedResources"]["storage"], "10Gi");
        assert_eq!(
            change["status"]["allocatedResourceStatuses"]["storage"],
            "ControllerResizeInProgress"
        );
        assert!(change["metadata"]["annotations"].get(NO_NODE).is_some_and(Value::is_null));

        let mut again = json!({"status": {
            "allocatedResources": {"storage": "10Gi"},
            "allocatedResourceStatuses": {"storage": CONTROLLER_RESIZE_IN_PROGRESS},
            "conditions": [
                {"type": "Resizing", "status": "True"},
                {"type": "ControllerResizeError", "status": "True", "message": "no"},
            ],
        }});
        assert_eq!(began(&claim(again.clone()), &size), None);
        let other = began(&claim(again.clone()), &"11Gi".parse().unwrap()).unwrap();
        assert_eq!(types(&other), ["Resizing", "ControllerResizeError"], "it went on");
        assert_eq!(failed(&claim(again.clone()), "no", false), None);
        assert!(failed(&claim(again.clone()), "no", true).is_some());
        again["status"]["conditions"] = json!([]);
        assert!(failed(&claim(again), "no", false).is_some());
    }

    #[test]
    fn the_node_is_told_once_and_only_while_the_controller_is_at_work() {
        let of = |state: &str| {
            claim(json!({"status": {
                "allocatedResourceStatuses": {"storage": state},
                "conditions": [{"type": "Resizing", "status": "True"}],
            }}))
        };
        let change = nodes_turn(&of(CONTROLLER_RESIZE_IN_PROGRESS)).unwrap();
        assert_eq!(types(&change), ["Resizing", "FileSystemResizePending"]);
        assert_eq!(change["status"]["allocatedResourceStatuses"]["storage"], "NodeResizePending");
        for later in [NODE_RESIZE_PENDING, "NodeResizeInProgress", ""] {
            assert_eq!(nodes_turn(&of(later)), None, "{later}");
        }
        let change = done(&of(CONTROLLER_RESIZE_IN_PROGRESS), &"2Gi".parse().unwrap());
        assert!(types(&change).is_empty());
        assert!(change["status"]["allocatedResourceStatuses"]["storage"].is_null());
    }

    #[test]
    fn a_volume_is_written_only_where_it_differs() {
        let size: Quantity = "2Gi".parse().unwrap();
        let of = |size: &str, annotations: Value| -> Volume {
            serde_json::from_value(json!({
                "metadata": {"annotations": annotations}, "spec": {"capacity": {"storage": size}},
            }))
            .unwrap()
        };
        let had = claim(json!({"status": {"capacity": {"storage": "1Gi"}}}));
        let change = volume(&of("1Gi", json!({})), &had, &size, true).unwrap();
        assert_eq!(change["metadata"]["annotations"][FORMER_SIZE], "1Gi");
        let change = volume(&of("1Gi", json!({FORMER_SIZE: "512Mi"})), &had, &size, true).unwrap();
        assert_eq!(change, json!({"spec": {"capacity": {"storage": "2Gi"}}}));
        assert_eq!(volume(&of("2Gi", json!({})), &had, &size, false), None);
    }
}
