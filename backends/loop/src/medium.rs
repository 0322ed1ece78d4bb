//! A volume as an image file: what the pool asks of it.

use crate::{
    blocks, btrfs,
    copying::{Consistency, Copier, FreezeLimits, Job, Sharing},
    devices::{self, Attached, Image, Wanted},
    health,
    params::{self, Allocation, Asked, DEFAULT_SIZE, MIN_SIZE, PARAMETERS, SIZE_STEP, Shape},
    together::Twin,
};
use larder_host::{Host, LoopInfo, copy, freeze::Freezer, image};
use larder_model::{
    AccessMode, Bytes, Cx, Fault, FsType, Kind, NodeName, PoolName, Result, VolumeId,
    backend::{Attachment, ConnectRequest, FoundExtents, Parameter, Source},
    volume::{Attributes, Facts, FormatState, HealthEntry, Scope},
};
use larder_pool::{
    Access, Blocks, Entry, Medium, Origin, Part, Plan, PlanRequest, Pool, PoolConfig, PoolTraits,
    SnapshotEntry, SnapshotFacts, StaticFacts,
};
use serde::Serialize;
use serde_json::Value;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The name of the image in a volume's or snapshot's folder.
pub(crate) const IMAGE: &str = "image";

/// Volumes as image files with loop devices.
pub struct LoopMedium {
    facts: Facts,
    host: Host,
    copier: Copier,
}

/// What was found out about a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Below {
    /// The kernel's name of the file system.
    fs: String,
    /// Files can share blocks.
    reflink: bool,
}

/// The medium's part of a snapshot's record.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cut {
    consistency: Consistency,
}

impl fmt::Debug for LoopMedium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopMedium").finish_non_exhaustive()
    }
}

impl LoopMedium {
    /// Volumes on `node`. `freezer` protects the file systems of all pools and of our own state.
    pub fn new(host: Host, node: NodeName, freezer: Arc<Freezer>, limits: FreezeLimits) -> Self {
        let facts = Facts {
            scope: Scope::Node(node),
            access_modes: AccessMode::SINGLE_NODE.to_vec(),
            block: true,
            mount: true,
            file_systems: FsType::ALL.to_vec(),
            default_size: DEFAULT_SIZE,
            min_size: MIN_SIZE,
            size_step: SIZE_STEP,
            attach_required: false,
            // Not ReadWriteOnceWithFSType: kubelet would leave out volumes whose class names no
            // file system, which are formatted with the pool's default all the same.
            fs_group_policy: "File",
            mount_group: true,
            online_expansion: true,
            node_expansion: true,
            ephemeral: true,
            snapshot_topology: false,
            max_volumes_per_node: None,
        };
        let copier = Copier { host: host.clone(), freezer, limits };
        Self { facts, host, copier }
    }

    /// Copies the image of `origin` to `to`.
    fn copy(
        &self,
        origin: Original<'_>,
        to: &Path,
        own_blocks: bool,
        cx: &Cx,
    ) -> Result<Consistency> {
        let image = Image::sound(origin.data, origin.size)?;
        let sharing = match (below(origin.pool).reflink, own_blocks) {
            (false, _) => Sharing::Impossible,
            (true, true) => Sharing::Aside,
            (true, false) => Sharing::Direct,
        };
        self.copier.copy(&Job { from: &image.path, whose: &origin.name, to, sharing }, cx)
    }

    /// A full copy that cannot fit must not fill the pool on the way: other volumes' writes would
    /// fail meanwhile.
    fn refuse_without_room(&self, pool: &Pool, images: &[&Path]) -> Result<()> {
        let mut needed = Bytes::ZERO;
        for image in images {
            needed = needed.saturating_add(image::allocated(image)?);
        }
        let free = self.host.filesystems.usage(pool.path())?.available;
        let reserve = pool.config().reserve;
        let left = free.saturating_sub(reserve);
        if needed <= left {
            return Ok(());
        }
        let what =
            format!("find {needed} for a full copy in pool {}: {left} are free", pool.name());
        Err(Fault::no_room(what, needed.saturating_add(reserve))
            .hint("delete volumes or snapshots, or move the pool to xfs (with reflink) or btrfs"))
    }

    /// Devices over the image, and over a former file of its name.
    fn devices(&self, path: &Path) -> Result<Vec<LoopInfo>> {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let image = Image::look(path)?;
        let mut devices = self.host.loops.list()?;
        devices.retain(|info| {
            image.as_ref().is_some_and(|image| image.is_behind(info))
                || info.backing_file.as_deref() == Some(real.as_path())
        });
        Ok(devices)
    }

    /// Who uses the device: mounts, openers, stacked devices, and places where its file under
    /// `/dev` is shown to a workload that does not have it open just now.
    fn users(&self, info: &LoopInfo) -> Result<Vec<String>> {
        let users = self.host.mounts.users_of_device(info.device)?;
        let mut users: Vec<_> = users.iter().map(ToString::to_string).collect();
        let place = devices::published(&self.host, info)?;
        users.extend(place.map(|place| format!("published at {}", place.display())));
        Ok(users)
    }
}

/// An image to copy.
struct Original<'a> {
    pool: &'a Pool,
    data: &'a Path,
    size: Bytes,
    name: String,
}

/// What was found out about an open pool.
fn below(pool: &Pool) -> Below {
    let unknown = || Below { fs: String::new(), reflink: false };
    pool.traits().detail::<Below>().cloned().unwrap_or_else(unknown)
}

fn value<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Fault::internal("write a record").because(e))
}

impl Medium for LoopMedium {
    fn kind(&self) -> &'static str {
        "loop"
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn data_name(&self) -> &'static str {
        IMAGE
    }

    fn static_suffix(&self) -> &'static str {
        ".img"
    }

    fn inspect(&self, _name: &PoolName, config: &PoolConfig) -> Result<PoolTraits> {
        let fs = self.file_system_of(&config.path)?;
        let reflink = match copy::reflink_supported(&config.scratch()) {
            // Full, or read-only (without such a folder even): it cannot be tried. Hoping is safe, each copy finds out for itself.
            Err(fault)
                if matches!(
                    fault.kind(),
                    Kind::Exhausted | Kind::Precondition | Kind::NotFound
                ) =>
            {
                matches!(fs.as_str(), "xfs" | "btrfs")
            }
            tried => tried?,
        };
        let storage = format!("{fs}{}", if reflink { " with reflink" } else { " without reflink" });
        let warning = warning(&fs);
        let mut traits = PoolTraits::new(storage, Below { fs, reflink });
        if !reflink {
            traits = traits.warning(format!(
                "files cannot share blocks here: snapshots and clones are full copies, and a \
                 volume is copied while mounted only up to {} of data; use xfs (with reflink) or \
                 btrfs",
                self.copier.limits.copied
            ));
        }
        Ok(match warning {
            Some(text) => traits.warning(text),
            None => traits,
        })
    }

    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        Asked::parse(parameters).map(|_| ())
    }

    fn plan(&self, pool: &Pool, request: &PlanRequest<'_>) -> Result<Plan> {
        let decision = params::decide(request, pool.config().fs)?;
        let allocates = match (decision.shape.allocation, request.origin) {
            (Allocation::Preallocated, _) => decision.size,
            (Allocation::Sparse, None) => Bytes::ZERO,
            (Allocation::Sparse, Some(origin)) => {
                let shares = origin.pool().name() == pool.name() && below(pool).reflink;
                if shares { Bytes::ZERO } else { image::allocated(origin.data())? }
            }
        };
        Ok(Plan {
            size: decision.size,
            context: decision.context,
            medium: value(&decision.shape)?,
            file_system: Some(FormatState::Unformatted),
            allocates,
        })
    }

    fn create(&self, _pool: &Pool, folder: &Path, plan: &Plan, cx: &Cx) -> Result<()> {
        let shape: Shape = plan.medium()?;
        cx.step("make the image")?;
        match shape.allocation {
            Allocation::Sparse => image::create_sparse(&folder.join(IMAGE), plan.size),
            Allocation::Preallocated => image::preallocate(&folder.join(IMAGE), plan.size),
        }
    }

    fn fill(
        &self,
        _pool: &Pool,
        origin: &Origin,
        folder: &Path,
        plan: &Plan,
        cx: &Cx,
    ) -> Result<()> {
        let shape: Shape = plan.medium()?;
        let to = folder.join(IMAGE);
        let own_blocks = shape.allocation == Allocation::Preallocated;
        let source = Original {
            pool: origin.pool(),
            data: origin.data(),
            size: origin.size(),
            name: origin.describe(),
        };
        self.copy(source, &to, own_blocks, cx)?;
        cx.step("grow the copy to its size")?;
        image::grow(&to, plan.size)?;
        if own_blocks {
            cx.step("reserve the copy's space")?;
            image::reserve_all(&to)?;
        }
        if shape.mount {
            cx.step("give a btrfs its own fsid")?;
            btrfs::give_fsid(&to, uuid::Uuid::new_v4().into_bytes())?;
        }
        Ok(())
    }

    fn cut(&self, pool: &Pool, volume: &Entry, folder: &Path, cx: &Cx) -> Result<SnapshotFacts> {
        let to = folder.join(IMAGE);
        let source = Original {
            pool,
            data: &volume.data,
            size: volume.record.size,
            name: format!("volume {}", volume.id),
        };
        if !below(pool).reflink {
            self.refuse_without_room(pool, &[&volume.data])?;
        }
        let consistency = self.copy(source, &to, false, cx)?;
        let cut = Image::sound(&to, volume.record.size)?;
        Ok(SnapshotFacts { size: cut.size, medium: value(&Cut { consistency })? })
    }

    fn has_limits(&self) -> bool {
        true
    }

    fn cuts_together(&self) -> bool {
        true
    }

    fn cut_together(&self, pool: &Pool, parts: &[Part<'_>], cx: &Cx) -> Result<Vec<SnapshotFacts>> {
        let sharing = if below(pool).reflink { Sharing::Direct } else { Sharing::Impossible };
        if sharing == Sharing::Impossible {
            let images: Vec<_> = parts.iter().map(|part| &*part.volume.data).collect();
            self.refuse_without_room(pool, &images)?;
        }
        let mut names = Vec::new();
        for Part { volume, folder } in parts {
            Image::sound(&volume.data, volume.record.size)?;
            names.push((format!("volume {}", volume.id), folder.join(IMAGE)));
        }
        let twins = parts.iter().zip(&names);
        let twins: Vec<_> = twins
            .map(|(part, (whose, to))| {
                let access = &part.volume.record.access;
                let raw = access.is_empty() || access.contains(&Access::Block);
                Twin { from: &part.volume.data, whose, to, raw }
            })
            .collect();
        let consistency = self.copier.copy_together(&twins, sharing, cx)?;
        let cut = parts.iter().zip(&twins).zip(consistency);
        cut.map(|((part, twin), consistency)| {
            let image = Image::sound(twin.to, part.volume.record.size)?;
            Ok(SnapshotFacts { size: image.size, medium: value(&Cut { consistency })? })
        })
        .collect()
    }

    fn tracks_blocks(&self) -> bool {
        true
    }

    fn blocks(
        &self,
        _pool: &Pool,
        base: Option<&SnapshotEntry>,
        target: &SnapshotEntry,
        wanted: Blocks,
    ) -> Result<FoundExtents> {
        blocks::of(base, target, wanted)
    }

    fn grow(&self, _pool: &Pool, volume: &Entry, size: Bytes, cx: &Cx) -> Result<()> {
        let shape: Shape = volume.medium()?;
        let image = Image::sound(&volume.data, volume.record.size)?;
        cx.step("grow the image")?;
        match shape.allocation {
            Allocation::Sparse => image::grow(&image.path, size)?,
            Allocation::Preallocated => {
                // What the workload gave back (discard) is part of the promise as well.
                image::reserve_all(&image.path)?;
                image::grow_preallocated(&image.path, size)?
            }
        };
        Ok(())
    }

    fn growth_allocates(&self, _pool: &Pool, volume: &Entry, size: Bytes) -> Bytes {
        match volume.medium::<Shape>() {
            Ok(Shape { allocation: Allocation::Preallocated, .. }) => {
                size.saturating_sub(volume.record.size)
            }
            _ => Bytes::ZERO,
        }
    }

    fn in_use(&self, _pool: &Pool, volume: &Entry) -> Result<Option<String>> {
        let devices = self.devices(&volume.data)?;
        for info in &devices {
            let users = self.users(info)?;
            if !users.is_empty() {
                let shown = users.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
                return Ok(Some(format!("{} is {shown}", info.path.display())));
            }
        }
        // Left by a process that was killed: nobody has it mounted, open or published.
        for info in devices {
            match devices::detach(&self.host, &info) {
                Ok(()) => {}
                Err(fault) if fault.kind() == Kind::Precondition => {
                    return Ok(Some(fault.to_string()));
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }

    fn remove(&self, _pool: &Pool, folder: &Path, cx: &Cx) -> Result<()> {
        cx.step("detach what is left of the image's device")?;
        devices::detach_all(&self.host, &folder.join(IMAGE))
    }

    fn look(&self, _pool: &Pool, data: &Path) -> Result<StaticFacts> {
        let image = Image::look(data)?.ok_or_else(|| {
            Fault::not_found(format!("look at image {}: it is missing", data.display()))
        })?;
        let shape = Shape { mount: true, ..Shape::default() };
        Ok(StaticFacts {
            size: image.size,
            context: Attributes::new(),
            medium: value(&shape)?,
            file_system: Some(FormatState::Foreign),
        })
    }

    fn allocated(&self, _pool: &Pool, data: &Path) -> Result<Bytes> {
        image::allocated(data)
    }

    fn health(
        &self,
        _pool: &Pool,
        volume: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        health::of_image(&self.host, &volume.data, volume.record.size, attachment)
    }

    fn max_size(&self, pool: &Pool) -> Option<Bytes> {
        use std::os::unix::fs::MetadataExt;
        // ext4 numbers the blocks of a file with 32 bits.
        let block = std::fs::metadata(pool.path()).ok()?.blksize();
        (below(pool).fs == "ext4").then(|| Bytes::new(block * u64::from(u32::MAX)))
    }

    fn connect(
        &self,
        pool: &Pool,
        volume: &Entry,
        request: &ConnectRequest,
        cx: &Cx,
    ) -> Result<(Source, Attachment)> {
        let image = Image::sound(&volume.data, volume.record.size)?;
        let mut shape: Shape = volume.medium()?;
        if volume.is_static {
            shape = Asked::of_context(&request.context)?.over(shape);
        }
        let wanted = Wanted {
            shape,
            read_only: request.readonly || request.capability.mode.is_reader_only(),
            block: request.capability.is_block(),
            direct_io_safe: direct_io_is_safe(&below(pool).fs),
        };
        if shape.allocation == Allocation::Preallocated && !wanted.read_only {
            cx.step("reserve what the workload gave back")?;
            // The volume is worth more than the promise: without the space it works as a sparse one.
            if let Err(fault) = image::reserve_all(&image.path) {
                tracing::warn!(volume = %volume.id, "cannot reserve its space again: {fault}");
            }
        }
        devices::attach(&self.host, &image, wanted, cx)
    }

    fn find(&self, _pool: &Pool, volume: &Entry) -> Result<Option<(Source, Attachment)>> {
        devices::find(&self.host, &volume.data)
    }

    fn disconnect(
        &self,
        id: &VolumeId,
        volume: Option<&Entry>,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        let of_volume = |fault: Fault| fault.during(format!("disconnect volume {id}"));
        cx.step("detach the loop device")?;
        match attachment.map(Attached::parse) {
            Some(Ok(attached)) => {
                if let Some(info) = attached.find(&self.host)? {
                    devices::detach(&self.host, &info).map_err(of_volume)?;
                }
            }
            // What the record does not tell is found by the image.
            Some(Err(fault)) if volume.is_none() => return Err(of_volume(fault)),
            Some(Err(_)) | None => {}
        }
        match volume {
            Some(volume) => devices::detach_all(&self.host, &volume.data).map_err(of_volume),
            None => Ok(()),
        }
    }

    /// Number and backing file as recorded. Whether that file still has its name is no part of the
    /// answer: what is said not to be connected is taken back, and a device may be the last that
    /// holds a deleted image. Health and the next connect tell.
    fn is_connected(
        &self,
        _id: &VolumeId,
        _volume: Option<&Entry>,
        attachment: &Attachment,
    ) -> Result<bool> {
        let Ok(attached) = Attached::parse(attachment) else { return Ok(false) };
        Ok(attached.find(&self.host)?.is_some())
    }

    fn refresh_size(
        &self,
        _pool: &Pool,
        volume: &Entry,
        attachment: &Attachment,
        cx: &Cx,
    ) -> Result<Bytes> {
        let image = Image::sound(&volume.data, volume.record.size)?;
        let attached = Attached::parse(attachment)?;
        if !attached.is(&image) || attached.find(&self.host)?.is_none() {
            return Err(Fault::precondition(format!(
                "resize loop device {} of volume {}: it is not attached to the volume's image any more",
                attached.number, volume.id
            ))
            .hint("unpublish and unstage the volume, then publish it again"));
        }
        cx.step("make the loop device as large as its image")?;
        self.host.loops.set_capacity(attached.number)
    }

    fn node_health(
        &self,
        _pool: &Pool,
        volume: &Entry,
        attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        match attachment {
            Some(attachment) => health::of_device(&self.host, &volume.data, attachment),
            None => health::of_former(&self.host, &volume.data).into_iter().collect(),
        }
    }
}

impl LoopMedium {
    /// The kernel's name of the file system that holds `path`.
    fn file_system_of(&self, path: &Path) -> Result<String> {
        let real: PathBuf = std::fs::canonicalize(path)
            .map_err(|e| Fault::io(format!("look at {}", path.display()), e))?;
        let table = self.host.mounts.table()?;
        // Later entries lie on top of earlier ones at the same place.
        let holds = table.iter().filter(|m| real.starts_with(&m.target));
        let nearest = holds.max_by_key(|m| m.target.components().count());
        Ok(nearest.map_or_else(|| "unknown file system".to_owned(), |m| m.fs_type.clone()))
    }
}

/// btrfs computes checksums of what direct I/O hands it and then writes it: pages that change in
/// between (a file system on a loop device does that) leave blocks whose checksum is wrong. Since
/// Linux 6.15 btrfs goes through the page cache by itself there.
fn direct_io_is_safe(fs: &str) -> bool {
    fs != "btrfs"
}

fn warning(fs: &str) -> Option<String> {
    match fs {
        "tmpfs" | "ramfs" => Some(format!("{fs} is memory: volumes are lost with a restart")),
        "overlay" => Some(
            "an overlay is a container's own file system: volumes are lost with the container"
                .to_owned(),
        ),
        "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "9p" | "glusterfs" => Some(format!(
            "{fs} is a network file system: volumes stay bound to this node, and hang when the \
             server does"
        )),
        fs if fs.starts_with("fuse") => Some(format!(
            "{fs} runs in a process: volumes fail with it, and its writes may need memory that is \
             only freed by writing to it"
        )),
        _ => None,
    }
}
