//! Snapshots: create, delete, get, list.

use super::{
    ControlEngine, CreateSnapshot, Inner, ListSnapshots, SnapshotPage, absent, accept, found,
    token::Listing,
};
use crate::claims::{Fingerprint, Key, Operation};
use larder_model::{
    Cx, Fault, RequestedName, Result, Secrets, SnapshotId,
    backend::Snapshots,
    id::quoted,
    volume::{Page, Snapshot, SnapshotSpec},
};

impl ControlEngine {
    /// CreateSnapshot: cuts the snapshot, or returns the one of that name and source.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (name, parameter), `NotFound` (source), `Conflict` (the name is
    /// taken by a snapshot of another volume), `Exhausted` (no space, or the wrong place),
    /// `Aborted`, `Unavailable`.
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        self.check_ready()?;
        let inner = &*self.0;
        inner.snapshots()?;
        let name: RequestedName = request.name.parse()?;
        let source = inner.handle(&request.source_volume_id, "source_volume_id")?;
        let source = larder_model::VolumeId(source);
        accept::map_size(&request.parameters, "parameters")?;
        inner.check_place(request.topology.as_ref())?;
        let fingerprint = Fingerprint::of(&(&request.name, &request.parameters, &request.topology));
        let spec = SnapshotSpec {
            id: SnapshotId::new(source.pool().clone(), name.native()),
            name,
            source,
            parameters: accept::own(&request.parameters),
            secrets: request.secrets,
        };
        let operation = Operation::new("create snapshot", fingerprint)
            .exclusive(Key::snapshot(&spec.id))
            .exclusive(Key::SnapshotName(spec.id.native().clone()))
            .shared(Key::volume(&spec.source));
        self.run(operation, |inner, cx| async move { inner.ensure_snapshot(spec, &cx).await }).await
    }

    /// DeleteSnapshot. One that is not there, or whose id cannot be ours, is a success.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (member of a group), `Precondition` (in use), `Aborted`,
    /// `Unavailable`.
    pub async fn delete_snapshot(&self, snapshot_id: &str, secrets: Secrets) -> Result<()> {
        self.check_ready()?;
        let inner = &*self.0;
        inner.snapshots()?;
        let Some(id) = found(inner.snapshot_id(snapshot_id))? else { return Ok(()) };
        let operation =
            Operation::new("delete snapshot", Fingerprint::of(&())).exclusive(Key::snapshot(&id));
        self.run(operation, |inner, cx| async move {
            let snapshots = inner.snapshots()?;
            cx.step("look whether it belongs to a group")?;
            let snapshot = found(snapshots.get_snapshot(&id).await)?;
            if let Some(group) = snapshot.and_then(|s| s.group)
                && inner.is_member(&id, &group).await
            {
                return Err(Fault::invalid(format!(
                    "delete snapshot {id} alone: it belongs to group {group}"
                ))
                .hint("delete the group"));
            }
            // Also asked when nothing was found: a deletion that was cut is completed.
            absent(snapshots.delete_snapshot(&id, &secrets, &cx).await)
        })
        .await
    }

    /// GetSnapshot, also of one that is not ready yet.
    ///
    /// # Errors
    /// `Unsupported`, `NotFound`, `Unavailable`.
    pub async fn get_snapshot(&self, snapshot_id: &str) -> Result<Snapshot> {
        self.check_ready()?;
        let snapshots = self.0.snapshots()?;
        let id = self.0.snapshot_id(snapshot_id)?;
        snapshots.get_snapshot(&id).await.map(|s| self.0.placed(s))
    }

    /// ListSnapshots. A filter that names nothing that exists gives an empty page.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (negative page), `Aborted` (token), `Unavailable`.
    pub async fn list_snapshots(&self, request: ListSnapshots) -> Result<SnapshotPage> {
        self.check_ready()?;
        let inner = &*self.0;
        let snapshots = inner.snapshots()?;
        let ListSnapshots { paging, source_volume_id, snapshot_id } = request;
        let listing = Listing::Snapshots { source: &source_volume_id };
        let page = Page {
            max: accept::page_size(paging.max_entries, "max_entries")?,
            after: listing.after(&paging.starting_token, &*inner.backend)?,
        };
        let none = SnapshotPage { snapshots: Vec::new(), next_token: String::new() };
        let source = match source_volume_id.as_str() {
            "" => None,
            id => match found(inner.volume_id(id))? {
                Some(id) => Some(id),
                None => return Ok(none),
            },
        };
        if !snapshot_id.is_empty() {
            let Some(id) = found(inner.snapshot_id(&snapshot_id))? else { return Ok(none) };
            let one = found(snapshots.get_snapshot(&id).await)?;
            let one = one.filter(|s| source.as_ref().is_none_or(|source| s.source == *source));
            let after = |s: &Snapshot| page.after.as_deref().is_none_or(|a| s.id.as_str() > a);
            let one = one.filter(after).map(|s| inner.placed(s));
            return Ok(SnapshotPage { snapshots: one.into_iter().collect(), ..none });
        }
        let listed = snapshots.list_snapshots(source.as_ref(), &page).await?;
        let last = listed.items.last().filter(|_| listed.more);
        let next_token = last.map(|s| listing.token(&s.id)).unwrap_or_default();
        let snapshots = listed.items.into_iter().map(|s| inner.placed(s)).collect();
        Ok(SnapshotPage { snapshots, next_token })
    }
}

impl Inner {
    pub(super) fn snapshots(&self) -> Result<&dyn Snapshots> {
        self.backend.provision().snapshots().ok_or_else(|| self.unsupported("use snapshots"))
    }

    /// The snapshot, with this driver's place where the backend named none.
    pub(super) fn placed(&self, mut snapshot: Snapshot) -> Snapshot {
        if snapshot.topology.is_empty() {
            snapshot.topology.extend(self.place());
        }
        snapshot
    }

    async fn ensure_snapshot(&self, spec: SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let snapshots = self.snapshots()?;
        cx.step("look for the snapshot")?;
        match found(snapshots.get_snapshot(&spec.id).await)? {
            // Compared before its source is looked for, which may be gone by now.
            Some(existing) => check_snapshot(&spec, &existing)?,
            None => {
                self.check_snapshot_elsewhere(&spec).await?;
                self.backend.provision().get_volume(&spec.source).await?;
            }
        }
        let snapshot = snapshots.ensure_snapshot(&spec, cx).await?;
        check_snapshot(&spec, &snapshot)?;
        Ok(self.placed(snapshot))
    }

    /// CSI names are unique per driver: refuses one that a snapshot in another pool has.
    async fn check_snapshot_elsewhere(&self, spec: &SnapshotSpec) -> Result<()> {
        let snapshots = self.snapshots()?;
        let others = self.backend.pools().into_iter().filter(|p| p != spec.id.pool());
        for pool in others {
            let id = SnapshotId::new(pool, spec.id.native().clone());
            // A pool that cannot be read now must not stop work in the others.
            let Ok(other) = snapshots.get_snapshot(&id).await else { continue };
            if other.name == spec.name.as_str() {
                return Err(taken(spec, &other));
            }
        }
        Ok(())
    }
}

fn check_snapshot(spec: &SnapshotSpec, existing: &Snapshot) -> Result<()> {
    if existing.source == spec.source && existing.name == spec.name.as_str() {
        return Ok(());
    }
    Err(taken(spec, existing))
}

fn taken(spec: &SnapshotSpec, existing: &Snapshot) -> Fault {
    Fault::conflict(format!(
        "create snapshot {} of volume {}: snapshot {} of volume {} has the name {}",
        spec.id,
        spec.source,
        existing.id,
        existing.source,
        quoted(&existing.name)
    ))
    .hint("choose another name")
}
