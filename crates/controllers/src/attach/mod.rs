//! The attacher: volumes on nodes, for drivers whose volumes must be attached.
//!
//! ```text
//! VolumeAttachment ─▶ ours? attached? ─▶ keep PersistentVolume ─▶ request: volume, node, secret
//!   ─▶ finalizer, node id ─▶ ControllerPublishVolume ─▶ status.attached
//!          └ failed: status.attachError, again later; sooner when the volume or the node appears
//! it is deleted ─▶ ControllerUnpublishVolume ─▶ finalizer gone
//! PersistentVolume is deleted, and nothing attaches it ─▶ its finalizer gone
//! ```
//! kube-controller-manager makes and deletes VolumeAttachments, and waits for what is written here. A
//! driver that attaches nothing is attached everywhere ("trivial"): kubelet waits for the word.

pub mod decide;
mod reconcile;
pub mod request;
mod work;

use crate::{
    api::{Attachment, CsiNode, Key, Object, Volume},
    cache::{Cache, Change, Watched},
    client::{Kube, Priority},
    driver::{ControllerCan, Driver},
    queue::{Backoff, Next, Queue, QueueMetrics},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How the attacher works; the flags of external-attacher.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--default-fstype`: of volumes that name none.
    pub default_fs_type: String,
    /// `--worker-threads`
    pub workers: usize,
    /// `--retry-interval-start`, `--retry-interval-max`
    pub backoff: Backoff,
    /// `--reconcile-sync`: how often the driver is asked what is attached.
    pub reconcile: Duration,
    /// `--max-entries`: volumes on a page of the driver's list; 0: its own choice.
    pub page: i32,
}

impl Default for Settings {
    /// Those of external-attacher, with more workers.
    fn default() -> Self {
        Self {
            default_fs_type: String::new(),
            workers: 100,
            backoff: Backoff::default(),
            reconcile: Duration::from_secs(60),
            page: 0,
        }
    }
}

/// The kinds that the attacher of a driver must see.
pub fn watched(driver: &Driver) -> BTreeSet<Watched> {
    match is_trivial(driver) {
        true => [Watched::Attachments].into(),
        false => [Watched::Attachments, Watched::Volumes, Watched::CsiNodes].into(),
    }
}

/// Whether there is nothing to do for the driver but to say so.
fn is_trivial(driver: &Driver) -> bool {
    !driver.can().control(ControllerCan::PublishUnpublishVolume)
}

/// What an attacher works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The API server.
    pub kube: Kube,
    /// What is known of the cluster; it watches [`watched`].
    pub cache: Cache,
    /// The driver.
    pub driver: Driver,
    /// How it works.
    pub settings: Settings,
    /// In node-local mode: the node.
    pub local: Option<String>,
    /// Metrics of queues.
    pub queues: QueueMetrics,
}

/// The attacher of one driver. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Attacher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    finalizer: String,
    trivial: bool,
    attachments: Queue<Key>,
    volumes: Queue<Key>,
    /// Attachments of which the driver says something else than their status.
    forced: Mutex<BTreeSet<String>>,
}

impl Attacher {
    /// An attacher that hears of changes from now on.
    pub fn new(parts: Parts) -> Self {
        let queue = |name| Queue::new(name, parts.settings.backoff, &parts.queues);
        let inner = Inner {
            finalizer: decide::finalizer(parts.driver.name()),
            trivial: is_trivial(&parts.driver),
            attachments: queue("csi-attacher-va"),
            volumes: queue("csi-attacher-pv"),
            forced: Mutex::default(),
            parts,
        };
        let this = Self(Arc::new(inner));
        this.listen();
        this
    }

    /// Works until `stop`, and then until what it is working on is done.
    pub async fn run(&self, stop: &CancellationToken) {
        let Inner { parts, attachments, volumes, trivial, .. } = &*self.0;
        let kinds = watched(&parts.driver);
        if stop.run_until_cancelled(parts.cache.ready(&kinds)).await.is_none() {
            return;
        }
        // What has not changed since the start is looked at, too.
        for attachment in parts.cache.attachments.all() {
            attachments.add(attachment.key(), Priority::Background);
        }
        for volume in parts.cache.volumes.all() {
            self.0.look_at(&volume);
        }
        let workers = parts.settings.workers;
        let this = self.clone();
        let attaches = attachments.run(workers, stop.clone(), move |key| {
            let this = this.clone();
            async move { this.attachment(key).await }
        });
        let this = self.clone();
        let frees = volumes.run(workers, stop.clone(), move |key| {
            let this = this.clone();
            async move { this.free(key).await }
        });
        let compares = async {
            let can = |what| parts.driver.can().control(what);
            let listed = can(ControllerCan::ListVolumes);
            if !trivial && listed && can(ControllerCan::ListVolumesPublishedNodes) {
                self.reconcile(stop).await;
            }
        };
        tokio::join!(attaches, frees, compares);
    }

    /// Notes what to look at when something changes.
    fn listen(&self) {
        let cache = &self.0.parts.cache;
        cache.attachments.subscribe(&self.0, |this, change| this.attachment_changed(change));
        if self.0.trivial {
            return;
        }
        cache.volumes.subscribe(&self.0, |this, change: &Change<Volume>| {
            let Some(new) = &change.new else { return };
            this.look_at(new);
            if change.old.is_none() {
                // What waits for it waits no longer.
                this.again("volume", &new.metadata.name);
            }
        });
        cache.csi_nodes.subscribe(&self.0, |this, change: &Change<CsiNode>| {
            let Some(new) = &change.new else { return };
            let name = this.parts.driver.name();
            let known = change.old.as_ref().and_then(|old| old.driver(name));
            if new.driver(name) != known {
                this.again("node", &new.metadata.name);
            }
        });
    }

    fn forced(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.forced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look at an attachment.
    async fn attachment(&self, key: Key) -> Next {
        let Inner { parts, trivial, finalizer, .. } = &*self.0;
        let Some(attachment) = parts.cache.attachments.get(&key) else {
            self.forced().remove(&key.name);
            return Next::Done;
        };
        let observed = decide::Observed {
            driver: parts.driver.name(),
            finalizer,
            local: parts.local.as_deref(),
            trivial: *trivial,
            forced: self.forced().contains(&key.name),
        };
        match decide::attachment(observed, &attachment) {
            decide::Step::Nothing => Next::Done,
            decide::Step::Mark => self.mark(&attachment).await,
            decide::Step::Attach => self.attach(&attachment).await,
            decide::Step::Detach => self.detach(&attachment).await,
        }
    }
}

impl Inner {
    fn attachment_changed(&self, change: &Change<Attachment>) {
        let Some(attachment) = change.object() else { return };
        let key = attachment.key();
        let Some(new) = &change.new else {
            // What it was attached for may go; a delay has nothing more to wait for.
            if let Some(volume) = &attachment.spec.source.persistent_volume_name {
                self.volumes.now(Key::cluster(volume), Priority::Fresh);
            }
            self.attachments.add(key, Priority::Fresh);
            return;
        };
        let was_deleting = change.old.as_ref().is_some_and(|old| old.metadata.is_deleting());
        match new.metadata.is_deleting() && !was_deleting {
            // Failures to attach it do not matter any more.
            true => {
                self.attachments.forget(&key);
                self.attachments.now(key, Priority::Fresh);
            }
            false => self.attachments.add(key, Priority::Fresh),
        }
    }

    fn look_at(&self, volume: &Volume) {
        let meta = &volume.metadata;
        if meta.is_deleting() && meta.has_finalizer(&self.finalizer) {
            self.volumes.add(volume.key(), Priority::Fresh);
        }
    }

    /// Has the attachments looked at that may have waited for just this.
    fn again(&self, index: &'static str, value: &str) {
        for attachment in self.parts.cache.attachments.by(index, value) {
            self.attachments.now(attachment.key(), Priority::Fresh);
        }
    }
}
