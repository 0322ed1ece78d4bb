//! Mounts of a pool's volumes that are left over, or that nothing knows of.

use super::{
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::{DriverScene, PoolScene, Scene, image_of, is_deleted, volume},
};
use larder_host::MountEntry;
use larder_model::Result;
use larder_pool::look::Look;
use larder_volumes::node::look::RecordLook;
use std::path::Path;

pub(crate) const LEFT: Sort = Sort {
    name: "mount-of-deleted-volume",
    severity: Severity::Warning,
    why: "what it showed is gone: whoever looks there finds nothing, and what is written there is lost",
};
pub(crate) const UNKNOWN: Sort = Sort {
    name: "mount-unrecorded",
    severity: Severity::Warning,
    why: "no record of this node knows it, so nobody will unmount it; it keeps the volume from being \
          deleted",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (driver, pool, look) in scene.pools().filter(|(driver, ..)| driver.elsewhere.is_none()) {
        for entry in &scene.table {
            let Some(shown) = what_it_shows(scene, pool, look, entry) else { continue };
            if driver.is_busy_with(&shown.native) {
                continue;
            }
            let finding = match shown.what {
                What::Gone => Some(left(driver, entry, &shown.native)),
                What::There if is_of_kubelet(scene, driver, pool, &shown.native, entry) => None,
                What::There if driver.claims(&entry.target).is_none() => {
                    Some(unknown(scene, driver, pool, look, entry, &shown.native))
                }
                What::There => None,
            };
            let about =
                |f: Finding| f.of(driver.name()).in_pool(&pool.name).volume(pool.id(&shown.native));
            found.extend(finding.map(about));
        }
    }
    // Nothing is unstaged while something else still shows it.
    found.sort_by_key(|finding| !matches!(finding.fix, Some(Fix::Unmount { .. })));
    Ok(found)
}

struct Shown {
    native: String,
    what: What,
}

enum What {
    There,
    /// Removed, or deleted by its owner.
    Gone,
}

/// The volume of this pool that a mount shows; None: it shows none, or something that devices are told
/// about.
fn what_it_shows(
    scene: &Scene,
    pool: &PoolScene,
    look: &Look,
    entry: &MountEntry,
) -> Option<Shown> {
    if let Some(inside) = pool.shown_by(entry) {
        let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy());
        let (folder, name) = (parts.next()?, parts.next()?);
        return match &*folder {
            "volumes" => {
                let gone = is_deleted(entry) || volume(look, &name).is_none();
                let what = if gone { What::Gone } else { What::There };
                Some(Shown { native: name.into_owned(), what })
            }
            "deleting" if is_deleted(entry) => {
                let native = name.split_once('-')?.1.rsplit_once('.')?.0.to_owned();
                Some(Shown { native, what: What::Gone })
            }
            _ => None,
        };
    }
    let info = scene.loops.iter().find(|info| {
        entry.device == info.device
            || Path::new(&entry.source) == info.path
            || (entry.fs_type == "devtmpfs" && entry.root.file_name() == info.path.file_name())
    })?;
    let data = image_of(look, info.backing())?;
    let inside = data.strip_prefix(pool.config.path.join("volumes")).ok()?;
    let native = inside.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(Shown { native, what: What::There })
}

/// A directory that was removed has nothing in it: nothing is lost with its mount.
fn left(driver: &DriverScene, entry: &MountEntry, native: &str) -> Finding {
    let finding = Finding::new(
        &LEFT,
        &entry.target,
        format!("volume {native} is mounted there, and its directory is removed"),
    );
    if !is_deleted(entry) {
        return finding
            .by_hand(format!("look what it shows; then umount {}", entry.target.display()));
    }
    finding.by(release(driver, &entry.target).unwrap_or_else(|| Fix::unmount(entry)))
}

/// What lets go of `target` and of all that its record knows.
fn release(driver: &DriverScene, target: &Path) -> Option<Fix> {
    let volume = driver.claims(target)?.to_owned();
    let driver_name = driver.settings.name.clone();
    if driver.mounted.iter().any(|(_, mounted)| mounted.volume == volume) {
        return Some(Fix::Forget { driver: driver_name, volume, gone: Vec::new() });
    }
    let record = driver.records.iter().find(|record| record.volume == volume)?;
    Some(Fix::Release {
        driver: driver_name,
        targets: record.publications.iter().map(|p| p.path.clone()).collect(),
        staging: record.staged.as_ref().map(|staged| staged.place.path.clone()),
        gone: false,
        volume,
    })
}

fn unknown(
    scene: &Scene,
    driver: &DriverScene,
    pool: &PoolScene,
    look: &Look,
    entry: &MountEntry,
    native: &str,
) -> Finding {
    let target = &entry.target;
    let finding = Finding::new(
        &UNKNOWN,
        target,
        format!("volume {native} is mounted there, and no record says why"),
    );
    // A staging folder of ours is nobody's place of work. One that shows through elsewhere is the way by
    // which a workload got its volume.
    let elsewhere = scene.table.iter().any(|other| {
        other.id != entry.id
            && what_it_shows(scene, pool, look, other).is_some_and(|shown| shown.native == native)
    });
    if !elsewhere && is_staging(scene, driver, target) {
        return finding.by(Fix::Release {
            driver: driver.settings.name.clone(),
            volume: pool.id(native),
            targets: Vec::new(),
            staging: Some(target.clone()),
            gone: false,
        });
    }
    finding.by_hand(format!(
        "what `larder volume mount` mounted there is taken over by mounting it there again, and can be \
         unmounted then; else, when nothing needs it there any more: umount {} (a workload may be using it)",
        target.display()
    ))
}

/// Whether kubelet shows a published volume once more to a pod, as it does for `subPath` and for raw
/// block devices: it takes that away itself when the pod ends.
fn is_of_kubelet(
    scene: &Scene,
    driver: &DriverScene,
    pool: &PoolScene,
    native: &str,
    entry: &MountEntry,
) -> bool {
    let kubelet = &scene.settings.kubelet_dir;
    let csi = kubelet.join("plugins/kubernetes.io/csi/volumeDevices");
    if !entry.target.starts_with(kubelet.join("pods")) && !entry.target.starts_with(csi) {
        return false;
    }
    let id = pool.id(native);
    let is_it = |record: &&RecordLook| {
        (record.volume == id || record.inline.as_ref() == Some(&id)) && record.this_boot
    };
    let mut records = driver.records.iter().filter(is_it);
    records.any(|record| record.publications.iter().any(|publication| publication.stands))
}

/// Whether Larder or kubelet made that place for staging volumes of this driver.
fn is_staging(scene: &Scene, driver: &DriverScene, target: &Path) -> bool {
    let settings = &scene.settings;
    let own = crate::session::mounts_dir(&settings.state_dir, driver.name());
    let csi = settings.kubelet_dir.join("plugins/kubernetes.io/csi").join(driver.name());
    (target.starts_with(own) && target.ends_with("stage"))
        || (target.starts_with(csi) && target.ends_with("globalmount"))
}
