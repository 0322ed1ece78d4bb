//! What people call volumes and snapshots, and the ids that drivers know them by.
//!
//! | written | meant |
//! |---|---|
//! | `data` | the volume that was created under that name, in the default pool |
//! | `fast/data` | the volume with that id (in our drivers: pool and native name) |
//! | `data@monday` | the snapshot of `data` that was created under that name |
//!
//! A snapshot's CSI name is `<volume's native name>.<snapshot>`: names of snapshots are unique in a
//! driver, those on the command line only within their volume.

use crate::session::Session;
use larder_model::{Fault, RequestedName, Result};
use larder_proto::csi;

/// A volume's id.
///
/// # Errors
/// `Invalid` for what cannot be a name; of a foreign driver `NotFound` where nothing fits.
pub(crate) async fn volume_id(session: &Session, text: &str) -> Result<String> {
    if text.contains('/') {
        return Ok(text.to_owned());
    }
    let name: RequestedName = text.parse()?;
    match session.default_pool()? {
        Some(pool) => Ok(format!("{pool}/{}", name.native())),
        None => foreign_volume(session, text, &name).await,
    }
}

/// Looks through the volumes of a driver whose form of ids is not known.
async fn foreign_volume(session: &Session, text: &str, name: &RequestedName) -> Result<String> {
    let native = format!("/{}", name.native());
    let volumes = match super::volume::all(session).await {
        Ok(volumes) => volumes,
        // A driver that cannot list: what was written must be the id.
        Err(fault) if fault.kind() == larder_model::Kind::Unsupported => return Ok(text.to_owned()),
        Err(fault) => return Err(fault),
    };
    let mut ids = volumes.into_iter().map(|v| v.volume_id);
    ids.find(|id| id == text || id.ends_with(&native)).ok_or_else(|| {
        Fault::not_found(format!("find volume {text}")).hint("larder volume ls shows the ids")
    })
}

/// The parts of `VOLUME@SNAPSHOT`.
///
/// # Errors
/// `Invalid` where it has another form.
pub(crate) fn split_snapshot(text: &str) -> Result<(&str, &str)> {
    match text.split_once('@') {
        Some((volume, snapshot)) if !volume.is_empty() && !snapshot.is_empty() => {
            Ok((volume, snapshot))
        }
        _ => Err(Fault::invalid(format!("read {text:?} as a snapshot")).hint("write VOLUME@NAME")),
    }
}

/// The CSI name of a snapshot of the volume with that id.
pub(crate) fn snapshot_name(volume_id: &str, snapshot: &str) -> String {
    format!("{}.{snapshot}", native_part(volume_id))
}

fn native_part(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// A snapshot's id, from `VOLUME@NAME` or an id.
///
/// # Errors
/// `Invalid`, `NotFound`.
pub(crate) async fn snapshot_id(session: &Session, text: &str) -> Result<String> {
    if !text.contains('@') && text.contains('/') {
        return Ok(text.to_owned());
    }
    let (volume, snapshot) = split_snapshot(text)?;
    let volume = volume_id(session, volume).await?;
    match (session.is_foreign(), volume.split_once('/')) {
        (false, Some((pool, _))) => {
            let name: RequestedName = snapshot_name(&volume, snapshot).parse()?;
            Ok(format!("{pool}/{}", name.native()))
        }
        // The driver's own ids: the part after @ must be one of them.
        _ => Ok(snapshot.to_owned()),
    }
}

/// How a snapshot is shown: `VOLUME@NAME` where its name is of that form, else its id.
pub(crate) fn shown_snapshot(snapshot: &csi::Snapshot) -> String {
    let volume = native_part(&snapshot.source_volume_id);
    match native_part(&snapshot.snapshot_id).strip_prefix(volume).and_then(|r| r.strip_prefix('.'))
    {
        Some(name) => format!("{volume}@{name}"),
        None => snapshot.snapshot_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_shown_as_it_was_written() {
        let snapshot = csi::Snapshot {
            snapshot_id: "default/data.monday".to_owned(),
            source_volume_id: "default/data".to_owned(),
            ..csi::Snapshot::default()
        };
        assert_eq!(snapshot_name("default/data", "monday"), "data.monday");
        assert_eq!(shown_snapshot(&snapshot), "data@monday");
        let other = csi::Snapshot { source_volume_id: "default/else".to_owned(), ..snapshot };
        assert_eq!(shown_snapshot(&other), "default/data.monday");
    }

    #[test]
    fn half_a_snapshot_name_is_refused() {
        for wrong in ["data", "@x", "data@", "@"] {
            assert!(split_snapshot(wrong).is_err(), "{wrong}");
        }
    }
}
