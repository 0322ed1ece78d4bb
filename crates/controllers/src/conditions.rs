//! Conditions of claims: those of one concern are changed, the others stay as they are.

use crate::api::Condition;

/// The conditions that growing has.
pub(crate) const RESIZE: [&str; 4] =
    ["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];
/// The conditions that changing attributes has.
pub(crate) const MODIFY: [&str; 2] = ["ModifyingVolume", "ModifyVolumeError"];

/// A condition that holds, as of now.
pub(crate) fn holds(r#type: &str, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: r#type.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(now()),
        last_probe_time: None,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// Whether that condition holds.
pub(crate) fn has(all: &[Condition], r#type: &str) -> bool {
    all.iter().any(|c| c.r#type == r#type && c.status == "True")
}

/// `all`, with `new` in the place of those of `set`; or beside them, where they are kept.
pub(crate) fn merged(
    all: &[Condition],
    set: &[&str],
    new: &[Condition],
    keep: bool,
) -> Vec<Condition> {
    let mut merged = Vec::new();
    for old in all {
        let again = new.iter().find(|n| n.r#type == old.r#type);
        match again {
            // It holds since then.
            Some(again) => {
                let since = old.last_transition_time.clone();
                let since = since.filter(|_| old.status == again.status);
                let last_transition_time = since.or_else(|| again.last_transition_time.clone());
                merged.push(Condition { last_transition_time, ..again.clone() });
            }
            None if keep || !set.contains(&old.r#type.as_str()) => merged.push(old.clone()),
            None => {}
        }
    }
    let added = new.iter().filter(|n| !all.iter().any(|old| old.r#type == n.r#type));
    merged.extend(added.cloned());
    merged
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(r#type: &str, status: &str) -> Condition {
        Condition {
            r#type: r#type.to_owned(),
            status: status.to_owned(),
            last_transition_time: Some("2020-01-01T00:00:00Z".to_owned()),
            ..Condition::default()
        }
    }

    fn types(all: &[Condition]) -> Vec<&str> {
        all.iter().map(|c| c.r#type.as_str()).collect()
    }

    #[test]
    fn the_conditions_of_a_concern_are_replaced_and_the_others_stay() {
        let all = [old("Other", "True"), old("NodeResizeError", "True"), old("Resizing", "True")];
        let new = [holds("Resizing", "", "")];
        let merged_away = merged(&all, &RESIZE, &new, false);
        assert_eq!(types(&merged_away), ["Other", "Resizing"]);
        let kept = merged(&all, &RESIZE, &new, true);
        assert_eq!(types(&kept), ["Other", "NodeResizeError", "Resizing"]);
        assert_eq!(types(&merged(&all, &RESIZE, &[], false)), ["Other"]);
        assert!(has(&kept, "Resizing") && !has(&merged_away, "NodeResizeError"));
    }

    #[test]
    fn a_condition_that_goes_on_holds_since_it_began() {
        let all = [old("Resizing", "True")];
        let again = merged(&all, &RESIZE, &[holds("Resizing", "", "more")], false);
        assert_eq!(again[0].last_transition_time.as_deref(), Some("2020-01-01T00:00:00Z"));
        assert_eq!(again[0].message, "more");
        let all = [old("Resizing", "False")];
        let turned = merged(&all, &RESIZE, &[holds("Resizing", "", "")], false);
        assert_ne!(turned[0].last_transition_time.as_deref(), Some("2020-01-01T00:00:00Z"));
    }
}
