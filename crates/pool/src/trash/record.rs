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
            Duration::try_from(now.wall.duration_since(self.deleted)).unwrap_or_default()
        })
    }

    /// Its age by a clock that nobody can set.
    fn certain_age(&self, now: &Moment) -> Option<Duration> {
        let then = Duration::from_millis(self.uptime_millis);
        (self.boot == now.boot).then(|| now.uptime.saturating_sub(then))
    }

    /// Whether its time is over. In another boot, or on another machine that has the pool's disk by
    /// now, it is as old for certain as this process has had the pool, and older only by a wall clock
    /// that is believed.
    pub(super) fn is_due(&self, retention: Period, now: &Moment, clock: &Clock) -> bool {
        let retention = retention.as_duration();
        match self.certain_age(now) {
            Some(age) => age >= retention,
            None => clock.watched >= retention || (clock.believed && self.age(now) >= retention),
        }
    }
}

/// Watches the wall clock, by the one that cannot be set.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The last look, and since when the clock has gone on undisturbed.
    last: Option<(Moment, Duration)>,
    /// The uptime at the first look.
    first: Option<Duration>,
}

/// What is known of the time.
#[derive(Debug)]
pub(super) struct Clock {
    /// The wall clock can be believed.
    believed: bool,
    /// How long this process has looked.
    watched: Duration,
}

impl Watch {
    /// Looks at the clock.
    pub(super) fn look(&mut self, now: &Moment, retention: Period) -> Clock {
        let since = match &self.last {
            Some((last, since)) if !is_step(last, now) => *since,
            Some(_) => {
                tracing::warn!("the clock was set: the trash of former boots waits");
                now.uptime
            }
            None => now.uptime,
        };
        self.last = Some((now.clone(), since));
        let undisturbed = now.uptime.saturating_sub(since);
        Clock {
            believed: undisturbed >= BELIEVED_AFTER.min(retention.as_duration()),
            watched: now.uptime.saturating_sub(*self.first.get_or_insert(now.uptime)),
        }
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

    fn clock(believed: bool, watched: u64) -> Clock {
        Clock { believed, watched: Duration::from_secs(watched) }
    }

    fn day() -> Period {
        "24h".parse().unwrap()
    }

    #[test]
    fn within_one_boot_no_jump_of_the_clock_makes_anything_older() {
        let record = deleted(moment("a", 0, 100));
        for wall in [-400 * 86_400, 0, 400 * 86_400] {
            let early = moment("a", wall, 100 + DAY - 1);
            assert!(!record.is_due(day(), &early, &clock(true, 0)), "{wall}");
            let late = moment("a", wall, 100 + DAY);
            assert!(record.is_due(day(), &late, &clock(false, 0)), "{wall}");
        }
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts_once_it_is_believed() {
        let record = deleted(moment("a", 0, 100));
        let now = moment("b", 3 * 86_400, 60);
        assert!(!record.is_due(day(), &now, &clock(false, 0)));
        assert!(record.is_due(day(), &now, &clock(true, 0)));
        assert!(!record.is_due(day(), &moment("b", 3_600, 60), &clock(true, 0)));
        // A clock that stands before the deletion: what was waited here is certain.
        assert!(!record.is_due(day(), &moment("b", -9_999, DAY), &clock(true, DAY - 1)));
        assert!(record.is_due(day(), &moment("b", -9_999, DAY + 9), &clock(true, DAY)));
    }

    #[test]
    fn what_came_with_a_disk_from_another_machine_is_not_as_old_as_this_one_is_up() {
        let record = deleted(moment("theirs", 0, 100));
        // Up for forty days, and five minutes have gone by.
        let now = moment("ours", 300, 40 * DAY);
        assert!(!record.is_due(day(), &now, &clock(true, 60)));
        assert_eq!(record.age(&now), Duration::from_secs(300));
        assert!(record.is_due(day(), &moment("ours", 86_400, 41 * DAY), &clock(true, 60)));
    }

    #[test]
    fn a_clock_is_believed_after_an_hour_without_a_jump() {
        let mut watch = Watch::default();
        assert!(!watch.look(&moment("b", 0, 10), day()).believed);
        assert!(!watch.look(&moment("b", 3_599, 3_609), day()).believed);
        assert!(watch.look(&moment("b", 3_600, 3_610), day()).believed);
        // Ten years ahead at once, and back.
        assert!(!watch.look(&moment("b", 315_360_000, 3_670), day()).believed);
        assert!(!watch.look(&moment("b", 3_720, 3_730), day()).believed);
        assert!(watch.look(&moment("b", 7_330, 7_340), day()).believed);
        let mut short = Watch::default();
        let second = "1s".parse().unwrap();
        assert!(!short.look(&moment("b", 0, 10), second).believed);
        assert!(short.look(&moment("b", 1, 11), second).believed);
    }
}
