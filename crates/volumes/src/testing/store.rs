//! What the memory backend keeps: the part that survives a restart.

use larder_model::{
    AccessMode, Bytes, Fault, Limits, PoolName, Result, Uses, VolumeId,
    volume::{
        Attributes, ContentSource, FormatState, GroupSnapshot, HealthEntry, PoolStatus, Snapshot,
        Volume,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// The data of a volume: what was written to which block.
pub(super) type Data = BTreeMap<u64, u64>;

#[derive(Debug, Clone)]
pub(super) struct StoredVolume {
    pub(super) volume: Volume,
    pub(super) block: bool,
    pub(super) parameters: Attributes,
    pub(super) mutable: Attributes,
    pub(super) data: Data,
    pub(super) format: FormatState,
    pub(super) health: Vec<HealthEntry>,
}

#[derive(Debug, Clone)]
pub(super) struct StoredSnapshot {
    pub(super) snapshot: Snapshot,
    pub(super) data: Data,
}

/// How a volume is attached to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) mode: AccessMode,
    pub(super) block: bool,
    pub(super) readonly: bool,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) volumes: BTreeMap<String, StoredVolume>,
    pub(super) snapshots: BTreeMap<String, StoredSnapshot>,
    pub(super) groups: BTreeMap<String, GroupSnapshot>,
    /// Ids of what is being made or deleted; a new process removes what stands here.
    pub(super) unfinished: BTreeSet<String>,
    /// Sizes that were recorded before the growth; a new process completes it.
    pub(super) growing: BTreeMap<String, Bytes>,
    pub(super) attached: BTreeMap<String, BTreeMap<String, Attached>>,
    pub(super) connected: BTreeSet<String>,
    pub(super) lost: Vec<String>,
    pub(super) in_use: Vec<String>,
    /// Objects of mutating calls that are running now.
    pub(super) busy: BTreeSet<String>,
}

impl Store {
    pub(super) fn reach(&self, pool: &PoolName) -> Result<()> {
        if self.lost.iter().any(|p| p == pool.as_str()) {
            return Err(Fault::unavailable(format!("reach pool {pool}: it is lost")));
        }
        Ok(())
    }

    pub(super) fn volume(&self, id: &VolumeId) -> Result<&StoredVolume> {
        self.reach(id.pool())?;
        let found = self.volumes.get(id.as_str());
        found.ok_or_else(|| Fault::not_found(format!("find volume {id}")))
    }

    pub(super) fn volume_mut(&mut self, id: &VolumeId) -> Result<&mut StoredVolume> {
        self.reach(id.pool())?;
        let found = self.volumes.get_mut(id.as_str());
        found.ok_or_else(|| Fault::not_found(format!("find volume {id}")))
    }

    /// Completes or takes back what a killed process left half-done.
    pub(super) fn mend(&mut self) {
        for id in std::mem::take(&mut self.unfinished) {
            self.discard(&id);
        }
        for (id, size) in std::mem::take(&mut self.growing) {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.volume.capacity = size;
            }
        }
    }

    /// Removes whatever was made under `id`; of a group, its members too.
    pub(super) fn discard(&mut self, id: &str) {
        self.volumes.remove(id);
        self.attached.remove(id);
        self.groups.remove(id);
        self.snapshots.remove(id);
        self.snapshots.retain(|_, s| s.snapshot.group.as_deref() != Some(id));
        self.unfinished.remove(id);
    }

    pub(super) fn add_static(&mut self, id: &VolumeId, capacity: Bytes) {
        let volume = Volume {
            id: id.clone(),
            name: id.native().to_string(),
            capacity,
            context: Attributes::new(),
            source: None,
            topology: Vec::new(),
            created: jiff::Timestamp::now(),
            is_static: true,
            ephemeral: false,
            uses: Uses::ANY,
            limits: Limits::NONE,
        };
        let stored = StoredVolume {
            volume,
            block: false,
            parameters: Attributes::new(),
            mutable: Attributes::new(),
            data: Data::new(),
            format: FormatState::Foreign,
            health: Vec::new(),
        };
        self.volumes.insert(id.as_str().to_owned(), stored);
    }

    /// What volumes and snapshots of `pool` take.
    pub(super) fn provisioned(&self, pool: &PoolName) -> Bytes {
        let volumes = self.volumes.values().map(|v| (v.volume.id.pool(), v.volume.capacity));
        let snapshots = self.snapshots.values().map(|s| (s.snapshot.id.pool(), s.snapshot.size));
        volumes.chain(snapshots).filter(|(p, _)| *p == pool).map(|(_, size)| size).sum()
    }

    pub(super) fn status(&self, pool: &PoolName, total: Bytes) -> PoolStatus {
        let of = |id: &&String| id.split('/').next() == Some(pool.as_str());
        let provisioned = self.provisioned(pool);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        PoolStatus {
            name: pool.to_string(),
            location: "memory".into(),
            identity: Some(format!("memory-{pool}")),
            storage: "memory".into(),
            total,
            free: total.saturating_sub(provisioned),
            provisioned,
            volumes: count(self.volumes.keys().filter(of).count()),
            snapshots: count(self.snapshots.keys().filter(of).count()),
            warnings: Vec::new(),
            fault: self.reach(pool).err().map(|f| f.to_string()),
        }
    }

    pub(super) fn inventory(&self) -> String {
        let mut text = String::new();
        for (id, v) in &self.volumes {
            let source = v.volume.source.as_ref().map(ContentSource::to_string);
            let _ = writeln!(
                text,
                "volume {id} {} {:?} {:?} {:?} {:?}",
                v.volume.capacity, source, v.parameters, v.mutable, v.data
            );
        }
        for (id, s) in &self.snapshots {
            let _ = writeln!(
                text,
                "snapshot {id} of {} {} {:?} {:?}",
                s.snapshot.source, s.snapshot.size, s.snapshot.group, s.data
            );
        }
        for (id, g) in &self.groups {
            let members: Vec<_> = g.snapshots.iter().map(|s| s.id.as_str()).collect();
            let _ = writeln!(text, "group {id} {members:?}");
        }
        for (id, nodes) in &self.attached {
            let _ = writeln!(text, "attached {id} {nodes:?}");
        }
        for what in self.unfinished.iter().chain(self.growing.keys()) {
            let _ = writeln!(text, "unfinished {what}");
        }
        text
    }
}
