//! What is wrong: with a volume, with a pool.

use crate::{backend::Core, entry::Entry, groups, layout::Shelf, medium::Medium, pool::Pool};
use larder_model::{
    Bytes, Fault, Kind, PoolName, Result, VolumeId,
    backend::Attachment,
    volume::{HealthEntry, HealthStatus, PoolStatus, StorageHealth},
};
use std::{collections::BTreeMap, io::ErrorKind};

impl<M: Medium> Core<M> {
    pub(crate) fn volume_health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>> {
        match self.find(id) {
            Ok((pool, entry)) => Ok(self.findings(&pool, &entry, None)),
            Err(fault) => unreadable(fault),
        }
    }

    /// Of several volumes. What they have in common is looked at once: that their pool is there, and
    /// whether it can be written.
    pub(crate) fn volumes_health(&self, ids: &[VolumeId]) -> Vec<Result<Vec<HealthEntry>>> {
        let mut pools: BTreeMap<&PoolName, Result<(Pool, bool)>> = BTreeMap::new();
        for name in ids.iter().map(|id| id.pool()) {
            pools.entry(name).or_insert_with(|| {
                let pool = self.places.get(name)?;
                let read_only = pool.is_read_only();
                Ok((pool, read_only))
            });
        }
        let one = |id: &VolumeId| match pools.get(id.pool()) {
            Some(Ok((pool, read_only))) => match self.look_up(pool, id) {
                Ok(entry) => Ok(self.findings_in(pool, *read_only, &entry, None)),
                Err(fault) => unreadable(fault),
            },
            Some(Err(fault)) => unreadable(fault.clone()),
            None => Ok(Vec::new()),
        };
        ids.iter().map(one).collect()
    }

    /// What both halves see of a volume whose record is fine.
    pub(crate) fn findings(
        &self,
        pool: &Pool,
        entry: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        self.findings_in(pool, pool.is_read_only(), entry, attachment)
    }

    fn findings_in(
        &self,
        pool: &Pool,
        read_only: bool,
        entry: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        let mut found = Vec::new();
        if read_only {
            found.push(HealthEntry {
                status: HealthStatus::Degraded,
                reason: "PoolReadOnly",
                message: format!(
                    "{} is read-only; look at the kernel's log",
                    pool.path().display()
                ),
            });
        }
        match entry.data.symlink_metadata() {
            Ok(_) => found.extend(self.medium.health(pool, entry, attachment)),
            Err(e) if e.kind() == ErrorKind::NotFound => found.push(HealthEntry {
                status: HealthStatus::DataLoss,
                reason: "DataMissing",
                message: format!(
                    "{} is gone; restore it from a backup, or delete the volume",
                    entry.data.display()
                ),
            }),
            Err(e) => found.push(HealthEntry {
                status: HealthStatus::Inaccessible,
                reason: "DataUnreadable",
                message: format!("cannot look at {}: {e}", entry.data.display()),
            }),
        }
        found
    }

    pub(crate) fn storage_health(&self) -> Vec<StorageHealth> {
        let mut found = Vec::new();
        let mut say = |unreachable, reason, message| {
            found.push(StorageHealth { unreachable, reason, message });
        };
        for name in self.places.names() {
            let pool = match self.places.get(name) {
                Ok(pool) => pool,
                Err(fault) => {
                    say(true, "PoolUnavailable", fault.to_string());
                    continue;
                }
            };
            if pool.is_read_only() {
                let at = pool.path().display();
                say(false, "PoolReadOnly", format!("pool {name} at {at} is read-only"));
            }
            match pool.catalog().totals() {
                Ok(totals) if totals.broken.is_empty() => {}
                Ok(totals) => say(
                    false,
                    "RecordsUnreadable",
                    format!("pool {name}: {}", totals.broken.join("; ")),
                ),
                Err(fault) => say(false, "PoolUnreadable", format!("pool {name}: {fault}")),
            }
            match groups::incomplete(&pool) {
                Ok(broken) if broken.is_empty() => {}
                Ok(broken) => {
                    say(false, "GroupsIncomplete", format!("pool {name}: {}", broken.join("; ")));
                }
                Err(fault) => say(false, "PoolUnreadable", format!("pool {name}: {fault}")),
            }
            let free = pool.host().filesystems.usage(pool.path()).map(|usage| usage.available);
            match free {
                Ok(free)
                    if free.saturating_add(pool.bin().allocated()) <= pool.config().reserve =>
                {
                    say(false, "PoolFull", format!("pool {name} has {free} free"));
                }
                Ok(_) => {}
                Err(fault) => say(false, "PoolUnreadable", format!("pool {name}: {fault}")),
            }
        }
        found
    }

    /// Fine while one pool can be used: restarting a driver does not bring back a mount. Waits for
    /// no network, because whoever asks may kill a driver that does not answer in time.
    pub(crate) fn probe(&self) -> Result<()> {
        let mut away = Vec::new();
        for name in self.places.names() {
            match self.places.known(name) {
                Ok(()) => return Ok(()),
                Err(fault) => away.push(fault.to_string()),
            }
        }
        if away.is_empty() {
            return Err(Fault::precondition("use any pool: none is configured"));
        }
        Err(Fault::precondition(format!("use any pool: {}", away.join("; "))))
    }

    pub(crate) fn pool_status(&self) -> Vec<PoolStatus> {
        self.places.names().map(|name| self.status_of(name)).collect()
    }

    fn status_of(&self, name: &PoolName) -> PoolStatus {
        let location = self.places.config(name).map(|config| config.path.display().to_string());
        let mut status = PoolStatus {
            name: name.to_string(),
            location: location.unwrap_or_default(),
            identity: None,
            storage: String::new(),
            total: Bytes::ZERO,
            free: Bytes::ZERO,
            provisioned: Bytes::ZERO,
            volumes: 0,
            snapshots: 0,
            warnings: Vec::new(),
            fault: None,
        };
        if let Err(fault) = self.places.get(name).and_then(|pool| self.fill(&pool, &mut status)) {
            status.fault = Some(fault.to_string());
        }
        status
    }

    fn fill(&self, pool: &Pool, status: &mut PoolStatus) -> Result<()> {
        status.identity = Some(pool.id().to_string());
        status.storage.clone_from(&pool.traits().storage);
        status.warnings.clone_from(&pool.traits().warnings);
        if pool.is_read_only() {
            status.warnings.push("it is read-only: volumes can be used for reading only".into());
        }
        let totals = pool.catalog().totals()?;
        status.volumes = totals.volumes;
        status.snapshots = totals.snapshots;
        status.provisioned = totals.provisioned;
        status.warnings.extend(totals.broken);
        status.warnings.extend(groups::incomplete(pool)?);
        status.warnings.extend_from_slice(pool.bin().broken());
        for native in crate::statics::names(&*self.medium, pool)? {
            if pool.catalog().contains(Shelf::Volumes, &native) {
                status.warnings.push(format!(
                    "static volume {native} is hidden by a created volume of that name"
                ));
            } else {
                status.volumes += 1;
            }
        }
        let usage = pool.host().filesystems.usage(pool.path())?;
        status.total = usage.total;
        status.free = usage.available;
        Ok(())
    }
}

/// A record that cannot be read is a finding; the volume's other faults are the call's.
pub(crate) fn unreadable(fault: Fault) -> Result<Vec<HealthEntry>> {
    if fault.kind() != Kind::Corrupt {
        return Err(fault);
    }
    Ok(vec![HealthEntry {
        status: HealthStatus::Inaccessible,
        reason: "RecordUnreadable",
        message: fault.to_string(),
    }])
}
