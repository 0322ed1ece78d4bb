//! What people call volumes and snapshots, and the ids that drivers know them by.
//!
//! | written | meant |
//! |---|---|
//! | `data` | the volume that was created under that name, in the default pool |
//! | `fast/data` | the volume with that id (in our drivers: pool and native name) |
//! | `data@monday` | the snapshot of `data` that was created under that name |
//! | `@fast/data.monday` | the snapshot with that id, such as one of a group |
//!
//! A snapshot's CSI name is `<volume's native name>.<snapshot>`: names of snapshots are unique in a
//! driver, those on the command line only within their volume.

use crate::session::Session;
use larder_model::{Fault, RequestedName, Result};
use larder_proto::csi;

/// The name of a volume that is to be made: a pool is chosen by `--pool`.
///
/// # Errors
/// `Invalid` for what would read as an id everywhere else.
pub(crate) fn new_volume(text: &str) -> Result<&str> {
    match text.split_once('/') {
        None => Ok(text),
        Some((pool, name)) => {
            Err(Fault::invalid(format!("create a volume called {text:?}: names have no slash"))
                .hint(format!("larder volume create {name} --pool {pool}")))
        }
    }
}

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

/// The id of a snapshot that exists, from `VOLUME@NAME`, `@ID` or an id. Looked up and never just composed:
/// deleting an id that cannot be succeeds, and `db@prod.monday` has the same CSI name as
/// `db.prod@monday`.
///
/// # Errors
/// `Invalid`, `NotFound`.
pub(crate) async fn snapshot_id(session: &Session, text: &str) -> Result<String> {
    let id = text.strip_prefix('@').unwrap_or(text);
    if !id.contains('@') && id.contains('/') {
        return existing_snapshot(session, id.to_owned(), None, text).await;
    }
    let (volume, snapshot) = split_snapshot(text)?;
    if session.is_foreign() {
        return foreign_snapshot(session, volume, snapshot).await;
    }
    let volume = volume_id(session, volume).await?;
    let Some((pool, _)) = volume.split_once('/') else { return Err(no_snapshot(text)) };
    let name: RequestedName = snapshot_name(&volume, snapshot).parse()?;
    let id = format!("{pool}/{}", name.native());
    existing_snapshot(session, id, Some(volume), text).await
}

/// The snapshot with that id, which is one of `source` where that is known.
async fn existing_snapshot(
    session: &Session,
    id: String,
    source: Option<String>,
    text: &str,
) -> Result<String> {
    let request = csi::ListSnapshotsRequest {
        snapshot_id: id.clone(),
        source_volume_id: source.clone().unwrap_or_default(),
        ..Default::default()
    };
    let found = match super::snapshot::all(session, request).await {
        Ok(found) => found,
        // A driver that cannot list: what was written must be the id.
        Err(fault) if fault.kind() == larder_model::Kind::Unsupported => return Ok(id),
        Err(fault) => return Err(fault),
    };
    let is_it = |found: &csi::Snapshot| {
        found.snapshot_id == id && source.as_ref().is_none_or(|s| *s == found.source_volume_id)
    };
    if found.iter().any(is_it) { Ok(id) } else { Err(no_snapshot(text)) }
}

fn no_snapshot(text: &str) -> Fault {
    Fault::not_found(format!("find snapshot {text}")).hint("larder snapshot ls shows them")
}

/// Looks through the snapshots of a driver whose form of ids is not known. A guess would not do:
/// deleting an id that cannot be succeeds.
async fn foreign_snapshot(session: &Session, volume: &str, snapshot: &str) -> Result<String> {
    let snapshots = match super::snapshot::all(session, csi::ListSnapshotsRequest::default()).await
    {
        Ok(snapshots) => snapshots,
        // A driver that cannot list: the part after @ must be the id.
        Err(fault) if fault.kind() == larder_model::Kind::Unsupported => {
            return Ok(snapshot.to_owned());
        }
        Err(fault) => return Err(fault),
    };
    pick_snapshot(snapshots, volume, snapshot)
        .ok_or_else(|| no_snapshot(&format!("{volume}@{snapshot}")))
}

/// The id of the snapshot that is shown as `VOLUME@SNAPSHOT`, or that is the volume's with that id.
fn pick_snapshot(of: Vec<csi::Snapshot>, volume: &str, snapshot: &str) -> Option<String> {
    let text = format!("{volume}@{snapshot}");
    let wanted = |candidate: &csi::Snapshot| {
        let source = &candidate.source_volume_id;
        let own = source == volume || native_part(source) == volume;
        shown_snapshot(candidate) == text
            || (own && candidate.snapshot_id == snapshot)
            || (source == volume
                && candidate.snapshot_id.ends_with(&snapshot_name(source, snapshot)))
    };
    of.into_iter().find(wanted).map(|found| found.snapshot_id)
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
    fn a_snapshot_is_found_by_what_it_is_shown_as_or_by_its_id_and_never_guessed() {
        let list = || {
            let snapshot = |id: &str, source: &str| csi::Snapshot {
                snapshot_id: id.to_owned(),
                source_volume_id: source.to_owned(),
                ..csi::Snapshot::default()
            };
            vec![
                snapshot("default/other.s1", "default/other"),
                snapshot("default/v1.s1", "default/v1"),
                snapshot("0042", "vol"),
            ]
        };
        let pick = |volume, snapshot| pick_snapshot(list(), volume, snapshot);
        assert_eq!(pick("v1", "s1").as_deref(), Some("default/v1.s1"));
        assert_eq!(pick("default/v1", "s1").as_deref(), Some("default/v1.s1"));
        assert_eq!(pick("vol", "0042").as_deref(), Some("0042"));
        assert_eq!(pick("v1", "0042"), None);
        assert_eq!(pick("v1", "s2"), None);
    }

    #[test]
    fn half_a_snapshot_name_is_refused() {
        for wrong in ["data", "@x", "data@", "@"] {
            assert!(split_snapshot(wrong).is_err(), "{wrong}");
        }
    }
}
