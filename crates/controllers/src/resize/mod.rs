//! The resizer: claims that ask for more than they have.
//!
//! ```text
//! claim ─▶ of ours, bound? ─▶ to which size ─▶ promised in its status ─▶ ControllerExpandVolume
//!   ─▶ PersistentVolume has the size ─┬─▶ the node's turn: FileSystemResizePending, kubelet goes on
//!                                     └─▶ done: the claim has the size
//!          └ failed: the same size again (the work may go on), or the size that is asked for by then,
//!                    or once in a long while (the driver cannot do it)
//! ```
//! What is promised is written before it is asked for, so that quotas count it, and a smaller request
//! can take its place only once it is sure that it has failed.

pub mod decide;
mod status;
mod work;

use crate::{
    api::{Attachment, Claim, Key, Object},
    cache::{Cache, Change, Watched},
    claims::{self, Slow},
    client::{Kube, Priority},
    driver::{ControllerCan, Driver},
    events::Recorder,
    provision::Local,
    queue::{Backoff, Next, Queue, QueueMetrics},
};
use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// How the resizer works; the flags of external-resizer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--workers`
    pub workers: usize,
    /// `--retry-interval-start`, `--retry-interval-max`; what is infeasible waits for the latter.
    pub backoff: Backoff,
    /// `--handle-volume-inuse-error`: a volume that grows only while nobody uses it is left alone as
    /// long as somebody does.
    pub in_use: bool,
}

impl Default for Settings {
    /// Those of external-resizer, with more workers.
    fn default() -> Self {
        Self { workers: 100, backoff: Backoff::default(), in_use: true }
    }
}

/// Who grows the volumes of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grows {
    /// Its controller, and the node where it is said to.
    Controller,
    /// Only its nodes.
    Node,
}

/// Who grows the volumes of a driver; None: nobody.
///
/// # Errors
/// Where the driver could not tell just now: what is believed of it holds for long.
pub async fn grows(driver: &Driver) -> larder_model::Result<Option<Grows>> {
    if driver.can().control(ControllerCan::ExpandVolume) {
        return Ok(Some(Grows::Controller));
    }
    match driver.node_can_expand().await {
        Ok(true) => Ok(Some(Grows::Node)),
        Ok(false) => Ok(None),
        // The node's part of the driver is elsewhere.
        Err(status) if status.code() == Code::Unimplemented => {
            tracing::debug!(driver = driver.name(), "the node cannot tell: {}", status.message());
            Ok(None)
        }
        Err(status) => Err(larder_csi::client::fault(&status)
            .during("ask the driver whether its nodes grow volumes")),
    }
}

/// The kinds that the resizer of a driver must see.
pub fn watched(driver: &Driver) -> BTreeSet<Watched> {
    let mut kinds: BTreeSet<_> = [Watched::Claims, Watched::Volumes].into();
    if driver.can().control(ControllerCan::PublishUnpublishVolume) {
        kinds.insert(Watched::Attachments);
    }
    kinds
}

/// What a resizer works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The API server.
    pub kube: Kube,
    /// What is known of the cluster; it watches [`watched`].
    pub cache: Cache,
    /// The driver.
    pub driver: Driver,
    /// Who grows its volumes.
    pub grows: Grows,
    /// Tells as the resizer of that driver.
    pub recorder: Recorder,
    /// How it works.
    pub settings: Settings,
    /// In node-local mode: the node.
    pub local: Option<Local>,
    /// Metrics of queues.
    pub queues: QueueMetrics,
}

/// The resizer of one driver. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Resizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    claims: Queue<Key>,
    memory: Mutex<Memory>,
}

/// What is known until the process ends, by UID of the claim.
#[derive(Debug, Default)]
struct Memory {
    /// Growing has failed, for good: another size may be asked for.
    failed: HashSet<String>,
    /// The driver grows it only while nobody uses it.
    offline: HashSet<String>,
    slow: Slow,
}

impl Memory {
    fn forget(&mut self, uid: &str) {
        self.failed.remove(uid);
        self.offline.remove(uid);
        self.slow.forget(uid);
    }
}

impl Resizer {
    /// A resizer that hears of changes from now on.
    pub fn new(parts: Parts) -> Self {
        let name = format!("{}-pvc", parts.driver.name());
        let claims = Queue::new(&name, parts.settings.backoff, &parts.queues);
        let this = Self(Arc::new(Inner { claims, memory: Mutex::default(), parts }));
        this.listen();
        this
    }

    /// Works until `stop`, and then until what it is working on is done.
    pub async fn run(&self, stop: &CancellationToken) {
        let Inner { parts, claims, .. } = &*self.0;
        let kinds = watched(&parts.driver);
        if stop.run_until_cancelled(parts.cache.ready(&kinds)).await.is_none() {
            return;
        }
        for claim in parts.cache.claims.all() {
            self.0.look_at(&claim, Priority::Background);
        }
        let this = self.clone();
        let work = claims.run(parts.settings.workers, stop.clone(), move |key| {
            let this = this.clone();
            async move { this.claim(key).await }
        });
        work.await;
    }

    /// Notes what to look at when something changes.
    fn listen(&self) {
        claims::listen(&self.0, |this| &this.parts.cache, Inner::claim_changed, Inner::look_at);
        let cache = &self.0.parts.cache;
        cache.attachments.subscribe(&self.0, |this, change: &Change<Attachment>| {
            let (Some(old), None) = (&change.old, &change.new) else { return };
            // Nobody uses it any more, which may be what it waits for.
            let name = old.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
            for claim in this.parts.cache.claims.by("volume", name) {
                if this.memory().offline.contains(&claim.metadata.uid) {
                    this.claims.now(claim.key(), Priority::Fresh);
                }
            }
        });
    }

    /// One look at a claim.
    async fn claim(&self, key: Key) -> Next {
        let Inner { parts, .. } = &*self.0;
        let Some(claim) = parts.cache.claims.get(&key) else { return Next::Done };
        if claim.spec.volume_name.is_empty() {
            return Next::Done;
        }
        let (driver, local) = (parts.driver.name(), parts.local.as_ref());
        let volume = claims::volume_of_ours(&parts.cache, driver, local, &claim);
        let Some(volume) = volume else { return Next::Done };
        if let Err(error) = self.tidy(&claim, &volume).await {
            tracing::warn!("failed to {error}");
            return Next::Retry;
        }
        let uid = &claim.metadata.uid;
        let observed = decide::Observed {
            claim: &claim,
            volume: &volume,
            controller: parts.grows == Grows::Controller,
            failed: self.0.memory().failed.contains(uid),
        };
        let decide::Step::Grow(size) = decide::claim(observed) else {
            if claim.spec.requested()
                <= claim.status.capacity.storage.as_ref().map_or(0, |q| q.bytes())
            {
                self.0.memory().forget(uid);
            }
            return Next::Done;
        };
        let same = claim.status.allocated_resources.storage.as_ref() == Some(&size);
        if same && decide::state(&claim) == decide::CONTROLLER_RESIZE_INFEASIBLE {
            let left = self.0.memory().slow.left(uid, parts.settings.backoff.most);
            if let Some(left) = left {
                return Next::After(left);
            }
        } else if !same {
            self.0.memory().slow.forget(uid);
        }
        self.grow(&claim, &volume, &size).await
    }
}

impl Inner {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim_changed(&self, change: &Change<Claim>) {
        let Some(new) = &change.new else {
            if let Some(old) = &change.old {
                self.claims.forget(&old.key());
                self.memory().forget(&old.metadata.uid);
            }
            return;
        };
        let asked = |claim: &Claim| claim.spec.resources.requests.storage.clone();
        match &change.old {
            // Somebody has thought again: no delay stands in the way of that.
            Some(old) if asked(old) != asked(new) => {
                self.claims.forget(&new.key());
                self.claims.now(new.key(), Priority::Fresh);
            }
            _ => self.look_at(new, Priority::Fresh),
        }
    }

    /// Has a claim looked at, if there may be something to do: most claims never grow.
    fn look_at(&self, claim: &Claim, priority: Priority) {
        let status = &claim.status;
        let has = status.capacity.storage.as_ref().map_or(0, |size| size.bytes());
        let under_way = !decide::state(claim).is_empty()
            || !status.conditions.is_empty()
            || status.allocated_resources.storage.is_some();
        if status.phase == "Bound" && (claim.spec.requested() > has || under_way) {
            self.claims.add(claim.key(), priority);
        }
    }
}
