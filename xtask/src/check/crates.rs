//! Holds the crates apart: who may depend on whom, and on what never.
//!
//! Only what is linked into the product counts: development and build dependencies
//! are free. Outside crates are looked at through all levels, so that nobody gets
//! one by way of another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Findings;
use crate::proc;

/// What a crate may use.
struct Rule {
    /// The crate; `*` stands for any end of a name.
    name: &'static str,
    /// Crates of ours that it may depend on.
    ours: &'static [&'static str],
    /// Outside crates that it may not reach.
    never: &'static [&'static str],
}

#[rustfmt::skip]
const RULES: &[Rule] = &[
    Rule { name: "larder-model",   ours: &[], never: &["tonic", "prost", "kube", "tokio"] },
    Rule { name: "larder-proto",   ours: &[], never: &["kube"] },
    Rule { name: "larder-host",    ours: &["larder-model"], never: &["tonic", "kube"] },
    Rule { name: "larder-pool",    ours: &["larder-model", "larder-host"], never: &["tonic", "kube"] },
    Rule { name: "larder-volumes", ours: &["larder-model", "larder-host"], never: &["tonic", "kube"] },
    Rule { name: "larder-csi",     ours: &["larder-proto", "larder-model", "larder-volumes"], never: &["kube"] },
    // Of csi the client half; what it links besides is not theirs to use.
    Rule { name: "larder-controllers", ours: &["larder-proto", "larder-model", "larder-csi"], never: &[] },
    Rule { name: "larder-backend-*", ours: &["larder-model", "larder-host", "larder-pool"], never: &["tonic", "kube"] },
    Rule { name: "larder",         ours: &["larder-model", "larder-host", "larder-proto", "larder-pool", "larder-volumes", "larder-csi", "larder-controllers", "larder-backend-*"], never: &[] },
    // Tools and tests may use anything.
    Rule { name: "larder-lives",        ours: &["larder-csi", "larder-proto"], never: &[] },
    Rule { name: "larder-needs",        ours: &[], never: &[] },
    Rule { name: "larder-bench",        ours: &["larder-proto"], never: &[] },
    Rule { name: "larder-cluster",      ours: &["larder-needs"], never: &[] },
    Rule { name: "larder-fuzz",         ours: &["larder*"], never: &[] },
    Rule { name: "larder-vm",           ours: &["larder-needs"], never: &[] },
    Rule { name: "xtask",               ours: &["larder-cluster", "larder-needs", "larder-vm"], never: &[] },
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dep>,
}

#[derive(Deserialize)]
struct Dep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

/// Who is linked with whom.
#[derive(Default)]
struct Graph {
    /// Names of the workspace's crates.
    ours: BTreeSet<String>,
    /// Linked dependencies by crate name; versions of one crate are one.
    edges: BTreeMap<String, BTreeSet<String>>,
}

/// Compares the workspace with the rules.
pub(super) fn check() -> Result<Findings> {
    let words = ["metadata", "--format-version", "1", "--locked", "--all-features"];
    let json = proc::output(proc::cargo().args(words))?;
    Ok(violations(&graph(serde_json::from_str(&json)?)?, RULES))
}

fn graph(metadata: Metadata) -> Result<Graph> {
    let names: BTreeMap<_, _> =
        metadata.packages.into_iter().map(|package| (package.id, package.name)).collect();
    let name = |id: &String| names.get(id).cloned().context("a package without a name");
    let ours = metadata.workspace_members.iter().map(name).collect::<Result<_>>()?;
    let mut graph = Graph { ours, ..Graph::default() };
    for node in metadata.resolve.nodes {
        let linked = |dep: &&Dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let uses = node.deps.iter().filter(linked).map(|dep| name(&dep.pkg));
        let uses = uses.collect::<Result<BTreeSet<_>>>()?;
        graph.edges.entry(name(&node.id)?).or_default().extend(uses);
    }
    Ok(graph)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

fn violations(graph: &Graph, rules: &[Rule]) -> Findings {
    let mut findings = Vec::new();
    for name in &graph.ours {
        let Some(rule) = rules.iter().find(|rule| matches(rule.name, name)) else {
            findings.push(format!("{name} has no rule (hint: add one to xtask's check/crates.rs)"));
            continue;
        };
        for used in graph.edges.get(name).into_iter().flatten() {
            let allowed = rule.ours.iter().any(|pattern| matches(pattern, used));
            if graph.ours.contains(used) && !allowed {
                findings.push(format!("{name} may not depend on {used}"));
            }
        }
        for never in rule.never {
            if let Some(path) = path_to(graph, name, never) {
                findings.push(format!("{name} may not reach {never}: {}", path.join(" -> ")));
            }
        }
    }
    findings
}

/// How `from` comes to be linked with `to`.
fn path_to(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::from([from.to_owned()]);
    while let Some(path) = paths.pop() {
        let last = path.last()?;
        if last == to {
            return Some(path);
        }
        for next in graph.edges.get(last).into_iter().flatten() {
            if seen.insert(next.clone()) {
                paths.push([path.as_slice(), std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_of(ours: &[&str], edges: &[(&str, &str)]) -> Graph {
        let mut graph =
            Graph { ours: ours.iter().map(ToString::to_string).collect(), ..Graph::default() };
        for (from, to) in edges {
            graph.edges.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    }

    const LOW: Rule = Rule { name: "low", ours: &[], never: &["tonic"] };
    const HIGH: Rule = Rule { name: "high-*", ours: &["low"], never: &[] };

    #[test]
    fn a_dependency_against_the_direction_is_found() {
        let graph = graph_of(&["low", "high-a"], &[("low", "high-a"), ("high-a", "low")]);
        assert_eq!(violations(&graph, &[LOW, HIGH]), ["low may not depend on high-a"]);
    }

    #[test]
    fn siblings_may_not_depend_on_each_other() {
        let graph = graph_of(&["high-a", "high-b"], &[("high-a", "high-b")]);
        assert_eq!(violations(&graph, &[HIGH]), ["high-a may not depend on high-b"]);
    }

    #[test]
    fn an_outside_crate_is_found_behind_another_one() {
        let graph = graph_of(&["low"], &[("low", "middle"), ("middle", "tonic")]);
        let found = violations(&graph, &[LOW]);
        assert_eq!(found, ["low may not reach tonic: low -> middle -> tonic"]);
    }

    #[test]
    fn a_crate_without_a_rule_is_found() {
        assert_eq!(violations(&graph_of(&["new"], &[]), &[LOW]).len(), 1);
    }
}
