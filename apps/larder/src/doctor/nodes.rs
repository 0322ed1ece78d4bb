//! Node records, and those of `volume mount`, of what does not stand.

use super::{
    contents::plain,
    finding::{Finding, Severity, Sort},
    fix::Fix,
    pools,
    scene::{DriverScene, Elsewhere, Scene, State},
};
use larder_host::loops::Backing;
use larder_model::Result;
use larder_pool::look::Open;
use larder_volumes::node::look::{RecordLook, StagedLook, Unreadable, records_dir};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

pub(crate) const UNREADABLE: Sort = Sort {
    name: "node-record-unreadable",
    severity: Severity::Warning,
    why: "its volume cannot be staged or published on this node as long as it is there",
};
pub(crate) const NEWER: Sort = Sort {
    name: "node-record-newer",
    severity: Severity::Warning,
    why: "only the release that wrote it knows how its volume is in use here, so it is neither staged nor \
          unstaged by this one",
};
pub(crate) const OTHER_BOOT: Sort = Sort {
    name: "node-record-of-another-boot",
    severity: Severity::Note,
    why: "the mounts and devices that it speaks of went with the reboot",
};
pub(crate) const NOT_PUBLISHED: Sort = Sort {
    name: "publication-gone",
    severity: Severity::Warning,
    why: "somebody unmounted it past Larder: a workload that still runs writes to the node's own disk",
};
pub(crate) const NOT_STAGED: Sort = Sort {
    name: "staging-gone",
    severity: Severity::Warning,
    why: "its mount or device is gone, but the volume counts as in use and cannot be deleted",
};
pub(crate) const UNFINISHED: Sort = Sort {
    name: "staging-unfinished",
    severity: Severity::Warning,
    why: "a process was killed in the middle: the volume counts as in use and cannot be deleted",
};
pub(crate) const NOT_MOUNTED: Sort = Sort {
    name: "mount-record-stale",
    severity: Severity::Warning,
    why: "`larder volume mount` has noted a mount that does not stand",
};

pub(crate) const ELSEWHERE: Sort = Sort {
    name: "mounts-elsewhere",
    severity: Severity::Note,
    why: "its mounts and node records cannot be judged from here, and nothing about them was looked at; \
          the rest was looked at, and nothing of this driver is mended from here",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for driver in &scene.drivers {
        if let Some(elsewhere) = &driver.elsewhere {
            found.push(other_mounts(scene, driver, elsewhere));
            continue;
        }
        let mut ours = Vec::new();
        for Unreadable { path, fault, newer } in &driver.unreadable {
            let what = format!("cannot {}", plain(fault));
            ours.push(if *newer {
                let mend =
                    "install the newer release again, or drain this node and remove the record";
                Finding::new(&NEWER, path, what).by_hand(mend)
            } else {
                by_start(driver, Finding::new(&UNREADABLE, path, what), path)
            });
        }
        let stale = stale_mounts(scene, driver)?;
        for record in &driver.records {
            let forgotten = stale.iter().any(|s| s.volume.as_ref() == Some(&record.volume));
            if !forgotten && !driver.is_busy_with(native(&record.volume)) {
                ours.extend(of_record(scene, driver, record));
            }
        }
        ours.extend(stale);
        ours.extend(permissions(scene, driver));
        found.extend(ours.into_iter().map(|finding| finding.of(driver.name())));
    }
    Ok(found)
}

/// Told once for a driver, instead of all that would only seem so.
fn other_mounts(scene: &Scene, driver: &DriverScene, elsewhere: &Elsewhere) -> Finding {
    let Elsewhere { namespace, pid } = elsewhere;
    let place = records_dir(&scene.settings.state_dir, driver.name());
    let what = format!(
        "the process that works, or last worked, with the driver's mounts has another mount namespace \
         ({namespace}) than this command"
    );
    let mend = match pid {
        Some(pid) => format!(
            "look from there: larder doctor in its container, or nsenter --mount --target {pid} larder \
             doctor"
        ),
        None => {
            "look from there: larder doctor in its container, with its configuration".to_owned()
        }
    };
    Finding::new(&ELSEWHERE, &place, what).of(driver.name()).by_hand(mend)
}

fn native(volume: &str) -> &str {
    volume.rsplit_once('/').map_or(volume, |(_, native)| native)
}

/// What the start of the driver mends.
fn by_start(driver: &DriverScene, finding: Finding, path: &Path) -> Finding {
    match &driver.served {
        Some(who) => finding.by_hand(format!("restart {who}: its start mends it")),
        None => finding
            .by(Fix::Start { driver: driver.settings.name.clone(), gone: vec![path.to_owned()] }),
    }
}

fn of_record(scene: &Scene, driver: &DriverScene, record: &RecordLook) -> Vec<Finding> {
    let about = |sort, path: &Path, what: String| {
        Finding::new(sort, path, what).volume(record.inline.as_ref().unwrap_or(&record.volume))
    };
    if !record.this_boot {
        if record.inline.is_some() {
            return Vec::new(); // Kept for its pod, which may come back.
        }
        let finding =
            about(&OTHER_BOOT, &record.path, "it was written before the reboot".to_owned());
        return vec![by_start(driver, finding, &record.path)];
    }
    let release = |targets: Vec<PathBuf>, staging: Option<PathBuf>| Fix::Release {
        driver: driver.settings.name.clone(),
        volume: record.volume.clone(),
        targets,
        staging,
        gone: true,
    };
    let (standing, gone): (Vec<_>, Vec<_>) = record.publications.iter().partition(|p| p.stands);
    let mut found: Vec<_> = gone
        .iter()
        .map(|place| {
            let what = "it is recorded to be published there, and is not mounted".to_owned();
            about(&NOT_PUBLISHED, &place.path, what).by(release(vec![place.path.clone()], None))
        })
        .collect();
    if let Some(staged) = record.staged.as_ref().filter(|_| standing.is_empty()) {
        let at = &staged.place.path;
        // Its publications have findings of their own, which are mended before.
        let unstage = || release(Vec::new(), Some(at.clone()));
        if !staged.is_complete {
            let what = "staging or unstaging it was begun and not finished".to_owned();
            found.push(about(&UNFINISHED, at, what).by(unstage()));
        } else if !stands(scene, staged) {
            let what = "it is recorded to be staged there, and is not".to_owned();
            found.push(about(&NOT_STAGED, at, what).by(unstage()));
        }
    }
    found
}

/// Whether something of a staging is there.
fn stands(scene: &Scene, staged: &StagedLook) -> bool {
    if staged.place.stands {
        return true;
    }
    if !staged.block {
        return false;
    }
    let Some(device) = &staged.device else { return false };
    let number = |key| staged.attachment.as_ref()?.get(key)?.parse::<u64>().ok();
    let backing = number("backingDevice").zip(number("backingInode"));
    let backing = backing.map(|(device, inode)| Backing { device, inode });
    match scene.loops.iter().find(|info| info.path == *device) {
        Some(info) => backing.is_none_or(|backing| info.backing() == backing),
        None => !device.starts_with("/dev/loop") && backing.is_none() && device.exists(),
    }
}

/// Records of `volume mount` of which nothing stands.
fn stale_mounts(scene: &Scene, driver: &DriverScene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (stage, mounted) in &driver.mounted {
        // The staging folder alone serves nobody.
        let mut stands = false;
        for target in &mounted.targets {
            stands |= scene.host.mounts.is_mount_point(&target.path)?;
        }
        if stands || driver.is_busy_with(native(&mounted.volume)) {
            continue;
        }
        let paths: Vec<_> = mounted.targets.iter().map(|t| t.path.display().to_string()).collect();
        let what = format!("it is mounted nowhere any more; it was at {}", paths.join(", "));
        let record = stage.with_file_name("mount.json");
        found.push(Finding::new(&NOT_MOUNTED, &record, what).volume(&mounted.volume).by(
            Fix::Forget {
                driver: driver.settings.name.clone(),
                volume: mounted.volume.clone(),
                gone: mounted.targets.iter().map(|t| t.path.clone()).collect(),
            },
        ));
    }
    Ok(found)
}

/// The folders of records, through which staging paths are reached.
fn permissions(scene: &Scene, driver: &DriverScene) -> Vec<Finding> {
    let away = driver.pools.iter().all(|pool| matches!(pool.state, State::Away(..)));
    let folders = [
        records_dir(&scene.settings.state_dir, driver.name()),
        scene.settings.state_dir.join("freezes"),
    ];
    let wide = folders.into_iter().filter(|_| !away).filter_map(|path| {
        let meta = path.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
        let mode = meta.mode() & 0o7777;
        let stranger = (meta.uid() != larder_host::user_id()).then(|| meta.uid());
        (mode & 0o077 != 0 || stranger.is_some())
            .then(|| pools::permissions(&Open { path, mode, right: mode & !0o077, stranger }))
    });
    wide.collect()
}
