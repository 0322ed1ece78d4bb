//! One volume is one directory: the [`Medium`] of this backend.
//!
//! ```text
//!  <pool>/…/volume-x/           the volume's folder, 0700: nobody but us comes past it
//!           ├── record          the pool's
//!           ├── project.<id>    the project id that was claimed for it (ext4, xfs)
//!           └── data/           what workloads see; on btrfs a subvolume
//! ```

use crate::{
    check,
    ground::{Copies, Ground, Sizes},
    measure::{self, Measures},
    parameters::{PARAMETERS, VolumeParameters},
    project::{self, Kernel},
    record::{self, Consistency, Quota, SnapshotValue, Top, Value},
    subvolumes,
};
use larder_host::{Host, btrfs, copy, durable, quota};
use larder_model::{
    AccessMode, Bytes, Cx, Fault, Kind, PoolName, Result, VolumeId,
    backend::{Attachment, ConnectRequest, Parameter, Source},
    volume::{Attributes, Facts, HealthEntry, Scope, VolumeUsage},
};
use larder_pool::{
    Entry, Medium, Origin, Plan, PlanRequest, Pool, PoolConfig, PoolTraits, SnapshotFacts,
    StaticFacts,
};
use std::{
    fs::Permissions,
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::Path,
    time::{Duration, Instant},
};

/// The size of a volume whose caller asks for none.
const DEFAULT_SIZE: Bytes = Bytes::gib(1);
/// Below this, the directories alone would not fit.
const MIN_SIZE: Bytes = Bytes::mib(1);
/// Quotas count whole blocks.
const SIZE_STEP: Bytes = Bytes::new(4096);
/// How long a deletion counts what goes into the trash.
const MEASURED_WITHIN: Duration = Duration::from_millis(500);
/// How long the file system may take to count removed files no more.
const FREED: Duration = Duration::from_secs(5);
const DATA: &str = "data";
/// Key of the volume context: whether the volume is held to its size.
const ENFORCED: &str = "enforced";

/// Directories as volumes.
#[derive(Debug)]
pub(crate) struct Directories {
    pub(crate) host: Host,
    pub(crate) facts: Facts,
    pub(crate) measures: Measures,
}

impl Directories {
    pub(crate) fn new(host: Host, scope: Scope) -> Self {
        let access_modes = match scope {
            Scope::Node(_) => AccessMode::SINGLE_NODE.to_vec(),
            Scope::Everywhere => AccessMode::ALL.to_vec(),
        };
        let facts = Facts {
            scope,
            access_modes,
            block: false,
            mount: true,
            file_systems: Vec::new(),
            default_size: DEFAULT_SIZE,
            min_size: MIN_SIZE,
            size_step: SIZE_STEP,
            attach_required: false,
            // kubelet's default would hand a directory to the pod's fsGroup only where a claim names
            // a file system, which claims of directories do not.
            fs_group_policy: "File",
            mount_group: true,
            online_expansion: true,
            node_expansion: false,
            ephemeral: true,
            snapshot_topology: false,
            max_volumes_per_node: None,
        };
        Self { host, facts, measures: Measures::default() }
    }

    /// Makes the empty directory or subvolume of a volume that has `value`.
    fn make(&self, ground: &Ground, data: &Path, cx: &Cx) -> Result<()> {
        cx.step("make the directory")?;
        if ground.copies == Copies::Subvolumes {
            return btrfs::create_subvolume(data);
        }
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(data)
            .map_err(|e| Fault::io(format!("make directory {}", data.display()), e))
    }

    /// Holds a volume that was just made to its size.
    fn limit(&self, folder: &Path, data: &Path, value: Value, size: Bytes, cx: &Cx) -> Result<()> {
        match value.quota {
            Quota::Project => project::hold(&Kernel, folder, data, value.limit(size), cx),
            Quota::Qgroup => {
                cx.step("limit the volume's size")?;
                btrfs::set_limit(data, Some(size))
            }
            Quota::None => Ok(()),
        }
    }

    /// Puts the limits of an existing volume in force, where its file system still (or again) can.
    fn enforce(&self, pool: &Pool, volume: &Entry, size: Bytes, cx: &Cx) -> Result<()> {
        check::is_beneath(pool, volume)?;
        if volume.is_static {
            return Ok(());
        }
        let value: Value = volume.medium()?;
        match (value.quota, &Ground::of(pool)?.sizes) {
            (Quota::Project, Sizes::Project) | (Quota::Qgroup, Sizes::Qgroup) => {
                self.limit(&volume.folder, &volume.data, value, size, cx)
            }
            // Made without, or the pool was since mounted without: health tells.
            _ => Ok(()),
        }
    }

    /// What a full copy of `origin` will take at once, in `ground`'s pool.
    fn copy_takes(&self, ground: &Ground, origin: &Origin) -> Result<Bytes> {
        let there = Ground::of(origin.pool())?;
        let shares = match ground.copies {
            Copies::Subvolumes | Copies::Reflinks => ground.is_same_file_system(there),
            Copies::Bytes | Copies::Unknown => false,
        };
        if shares { Ok(Bytes::ZERO) } else { self.allocated(origin.pool(), origin.data()) }
    }
}

impl Medium for Directories {
    fn kind(&self) -> &'static str {
        "dir"
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn data_name(&self) -> &'static str {
        DATA
    }

    fn inspect(&self, name: &PoolName, config: &PoolConfig) -> Result<PoolTraits> {
        Ok(Ground::look(&self.host, config)?.traits(name, config))
    }

    fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
        VolumeParameters::read(parameters).map(drop)
    }

    fn suits(&self, pool: &Pool, parameters: &Attributes) -> Result<()> {
        let parameters = VolumeParameters::read(parameters)?;
        self.suits_ground(pool, Ground::of(pool)?, parameters)
    }

    fn plan(&self, pool: &Pool, request: &PlanRequest<'_>) -> Result<Plan> {
        let spec = request.spec;
        for capability in &spec.capabilities {
            check::capability(&spec.id, &capability.access, Kind::Invalid)?;
        }
        let parameters = VolumeParameters::read(&spec.parameters)?;
        let ground = Ground::of(pool)?;
        self.suits_ground(pool, ground, parameters)?;
        let quota = match ground.sizes {
            Sizes::Project => Quota::Project,
            Sizes::Qgroup => Quota::Qgroup,
            Sizes::Unenforced { .. } => Quota::None,
        };
        let VolumeParameters { mode, uid, gid, inodes, .. } = parameters;
        let top = request.origin.is_none().then_some(Top { mode, uid, gid });
        let size = request.size(DEFAULT_SIZE, MIN_SIZE, SIZE_STEP)?;
        let allocates = match request.origin {
            None => Bytes::ZERO,
            Some(origin) => self.copy_takes(ground, origin)?,
        };
        Ok(Plan {
            size,
            context: [(ENFORCED.to_owned(), (quota != Quota::None).to_string())].into(),
            medium: record::json(&Value { quota, inodes, top })?,
            file_system: None,
            allocates,
        })
    }

    fn create(&self, pool: &Pool, folder: &Path, plan: &Plan, cx: &Cx) -> Result<()> {
        let data = folder.join(DATA);
        let planned: Value = plan.medium()?;
        let ground = Ground::of(pool)?;
        self.make(ground, &data, cx)?;
        if let Some(Top { mode, uid, gid }) = planned.top {
            // First the owner: chown takes the set-uid and set-gid bits away.
            chown(&data, Some(uid), Some(gid))
                .and_then(|()| std::fs::set_permissions(&data, Permissions::from_mode(mode)))
                .map_err(|e| Fault::io(format!("hand out directory {}", data.display()), e))?;
        }
        if planned.quota == Quota::Project {
            project::claim(&Kernel, folder, &data, cx)?;
        }
        self.limit(folder, &data, planned, plan.size, cx)?;
        if ground.copies == Copies::Subvolumes {
            cx.step("make the subvolume durable")?;
            durable::sync_filesystem(folder)?;
        }
        // Elsewhere the record, which is written next, makes it durable: ext4 and xfs write their
        // journal in order, and NFS makes directories on the server at once.
        Ok(())
    }

    fn fill(
        &self,
        pool: &Pool,
        origin: &Origin,
        folder: &Path,
        plan: &Plan,
        cx: &Cx,
    ) -> Result<()> {
        let data = folder.join(DATA);
        let planned: Value = plan.medium()?;
        let ground = Ground::of(pool)?;
        check::origin_is_beneath(origin)?;
        let by_snapshot = ground.copies == Copies::Subvolumes
            && ground.is_same_file_system(Ground::of(origin.pool())?)
            && btrfs::is_subvolume(origin.data())?;
        if by_snapshot {
            cx.step("copy the subvolume")?;
            subvolumes::copy(origin.data(), &data, false, cx)?;
        } else {
            self.make(ground, &data, cx)?;
            if planned.quota == Quota::Project {
                project::claim(&Kernel, folder, &data, cx)?;
            }
            copy_files(origin.data(), &data, cx)?;
        }
        // After the copy: an origin that holds more than its size (it was never enforced) can be
        // copied all the same; the copy then takes no more.
        self.limit(folder, &data, planned, plan.size, cx)?;
        cx.step("make the copy durable")?;
        durable::sync_filesystem(folder)
    }

    fn cut(&self, pool: &Pool, volume: &Entry, folder: &Path, cx: &Cx) -> Result<SnapshotFacts> {
        let data = folder.join(DATA);
        let ground = Ground::of(pool)?;
        check::is_beneath(pool, volume)?;
        let consistency =
            if ground.copies == Copies::Subvolumes && btrfs::is_subvolume(&volume.data)? {
                cx.step("snapshot the subvolume")?;
                subvolumes::copy(&volume.data, &data, true, cx)?;
                Consistency::Volume
            } else {
                if !matches!(ground.copies, Copies::Reflinks | Copies::Subvolumes) {
                    self.expect_room(pool, volume)?;
                }
                self.make(ground, &data, cx)?;
                let report = copy_files(&volume.data, &data, cx)?;
                if report.bytes == 0 { Consistency::File } else { Consistency::None }
            };
        cx.step("make the snapshot durable")?;
        durable::sync_filesystem(folder)?;
        Ok(SnapshotFacts {
            size: volume.record.size,
            medium: record::json(&SnapshotValue { consistency })?,
        })
    }

    fn grow(&self, pool: &Pool, volume: &Entry, size: Bytes, cx: &Cx) -> Result<()> {
        self.enforce(pool, volume, size, cx)
    }

    fn in_use(&self, _pool: &Pool, volume: &Entry) -> Result<Option<String>> {
        let users = match self.host.mounts.users_of_directory(&volume.data) {
            // Its directory is gone: nothing of it can be in use, and the rest of it must go.
            Err(fault) if fault.kind() == Kind::NotFound && is_absent(&volume.data) => {
                return Ok(None);
            }
            users => users?,
        };
        let more = users.len().saturating_sub(3);
        let mut words: Vec<_> = users.iter().take(3).map(ToString::to_string).collect();
        if more > 0 {
            words.push(format!("{more} more"));
        }
        Ok((!words.is_empty()).then(|| words.join(", ")))
    }

    fn remove(&self, pool: &Pool, folder: &Path, cx: &Cx) -> Result<()> {
        let data = folder.join(DATA);
        let ground = Ground::of(pool)?;
        self.measures.forget(&data);
        if ground.copies == Copies::Subvolumes && btrfs::is_subvolume(&data)? {
            cx.step("delete the subvolume")?;
            return btrfs::delete_subvolume(&data);
        }
        if ground.sizes == Sizes::Project {
            cx.step("give the project id back")?;
            if !project::release(&Kernel, folder, &data)? {
                cx.step("remove the directory")?;
                durable::remove_tree(&data)?;
                cx.step("give the project id back")?;
                if let Some(id) = project::claimed(folder)? {
                    quota::wait_until_unused(folder, id, FREED)?;
                }
                if !project::release(&Kernel, folder, &data)? {
                    tracing::warn!(
                        folder = %folder.display(),
                        "a removed volume's project id is used by files elsewhere: its limit stays"
                    );
                }
            }
        }
        Ok(())
    }

    fn look(&self, pool: &Pool, data: &Path) -> Result<StaticFacts> {
        let what = || format!("look at {}", data.display());
        let meta = std::fs::symlink_metadata(data).map_err(|e| Fault::io(what(), e))?;
        if !meta.is_dir() {
            return Err(Fault::precondition(format!("{}: it is no directory", what()))
                .hint("put a directory into the pool's folder static"));
        }
        let size = check::static_size(&self.host, Ground::of(pool)?, pool, data)?;
        Ok(StaticFacts {
            size,
            context: [(ENFORCED.to_owned(), (size > Bytes::ZERO).to_string())].into(),
            medium: serde_json::Value::Null,
            file_system: None,
        })
    }

    fn allocated(&self, _pool: &Pool, data: &Path) -> Result<Bytes> {
        let held = measure::walk(data, None)?;
        Ok(held.map_or(Bytes::ZERO, |held| held.bytes))
    }

    fn takes(&self, _pool: &Pool, data: &Path) -> Result<Bytes> {
        let held = measure::walk(data, Some(Instant::now() + MEASURED_WITHIN))?;
        Ok(held.map_or(Bytes::ZERO, |held| held.bytes))
    }

    fn moved(&self, data: &Path) {
        self.measures.forget(data);
    }

    fn health(
        &self,
        pool: &Pool,
        volume: &Entry,
        _attachment: Option<&Attachment>,
    ) -> Vec<HealthEntry> {
        check::health(self, pool, volume)
    }

    fn connect(
        &self,
        pool: &Pool,
        volume: &Entry,
        request: &ConnectRequest,
        cx: &Cx,
    ) -> Result<(Source, Attachment)> {
        check::capability(&volume.id, &request.capability.access, Kind::Precondition)?;
        check::is_beneath(pool, volume)?;
        cx.step("see that the volume's size is enforced")?;
        match self.enforce(pool, volume, volume.record.size, cx) {
            Err(fault) if fault.is_simulated_crash() => return Err(fault),
            // Its workload matters more than its limit; node_health tells of it.
            Err(fault) => tracing::warn!(volume = %volume.id, %fault, "size not enforced"),
            Ok(()) => {}
        }
        Ok((Source::Directory { path: volume.data.clone() }, Attachment::new()))
    }

    fn find(&self, pool: &Pool, volume: &Entry) -> Result<Option<(Source, Attachment)>> {
        check::is_beneath(pool, volume)?;
        Ok(Some((Source::Directory { path: volume.data.clone() }, Attachment::new())))
    }

    fn disconnect(
        &self,
        _id: &VolumeId,
        _volume: Option<&Entry>,
        _attachment: Option<&Attachment>,
        _cx: &Cx,
    ) -> Result<()> {
        // Nothing is made by connecting.
        Ok(())
    }

    fn is_connected(
        &self,
        _id: &VolumeId,
        volume: Option<&Entry>,
        _attachment: &Attachment,
    ) -> Result<bool> {
        let meta = volume.map(|volume| std::fs::symlink_metadata(&volume.data));
        match meta {
            None => Ok(false),
            Some(Ok(meta)) => Ok(meta.is_dir()),
            Some(Err(e)) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Some(Err(e)) => Err(Fault::io("look at the volume's directory", e)),
        }
    }

    fn refresh_size(
        &self,
        pool: &Pool,
        volume: &Entry,
        _attachment: &Attachment,
        cx: &Cx,
    ) -> Result<Bytes> {
        self.enforce(pool, volume, volume.record.size, cx)?;
        Ok(volume.record.size)
    }

    fn usage(&self, pool: &Pool, volume: &Entry) -> Result<Option<VolumeUsage>> {
        check::usage(self, pool, volume)
    }

    fn copies_share_uuid(&self) -> bool {
        false
    }
}

impl Directories {
    fn suits_ground(
        &self,
        pool: &Pool,
        ground: &Ground,
        parameters: VolumeParameters,
    ) -> Result<()> {
        if parameters.inodes.is_some() && ground.sizes != Sizes::Project {
            return Err(Fault::invalid(format!(
                "limit the number of files in pool {}: it is on {ground}",
                pool.name()
            ))
            .hint("leave parameter inodes out, or use a pool on ext4 or xfs with project quota"));
        }
        let required = parameters.require_quota || pool.config().require_quota;
        match &ground.sizes {
            Sizes::Unenforced { why } if required => {
                // A volume that may only live on this node may find a node that can.
                let kind = match self.facts.scope {
                    Scope::Node(_) => Kind::Exhausted,
                    Scope::Everywhere => Kind::Precondition,
                };
                let what = format!("enforce sizes in pool {}, as requireQuota asks", pool.name());
                Err(Fault::new(kind, what).hint(why.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a full copy that cannot fit, before it fills the disk for everybody.
    fn expect_room(&self, pool: &Pool, volume: &Entry) -> Result<()> {
        let needed = self.allocated(pool, &volume.data)?;
        let free = self.host.filesystems.usage(pool.path())?.available;
        let reserve = pool.config().reserve;
        let left = free.saturating_sub(reserve);
        if needed > left {
            let what = format!(
                "copy volume {}: it holds {needed} bytes and pool {} has {left} free",
                volume.id,
                pool.name()
            );
            return Err(Fault::no_room(what, needed.saturating_add(reserve))
                .hint("a pool on xfs or btrfs copies without taking space"));
        }
        Ok(())
    }
}

/// Copies files with everything that belongs to them.
fn copy_files(from: &Path, to: &Path, cx: &Cx) -> Result<copy::TreeReport> {
    cx.step("copy the files")?;
    copy::tree(from, to, copy::TreeOptions::default(), cx)
}

fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}
