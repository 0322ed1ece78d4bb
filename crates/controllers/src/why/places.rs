//! Drivers on nodes, where volumes may be, and how much room there is.

use super::{
    Snapshot, Step,
    snapshot::{bytes, condition, list, name, text, texts},
};
use serde_json::Value;

/// The driver, and whether any node has it.
pub(super) fn driver(see: &Snapshot, driver: &str, out: &mut Vec<Step>) {
    let object = format!("csidriver/{driver}");
    let nodes = with_driver(see, driver);
    if nodes.is_empty() {
        let known = if see.driver(driver).is_some() {
            ""
        } else {
            ", and there is no CSIDriver object of that name"
        };
        return out.push(
            Step::stuck("registration", "driver-nowhere", object)
                .what(format!("no node has registered it{known}"))
                .mend("install the driver, or look why kubelet does not register it: kubectl get pods -A -o wide -l app.kubernetes.io/name=larder; a class of a driver that is not there has to be made anew with another"),
        );
    }
    let rules = match see.driver(driver) {
        None => "no CSIDriver object: Kubernetes expects attachments".to_owned(),
        Some(object) => match attaches(see, driver) {
            true => format!("{} attaches volumes to nodes", name(object)),
            false => format!("{} needs no attachments", name(object)),
        },
    };
    out.push(Step::ok("driver", &object, rules));
    out.push(Step::ok(
        "registration",
        object,
        format!("registered on {} of {} nodes: {}", nodes.len(), see.nodes.len(), nodes.join(", ")),
    ));
}

/// Whether volumes of a driver must be attached.
pub(super) fn attaches(see: &Snapshot, driver: &str) -> bool {
    let said = see.driver(driver).and_then(|d| d.pointer("/spec/attachRequired")?.as_bool());
    said.unwrap_or(true)
}

/// The nodes that have a driver.
pub(super) fn with_driver<'a>(see: &'a Snapshot, driver: &str) -> Vec<&'a str> {
    let has = |node: &&Value| entry(node, driver).is_some();
    see.csi_nodes.iter().filter(has).map(name).collect()
}

fn entry<'a>(csi_node: &'a Value, driver: &str) -> Option<&'a Value> {
    list(csi_node, "/spec/drivers").iter().find(|d| text(d, "/name") == driver)
}

/// A node that is to have a volume of a driver.
pub(super) fn on_node(see: &Snapshot, driver: &str, node: &str, out: &mut Vec<Step>) {
    let object = format!("node/{node}");
    let Some(found) = see.node(node) else {
        return out.push(
            Step::stuck("node", "node-gone", object)
                .what("the volume or the pod is bound to it, and there is no such node")
                .mend("bring the node back under its name; of a node that is gone for good, delete the pod, the claim and the volume"),
        );
    };
    let ready = condition(found, "Ready");
    if ready.is_none_or(|ready| text(ready, "/status") != "True") {
        let why = ready.map_or("kubelet has said nothing", |ready| text(ready, "/message"));
        let since = ready.and_then(|ready| super::snapshot::at(ready, "/lastTransitionTime"));
        out.push(
            Step::stuck("node", "node-not-ready", &object)
                .since(since)
                .what(format!("it is not ready: {why}"))
                .mend("bring the node back; of one that is surely off: kubectl taint node NAME node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, which lets go of its volumes"),
        );
    } else {
        out.push(Step::ok("node", &object, "it is ready"));
    }
    let csi_node = see.csi_nodes.iter().find(|csi| name(csi) == node);
    match csi_node.and_then(|csi| entry(csi, driver)) {
        Some(_) => out.push(Step::ok("registration", format!("csinode/{node}"), format!("it has driver {driver}"))),
        None => out.push(
            Step::stuck("registration", "driver-not-on-node", format!("csinode/{node}"))
                .what(format!("driver {driver} is not registered on node {node}"))
                .mend(format!("look why: kubectl get pods -A -o wide --field-selector spec.nodeName={node} shows whether the driver's pod runs there; its /readyz says what it waits for")),
        ),
    }
}

/// Whether a node has the labels of one of the terms (`matchLabelExpressions` or `matchExpressions`).
fn within(node: &Value, terms: &[Value], list_of: &str) -> bool {
    terms.iter().any(|term| {
        list(term, list_of).iter().all(|expression| {
            let label =
                node.pointer("/metadata/labels").and_then(|l| l.get(text(expression, "/key")));
            let label = label.and_then(Value::as_str);
            let values = texts(expression, "/values");
            match text(expression, "/operator") {
                "" | "In" => label.is_some_and(|label| values.contains(&label)),
                "NotIn" => label.is_none_or(|label| !values.contains(&label)),
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                // What only scheduling knows to compare is not held against it.
                _ => true,
            }
        })
    })
}

/// Where a class allows volumes, and whether that is anywhere.
pub(super) fn topology(see: &Snapshot, class: &Value, out: &mut Vec<Step>) {
    let terms = list(class, "/allowedTopologies");
    if terms.is_empty() {
        return;
    }
    let driver = text(class, "/provisioner");
    let object = format!("storageclass/{}", name(class));
    let fit = |node: &&Value| within(node, terms, "/matchLabelExpressions");
    let nodes: Vec<_> = see.nodes.iter().filter(fit).map(name).collect();
    let have = with_driver(see, driver);
    let both: Vec<_> = nodes.iter().filter(|node| have.contains(node)).copied().collect();
    if !both.is_empty() {
        return out.push(Step::ok(
            "topology",
            object,
            format!("allowedTopologies match nodes {}", both.join(", ")),
        ));
    }
    let what = match nodes.is_empty() {
        true => "no node has the labels of its allowedTopologies".to_owned(),
        false => format!(
            "its allowedTopologies match only nodes without driver {driver}: {}",
            nodes.join(", ")
        ),
    };
    out.push(Step::stuck("topology", "topology", object).what(what).mend(
        "label a node that has the driver, or make the class anew with other allowedTopologies",
    ));
}

/// The nodes where a volume can be used; None: anywhere.
pub(super) fn of_volume<'a>(see: &'a Snapshot, volume: &Value) -> Option<Vec<&'a str>> {
    let terms = list(volume, "/spec/nodeAffinity/required/nodeSelectorTerms");
    if terms.is_empty() {
        return None;
    }
    let fit = |node: &&Value| within(node, terms, "/matchExpressions");
    Some(see.nodes.iter().filter(fit).map(name).collect())
}

/// Whether there is room, as far as the driver has told.
pub(super) fn capacity(
    see: &Snapshot,
    claim: &Value,
    class: &Value,
    chosen: Option<&str>,
    out: &mut Vec<Step>,
) {
    let asked = bytes(claim, "/spec/resources/requests/storage").unwrap_or(0);
    let of_class = |c: &&Value| text(c, "/storageClassName") == name(class);
    let told: Vec<_> = see.capacities.iter().filter(of_class).collect();
    let object = format!("storageclass/{}", name(class));
    let driver = text(class, "/provisioner");
    let asks = see.driver(driver).and_then(|d| d.pointer("/spec/storageCapacity")?.as_bool());
    if told.is_empty() {
        // Who promises to tell, and has not yet, holds the scheduler up.
        let late = text(class, "/volumeBindingMode") == "WaitForFirstConsumer";
        if asks == Some(true) && late && chosen.is_none() {
            out.push(
                Step::stuck("capacity", "capacity-untold", object)
                    .what("the CSIDriver object promises to tell how much room there is (storageCapacity), and no CSIStorageCapacity is there: the scheduler takes no node")
                    .mend("look at the log of the driver's provisioner; with Larder's chart: controllers.capacity"),
            );
        }
        return;
    }
    let node = chosen.and_then(|chosen| see.node(chosen));
    let here = |c: &&&Value| node.is_none_or(|node| matches_labels(c, node));
    let room = |c: &&&Value| bytes(c, "/maximumVolumeSize").or_else(|| bytes(c, "/capacity"));
    let rooms: Vec<_> = told.iter().filter(here).filter_map(|c| room(&c)).collect();
    let most = rooms.iter().max().copied().unwrap_or(0);
    let place = chosen.map_or_else(|| "any node".to_owned(), |node| format!("node {node}"));
    if most >= asked {
        return out.push(Step::ok(
            "capacity",
            object,
            format!("up to {} on {place}", in_words(most)),
        ));
    }
    out.push(
        Step::stuck("capacity", "no-capacity", object)
            .what(format!("{} are asked for, and the most that there is on {place} are {}", in_words(asked), in_words(most)))
            .mend("make room in a pool (`larder pool ls -o wide` on the nodes), or make the claim anew with less"),
    );
}

fn matches_labels(capacity: &Value, node: &Value) -> bool {
    let Some(topology) = capacity.get("nodeTopology") else { return false };
    let wanted = topology.pointer("/matchLabels").and_then(Value::as_object);
    wanted.into_iter().flatten().all(|(key, value)| {
        node.pointer("/metadata/labels").and_then(|l| l.get(key)) == Some(value)
    })
}

/// A size for people: a free space has seldom a round number of anything.
pub(super) fn in_words(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut unit = 0;
    // In tenths.
    let mut size = i128::from(bytes) * 10;
    while size >= 10_240 && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    let part = if size % 10 == 0 { String::new() } else { format!(".{}", size % 10) };
    format!("{}{part}{}", size / 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::in_words;
    use rstest::rstest;

    #[rstest]
    #[case(0, "0")]
    #[case(1023, "1023")]
    #[case(1 << 20, "1Mi")]
    #[case(1536 << 20, "1.5Gi")]
    #[case(900 << 40, "900Ti")]
    #[case(39_065_903_104_000, "35.5Ti")]
    fn sizes_are_told_with_one_place(#[case] bytes: i64, #[case] wanted: &str) {
        assert_eq!(in_words(bytes), wanted);
    }
}
