//! What is in a pool that should not be, and what is not that should.

use super::{
    finding::{Finding, Severity, Sort, in_words},
    fix::Fix,
    groups,
    scene::{DriverScene, PoolScene, Scene},
};
use larder_model::Result;
use larder_pool::{
    look::{Item, Look, Work},
    record::VolumeRecord,
};
use std::{path::Path, time::Duration};

pub(crate) const HALF_MADE: Sort = Sort {
    name: "half-made",
    severity: Severity::Warning,
    why: "it was never answered with success and nobody sees it, but it takes space",
};
pub(crate) const HALF_DELETED: Sort = Sort {
    name: "half-deleted",
    severity: Severity::Warning,
    why: "it was deleted and nobody sees it any more, but it takes space until it is removed",
};
pub(crate) const TEMPORARY: Sort = Sort {
    name: "temporary-files",
    severity: Severity::Note,
    why: "a process that was killed left them; they take space",
};
pub(crate) const NO_RECORD: Sort = Sort {
    name: "volume-without-record",
    severity: Severity::Critical,
    why: "without its record a volume or snapshot cannot be used; its data is untouched",
};
pub(crate) const BAD_RECORD: Sort = Sort {
    name: "record-unreadable",
    severity: Severity::Critical,
    why: "the volume or snapshot cannot be used; its data is untouched",
};
pub(crate) const NO_DATA: Sort = Sort {
    name: "record-without-volume",
    severity: Severity::Critical,
    why: "the data is gone or was replaced: uses of it fail, and are not taken for an empty volume",
};
pub(crate) const TRUNCATED: Sort = Sort {
    name: "image-truncated",
    severity: Severity::Critical,
    why: "the end of the volume's data is lost; the volume is refused as it is",
};
pub(crate) const EMPTY: Sort = Sort {
    name: "empty-folder",
    severity: Severity::Note,
    why: "it has a volume's place and nothing in it, so its name answers as damaged",
};
pub(crate) const STRAY: Sort = Sort {
    name: "image-without-owner",
    severity: Severity::Warning,
    why: "no record knows it: it is in no list, takes space, and goes when its folder is deleted",
};
pub(crate) const FOREIGN: Sort = Sort {
    name: "foreign-file",
    severity: Severity::Warning,
    why: "Larder never touches it, but it takes the pool's space and may be taken for Larder's",
};
pub(crate) const STATIC: Sort = Sort {
    name: "static-unusable",
    severity: Severity::Warning,
    why: "it was put into the pool's folder static, but no volume comes of it",
};

/// What changed so lately may be somebody's work, where somebody serves the pool or shares it.
pub(super) const RECENT: Duration = Duration::from_secs(600);

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (driver, pool, look) in scene.pools() {
        let about = |finding: Finding| finding.of(driver.name()).in_pool(&pool.name);
        for (sort, works) in [(&HALF_MADE, &look.unfinished), (&HALF_DELETED, &look.deleted)] {
            let left = works.iter().filter(|work| !may_be_at_work(driver, pool, work));
            found.extend(left.map(|work| about(unfinished(driver, pool, look, sort, work))));
        }
        if driver.served.is_none() && !pool.config.shared {
            found.extend(look.scratch.iter().map(|path| {
                let finding = about(Finding::new(&TEMPORARY, path, "a temporary file of Larder's"));
                startable(driver, look, finding, path)
            }));
        }
        for volume in &look.volumes {
            found.extend(of_volume(driver, pool, volume).into_iter().map(about));
        }
        for snapshot in &look.snapshots {
            let of = of_item(pool, snapshot, "snapshot").into_iter();
            found.extend(of.map(|finding| about(groups::of_member(pool, snapshot, finding))));
        }
        found.extend(look.foreign.iter().map(|path| about(foreign(path))));
        for item in &look.statics {
            let what = match &item.native {
                Err(why) => (*why).to_owned(),
                Ok(native) if look.volumes.iter().any(|v| v.native == *native) => {
                    "a created volume of that name hides it".to_owned()
                }
                Ok(_) => continue,
            };
            let mend = "give it another name, or move it out of the folder";
            found.push(about(Finding::new(&STATIC, &item.path, what).by_hand(mend)));
        }
    }
    Ok(found)
}

/// Whether a live process may be making or removing it.
fn may_be_at_work(driver: &DriverScene, pool: &PoolScene, work: &Work) -> bool {
    if work.held || driver.is_busy_with(work.native.as_str()) {
        return true;
    }
    (driver.served.is_some() || pool.config.shared) && work.age < RECENT
}

fn unfinished(
    driver: &DriverScene,
    pool: &PoolScene,
    look: &Look,
    sort: &'static Sort,
    work: &Work,
) -> Finding {
    let verb = if std::ptr::eq(sort, &HALF_MADE) { "made" } else { "removed" };
    let (what, age) = (work.what, in_words(work.age));
    let finding = Finding::new(
        sort,
        &work.path,
        format!("the {what} {} was being {verb}; nothing has changed there for {age}", work.native),
    )
    .volume(pool.id(work.native.as_str()));
    startable(driver, look, finding, &work.path)
}

/// What the start of the driver mends.
pub(super) fn startable(
    driver: &DriverScene,
    look: &Look,
    finding: Finding,
    path: &Path,
) -> Finding {
    match &driver.served {
        Some(who) => finding.by_hand(format!(
            "see whether it still changes (du -s {}, a minute apart): a large one takes its time; if it \
             does not, restart {who}: its start takes it away",
            path.display()
        )),
        None if look.read_only => finding.by_hand("make the pool writable, and look again"),
        None => finding
            .by(Fix::Start { driver: driver.settings.name.clone(), gone: vec![path.to_owned()] }),
    }
}

fn of_volume(driver: &DriverScene, pool: &PoolScene, volume: &Item<VolumeRecord>) -> Vec<Finding> {
    let mut found = of_item(pool, volume, "volume");
    if let (Some(Ok(record)), Some(data)) = (&volume.record, volume.found)
        && data.is_right
        && driver.names.is_some_and(|names| !names.is_dir)
        && data.size < record.size.get()
        && !driver.is_busy_with(volume.native.as_str())
    {
        let what = format!("it has {} bytes and should have {}", data.size, record.size.get());
        let mend = "stop its workload, and restore the volume from a snapshot or backup";
        let finding = Finding::new(&TRUNCATED, &volume.data, what);
        found.push(finding.volume(pool.id(volume.native.as_str())).by_hand(mend));
    }
    found
}

fn of_item<R>(pool: &PoolScene, item: &Item<R>, what: &str) -> Vec<Finding> {
    let id = pool.id(item.native.as_str());
    let mut found = Vec::new();
    match (&item.record, item.found) {
        (None, None) if item.strays.is_empty() => found.push(
            Finding::new(&EMPTY, &item.folder, format!("the folder of {what} {id} is empty"))
                .by(Fix::RemoveEmptyFolder(item.folder.clone())),
        ),
        (None, _) => found.push(
            Finding::new(
                &NO_RECORD,
                &item.folder,
                format!("the {what} has data and no record.json"),
            )
            .by_hand(format!(
                "restore record.json from a backup; or, to use the data as a new volume, move {} \
                     into {} under a name of its own",
                item.data.display(),
                pool.config.path.join("static").display()
            )),
        ),
        (Some(Err(fault)), _) => found.push(
            Finding::new(
                &BAD_RECORD,
                &item.folder.join("record.json"),
                format!("cannot {}", plain(fault)),
            )
            .by_hand(fault.hint_text().unwrap_or("restore it from a backup")),
        ),
        (Some(Ok(_)), None) => found.push(
            Finding::new(&NO_DATA, &item.data, format!("the {what} has a record and no data"))
                .by_hand(format!(
                    "put the data back from a backup; or, when it is not needed any more, larder \
                     {what} rm {id}"
                )),
        ),
        (Some(Ok(_)), Some(data)) if !data.is_right => found.push(
            Finding::new(
                &NO_DATA,
                &item.data,
                format!("something else is in the place of the {what}'s data"),
            )
            .by_hand("look what it is, and put the data back; it is never followed or removed"),
        ),
        (Some(Ok(_)), Some(_)) => {}
    }
    let id = pool.id(item.native.as_str());
    let mut found: Vec<_> = found.into_iter().map(|finding| finding.volume(&id)).collect();
    found.extend(item.strays.iter().map(|path| {
        Finding::new(
            &STRAY,
            path,
            format!("it lies in the folder of {what} {id} and is no part of it"),
        )
        .volume(&id)
        .by_hand("look what it is, and move it out of the pool")
    }));
    found
}

/// A fault without its hint.
pub(crate) fn plain(fault: &larder_model::Fault) -> String {
    let text = fault.to_string();
    text.split(" (hint:").next().unwrap_or_default().to_owned()
}

fn foreign(path: &Path) -> Finding {
    let meta = path.symlink_metadata();
    let what = match &meta {
        Ok(meta) if meta.is_dir() => "a directory".to_owned(),
        Ok(meta) if meta.is_file() => format!("a file of {} bytes", meta.len()),
        _ => "something".to_owned(),
    };
    // An image that lies around, rather than some tool's file.
    let image = meta.is_ok_and(|meta| meta.is_file())
        && path.extension().is_some_and(|e| e == "img" || e == "qcow2" || e == "raw");
    if image {
        let mend = "move it out of the pool; or, as volume, into the pool's folder static";
        return Finding::new(&STRAY, path, "an image that no record knows").by_hand(mend);
    }
    Finding::new(&FOREIGN, path, format!("{what} that is not Larder's"))
        .by_hand("move it out of the pool, or leave it if the pool is meant to be shared with it")
}
