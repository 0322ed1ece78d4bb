//! One export: what proves that it is ours, and visits to it.

use crate::{
    config::ExportConfig,
    place::{Location, OURS},
    record::{self, FORMAT, Identity},
};
use larder_host::{
    Host,
    remote::{Remote, Site, Visit},
};
use larder_model::{Fault, Kind, PoolName, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// An export that volumes are made in.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) name: PoolName,
    pub(crate) config: ExportConfig,
    remote: Remote,
    /// The identity that it had when it was first visited.
    seen: Mutex<Option<Uuid>>,
    /// Held while it is decided whose a directory is.
    claiming: Mutex<()>,
}

fn identity_path() -> String {
    format!("{OURS}/pool.json")
}

impl Export {
    pub(crate) fn new(name: PoolName, config: ExportConfig, host: &Host) -> Self {
        let site = match &config.local {
            Some(path) => Site::Directory(path.clone()),
            None => Site::Mounted {
                fs_type: "nfs".to_owned(),
                source: Self::location(&config).source(),
                options: config.mount_options.clone(),
            },
        };
        let remote = Remote::new(host.helper.clone(), site);
        Self { name, config, remote, seen: Mutex::default(), claiming: Mutex::default() }
    }

    fn location(config: &ExportConfig) -> Location {
        Location { server: config.server.clone(), share: config.share.clone(), sub_dir: None }
    }

    /// `server:/share`.
    pub(crate) fn source(&self) -> String {
        Self::location(&self.config).source()
    }

    /// What was found out about its server without asking it now.
    pub(crate) fn is_silent(&self) -> Option<Fault> {
        self.remote.is_silent()
    }

    /// The identity that it was first seen with.
    pub(crate) fn identity(&self) -> Option<Uuid> {
        *self.seen()
    }

    fn seen(&self) -> MutexGuard<'_, Option<Uuid>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from claiming directories.
    pub(crate) fn claiming(&self) -> MutexGuard<'_, ()> {
        self.claiming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to work in it; it is ours, proven. Blocking, for a limited time.
    ///
    /// # Errors
    /// `Unavailable` when its server does not answer or shows something else than before; `Precondition`
    /// when the server refuses us or it is no pool.
    pub(crate) fn visit(&self) -> Result<Visit> {
        let named = |fault: Fault| fault.during(format!("use pool {}", self.name));
        let visit = self.remote.visit().map_err(|fault| named(not_gone(fault)))?;
        if visit.is_new() {
            self.prove(&visit).map_err(|fault| {
                visit.spoil();
                named(not_gone(fault))
            })?;
        }
        Ok(visit)
    }

    fn prove(&self, visit: &Visit) -> Result<()> {
        let path = identity_path();
        let found: Identity = match visit.read(&path)? {
            Some(text) => record::understand(&path, &text)?,
            None => self.make_identity(visit)?,
        };
        if found.backend != "nfs" {
            return Err(Fault::precondition(format!(
                "use {}: it is a pool of backend {}",
                self.source(),
                found.backend
            )));
        }
        let mut seen = self.seen();
        match *seen {
            Some(id) if id != found.id => Err(Fault::unavailable(format!(
                "use {}: the server shows pool {} there, and it was pool {id}",
                self.source(),
                found.id
            ))
            .hint("mount the right disk on the server; where this is meant, restart Larder")),
            _ => {
                *seen = Some(found.id);
                Ok(())
            }
        }
    }

    fn make_identity(&self, visit: &Visit) -> Result<Identity> {
        let missing = |what: &str| Fault::unavailable(format!("use {}: {what}", self.source()));
        // An identity that was there and is not any more: the server exports the empty directory under a
        // disk that is not mounted. Whoever makes a new pool there forgets every volume.
        if self.seen().is_some() {
            return Err(missing("it has lost its identity")
                .hint("is the disk behind the export mounted on the server?"));
        }
        if !self.config.create {
            return Err(missing("it is no pool: .larder/pool.json is not there").hint(
                "is the disk behind the export mounted on the server? A new export becomes a pool with \
                 create: true in its configuration",
            ));
        }
        visit.make_dir(OURS, 0o700, 0o755)?;
        // All that is ever needed, so that a deletion finds it however full the server is.
        for folder in [record::folder(), format!("{OURS}/places"), format!("{OURS}/deleting")] {
            visit.make_dir(&folder, 0o700, 0o700)?;
        }
        let (path, id) = (identity_path(), Uuid::new_v4());
        let made = Identity { format: FORMAT, backend: "nfs".to_owned(), id };
        match visit.write_new(&path, &record::text(&made)?) {
            Ok(()) => {
                tracing::info!(pool = %self.name, %id, "made {} a pool", self.source());
                Ok(made)
            }
            // Another process was quicker.
            Err(fault) if fault.kind() == Kind::Conflict => {
                let text = visit.read(&path)?.ok_or(fault)?;
                record::understand(&path, &text)
            }
            Err(fault) => Err(fault),
        }
    }
}

/// What is missing on the way is no word about a volume: callers would take it for gone.
fn not_gone(fault: Fault) -> Fault {
    match fault.kind() {
        Kind::NotFound => fault.with_kind(Kind::Unavailable),
        _ => fault,
    }
}
