//! The control plane of the memory backend.

use super::{
    MemoryBackend,
    store::{Attached, Data, StoredVolume},
};
use async_trait::async_trait;
use larder_model::{
    Bytes, CapacityRange, Cx, Fault, FsType, Limits, Params, PoolName, Provision, Result, Secrets,
    Uses, VolumeCapability, VolumeId,
    backend::{
        Attach, ChangedBlocks, Expand, GetCapacity, Groups, Health, ListVolumes, Modify, Parameter,
        Snapshots,
    },
    volume::{Attributes, Capacity, ContentSource, FormatState, Listed, Page, Volume, VolumeSpec},
};
use std::collections::BTreeSet;

pub(super) static PARAMETERS: [Parameter; 2] = [
    Parameter { name: "fs", what: "The file system.", default: "ext4" },
    Parameter { name: "tier", what: "A word; can be changed.", default: "" },
];

fn context_of(spec: &VolumeSpec) -> Attributes {
    let mut context = Attributes::from([("medium".to_owned(), "memory".to_owned())]);
    context.extend(spec.parameters.get("fs").map(|fs| ("fs".to_owned(), fs.clone())));
    context
}

/// Says that a mutating call works on an object, until dropped.
pub(super) struct Busy<'a>(&'a MemoryBackend, Vec<String>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut store = self.0.store();
        for id in &self.1 {
            store.busy.remove(id);
        }
    }
}

impl MemoryBackend {
    /// The witness of the engines' claims.
    #[allow(clippy::panic, reason = "an engine that breaks a claim must fail its test")]
    pub(super) fn busy<'a>(&'a self, ids: impl IntoIterator<Item = &'a str>) -> Busy<'a> {
        let ids: BTreeSet<&str> = ids.into_iter().collect();
        let mut store = self.store();
        let overlap = ids.iter().find(|id| store.busy.contains(**id)).map(|id| (*id).to_owned());
        if let Some(id) = overlap {
            drop(store);
            panic!("two mutating calls work on {id} at a time");
        }
        let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        store.busy.extend(ids.iter().cloned());
        drop(store);
        Busy(self, ids)
    }

    /// Makes something in steps that a crash can cut: while it is made, it is unfinished.
    pub(super) async fn make<T>(
        &self,
        id: &str,
        cx: &Cx,
        insert: impl FnOnce(&mut super::Store) -> Result<T>,
    ) -> Result<T> {
        cx.step("record what is made")?;
        self.store().unfinished.insert(id.to_owned());
        let made = match cx.step("make it") {
            Ok(()) => insert(&mut self.store()),
            Err(crash) => return Err(crash),
        };
        if made.is_err() {
            self.store().discard(id);
            return made;
        }
        cx.step("record that it is made")?;
        self.store().unfinished.remove(id);
        made
    }

    pub(super) fn remove(&self, id: &str, cx: &Cx) -> Result<()> {
        cx.step("record the deletion")?;
        self.store().unfinished.insert(id.to_owned());
        cx.step("delete it")?;
        self.store().discard(id);
        Ok(())
    }

    pub(super) fn check_room(
        &self,
        store: &super::Store,
        pool: &PoolName,
        size: Bytes,
    ) -> Result<()> {
        let free = self.settings.pool_size.saturating_sub(store.provisioned(pool));
        if size > free {
            return Err(Fault::new(
                larder_model::Kind::Exhausted,
                format!("find {size} in pool {pool}: {free} is free"),
            ));
        }
        Ok(())
    }

    fn create(&self, store: &mut super::Store, spec: &VolumeSpec) -> Result<Volume> {
        let facts = &self.settings.facts;
        let (least, data) = match &spec.source {
            None => (Bytes::ZERO, Data::new()),
            Some(ContentSource::Volume(id)) => {
                let source = store.volume(id)?;
                (source.volume.capacity, source.data.clone())
            }
            Some(ContentSource::Snapshot(id)) => {
                store.reach(id.pool())?;
                let source = store.snapshots.get(id.as_str());
                let source =
                    source.ok_or_else(|| Fault::not_found(format!("find snapshot {id}")))?;
                (source.snapshot.size, source.data.clone())
            }
        };
        let min = facts.min_size.max(least);
        let capacity = spec.capacity.pick(facts.default_size, min, facts.size_step)?;
        self.check_room(store, spec.id.pool(), capacity)?;
        let volume = Volume {
            id: spec.id.clone(),
            name: spec.name.to_string(),
            capacity,
            context: context_of(spec),
            source: spec.source.clone(),
            topology: facts.scope.segments().into_iter().collect(),
            created: jiff::Timestamp::now(),
            is_static: false,
            ephemeral: spec.ephemeral,
            uses: Uses::of(&spec.capabilities),
            limits: Limits::NONE,
        };
        let stored = StoredVolume {
            volume: volume.clone(),
            block: spec.is_block(),
            parameters: spec.parameters.clone(),
            mutable: spec.mutable_parameters.clone(),
            data,
            format: FormatState::Unformatted,
            health: Vec::new(),
        };
        store.volumes.insert(spec.id.as_str().to_owned(), stored);
        Ok(volume)
    }

    pub(super) fn refuse_in_use(&self, id: &str) -> Result<()> {
        if self.store().in_use.iter().any(|i| i == id) {
            return Err(Fault::precondition(format!("delete {id}: it is in use")));
        }
        Ok(())
    }
}

/// Refuses parameters that no volume has. Returns nothing else, because nothing depends on them.
fn check(parameters: &Attributes) -> Result<()> {
    let mut params = Params::new(parameters);
    params.parse::<FsType>("fs")?;
    params.take("tier");
    params.finish()
}

/// One page of `items`, which are in the order of their ids.
pub(super) fn page<T>(items: impl Iterator<Item = (String, T)>, page: &Page) -> Listed<T> {
    let after = page.after.as_deref().unwrap_or_default();
    let mut items = items.filter(|(id, _)| id.as_str() > after).map(|(_, item)| item);
    let taken: Vec<T> = items.by_ref().take(page.max.unwrap_or(usize::MAX)).collect();
    Listed { items: taken, more: items.next().is_some() }
}

#[async_trait]
impl Provision for MemoryBackend {
    async fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
        let _busy = self.busy([spec.id.as_str()]);
        let work = async {
            let mut all = spec.parameters.clone();
            all.extend(spec.mutable_parameters.clone());
            check(&all)?;
            self.store().reach(spec.id.pool())?;
            if let Some(existing) = self.store().volumes.get(spec.id.as_str()) {
                let same = existing.parameters == spec.parameters
                    && existing.block == spec.is_block()
                    && spec.capacity.contains(existing.volume.capacity);
                return if same {
                    Ok(existing.volume.clone())
                } else {
                    Err(Fault::conflict(format!("create volume {}: it differs", spec.id)))
                };
            }
            self.make(spec.id.as_str(), cx, |store| self.create(store, spec)).await
        };
        self.injections.call("ensure_volume", work).await
    }

    async fn delete_volume(&self, id: &VolumeId, _secrets: &Secrets, cx: &Cx) -> Result<()> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            self.store().reach(id.pool())?;
            self.refuse_in_use(id.as_str())?;
            let is_static = self.store().volumes.get(id.as_str()).map(|v| v.volume.is_static);
            match is_static {
                None => Ok(()),
                Some(true) => Err(Fault::precondition(format!("delete volume {id}: not ours"))),
                Some(false) => self.remove(id.as_str(), cx),
            }
        };
        self.injections.call("delete_volume", work).await
    }

    async fn get_volume(&self, id: &VolumeId) -> Result<Volume> {
        let work = async {
            let store = self.store();
            if store.unfinished.contains(id.as_str()) {
                return Err(Fault::not_found(format!("find volume {id}")));
            }
            store.volume(id).map(|v| v.volume.clone())
        };
        self.injections.call("get_volume", work).await
    }

    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        check(parameters)
    }

    fn list(&self) -> Option<&dyn ListVolumes> {
        self.settings.abilities.list.then_some(self)
    }
    fn capacity(&self) -> Option<&dyn GetCapacity> {
        self.settings.abilities.capacity.then_some(self)
    }
    fn expand(&self) -> Option<&dyn Expand> {
        self.settings.abilities.expand.then_some(self)
    }
    fn modify(&self) -> Option<&dyn Modify> {
        self.settings.abilities.modify.then_some(self)
    }
    fn attach(&self) -> Option<&dyn Attach> {
        self.settings.abilities.attach.then_some(self)
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.settings.abilities.snapshots.then_some(self)
    }
    fn groups(&self) -> Option<&dyn Groups> {
        self.settings.abilities.groups.then_some(self)
    }
    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        self.settings.abilities.changed_blocks.then_some(self)
    }
    fn health(&self) -> Option<&dyn Health> {
        self.settings.abilities.health.then_some(self)
    }
    fn clones(&self) -> bool {
        self.settings.abilities.clones
    }
}

#[async_trait]
impl ListVolumes for MemoryBackend {
    async fn list_volumes(&self, request: &Page) -> Result<Listed<Volume>> {
        let work = async {
            let store = self.store();
            let seen =
                store.volumes.iter().filter(|(_, v)| store.reach(v.volume.id.pool()).is_ok());
            Ok(page(seen.map(|(id, v)| (id.clone(), v.volume.clone())), request))
        };
        self.injections.call("list_volumes", work).await
    }
}

#[async_trait]
impl GetCapacity for MemoryBackend {
    async fn capacity(&self, pool: &PoolName, _parameters: &Attributes) -> Result<Capacity> {
        let work = async {
            let store = self.store();
            store.reach(pool)?;
            let available = self.settings.pool_size.saturating_sub(store.provisioned(pool));
            Ok(Capacity { available, largest: Some(available), smallest: None })
        };
        self.injections.call("capacity", work).await
    }
}

#[async_trait]
impl Expand for MemoryBackend {
    async fn expand_volume(
        &self,
        id: &VolumeId,
        range: CapacityRange,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Bytes> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            let facts = &self.settings.facts;
            let now = self.store().volume(id)?.volume.capacity;
            if range.required <= now {
                return Ok(now);
            }
            let size = range.pick(now, facts.min_size, facts.size_step)?;
            self.check_room(&self.store(), id.pool(), size.saturating_sub(now))?;
            cx.step("record the new size")?;
            self.store().growing.insert(id.as_str().to_owned(), size);
            cx.step("grow it")?;
            let mut store = self.store();
            store.volume_mut(id)?.volume.capacity = size;
            store.growing.remove(id.as_str());
            Ok(size)
        };
        self.injections.call("expand_volume", work).await
    }
}

#[async_trait]
impl Modify for MemoryBackend {
    fn check_mutable(&self, parameters: &Attributes) -> Result<()> {
        let mut params = Params::new(parameters);
        params.take("tier");
        params.finish()
    }

    async fn modify_volume(
        &self,
        id: &VolumeId,
        parameters: &Attributes,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            self.check_mutable(parameters)?;
            self.store().volume(id)?;
            cx.step("write the parameters")?;
            self.store().volume_mut(id)?.mutable.extend(parameters.clone());
            Ok(())
        };
        self.injections.call("modify_volume", work).await
    }
}

#[async_trait]
impl Attach for MemoryBackend {
    async fn attach_volume(
        &self,
        id: &VolumeId,
        node: &str,
        capability: &VolumeCapability,
        readonly: bool,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<Attributes> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            self.store().volume(id)?;
            if !node.starts_with("node-") {
                return Err(Fault::not_found(format!("find node {node}")));
            }
            let block = capability.is_block();
            let wanted = Attached { mode: capability.mode, block, readonly };
            let context = Attributes::from([("slot".to_owned(), node.to_owned())]);
            let attached = self.store().attached.get(id.as_str()).cloned().unwrap_or_default();
            match attached.get(node) {
                Some(there) if *there == wanted => return Ok(context),
                Some(_) => {
                    return Err(Fault::conflict(format!(
                        "attach volume {id} to {node}: it is attached there otherwise"
                    )));
                }
                None => {}
            }
            if let Some(other) = attached.keys().next().filter(|_| !capability.mode.is_multi_node())
            {
                return Err(Fault::precondition(format!(
                    "attach volume {id} to {node}: it is attached to {other}"
                )));
            }
            cx.step("attach it")?;
            let mut store = self.store();
            let nodes = store.attached.entry(id.as_str().to_owned()).or_default();
            nodes.insert(node.to_owned(), wanted);
            Ok(context)
        };
        self.injections.call("attach_volume", work).await
    }

    async fn detach_volume(
        &self,
        id: &VolumeId,
        node: Option<&str>,
        _secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()> {
        let _busy = self.busy([id.as_str()]);
        let work = async {
            self.store().reach(id.pool())?;
            cx.step("detach it")?;
            let mut store = self.store();
            if let Some(nodes) = store.attached.get_mut(id.as_str()) {
                nodes.retain(|n, _| node.is_some_and(|node| node != n));
                if nodes.is_empty() {
                    store.attached.remove(id.as_str());
                }
            }
            Ok(())
        };
        self.injections.call("detach_volume", work).await
    }

    async fn attached_nodes(&self, id: &VolumeId) -> Result<Vec<String>> {
        let work = async {
            let store = self.store();
            store.volume(id)?;
            let nodes = store.attached.get(id.as_str());
            Ok(nodes.map(|n| n.keys().cloned().collect()).unwrap_or_default())
        };
        self.injections.call("attached_nodes", work).await
    }
}
