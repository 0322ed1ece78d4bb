//! Health of volumes as the control plane sees it.

use super::{ControlEngine, HealthPage, Inner, Paging, VolumeHealth, accept, token::Listing};
use larder_model::{
    Fault, Handle, Kind, Result, VolumeId,
    backend::Health,
    volume::{HealthEntry, HealthStatus, Page},
};
use std::collections::HashSet;

/// Volumes looked at per step of a listing.
const STEP: usize = 64;

impl ControlEngine {
    /// ControllerGetVolumeHealth.
    ///
    /// # Errors
    /// `Unsupported`, `NotFound`, `Unavailable`.
    pub async fn volume_health(&self, volume_id: &str) -> Result<VolumeHealth> {
        self.check_ready()?;
        let health = self.0.health()?;
        let id = self.0.volume_id(volume_id)?;
        let findings = health.volume_health(&id).await?;
        Ok(VolumeHealth { volume_id: id, findings: distinct(findings) })
    }

    /// As [`Self::volume_health`] of each, in their order: what a page of a list tells of its volumes.
    ///
    /// # Errors
    /// `Unsupported`, `Unavailable`; those of a single volume are in its place.
    pub async fn volumes_health(&self, ids: &[VolumeId]) -> Result<Vec<Result<Vec<HealthEntry>>>> {
        self.check_ready()?;
        let found = self.0.health()?.volumes_health(ids).await;
        Ok(found.into_iter().map(|found| found.map(distinct)).collect())
    }

    /// ControllerListVolumeHealth: only volumes that something is wrong with. A volume whose health
    /// cannot be told is among them.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (negative page), `Aborted` (token), `Unavailable`.
    pub async fn list_volume_health(&self, paging: Paging) -> Result<HealthPage> {
        self.check_ready()?;
        let inner = &*self.0;
        let health = inner.health()?;
        let list = inner.backend.provision().list();
        let list = list.ok_or_else(|| inner.unsupported("list volumes"))?;
        let max = accept::page_size(paging.max_entries, "max_entries")?.unwrap_or(usize::MAX);
        let mut after = Listing::Health.after(&paging.starting_token, &*inner.backend)?;
        let mut volumes: Vec<VolumeHealth> = Vec::new();
        loop {
            let page = Page { after: after.take(), max: Some(STEP) };
            let listed = list.list_volumes(&page).await?;
            let ids: Vec<VolumeId> = listed.items.into_iter().map(|v| v.id).collect();
            let more = listed.more.then(|| ids.last().map(|id| id.0.clone())).flatten();
            let findings = health.volumes_health(&ids).await.into_iter().map(told);
            for (found, volume_id) in findings.zip(ids) {
                if found.is_empty() {
                    continue;
                }
                if volumes.len() == max {
                    // One more than fits: the page ends after the last that did.
                    let last: Option<&Handle> = volumes.last().map(|v| &v.volume_id.0);
                    let next_token = last.map(|l| Listing::Health.token(l)).unwrap_or_default();
                    return Ok(HealthPage { volumes, next_token });
                }
                volumes.push(VolumeHealth { volume_id, findings: found });
            }
            match more {
                Some(last) => after = Some(last.as_str().to_owned()),
                None => return Ok(HealthPage { volumes, next_token: String::new() }),
            }
        }
    }
}

impl Inner {
    fn health(&self) -> Result<&dyn Health> {
        let health = self.backend.provision().health();
        health.ok_or_else(|| self.unsupported("tell the health of volumes"))
    }
}

/// The findings of one volume in a listing, where a fault must not hide the other volumes.
fn told(found: Result<Vec<HealthEntry>>) -> Vec<HealthEntry> {
    match found {
        Ok(findings) => distinct(findings),
        // Deleted meanwhile.
        Err(fault) if fault.kind() == Kind::NotFound => Vec::new(),
        Err(fault) => vec![unknown(&fault)],
    }
}

fn unknown(fault: &Fault) -> HealthEntry {
    let (status, reason) = match fault.kind() {
        Kind::Unavailable => (HealthStatus::Inaccessible, "StorageUnavailable"),
        _ => (HealthStatus::Degraded, "HealthUnknown"),
    };
    HealthEntry { status, reason, message: fault.to_string() }
}

/// CSI wants status and reason to be unique together; the first message stays.
fn distinct(mut findings: Vec<HealthEntry>) -> Vec<HealthEntry> {
    let mut seen = HashSet::new();
    findings.retain(|f| seen.insert((f.status, f.reason)));
    findings
}
