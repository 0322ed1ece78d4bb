//! Observing and acting: what all operations share.

use super::{
    InlineVolumes,
    flags::Flags,
    owner::Owner,
    plan::Seen,
    record::{Publication, Record, Root, Shows, Staged, Store},
    sight::{self, Place},
};
use larder_host::{Host, Unmount, freeze::Freezer, paths::TargetPath};
use larder_model::{
    AccessMode, AccessType, Backend, Cx, DriverName, Encryption, Fault, FsType, Kind, Result,
    VolumeCapability, VolumeId,
    backend::{Attachment, Source},
    volume::{Attributes, context},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// What carries operations out. Those that block run on threads of their own.
pub(super) struct Executor {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) host: Host,
    pub(super) freezer: Option<Arc<Freezer>>,
    pub(super) driver: DriverName,
    pub(super) store: Store,
    pub(super) inline: OnceLock<Arc<dyn InlineVolumes>>,
    pub(super) owner: Owner,
}

/// A capability, checked against what the backend can do.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The flags for the mount.
    pub(super) flags: Flags,
    /// The file system that the caller named.
    pub(super) fs: Option<FsType>,
    /// What to make where none was named.
    pub(super) default_fs: FsType,
    /// Arguments for mkfs, not checked yet.
    pub(super) mkfs_options: String,
    /// Nothing may be written.
    pub(super) reader: bool,
    /// Files belong to this group.
    pub(super) group: Option<u32>,
    /// Its device is encrypted.
    pub(super) encryption: Option<Encryption>,
}

/// A mounted stack is unmounted one by one; more than this is no stack of ours.
const HIGHEST_STACK: usize = 64;

/// Between two attempts to disconnect; the sum of all is about as much.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Executor {
    /// Runs blocking work on a thread of its own.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        larder_host::blocking(move || work(&this)).await
    }

    /// Reads a volume id.
    ///
    /// # Errors
    /// `NotFound` for what cannot be ours.
    pub(super) fn parse(&self, volume: &str) -> Result<VolumeId> {
        self.backend.parse_handle(volume).map(VolumeId)
    }

    /// Why a volume is not as it must be: it may not exist at all. The backend is asked only then,
    /// never on the way that starts pods.
    pub(super) async fn or_gone(&self, id: &VolumeId, fault: Fault) -> Fault {
        match self.backend.provision().get_volume(id).await {
            Err(gone) if gone.kind() == Kind::NotFound => gone,
            _ => fault,
        }
    }

    /// The volume behind an id that callers use: an inline volume has another one.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub(super) fn id_of(&self, record: &Record) -> Result<VolumeId> {
        match &record.inline {
            Some(inline) => inline.id(),
            None => self.parse(&record.volume),
        }
    }

    /// Checks a capability against what the backend can do.
    ///
    /// # Errors
    /// `Precondition` for what this kind of volume cannot do, `Invalid` for what nobody can.
    pub(super) fn asked(
        &self,
        capability: &VolumeCapability,
        volume_context: &Attributes,
    ) -> Result<Asked> {
        let facts = self.backend.facts();
        if !facts.access_modes.contains(&capability.mode) {
            let modes: Vec<_> = facts.access_modes.iter().map(AccessMode::to_string).collect();
            return Err(Fault::precondition(format!("use access mode {}", capability.mode))
                .hint(format!("this kind of volume has {}", modes.join(", "))));
        }
        let context_fs = volume_context.get(context::FS).filter(|fs| !fs.is_empty());
        let context_fs = context_fs.map(|fs| fs.parse::<FsType>()).transpose()?;
        let default_fs = context_fs.or(facts.file_systems.first().copied()).unwrap_or(FsType::Ext4);
        let mkfs_options = volume_context.get(context::MKFS_OPTIONS).cloned().unwrap_or_default();
        let mut asked = Asked {
            flags: Flags::default(),
            fs: None,
            default_fs,
            mkfs_options,
            reader: capability.mode.is_reader_only(),
            group: None,
            encryption: Encryption::of_context(volume_context)?,
        };
        let AccessType::Mount(mount) = &capability.access else {
            return if facts.block {
                Ok(asked)
            } else {
                Err(Fault::precondition("use it as a raw block device: this kind of volume cannot"))
            };
        };
        if !facts.mount {
            return Err(Fault::precondition(
                "mount it: this kind of volume is only a block device",
            ));
        }
        // A volume without a file system of its own (a directory) has none to choose.
        if !facts.file_systems.is_empty() && !mount.fs_type.is_empty() {
            let fs: FsType = mount.fs_type.parse()?;
            if !facts.file_systems.contains(&fs) {
                return Err(Fault::precondition(format!("use file system {fs}"))
                    .hint("this kind of volume cannot have it"));
            }
            asked.fs = Some(fs);
        }
        if mount.group.is_some() && !facts.mount_group {
            return Err(Fault::invalid(
                "use a volume_mount_group: VOLUME_MOUNT_GROUP is not announced",
            ));
        }
        asked.flags = Flags::parse(&mount.flags)?;
        asked.flags.check_reader(asked.reader)?;
        asked.reader |= asked.flags.read_only;
        asked.group = mount.group;
        Ok(asked)
    }

    /// What is at `path`, seen with what is known of the volume. `read_only` is taken for granted
    /// where a record tells; otherwise the mount table is asked.
    ///
    /// # Errors
    /// As [`sight::look`].
    pub(super) fn see(
        &self,
        path: &Path,
        known: Option<(Option<&Shows>, Option<&Root>)>,
        read_only: Option<bool>,
    ) -> Result<Seen> {
        let network = matches!(known, Some((Some(shows), _)) if shows.is_network());
        let place = if network {
            sight::look_in_table(&self.host, path)?
        } else {
            sight::look(&self.host, path)?
        };
        Ok(match place {
            Place::Missing => Seen::Missing,
            Place::Directory { empty } => Seen::Directory { empty },
            Place::File { empty } => Seen::File { empty },
            Place::Obstacle(what) => Seen::Obstacle(what),
            Place::Mounted(root) => {
                let Some((shows, known_root)) = known else { return Ok(Seen::Unknown) };
                if !sight::is_ours(&self.host, shows, known_root, path, &root)? {
                    return Ok(Seen::Foreign(sight::described(&self.host, path)));
                }
                let read_only = match read_only {
                    Some(read_only) => read_only,
                    None => {
                        let top = sight::top_at(&self.host, path, network)?;
                        top.is_some_and(|entry| entry.is_read_only())
                    }
                };
                Seen::Ours { read_only }
            }
        })
    }

    /// As [`Self::see`], with what a record of a staging tells.
    ///
    /// # Errors
    /// As [`sight::look`].
    pub(super) fn see_staged(
        &self,
        path: &Path,
        staged: Option<&Staged>,
        read_only: Option<bool>,
    ) -> Result<Seen> {
        let known = staged
            .filter(|staged| staged.shows.is_some())
            .map(|staged| (staged.shows.as_ref(), staged.root.as_ref()));
        self.see(path, known, read_only)
    }

    /// The publications of `record` that really stand: of this volume, mounted now.
    ///
    /// # Errors
    /// As [`sight::look`].
    pub(super) fn standing<'a>(&self, record: &'a Record) -> Result<Vec<&'a Publication>> {
        let mut standing = Vec::new();
        for publication in &record.publications {
            let seen = self.see_staged(&publication.target, record.staged.as_ref(), Some(false))?;
            if matches!(seen, Seen::Ours { .. } | Seen::Unknown) {
                standing.push(publication);
            }
        }
        Ok(standing)
    }

    /// Unmounts everything of this volume at `path`, and nothing else.
    ///
    /// # Errors
    /// `Precondition` while it is busy or when something else is mounted over it.
    pub(super) fn unmount_ours(
        &self,
        path: &Path,
        shows: Option<&Shows>,
        root: Option<&Root>,
    ) -> Result<()> {
        let how = match shows {
            Some(shows) if shows.is_network() => Unmount::Lazy,
            _ => Unmount::Normal,
        };
        for _ in 0..HIGHEST_STACK {
            match self.see(path, Some((shows, root)), Some(false))? {
                Seen::Ours { .. } => self.host.mounts.unmount(path, how)?,
                Seen::Foreign(what) => {
                    return Err(Fault::precondition(format!(
                        "unmount {}: {what} is mounted over it",
                        path.display()
                    ))
                    .hint("unmount that by hand after a look at who put it there"));
                }
                _ => return Ok(()),
            }
        }
        Err(Fault::precondition(format!("unmount {}: its stack has no end", path.display())))
    }

    /// Closes what encryption opened, then disconnects. What seems to be in use is asked for again for a
    /// moment: a process that is being started (mkfs for another volume) has all descriptors of this one
    /// until its `exec`.
    ///
    /// # Errors
    /// `Precondition`; those of [`larder_model::Connect::disconnect`].
    pub(super) async fn disconnect(
        self: &Arc<Self>,
        id: &VolumeId,
        shows: Option<&Shows>,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        self.close_opened(id, shows, cx).await?;
        let mut pause = Duration::from_millis(10);
        loop {
            match self.backend.connect().disconnect(id, attachment, cx).await {
                Err(fault) if fault.kind() == Kind::Precondition && pause < LONGEST_PAUSE => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
    }

    /// Where this volume is in use on this machine, by what is really mounted.
    ///
    /// # Errors
    /// As [`sight::look`].
    pub(super) async fn in_use(self: Arc<Self>, id: &VolumeId) -> Result<Vec<PathBuf>> {
        let id = id.clone();
        let (mut paths, raw) = self
            .blocking(move |this| {
                let mut record = this.store.load(id.as_str())?;
                if record.is_none() && this.backend.facts().ephemeral {
                    // An inline volume's record is kept under the caller's id.
                    let (all, _) = this.store.all()?;
                    record = all.into_iter().find(|record| {
                        record.inline.as_ref().is_some_and(|i| i.id().is_ok_and(|i| i == id))
                            && this.store.is_current(record)
                    });
                }
                let Some(record) = record else { return Ok((Vec::new(), None)) };
                let mut paths: Vec<PathBuf> =
                    this.standing(&record)?.iter().map(|p| p.target.clone()).collect();
                let Some(staged) = &record.staged else { return Ok((paths, None)) };
                if this.see_staged(&staged.path, Some(staged), Some(false))?.is_ours() {
                    paths.push(staged.path.clone());
                }
                let raw = staged.attachment.clone().filter(|_| staged.terms.block);
                Ok((paths, raw.map(|attachment| (id, attachment, staged.path.clone()))))
            })
            .await?;
        // A raw device is in use as long as it is connected, although nothing is mounted.
        if let Some((id, attachment, path)) = raw
            && self.backend.connect().is_connected(&id, &attachment).await?
        {
            paths.push(path);
        }
        Ok(paths)
    }

    /// Removes a target that holds nothing.
    ///
    /// # Errors
    /// `Precondition` when it is not empty.
    pub(super) fn remove_target(&self, target: &TargetPath) -> Result<()> {
        target.remove()
    }
}

/// What kind of source it is, for planning.
pub(super) fn kind_of(source: &Source) -> super::plan::Kind {
    match source {
        Source::Device { .. } => super::plan::Kind::Device,
        Source::Directory { .. } => super::plan::Kind::Directory,
        Source::FileSystem { .. } => super::plan::Kind::FileSystem,
    }
}
