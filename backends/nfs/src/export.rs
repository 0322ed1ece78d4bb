//! One export: what proves that it is ours, and visits to it.

use crate::{
    config::ExportConfig,
    place::{Location, OURS},
    record::{self, FORMAT, Identity},
};
use larder_host::{
    Host, Usage,
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
    /// `Unavailable` when its server does not answer, shows something else than before, or no pool;
    /// `Precondition` when the server refuses us.
    pub(crate) fn visit(&self) -> Result<Visit> {
        self.begin(false)
    }

    /// As [`Export::visit`], to make a volume: it becomes a pool where it may and is none.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn visit_to_create(&self) -> Result<Visit> {
        self.begin(true)
    }

    fn begin(&self, make: bool) -> Result<Visit> {
        let visit = self.remote.visit().map_err(|fault| self.named(not_gone(fault)))?;
        if visit.is_new() || self.seen().is_none() {
            self.prove(&visit, make).map_err(|fault| {
                visit.spoil();
                self.named(not_gone(fault))
            })?;
        }
        Ok(visit)
    }

    /// How full the file system is; the export may be no pool yet, where it may become one.
    ///
    /// # Errors
    /// As [`Export::visit`].
    pub(crate) fn usage(&self) -> Result<Usage> {
        let may_come = self.config.create && self.config.identity.is_none();
        if may_come && self.seen().is_none() {
            // Asked before the first volume is made, to decide whether it is made.
            return self
                .remote
                .visit()
                .and_then(|visit| visit.usage())
                .map_err(|f| self.named(not_gone(f)));
        }
        self.visit()?.usage()
    }

    /// To be asked in the visit that did not find something: the server may have lost the disk behind the
    /// export since the visit began, and what is behind a disk is no word about what is on it.
    ///
    /// # Errors
    /// `Unavailable` when the export is not what it was.
    pub(crate) fn confirm(&self, visit: &Visit) -> Result<()> {
        self.prove(visit, false).map_err(|fault| {
            visit.spoil();
            self.named(not_gone(fault))
        })
    }

    fn named(&self, fault: Fault) -> Fault {
        fault.during(format!("use pool {}", self.name))
    }

    fn prove(&self, visit: &Visit, make: bool) -> Result<()> {
        let path = identity_path();
        let found: Identity = match visit.read(&path)? {
            Some(text) => record::understand(&path, &text)?,
            None => self.make_identity(visit, make)?,
        };
        if found.backend != "nfs" {
            return Err(Fault::precondition(format!(
                "use {}: it is a pool of backend {}",
                self.source(),
                found.backend
            )));
        }
        if let Some(id) = self.config.identity.filter(|id| *id != found.id) {
            return Err(Fault::unavailable(format!(
                "use {}: the server shows pool {} there, and the configuration says {id}",
                self.source(),
                found.id
            ))
            .hint("mount the right disk on the server, or correct identity in the configuration"));
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

    fn make_identity(&self, visit: &Visit, make: bool) -> Result<Identity> {
        let missing = |what: &str| Fault::unavailable(format!("use {}: {what}", self.source()));
        // An identity that was there and is not any more: the server exports the empty directory under a
        // disk that is not mounted. Whoever makes a new pool there forgets every volume.
        if self.seen().is_some() || self.config.identity.is_some() {
            return Err(missing("it has lost its identity")
                .hint("is the disk behind the export mounted on the server?"));
        }
        if !self.config.create {
            return Err(missing("it is no pool: .larder/pool.json is not there").hint(
                "is the disk behind the export mounted on the server? A new export becomes a pool with \
                 create: true in its configuration",
            ));
        }
        // Whoever asks for what is there must never be told that it is empty because it was made just now.
        if !make {
            return Err(missing("it is no pool yet: .larder/pool.json is not there").hint(
                "the first volume makes it one; if there are volumes already, the disk behind the export \
                 is not mounted on the server",
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
