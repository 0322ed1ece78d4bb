//! The controllers of a process: what its drivers share, and the loops of each.
//!
//! ```text
//! Controllers::start ── serve(driver) ─▶ met ─▶ watches that it needs ─▶ leader? ─▶ loops
//!                            ▲                                     ▲                 │
//!                            │                                     └── lease lost ◀──┤
//!                            └──── Leases given back ◀── driver gone (Probe) ◀───────┘
//! ```
//! Who has lost its Lease drops what it works on, wherever that waits: what it does later could undo
//! what the next leader has done. Who is told to stop finishes it.

use crate::{
    api::{AttributesClass, Key, Object, Owner, Pod, Reference, ReplicaSet},
    attach::{self, Attacher},
    cache::{Cache, Ours, Watched},
    client::{Access, Kube, Priority},
    driver::{CallMetrics, Driver},
    events::Events,
    lease::{self, Candidate, Election, Standing},
    modify::{self, Modifier},
    provision::{self, Local, Provisioner},
    queue::QueueMetrics,
    resize::{self, Grows, Resizer},
};
use futures::{FutureExt, future::BoxFuture};
use larder_csi::Client;
use larder_model::{Fault, Result};
use larder_proto::csi;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How leaders are elected.
#[derive(Debug, Clone)]
pub struct Leases {
    /// Where the Leases are.
    pub namespace: String,
    /// `--leader-election-lease-duration`
    pub duration: Duration,
    /// `--leader-election-renew-deadline`
    pub deadline: Duration,
    /// `--leader-election-retry-period`
    pub period: Duration,
    /// `--leader-election-labels`
    pub labels: BTreeMap<String, String>,
    /// Gate ReleaseLeaderElectionOnExit.
    pub release: bool,
}

impl Leases {
    /// In that namespace, with the times of the Go sidecars.
    pub fn new(namespace: &str) -> Self {
        let Election { duration, deadline, period, .. } = Election::new(Vec::new(), namespace, "");
        let (namespace, labels) = (namespace.to_owned(), BTreeMap::new());
        Self { namespace, duration, deadline, period, labels, release: true }
    }
}

/// How the room of a driver is told of.
#[derive(Debug, Clone)]
pub struct Capacity {
    /// Where the objects are: the namespace of the pod.
    pub namespace: String,
    /// The pod, where its owner is to be the owner of the objects; None: they have none.
    pub pod: Option<String>,
    /// 0: the pod itself; 1: what manages it (a DaemonSet); 2: what manages that (a Deployment).
    pub level: u8,
    /// How often the driver is asked.
    pub poll: Duration,
    /// Also for classes that bind at once.
    pub immediate: bool,
}

/// The controllers, each by the name of the Go sidecar that it takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// Volumes for claims.
    Provisioner,
    /// Volumes on nodes.
    Attacher,
    /// Larger volumes, and volumes with other attributes.
    Resizer,
}

impl Which {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Provisioner, Self::Attacher, Self::Resizer];

    /// The Lease of the Go sidecar.
    fn lease(self, driver: &str) -> String {
        match self {
            Self::Provisioner => lease::provisioner(driver),
            Self::Attacher => lease::attacher(driver),
            Self::Resizer => lease::resizer(driver),
        }
    }
}

/// How one driver is served.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which of the controllers run.
    pub which: BTreeSet<Which>,
    /// How long one call may take.
    pub timeout: Duration,
    /// None: this process alone does it.
    pub leases: Option<Leases>,
    /// Node-local mode: the volumes of that node, and no others. No leader is elected then.
    pub local_node: Option<String>,
    /// None: nobody is told how much room there is.
    pub capacity: Option<Capacity>,
    /// The provisioner.
    pub provision: provision::Settings,
    /// The attacher.
    pub attach: attach::Settings,
    /// The resizer, as far as sizes go.
    pub resize: resize::Settings,
    /// The resizer, as far as attributes go.
    pub modify: modify::Settings,
}

/// What of the resizer there is to do for a driver, in this cluster.
#[derive(Debug, Clone, Copy, Default)]
struct Can {
    grows: Option<Grows>,
    modifies: bool,
}

impl Can {
    /// Whether there is anything to do: a process that leads and has nothing to do would keep others
    /// from it.
    fn is_anything(self, driver: &Driver, options: &Options) -> Result<()> {
        let others = options.which.iter().any(|which| *which != Which::Resizer);
        if others || self.grows.is_some() || self.modifies {
            return Ok(());
        }
        let name = driver.name();
        Err(Fault::unsupported(format!(
            "grow and change volumes of driver {name}: it can do neither"
        ))
        .hint("leave `resizer` out of --controllers"))
    }

    /// The kinds that the controllers must see.
    fn watched(self, driver: &Driver, options: &Options, local: bool) -> BTreeSet<Watched> {
        let mut kinds = BTreeSet::new();
        for which in &options.which {
            match which {
                Which::Provisioner => {
                    kinds.extend(provision::watched(driver, &options.provision, local));
                }
                Which::Attacher => kinds.extend(attach::watched(driver)),
                Which::Resizer => {}
            }
        }
        if self.grows.is_some() {
            kinds.extend(resize::watched(driver));
        }
        if self.modifies {
            kinds.extend(modify::watched());
        }
        kinds
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabels {
    name: String,
}

/// Why the work for a driver has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// As it was told to.
    Stopped,
    /// The driver does not answer any more.
    DriverGone,
}

/// What the drivers of a process share.
#[derive(Debug, Clone)]
pub struct Controllers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kube: Kube,
    cache: Cache,
    ours: Arc<Ours>,
    started: Mutex<BTreeSet<Watched>>,
    events: Events,
    calls: CallMetrics,
    queues: QueueMetrics,
    provisioned: provision::Metrics,
    leads: Family<LeaseLabels, Gauge>,
    health: lease::Health,
    /// The drivers that are waited for.
    away: Mutex<BTreeSet<String>>,
    host: String,
    tasks: TaskTracker,
    /// Ends the watches and events, once the loops have ended.
    end: CancellationToken,
}

impl Controllers {
    /// For drivers of those names; `host` is what this process is called (the pod).
    ///
    /// # Errors
    /// Where the way to the API server is not known.
    pub async fn start(
        access: &Access,
        drivers: impl IntoIterator<Item = String> + Send,
        host: &str,
        registry: &mut Registry,
    ) -> Result<Self> {
        Ok(Self::over(Kube::new(access, registry).await?, drivers, host, registry))
    }

    /// As [`Controllers::start`], over a client that is there already.
    pub fn over(
        kube: Kube,
        drivers: impl IntoIterator<Item = String>,
        host: &str,
        registry: &mut Registry,
    ) -> Self {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let leads = Family::default();
        let help = "Whether this process leads (1), by lease";
        registry.register("leader_election_master_status", help, Family::clone(&leads));
        Self(Arc::new(Inner {
            events: Events::start(kube.clone(), registry, &tasks, end.clone()),
            kube,
            cache: Cache::new(),
            ours: Arc::new(Ours::new(drivers)),
            started: Mutex::default(),
            calls: CallMetrics::register(registry),
            queues: QueueMetrics::register(registry),
            provisioned: provision::Metrics::register(registry),
            leads,
            health: lease::Health::default(),
            away: Mutex::default(),
            host: host.to_owned(),
            tasks,
            end,
        }))
    }

    /// Works for a driver until `stop`. A driver that is gone is waited for, its Leases given back to
    /// those whose driver is there, and asked anew what it can do.
    ///
    /// # Errors
    /// Where the driver cannot be worked with at all, or there is nothing to do for it.
    pub async fn serve(
        &self,
        client: Client,
        options: Options,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut known = None;
        loop {
            let meeting = Driver::meet(client.clone(), options.timeout, self.0.calls.clone());
            let Some(met) = stop.run_until_cancelled(meeting).await else { return Ok(()) };
            let driver =
                met.map_err(|status| larder_csi::client::fault(&status).during("meet the driver"))?;
            self.away().remove(driver.name());
            let name = known.get_or_insert_with(|| driver.name().to_owned());
            if name != driver.name() {
                return Err(Fault::precondition(format!(
                    "work for driver {name}: behind its socket is driver {} by now",
                    driver.name()
                ))
                .hint("start this process again, for that driver"));
            }
            let serving = self.serve_met(driver.clone(), options.clone(), &stop);
            match serving.await? {
                Over::Stopped => return Ok(()),
                Over::DriverGone => {
                    tracing::warn!(driver = driver.name(), "the driver is gone: waiting for it");
                }
            }
        }
    }

    /// Works for a driver that has just said what it can do.
    async fn serve_met(
        &self,
        driver: Driver,
        mut options: Options,
        stop: &CancellationToken,
    ) -> Result<Over> {
        let local = match &options.local_node {
            Some(node) => Some(local(&driver, node).await?),
            None => None,
        };
        if let Some(of) = &options.capacity {
            let Some(told) = stop.run_until_cancelled(self.capacity(of)).await else {
                return Ok(Over::Stopped);
            };
            options.provision.capacity = Some(told?);
        }
        let Some(can) = stop.run_until_cancelled(self.can(&driver, &options)).await else {
            return Ok(Over::Stopped);
        };
        let can = can?;
        can.is_anything(&driver, &options)?;
        self.watch(&can.watched(&driver, &options, local.is_some()));
        tracing::info!(
            driver = driver.name(),
            local = options.local_node,
            which = ?options.which,
            "controllers work for the driver"
        );
        let work = || self.work(driver.clone(), can, options.clone(), local.clone(), stop.clone());
        let (None, Some(leases)) = (&local, &options.leases) else {
            return Ok(tokio::select! {
                () = work() => Over::Stopped,
                () = self.gone(&driver) => Over::DriverGone,
            });
        };
        let mut candidate = self.candidate(driver.name(), &options.which, leases);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(Over::Stopped),
                // Another process, whose driver is there, should lead.
                () = self.gone(&driver) => {
                    candidate.release().await;
                    return Ok(Over::DriverGone);
                }
                () = candidate.win() => {}
            }
            let (lost, over) = (CancellationToken::new(), CancellationToken::new());
            let working = async {
                let ended = lost.run_until_cancelled(async {
                    tokio::select! {
                        () = work() => Over::Stopped,
                        () = self.gone(&driver) => Over::DriverGone,
                    }
                });
                let ended = ended.await;
                over.cancel();
                ended
            };
            let holding = async {
                candidate.keep(&over).await;
                lost.cancel();
            };
            let (ended, ()) = tokio::join!(working, holding);
            if stop.is_cancelled() || ended == Some(Over::DriverGone) {
                // Nothing works any more: the next leader need not wait.
                if leases.release || ended == Some(Over::DriverGone) {
                    candidate.release().await;
                }
                return Ok(ended.unwrap_or(Over::Stopped));
            }
            // Whoever took it is let be; nothing here asks in a circle.
            if stop.run_until_cancelled(tokio::time::sleep(leases.period)).await.is_none() {
                return Ok(Over::Stopped);
            }
        }
    }

    /// Waits until the driver is gone, and remembers that.
    async fn gone(&self, driver: &Driver) {
        driver.gone().await;
        self.away().insert(driver.name().to_owned());
    }

    fn away(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `/readyz` says of the drivers behind sockets.
    ///
    /// # Errors
    /// Which drivers are gone.
    pub fn ready(&self) -> std::result::Result<(), String> {
        let away = self.away();
        match away.is_empty() {
            true => Ok(()),
            false => {
                let names: Vec<_> = away.iter().map(String::as_str).collect();
                Err(format!("waiting for {}: the driver does not answer", names.join(", ")))
            }
        }
    }

    async fn capacity(&self, of: &Capacity) -> Result<provision::capacity::Settings> {
        let Capacity { namespace, pod, level, poll, immediate } = of.clone();
        let owner = match pod {
            Some(pod) => Some(self.owner(&Key::new(&namespace, pod), level).await?),
            None => None,
        };
        Ok(provision::capacity::Settings { namespace, owner, poll, immediate })
    }

    /// What a pod belongs to, so many levels up.
    async fn owner(&self, pod: &Key, level: u8) -> Result<Owner> {
        let kube = &self.0.kube;
        let none = |what: &str, key: &Key| {
            Fault::not_found(format!(
                "find the owner of capacity objects: {what} {key} is not there or has none"
            ))
            .hint("correct POD_NAME and NAMESPACE, or lower --capacity-ownerref-level")
        };
        let found: Option<Pod> = kube.get(pod, Priority::Fresh).await?;
        let found = found.ok_or_else(|| none("pod", pod))?;
        if level == 0 {
            let Reference { api_version, kind, name, uid, .. } = found.reference();
            return Ok(Owner { api_version, kind, name, uid, controller: Some(true) });
        }
        let manages =
            |owners: &[Owner]| owners.iter().find(|o| o.controller == Some(true)).cloned();
        let owner = manages(&found.metadata.owner_references).ok_or_else(|| none("pod", pod))?;
        if level == 1 {
            return Ok(owner);
        }
        let key = Key::new(&pod.namespace, &owner.name);
        let set: Option<ReplicaSet> = kube.get(&key, Priority::Fresh).await?;
        let set = set.ok_or_else(|| none("ReplicaSet", &key))?;
        manages(&set.metadata.owner_references).ok_or_else(|| none("ReplicaSet", &key))
    }

    /// Whether those that lead hold their Leases.
    pub fn health(&self) -> lease::Health {
        self.0.health.clone()
    }

    /// Ends what the loops have shared; after they have ended.
    pub async fn end(&self) {
        self.0.end.cancel();
        self.0.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.0.tasks.wait()).await;
    }

    fn watch(&self, kinds: &BTreeSet<Watched>) {
        let Inner { cache, ours, kube, tasks, end, started, .. } = &*self.0;
        let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
        let new = kinds.difference(&started).copied().collect();
        cache.start(&new, ours, kube, tasks, end);
        started.extend(new);
    }

    /// What of the resizer there is to do.
    async fn can(&self, driver: &Driver, options: &Options) -> Result<Can> {
        if !options.which.contains(&Which::Resizer) {
            return Ok(Can::default());
        }
        let mut modifies = modify::works_for(driver, &options.modify);
        if modifies {
            match self.0.kube.list::<AttributesClass>("", "", drop).await {
                Err(error) if error.is_not_found() => {
                    tracing::info!("this cluster has no VolumeAttributesClass");
                    modifies = false;
                }
                // Once, instead of at each attempt to watch them.
                Err(error) if error.is_forbidden() => {
                    tracing::warn!("no VolumeAttributesClass is put in force: failed to {error}");
                    modifies = false;
                }
                // An API server that is away is waited for later.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Can { grows: resize::grows(driver).await?, modifies })
    }

    async fn work(
        &self,
        driver: Driver,
        can: Can,
        options: Options,
        local: Option<Local>,
        stop: CancellationToken,
    ) {
        let Inner { kube, cache, events, host, provisioned, queues, .. } = &*self.0;
        let queues = queues.of(driver.name());
        let runs = |which| options.which.contains(&which);
        let provisions = runs(Which::Provisioner).then(|| {
            let component = format!("{}_{host}_{}", driver.name(), uuid::Uuid::new_v4());
            Provisioner::new(provision::Parts {
                kube: kube.clone(),
                cache: cache.clone(),
                recorder: events.recorder(&component),
                driver: driver.clone(),
                settings: options.provision.clone(),
                local: local.clone(),
                metrics: provisioned.clone(),
                queues: queues.clone(),
            })
        });
        let attaches = runs(Which::Attacher).then(|| {
            Attacher::new(attach::Parts {
                kube: kube.clone(),
                cache: cache.clone(),
                driver: driver.clone(),
                settings: options.attach.clone(),
                local: local.as_ref().map(|l| l.name.clone()),
                queues: queues.clone(),
            })
        });
        let resizer = events.recorder(&format!("external-resizer {}", driver.name()));
        let resizes = can.grows.map(|grows| {
            Resizer::new(resize::Parts {
                kube: kube.clone(),
                cache: cache.clone(),
                driver: driver.clone(),
                grows,
                recorder: resizer.clone(),
                settings: options.resize.clone(),
                local: local.clone(),
                queues: queues.clone(),
            })
        });
        let modifies = can.modifies.then(|| {
            Modifier::new(modify::Parts {
                kube: kube.clone(),
                cache: cache.clone(),
                driver: driver.clone(),
                recorder: resizer.clone(),
                settings: options.modify.clone(),
                local: local.clone(),
                queues: queues.clone(),
            })
        });
        let mut loops: Vec<BoxFuture<'_, ()>> = Vec::new();
        loops.extend(provisions.iter().map(|one| one.run(&stop).boxed()));
        loops.extend(attaches.iter().map(|one| one.run(&stop).boxed()));
        loops.extend(resizes.iter().map(|one| one.run(&stop).boxed()));
        loops.extend(modifies.iter().map(|one| one.run(&stop).boxed()));
        futures::future::join_all(loops).await;
    }

    fn candidate(&self, driver: &str, which: &BTreeSet<Which>, leases: &Leases) -> Candidate {
        let Inner { kube, host, leads, health, tasks, end, .. } = &*self.0;
        // Ours first: who holds it does the work; the others keep the Go sidecars from doing it. Who
        // does only another part leaves this one to others.
        let mut names: Vec<_> = which.iter().map(|w| w.lease(driver)).collect();
        if which.contains(&Which::Provisioner) {
            names.insert(0, lease::clean(&format!("larder-{driver}")));
        }
        let ours = names.first().cloned().unwrap_or_default();
        let election = Election {
            duration: leases.duration,
            deadline: leases.deadline,
            period: leases.period,
            labels: leases.labels.clone(),
            ..Election::new(names, &leases.namespace, host)
        };
        let candidate = Candidate::new(kube.clone(), election).telling(health);
        let gauge = leads.get_or_create(&LeaseLabels { name: ours }).clone();
        let (mut standing, end) = (candidate.watch(), end.clone());
        tasks.spawn(async move {
            loop {
                gauge.set(i64::from(*standing.borrow_and_update() == Standing::Leads));
                let changed = end.run_until_cancelled(standing.changed()).await;
                if !matches!(changed, Some(Ok(()))) {
                    break;
                }
            }
        });
        candidate
    }
}

/// Where the driver of this node says it is.
async fn local(driver: &Driver, node: &str) -> Result<Local> {
    let info = driver.node_get_info(csi::NodeGetInfoRequest {}).await;
    let info =
        info.map_err(|s| larder_csi::client::fault(&s).during("ask the driver for its node"))?;
    let place = info.accessible_topology.map(|t| t.segments).unwrap_or_default();
    if place.is_empty() {
        return Err(Fault::precondition(format!(
            "work for driver {} on node {node} alone: it tells no topology",
            driver.name()
        ))
        .hint("node-local mode is for storage that lives on one node; leave it out"));
    }
    Ok(Local::new(driver.name(), node, &place))
}
