//! Which class a claim's volume gets now.

use crate::{
    api::{Claim, ModifyStatus},
    conditions,
};

/// The driver is at it, or may be.
pub const IN_PROGRESS: &str = "InProgress";
/// The driver cannot do it.
pub const INFEASIBLE: &str = "Infeasible";
/// The class is not there.
pub const PENDING: &str = "Pending";

/// What to do about the class of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It has what it asks for.
    Nothing,
    /// It does not ask any more for what it asked for.
    Cancel,
    /// Its volume gets that class.
    Apply(String),
}

fn wanted(claim: &Claim) -> Option<&str> {
    claim.spec.volume_attributes_class_name.as_deref().filter(|name| !name.is_empty())
}

fn under_way(claim: &Claim) -> Option<&ModifyStatus> {
    claim.status.modify_volume_status.as_ref()
}

/// Whether the driver cannot do what the claim asks for, and still asks for.
pub fn is_infeasible(claim: &Claim) -> bool {
    under_way(claim).is_some_and(|now| {
        now.status == INFEASIBLE
            && Some(now.target_volume_attributes_class_name.as_str()) == wanted(claim)
    })
}

/// Whether an earlier attempt may go on in the driver.
pub fn may_go_on(claim: &Claim) -> bool {
    under_way(claim).is_some_and(|now| now.status == IN_PROGRESS)
}

/// What to do about the class of a claim; `settled`: what is in progress has failed, for good.
pub fn claim(claim: &Claim, settled: bool) -> Step {
    let wanted = wanted(claim);
    let current = claim.status.current_volume_attributes_class_name.as_deref();
    let Some(now) = under_way(claim) else {
        return match wanted {
            Some(wanted) if current != Some(wanted) => Step::Apply(wanted.to_owned()),
            // Taken back before it began.
            None if conditions::has(&claim.status.conditions, "ModifyingVolume") => Step::Cancel,
            _ => Step::Nothing,
        };
    };
    let target = &now.target_volume_attributes_class_name;
    match (wanted, now.status.as_str()) {
        // The driver may be half-way there: first to the end of that.
        (_, IN_PROGRESS) if !settled && !target.is_empty() => Step::Apply(target.clone()),
        (None, IN_PROGRESS) if !target.is_empty() => Step::Apply(target.clone()),
        (None, _) if conditions::has(&claim.status.conditions, "ModifyingVolume") => Step::Cancel,
        (None, _) => Step::Nothing,
        (Some(wanted), _) => Step::Apply(wanted.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn apply(class: &str) -> Step {
        Step::Apply(class.to_owned())
    }

    // asked for, in force, under way, its state, ModifyingVolume ─▶ where it may go on, where it has failed
    #[rstest]
    #[case("", "", "", "", false, Step::Nothing, Step::Nothing)]
    #[case("", "gold", "", "", false, Step::Nothing, Step::Nothing)]
    #[case("", "gold", "", "", true, Step::Cancel, Step::Cancel)]
    #[case("gold", "gold", "", "", false, Step::Nothing, Step::Nothing)]
    #[case("gold", "", "", "", false, apply("gold"), apply("gold"))]
    #[case("gold", "silver", "", "", false, apply("gold"), apply("gold"))]
    #[case("gold", "silver", "gold", PENDING, false, apply("gold"), apply("gold"))]
    #[case("", "silver", "gold", PENDING, false, Step::Nothing, Step::Nothing)]
    #[case("gold", "silver", "gold", IN_PROGRESS, true, apply("gold"), apply("gold"))]
    #[case("bronze", "silver", "gold", IN_PROGRESS, true, apply("gold"), apply("bronze"))]
    #[case("", "silver", "gold", IN_PROGRESS, true, apply("gold"), apply("gold"))]
    #[case("silver", "silver", "gold", IN_PROGRESS, true, apply("gold"), apply("silver"))]
    #[case("gold", "silver", "gold", INFEASIBLE, true, apply("gold"), apply("gold"))]
    #[case("bronze", "silver", "gold", INFEASIBLE, true, apply("bronze"), apply("bronze"))]
    #[case("silver", "silver", "gold", INFEASIBLE, true, apply("silver"), apply("silver"))]
    #[case("", "silver", "gold", INFEASIBLE, true, Step::Cancel, Step::Cancel)]
    #[case("", "silver", "gold", INFEASIBLE, false, Step::Nothing, Step::Nothing)]
    fn every_claim_has_its_class(
        #[case] wanted: &str,
        #[case] current: &str,
        #[case] target: &str,
        #[case] state: &str,
        #[case] modifying: bool,
        #[case] open: Step,
        #[case] settled: Step,
    ) {
        let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let conditions: Vec<_> = modifying
            .then(|| json!({"type": "ModifyingVolume", "status": "True"}))
            .into_iter()
            .collect();
        let under_way = (!state.is_empty())
            .then(|| json!({"targetVolumeAttributesClassName": target, "status": state}));
        let one: Claim = serde_json::from_value(json!({
            "spec": {"volumeAttributesClassName": name(wanted)},
            "status": {
                "currentVolumeAttributesClassName": name(current),
                "modifyVolumeStatus": under_way, "conditions": conditions,
            },
        }))
        .unwrap();
        assert_eq!(claim(&one, false), open);
        assert_eq!(claim(&one, true), settled);
        assert_eq!(is_infeasible(&one), state == INFEASIBLE && target == wanted);
        assert_eq!(may_go_on(&one), state == IN_PROGRESS);
    }
}
