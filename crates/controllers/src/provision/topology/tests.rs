use super::*;
use crate::provision::outcome::State;
use rstest::rstest;
use serde_json::json;

#[derive(Default)]
struct World {
    nodes: Vec<Arc<Node>>,
    csi_nodes: Vec<Arc<CsiNode>>,
}

impl Nodes for World {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.iter().find(|n| n.metadata.name == name).cloned()
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CsiNode>> {
        self.csi_nodes.iter().find(|n| n.metadata.name == name).cloned()
    }
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.clone()
    }
    fn csi_nodes(&self) -> Vec<Arc<CsiNode>> {
        self.csi_nodes.clone()
    }
}

impl World {
    /// `name zone rack`; the driver's keys are zone and rack.
    fn of(nodes: &[&str]) -> Self {
        let mut world = Self::default();
        for text in nodes {
            let [name, zone, rack] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
            world.node_with(name, &[("zone", zone), ("rack", rack)]);
            world.driver_on(name, &["zone", "rack"]);
        }
        world
    }
    fn node_with(&mut self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let node = json!({"metadata": {"name": name, "labels": labels}});
        self.nodes.push(Arc::new(serde_json::from_value(node).unwrap()));
    }
    fn driver_on(&mut self, name: &str, keys: &[&str]) {
        let drivers = json!([{"name": "d", "nodeID": name, "topologyKeys": keys}]);
        let node = json!({"metadata": {"name": name}, "spec": {"drivers": drivers}});
        self.csi_nodes.push(Arc::new(serde_json::from_value(node).unwrap()));
    }
}

fn allowed(terms: serde_json::Value) -> Vec<TopologyTerm> {
    serde_json::from_value(terms).unwrap()
}

fn question<'a>(
    claim: &'a str,
    selected: Option<&'a str>,
    allowed: &'a [TopologyTerm],
) -> Question<'a> {
    Question { driver: "d", claim, allowed, selected, strict: false, immediate: true }
}

/// `requisite | preferred`, a term as its values.
fn answer(question: Question<'_>, world: &World) -> Result<String, State> {
    let asked = requirement(question, world, &mut None).map_err(|f| f.state)?;
    let Some(asked) = asked else { return Ok("none".to_owned()) };
    let side = |terms: &[csi::Topology]| {
        let one = |t: &csi::Topology| t.segments.values().cloned().collect::<Vec<_>>().join("/");
        terms.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    Ok(format!("{} | {}", side(&asked.requisite), side(&asked.preferred)))
}

const THREE: [&str; 4] = ["n3 c 1", "n1 a 1", "n2 b 1", "n4 a 1"];

#[test]
fn a_chosen_node_leads_and_the_others_follow_in_order() {
    let world = World::of(&THREE);
    assert_eq!(
        answer(question("x", Some("n2"), &[]), &world).unwrap(),
        "1/a 1/b 1/c | 1/b 1/c 1/a"
    );
}

#[test]
fn strict_tells_of_the_chosen_node_only() {
    let world = World::of(&THREE);
    let strict = |q| Question { strict: true, ..q };
    assert_eq!(answer(strict(question("x", Some("n2"), &[])), &world).unwrap(), "1/b | 1/b");
    let zones = |zones: &[&str]| {
        allowed(json!([{"matchLabelExpressions": [{"key": "zone", "values": zones}]}]))
    };
    let (fits, other) = (zones(&["a", "b"]), zones(&["a", "c"]));
    assert_eq!(answer(strict(question("x", Some("n2"), &fits)), &world).unwrap(), "1/b | 1/b");
    assert_eq!(answer(strict(question("x", Some("n2"), &other)), &world), Err(State::NoChange));
}

#[test]
fn allowed_topologies_are_multiplied_out_united_and_sorted() {
    let terms = allowed(json!([
        {"matchLabelExpressions": [{"key": "zone", "values": ["b", "a"]}, {"key": "rack", "values": ["1", "2"]}]},
        {"matchLabelExpressions": [{"key": "zone", "values": ["c"]}]},
        {"matchLabelExpressions": [{"key": "zone", "values": ["c"]}]},
    ]));
    let world = World::of(&THREE);
    // The shorter first; "n1" is in a/1, which is the second of five.
    assert_eq!(
        answer(question("x", Some("n1"), &terms), &world).unwrap(),
        "c 1/a 1/b 2/a 2/b | 1/a 1/b 2/a 2/b c"
    );
    let elsewhere = allowed(json!([{"matchLabelExpressions": [{"key": "zone", "values": ["z"]}]}]));
    assert_eq!(answer(question("x", Some("n1"), &elsewhere), &world), Err(State::NoChange));
}

#[rstest]
// FNV-1 of "web" is 0x2c7d0d47 or so: what matters is that neighbours follow each other.
#[case("data-web-0", "data-web-1")]
#[case("data-web-1", "data-web-2")]
#[case("data-web-2", "logs-web-3")]
fn the_volumes_of_a_set_are_spread_and_those_of_one_pod_are_together(
    #[case] one: &str,
    #[case] next: &str,
) {
    let world = World::of(&["n1 a 1", "n2 b 1", "n3 c 1"]);
    let first = |claim: &str| {
        let text = answer(question(claim, None, &[]), &world).unwrap();
        text.split("| ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    };
    let order = ["1/a", "1/b", "1/c"];
    let at = |claim: &str| order.iter().position(|o| *o == first(claim)).unwrap();
    assert_eq!((at(one) + 1) % 3, at(next));
    assert_eq!(first("data-web-5"), first("logs-web-5"));
}

#[rstest]
#[case("", 0x811c_9dc5)]
#[case("a", 0x050c_5d7e)]
#[case("foobar", 0x31f0_b262)]
fn the_hash_is_fnv_1(#[case] text: &str, #[case] hash: u32) {
    assert_eq!(fnv1(text), hash);
}

#[rstest]
#[case("data-web-7", "web", 7)]
#[case("web-7", "web", 7)]
#[case("7", "7", 0)]
#[case("data-web", "data-web", 0)]
#[case("data-web-4294967296", "data-web-4294967296", 0)]
#[case("a-", "a-", 0)]
fn names_of_claims_are_read_as_those_of_stateful_sets(
    #[case] claim: &str,
    #[case] hashed: &str,
    #[case] index: u32,
) {
    assert_eq!(spread(claim), (fnv1(hashed), index));
}

#[test]
fn without_a_chosen_node_nothing_is_told_when_that_is_wanted() {
    let world = World::of(&THREE);
    let quiet = |q| Question { immediate: false, ..q };
    assert_eq!(answer(quiet(question("x", None, &[])), &world).unwrap(), "none");
    let terms = allowed(json!([{"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}]));
    assert_eq!(answer(quiet(question("x", None, &terms)), &world).unwrap(), "a | a");
    assert!(answer(quiet(question("x", Some("n1"), &[])), &world).unwrap().starts_with("1/a"));
}

#[test]
fn a_node_that_is_gone_is_chosen_anew_and_one_that_is_not_ready_waited_for() {
    let mut world = World::of(&THREE);
    assert_eq!(answer(question("x", Some("gone"), &[]), &world), Err(State::Reschedule));
    world.driver_on("keyless", &[]);
    world.node_with("keyless", &[]);
    assert_eq!(answer(question("x", Some("keyless"), &[]), &world), Err(State::NoChange));
    world.driver_on("unlabelled", &["zone"]);
    world.node_with("unlabelled", &[]);
    assert_eq!(answer(question("x", Some("unlabelled"), &[]), &world), Err(State::NoChange));
    world.driver_on("half", &["zone"]);
    assert_eq!(answer(question("x", Some("half"), &[]), &world), Err(State::NoChange));
    assert_eq!(answer(question("x", None, &[]), &World::default()), Err(State::NoChange));
}

#[test]
fn a_retry_asks_for_the_same_although_nodes_have_come_and_gone() {
    let mut memory = None;
    let asked = question("x", Some("n2"), &[]);
    let first = requirement(asked, &World::of(&THREE), &mut memory).unwrap();
    let later = requirement(asked, &World::of(&["n2 z 9"]), &mut memory).unwrap();
    assert_eq!(first, later);
}
