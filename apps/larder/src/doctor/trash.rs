//! What is in a trash that should not be, or cannot be restored.

use super::{
    contents::{RECENT, plain, startable},
    finding::{Finding, Severity, Sort},
    scene::Scene,
};
use larder_model::Result;
use larder_pool::look::TrashFault;

pub(crate) const OF_NOTHING: Sort = Sort {
    name: "trash-record-of-nothing",
    severity: Severity::Note,
    why: "a deletion or a restoration that was cut left it; it is of no use to anybody",
};
pub(crate) const NO_RECORD: Sort = Sort {
    name: "trash-without-record",
    severity: Severity::Warning,
    why: "no list shows it, it cannot be restored, and it takes space until somebody removes it",
};
pub(crate) const BAD_RECORD: Sort = Sort {
    name: "trash-record-unreadable",
    severity: Severity::Warning,
    why: "what it is about cannot be restored, and is not removed when its time has come",
};
pub(crate) const NO_DATA: Sort = Sort {
    name: "trash-without-data",
    severity: Severity::Warning,
    why: "it was deleted and cannot be restored: its data is gone",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (driver, pool, look) in scene.pools() {
        for item in &look.trash {
            // On its way into the trash, or out of it.
            if (driver.served.is_some() || pool.config.shared) && item.age < RECENT {
                continue;
            }
            let about = |sort, what: &str| {
                Finding::new(sort, &item.path, what).of(driver.name()).in_pool(&pool.name)
            };
            found.push(match &item.why {
                TrashFault::RecordOfNothing => {
                    let what = "it tells of a deletion, and nothing is in the trash under its name";
                    startable(driver, look, about(&OF_NOTHING, what), &item.path)
                }
                TrashFault::NoRecord => {
                    about(&NO_RECORD, "no record tells who deleted it, and when").by_hand(format!(
                        "look what it is; to use its data as a new volume, move that to {} under a \
                         name of its own, or remove the folder",
                        pool.config.path.join("static").display()
                    ))
                }
                TrashFault::BadRecord(fault) => {
                    about(&BAD_RECORD, &format!("cannot {}", plain(fault)))
                        .by_hand(fault.hint_text().unwrap_or("restore it from a backup"))
                }
                TrashFault::NoData { id } => about(&NO_DATA, "it has a record and no data")
                    .by_hand(format!("larder trash rm {id}")),
            });
        }
    }
    Ok(found)
}
