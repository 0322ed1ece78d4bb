//! Encrypted volumes that are open although nobody has them.

use super::{
    devices,
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::{self, Scene, image_of},
};
use larder_host::{
    Host,
    luks::{self, Opened},
};
use larder_model::{Fault, Result};
use std::path::PathBuf;

pub(crate) const UNUSED: Sort = Sort {
    name: "encrypted-device-unused",
    severity: Severity::Warning,
    why: "nobody has it: it keeps the volume's key in the kernel's memory, and the device below it in use",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for opened in luks::list()? {
        found.extend(one(scene, &opened)?);
    }
    Ok(found)
}

/// Only what is above an image of one of the configured pools is known to be ours.
fn one(scene: &Scene, opened: &Opened) -> Result<Option<Finding>> {
    let below = scene.loops.iter().find(|info| Some(info.device) == opened.below);
    let Some(info) = below else { return Ok(None) };
    let node = node(opened);
    let names = [opened.path.as_path(), &node];
    for (driver, pool, look) in scene.pools() {
        let Some(data) = image_of(look, info.backing()) else { continue };
        let native = devices::name_in(data.strip_prefix(&pool.config.path).unwrap_or(&data));
        let is_staged = driver.records.iter().any(|record| {
            let staged = record.staged.as_ref().filter(|_| record.this_boot);
            staged.is_some_and(|s| s.device.as_deref().is_none_or(|path| names.contains(&path)))
        });
        if native.as_deref().is_some_and(|native| driver.is_busy_with(native))
            || is_staged
            || !scene.is_unused(opened.device, &names)?
        {
            return Ok(None);
        }
        let what = format!("{} is open, and nothing uses or knows it", opened.path.display());
        let finding = Finding::new(&UNUSED, &data, what).by(Fix::Close(Box::new(opened.clone())));
        let finding = match native {
            Some(native) => finding.volume(pool.id(&native)),
            None => finding,
        };
        return Ok(Some(finding.of(driver.name()).in_pool(&pool.name)));
    }
    Ok(None)
}

/// Its other node: which of the two was recorded, or published, depends on udev.
fn node(opened: &Opened) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", opened.device.minor))
}

/// Closes it, if it still is what was found, and unused.
///
/// # Errors
/// `Precondition` where it is not; those of [`luks::close`].
pub(crate) fn close(host: &Host, opened: &Opened) -> Result<()> {
    let node = node(opened);
    let is_same = luks::find(&opened.name)?.is_none_or(|now| now == *opened);
    let unused = || {
        scene::is_unused(
            host,
            &host.mounts.table()?,
            opened.device,
            &[opened.path.as_path(), &node],
        )
    };
    if !is_same || !unused()? {
        return Err(Fault::precondition(format!("close {}: it is in use by now", opened.name)));
    }
    luks::close(&opened.name)
}
