//! Node-local mode: which node takes a claim that any of them may have.
//!
//! ```text
//! claim ─▶ can it be here? ─▶ its turn ─▶ room? ─▶ writes its name on the claim: who is first has it
//!                                           └ no: again later; when nobody takes it, one node says why
//! ```
//! Nodes know each other by the claims that they have taken, and all put themselves in the same order
//! for a claim. The first goes at once; the others wait for the case that it is away or full, the later
//! in the order the longer, so that they seldom write at once.

use super::{Parts, Provisioner, decide::SELECTED_NODE, request, topology};
use crate::{
    api::{Claim, Object, StorageClass},
    queue::Next,
};
use larder_proto::csi;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;
use tonic::{Code, Status};

/// How long before the second the first has its turn: time enough for its write to be heard of.
const HEAD: Duration = Duration::from_millis(500);
/// What each of the claims that wait takes a node, by its own limit of requests.
const EACH: Duration = Duration::from_millis(20);
/// More than that are not waited for.
const LONGEST_LINE: u32 = 500;
/// In which time nodes that know nobody take their turns.
const TURNS: Duration = Duration::from_millis(250);
/// More names than that are of nodes that are long gone.
const KNOWN: usize = 10_000;
/// How many nodes may say that nobody takes a claim.
const SPEAKERS: u32 = 3;

/// The nodes that are known to take claims.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeSet<String>);

impl Peers {
    pub(super) fn note(&mut self, name: &str) {
        if self.0.contains(name) {
            return;
        }
        if self.0.len() >= KNOWN {
            self.0.clear();
        }
        self.0.insert(name.to_owned());
    }

    /// How many nodes come before `local` for that claim; None: no other is known.
    fn rank(&self, local: &str, uid: &str) -> Option<u32> {
        let ours = (number(local, uid), local);
        let mut others = self.0.iter().filter(|name| *name != local).peekable();
        others.peek()?;
        let before = others.filter(|name| (number(name, uid), name.as_str()) < ours).count();
        Some(u32::try_from(before).unwrap_or(u32::MAX))
    }
}

/// Another for each claim: nodes are numbered, and FNV alone gives names that are alike numbers whose
/// order is the same for many claims.
fn number(node: &str, uid: &str) -> u32 {
    let mut hash = topology::fnv1(&format!("{node}/{uid}"));
    for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35)] {
        hash = (hash ^ hash >> shift).wrapping_mul(factor);
    }
    hash ^ hash >> 16
}

/// How long a node of that rank waits for those before it, which have as many claims before them.
fn turn(rank: Option<u32>, number: u32, waiting: usize) -> Duration {
    let backlog = EACH * u32::try_from(waiting).unwrap_or(u32::MAX).min(LONGEST_LINE);
    let spread = |time: Duration| time * (number % 1000) / 1000;
    match rank {
        None => spread(TURNS),
        Some(0) => Duration::ZERO,
        Some(1) => HEAD + backlog,
        Some(rank) => HEAD * (1 + rank.ilog2()) + spread(HEAD) + backlog,
    }
}

/// Whether a node of that rank says that nobody takes the claim: the first of the order, and a few
/// more, later, for the case that the first is no more. A thousand nodes would be a storm. `all`: it is
/// the same on all nodes; else others have their turn before anything is said.
fn speaks(rank: Option<u32>, failures: u32, all: bool) -> bool {
    let rank = rank.unwrap_or(0);
    rank < SPEAKERS && failures >= 2 * (rank + u32::from(!all))
}

/// How much room there is, as the driver says it.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Bytes(i64),
    /// Not to be known just now, as while the pool is away, and why. A claim that the node took then
    /// would wait for it, and for no other.
    Unknown(String),
}

fn room_of(answer: Result<i64, Status>) -> Room {
    match answer {
        Ok(room) => Room::Bytes(room),
        // Who can never tell is asked to make it. So is who finds the question wrong, as it is on every
        // node: its words on the claim are what mends the class.
        Err(status)
            if matches!(
                status.code(),
                Code::Unimplemented | Code::InvalidArgument | Code::NotFound | Code::OutOfRange
            ) =>
        {
            Room::Bytes(i64::MAX)
        }
        Err(status) => Room::Unknown(status.message().to_owned()),
    }
}

impl Provisioner {
    /// Takes a claim for which no node was chosen for this node, if it fits here. Who writes first has
    /// it.
    pub(super) async fn offer(&self, claim: &Claim, class: &StorageClass) -> Next {
        let Parts { driver, local: Some(local), settings, .. } = &self.0.parts else {
            return Next::Done;
        };
        let labels = &local.node.metadata.labels;
        let flat = topology::flatten(&class.allowed_topologies);
        let here = |term: &topology::Term| term.iter().all(|(k, v)| labels.get(k) == Some(v));
        if !flat.is_empty() && !flat.iter().any(here) {
            return Next::Done;
        }
        let uid = &claim.metadata.uid;
        let rank = self.memory().peers.rank(&local.name, uid);
        let due = {
            let wait = turn(rank, number(&local.name, uid), self.0.claims.len());
            *self.memory().turns.entry(uid.clone()).or_insert_with(|| Instant::now() + wait)
        };
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Next::After(left);
        }
        let wanted = request::able(claim, driver.can())
            .and_then(|()| request::wanted(claim, class, driver.can(), settings))
            .and_then(|mut wanted| {
                request::complete(&mut wanted, claim, class, settings).map(|()| wanted)
            });
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(failure) => return self.nobody(claim, rank, failure.message, true),
        };
        let asked = csi::GetCapacityRequest {
            volume_capabilities: wanted.request.volume_capabilities,
            parameters: wanted.request.parameters,
            accessible_topology: Some(csi::Topology { segments: labels.clone() }),
        };
        let room = driver.get_capacity(asked).await.map(|answer| answer.available_capacity);
        let requested = claim.spec.requested();
        match room_of(room) {
            Room::Bytes(room) if requested <= room => {}
            Room::Bytes(room) => {
                let why = format!(
                    "no node takes this claim of {requested} bytes: node {} has {room} bytes for what it asks for (hint: free some room, or ask for less; 0 bytes are also said of access modes, file systems and parameters that the driver has not)",
                    local.name
                );
                return self.nobody(claim, rank, why, false);
            }
            Room::Unknown(why) => {
                let why = format!(
                    "no node takes this claim: node {} cannot tell how much room it has: {why}",
                    local.name
                );
                return self.nobody(claim, rank, why, false);
            }
        }
        let now = self.0.parts.cache.claims.get(&claim.key());
        if now.is_none_or(|now| now.metadata.resource_version != claim.metadata.resource_version) {
            // Its change has it looked at again.
            return Next::Done;
        }
        match self.annotate(claim, SELECTED_NODE, Some(&local.name)).await {
            Ok(()) => Next::Done,
            // Another node was faster; the watch tells.
            Err(error) if error.is_conflict() || error.is_not_found() => Next::Done,
            Err(error) => {
                tracing::warn!("failed to take a claim for this node: {error}");
                Next::Retry
            }
        }
    }

    /// It cannot be here: later, when its turn comes again. Says so, where it is this node's part.
    fn nobody(&self, claim: &Claim, rank: Option<u32>, why: String, all: bool) -> Next {
        let uid = &claim.metadata.uid;
        self.memory().turns.remove(uid);
        tracing::debug!(claim = %claim.key(), "not taken: {why}");
        if speaks(rank, self.0.claims.failures(uid), all) {
            let recorder = &self.0.parts.recorder;
            recorder.warning(&claim.reference(), "ProvisioningFailed", why);
        }
        Next::Retry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_pool_is_away_takes_no_claim_and_one_that_can_never_tell_does() {
        assert_eq!(room_of(Ok(7)), Room::Bytes(7));
        for status in [
            Status::unimplemented("no capacity"),
            Status::invalid_argument("no such key"),
            Status::not_found("no such pool"),
        ] {
            assert_eq!(room_of(Err(status)), Room::Bytes(i64::MAX));
        }
        let away = Status::unavailable("the pool is not mounted");
        assert_eq!(room_of(Err(away)), Room::Unknown("the pool is not mounted".to_owned()));
        assert!(matches!(room_of(Err(Status::deadline_exceeded("busy"))), Room::Unknown(_)));
    }

    #[test]
    fn nodes_that_know_each_other_have_one_order_for_a_claim_and_each_is_first_for_some() {
        let names: Vec<_> = (1..=20).map(|i| format!("node-{i:02}")).collect();
        let mut peers = Peers::default();
        assert_eq!(peers.rank("node-01", "uid"), None, "alone");
        peers.note("node-01");
        assert_eq!(peers.rank("node-01", "uid"), None, "a node is no other of itself");
        names.iter().for_each(|name| peers.note(name));
        let mut first = BTreeSet::new();
        for claim in 0..400 {
            let uid = format!("5b9b1a2e-3c4d-4e5f-8a9b-{claim:012}");
            let ranks: Vec<_> = names.iter().map(|name| peers.rank(name, &uid).unwrap()).collect();
            let mut sorted = ranks.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
            first.insert(ranks.iter().position(|rank| *rank == 0));
        }
        assert_eq!(first.len(), names.len());
    }

    #[test]
    fn the_first_goes_at_once_and_nobody_waits_long() {
        assert_eq!(turn(Some(0), 999, 100), Duration::ZERO);
        assert_eq!(turn(Some(1), 999, 0), HEAD);
        assert!(turn(Some(2), 0, 0) > turn(Some(1), 999, 0));
        assert!(turn(Some(1000), 999, 0) < 12 * HEAD);
        assert!(turn(None, 999, 100) < TURNS);
    }

    #[test]
    fn where_many_claims_came_at_once_the_first_has_longer() {
        assert_eq!(turn(Some(1), 0, 100), HEAD + Duration::from_secs(2));
        assert_eq!(turn(Some(1), 0, usize::MAX), HEAD + Duration::from_secs(10));
    }

    #[test]
    fn of_a_thousand_nodes_three_say_that_nobody_takes_a_claim() {
        let speakers =
            |failures, all| (0..1000).filter(|rank| speaks(Some(*rank), failures, all)).count();
        assert_eq!(
            [0, 1, 2, 4, 6, 50].map(|failures| speakers(failures, false)),
            [0, 0, 1, 2, 3, 3]
        );
        assert_eq!([0, 1, 2, 4, 50].map(|failures| speakers(failures, true)), [1, 1, 2, 3, 3]);
        assert!(speaks(None, 2, false), "who is alone speaks for all");
    }
}
