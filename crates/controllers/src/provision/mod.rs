//! The provisioner: volumes for claims, and their end.
//!
//! ```text
//! claim ─▶ decide: for us, now? ─▶ request: name, capabilities, source, topology, secrets
//!   ─▶ CreateVolume ─▶ PersistentVolume ─▶ kube-controller-manager binds
//!          └ failed: again, or (the volume may yet come) again also when the claim is gone,
//!                    or the scheduler chooses another node
//! volume ─▶ Released, policy Delete, not attached ─▶ DeleteVolume ─▶ object gone ─▶ finalizer gone
//! ```
//! Nothing is remembered that a restart would need: the volume's name follows from the claim's UID, so
//! the same CreateVolume finds what an earlier one made.

pub mod capacity;
pub mod decide;
mod delete;
mod make;
mod offer;
pub mod outcome;
pub mod parameters;
pub mod persistent_volume;
mod protect;
pub mod request;
pub mod source;
pub mod topology;

use crate::{
    api::{Attachment, AttributesClass, Claim, CsiNode, Key, Node, Object, StorageClass, Volume},
    cache::{Cache, Change, Watched},
    client::{Kube, Patch, Priority},
    driver::{ControllerCan, Driver, PluginCan},
    events::Recorder,
    queue::{Backoff, Next, Queue, QueueMetrics},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How the provisioner works; the flags of external-provisioner.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--volume-name-prefix`
    pub name_prefix: String,
    /// `--volume-name-uuid-length`; None: the whole UID, with dashes.
    pub name_uid_length: Option<usize>,
    /// `--default-fstype`
    pub default_fs_type: String,
    /// `--extra-create-metadata`
    pub extra_metadata: bool,
    /// Gate Topology: places are told to drivers that have any.
    pub topology: bool,
    /// `--strict-topology`
    pub strict_topology: bool,
    /// `--immediate-topology`
    pub immediate_topology: bool,
    /// `--controller-publish-readonly`
    pub read_only: bool,
    /// `--prevent-volume-mode-conversion`
    pub keep_mode: bool,
    /// Gate CrossNamespaceVolumeDataSource.
    pub cross_namespace: bool,
    /// `--node-deployment-immediate-binding`: a node-local one takes claims that no node was chosen for.
    pub offers: bool,
    /// `--snapshot-orphan-sweep-interval`; zero: never.
    pub sweep: Duration,
    /// `--worker-threads`
    pub workers: usize,
    /// `--retry-interval-start`, `--retry-interval-max`
    pub backoff: Backoff,
    /// `--enable-capacity`
    pub capacity: Option<capacity::Settings>,
}

impl Default for Settings {
    /// Those of external-provisioner.
    fn default() -> Self {
        Self {
            name_prefix: "pvc".to_owned(),
            name_uid_length: None,
            default_fs_type: String::new(),
            extra_metadata: false,
            topology: true,
            strict_topology: false,
            immediate_topology: true,
            read_only: false,
            keep_mode: true,
            cross_namespace: false,
            offers: true,
            sweep: Duration::from_secs(300),
            workers: 100,
            backoff: Backoff::default(),
            capacity: None,
        }
    }
}

/// The kinds that the provisioner of a driver must see; a node-local one knows its place by itself.
pub fn watched(driver: &Driver, settings: &Settings, local: bool) -> BTreeSet<Watched> {
    let mut kinds: BTreeSet<_> = [Watched::Claims, Watched::Volumes, Watched::Classes].into();
    if driver.can().control(ControllerCan::PublishUnpublishVolume) {
        kinds.insert(Watched::Attachments);
    }
    if !local && settings.topology && driver.can().plugin(PluginCan::VolumeAccessibilityConstraints)
    {
        kinds.extend([Watched::Nodes, Watched::CsiNodes]);
    }
    kinds
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MadeLabels {
    class: String,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeletedLabels {
    class: String,
}

/// The measurements of all provisioners of a process, named as those of external-provisioner.
#[derive(Debug, Clone)]
pub struct Metrics {
    made: Family<MadeLabels, Counter>,
    failed: Family<MadeLabels, Counter>,
    seconds: Family<MadeLabels, Histogram, fn() -> Histogram>,
    deleted: Family<DeletedLabels, Counter>,
    kept: Family<DeletedLabels, Counter>,
    deletion_seconds: Family<DeletedLabels, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            made: Family::default(),
            failed: Family::default(),
            seconds: Family::new_with_constructor(new),
            deleted: Family::default(),
            kept: Family::default(),
            deletion_seconds: Family::new_with_constructor(new),
        };
        let claim = "controller_persistentvolumeclaim_provision";
        let volume = "controller_persistentvolume_delete";
        registry.register(claim, "Volumes that were made", metrics.made.clone());
        registry.register(format!("{claim}_failed"), "Volumes not made", metrics.failed.clone());
        registry.register(
            format!("{claim}_duration_seconds"),
            "Time of making a volume",
            metrics.seconds.clone(),
        );
        registry.register(volume, "Volumes that were deleted", metrics.deleted.clone());
        registry.register(format!("{volume}_failed"), "Volumes not deleted", metrics.kept.clone());
        registry.register(
            format!("{volume}_duration_seconds"),
            "Time of deleting a volume",
            metrics.deletion_seconds.clone(),
        );
        metrics
    }
}

/// What a provisioner works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The API server.
    pub kube: Kube,
    /// What is known of the cluster; it watches [`watched`].
    pub cache: Cache,
    /// The driver.
    pub driver: Driver,
    /// Tells as the provisioner of that driver.
    pub recorder: Recorder,
    /// How it works.
    pub settings: Settings,
    /// In node-local mode: the node.
    pub local: Option<Local>,
    /// Metrics.
    pub metrics: Metrics,
    /// Metrics of queues.
    pub queues: QueueMetrics,
}

impl Parts {
    /// Whether the driver has places at all.
    fn topology(&self) -> bool {
        self.settings.topology
            && self.driver.can().plugin(PluginCan::VolumeAccessibilityConstraints)
    }
}

/// The one node whose storage a node-local provisioner is for.
#[derive(Debug, Clone)]
pub struct Local {
    /// Its name.
    pub name: String,
    node: Arc<Node>,
    csi_node: Arc<CsiNode>,
}

impl Local {
    /// A node of that name, in the place that the driver tells of.
    pub fn new(
        driver: &str,
        name: &str,
        segments: &std::collections::BTreeMap<String, String>,
    ) -> Self {
        let mut node = Node::default();
        node.metadata.name = name.to_owned();
        node.metadata.labels = segments.clone();
        let mut csi_node = CsiNode::default();
        csi_node.metadata.name = name.to_owned();
        csi_node.spec.drivers = vec![crate::api::CsiNodeDriver {
            name: driver.to_owned(),
            node_id: name.to_owned(),
            topology_keys: segments.keys().cloned().collect(),
        }];
        Self { name: name.to_owned(), node: Arc::new(node), csi_node: Arc::new(csi_node) }
    }

    /// Whether a volume is on this node: a volume that can be used anywhere is not ours to delete.
    pub(crate) fn has(&self, volume: &Volume) -> bool {
        let labels = &self.node.metadata.labels;
        volume.spec.terms().iter().any(|term| {
            !term.match_expressions.is_empty()
                && term.match_expressions.iter().all(|e| {
                    e.operator == "In" && labels.get(&e.key).is_some_and(|v| e.values.contains(v))
                })
        })
    }
}

/// The provisioner of one driver. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Provisioner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    identity: String,
    claims: Queue<String>,
    volumes: Queue<Key>,
    sources: Queue<Key>,
    memory: Mutex<Memory>,
    /// Room may have been taken or given back.
    capacity_changed: Arc<tokio::sync::Notify>,
}

/// What is known until the process ends, and can be found out again.
#[derive(Debug, Default)]
struct Memory {
    /// Claims whose volume may come to be, by UID: asked for until there is a final answer.
    background: HashMap<String, Arc<Claim>>,
    /// The place that was asked for the first time, by UID.
    places: HashMap<String, Option<topology::Memory>>,
    /// Claims that fail until somebody changes something: until when, and the class by UID.
    slow: HashMap<String, (Instant, String)>,
    /// The nodes that take claims, and when it is our turn at a claim that any may have, by UID.
    peers: offer::Peers,
    turns: HashMap<String, Instant>,
    /// Volumes of which the cache may tell what was: read anew before anything is deleted.
    unsure: BTreeSet<Key>,
}

impl Provisioner {
    /// A provisioner that hears of changes from now on.
    pub fn new(parts: Parts) -> Self {
        let backoff = parts.settings.backoff;
        let millis = jiff::Timestamp::now().as_millisecond();
        let random = uuid::Uuid::new_v4().as_u128() % 10_000;
        let mut identity = format!("{millis}-{random}-{}", parts.driver.name());
        if let Some(local) = &parts.local {
            identity = format!("{identity}-{}", local.name);
        }
        let queue = |name| Queue::new(name, backoff, &parts.queues);
        let (claims, volumes) = (queue("claims"), Queue::new("volumes", backoff, &parts.queues));
        let sources = Queue::new("sources", backoff, &parts.queues);
        let memory = Mutex::default();
        let capacity_changed = Arc::default();
        let inner = Inner { identity, claims, volumes, sources, memory, capacity_changed, parts };
        let this = Self(Arc::new(inner));
        this.listen();
        this
    }

    /// Works until `stop`, and then until what it is working on is done.
    pub async fn run(&self, stop: &CancellationToken) {
        let Inner { parts, claims, volumes, sources, .. } = &*self.0;
        let kinds = watched(&parts.driver, &parts.settings, parts.local.is_some());
        if stop.run_until_cancelled(parts.cache.ready(&kinds)).await.is_none() {
            return;
        }
        // What has not changed since the start is looked at, too.
        for claim in parts.cache.claims.all() {
            self.look_at(&claim);
        }
        for volume in parts.cache.volumes.all() {
            // The watch of a process that did not lead may have been dead for minutes.
            if decide::volume(parts.driver.name(), &volume) == decide::VolumeStep::Delete {
                self.memory().unsure.insert(volume.key());
            }
            volumes.add(volume.key(), Priority::Background);
        }
        let workers = parts.settings.workers;
        let this = self.clone();
        let makes = claims.run(workers, stop.clone(), move |uid| {
            let this = this.clone();
            async move { this.claim(uid).await }
        });
        let this = self.clone();
        let deletes = volumes.run(workers, stop.clone(), move |key| {
            let this = this.clone();
            async move { this.volume(key).await }
        });
        let this = self.clone();
        let frees = sources.run(1, stop.clone(), move |key| {
            let this = this.clone();
            async move { this.free(key).await }
        });
        let tells = async {
            if let Some(settings) = &parts.settings.capacity {
                Box::pin(self.tell_capacity(settings, stop)).await;
            }
        };
        let sweeps = async {
            let snapshots = parts.driver.can().control(ControllerCan::CreateDeleteSnapshot);
            if snapshots && !parts.settings.sweep.is_zero() {
                self.sweep(parts.settings.sweep, stop).await;
            }
        };
        tokio::join!(makes, deletes, frees, tells, sweeps);
    }

    /// Notes what to look at when something changes.
    fn listen(&self) {
        let cache = &self.0.parts.cache;
        let changed = |this: &Arc<Inner>, change: &Change<Claim>| {
            Self(this.clone()).claim_changed(change);
        };
        cache.claims.subscribe(&self.0, changed);
        cache.volumes.subscribe(&self.0, |this, change: &Change<Volume>| {
            if let Some(new) = &change.new {
                this.volumes.add(new.key(), Priority::Fresh);
                // What is made from it may have waited for its binding.
                if let Some(claim) = &new.spec.claim_ref {
                    let key = Key::new(&claim.namespace, &claim.name).to_string();
                    for copy in this.parts.cache.claims.by("source", &key) {
                        if decide::is_ours(this.parts.driver.name(), &copy) {
                            this.claims.now(copy.metadata.uid.clone(), Priority::Fresh);
                        }
                    }
                }
            }
        });
        cache.attachments.subscribe(&self.0, |this, change: &Change<Attachment>| {
            // Detached: the volume can be deleted at once.
            if let (Some(old), None) = (&change.old, &change.new)
                && let Some(volume) = &old.spec.source.persistent_volume_name
            {
                this.volumes.now(Key::cluster(volume), Priority::Fresh);
            }
        });
        cache.classes.subscribe(&self.0, |this, change: &Change<StorageClass>| {
            this.capacity_changed.notify_one();
            if let Some(new) = &change.new {
                for claim in this.parts.cache.claims.all() {
                    if claim.spec.storage_class_name.as_ref() == Some(&new.metadata.name) {
                        this.claims.now(claim.metadata.uid.clone(), Priority::Fresh);
                    }
                }
            }
        });
        cache.attributes_classes.subscribe(&self.0, |this, change: &Change<AttributesClass>| {
            let Some(new) = &change.new else { return };
            for claim in this.parts.cache.claims.all() {
                let names = claim.spec.volume_attributes_class_name.as_ref();
                if names == Some(&new.metadata.name) && claim.spec.volume_name.is_empty() {
                    let this = Self(this.clone());
                    this.memory().slow.remove(&claim.metadata.uid);
                    if decide::is_ours(this.0.parts.driver.name(), &claim) {
                        this.0.claims.now(claim.metadata.uid.clone(), Priority::Fresh);
                    }
                }
            }
        });
        cache.csi_nodes.subscribe(&self.0, |this, _| this.capacity_changed.notify_one());
    }

    fn claim_changed(&self, change: &Change<Claim>) {
        let Inner { claims, parts, .. } = &*self.0;
        let Some(claim) = change.object() else { return };
        // A choice that has changed may be just what was missing.
        let chosen = |c: &Option<Arc<Claim>>| {
            c.as_ref().and_then(|c| decide::selected_node(c)).map(str::to_owned)
        };
        if change.new.is_some() && chosen(&change.old) != chosen(&change.new) {
            claims.now(claim.metadata.uid.clone(), Priority::Fresh);
        }
        if change.new.is_some() {
            self.look_at(claim);
        }
        // Those that are made from it.
        for other in parts.cache.claims.by("source", &claim.key().to_string()) {
            if decide::is_ours(parts.driver.name(), &other) {
                claims.now(other.metadata.uid.clone(), Priority::Fresh);
            }
        }
        // What it is made from may be let go.
        if let Some(source) = claim.copies() {
            self.0.sources.now(source, Priority::Retry);
        }
    }

    fn look_at(&self, claim: &Claim) {
        let Inner { parts, claims, sources, .. } = &*self.0;
        if decide::is_ours(parts.driver.name(), claim) {
            if claim.spec.volume_name.is_empty() {
                claims.add(claim.metadata.uid.clone(), Priority::Fresh);
            }
            if let (Some(_), Some(node)) = (&parts.local, decide::selected_node(claim)) {
                self.memory().peers.note(node);
            }
        }
        if claim.metadata.is_deleting() && claim.metadata.has_finalizer(source::CLONE_FINALIZER) {
            sources.add(claim.key(), Priority::Retry);
        }
    }

    /// One look at a claim.
    async fn claim(&self, uid: String) -> Next {
        let Inner { parts, .. } = &*self.0;
        let known = parts.cache.claims.by("uid", &uid).first().cloned();
        let Some(claim) = known.or_else(|| self.memory().background.get(&uid).cloned()) else {
            self.memory().forget(&uid);
            return Next::Done;
        };
        let name = claim.spec.storage_class_name.clone().unwrap_or_default();
        let class = parts.cache.classes.get(&Key::cluster(&name));
        if let Some(wait) = self.memory().slow_for(&uid, class.as_deref()) {
            return Next::After(wait);
        }
        let done = parts.cache.volumes.get(&Key::cluster(format!("pvc-{uid}"))).is_some();
        let local = parts.local.as_ref().map(|l| l.name.as_str());
        let driver = parts.driver.name();
        let observed =
            decide::Observed { driver, claim: &claim, class: class.as_deref(), done, local };
        let step = decide::claim(observed);
        match (step, class) {
            (decide::ClaimStep::Nothing, _) => {
                self.memory().forget(&uid);
                Next::Done
            }
            (decide::ClaimStep::Wait(why), _) => {
                parts.recorder.warning(&claim.reference(), "ProvisioningFailed", why);
                Next::Retry
            }
            (decide::ClaimStep::Offer, Some(_)) if !parts.settings.offers => Next::Done,
            (decide::ClaimStep::Offer, Some(class)) => self.offer(&claim, &class).await,
            (decide::ClaimStep::Provision(selected), Some(class)) => {
                self.provision(&claim, &class, selected.as_deref()).await
            }
            (_, None) => Next::Retry,
        }
    }

    /// Writes an annotation of a claim; null removes it.
    async fn annotate(
        &self,
        claim: &Claim,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), crate::client::ApiError> {
        let Parts { kube, cache, .. } = &self.0.parts;
        let patch = Patch::Merge(json!({"metadata": {
            "resourceVersion": claim.metadata.resource_version,
            "annotations": {key: value},
        }}));
        let new = kube.patch::<Claim>(&claim.key(), "", &patch, Priority::Fresh).await?;
        cache.claims.apply(new);
        Ok(())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn forget(&mut self, uid: &str) {
        self.background.remove(uid);
        self.places.remove(uid);
        self.slow.remove(uid);
        self.turns.remove(uid);
    }

    /// How long a claim that cannot be provided for is still left alone: until the time is over, or
    /// its class is another one of that name.
    fn slow_for(&mut self, uid: &str, class: Option<&StorageClass>) -> Option<Duration> {
        let (until, of) = self.slow.get(uid)?;
        let left = until.saturating_duration_since(Instant::now());
        let same = class.is_none_or(|c| c.metadata.uid == *of);
        if left.is_zero() || !same {
            self.slow.remove(uid);
            return None;
        }
        Some(left)
    }
}

impl topology::Nodes for Inner {
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        match &self.parts.local {
            Some(local) => (local.name == name).then(|| local.node.clone()),
            None => self.parts.cache.nodes.get(&Key::cluster(name)),
        }
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CsiNode>> {
        match &self.parts.local {
            Some(local) => (local.name == name).then(|| local.csi_node.clone()),
            None => self.parts.cache.csi_nodes.get(&Key::cluster(name)),
        }
    }
    fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.parts.local {
            Some(local) => vec![local.node.clone()],
            None => self.parts.cache.nodes.all(),
        }
    }
    fn csi_nodes(&self) -> Vec<Arc<CsiNode>> {
        match &self.parts.local {
            Some(local) => vec![local.csi_node.clone()],
            None => self.parts.cache.csi_nodes.all(),
        }
    }
}
