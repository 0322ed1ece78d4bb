//! The node engine: everything between "this pod needs that volume" and a mounted path.
//!
//! A backend only says where a volume's data is ([`larder_model::backend::Source`]: a device, a
//! directory, a network file system). Formatting, checking, mounting, binding, growing, measuring
//! and cleaning up are done here, once for all backends.
//!
//! ```text
//!            connect, (format, check) mount          bind                  workload
//!  backend ─────────────────────────────▶ staging ─────────▶ target ──────▶ (pod)
//!          ◀─────────────────────────────         ◀─────────
//!            disconnect, prove unused, unmount      unmount, remove
//!
//!  inline volumes: publish = create + stage (out of sight) + publish; unpublish takes all back
//! ```
//!
//! Every operation observes (records, kernel), decides with a pure function ([`plan`], [`format`]),
//! and carries the steps out; each step is a crash point. Invariants:
//! - **A record precedes its effect** ([`record`]); the kernel is the truth about mounts. Whatever a
//!   killed process left is finished or taken back by the repeated call, by the opposite call, or by
//!   [`NodeEngine::recover`]; wiped records only make that slower.
//! - **Nothing is ever mounted over a mount**, and nothing that is not this volume's is unmounted.
//! - **Formatting needs proof** ([`format`]): the record kept with the volume and a probe of the
//!   device must both allow it.
//! - **An encrypted device is opened in between** ([`crypt`]): what follows sees the opened one.
//! - **A device is let go only when nobody uses it**, in any mount namespace; lazy unmounting is for
//!   network file systems only.
//! - **A limit never outlives its volume's device** ([`limits`]).
//! - **A running workload is never disturbed** by a start, a stop or a crash of this process.
//! - **One process at a time** works with the records ([`owner`]).
//! - **Volumes do not wait for each other**: there is one claim per volume and no common lock.

mod crypt;
mod executor;
mod expand;
mod flags;
mod format;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod health;
mod identify;
mod inline;
mod limits;
pub mod look;
mod owner;
mod plan;
mod publish;
mod record;
mod recover;
pub mod request;
mod sight;
mod stage;
mod stale;
mod stats;
mod unpublish;
mod unstage;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use fuzzing::record as fuzz;
pub(crate) use inline::is_made_for;
pub use inline::{InlineVolume, InlineVolumes};
pub use limits::NodeLimits;
pub use request::*;

use crate::{
    claims::{Claims, Fingerprint, Key, Operation},
    control::{InUse, single_node_multi_writer},
};
use async_trait::async_trait;
use executor::Executor;
use larder_host::{Host, freeze::Freezer, paths::TargetPath};
use larder_model::{
    Backend, Bytes, Cx, DriverName, Fault, Handle, Kind, NodeName, Result, VolumeId,
    id::quoted,
    volume::{Scope, StorageHealth},
};
use std::{
    fmt,
    future::Future,
    hash::Hash,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Who and where a node engine is.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The driver it serves.
    pub driver: DriverName,
    /// The node it runs on.
    pub node: NodeName,
    /// Holds the records, in a folder per driver. May be wiped while volumes are in use.
    pub state_dir: PathBuf,
    /// The boot that mounts and devices belong to.
    pub boot_id: String,
    /// Empties the logs of grown file systems. Without one, the kernel does so within 30 seconds.
    pub freezer: Option<Arc<Freezer>>,
}

impl NodeConfig {
    /// Where records are kept unless configured otherwise: on a tmpfs, as mounts are gone after a
    /// reboot too.
    pub const STATE_DIR: &str = "/run/larder/state";

    /// With defaults for the rest.
    pub fn new(driver: DriverName, node: NodeName) -> Self {
        Self {
            driver,
            node,
            state_dir: Self::STATE_DIR.into(),
            boot_id: larder_host::boot_id(),
            freezer: None,
        }
    }
}

/// The node's half of one driver. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct NodeEngine(Arc<Inner>);

struct Inner {
    executor: Arc<Executor>,
    claims: Claims,
    node: NodeName,
}

impl NodeEngine {
    /// The engine of `backend` on this machine. `claims` is shared with the driver's control engine.
    pub fn new(backend: Arc<dyn Backend>, host: Host, config: NodeConfig, claims: Claims) -> Self {
        let directory = config.state_dir.join(config.driver.as_str());
        let store = record::Store::new(directory, config.boot_id);
        let (inline, owner) = (OnceLock::new(), owner::Owner::default());
        let (driver, freezer) = (config.driver, config.freezer);
        let executor = Executor { backend, host, freezer, driver, store, inline, owner };
        Self(Arc::new(Inner { executor: Arc::new(executor), claims, node: config.node }))
    }

    /// Who makes and deletes inline volumes: the driver's control engine. Until this is said, they
    /// are refused. Only the first call counts.
    pub fn set_inline_volumes(&self, maker: Arc<dyn InlineVolumes>) {
        let _ = self.0.executor.inline.set(maker);
    }

    /// Takes the records, waiting for another process that works with them to let go, looks through
    /// them and mends what a killed process or a reboot left half-done. Called once, after the backend
    /// has started and before anything else; what cannot be mended is told and does not fail the
    /// start. Live mounts are not touched.
    ///
    /// # Errors
    /// Only when the records' directory cannot be read.
    pub async fn recover(&self, cx: &Cx) -> Result<Recovered> {
        self.0.executor.take_records().await?;
        self.0.executor.clone().recover(cx).await
    }

    /// Lets go of the records. Called when nothing runs any more; no other method is called
    /// afterwards. Never unmounts.
    pub fn stop(&self) {
        self.0.executor.owner.leave();
    }

    /// What NodeGetCapabilities announces. Cheap: kubelet asks several times per operation.
    pub fn capabilities(&self) -> NodeCapabilities {
        let backend = &self.0.executor.backend;
        let facts = backend.facts();
        NodeCapabilities {
            stage_unstage: true,
            volume_stats: true,
            expand: facts.node_expansion && backend.provision().expand().is_some(),
            single_node_multi_writer: single_node_multi_writer(&**backend),
            mount_group: facts.mount_group,
            volume_health: true,
            storage_health: true,
        }
    }

    /// What NodeGetInfo answers.
    pub fn info(&self) -> NodeInfo {
        let facts = self.0.executor.backend.facts();
        let node = match &facts.scope {
            Scope::Node(node) => node,
            Scope::Everywhere => &self.0.node,
        };
        NodeInfo {
            node_id: node.as_str().to_owned(),
            max_volumes: facts.max_volumes_per_node,
            topology: facts.scope.segments(),
        }
    }

    /// Makes a volume ready on this node (NodeStageVolume).
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is staged there on other terms; `Precondition` when it holds
    /// something that must not be formatted, needs a repair, or something is in the way; `Invalid`;
    /// `Aborted`; those of [`larder_model::Connect::connect`].
    pub async fn stage(&self, request: StageRequest, cx: &Cx) -> Result<()> {
        let id = self.parse(&request.volume)?;
        let path = parse_path(&request.staging_path, "staging_target_path")?;
        let terms = record::Terms::new(&request.capability, &request.context);
        let print = (&path, &request.capability, &request.context, &request.publish_context);
        let operation = owned("stage volume", &id, &print)?;
        let (executor, cx_) = (self.0.executor.clone(), cx.clone());
        self.run("stage", &request.volume.clone(), operation, cx, async move {
            executor.stage(&id, request, &path, &terms, &cx_).await
        })
        .await
    }

    /// Takes [`NodeEngine::stage`] back (NodeUnstageVolume). Not staged there: done.
    ///
    /// # Errors
    /// `Precondition` while a workload, an open file, a mount in any namespace or a stacked device
    /// uses it (named), or when something else is mounted there; `Unavailable`; `Aborted`.
    pub async fn unstage(&self, request: UnstageRequest, cx: &Cx) -> Result<()> {
        let path = parse_path(&request.staging_path, "staging_target_path")?;
        // What cannot be ours was never staged by us.
        let Some(id) = self.parse_if_ours(&request.volume)? else { return Ok(()) };
        let operation = owned("unstage volume", &id, &path)?;
        let (executor, cx_) = (self.0.executor.clone(), cx.clone());
        self.run("unstage", &request.volume.clone(), operation, cx, async move {
            executor.unstage(&id, &request.volume, &path, &cx_).await
        })
        .await
    }

    /// Shows a staged volume to a workload, or makes an inline one for it (NodePublishVolume).
    ///
    /// # Errors
    /// `Precondition` when it is not staged, something is in the way, or another workload has it
    /// and the access mode allows one; `Conflict` when it is published there on other terms;
    /// `Invalid`; `NotFound`; `Aborted`.
    pub async fn publish(&self, request: PublishRequest, cx: &Cx) -> Result<()> {
        let target = parse_path(&request.target_path, "target_path")?;
        let staging = request.staging_path.as_deref();
        let staging = staging.map(|path| parse_path(path, "staging_target_path")).transpose()?;
        let print = (
            (target.clone(), staging.clone(), request.readonly),
            (&request.capability, &request.context, &request.publish_context),
        );
        let (executor, cx_, volume) = (self.0.executor.clone(), cx.clone(), request.volume.clone());
        if inline::is_inline(&request.context) {
            let operation = unowned("publish inline volume", &volume, &print)?;
            return self
                .run("publish inline", &volume, operation, cx, async move {
                    executor.publish_inline(request, target, &cx_).await
                })
                .await;
        }
        let id = self.parse(&volume)?;
        let staging = staging.ok_or_else(|| {
            Fault::precondition(format!("publish volume {volume}: no staging_target_path is given"))
                .hint("stage the volume first (STAGE_UNSTAGE_VOLUME is announced)")
        })?;
        let operation = owned("publish volume", &id, &print)?;
        self.run("publish", &volume, operation, cx, async move {
            match executor.publish(&id, request, &staging, &target, &cx_).await {
                Err(fault) if fault.kind() == Kind::Precondition => {
                    Err(executor.or_gone(&id, fault).await)
                }
                published => published,
            }
        })
        .await
    }

    /// Takes [`NodeEngine::publish`] back and removes the target (NodeUnpublishVolume). An inline
    /// volume is deleted. Not published there: done.
    ///
    /// # Errors
    /// `Precondition` while the target is busy, when something else is mounted there, or it holds
    /// files that are not the volume's; `Unavailable`; `Aborted`.
    pub async fn unpublish(&self, request: UnpublishRequest, cx: &Cx) -> Result<()> {
        let target = parse_path(&request.target_path, "target_path")?;
        let operation = match self.parse_if_ours(&request.volume)? {
            Some(id) => owned("unpublish volume", &id, &target),
            None => unowned("unpublish volume", &request.volume, &target),
        }?;
        let (executor, cx_) = (self.0.executor.clone(), cx.clone());
        self.run("unpublish", &request.volume.clone(), operation, cx, async move {
            executor.unpublish(&request.volume, &target, &cx_).await
        })
        .await
    }

    /// How full a volume is (NodeGetVolumeStats). Never waits for a dead server for long.
    ///
    /// # Errors
    /// `NotFound` when the volume is not at that path; `Unavailable`.
    pub async fn stats(&self, request: StatsRequest) -> Result<VolumeStats> {
        let path = parse_path(&request.volume_path, "volume_path")?;
        let during = format!("measure volume {}", quoted(&request.volume));
        let executor = self.0.executor.clone();
        executor.stats(&request.volume, &path).await.map_err(|fault| fault.during(during))
    }

    /// [`Self::stats`] and [`Self::volume_health`] of one place, with one look at what both need:
    /// kubelet asks for every volume once a minute.
    ///
    /// # Errors
    /// Those of [`Self::stats`]; those of [`Self::volume_health`] inside.
    pub async fn stats_and_health(
        &self,
        request: StatsRequest,
    ) -> Result<(VolumeStats, Result<VolumeHealth>)> {
        let path = parse_path(&request.volume_path, "volume_path")?;
        let volume = quoted(&request.volume);
        let executor = self.0.executor.clone();
        let found = executor.stats_and_health(&request.volume, &path).await;
        let (stats, health) = found.map_err(|f| f.during(format!("measure volume {volume}")))?;
        Ok((stats, health.map_err(|fault| fault.during(format!("check volume {volume}")))))
    }

    /// Makes growth by the control plane visible here and returns the size (NodeExpandVolume).
    ///
    /// # Errors
    /// `NotFound` when the volume is not there; `OutOfRange` when it is not of the asked size;
    /// `Precondition` when it is staged only for reading; `Aborted`.
    pub async fn expand(&self, request: ExpandRequest, cx: &Cx) -> Result<Bytes> {
        let path = parse_path(&request.volume_path, "volume_path")?;
        let (executor, cx_) = (self.0.executor.clone(), cx.clone());
        let print = (&path, request.range.required, request.range.limit, &request.capability);
        let operation = match self.parse_if_ours(&request.volume)? {
            Some(id) => owned("expand volume on this node", &id, &print),
            None => unowned("expand volume on this node", &request.volume, &print),
        }?;
        self.run("expand", &request.volume.clone(), operation, cx, async move {
            executor.expand(request, &path, &cx_).await
        })
        .await
    }

    /// What is wrong with a volume on this node (NodeGetVolumeHealth); empty: nothing known.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn volume_health(&self, request: HealthRequest) -> Result<VolumeHealth> {
        let during = format!("check volume {}", quoted(&request.volume));
        let executor = self.0.executor.clone();
        executor.volume_health(request).await.map_err(|fault| fault.during(during))
    }

    /// What is wrong with the storage as this node sees it (NodeGetStorageHealth).
    pub async fn storage_health(&self) -> Vec<StorageHealth> {
        self.0.executor.backend.storage_health().await
    }

    fn parse(&self, volume: &str) -> Result<VolumeId> {
        self.0.executor.parse(volume)
    }

    /// None for what cannot be an id of this driver.
    fn parse_if_ours(&self, volume: &str) -> Result<Option<VolumeId>> {
        match self.parse(volume) {
            Ok(id) => Ok(Some(id)),
            Err(fault) if fault.kind() == Kind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn run<T: Clone + Send + Sync + 'static>(
        &self,
        verb: &'static str,
        volume: &str,
        operation: Operation,
        cx: &Cx,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let during = format!("{verb} volume {}", quoted(volume).trim_matches('"'));
        let work = async move { work.await.map_err(|fault| fault.during(during)) };
        // Boxed: the futures of whole operations are large, and callers hold several.
        self.0.claims.run(operation, cx, Box::pin(work)).await
    }
}

impl fmt::Debug for NodeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeEngine").field(&self.0.node).finish()
    }
}

#[async_trait]
impl InUse for NodeEngine {
    async fn in_use(&self, id: &VolumeId) -> Result<Vec<PathBuf>> {
        self.0.executor.clone().in_use(id).await
    }

    async fn modified(&self, id: &VolumeId, cx: &Cx) -> Result<()> {
        self.0.executor.modified(id, cx).await
    }
}

/// An operation on a volume that the control plane knows too: it must not be deleted or grown
/// meanwhile.
fn owned(name: &'static str, id: &VolumeId, arguments: &impl Hash) -> Result<Operation> {
    Ok(unowned(name, id.as_str(), arguments)?.shared(Key::volume(id)))
}

/// An operation on an id that may be none of ours: an inline volume's. What it does with the volume
/// behind that id is claimed by the control engine.
fn unowned(name: &'static str, volume: &str, arguments: &impl Hash) -> Result<Operation> {
    // One form for all: the id as the caller writes it.
    let native = inline::native(volume)?;
    let handle = Handle::foreign(volume.to_owned(), "node".parse()?, native);
    Ok(Operation::new(name, Fingerprint::of(arguments)).exclusive(Key::Node(handle)))
}

fn parse_path(path: &Path, field: &str) -> Result<TargetPath> {
    let text =
        path.to_str().ok_or_else(|| Fault::invalid(format!("accept {field}: it is not UTF-8")))?;
    TargetPath::parse(text, field)
}
