//! What is written into claims on the way.

use super::decide::{IN_PROGRESS, INFEASIBLE, PENDING};
use crate::{
    api::{Claim, ModifyStatus},
    conditions::{MODIFY, has, holds, merged},
};
use serde_json::{Value, json};

fn under_way(class: &str, status: &str) -> ModifyStatus {
    ModifyStatus {
        target_volume_attributes_class_name: class.to_owned(),
        status: status.to_owned(),
    }
}

/// The class is waited for; None: the claim says so already.
pub(super) fn waits(claim: &Claim, class: &str) -> Option<Value> {
    let pending = under_way(class, PENDING);
    let said = claim.status.modify_volume_status.as_ref() == Some(&pending);
    (!said).then(|| json!({"status": {"modifyVolumeStatus": pending}}))
}

/// Changing it to the class begins; None: the claim says so already.
pub(super) fn began(claim: &Claim, class: &str) -> Option<Value> {
    let now = under_way(class, IN_PROGRESS);
    let status = &claim.status;
    if status.modify_volume_status.as_ref() == Some(&now)
        && has(&status.conditions, "ModifyingVolume")
    {
        return None;
    }
    let modifying = [holds("ModifyingVolume", "", "")];
    Some(json!({"status": {
        "modifyVolumeStatus": now,
        "conditions": merged(&status.conditions, &MODIFY, &modifying, true),
    }}))
}

/// The class is in force.
pub(super) fn done(claim: &Claim, class: &str) -> Value {
    json!({"status": {
        "modifyVolumeStatus": null,
        "currentVolumeAttributesClassName": class,
        "conditions": merged(&claim.status.conditions, &MODIFY, &[], false),
    }})
}

/// It has failed; None: the claim says so already.
pub(super) fn failed(
    claim: &Claim,
    class: &str,
    infeasible: bool,
    (reason, message): (&str, &str),
) -> Option<Value> {
    let state = under_way(class, if infeasible { INFEASIBLE } else { IN_PROGRESS });
    let status = &claim.status;
    let said = status
        .conditions
        .iter()
        .any(|c| c.r#type == "ModifyVolumeError" && c.reason == reason && c.message == message);
    if said && status.modify_volume_status.as_ref() == Some(&state) {
        return None;
    }
    let conditions =
        [holds("ModifyingVolume", "", ""), holds("ModifyVolumeError", reason, message)];
    Some(json!({"status": {
        "modifyVolumeStatus": state,
        "conditions": merged(&status.conditions, &MODIFY, &conditions, true),
    }}))
}

/// Nobody asks for it any more.
pub(super) fn cancelled(claim: &Claim) -> Option<Value> {
    let now = &claim.status.conditions;
    has(now, "ModifyingVolume")
        .then(|| json!({"status": {"conditions": merged(now, &["ModifyingVolume"], &[], false)}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: &Value) -> Claim {
        serde_json::from_value(json!({"status": status})).unwrap()
    }

    #[test]
    fn each_state_is_written_once() {
        let mut status = json!({"conditions": [{"type": "Resizing", "status": "True"}]});
        let change = waits(&claim(&status), "gold").unwrap();
        assert_eq!(change["status"]["modifyVolumeStatus"]["status"], "Pending");
        status["modifyVolumeStatus"] = change["status"]["modifyVolumeStatus"].clone();
        assert_eq!(waits(&claim(&status), "gold"), None);

        let change = began(&claim(&status), "gold").unwrap();
        status["modifyVolumeStatus"] = change["status"]["modifyVolumeStatus"].clone();
        status["conditions"] = change["status"]["conditions"].clone();
        assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(began(&claim(&status), "gold"), None);

        let why = ("Internal", "no");
        let change = failed(&claim(&status), "gold", false, why).unwrap();
        status["conditions"] = change["status"]["conditions"].clone();
        assert_eq!(status["conditions"][2]["reason"], "Internal");
        assert_eq!(failed(&claim(&status), "gold", false, why), None);
        let worse = failed(&claim(&status), "gold", true, why).unwrap();
        assert_eq!(worse["status"]["modifyVolumeStatus"]["status"], "Infeasible");

        let change = done(&claim(&status), "gold");
        assert!(change["status"]["modifyVolumeStatus"].is_null());
        assert_eq!(change["status"]["conditions"].as_array().unwrap().len(), 1);
        let change = cancelled(&claim(&status)).unwrap();
        assert_eq!(change["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(cancelled(&claim(&json!({}))), None);
    }
}
