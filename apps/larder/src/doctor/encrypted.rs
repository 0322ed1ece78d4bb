//! Encrypted volumes that are open although nobody has them.

use super::{
    devices,
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::{Scene, image_of},
};
use larder_host::luks::{self, Opened};
use larder_model::Result;

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
    for (driver, pool, look) in scene.pools() {
        let Some(data) = image_of(look, info.backing()) else { continue };
        let native = devices::name_in(data.strip_prefix(&pool.config.path).unwrap_or(&data));
        let is_staged = driver.records.iter().any(|record| {
            let staged = record.staged.as_ref().filter(|_| record.this_boot);
            staged.is_some_and(|s| s.device.as_ref().is_none_or(|path| *path == opened.path))
        });
        if native.as_deref().is_some_and(|native| driver.is_busy_with(native))
            || is_staged
            || !scene.host.mounts.users_of_device(opened.device)?.is_empty()
        {
            return Ok(None);
        }
        let what = format!("{} is open, and nothing uses or knows it", opened.path.display());
        let finding =
            Finding::new(&UNUSED, &data, what).by(Fix::Close { name: opened.name.clone() });
        let finding = match native {
            Some(native) => finding.volume(pool.id(&native)),
            None => finding,
        };
        return Ok(Some(finding.of(driver.name()).in_pool(&pool.name)));
    }
    Ok(None)
}
