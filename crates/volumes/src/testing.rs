//! A backend in memory, for the tests of engines and services (feature `testing`).
//!
//! [`MemoryBackend`] keeps a backend's promises (see [`larder_model::backend`]) and nothing on
//! disk. It implements every accessor; [`Memory`] switches them off one by one. On top of it:
//!
//! - **Faults on demand** ([`MemoryBackend::inject`]): a method fails, panics, waits, or does its
//!   work and loses the answer.
//! - **Crashes** at every [`Cx::step`]: what was begun stays half-made, [`MemoryBackend::restarted`]
//!   is the next process on the same storage, and `start` mends.
//! - **A witness**: two mutating calls for one object at a time panic, so that an engine without
//!   claims cannot pass.
//! - **Data**: volumes hold numbered blocks ([`MemoryBackend::write`], [`MemoryBackend::read`]), so
//!   that tests see whether a copy shows what it should.

mod connect;
mod inject;
mod provision;
mod snapshots;
mod store;

pub use inject::Inject;

use async_trait::async_trait;
use inject::Injections;
use larder_model::{
    AccessMode, Backend, Bytes, Connect, Cx, FsType, NodeName, PoolName, Provision, Result,
    SnapshotId, VolumeId,
    backend::{ConnectRequest, Parameter, Source},
    volume::{Facts, FormatState, HealthEntry, PoolStatus, Scope, StorageHealth, Volume},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use store::Store;

/// A caller of its own: a task.
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's callers are tasks")]
pub(crate) fn spawn<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn(call)
}

/// Lets other tasks run until they wait.
#[cfg(test)]
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// The bytes of one block of a volume's data.
pub const BLOCK: u64 = 4096;

/// Which accessors a [`MemoryBackend`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the accessor of that name")]
pub struct Abilities {
    pub list: bool,
    pub capacity: bool,
    pub expand: bool,
    pub modify: bool,
    pub attach: bool,
    pub snapshots: bool,
    pub groups: bool,
    pub changed_blocks: bool,
    pub health: bool,
    pub clones: bool,
}

impl Abilities {
    /// Everything.
    pub const ALL: Self = Self {
        list: true,
        capacity: true,
        expand: true,
        modify: true,
        attach: true,
        snapshots: true,
        groups: true,
        changed_blocks: true,
        health: true,
        clones: true,
    };
    /// Only what every backend must do.
    pub const NONE: Self = Self {
        list: false,
        capacity: false,
        expand: false,
        modify: false,
        attach: false,
        snapshots: false,
        groups: false,
        changed_blocks: false,
        health: false,
        clones: false,
    };
}

/// How [`Connect::connect`] of the memory backend finds a volume's data.
pub type SourceOf = Arc<dyn Fn(&ConnectRequest) -> Result<Source> + Send + Sync>;

/// The settings of a [`MemoryBackend`].
#[derive(Clone)]
pub struct Memory {
    /// Its facts.
    pub facts: Facts,
    /// Its pools.
    pub pools: Vec<PoolName>,
    /// The size of each pool; volumes and snapshots take their full size.
    pub pool_size: Bytes,
    /// Its accessors.
    pub abilities: Abilities,
    /// What the node gets; None: connecting is `Precondition`.
    pub source: Option<SourceOf>,
}

impl Default for Memory {
    /// Pools `default` and `other` of 1 TiB on node `node-1`, every ability, every mode and type.
    fn default() -> Self {
        #[allow(clippy::expect_used, reason = "the texts are valid names")]
        let name = |text: &str| text.parse::<PoolName>().expect("a pool name");
        #[allow(clippy::expect_used, reason = "the text is a valid name")]
        let node: NodeName = "node-1".parse().expect("a node name");
        Self {
            facts: Facts {
                scope: Scope::Node(node),
                access_modes: AccessMode::ALL.to_vec(),
                block: true,
                mount: true,
                file_systems: FsType::ALL.to_vec(),
                default_size: Bytes::gib(1),
                min_size: Bytes::mib(1),
                size_step: Bytes::new(BLOCK),
                attach_required: true,
                fs_group_policy: "File",
                mount_group: true,
                online_expansion: true,
                node_expansion: true,
                ephemeral: true,
                snapshot_topology: true,
                max_volumes_per_node: None,
            },
            pools: vec![name("default"), name("other")],
            pool_size: Bytes::gib(1024),
            abilities: Abilities::ALL,
            source: None,
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("pools", &self.pools)
            .field("abilities", &self.abilities)
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// A backend with these settings and empty pools.
    pub fn build(self) -> MemoryBackend {
        MemoryBackend {
            settings: Arc::new(self),
            store: Arc::default(),
            injections: Arc::default(),
        }
    }
}

/// The backend. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    settings: Arc<Memory>,
    store: Arc<Mutex<Store>>,
    injections: Arc<Injections>,
}

impl MemoryBackend {
    /// The next process on the same storage: `start` must be called again, nothing is injected.
    pub fn restarted(&self) -> Self {
        self.store().busy.clear();
        Self { injections: Arc::default(), ..self.clone() }
    }

    /// The next call of `method` (a method of the traits, by name) meets `what`. Several are met
    /// one after the other.
    pub fn inject(&self, method: &'static str, what: Inject) {
        self.injections.add(method, what);
    }

    /// How often `method` was called.
    pub fn calls(&self, method: &str) -> usize {
        self.injections.calls(method)
    }

    /// Makes a pool unreachable (`lost`), or brings it back.
    pub fn lose_pool(&self, pool: &str, lost: bool) {
        let mut store = self.store();
        store.lost.retain(|p| p != pool);
        if lost {
            store.lost.push(pool.to_owned());
        }
    }

    /// Puts a volume into the pool that nobody created through us.
    pub fn add_static(&self, id: &VolumeId, size: Bytes) {
        self.store().add_static(id, size);
    }

    /// Changes a volume behind the engine's back.
    pub fn edit(&self, id: &VolumeId, edit: impl FnOnce(&mut Volume)) {
        if let Some(volume) = self.store().volumes.get_mut(id.as_str()) {
            edit(&mut volume.volume);
        }
    }

    /// Makes a snapshot ready, or not.
    pub fn set_ready(&self, id: &SnapshotId, ready: bool) {
        if let Some(snapshot) = self.store().snapshots.get_mut(id.as_str()) {
            snapshot.snapshot.ready = ready;
        }
    }

    /// Makes deletion of the volume or snapshot `Precondition`, or not.
    pub fn set_in_use(&self, id: &str, in_use: bool) {
        let mut store = self.store();
        store.in_use.retain(|i| i != id);
        if in_use {
            store.in_use.push(id.to_owned());
        }
    }

    /// Says what is wrong with a volume.
    pub fn set_health(&self, id: &VolumeId, findings: Vec<HealthEntry>) {
        if let Some(volume) = self.store().volumes.get_mut(id.as_str()) {
            volume.health = findings;
        }
    }

    /// Writes `tag` to block `number` of a volume.
    pub fn write(&self, id: &VolumeId, number: u64, tag: u64) {
        if let Some(volume) = self.store().volumes.get_mut(id.as_str()) {
            volume.data.insert(number, tag);
        }
    }

    /// The data of a volume, by block number; None: no such volume.
    pub fn read(&self, id: &VolumeId) -> Option<BTreeMap<u64, u64>> {
        self.store().volumes.get(id.as_str()).map(|v| v.data.clone())
    }

    /// What the volume's record says of its file system.
    pub fn format_of(&self, id: &VolumeId) -> Option<FormatState> {
        self.store().volumes.get(id.as_str()).map(|v| v.format)
    }

    /// Everything that exists, as text, for comparing two histories. Times are left out.
    pub fn inventory(&self) -> String {
        self.store().inventory()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn kind(&self) -> &'static str {
        "memory"
    }
    fn facts(&self) -> &Facts {
        &self.settings.facts
    }
    fn pools(&self) -> Vec<PoolName> {
        self.settings.pools.clone()
    }
    fn parameters(&self) -> &'static [Parameter] {
        &provision::PARAMETERS
    }
    async fn start(&self, _cx: &Cx) -> Result<()> {
        self.injections
            .call("start", async {
                self.store().mend();
                Ok(())
            })
            .await
    }
    async fn stop(&self) {
        let _ = self.injections.call("stop", async { Ok(()) }).await;
    }
    async fn probe(&self) -> Result<()> {
        self.injections.call("probe", async { Ok(()) }).await
    }
    async fn pool_status(&self) -> Vec<PoolStatus> {
        let store = self.store();
        let status = |pool: &PoolName| store.status(pool, self.settings.pool_size);
        self.settings.pools.iter().map(status).collect()
    }
    async fn storage_health(&self) -> Vec<StorageHealth> {
        let lost = self.store().lost.clone();
        let finding = |pool: String| StorageHealth {
            unreachable: true,
            reason: "PoolLost",
            message: format!("pool {pool} is lost"),
        };
        lost.into_iter().map(finding).collect()
    }
    fn provision(&self) -> &dyn Provision {
        self
    }
    fn connect(&self) -> &dyn Connect {
        self
    }
}
