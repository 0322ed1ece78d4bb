//! What is written down of something in the trash, and how old that is.

use crate::{
    layout::Shelf,
    record::{FORMAT, Versioned},
};
use jiff::Timestamp;
use larder_host::clock::Moment;
use larder_model::{Bytes, Native, Period, PoolName, trash::Sort};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;
use uuid::Uuid;

/// After a boot (and after a clock that was set) the wall clock is believed once it has gone on
/// undisturbed for this long, or for the pool's retention where that is shorter: a machine whose clock
/// is wrong when it starts has time to be corrected before anything is removed.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);
/// A clock that differs from the time since boot by more than this between two looks was set.
const STEP: Duration = Duration::from_secs(60);

/// What is known of something in the trash. Versions as for the other records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrashRecord {
    /// Format version.
    pub format: u32,
    /// What it is called in the trash.
    pub id: String,
    /// Volume or snapshot.
    pub sort: TrashSort,
    /// Its pool at that time.
    pub pool: PoolName,
    /// The name of its folder.
    pub native: Native,
    /// The name as the caller wrote it.
    pub name: String,
    /// The `id` in its own record: what has another one is not it.
    pub record: Uuid,
    /// Of a snapshot: the volume that it was cut from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Native>,
    /// Its size.
    pub size: Bytes,
    /// What it took of the pool.
    pub allocated: Bytes,
    /// When it was deleted, by the wall clock.
    pub deleted: Timestamp,
    /// The boot in which that was.
    pub boot: String,
    /// Milliseconds from that boot to the deletion.
    pub uptime_millis: u64,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What something in the trash is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TrashSort {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

impl TrashSort {
    pub(super) fn shelf(self) -> Shelf {
        match self {
            Self::Volume => Shelf::Volumes,
            Self::Snapshot => Shelf::Snapshots,
        }
    }
    pub(super) fn sort(self) -> Sort {
        match self {
            Self::Volume => Sort::Volume,
            Self::Snapshot => Sort::Snapshot,
        }
    }
}

impl Versioned for TrashRecord {
    fn format(&self) -> u32 {
        self.format
    }
}

/// Something that is about to be deleted.
pub(crate) struct Kept {
    pub(crate) sort: TrashSort,
    pub(crate) native: Native,
    pub(crate) name: String,
    pub(crate) record: Uuid,
    pub(crate) source: Option<Native>,
    pub(crate) size: Bytes,
}

impl TrashRecord {
    pub(super) fn new(kept: Kept, pool: &PoolName, allocated: Bytes, now: Moment) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        Self {
            format: FORMAT,
            id: id[..12].to_owned(),
            sort: kept.sort,
            pool: pool.clone(),
            native: kept.native,
            name: kept.name,
            record: kept.record,
            source: kept.source,
            size: kept.size,
            allocated,
            deleted: now.wall,
            boot: now.boot,
            uptime_millis: u64::try_from(now.uptime.as_millis()).unwrap_or(u64::MAX),
            rest: Map::new(),
        }
    }

    /// The name of its folder, in the trash and on its way out.
    pub(super) fn folder(&self) -> String {
        format!("{}-{}.{}", self.sort.shelf(), self.native, self.id)
    }

    /// How long ago it was deleted, as far as is known: in the same boot that is certain.
    pub(super) fn age(&self, now: &Moment) -> Duration {
        self.certain_age(now).unwrap_or_else(|| {
            let wall = now.wall.duration_since(self.deleted);
            Duration::try_from(wall).unwrap_or_default().max(now.uptime)
        })
    }

    /// Its age by a clock that nobody can set.
    fn certain_age(&self, now: &Moment) -> Option<Duration> {
        let then = Duration::from_millis(self.uptime_millis);
        (self.boot == now.boot).then(|| now.uptime.saturating_sub(then))
    }

    /// Whether its time is over. What was deleted before this boot is as old as the boot for certain,
    /// and older only by a wall clock that is believed.
    pub(super) fn is_due(&self, retention: Period, now: &Moment, believed: bool) -> bool {
        let retention = retention.as_duration();
        match self.certain_age(now) {
            Some(age) => age >= retention,
            None => now.uptime >= retention || (believed && self.age(now) >= retention),
        }
    }
}

/// Watches the wall clock, by the one that cannot be set.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The last look, and since when the clock has gone on undisturbed.
    last: Option<(Moment, Duration)>,
}

impl Watch {
    /// Looks at the clock; whether it can be believed now.
    pub(super) fn believes(&mut self, now: &Moment, retention: Period) -> bool {
        let since = match &self.last {
            Some((last, since)) if !is_step(last, now) => *since,
            Some(_) => {
                tracing::warn!("the clock was set: the trash of former boots waits");
                now.uptime
            }
            None => now.uptime,
        };
        self.last = Some((now.clone(), since));
        now.uptime.saturating_sub(since) >= BELIEVED_AFTER.min(retention.as_duration())
    }
}

fn is_step(last: &Moment, now: &Moment) -> bool {
    let by_wall = now.wall.duration_since(last.wall).as_secs();
    let by_uptime = now.uptime.saturating_sub(last.uptime).as_secs();
    by_wall.abs_diff(i64::try_from(by_uptime).unwrap_or(i64::MAX)) > STEP.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn moment(boot: &str, wall: i64, uptime: u64) -> Moment {
        let wall = Timestamp::from_second(1_800_000_000 + wall).unwrap();
        Moment { wall, boot: boot.to_owned(), uptime: Duration::from_secs(uptime) }
    }

    fn deleted(at: Moment) -> TrashRecord {
        let kept = Kept {
            sort: TrashSort::Volume,
            native: "x".parse().unwrap(),
            name: "x".to_owned(),
            record: Uuid::nil(),
            source: None,
            size: Bytes::ZERO,
        };
        TrashRecord::new(kept, &"p".parse().unwrap(), Bytes::ZERO, at)
    }

    fn day() -> Period {
        "24h".parse().unwrap()
    }

    #[test]
    fn within_one_boot_no_jump_of_the_clock_makes_anything_older() {
        let record = deleted(moment("a", 0, 100));
        for wall in [-400 * 86_400, 0, 400 * 86_400] {
            let early = moment("a", wall, 100 + DAY - 1);
            assert!(!record.is_due(day(), &early, true), "{wall}");
            assert!(record.is_due(day(), &moment("a", wall, 100 + DAY), false), "{wall}");
        }
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts_once_it_is_believed() {
        let record = deleted(moment("a", 0, 100));
        let now = moment("b", 3 * 86_400, 60);
        assert!(!record.is_due(day(), &now, false));
        assert!(record.is_due(day(), &now, true));
        assert!(!record.is_due(day(), &moment("b", 3_600, 60), true));
        // A clock that stands before the deletion: what ran since this boot is certain.
        assert!(!record.is_due(day(), &moment("b", -9_999, DAY - 1), true));
        assert!(record.is_due(day(), &moment("b", -9_999, DAY), true));
    }

    #[test]
    fn a_clock_is_believed_after_an_hour_without_a_jump() {
        let mut watch = Watch::default();
        assert!(!watch.believes(&moment("b", 0, 10), day()));
        assert!(!watch.believes(&moment("b", 3_599, 3_609), day()));
        assert!(watch.believes(&moment("b", 3_600, 3_610), day()));
        // Ten years ahead at once, and back.
        assert!(!watch.believes(&moment("b", 315_360_000, 3_670), day()));
        assert!(!watch.believes(&moment("b", 3_720, 3_730), day()));
        assert!(watch.believes(&moment("b", 7_330, 7_340), day()));
        let mut short = Watch::default();
        let second = "1s".parse().unwrap();
        assert!(!short.believes(&moment("b", 0, 10), second));
        assert!(short.believes(&moment("b", 1, 11), second));
    }
}
