//! The modifier: claims whose VolumeAttributesClass is another one by now.
//!
//! ```text
//! claim ─▶ of ours, bound? ─▶ which class ─▶ modifyVolumeStatus: InProgress ─▶ ControllerModifyVolume
//!   ─▶ PersistentVolume has the class ─▶ claim has it
//!          └ failed: the same class again (the work may go on), or the class that is asked for by
//!                    then, or once in a long while (the driver cannot do it)
//! ```

pub mod decide;
mod status;
mod work;

use crate::{
    api::{AttributesClass, Claim, Key, Object},
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

/// How the modifier works; the flags of external-resizer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Gate VolumeAttributesClass.
    pub on: bool,
    /// `--extra-modify-metadata`
    pub extra_metadata: bool,
    /// `--workers`
    pub workers: usize,
    /// `--retry-interval-start`, `--retry-interval-max`; what is infeasible waits for the latter.
    pub backoff: Backoff,
}

impl Default for Settings {
    /// Those of external-resizer, with more workers.
    fn default() -> Self {
        Self { on: true, extra_metadata: false, workers: 100, backoff: Backoff::default() }
    }
}

/// Whether there is anything to do for a driver.
pub fn works_for(driver: &Driver, settings: &Settings) -> bool {
    settings.on && driver.can().control(ControllerCan::ModifyVolume)
}

/// The kinds that the modifier must see.
pub fn watched() -> BTreeSet<Watched> {
    [Watched::Claims, Watched::Volumes, Watched::AttributesClasses].into()
}

/// What a modifier works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The API server.
    pub kube: Kube,
    /// What is known of the cluster; it watches [`watched`].
    pub cache: Cache,
    /// The driver.
    pub driver: Driver,
    /// Tells as the resizer of that driver.
    pub recorder: Recorder,
    /// How it works.
    pub settings: Settings,
    /// In node-local mode: the node.
    pub local: Option<Local>,
    /// Metrics of queues.
    pub queues: QueueMetrics,
}

/// The modifier of one driver. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Modifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    claims: Queue<Key>,
    memory: Mutex<Memory>,
}

/// What is known until the process ends, by UID of the claim.
#[derive(Debug, Default)]
struct Memory {
    /// What is in progress has failed, for good: nothing goes on in the driver. All else that is in
    /// progress may go on, also when a former process began it.
    settled: HashSet<String>,
    slow: Slow,
}

impl Memory {
    fn forget(&mut self, uid: &str) {
        self.settled.remove(uid);
        self.slow.forget(uid);
    }
}

impl Modifier {
    /// A modifier that hears of changes from now on.
    pub fn new(parts: Parts) -> Self {
        let name = format!("{}-pvc-modify", parts.driver.name());
        let claims = Queue::new(&name, parts.settings.backoff, &parts.queues);
        let this = Self(Arc::new(Inner { claims, memory: Mutex::default(), parts }));
        this.listen();
        this
    }

    /// Works until `stop`, and then until what it is working on is done.
    pub async fn run(&self, stop: &CancellationToken) {
        let Inner { parts, claims, .. } = &*self.0;
        if stop.run_until_cancelled(parts.cache.ready(&watched())).await.is_none() {
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
        cache.attributes_classes.subscribe(&self.0, |this, change: &Change<AttributesClass>| {
            // A class that was waited for, or one of that name with other parameters.
            let Some(new) = &change.new else { return };
            for claim in this.parts.cache.claims.all() {
                if claim.spec.volume_attributes_class_name.as_ref() == Some(&new.metadata.name) {
                    // A restart, which lists all classes, makes nothing feasible.
                    if this.parts.cache.attributes_classes.is_ready() {
                        this.memory().slow.end(&claim.metadata.uid);
                    }
                    // What it failed of may be over: no delay stands in the way of that.
                    let looked = claim.status.phase == "Bound";
                    if looked && decide::claim(&claim, false) != decide::Step::Nothing {
                        this.claims.now(claim.key(), Priority::Fresh);
                    }
                }
            }
        });
    }

    /// One look at a claim.
    async fn claim(&self, key: Key) -> Next {
        let Inner { parts, .. } = &*self.0;
        let Some(claim) = parts.cache.claims.get(&key) else { return Next::Done };
        if claim.spec.volume_name.is_empty() || claim.status.phase != "Bound" {
            return Next::Done;
        }
        let (driver, local) = (parts.driver.name(), parts.local.as_ref());
        let volume = claims::volume_of_ours(&parts.cache, driver, local, &claim);
        let Some(volume) = volume else { return Next::Done };
        let uid = &claim.metadata.uid;
        if decide::is_infeasible(&claim) {
            let left = self.0.memory().slow.left(uid, parts.settings.backoff.most);
            if let Some(left) = left {
                return Next::After(left);
            }
        } else {
            self.0.memory().slow.forget(uid);
        }
        let settled = self.0.memory().settled.contains(uid);
        match decide::claim(&claim, settled) {
            decide::Step::Nothing => {
                self.0.memory().forget(uid);
                Next::Done
            }
            decide::Step::Cancel => self.cancel(&claim).await,
            decide::Step::Apply(class) => self.apply(&claim, &volume, &class).await,
        }
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
        let asked = |claim: &Claim| claim.spec.volume_attributes_class_name.clone();
        match &change.old {
            // Somebody has thought again: no delay stands in the way of that.
            Some(old) if asked(old) != asked(new) => {
                self.claims.forget(&new.key());
                self.claims.now(new.key(), Priority::Fresh);
            }
            _ => self.look_at(new, Priority::Fresh),
        }
    }

    /// Has a claim looked at, if there may be something to do: most claims have no class.
    fn look_at(&self, claim: &Claim, priority: Priority) {
        if claim.status.phase == "Bound" && decide::claim(claim, false) != decide::Step::Nothing {
            self.claims.add(claim.key(), priority);
        }
    }
}
