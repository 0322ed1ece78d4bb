//! Loop devices over a pool's images, and limits of such that are gone.
//!
//! A device over an image that was deleted under it may be all that is left of the data: it is told,
//! and never touched. One whose image went through `deleting/` was deleted by its owner.

use super::{
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::{DriverScene, PoolScene, Scene, image_of},
};
use larder_host::{LoopInfo, loops};
use larder_model::Result;
use larder_pool::look::Look;
use std::path::{Path, PathBuf};

pub(crate) const UNUSED: Sort = Sort {
    name: "loop-device-unused",
    severity: Severity::Warning,
    why: "nobody has it: it holds the image, keeps the volume from being deleted or attached in another \
          way, and takes one of the machine's loop devices",
};
pub(crate) const OF_DELETED: Sort = Sort {
    name: "loop-device-of-deleted-volume",
    severity: Severity::Warning,
    why: "the volume was deleted, but the device holds its space",
};
pub(crate) const DELETED_UNDER: Sort = Sort {
    name: "image-deleted-under-device",
    severity: Severity::Critical,
    why: "the image was deleted past Larder: this device is all that is left of the data, and the data \
          is gone with the device's last user",
};

pub(crate) const LIMITED: Sort = Sort {
    name: "limit-left",
    severity: Severity::Warning,
    why: "the kernel keeps limits by a device's number: whoever has it next is held to them",
};

/// Limits of devices that do not exist any more.
fn limits(scene: &Scene) -> Vec<Finding> {
    // Where nothing can be limited, nothing is.
    let limited = scene.host.throttle.all().unwrap_or_default();
    let left = limited.into_iter().filter(|(device, _)| {
        device.major == loops::MAJOR && !scene.loops.iter().any(|info| info.device == *device)
    });
    let finding = |(device, limits)| {
        let place = PathBuf::from(format!("/sys/dev/block/{device}"));
        let what = format!("device {device} is limited ({limits}), and nothing is attached to it");
        Finding::new(&LIMITED, &place, what).by(Fix::Unlimit(device))
    };
    left.map(finding).collect()
}

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = limits(scene);
    for info in &scene.loops {
        for (driver, pool, look) in scene.pools() {
            if let Some(finding) = one(scene, driver, pool, look, info)? {
                found.push(finding.of(driver.name()).in_pool(&pool.name));
                break;
            }
        }
    }
    Ok(found)
}

fn one(
    scene: &Scene,
    driver: &DriverScene,
    pool: &PoolScene,
    look: &Look,
    info: &LoopInfo,
) -> Result<Option<Finding>> {
    if let Some(data) = image_of(look, info.backing()) {
        return over_image(scene, driver, pool, &data, info);
    }
    // The kernel's word that the file is deleted is one thing, its path another: other pools may have
    // had that path.
    let Some(file) = info.backing_file.as_deref().filter(|_| info.deleted) else { return Ok(None) };
    let Some(inside) = pool.inside(file) else { return Ok(None) };
    let native = name_in(&inside);
    let finding = |sort, what: String| {
        let finding = Finding::new(sort, file, what);
        match &native {
            Some(native) => finding.volume(pool.id(native)),
            None => finding,
        }
    };
    let device = info.path.display();
    if inside.starts_with("deleting") || inside.starts_with("creating") {
        let what = format!("{device} is attached to an image that is deleted");
        let finding = finding(&OF_DELETED, what);
        return Ok(Some(if scene.is_unused(info.device, &[&info.path])? {
            finding.by(detach(info))
        } else {
            finding.by_hand(format!("end what uses it (lsblk {device}, fuser -vm {device})"))
        }));
    }
    let what = format!("the image of {device} was deleted, or replaced by another file");
    Ok(Some(finding(&DELETED_UNDER, what).by_hand(format!(
        "while the device is there, copy the data: dd if={device} of=/elsewhere/rescued.img \
         conv=sparse; put the copy back in the image's place when the workload is stopped"
    ))))
}

fn over_image(
    scene: &Scene,
    driver: &DriverScene,
    pool: &PoolScene,
    data: &Path,
    info: &LoopInfo,
) -> Result<Option<Finding>> {
    let inside = data.strip_prefix(&pool.config.path).unwrap_or(data);
    let native = name_in(inside);
    if native.as_deref().is_some_and(|native| driver.is_busy_with(native))
        || driver.has_device(info).is_some()
        || !scene.is_unused(info.device, &[&info.path])?
    {
        return Ok(None);
    }
    let what =
        format!("{} is attached to it, and nothing uses or knows the device", info.path.display());
    let finding = Finding::new(&UNUSED, data, what).by(detach(info));
    Ok(Some(match native {
        Some(native) => finding.volume(pool.id(&native)),
        None => finding,
    }))
}

fn detach(info: &LoopInfo) -> Fix {
    Fix::Detach { path: info.path.clone(), number: info.number, backing: info.backing() }
}

/// The volume or snapshot that a path inside a pool belongs to.
pub(super) fn name_in(inside: &Path) -> Option<String> {
    let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy());
    let (folder, name) = (parts.next()?, parts.next()?);
    let name: PathBuf = match &*folder {
        "volumes" | "snapshots" => return Some(name.into_owned()),
        "static" => PathBuf::from(&*name).with_extension(""),
        "deleting" => name.split_once('-')?.1.rsplit_once('.')?.0.into(),
        "creating" => name.split_once('-')?.1.into(),
        _ => return None,
    };
    Some(name.display().to_string())
}
