//! Leader election: of several processes that could do some work, one does.
//!
//! One election may be about several Leases: ours, and those of the Go sidecars that do the same work
//! for the same driver, so that the two stacks never work at once. They are taken in order and all
//! held together; who lacks one does not lead.
//!
//! ```text
//! follow: look every few seconds ─▶ free, or not renewed for its whole duration *by our own clock*
//!   ─▶ take all ─▶ lead: renew ─▶ could not renew until the deadline, or another has it ─▶ stop
//! ```
//! Nobody's clock is compared with another's: a Lease has run out when it has not changed for its
//! duration since *we* first saw it so.

use crate::{
    api::{Key, Meta, Object, Place},
    client::{ApiError, Kube, Patch, Priority},
};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// What an election is about, and its times.
#[derive(Debug, Clone)]
pub struct Election {
    /// Names of the Leases, the first one first; see [`lease_name`].
    pub names: Vec<String>,
    /// Where they are.
    pub namespace: String,
    /// Who we are: the pod's name.
    pub identity: String,
    /// How long others wait for a leader that is gone.
    pub duration: Duration,
    /// How long a leader tries to renew before it gives up: less than `duration`.
    pub deadline: Duration,
    /// How long between two looks.
    pub period: Duration,
    /// Labels that the leader puts on the Leases.
    pub labels: BTreeMap<String, String>,
}

impl Election {
    /// With the times of the Go sidecars.
    pub fn new(names: Vec<String>, namespace: &str, identity: &str) -> Self {
        Self {
            names,
            namespace: namespace.to_owned(),
            identity: clean(identity),
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            period: Duration::from_secs(5),
            labels: BTreeMap::new(),
        }
    }
}

/// The name of the Lease of external-provisioner.
pub fn provisioner(driver: &str) -> String {
    clean(driver)
}
/// The name of the Lease of external-attacher.
pub fn attacher(driver: &str) -> String {
    clean(&format!("external-attacher-leader-{driver}"))
}
/// The name of the Lease of external-resizer.
pub fn resizer(driver: &str) -> String {
    clean(&format!("external-resizer-{driver}"))
}

/// What a Lease and its holder may be called, cleaned as the Go sidecars do.
pub fn clean(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let mut name: String = name.chars().map(keep).collect();
    if name.ends_with('-') {
        name.push('X');
    }
    name
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Lease {
    metadata: Meta,
    spec: LeaseSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
    lease_transitions: Option<u64>,
    acquire_time: Option<String>,
    renew_time: Option<String>,
}

impl Object for Lease {
    const PLACE: Place = Place {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        namespaced: true,
    };
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

/// How an election stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Standing {
    /// Somebody else leads, or nobody yet; who, where that is known.
    #[default]
    Follows,
    /// We lead.
    Leads,
}

/// One Lease, as we see it.
#[derive(Debug)]
struct Seat {
    key: Key,
    seen: Option<(LeaseSpec, Instant)>,
    version: String,
    labels: BTreeMap<String, String>,
    held: bool,
}

/// A running candidate.
#[derive(Debug)]
pub struct Candidate {
    kube: Kube,
    election: Election,
    seats: Vec<Seat>,
    standing: Arc<watch::Sender<Standing>>,
    health: Health,
    /// When the last round began after which all were held: no Lease was renewed before that.
    renewed: Instant,
}

/// How long after a round that failed the next one is tried, by a leader.
const AGAIN: Duration = Duration::from_millis(250);

/// How much longer than its Lease a leader may live before it is said to be ill.
const ILL: Duration = Duration::from_secs(20);

/// Whether the candidates of a process lead only while they hold their Leases. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, (Instant, Duration)>>>);

impl Health {
    fn renewed(&self, name: &str, duration: Duration) {
        self.lock().insert(name.to_owned(), (Instant::now(), duration));
    }

    fn lost(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, Duration)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `/healthz/leader-election` says.
    ///
    /// # Errors
    /// Which Lease has run out long ago, although this process leads.
    pub fn check(&self) -> Result<(), String> {
        let leads = self.lock();
        let ill = leads.iter().find(|(_, (at, duration))| at.elapsed() > *duration + ILL);
        match ill {
            None => Ok(()),
            Some((name, (at, _))) => Err(format!(
                "lease {name} was renewed {:?} ago, and this process leads",
                at.elapsed()
            )),
        }
    }
}

impl Candidate {
    /// A candidate that does not stand yet.
    pub fn new(kube: Kube, election: Election) -> Self {
        let seat = |name: &String| Seat {
            key: Key::new(&election.namespace, name),
            seen: None,
            version: String::new(),
            labels: BTreeMap::new(),
            held: false,
        };
        let seats = election.names.iter().map(seat).collect();
        let (standing, health) = (Arc::default(), Health::default());
        Self { kube, election, seats, standing, health, renewed: Instant::now() }
    }

    /// Tells that one how it stands, too.
    pub fn telling(self, health: &Health) -> Self {
        Self { health: health.clone(), ..self }
    }

    fn name(&self) -> &str {
        self.election.names.first().map_or("", String::as_str)
    }

    /// How it stands, as that changes.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Waits until we lead. Cancelling it keeps what was taken until it runs out.
    pub async fn win(&mut self) {
        loop {
            let begun = Instant::now();
            // What took so long is near its end already.
            if self.round().await && begun.elapsed() < self.election.deadline {
                self.renewed = begun;
                tracing::info!(lease = ?self.election.names, "this process leads");
                self.standing.send_replace(Standing::Leads);
                self.health.renewed(self.name(), self.election.duration);
                return;
            }
            tokio::time::sleep(self.election.period).await;
        }
    }

    /// Leads until it cannot any more, or `stop`. Whoever works for the leader must stop at once when
    /// this returns.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        // Sooner than the period of those who look, so that one lost answer costs nothing.
        let usual = self.election.period.min(self.election.deadline / 4);
        let mut pause = usual;
        while !stop.is_cancelled() {
            let left = self.election.deadline.saturating_sub(self.renewed.elapsed());
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause.min(left)) => {}
            }
            let begun = Instant::now();
            let left = self.election.deadline.saturating_sub(self.renewed.elapsed());
            if let Ok(true) = tokio::time::timeout(left, self.round()).await {
                // Counted from its begin: the first Lease of the round was renewed soon after.
                self.renewed = begun;
                self.health.renewed(self.name(), self.election.duration);
                pause = usual;
            } else {
                pause = usual.min(AGAIN);
            }
            let taken = self.seats.iter().any(|s| !s.held && s.held_by_other(&self.election));
            if taken || self.renewed.elapsed() >= self.election.deadline {
                tracing::error!(lease = ?self.election.names, taken, "the lease is lost");
                break;
            }
        }
        self.health.lost(self.name());
        self.standing.send_replace(Standing::Follows);
    }

    /// Gives the Leases back, so that the next leader need not wait: only once nothing works any more.
    pub async fn release(&mut self) {
        for seat in self.seats.iter_mut().filter(|s| s.held) {
            let spec = json!({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now()});
            let patch = json!({"metadata": {"resourceVersion": seat.version}, "spec": spec});
            let patch = Patch::Merge(patch);
            let asked = self.kube.patch::<Lease>(&seat.key, "", &patch, Priority::Urgent);
            if let Err(error) = asked.await {
                tracing::warn!("failed to {error}");
            }
            seat.held = false;
        }
    }

    /// Takes or renews every seat, in order; whether all are held. None is taken before all are free,
    /// and all are looked at each time: what a leader that is gone has held runs out at once, and not
    /// one after the other.
    async fn round(&mut self) -> bool {
        let mut free = true;
        for i in 0..self.seats.len() {
            if let Err(error) = self.look(i).await {
                tracing::warn!("failed to {error}");
                return false;
            }
            free &= self.seats[i].held || !self.seats[i].held_by_other(&self.election);
        }
        if !free {
            return false;
        }
        for i in 0..self.seats.len() {
            if let Err(error) = self.take(i).await {
                tracing::warn!("failed to {error}");
                return false;
            }
            if !self.seats[i].held {
                return false;
            }
        }
        true
    }

    /// Looks at a seat; a holder knows it by its last write.
    async fn look(&mut self, i: usize) -> Result<(), ApiError> {
        let Self { kube, election, seats, .. } = self;
        match seats[i].held {
            true => Ok(()),
            false => seats[i].read(kube, election).await,
        }
    }

    async fn take(&mut self, i: usize) -> Result<(), ApiError> {
        let Self { kube, election, seats, .. } = self;
        let seat = &mut seats[i];
        let patch = seat.claim(election);
        let priority = Priority::Urgent;
        let written = match &seat.seen {
            None => {
                let whole = json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": seat.key.name, "namespace": seat.key.namespace, "labels": election.labels},
                    "spec": patch["spec"],
                });
                let create = kube.create::<Lease>(&election.namespace, &whole, priority);
                soon(election, "create", &seat.key, create).await
            }
            Some(_) => {
                let patch = Patch::Merge(patch);
                let patch = kube.patch::<Lease>(&seat.key, "", &patch, priority);
                soon(election, "patch", &seat.key, patch).await
            }
        };
        match written {
            Ok(lease) => {
                seat.see(lease);
                seat.held = true;
                Ok(())
            }
            // Somebody wrote in between, or it is gone: look again the next time. Or it was our own
            // write, whose answer was lost.
            Err(error)
                if error.is_conflict() || error.is_already_exists() || error.is_not_found() =>
            {
                seat.held = false;
                seat.read(kube, election).await
            }
            Err(error) => Err(error),
        }
    }
}

/// No request about a Lease may use up the time of the next: a connection that is silently dead (a
/// load balancer that was replaced) costs one request, and the next has a connection of its own.
async fn soon<T>(
    election: &Election,
    verb: &'static str,
    key: &Key,
    request: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let most = election.deadline / 3;
    tokio::time::timeout(most, request)
        .await
        .unwrap_or_else(|_| Err(ApiError::silent::<Lease>(verb, key, most)))
}

impl Seat {
    /// Reads it.
    async fn read(&mut self, kube: &Kube, election: &Election) -> Result<(), ApiError> {
        let (key, priority) = (self.key.clone(), Priority::Urgent);
        match soon(election, "get", &key, kube.get::<Lease>(&key, priority)).await? {
            Some(lease) => self.see(lease),
            None => self.seen = None,
        }
        Ok(())
    }

    /// Remembers since when it looks like this.
    fn see(&mut self, lease: Lease) {
        self.version = lease.metadata.resource_version;
        self.labels = lease.metadata.labels;
        match &self.seen {
            Some((spec, _)) if *spec == lease.spec => {}
            _ => self.seen = Some((lease.spec, Instant::now())),
        }
    }

    fn held_by_other(&self, election: &Election) -> bool {
        let Some((spec, since)) = &self.seen else { return false };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == election.identity {
            return false;
        }
        // The holder's own idea of the duration: it may be configured otherwise.
        let duration = spec.lease_duration_seconds.map_or(election.duration, Duration::from_secs);
        since.elapsed() < duration
    }

    /// What makes it ours.
    fn claim(&self, election: &Election) -> serde_json::Value {
        let before = self.seen.as_ref().map(|(spec, _)| spec);
        let ours = before.is_some_and(|s| s.holder_identity.as_deref() == Some(&election.identity));
        let transitions = before.and_then(|s| s.lease_transitions).unwrap_or(0);
        let changed = before.is_some() && !ours;
        let mut spec = json!({
            "holderIdentity": election.identity,
            "leaseDurationSeconds": election.duration.as_secs().max(1),
            "renewTime": now(),
            "leaseTransitions": transitions + u64::from(changed),
        });
        if !ours {
            spec["acquireTime"] = now().into();
        }
        let mut metadata = json!({"resourceVersion": self.version});
        if election.labels.iter().any(|(k, v)| self.labels.get(k) != Some(v)) {
            metadata["labels"] = json!(election.labels);
        }
        json!({"metadata": metadata, "spec": spec})
    }
}

/// As Kubernetes writes a MicroTime.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("loop.csi.larder.dev", "loop-csi-larder-dev")]
    #[case("a/b", "a-b")]
    #[case("odd.", "odd-X")]
    fn names_are_cleaned_as_the_go_sidecars_do(#[case] name: &str, #[case] wanted: &str) {
        assert_eq!(clean(name), wanted);
    }

    #[test]
    fn the_leases_of_the_go_sidecars_are_known() {
        assert_eq!(provisioner("hostpath.csi.k8s.io"), "hostpath-csi-k8s-io");
        assert_eq!(attacher("a.b"), "external-attacher-leader-a-b");
        assert_eq!(resizer("a.b"), "external-resizer-a-b");
    }

    fn seat(holder: &str, seconds: u64) -> Seat {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(3),
            // Somebody whose clock is years off.
            renew_time: Some("1999-01-01T00:00:00.000000Z".to_owned()),
            ..LeaseSpec::default()
        };
        let seen = Some((spec, Instant::now()));
        Seat {
            key: Key::default(),
            seen,
            version: "5".into(),
            labels: BTreeMap::new(),
            held: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_by_our_own_clock() {
        let election = Election::new(vec!["l".into()], "ns", "us");
        let mut seat = seat("them", 15);
        assert!(seat.held_by_other(&election));
        tokio::time::advance(Duration::from_secs(14)).await;
        assert!(seat.held_by_other(&election));
        // A renewal starts it anew, whatever time it names.
        let mut lease = Lease { spec: seat.seen.clone().unwrap().0, ..Lease::default() };
        lease.spec.renew_time = Some("1999-01-01T00:00:14.000000Z".to_owned());
        seat.see(lease.clone());
        tokio::time::advance(Duration::from_secs(14)).await;
        seat.see(lease);
        assert!(seat.held_by_other(&election));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!seat.held_by_other(&election));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_outlives_its_lease_is_ill() {
        let health = Health::default();
        assert_eq!(health.check(), Ok(()));
        health.renewed("l", Duration::from_secs(15));
        tokio::time::advance(Duration::from_secs(34)).await;
        assert_eq!(health.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(health.check().unwrap_err().contains("lease l"));
        health.lost("l");
        assert_eq!(health.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_taken_over_says_so() {
        let mut election = Election::new(vec!["l".into()], "ns", "us");
        election.labels = [("app".to_owned(), "larder".to_owned())].into();
        let patch = seat("", 15).claim(&election);
        assert_eq!(patch["spec"]["leaseTransitions"], 4);
        assert_eq!(patch["metadata"]["resourceVersion"], "5");
        assert_eq!(patch["metadata"]["labels"]["app"], "larder");
        assert!(patch["spec"]["acquireTime"].is_string());
        let again = seat("us", 15).claim(&election);
        assert_eq!(again["spec"]["leaseTransitions"], 3);
        assert!(again["spec"]["acquireTime"].is_null());
    }
}
