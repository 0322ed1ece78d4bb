//! Groups of snapshots that lack one, and snapshots that lack their group.

use super::{
    contents::{self, plain},
    finding::{Finding, Severity, Sort},
    scene::{DriverScene, PoolScene, Scene},
};
use larder_model::Result;
use larder_pool::look::{GroupItem, GroupMember, Item, Look};
use larder_pool::record::SnapshotRecord;
use std::path::Path;

pub(crate) const LACKS: Sort = Sort {
    name: "group-without-member",
    severity: Severity::Critical,
    why: "what was cut at one moment cannot be restored as a whole any more; the other snapshots can",
};
pub(crate) const UNREADABLE: Sort = Sort {
    name: "group-record-unreadable",
    severity: Severity::Critical,
    why: "nothing tells which snapshots belong to the group: they can be used, but neither it nor they \
          can be deleted, and its name stays taken",
};
pub(crate) const ALONE: Sort = Sort {
    name: "member-without-group",
    severity: Severity::Warning,
    why: "it says that it belongs to a group which does not know it, so no list of that group has it",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (driver, pool, look) in scene.pools() {
        let about = |finding: Finding| finding.of(driver.name()).in_pool(&pool.name);
        for group in look.groups.iter().filter(|g| !driver.is_busy_with(g.native.as_str())) {
            found.extend(of_group(pool, look, group).map(about));
            found.extend(group.strays.iter().map(|path| about(stray(pool, group, path))));
        }
        let alone = look.snapshots.iter().filter_map(|item| alone(driver, pool, look, item));
        found.extend(alone.map(about));
    }
    Ok(found)
}

fn of_group(pool: &PoolScene, look: &Look, group: &GroupItem) -> Option<Finding> {
    let id = pool.id(group.native.as_str());
    let members = match &group.members {
        Ok(members) => members,
        Err(fault) => {
            let record = group.folder.join("record.json");
            let what = format!("group {id}: cannot {}", plain(fault));
            let mend = format!(
                "restore it from a backup; or, where the group is not needed as a whole any more, move \
                 {} out of the pool, restart the driver, and larder snapshot group rm {id} deletes its \
                 snapshots",
                group.folder.display()
            );
            return Some(Finding::new(&UNREADABLE, &record, what).by_hand(mend));
        }
    };
    let is_there = |member: &GroupMember| {
        look.snapshots.iter().filter(|item| item.native == member.native).any(|item| {
            // What is wrong with its record is a finding of its own.
            !matches!(&item.record, Some(Ok(record)) if record.id != member.id)
        })
    };
    let missing = members.iter().filter(|member| !is_there(member));
    let missing: Vec<_> = missing.map(|member| member.native.as_str()).collect();
    if missing.is_empty() || group.under_way {
        return None;
    }
    let what = format!("group {id} lacks its snapshot {}", missing.join(", "));
    let mend = format!(
        "put the folder back into {} from a backup; or, when the rest is not needed any more either, \
         larder snapshot group rm {id}",
        pool.config.path.join("snapshots").display()
    );
    Some(Finding::new(&LACKS, &group.folder, what).by_hand(mend))
}

fn stray(pool: &PoolScene, group: &GroupItem, path: &Path) -> Finding {
    let id = pool.id(group.native.as_str());
    let what = format!("it lies in the folder of group {id} and is no part of it");
    Finding::new(&contents::STRAY, path, what)
        .by_hand("look what it is, and move it out of the pool")
}

fn alone(
    driver: &DriverScene,
    pool: &PoolScene,
    look: &Look,
    item: &Item<SnapshotRecord>,
) -> Option<Finding> {
    let record = item.record.as_ref()?.as_ref().ok()?;
    let name = record.group.as_deref()?;
    let knows = |group: &GroupItem| match &group.members {
        Ok(members) => members.iter().any(|m| m.native == item.native && m.id == record.id),
        // Nobody can say.
        Err(_) => true,
    };
    let group = look.groups.iter().find(|group| group.native.as_str() == name);
    let is_busy = driver.is_busy_with(name) || driver.is_busy_with(item.native.as_str());
    if group.is_some_and(knows) || is_busy || is_on_its_way(look, name) {
        return None;
    }
    let id = pool.id(item.native.as_str());
    let what = format!(
        "snapshot {id} belongs to group {}, which {}",
        pool.id(name),
        if group.is_some() { "does not know it" } else { "does not exist" }
    );
    let mend = format!("keep it as it is, it can be restored; or larder snapshot rm {id}");
    Some(Finding::new(&ALONE, &item.folder, what).volume(id).by_hand(mend))
}

/// Whether the group's deletion was begun: the next start takes its snapshots along.
fn is_on_its_way(look: &Look, group: &str) -> bool {
    look.deleted.iter().any(|work| work.what == "group" && work.native.as_str() == group)
}

/// A snapshot without data that belongs to a group goes with that only.
pub(crate) fn of_member(
    pool: &PoolScene,
    item: &Item<SnapshotRecord>,
    mut finding: Finding,
) -> Finding {
    let record = item.record.as_ref().and_then(|record| record.as_ref().ok());
    if let Some(group) = record.and_then(|record| record.group.as_deref())
        && finding.kind == contents::NO_DATA.name
    {
        finding.mend = format!(
            "put the data back from a backup; or, when the group is not needed any more, larder snapshot \
             group rm {}",
            pool.id(group)
        );
    }
    finding
}
