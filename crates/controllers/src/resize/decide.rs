//! To which size a claim is grown now.

use crate::{
    api::{Claim, Quantity, Volume},
    conditions,
};

/// How far growing got, in `status.allocatedResourceStatuses`.
pub const CONTROLLER_RESIZE_IN_PROGRESS: &str = "ControllerResizeInProgress";
/// The driver cannot do it.
pub const CONTROLLER_RESIZE_INFEASIBLE: &str = "ControllerResizeInfeasible";
/// The node's turn.
pub const NODE_RESIZE_PENDING: &str = "NodeResizePending";
const NODE_RESIZE_IN_PROGRESS: &str = "NodeResizeInProgress";
const NODE_RESIZE_INFEASIBLE: &str = "NodeResizeInfeasible";

/// What to do about the size of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It has what it asks for, or somebody else goes on.
    Nothing,
    /// The driver grows it to that size.
    Grow(Quantity),
}

/// What of the process decides about a claim.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The claim.
    pub claim: &'a Claim,
    /// Its volume.
    pub volume: &'a Volume,
    /// Whether the driver's controller grows volumes; else only its nodes do.
    pub controller: bool,
    /// Whether this process has seen that growing has failed, for good.
    pub failed: bool,
}

/// How far growing got, as the claim says.
pub fn state(claim: &Claim) -> &str {
    claim.status.allocated_resource_statuses.get("storage").map_or("", String::as_str)
}

/// What to do about the size of a claim.
pub fn claim(observed: Observed<'_>) -> Step {
    let Observed { claim, volume, controller, failed } = observed;
    let zero = Quantity::of_bytes(0);
    let Some(request) = &claim.spec.resources.requests.storage else { return Step::Nothing };
    let has = claim.status.capacity.storage.as_ref().unwrap_or(&zero);
    if claim.status.phase != "Bound" || request <= has {
        return Step::Nothing;
    }
    let promised = claim.status.allocated_resources.storage.as_ref();
    let volume = volume.spec.capacity.storage.as_ref().unwrap_or(&zero);
    let asked = || Step::Grow(request.clone());
    // What was promised, whatever is asked for by now.
    let first = || Step::Grow(promised.unwrap_or(request).clone());
    match (volume < request, state(claim)) {
        (true, NODE_RESIZE_INFEASIBLE) => first(),
        (true, NODE_RESIZE_PENDING | NODE_RESIZE_IN_PROGRESS) => match promised {
            // The node goes first.
            Some(promised) if volume >= promised => Step::Nothing,
            _ => first(),
        },
        (true, CONTROLLER_RESIZE_IN_PROGRESS) if !failed => first(),
        (true, _) => asked(),
        (false, NODE_RESIZE_PENDING | NODE_RESIZE_IN_PROGRESS) => Step::Nothing,
        (false, NODE_RESIZE_INFEASIBLE) => match controller {
            true => first(),
            false => asked(),
        },
        (false, CONTROLLER_RESIZE_IN_PROGRESS | CONTROLLER_RESIZE_INFEASIBLE) => first(),
        (false, _) if promised.is_some() => first(),
        // Grown by a controller that promises nothing: the node's turn.
        (false, _) if conditions::has(&claim.status.conditions, "FileSystemResizePending") => {
            Step::Nothing
        }
        (false, _) => asked(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    struct Row {
        volume: i64,
        promised: Option<i64>,
        state: &'static str,
        failed: bool,
        controller: bool,
        pending: bool,
    }

    fn row(volume: i64, promised: impl Into<Option<i64>>, state: &'static str) -> Row {
        let promised = promised.into();
        Row { volume, promised, state, failed: false, controller: true, pending: false }
    }

    /// A claim of 1 GiB that asks for 10; None: nothing is to be done.
    fn target(row: Row) -> Option<i64> {
        let gib = |n: i64| format!("{n}Gi");
        let mut status = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        if let Some(promised) = row.promised {
            status["allocatedResources"] = json!({"storage": gib(promised)});
        }
        if !row.state.is_empty() {
            status["allocatedResourceStatuses"] = json!({"storage": row.state});
        }
        if row.pending {
            status["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True"}]);
        }
        let one: Claim = serde_json::from_value(json!({
            "spec": {"resources": {"requests": {"storage": "10Gi"}}}, "status": status,
        }))
        .unwrap();
        let volume = json!({"spec": {"capacity": {"storage": gib(row.volume)}}});
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let Row { failed, controller, .. } = row;
        match claim(Observed { claim: &one, volume: &volume, controller, failed }) {
            Step::Nothing => None,
            Step::Grow(size) => Some(size.bytes() >> 30),
        }
    }

    #[rstest]
    // The volume is smaller than what is asked for.
    #[case(row(1, 5, NODE_RESIZE_INFEASIBLE), Some(5))]
    #[case(row(1, None, NODE_RESIZE_INFEASIBLE), Some(10))]
    #[case(row(1, 5, NODE_RESIZE_PENDING), Some(5))]
    #[case(row(5, 5, NODE_RESIZE_PENDING), None)]
    #[case(row(1, 5, NODE_RESIZE_IN_PROGRESS), Some(5))]
    #[case(row(6, 5, NODE_RESIZE_IN_PROGRESS), None)]
    #[case(row(1, 5, CONTROLLER_RESIZE_IN_PROGRESS), Some(5))]
    #[case(Row { failed: true, ..row(1, 5, CONTROLLER_RESIZE_IN_PROGRESS) }, Some(10))]
    #[case(row(1, None, CONTROLLER_RESIZE_IN_PROGRESS), Some(10))]
    #[case(row(1, 5, CONTROLLER_RESIZE_INFEASIBLE), Some(10))]
    #[case(row(1, 5, ""), Some(10))]
    #[case(row(1, None, ""), Some(10))]
    #[case(row(1, 5, "SomethingNew"), Some(10))]
    // It is as large already.
    #[case(row(10, 5, NODE_RESIZE_PENDING), None)]
    #[case(row(10, 5, NODE_RESIZE_IN_PROGRESS), None)]
    #[case(row(20, 15, NODE_RESIZE_INFEASIBLE), Some(15))]
    #[case(row(20, None, NODE_RESIZE_INFEASIBLE), Some(10))]
    #[case(Row { controller: false, ..row(20, 15, NODE_RESIZE_INFEASIBLE) }, Some(10))]
    #[case(row(20, 15, CONTROLLER_RESIZE_IN_PROGRESS), Some(15))]
    #[case(row(20, None, CONTROLLER_RESIZE_IN_PROGRESS), Some(10))]
    #[case(row(20, 15, CONTROLLER_RESIZE_INFEASIBLE), Some(15))]
    #[case(row(20, None, CONTROLLER_RESIZE_INFEASIBLE), Some(10))]
    #[case(row(10, 5, ""), Some(5))]
    #[case(row(10, None, ""), Some(10))]
    #[case(Row { pending: true, ..row(10, None, "") }, None)]
    #[case(Row { pending: true, ..row(10, 5, "") }, Some(5))]
    fn every_row_has_its_size(#[case] row: Row, #[case] wanted: Option<i64>) {
        assert_eq!(target(row), wanted);
    }

    #[rstest]
    #[case("Pending", "1Gi", "2Gi", false)]
    #[case("Bound", "1Gi", "2Gi", true)]
    #[case("Bound", "2Gi", "2Gi", false)]
    #[case("Bound", "4Gi", "2Gi", false)]
    #[case("Lost", "1Gi", "2Gi", false)]
    fn only_a_bound_claim_that_asks_for_more_grows(
        #[case] phase: &str,
        #[case] has: &str,
        #[case] asks: &str,
        #[case] grows: bool,
    ) {
        let one: Claim = serde_json::from_value(json!({
            "spec": {"resources": {"requests": {"storage": asks}}},
            "status": {"phase": phase, "capacity": {"storage": has}},
        }))
        .unwrap();
        let volume = Volume::default();
        let observed = Observed { claim: &one, volume: &volume, controller: true, failed: false };
        assert_eq!(claim(observed) != Step::Nothing, grows);
    }
}
