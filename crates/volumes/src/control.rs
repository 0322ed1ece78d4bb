//! The control engine: everything that CSI's controller services ask, over any backend.
//!
//! ```text
//!  request ─▶ parse ids and names ─▶ check against the facts ─▶ claim ─▶ observe ─▶ backend ─▶ check
//!             (what cannot be ours)   (Invalid, OutOfRange,      (join,    (name taken   ensure_*  the
//!                                      Exhausted: no effect)      Aborted)  elsewhere?    delete_*  answer
//!                                                                           source?)
//! ```
//!
//! Invariants:
//! - **What cannot be an id of ours** is deleted already (delete, detach), matches nothing (list)
//!   or is `NotFound` (everything else). **A pool that is not there is `Unavailable`**, never
//!   "gone": callers must not forget a volume because a disk was not mounted.
//! - **Nothing has an effect before its whole request was accepted.** Every check that needs only
//!   the request and the facts is made before a claim is taken.
//! - **Mutations are claimed** (see [`crate::claims`]) and run to completion without their caller.
//! - **Names are unique per driver**, as CSI wants, although ids are unique per pool: a new name is
//!   looked for in every other pool.
//! - **The answer fits the question.** A volume that a backend returns is compared with what was
//!   asked: name, size, source, place. An existing one that differs is `Conflict`.
//! - **Capabilities are derived** from the backend's accessors; an operation that is not announced
//!   is `Unsupported`.
//!
//! Kinds of fault pass from the backend to the caller unchanged, except that "not found" means
//! success where the aim is absence.

mod accept;
mod attach;
mod blocks;
mod capabilities;
mod create;
mod groups;
mod health;
mod snapshots;
#[cfg(test)]
mod tests;
mod token;
mod types;
mod volumes;

pub use capabilities::{ControllerCapability, PluginCapability, single_node_multi_writer};
pub use types::*;

use crate::claims::{Claims, Operation, Running};
use async_trait::async_trait;
use larder_model::{
    Backend, Cx, Fault, Handle, Kind, Result, SnapshotId, VolumeId,
    topology::{Segments, TopologyRequirement},
};
use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Where volumes are in use on this machine, as its node engine knows.
#[async_trait]
pub trait InUse: Send + Sync {
    /// The paths at which the volume is staged or published now; empty: nowhere. Only what is
    /// really mounted counts, not what a record remembers from before a reboot.
    ///
    /// # Errors
    /// Where it cannot be told; the volume is then taken to be in use.
    async fn in_use(&self, id: &VolumeId) -> Result<Vec<PathBuf>>;

    /// The volume was modified: where it is in use on this machine, that shall take effect now.
    /// Elsewhere there is nothing to do.
    ///
    /// # Errors
    /// `Precondition` where this machine cannot; the volume stays modified, and the repeated call
    /// tries again.
    async fn modified(&self, id: &VolumeId, cx: &Cx) -> Result<()> {
        let _ = (id, cx);
        Ok(())
    }
}

/// The control plane of one driver. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct ControlEngine(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    claims: Claims,
    in_use: Option<Arc<dyn InUse>>,
    ready: AtomicBool,
    #[cfg(any(test, feature = "testing"))]
    contexts: std::sync::OnceLock<Box<dyn Fn() -> Cx + Send + Sync>>,
}

impl ControlEngine {
    /// The engine of `backend`. `claims` is shared with the driver's node engine. `in_use` is that
    /// node engine, where this process serves both: it keeps mounted volumes from being deleted.
    pub fn new(backend: Arc<dyn Backend>, claims: Claims, in_use: Option<Arc<dyn InUse>>) -> Self {
        Self(Arc::new(Inner {
            backend,
            claims,
            in_use,
            ready: AtomicBool::new(false),
            #[cfg(any(test, feature = "testing"))]
            contexts: std::sync::OnceLock::new(),
        }))
    }

    /// Takes the contexts of operations from `contexts` from now on: crash plans of tests. Only the
    /// first such call counts.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_contexts(&self, contexts: impl Fn() -> Cx + Send + Sync + 'static) {
        let _ = self.0.contexts.set(Box::new(contexts));
    }

    /// Starts the backend: waits for a predecessor to let go of the pools and mends what it left.
    /// Until this has succeeded, every operation is `Unavailable`. May be repeated after a fault.
    ///
    /// # Errors
    /// What an administrator must mend before this driver can serve.
    pub async fn start(&self) -> Result<()> {
        self.0.backend.start(&Cx::new()).await?;
        self.0.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Refuses new operations, waits at most `grace` for the running ones and lets go of the pools.
    /// Returns what was still busy; the pools are then kept until the process ends, because
    /// somebody still works in them. Never unmounts.
    #[must_use = "what is still busy must be named"]
    pub async fn stop(&self, grace: Duration) -> Vec<Running> {
        let busy = self.0.claims.drain(grace).await;
        if busy.is_empty() && self.0.ready.swap(false, Ordering::AcqRel) {
            self.0.backend.stop().await;
        }
        busy
    }

    /// Probe: whether the driver can work; `false`: it is still starting.
    ///
    /// # Errors
    /// `Precondition` that says what is missing.
    pub async fn probe(&self) -> Result<bool> {
        if !self.0.ready.load(Ordering::Acquire) {
            return Ok(false);
        }
        match self.0.backend.probe().await {
            Ok(()) => Ok(true),
            // CSI knows one code for "unhealthy".
            Err(fault) => Err(fault.with_kind(Kind::Precondition)),
        }
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    /// The claims of the driver: what is running.
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }

    /// What ControllerGetCapabilities announces.
    pub fn capabilities(&self) -> Vec<ControllerCapability> {
        capabilities::controller(&*self.0.backend)
    }

    /// What GetPluginCapabilities announces.
    pub fn plugin_capabilities(&self) -> Vec<PluginCapability> {
        capabilities::plugin(&*self.0.backend)
    }

    fn check_ready(&self) -> Result<()> {
        if self.0.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Fault::unavailable("serve: the driver is starting up or shutting down")
            .hint("repeat the call"))
    }

    /// Runs `work` under the claims of `operation`; see [`Claims::run`].
    async fn run<T, F>(
        &self,
        operation: Operation,
        work: impl FnOnce(Arc<Inner>, Cx) -> F,
    ) -> Result<T>
    where
        T: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let cx = self.cx();
        // Boxed: the futures of whole operations are large.
        let work = Box::pin(work(self.0.clone(), cx.clone()));
        self.0.claims.run(operation, &cx, work).await
    }

    /// The context of a new operation.
    fn cx(&self) -> Cx {
        #[cfg(any(test, feature = "testing"))]
        if let Some(contexts) = self.0.contexts.get() {
            return contexts();
        }
        Cx::new()
    }
}

impl fmt::Debug for ControlEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlEngine")
            .field("backend", &self.0.backend.kind())
            .field("claims", &self.0.claims)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Reads an id.
    ///
    /// # Errors
    /// `Invalid` (empty), `NotFound` (cannot be ours), `Unavailable` (its pool is not configured).
    fn handle(&self, text: &str, field: &str) -> Result<Handle> {
        if text.is_empty() {
            return Err(Fault::invalid(format!("accept an empty {field}")));
        }
        let handle = self.backend.parse_handle(text).map_err(|f| f.with_kind(Kind::NotFound))?;
        if self.backend.has_pool(handle.pool()) {
            return Ok(handle);
        }
        Err(Fault::unavailable(format!(
            "reach {handle}: pool {} is not configured here",
            handle.pool()
        ))
        .hint("add the pool to the configuration again, or ask the node that has it"))
    }

    fn volume_id(&self, text: &str) -> Result<VolumeId> {
        self.handle(text, "volume_id").map(VolumeId)
    }

    fn snapshot_id(&self, text: &str) -> Result<SnapshotId> {
        self.handle(text, "snapshot_id").map(SnapshotId)
    }

    fn unsupported(&self, what: &str) -> Fault {
        Fault::unsupported(format!("{what}: the {} backend does not offer it", self.backend.kind()))
    }

    /// The place of this driver's volumes; None: everywhere.
    fn place(&self) -> Option<Segments> {
        self.backend.facts().scope.segments()
    }

    /// Refuses a requirement that this driver's place does not meet.
    ///
    /// # Errors
    /// `Invalid` (contradictory), `Exhausted` (elsewhere): another node's driver may have it.
    fn check_place(&self, requirement: Option<&TopologyRequirement>) -> Result<()> {
        let Some(requirement) = requirement else { return Ok(()) };
        accept::topology(requirement)?;
        match self.place() {
            Some(place) if !requirement.allows(&place) => Err(Fault::new(
                Kind::Exhausted,
                format!("find room where it was asked for: this driver's storage is at {place:?}"),
            )
            .hint("ask the driver on a node within the requisite topology")),
            _ => Ok(()),
        }
    }

    /// Where the volume is in use: nodes it is attached to, and paths on this machine.
    async fn users(&self, id: &VolumeId) -> Result<Vec<String>> {
        let mut users = Vec::new();
        if let Some(attach) = self.backend.provision().attach() {
            match attach.attached_nodes(id).await {
                Ok(nodes) => users.extend(nodes.into_iter().map(|n| format!("node {n}"))),
                Err(fault) if fault.kind() == Kind::NotFound => {}
                Err(fault) => return Err(fault),
            }
        }
        if let Some(in_use) = &self.in_use {
            let paths = in_use.in_use(id).await?;
            users.extend(paths.iter().map(|p| p.display().to_string()));
        }
        Ok(users)
    }
}

/// "Not found" as `None`.
fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.kind() == Kind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// "Not found" as success, for operations that aim at absence.
fn absent(result: Result<()>) -> Result<()> {
    found(result).map(|_| ())
}
