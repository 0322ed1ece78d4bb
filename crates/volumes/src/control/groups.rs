//! Group snapshots: several volumes cut at one point.

use super::{ControlEngine, CreateGroup, GroupMembers, Inner, absent, accept, found};
use crate::claims::{Fingerprint, Key, Operation};
use larder_model::{
    Cx, Fault, Kind, RequestedName, Result, SnapshotId, VolumeId,
    backend::Groups,
    volume::{GroupSnapshot, SnapshotSpec},
};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

impl ControlEngine {
    /// CreateVolumeGroupSnapshot: cuts all volumes at one point, or makes nothing. The group lives
    /// in the pool of the first volume in the order of ids.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (name, no volumes, parameter), `NotFound` (a source), `Conflict`
    /// (the name is taken by a group of other volumes), `Precondition` (they cannot be cut
    /// together), `Exhausted`, `Aborted`, `Unavailable`.
    pub async fn create_group(&self, request: CreateGroup) -> Result<GroupSnapshot> {
        self.check_ready()?;
        let inner = &*self.0;
        inner.groups()?;
        let name: RequestedName = request.name.parse()?;
        let sources = request.source_volume_ids.iter().map(|id| inner.volume_id(id));
        let sources: BTreeSet<VolumeId> = sources.collect::<Result<_>>()?;
        let Some(first) = sources.first() else {
            return Err(
                Fault::invalid("cut a group of no volumes").hint("name at least one source volume")
            );
        };
        accept::map_size(&request.parameters, "parameters")?;
        let id = SnapshotId::new(first.pool().clone(), name.native());
        let parameters = accept::own(&request.parameters);
        let fingerprint = Fingerprint::of(&(&request.name, &sources, &request.parameters));
        let members = sources.into_iter().map(|source| {
            let member = member_name(&name, &source)?;
            Ok(SnapshotSpec {
                id: SnapshotId::new(source.pool().clone(), member.native()),
                name: member,
                source,
                parameters: parameters.clone(),
                secrets: request.secrets.clone(),
            })
        });
        let members: Vec<SnapshotSpec> = members.collect::<Result<_>>()?;
        let mut operation = Operation::new("create group", fingerprint)
            .exclusive(Key::group(&id))
            .exclusive(Key::GroupName(id.native().clone()));
        for member in &members {
            operation =
                operation.exclusive(Key::snapshot(&member.id)).shared(Key::volume(&member.source));
        }
        self.run(operation, |inner, cx| async move {
            inner.ensure_group(&id, &name, &members, &cx).await
        })
        .await
    }

    /// DeleteVolumeGroupSnapshot, with all members. One that is not there is a success.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (the snapshots are not its members), `Precondition` (in use),
    /// `Aborted`, `Unavailable`.
    pub async fn delete_group(&self, request: GroupMembers) -> Result<()> {
        self.check_ready()?;
        let inner = &*self.0;
        inner.groups()?;
        let id = found(inner.handle(&request.group_snapshot_id, "group_snapshot_id"))?;
        whole_ids(&request)?;
        let Some(id) = id.map(SnapshotId) else { return Ok(()) };
        let ids = request.snapshot_ids.iter().map(|id| inner.snapshot_id(id));
        // What cannot be a snapshot of ours cannot be a member either: `None`.
        let ids: Option<BTreeSet<SnapshotId>> = found(ids.collect())?;
        let mut operation = Operation::new("delete group", Fingerprint::of(&request.snapshot_ids))
            .exclusive(Key::group(&id));
        for member in ids.iter().flatten() {
            operation = operation.exclusive(Key::snapshot(member));
        }
        self.run(operation, |inner, cx| async move {
            let groups = inner.groups()?;
            let Some(ids) = ids else {
                let exists = found(groups.get_group(&id).await)?;
                return exists.map_or(Ok(()), |_| Err(other_members(&id)));
            };
            let members: Vec<_> = ids.into_iter().collect();
            absent(groups.delete_group(&id, &members, &cx).await)
        })
        .await
    }

    /// GetVolumeGroupSnapshot.
    ///
    /// # Errors
    /// `Unsupported`, `Invalid` (the snapshots are not its members), `NotFound`, `Unavailable`.
    pub async fn get_group(&self, request: GroupMembers) -> Result<GroupSnapshot> {
        self.check_ready()?;
        let groups = self.0.groups()?;
        let id = SnapshotId(self.0.handle(&request.group_snapshot_id, "group_snapshot_id")?);
        whole_ids(&request)?;
        let group = groups.get_group(&id).await?;
        let wanted: BTreeSet<&str> = request.snapshot_ids.iter().map(String::as_str).collect();
        let members: BTreeSet<&str> = group.snapshots.iter().map(|s| s.id.as_str()).collect();
        if wanted != members {
            return Err(other_members(&id));
        }
        Ok(self.0.placed_group(group))
    }
}

impl Inner {
    fn groups(&self) -> Result<&dyn Groups> {
        self.backend.provision().groups().ok_or_else(|| self.unsupported("use group snapshots"))
    }

    /// Whether the snapshot `id`, which says that it belongs to `group`, does so: one whose group is
    /// gone could never be deleted. What cannot be found out counts as yes.
    pub(super) async fn is_member(&self, id: &SnapshotId, group: &str) -> bool {
        let (Ok(groups), Ok(group)) = (self.groups(), self.handle(group, "group_snapshot_id"))
        else {
            return true;
        };
        match groups.get_group(&SnapshotId(group)).await {
            Ok(group) => group.snapshots.iter().any(|member| member.id == *id),
            Err(fault) => fault.kind() != Kind::NotFound,
        }
    }

    fn placed_group(&self, mut group: GroupSnapshot) -> GroupSnapshot {
        group.snapshots = group.snapshots.into_iter().map(|s| self.placed(s)).collect();
        group
    }

    async fn ensure_group(
        &self,
        id: &SnapshotId,
        name: &RequestedName,
        members: &[SnapshotSpec],
        cx: &Cx,
    ) -> Result<GroupSnapshot> {
        let groups = self.groups()?;
        let sources = |group: &GroupSnapshot| {
            group.snapshots.iter().map(|s| s.source.clone()).collect::<BTreeSet<_>>()
        };
        let wanted: BTreeSet<_> = members.iter().map(|m| m.source.clone()).collect();
        let taken = |other: &SnapshotId| {
            Fault::conflict(format!(
                "create group {id}: group {other} of other volumes has its name"
            ))
            .hint("choose another name")
        };
        cx.step("look for the group")?;
        match found(groups.get_group(id).await)? {
            // Compared before its sources are looked for, which may be gone by now.
            Some(existing) if sources(&existing) != wanted => return Err(taken(&existing.id)),
            Some(_) => {}
            None => {
                for pool in self.backend.pools().into_iter().filter(|p| p != id.pool()) {
                    let other = SnapshotId::new(pool, id.native().clone());
                    // A pool that cannot be read now must not stop work in the others.
                    if groups.get_group(&other).await.is_ok() {
                        return Err(taken(&other));
                    }
                }
                for member in members {
                    self.backend.provision().get_volume(&member.source).await?;
                }
            }
        }
        let group = groups.ensure_group(id, name.as_str(), members, cx).await?;
        if sources(&group) != wanted {
            return Err(taken(&group.id));
        }
        Ok(self.placed_group(group))
    }
}

/// The name of a group's member: a readable head of the group's name, and a digest of group and
/// source, so that it is the same each time and nobody else's.
fn member_name(group: &RequestedName, source: &VolumeId) -> Result<RequestedName> {
    let native = group.native();
    let head: String = native.as_str().chars().take(46).collect();
    let digest = Sha256::new()
        .chain_update(group.as_str())
        .chain_update([0xff]) // Never part of UTF-8, so that the two cannot run together.
        .chain_update(source.as_str())
        .finalize();
    let digest: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{}-{digest}", head.trim_end_matches(['-', '.'])).parse()
}

/// None at all are refused for a group that exists, since they are not its members.
fn whole_ids(request: &GroupMembers) -> Result<()> {
    if request.snapshot_ids.iter().any(String::is_empty) {
        return Err(Fault::invalid("find a group: one of snapshot_ids is empty")
            .hint("name all of its snapshots in snapshot_ids"));
    }
    Ok(())
}

fn other_members(id: &SnapshotId) -> Fault {
    Fault::invalid(format!("use group {id}: snapshot_ids are not its members"))
        .hint("name exactly the snapshots that it was created with")
}
