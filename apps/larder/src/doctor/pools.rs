//! Pools that are away, read-only, near full, or open to everybody.

use super::{
    contents::plain,
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::{Scene, State},
};
use larder_host::Usage;
use larder_model::{Bytes, Result};
use larder_pool::look::Open;
use std::path::Path;

pub(crate) const AWAY: Sort = Sort {
    name: "pool-away",
    severity: Severity::Critical,
    why: "its volumes cannot be used; nothing is concluded about them until it is back",
};
pub(crate) const SILENT: Sort = Sort {
    name: "pool-silent",
    severity: Severity::Critical,
    why: "its server does not answer: calls for its volumes fail, and workloads on them hang",
};
pub(crate) const REFUSED: Sort = Sort {
    name: "pool-refused",
    severity: Severity::Critical,
    why: "the process that serves it answers no call for its volumes",
};
pub(crate) const NOT_READY: Sort = Sort {
    name: "driver-not-ready",
    severity: Severity::Warning,
    why: "the process that serves it answers no call for any volume",
};
pub(crate) const OTHER: Sort = Sort {
    name: "pool-of-another-backend",
    severity: Severity::Critical,
    why: "this driver does not use what is there, so its own volumes cannot be used",
};
pub(crate) const READ_ONLY: Sort = Sort {
    name: "pool-read-only",
    severity: Severity::Critical,
    why: "nothing can be made or written; a kernel that made it read-only has found errors on the disk",
};
pub(crate) const NEAR_FULL: Sort = Sort {
    name: "pool-near-full",
    severity: Severity::Warning,
    why: "in a full pool nothing can be made, and writes to sparse volumes fail like on a broken disk",
};
pub(crate) const FEW_INODES: Sort = Sort {
    name: "pool-few-inodes",
    severity: Severity::Warning,
    why: "without free inodes no file can be made, however much space is free",
};
pub(crate) const PERMISSIONS: Sort = Sort {
    name: "permissions",
    severity: Severity::Warning,
    why: "others on this machine can come to volumes, records or the driver past every mount",
};

/// A pool that is fuller is about to fail.
const ALMOST_NOTHING: u64 = 98;

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for driver in &scene.drivers {
        let place = Path::new(driver.settings.endpoint.path());
        found.extend(driver.says.not_ready.iter().map(|why| {
            let mend = "its log says what it waits for; after a start, look again in a moment";
            Finding::new(&NOT_READY, place, why).of(driver.name()).by_hand(mend)
        }));
        for pool in &driver.pools {
            // Away for us, too: told below.
            let here = matches!(pool.state, State::Here(_));
            if let Some(why) = driver.says.faults.get(pool.name.as_str()).filter(|_| here) {
                let mend = "mend what it names; it looks again by itself";
                found.push(
                    Finding::new(&REFUSED, &pool.config.path, why)
                        .of(driver.name())
                        .in_pool(&pool.name)
                        .by_hand(mend),
                );
            }
            let State::Away(sort, fault) = &pool.state else { continue };
            let hint = fault.hint_text().unwrap_or("the message says what is in the way");
            found.push(
                Finding::new(sort, &pool.config.path, format!("cannot {}", plain(fault)))
                    .of(driver.name())
                    .in_pool(&pool.name)
                    .by_hand(hint),
            );
        }
    }
    for (driver, pool, look) in scene.pools() {
        let path = &pool.config.path;
        let about = |sort, what: String| {
            Finding::new(sort, path, what).of(driver.name()).in_pool(&pool.name)
        };
        if look.read_only {
            let mend = format!(
                "look at the kernel's log (dmesg); then mount -o remount,rw {}",
                path.display()
            );
            found.push(about(&READ_ONLY, "its file system is read-only".to_owned()).by_hand(mend));
        }
        if let Some(usage) = pool.usage {
            let mend = "delete volumes or snapshots, enlarge the file system, or move volumes";
            if let Some((severity, what)) = space(&usage, pool.config.reserve, scene.near_full) {
                found.push(about(&NEAR_FULL, what).severity(severity).by_hand(mend));
            } else if let Some((severity, what)) = inodes(&usage, scene.near_full) {
                found.push(about(&FEW_INODES, what).severity(severity).by_hand(mend));
            }
        }
        // What is read-only cannot be changed, and on a network the server decides.
        let can_change = !look.read_only && !pool.config.shared;
        for open in look.open.iter().filter(|_| can_change) {
            let finding = permissions(open).of(driver.name()).in_pool(&pool.name);
            found.push(finding);
        }
    }
    Ok(found)
}

/// The finding about permissions that are too wide.
pub(crate) fn permissions(open: &Open) -> Finding {
    let Open { path, mode, right, stranger } = open;
    match stranger {
        Some(uid) => {
            let me = larder_host::user_id();
            Finding::new(&PERMISSIONS, path, format!("it belongs to user {uid}, not to user {me}"))
                .by_hand(format!("look who made it; then chown {me} {}", path.display()))
        }
        None => Finding::new(&PERMISSIONS, path, format!("its mode is {mode:04o}"))
            .by(Fix::Restrict { path: path.clone(), mode: *mode, right: *right }),
    }
}

fn percent_taken(total: u64, free: u64) -> u64 {
    let taken = u128::from(total.saturating_sub(free)) * 100;
    u64::try_from(taken.checked_div(total.into()).unwrap_or(0)).unwrap_or(100)
}

fn space(usage: &Usage, reserve: Bytes, near: u64) -> Option<(Severity, String)> {
    let percent = percent_taken(usage.total.get(), usage.available.get());
    let what = format!("{} of {} are free ({percent} % taken)", usage.available, usage.total);
    if reserve > Bytes::ZERO && usage.available <= reserve {
        return Some((Severity::Critical, format!("{what}, less than the reserve of {reserve}")));
    }
    level(percent, near).map(|severity| (severity, what))
}

fn inodes(usage: &Usage, near: u64) -> Option<(Severity, String)> {
    if usage.inodes == 0 {
        return None;
    }
    let percent = percent_taken(usage.inodes, usage.inodes_free);
    let what =
        format!("{} of {} inodes are free ({percent} % taken)", usage.inodes_free, usage.inodes);
    level(percent, near).map(|severity| (severity, what))
}

fn level(percent: u64, near: u64) -> Option<Severity> {
    match percent {
        p if p < near => None,
        p if p >= ALMOST_NOTHING => Some(Severity::Critical),
        _ => Some(Severity::Warning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(total: u64, available: u64, inodes: u64, inodes_free: u64) -> Usage {
        Usage {
            total: Bytes::new(total),
            available: Bytes::new(available),
            inodes,
            inodes_free,
            ..Usage::default()
        }
    }

    #[test]
    fn a_pool_is_near_full_by_bytes_by_its_reserve_or_by_inodes() {
        let level = |u: Usage, reserve| space(&u, Bytes::new(reserve), 90).map(|(s, _)| s);
        assert_eq!(level(usage(100, 11, 0, 0), 0), None);
        assert_eq!(level(usage(100, 10, 0, 0), 0), Some(Severity::Warning));
        assert_eq!(level(usage(100, 2, 0, 0), 0), Some(Severity::Critical));
        assert_eq!(level(usage(100, 40, 0, 0), 40), Some(Severity::Critical));
        assert_eq!(level(usage(0, 0, 0, 0), 0), None);
        assert!(inodes(&usage(100, 90, 0, 0), 90).is_none(), "btrfs does not count them");
        assert!(inodes(&usage(100, 90, 50, 6), 90).is_none());
        assert_eq!(inodes(&usage(100, 90, 50, 5), 90).map(|(s, _)| s), Some(Severity::Warning));
        assert_eq!(inodes(&usage(100, 90, 50, 0), 90).map(|(s, _)| s), Some(Severity::Critical));
    }
}
