//! Where a volume shall be made: the requirement that CreateVolume is told.
//!
//! ```text
//! node chosen (late binding)          not chosen (immediate binding)
//!   strict: that node, nothing else     allowedTopologies, or all nodes
//!   else:   allowedTopologies, or all   preferred: turned by a hash of the claim's name, so that
//!           nodes; the chosen first                the volumes of a StatefulSet are spread
//! ```

use super::outcome::Failure;
use crate::api::{CsiNode, Node, TopologyTerm};
use larder_model::Fault;
use larder_proto::csi;
use std::{collections::BTreeMap, sync::Arc};

/// Labels with values, sorted by label.
pub type Term = Vec<(String, String)>;

/// What is known of the nodes.
pub trait Nodes {
    /// A node.
    fn node(&self, name: &str) -> Option<Arc<Node>>;
    /// The drivers of a node.
    fn csi_node(&self, name: &str) -> Option<Arc<CsiNode>>;
    /// All nodes.
    fn nodes(&self) -> Vec<Arc<Node>>;
    /// All nodes that have a driver of ours.
    fn csi_nodes(&self) -> Vec<Arc<CsiNode>>;
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The driver.
    pub driver: &'a str,
    /// The claim's name.
    pub claim: &'a str,
    /// Where the class allows volumes.
    pub allowed: &'a [TopologyTerm],
    /// The node that the scheduler has chosen.
    pub selected: Option<&'a str>,
    /// Only that node.
    pub strict: bool,
    /// Tell of all nodes where none was chosen.
    pub immediate: bool,
}

/// What was seen the first time: a retry asks for the same, though nodes come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    selected: Option<Term>,
    requisite: Vec<Term>,
}

/// The requirement; None: none is told.
///
/// # Errors
/// No change, and reschedule where the chosen node is gone.
pub fn requirement(
    question: Question<'_>,
    nodes: &impl Nodes,
    memory: &mut Option<Memory>,
) -> Result<Option<csi::TopologyRequirement>, Failure> {
    let Question { claim, allowed, selected, strict, immediate, .. } = question;
    let seen = match memory {
        Some(seen) => seen.clone(),
        None => {
            if selected.is_none() && allowed.is_empty() && !immediate {
                return Ok(None);
            }
            memory.insert(look(question, nodes)?).clone()
        }
    };
    let Memory { selected, requisite } = seen;
    let at = match (&selected, strict) {
        (Some(_), true) => 0,
        (Some(selected), false) => {
            let within = |term: &Term| term.iter().all(|pair| selected.contains(pair));
            requisite.iter().position(within).ok_or_else(|| {
                Failure::no_change(&Fault::precondition(format!(
                    "place the volume: node {} ({}) is not where the StorageClass allows volumes",
                    question.selected.unwrap_or_default(),
                    text(selected)
                )))
            })?
        }
        (None, _) => {
            let (hash, index) = spread(claim);
            let n = u32::try_from(requisite.len()).unwrap_or(u32::MAX).max(1);
            usize::try_from(hash.wrapping_add(index) % n).unwrap_or(0)
        }
    };
    let mut preferred = requisite.clone();
    preferred.rotate_left(at.min(requisite.len()));
    Ok(Some(csi::TopologyRequirement {
        requisite: requisite.into_iter().map(message).collect(),
        preferred: preferred.into_iter().map(message).collect(),
    }))
}

fn look(question: Question<'_>, nodes: &impl Nodes) -> Result<Memory, Failure> {
    let Question { driver, allowed, selected, strict, .. } = question;
    let stuck = |what: String| Failure::no_change(&Fault::precondition(what));
    let chosen = selected.map(|name| selected_term(driver, name, nodes)).transpose()?;
    let flat = flatten(allowed);
    if let (Some(term), true) = (&chosen, strict) {
        let fits = |one: &Term| one.iter().all(|pair| term.contains(pair));
        if !flat.is_empty() && !flat.iter().any(fits) {
            return Err(stuck(format!(
                "place the volume: node {} ({}) is not where the StorageClass allows volumes",
                selected.unwrap_or_default(),
                text(term)
            )));
        }
        return Ok(Memory { requisite: vec![term.clone()], selected: chosen });
    }
    let mut requisite = flat;
    if requisite.is_empty() {
        let keys = match &chosen {
            Some(term) => term.iter().map(|(key, _)| key.clone()).collect(),
            None => any_keys(driver, nodes).ok_or_else(|| {
                stuck(format!("place the volume: driver {driver} runs on no node with topology"))
            })?,
        };
        requisite = nodes.nodes().iter().filter_map(|n| term_of(&keys, n)).collect();
        if requisite.is_empty() {
            return Err(stuck(format!(
                "place the volume: no node has the labels {}",
                keys.join(", ")
            )));
        }
    }
    requisite.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    requisite.dedup();
    Ok(Memory { selected: chosen, requisite })
}

/// Where the chosen node is.
fn selected_term(driver: &str, name: &str, nodes: &impl Nodes) -> Result<Term, Failure> {
    let stuck = |what: String| Failure::no_change(&Fault::precondition(what));
    let csi_node = nodes.csi_node(name).ok_or_else(|| {
        Failure::reschedule(&Fault::not_found(format!(
            "place the volume: the chosen node {name} does not have driver {driver}, or is gone"
        )))
    })?;
    let keys = csi_node.driver(driver).map(|d| d.topology_keys.clone()).unwrap_or_default();
    if keys.is_empty() {
        return Err(stuck(format!(
            "place the volume: driver {driver} tells no topology on node {name}"
        )));
    }
    let node = nodes.node(name).ok_or_else(|| {
        stuck(format!("place the volume: there is no node {name}, though it was chosen"))
    })?;
    term_of(&sorted(keys.clone()), &node).ok_or_else(|| {
        stuck(format!("place the volume: node {name} lacks one of the labels {}", keys.join(", ")))
    })
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort();
    keys
}

/// The labels of any node that tells some.
fn any_keys(driver: &str, nodes: &impl Nodes) -> Option<Vec<String>> {
    let mut all = nodes.csi_nodes();
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut keys = all.iter().filter_map(|n| n.driver(driver)).map(|d| d.topology_keys.clone());
    keys.find(|k| !k.is_empty()).map(sorted)
}

/// The values that a node has for those labels, if it has all.
pub fn term_of(keys: &[String], node: &Node) -> Option<Term> {
    let pair = |key: &String| Some((key.clone(), node.metadata.labels.get(key)?.clone()));
    keys.iter().map(pair).collect()
}

/// The cross products of the values, all terms together.
pub fn flatten(allowed: &[TopologyTerm]) -> Vec<Term> {
    let mut out = Vec::new();
    for term in allowed {
        let mut products: Vec<Term> = vec![Vec::new()];
        for expression in &term.match_label_expressions {
            let with = |product: &Term| {
                let (key, product) = (expression.key.clone(), product.clone());
                expression.values.iter().map(move |value| {
                    let mut longer = product.clone();
                    longer.push((key.clone(), value.clone()));
                    longer
                })
            };
            products = products.iter().flat_map(with).collect();
        }
        out.extend(products.into_iter().filter(|p| !p.is_empty()));
    }
    for term in &mut out {
        term.sort();
    }
    out
}

/// Where in the circle of places the volumes of a claim begin: by the name of its StatefulSet, and its
/// number there.
fn spread(claim: &str) -> (u32, u32) {
    if let Some((front, last)) = claim.rsplit_once('-')
        && !last.is_empty()
        && last.bytes().all(|b| b.is_ascii_digit())
        && let Ok(index) = last.parse()
    {
        let set = front.rsplit_once('-').map_or(front, |(_, set)| set);
        return (fnv1(set), index);
    }
    (fnv1(claim), 0)
}

/// FNV-1 (not 1a), 32 bits: what the Go sidecar uses, so that volumes go where they went before.
pub fn fnv1(text: &str) -> u32 {
    text.bytes()
        .fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte))
}

fn message(term: Term) -> csi::Topology {
    csi::Topology { segments: term.into_iter().collect::<BTreeMap<_, _>>() }
}

fn text(term: &Term) -> String {
    term.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
