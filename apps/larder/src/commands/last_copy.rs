//! Whether what is mounted is the last that has a volume's data: its image was deleted or replaced below
//! the device, which goes with the last unmount.

use super::answer;
use crate::session::Session;
use larder_model::{Fault, Result};
use larder_proto::csi;
use std::path::Path;

/// What the `loop` backend calls that (docs/backends/loop.md).
const REASONS: [&str; 2] = ["ImageDeleted", "ImageReplaced"];

/// Refuses to let go of it. Drivers that do not tell are believed to have the data elsewhere.
///
/// # Errors
/// `Precondition`.
pub(super) async fn refuse(session: &Session, volume: &str, staging: &Path) -> Result<()> {
    let request = csi::NodeGetVolumeHealthRequest {
        volume_id: volume.to_owned(),
        staging_target_path: staging.display().to_string(),
        ..Default::default()
    };
    let told = answer(session.client().node().node_get_volume_health(request).await);
    let Some(health) = told.ok().and_then(|told| told.volume_health) else { return Ok(()) };
    let mut entries = health.health_statuses.into_iter();
    match entries.find(|entry| REASONS.contains(&entry.reason.as_str())) {
        Some(entry) => Err(Fault::precondition(format!(
            "unmount {volume}: {}: {}",
            entry.reason, entry.message
        ))
        .hint("copy its data away first; --force gives it up")),
        None => Ok(()),
    }
}
