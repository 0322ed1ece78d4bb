//! Looking at a volume without changing it: may it be used so, is it where it should be, how full is
//! it, is it healthy.

use crate::{
    ground::{Ground, Sizes},
    measure,
    medium::Directories,
    project::{self, Kernel},
    record::{Quota, Value},
};
use larder_host::{Host, beneath, btrfs, quota};
use larder_model::{
    AccessType, Bytes, Fault, Kind, Result, VolumeId,
    volume::{HealthEntry, HealthStatus, VolumeUsage},
};
use larder_pool::{Entry, Origin, Pool};
use std::path::Path;

/// Refuses raw block access with `kind`: a caller's mistake at creation, a state at stage.
pub(crate) fn capability(id: &VolumeId, access: &AccessType, kind: Kind) -> Result<()> {
    match access {
        AccessType::Mount(_) => Ok(()),
        AccessType::Block => {
            Err(Fault::new(kind, format!("use volume {id} as a raw block device"))
                .hint("it is a directory; use a class of the loop backend for block volumes"))
        }
    }
}

/// Refuses a volume whose directory was replaced by a symlink, or that something is mounted on, so
/// that a bind mount of it shows exactly the pool's own directory. (An administrator's static volume
/// may be a mount point.)
pub(crate) fn is_beneath(pool: &Pool, volume: &Entry) -> Result<()> {
    let mounts = match volume.is_static {
        true => beneath::Mounts::Allowed,
        false => beneath::Mounts::Refused,
    };
    directory(pool, &volume.data, mounts)
        .map_err(|fault| fault.during(format!("use volume {}", volume.id)))
}

/// As [`is_beneath`], for what a new volume is made from.
pub(crate) fn origin_is_beneath(origin: &Origin) -> Result<()> {
    match origin {
        Origin::Volume(pool, volume) => is_beneath(pool, volume),
        Origin::Snapshot(pool, snapshot) => {
            directory(pool, &snapshot.data, beneath::Mounts::Refused)
                .map_err(|fault| fault.during(format!("use snapshot {}", snapshot.id)))
        }
    }
}

fn directory(pool: &Pool, data: &Path, mounts: beneath::Mounts) -> Result<()> {
    let relative = data
        .strip_prefix(pool.path())
        .map_err(|_| Fault::internal(format!("find {} in its pool", data.display())))?;
    beneath::directory(pool.path(), relative, mounts).map(drop).map_err(|fault| {
        match fault.kind() {
            // Its record exists, so the volume does; "not found" would say that it does not.
            Kind::NotFound => fault
                .with_kind(Kind::Corrupt)
                .hint("put the directory back, or restore the volume from a snapshot or backup"),
            _ => fault,
        }
    })
}

/// The size that an administrator's directory is held to; zero: none.
pub(crate) fn static_size(host: &Host, ground: &Ground, pool: &Pool, data: &Path) -> Result<Bytes> {
    let limit = match ground.sizes {
        Sizes::Project => match quota::project_of(data)? {
            Some(id) => quota::project_usage(data, id)?.total,
            None => return Ok(Bytes::ZERO),
        },
        Sizes::Qgroup if btrfs::is_subvolume(data)? => btrfs::usage(data)?.total,
        Sizes::Qgroup | Sizes::Unenforced { .. } => return Ok(Bytes::ZERO),
    };
    // Without a limit both answer with the size of the file system.
    let whole = host.filesystems.usage(pool.path())?.total;
    Ok(if limit < whole { limit } else { Bytes::ZERO })
}

/// How full the volume is, where statfs of its mount does not tell; None: it does.
pub(crate) fn usage(dir: &Directories, pool: &Pool, volume: &Entry) -> Result<Option<VolumeUsage>> {
    let size = volume.record.size;
    let quota = if volume.is_static { Quota::None } else { volume.medium::<Value>()?.quota };
    let used = match (quota, &Ground::of(pool)?.sizes) {
        // The kernel answers statfs of a directory with a limited project with that limit.
        (Quota::Project, Sizes::Project) => return Ok(None),
        (Quota::Qgroup, Sizes::Qgroup) => {
            measure::Held { bytes: btrfs::usage(&volume.data)?.used, inodes: 0 }
        }
        // A network file system may hang, and a static directory without a limit has no size.
        _ if pool.config().shared || size == Bytes::ZERO => return Ok(None),
        _ => match dir.measures.of(&volume.data)? {
            Some(held) => held,
            None => return Ok(None),
        },
    };
    let whole = dir.host.filesystems.usage(pool.path())?;
    let (inodes, inodes_free) = match used.inodes {
        0 => (0, 0),
        n => (n.saturating_add(whole.inodes_free), whole.inodes_free),
    };
    Ok(Some(VolumeUsage {
        total: size,
        available: size.saturating_sub(used.bytes).min(whole.available),
        used: used.bytes,
        inodes,
        inodes_free,
        inodes_used: used.inodes,
    }))
}

/// What is wrong with a volume whose directory exists.
pub(crate) fn health(dir: &Directories, pool: &Pool, volume: &Entry) -> Vec<HealthEntry> {
    if let Err(fault) = is_beneath(pool, volume) {
        return vec![HealthEntry {
            status: HealthStatus::Inaccessible,
            reason: "DirectoryReplaced",
            message: fault.to_string(),
        }];
    }
    if volume.is_static {
        return Vec::new();
    }
    match quota_lost(pool, volume) {
        Ok(Some(why)) => vec![degraded(
            "QuotaLost",
            format!("the size of volume {} is not enforced any more: {why}", volume.id),
        )],
        Ok(None) => over_size(dir, volume).into_iter().collect(),
        Err(fault) => vec![degraded(
            "QuotaUnknown",
            format!("it cannot be told whether volume {} is held to its size: {fault}", volume.id),
        )],
    }
}

fn degraded(reason: &'static str, message: String) -> HealthEntry {
    HealthEntry { status: HealthStatus::Degraded, reason, message }
}

/// Why the volume is not held to its size although it was made so; None: it is, or never was.
fn quota_lost(pool: &Pool, volume: &Entry) -> Result<Option<String>> {
    let value: Value = volume.medium()?;
    let size = volume.record.size;
    let again = "it is put back when the volume is staged the next time, or expanded";
    let held = match (value.quota, &Ground::of(pool)?.sizes) {
        (Quota::None, _) => true,
        (Quota::Project, Sizes::Project) => match project::claimed(&volume.folder)? {
            Some(id) => project::is_held(&Kernel, id, &volume.data, value.limit(size))?,
            None => false,
        },
        (Quota::Qgroup, Sizes::Qgroup) => {
            btrfs::is_subvolume(&volume.data)? && btrfs::usage(&volume.data)?.total == size
        }
        (_, Sizes::Unenforced { why }) => return Ok(Some(why.clone())),
        (_, Sizes::Project | Sizes::Qgroup) => {
            return Ok(Some("the pool was moved to another kind of file system".to_owned()));
        }
    };
    Ok((!held).then(|| format!("its limit is gone; {again}")))
}

/// A volume that nothing enforces and that was last seen to hold more than its size.
fn over_size(dir: &Directories, volume: &Entry) -> Option<HealthEntry> {
    let held = dir.measures.last(&volume.data)?.bytes;
    let size = volume.record.size;
    (held > size).then(|| {
        degraded(
            "SizeExceeded",
            format!(
                "volume {} holds {held} bytes, more than its size {size}, which nothing enforces; \
                 expand it or remove files",
                volume.id
            ),
        )
    })
}
