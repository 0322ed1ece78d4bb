//! Groups: snapshots of several volumes that are cut at one moment, made and deleted as a whole.
//!
//! ```text
//! creating/group-g/            record.json, members/s1/…, members/s2/…       nobody sees it
//!        │ one rename: the commit
//! groups/g/                    the group exists, durably
//!        │ a rename for each member, finished by the next start if need be
//! snapshots/s1/, snapshots/s2/ snapshots like others; their records name the group
//! ```
//! Deletion is the mirror image: `groups/g` is renamed to `deleting/group-g.…` (the commit), and what
//! its record there names follows. So a crash at any point leaves all members or none, and the
//! folder that tells which is the one that was renamed.
//!
//! A member is deleted with its group only when it has the id that the group's record names.

mod disk;
mod look;
mod record;

pub(crate) use disk::{members_in, mend};
pub(crate) use look::incomplete;
pub use look::{GroupItem, GroupMember};
pub(crate) use record::GroupRecord;

use crate::{
    LocalBackend,
    backend::Core,
    build::{self, build},
    entry::{Entry, SnapshotEntry},
    layout::{MEMBERS, RECORD, Shelf},
    medium::{Medium, Origin, Part},
    pool::{Pool, text_of},
    snapshots::new_record,
};
use async_trait::async_trait;
use larder_host::durable;
use larder_model::{
    Bytes, Cx, Fault, Kind, Native, Result, SnapshotId,
    backend::Groups,
    volume::{GroupSnapshot, SnapshotSpec},
};
use record::Member;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The id of a member's group, as callers know it: the record names no pool, so that a pool can be
/// renamed in the configuration.
pub(crate) fn shown(member: &SnapshotId, group: &str) -> String {
    match group.parse::<Native>() {
        Ok(native) => SnapshotId::new(member.pool().clone(), native).to_string(),
        Err(_) => group.to_owned(),
    }
}

/// A group that is asked for.
struct Wanted<'a> {
    id: &'a SnapshotId,
    name: &'a str,
    members: &'a [SnapshotSpec],
}

impl<M: Medium> Core<M> {
    fn ensure_group(&self, wanted: &Wanted<'_>, cx: &Cx) -> Result<GroupSnapshot> {
        let Wanted { id, members, .. } = wanted;
        let names: BTreeSet<_> = members.iter().map(|m| m.id.native()).collect();
        if members.is_empty() || names.len() != members.len() {
            return Err(Fault::invalid(format!("cut group {id}: it needs members, each once")));
        }
        let pool = self.places.get(id.pool())?;
        let _claim =
            self.claims.alone(Shelf::Groups, id.native(), format!("cut group {id}"), cx)?;
        let _lock = pool.shared_lock(Shelf::Groups, id.native(), "use", true)?;
        let work = || {
            let mut held = Vec::new();
            for member in *members {
                let native = member.id.native();
                let what = format!("cut snapshot {} of group {id}", member.id);
                let claim = self.claims.alone(Shelf::Snapshots, native, what, cx)?;
                held.push((claim, pool.shared_lock(Shelf::Snapshots, native, "use", true)?));
            }
            self.with_room(&pool, cx, || self.cut_group_or_match(&pool, wanted, cx))
        };
        work().map_err(|fault| pool.explain(fault).during(format!("cut group {id}")))
    }

    fn cut_group_or_match(
        &self,
        pool: &Pool,
        wanted: &Wanted<'_>,
        cx: &Cx,
    ) -> Result<GroupSnapshot> {
        let native = wanted.id.native();
        if let Some(record) = self.group_record(pool, native)? {
            if let Some(what) = difference(&record, wanted) {
                return Err(Fault::conflict(format!("it exists, but {what}"))
                    .hint("choose another name, or delete the other one"));
            }
            disk::show_members(pool, native, cx)?;
            return self.describe_group(pool, native, &record);
        }
        pool.refuse_read_only()?;
        // What an earlier deletion of a group of this name could not remove has its members' names.
        disk::raze(&*self.medium, pool, native, cx)?;
        self.check_group(pool, wanted)?;
        let mut reading = Vec::new();
        let mut volumes = Vec::new();
        for member in wanted.members {
            let source = member.source.native();
            let what = format!("cut volume {} as snapshot {}", member.source, member.id);
            reading.push((
                self.claims.together(Shelf::Volumes, source, what, cx)?,
                pool.shared_lock(Shelf::Volumes, source, "use", false)?,
            ));
            let volume = self
                .lookup(pool, source)?
                .ok_or_else(|| Fault::not_found(format!("find volume {}", member.source)))?;
            self.refuse_formatting(pool, &volume)?;
            volumes.push(volume);
        }
        let _promise = pool.promise(Bytes::ZERO, Bytes::ZERO)?;
        let record = build(&*self.medium, pool, native, cx, |site| {
            self.cut_members(pool, site, wanted, &volumes, cx)
        })?;
        let shown = disk::show_members(pool, native, cx)
            .and_then(|()| self.describe_group(pool, native, &record));
        match shown {
            Err(fault) if !fault.is_simulated_crash() => {
                Err(match disk::raze(&*self.medium, pool, native, cx) {
                    Ok(()) => fault,
                    Err(second) => fault.during(format!("(and could not clean up: {second})")),
                })
            }
            shown => shown,
        }
    }

    /// Makes everything of the group in its building site, but its own record.
    fn cut_members(
        &self,
        pool: &Pool,
        site: &Path,
        wanted: &Wanted<'_>,
        volumes: &[Entry],
        cx: &Cx,
    ) -> Result<GroupRecord> {
        let folder = site.join(MEMBERS);
        durable::create_dir(&folder, 0o700)?;
        let mut sites: Vec<PathBuf> = Vec::new();
        for member in wanted.members {
            let site = folder.join(member.id.native());
            durable::create_dir(&site, 0o700)?;
            sites.push(site);
        }
        let parts: Vec<_> =
            volumes.iter().zip(&sites).map(|(volume, folder)| Part { volume, folder }).collect();
        cx.step("cut the data of all members")?;
        let created = jiff::Timestamp::now();
        let facts = self.medium.cut_together(pool, &parts, cx)?;
        if facts.len() != parts.len() {
            return Err(Fault::internal("cut the data of all members: some are missing"));
        }
        cx.step("write the members' records")?;
        let mut members = Vec::new();
        for ((spec, part), facts) in wanted.members.iter().zip(&parts).zip(facts) {
            self.refuse_changed(&Origin::Volume(pool.clone(), part.volume.clone()))?;
            let mut record = new_record(spec, part.volume, facts, created);
            record.group = Some(wanted.id.native().to_string());
            durable::write_new(&part.folder.join(RECORD), &text_of(&record)?)?;
            durable::sync_dir(part.folder)?;
            let (native, source) = (spec.id.native().clone(), record.source);
            members.push(Member { native, id: record.id, source });
        }
        durable::sync_dir(&folder)?;
        Ok(GroupRecord::new(wanted.name, created, members))
    }

    /// Refuses what cannot be cut, before anything is made.
    fn check_group(&self, pool: &Pool, wanted: &Wanted<'_>) -> Result<()> {
        let Wanted { id, members, .. } = wanted;
        for member in *members {
            if member.source.pool() != pool.name() || member.id.pool() != pool.name() {
                return Err(Fault::precondition(format!(
                    "cut volume {} together with others: its pool is not {}",
                    member.source,
                    pool.name()
                ))
                .hint("make one group for each pool"));
            }
            if pool.catalog().contains(Shelf::Snapshots, member.id.native()) {
                return Err(Fault::conflict(format!("snapshot {} exists", member.id))
                    .hint("choose another name for the group, or delete that snapshot"));
            }
            self.refuse_twins(Shelf::Snapshots, pool, member.id.native(), |_| Ok(true))?;
            self.medium.check_snapshot_parameters(&member.parameters)?;
        }
        self.refuse_twins(Shelf::Groups, pool, id.native(), |_| Ok(true))
    }

    fn delete_group(&self, id: &SnapshotId, members: &[SnapshotId], cx: &Cx) -> Result<()> {
        let during = |fault: Fault| fault.during(format!("delete group {id}"));
        let native = id.native();
        let pool = self.places.get(id.pool()).map_err(during)?;
        let _claim = self.claims.alone(Shelf::Groups, native, format!("delete group {id}"), cx)?;
        let lock = pool.shared_lock(Shelf::Groups, native, "use", true)?;
        let mut held = Vec::new();
        for member in members.iter().filter(|member| member.pool() == pool.name()) {
            let native = member.native();
            let what = format!("delete snapshot {member} of group {id}");
            let claim = self.claims.alone(Shelf::Snapshots, native, what, cx)?;
            held.push((claim, native, pool.shared_lock(Shelf::Snapshots, native, "use", true)?));
        }
        let delete = || match self.group_record(&pool, native)? {
            Some(record) => {
                self.refuse_others(&pool, id, &record, members)?;
                // A commit that could not be taken back is finished first: one way to delete.
                disk::show_members(&pool, native, cx)?;
                disk::raze(&*self.medium, &pool, native, cx)
            }
            None => {
                disk::raze(&*self.medium, &pool, native, cx)?;
                self.raze_orphans(&pool, native, members, cx)
            }
        };
        delete().map_err(|fault| during(pool.explain(fault)))?;
        for (_claim, native, lock) in held {
            pool.forget_locks(Shelf::Snapshots, native, lock);
        }
        pool.forget_locks(Shelf::Groups, native, lock);
        Ok(())
    }

    /// Refuses snapshots that are not its members, and members that are left out. What somebody
    /// removed by hand need not be named: nobody sees it any more.
    fn refuse_others(
        &self,
        pool: &Pool,
        group: &SnapshotId,
        record: &GroupRecord,
        named: &[SnapshotId],
    ) -> Result<()> {
        let refusal = || {
            Fault::invalid("the snapshots named are not its members")
                .hint("name exactly the snapshots that it was created with")
        };
        let mut others: BTreeSet<_> = named.iter().cloned().collect();
        let under_way = disk::is_under_way(pool, group.native());
        for member in &record.members {
            // A member whose record cannot be read is not proven to be one.
            let found = pool.snapshot(&member.native)?;
            let is_there = under_way || found.is_some_and(|found| found.record.id == member.id);
            let id = SnapshotId::new(pool.name().clone(), member.native.clone());
            if !others.remove(&id) && is_there {
                return Err(refusal());
            }
        }
        if others.is_empty() { Ok(()) } else { Err(refusal()) }
    }

    /// Whether `snapshot`, which says that it belongs to the group called `group`, does so.
    pub(crate) fn is_member(
        &self,
        pool: &Pool,
        group: &str,
        snapshot: &SnapshotEntry,
    ) -> Result<bool> {
        let Ok(native) = group.parse::<Native>() else { return Ok(true) };
        let is_it = |member: &Member| {
            member.native == *snapshot.id.native() && member.id == snapshot.record.id
        };
        let record = self.group_record(pool, &native)?;
        Ok(record.is_some_and(|record| record.members.iter().any(is_it)))
    }

    /// Deletes what calls itself a member of a group that does not exist, because its folder was
    /// removed by hand: nothing else would.
    fn raze_orphans(
        &self,
        pool: &Pool,
        group: &Native,
        members: &[SnapshotId],
        cx: &Cx,
    ) -> Result<()> {
        for member in members.iter().filter(|member| member.pool() == pool.name()) {
            let found = pool.snapshot(member.native())?;
            if found.is_some_and(|s| s.record.group.as_deref() == Some(group.as_str())) {
                build::raze(&*self.medium, pool, Shelf::Snapshots, member.native(), cx)?;
            }
        }
        Ok(())
    }

    fn get_group(&self, id: &SnapshotId) -> Result<GroupSnapshot> {
        let pool = self.places.get(id.pool())?;
        let record = self
            .group_record(&pool, id.native())?
            .ok_or_else(|| Fault::not_found(format!("find group {id}")))?;
        self.describe_group(&pool, id.native(), &record)
    }

    fn group_record(&self, pool: &Pool, native: &Native) -> Result<Option<GroupRecord>> {
        let record = pool.catalog().get::<GroupRecord>(native)?;
        pool.refuse_false_absence(record.is_some())?;
        Ok(record)
    }

    fn describe_group(
        &self,
        pool: &Pool,
        native: &Native,
        record: &GroupRecord,
    ) -> Result<GroupSnapshot> {
        let id = SnapshotId::new(pool.name().clone(), native.clone());
        let mut snapshots = Vec::new();
        for member in &record.members {
            match pool.snapshot(&member.native)? {
                Some(entry) if entry.record.id == member.id => {
                    snapshots.push(self.describe_snapshot(&entry));
                }
                _ if disk::is_under_way(pool, native) => {
                    return Err(Fault::unavailable(format!("find group {id}: it is being cut"))
                        .hint("ask again"));
                }
                _ => {
                    return Err(Fault::new(
                        Kind::Corrupt,
                        format!("find group {id}: its snapshot {} is missing", member.native),
                    )
                    .hint("somebody removed it by hand; delete the group"));
                }
            }
        }
        Ok(GroupSnapshot { id, snapshots, created: record.created, ready: true })
    }
}

/// In what the group is not what is asked for now; None: it is.
fn difference(record: &GroupRecord, wanted: &Wanted<'_>) -> Option<String> {
    if record.name != wanted.name {
        return Some(format!("it was asked for as {:?}", record.name));
    }
    let has: BTreeSet<_> = record.members.iter().map(|m| (&m.native, &m.source)).collect();
    let asked = wanted.members.iter().map(|m| (m.id.native(), m.source.native()));
    (has != asked.collect()).then(|| "it is of other volumes".to_owned())
}

#[async_trait]
impl<M: Medium> Groups for LocalBackend<M> {
    async fn ensure_group(
        &self,
        id: &SnapshotId,
        name: &str,
        members: &[SnapshotSpec],
        cx: &Cx,
    ) -> Result<GroupSnapshot> {
        let (id, name, members, cx) = (id.clone(), name.to_owned(), members.to_vec(), cx.clone());
        self.run(move |core| {
            core.ensure_group(&Wanted { id: &id, name: &name, members: &members }, &cx)
        })
        .await
    }
    async fn delete_group(&self, id: &SnapshotId, members: &[SnapshotId], cx: &Cx) -> Result<()> {
        let (id, members, cx) = (id.clone(), members.to_vec(), cx.clone());
        self.run(move |core| core.delete_group(&id, &members, &cx)).await
    }
    async fn get_group(&self, id: &SnapshotId) -> Result<GroupSnapshot> {
        let id = id.clone();
        self.run(move |core| core.get_group(&id)).await
    }
}
