//! Everything that the checks look at, seen once. Nothing is locked, started or changed.

use super::finding::Sort;
use crate::{
    backends,
    commands::mounts::Mounted,
    config::{DriverSettings, Settings},
    session,
};
use larder_csi::Client;
use larder_host::{DeviceId, Host, LoopInfo, MountEntry, Usage, lock::Holder, loops::Backing};
use larder_model::{DriverName, Fault, PoolName, Result};
use larder_pool::{
    DataNames, MountRule, PoolConfig,
    look::{Item, Look},
    record::VolumeRecord,
};
use larder_proto::larder::{ListOperationsRequest, ListPoolsRequest};
use larder_volumes::node::look::{RecordLook, Unreadable};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a serving process may take to say what it works on.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the process that serves a driver says.
#[derive(Default)]
pub(crate) struct Served {
    /// Who it is, in words.
    pub(crate) who: String,
    /// The ids of what it works on.
    busy: Vec<String>,
    /// Why it answers no calls.
    pub(crate) not_ready: Option<String>,
    /// The pools that it cannot use, and why.
    pub(crate) faults: BTreeMap<String, String>,
}

/// What serves each driver.
pub(crate) type Busy = BTreeMap<DriverName, Served>;

/// Asks the processes that serve the drivers what they are doing.
pub(crate) async fn busy(settings: &Settings) -> Busy {
    let mut busy = Busy::new();
    for driver in &settings.drivers {
        let Some(endpoint) = session::owner(driver).await else { continue };
        let mut served =
            Served { who: format!("the process that serves {endpoint}"), ..Served::default() };
        let asked = async {
            let mut admin = Client::connect(&endpoint).ok()?.admin();
            let listed = admin.list_operations(ListOperationsRequest {}).await.ok()?.into_inner();
            served.busy = listed.operations.into_iter().map(|o| o.object).collect();
            match admin.list_pools(ListPoolsRequest {}).await {
                Ok(listed) => {
                    let pools = listed.into_inner().pools.into_iter();
                    served.faults =
                        pools.filter(|p| !p.fault.is_empty()).map(|p| (p.name, p.fault)).collect();
                }
                Err(status) => served.not_ready = Some(status.message().to_owned()),
            }
            Some(())
        };
        let _ = tokio::time::timeout(PATIENCE, asked).await;
        busy.insert(driver.name.clone(), served);
    }
    busy
}

/// What is there.
pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) settings: Settings,
    pub(crate) table: Vec<MountEntry>,
    pub(crate) loops: Vec<LoopInfo>,
    pub(crate) drivers: Vec<DriverScene>,
    /// From how many percent on a pool is near full.
    pub(crate) near_full: u64,
}

/// A driver.
pub(crate) struct DriverScene {
    pub(crate) settings: DriverSettings,
    pub(crate) names: Option<DataNames>,
    /// Who serves it, in words.
    pub(crate) served: Option<String>,
    /// What that says.
    pub(crate) says: Served,
    pub(crate) pools: Vec<PoolScene>,
    pub(crate) records: Vec<RecordLook>,
    pub(crate) unreadable: Vec<Unreadable>,
    /// What `volume mount` has noted, with the staging path.
    pub(crate) mounted: Vec<(PathBuf, Mounted)>,
    /// Its mounts are those of this mount namespace, as far as can be told; None: they are ours.
    pub(crate) elsewhere: Option<Elsewhere>,
}

/// Another mount namespace than ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// Its name, for people.
    pub(crate) namespace: String,
    /// A process that is, or was, in it.
    pub(crate) pid: Option<u32>,
}

/// A pool.
pub(crate) struct PoolScene {
    pub(crate) name: PoolName,
    pub(crate) config: PoolConfig,
    pub(crate) state: State,
    pub(crate) usage: Option<Usage>,
    /// Where it lies inside its file system, as the mount table tells it.
    place: Option<(DeviceId, PathBuf)>,
}

/// What a pool is.
pub(crate) enum State {
    /// Here.
    Here(Box<Look>),
    /// Not made yet; the first use makes it.
    New,
    /// Not to be used, for this reason.
    Away(&'static Sort, Fault),
}

impl Scene {
    /// Looks.
    ///
    /// # Errors
    /// What keeps doctor from looking at all.
    pub(crate) fn new(host: Host, settings: Settings, busy: Busy, near_full: u8) -> Result<Self> {
        let (table, loops) = (host.mounts.table()?, host.loops.list()?);
        let mut busy = busy;
        let mut drivers = Vec::new();
        for driver in settings.drivers.clone() {
            let kind = backends::find(&driver.backend)
                .ok_or_else(|| Fault::invalid(format!("use backend {:?}", driver.backend)))?;
            let pools: Vec<_> = driver
                .pools
                .iter()
                .map(|(name, config)| PoolScene::new(&host, &table, name, config, kind))
                .collect();
            let (records, unreadable) =
                larder_volumes::node::look::look(&host, &settings.state_dir, driver.name.as_str())?;
            let folder = session::mounts_dir(&settings.state_dir, driver.name.as_str());
            let mounted = crate::commands::mounts::in_folder(&folder)?;
            let says = busy.remove(&driver.name).unwrap_or_default();
            let who = (!says.who.is_empty()).then(|| says.who.clone());
            // A process that owns a pool without serving a socket, as a command does for a moment.
            let owned = || pools.iter().find_map(|pool| pool.owner());
            let served = who.or_else(owned);
            let owner =
                larder_volumes::node::look::owner(&settings.state_dir, driver.name.as_str());
            let elsewhere = elsewhere(owner, larder_host::mount_namespace(), served.is_some());
            drivers.push(DriverScene {
                elsewhere,
                settings: driver,
                names: kind.names,
                served,
                says,
                pools,
                records,
                unreadable,
                mounted,
            });
        }
        Ok(Self { host, settings, table, loops, drivers, near_full: near_full.into() })
    }

    /// The pools that are here, with their drivers.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (&DriverScene, &PoolScene, &Look)> {
        let here = |pool: &'_ PoolScene| matches!(pool.state, State::Here(_));
        self.drivers.iter().flat_map(move |driver| {
            driver.pools.iter().filter(move |p| here(p)).filter_map(move |pool| match &pool.state {
                State::Here(look) => Some((driver, pool, &**look)),
                _ => None,
            })
        })
    }

    /// See [`is_unused`].
    pub(crate) fn is_unused(&self, device: DeviceId, names: &[&Path]) -> Result<bool> {
        is_unused(&self.host, &self.table, device, names)
    }
}

/// Whether nobody uses that device: not mounted, open, stacked on or published. `names` are those of its
/// nodes.
pub(crate) fn is_unused(
    host: &Host,
    table: &[MountEntry],
    device: DeviceId,
    names: &[&Path],
) -> Result<bool> {
    let is_named = |entry: &MountEntry| {
        let root = entry.root.file_name();
        names.iter().any(|name| name.file_name() == root)
    };
    let shown = |entry: &MountEntry| {
        entry.device == device
            || names.iter().any(|name| Path::new(&entry.source) == *name)
            || (is_named(entry)
                && host.mounts.block_device(&entry.target).is_ok_and(|d| d == device))
    };
    Ok(!table.iter().any(shown) && host.mounts.users_of_device(device)?.is_empty())
}

impl DriverScene {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.settings.name.as_str()
    }

    /// Whether its process works on something of that name just now.
    pub(crate) fn is_busy_with(&self, native: &str) -> bool {
        let is_it = |object: &String| {
            object == native || object.rsplit_once('/').is_some_and(|(_, last)| last == native)
        };
        self.says.busy.iter().any(is_it)
    }

    /// The volume that is recorded to be mounted at `target`.
    pub(crate) fn claims(&self, target: &Path) -> Option<&str> {
        let record = self.records.iter().find(|record| {
            let staged = record.staged.iter().map(|staged| &staged.place);
            record.this_boot && staged.chain(&record.publications).any(|place| place.path == target)
        });
        record.map(|record| record.volume.as_str()).or_else(|| {
            let is_here = |(stage, mounted): &&(PathBuf, Mounted)| {
                stage == target || mounted.targets.iter().any(|t| t.path == target)
            };
            self.mounted.iter().find(is_here).map(|(_, mounted)| mounted.volume.as_str())
        })
    }

    /// The volume whose record has that loop device.
    pub(crate) fn has_device(&self, info: &LoopInfo) -> Option<&str> {
        let has = |record: &&RecordLook| {
            let staged = record.staged.as_ref().filter(|_| record.this_boot);
            // A staging that was begun may have a device that is not noted yet.
            staged.is_some_and(|s| s.device.as_ref().is_none_or(|path| *path == info.path))
        };
        self.records.iter().find(has).map(|record| record.volume.as_str())
    }
}

impl PoolScene {
    fn new(
        host: &Host,
        table: &[MountEntry],
        name: &PoolName,
        config: &PoolConfig,
        kind: &backends::BackendKind,
    ) -> Self {
        let state = state(host, config, kind);
        let is_here = matches!(state, State::Here(_));
        let usage = is_here.then(|| host.filesystems.usage(&config.path).ok()).flatten();
        let place = is_here.then(|| locate(table, &config.path)).flatten();
        Self { name: name.clone(), config: config.clone(), state, usage, place }
    }

    fn owner(&self) -> Option<String> {
        if !matches!(self.state, State::Here(_)) || self.config.shared {
            return None;
        }
        larder_pool::owner(&self.config.path).ok().flatten().map(|note| note.to_string())
    }

    /// What of this pool a mount shows: a path inside the pool.
    pub(crate) fn shown_by(&self, entry: &MountEntry) -> Option<PathBuf> {
        let (device, root) = self.place.as_ref()?;
        let inside = (entry.device == *device).then(|| undeleted(&entry.root))?;
        inside.strip_prefix(root).ok().map(Path::to_owned)
    }

    /// What of this pool a file is, by the path that the kernel has of it.
    pub(crate) fn inside(&self, path: &Path) -> Option<PathBuf> {
        let real = std::fs::canonicalize(&self.config.path).ok()?;
        path.strip_prefix(real)
            .or_else(|_| path.strip_prefix(&self.config.path))
            .ok()
            .map(Path::to_owned)
    }

    /// The id of a volume in it.
    pub(crate) fn id(&self, native: &str) -> String {
        format!("{}/{native}", self.name)
    }
}

/// The volume called `native`.
pub(crate) fn volume<'a>(look: &'a Look, native: &str) -> Option<&'a Item<VolumeRecord>> {
    look.volumes.iter().find(|volume| volume.native.as_str() == native)
}

/// Which image a file is the data of: its place in the pool, whatever its name.
pub(crate) fn image_of(look: &Look, file: Backing) -> Option<PathBuf> {
    let is_it = |found: &Option<larder_pool::look::Found>| found.is_some_and(|f| f.file == file);
    let volumes = look.volumes.iter().filter(|v| is_it(&v.found)).map(|v| v.data.clone());
    let snapshots = look.snapshots.iter().filter(|s| is_it(&s.found)).map(|s| s.data.clone());
    let statics = look.statics.iter().filter(|s| s.found.file == file).map(|s| s.path.clone());
    let works = look.unfinished.iter().chain(&look.deleted);
    let works = works.filter(|w| is_it(&w.data)).map(|w| w.path.clone());
    volumes.chain(snapshots).chain(statics).chain(works).next()
}

/// The kernel marks the root of a mount whose directory was removed.
fn undeleted(root: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let bytes = root.as_os_str().as_bytes();
    OsStr::from_bytes(bytes.strip_suffix(b"//deleted").unwrap_or(bytes)).into()
}

/// Whether what a mount shows was removed.
pub(crate) fn is_deleted(entry: &MountEntry) -> bool {
    entry.root.as_os_str().as_encoded_bytes().ends_with(b"//deleted")
}

/// Where a directory lies inside its file system.
fn locate(table: &[MountEntry], path: &Path) -> Option<(DeviceId, PathBuf)> {
    let real = std::fs::canonicalize(path).ok()?;
    let holds = table.iter().filter(|entry| real.starts_with(&entry.target));
    // Of several mounts at one place the last is on top.
    let mount = holds.max_by_key(|entry| entry.target.components().count())?;
    let inside = real.strip_prefix(&mount.target).ok()?;
    let empty = inside.as_os_str().is_empty();
    Some((mount.device, if empty { mount.root.clone() } else { mount.root.join(inside) }))
}

fn state(host: &Host, config: &PoolConfig, kind: &backends::BackendKind) -> State {
    use super::pools::{AWAY, OTHER, SILENT};
    let path = &config.path;
    if let Err(fault) = host.filesystems.answers(path) {
        return State::Away(&SILENT, fault);
    }
    if config.mount == MountRule::Required {
        match host.mounts.is_mount_point(path) {
            Ok(true) => {}
            Ok(false) => {
                let fault =
                    Fault::unavailable(format!("use it: nothing is mounted at {}", path.display()))
                        .hint("mount it; the configuration says `mount: required`");
                return State::Away(&AWAY, fault);
            }
            Err(fault) => return State::Away(&AWAY, fault),
        }
    }
    let Some(names) = kind.names else {
        let fault =
            Fault::unavailable(format!("use {}: {} has no pools", path.display(), kind.name))
                .hint("its pools are `exports`");
        return State::Away(&OTHER, fault);
    };
    match larder_pool::look::look(path, names) {
        Ok(look) if look.identity.backend != kind.name => {
            let fault = Fault::unavailable(format!(
                "use {}: it is a pool of backend {}, not {}",
                path.display(),
                look.identity.backend,
                kind.name
            ))
            .hint("correct `path` or `backend` in the configuration");
            State::Away(&OTHER, fault)
        }
        Ok(look) => State::Here(Box::new(look)),
        Err(_) if config.create && is_blank(path) => State::New,
        Err(fault) => State::Away(&AWAY, fault),
    }
}

/// The mount namespace of whoever works with a driver's records, or did last; None: it is `ours`.
///
/// Records speak of the mounts of their writer's namespace. Seen from another one, mounts that stand
/// look gone, and what would be done about that is done by the driver, where they stand.
fn elsewhere(owner: Option<Holder>, ours: Option<String>, served: bool) -> Option<Elsewhere> {
    let pid = owner.as_ref().map(|owner| owner.pid);
    match owner.and_then(|owner| owner.mount_namespace) {
        Some(namespace) => {
            (ours.as_ref() != Some(&namespace)).then_some(Elsewhere { namespace, pid })
        }
        // Nobody has worked with records here, unless somebody whose records we do not see.
        None => served.then(|| Elsewhere { namespace: "unknown".to_owned(), pid }),
    }
}

/// Whether the first use will make a pool there.
fn is_blank(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|e| e.file_name() == "lost+found")),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}
