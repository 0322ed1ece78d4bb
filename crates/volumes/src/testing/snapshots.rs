//! Snapshots, groups, changed blocks and health of the memory backend.

use super::{
    BLOCK, MemoryBackend,
    provision::page,
    store::{Store, StoredSnapshot},
};
use async_trait::async_trait;
use larder_model::{
    Cx, Fault, Params, Result, Secrets, SnapshotId, VolumeId,
    backend::{ChangedBlocks, FoundExtents, Groups, Health, Snapshots},
    volume::{Extent, GroupSnapshot, HealthEntry, Listed, Page, Snapshot, SnapshotSpec},
};
use std::collections::BTreeSet;

impl MemoryBackend {
    fn cut(
        &self,
        store: &mut Store,
        spec: &SnapshotSpec,
        group: Option<&SnapshotId>,
    ) -> Result<Snapshot> {
        Params::new(&spec.parameters).finish()?;
        let source = store.volume(&spec.source)?;
        let (size, data) = (source.volume.capacity, source.data.clone());
        self.check_room(store, spec.id.pool(), size)?;
        let snapshot = Snapshot {
            id: spec.id.clone(),
            name: spec.name.to_string(),
            source: spec.source.clone(),
            size,
            created: jiff::Timestamp::now(),
            ready: true,
            group: group.map(ToString::to_string),
            topology: self.settings.facts.scope.segments().into_iter().collect(),
        };
        let stored = StoredSnapshot { snapshot: snapshot.clone(), data };
        store.snapshots.insert(spec.id.as_str().to_owned(), stored);
        Ok(snapshot)
    }
}

#[async_trait]
impl Snapshots for MemoryBackend {
    async fn ensure_snapshot(&self, spec: &SnapshotSpec, cx: &Cx) -> Result<Snapshot> {
        let _busy = self.busy([spec.id.as_str()]);
        let work = async {
            self.store().reach(spec.id.pool())?;
            if let Some(existing) = self.store().snapshots.get(spec.id.as_str()) {
                return if existing.snapshot.source == spec.source {
                    Ok(existing.snapshot.clone())
                } else {
                    Err(Fault::conflict(format!("create snapshot {}: it differs", spec.id)))
                };
            }
            self.make(spec.id.as_str(), cx, |store| self.cut(store, spec, None)).await
        };
        self.injections.call("ensure_snapshot", work).await
    }

    async fn delete_snapshot(&self, id: &SnapshotId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            self.store().reach(id.pool())?;
            self.refuse_in_use(id.as_str())?;
            if !self.store().snapshots.contains_key(id.as_str()) {
                return Ok(());
            }
            self.remove(id.as_str(), cx)
        };
        self.injections.call("delete_snapshot", work).await
    }

    async fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let work = async {
            let store = self.store();
            store.reach(id.pool())?;
            let found = store
                .snapshots
                .get(id.as_str())
                .filter(|_| !store.unfinished.contains(id.as_str()));
            let found = found.ok_or_else(|| Fault::not_found(format!("find snapshot {id}")))?;
            Ok(found.snapshot.clone())
        };
        self.injections.call("get_snapshot", work).await
    }

    async fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        request: &Page,
    ) -> Result<Listed<Snapshot>> {
        let work = async {
            let store = self.store();
            let seen = store.snapshots.iter().filter(|(_, s)| {
                source.is_none_or(|source| s.snapshot.source == *source)
                    && store.reach(s.snapshot.id.pool()).is_ok()
            });
            Ok(page(seen.map(|(id, s)| (id.clone(), s.snapshot.clone())), request))
        };
        self.injections.call("list_snapshots", work).await
    }
}

#[async_trait]
impl Groups for MemoryBackend {
    async fn ensure_group(
        &self,
        id: &SnapshotId,
        _name: &str,
        members: &[SnapshotSpec],
        cx: &Cx,
    ) -> Result<GroupSnapshot> {
        let ids = members.iter().map(|m| m.id.as_str());
        let _busy = self.busy(ids.chain([id.as_str()]));
        let work = async {
            self.store().reach(id.pool())?;
            if let Some(existing) = self.store().groups.get(id.as_str()) {
                return Ok(existing.clone());
            }
            if members.iter().any(|m| m.id.pool() != id.pool()) {
                return Err(Fault::precondition(format!(
                    "cut group {id}: its volumes are in several pools"
                )));
            }
            self.make(id.as_str(), cx, |store| {
                for member in members {
                    store.volume(&member.source)?;
                }
                let cut = members.iter().map(|m| self.cut(store, m, Some(id)));
                let group = GroupSnapshot {
                    id: id.clone(),
                    snapshots: cut.collect::<Result<_>>()?,
                    created: jiff::Timestamp::now(),
                    ready: true,
                };
                store.groups.insert(id.as_str().to_owned(), group.clone());
                Ok(group)
            })
            .await
        };
        self.injections.call("ensure_group", work).await
    }

    async fn delete_group(&self, id: &SnapshotId, members: &[SnapshotId], cx: &Cx) -> Result<()> {
        let ids = members.iter().map(|m| m.as_str());
        let _busy = self.busy(ids.chain([id.as_str()]));
        let work = async {
            self.store().reach(id.pool())?;
            self.refuse_in_use(id.as_str())?;
            let Some(group) = self.store().groups.get(id.as_str()).cloned() else {
                return Ok(());
            };
            let recorded: BTreeSet<_> = group.snapshots.iter().map(|s| &s.id).collect();
            if recorded != members.iter().collect() {
                return Err(Fault::invalid(format!("delete group {id}: other members")));
            }
            self.remove(id.as_str(), cx)
        };
        self.injections.call("delete_group", work).await
    }

    async fn get_group(&self, id: &SnapshotId) -> Result<GroupSnapshot> {
        let work = async {
            let store = self.store();
            store.reach(id.pool())?;
            let found =
                store.groups.get(id.as_str()).filter(|_| !store.unfinished.contains(id.as_str()));
            found.cloned().ok_or_else(|| Fault::not_found(format!("find group {id}")))
        };
        self.injections.call("get_group", work).await
    }
}

#[async_trait]
impl ChangedBlocks for MemoryBackend {
    async fn extents(
        &self,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
        offset: u64,
        max: usize,
    ) -> Result<FoundExtents> {
        let work = async {
            let store = self.store();
            let find = |id: &SnapshotId| {
                store.reach(id.pool())?;
                let found = store.snapshots.get(id.as_str());
                found.ok_or_else(|| Fault::not_found(format!("find snapshot {id}")))
            };
            let target = find(target)?;
            let base = base.map(find).transpose()?;
            let changed = target
                .data
                .iter()
                .filter(|(number, tag)| base.is_none_or(|base| base.data.get(number) != Some(tag)));
            let extents = changed.map(|(n, _)| Extent { offset: n * BLOCK, length: BLOCK });
            let wanted = extents.filter(|e| e.offset + e.length > offset).take(max);
            let extents: Vec<_> = wanted.collect();
            let size = target.snapshot.size;
            let next = match extents.last() {
                Some(last) if extents.len() == max => last.offset + last.length,
                _ => size.get(),
            };
            Ok(FoundExtents { extents, size, next })
        };
        self.injections.call("extents", work).await
    }
}

#[async_trait]
impl Health for MemoryBackend {
    async fn volume_health(&self, id: &VolumeId) -> Result<Vec<HealthEntry>> {
        let work = async { self.store().volume(id).map(|v| v.health.clone()) };
        self.injections.call("volume_health", work).await
    }
}
