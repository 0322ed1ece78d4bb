//! Staging: connect, format if that is proven right, mount.
//!
//! A stage that fails takes back what it did itself; one that is killed leaves a record, and the
//! next call goes on from what it sees.

use super::{
    StageRequest,
    crypt::{self, Locked, Unlocked},
    executor::{Asked, Executor, kind_of},
    format::{self, Decision, Over, Wanted},
    plan::{self, Seen, SourceSeen, SourceWanted, StageSeen, StageStep},
    record::{Later, Phase, Record, Shows, Staged, Terms},
    sight,
};
use larder_host::{BindRequest, MountRequest, filesystems::reader_options, paths::TargetPath};
use larder_model::{
    Cx, Fault, FsType, Limits, Result, VolumeId,
    backend::{ConnectRequest, Source},
    volume::{FormatState, Inside},
};
use std::{path::Path, sync::Arc};

/// What staging works with.
struct Work<'a> {
    id: &'a VolumeId,
    request: StageRequest,
    path: &'a TargetPath,
    terms: &'a Terms,
    asked: Asked,
    record: Record,
    /// What this attempt has done, and would have to undo.
    mounted: bool,
    connected: bool,
    /// What encryption opened.
    unlocked: Option<Unlocked>,
    /// It was mounted before this attempt, which no record told.
    found: bool,
    /// How fast it may be used.
    limits: Limits,
}

/// What was seen before anything was done.
struct Before {
    record: Option<Record>,
    at: Seen,
    elsewhere: bool,
    published: bool,
}

impl Executor {
    /// See [`super::NodeEngine::stage`].
    pub(super) async fn stage(
        self: &Arc<Self>,
        id: &VolumeId,
        request: StageRequest,
        path: &TargetPath,
        terms: &Terms,
        cx: &Cx,
    ) -> Result<()> {
        let asked = self.asked(&request.capability, &request.context)?;
        let volume = request.volume.clone();
        self.let_go_of_stale(volume.clone(), path).await?;
        let before = self.look_before_stage(volume.clone(), path, terms).await?;
        let staged = before.record.as_ref().and_then(|record| record.staged.as_ref());
        let steps = plan::stage(
            StageSeen {
                staged,
                at: &before.at,
                elsewhere: before.elsewhere,
                published: before.published,
                connected: self.stands(id, staged, &before.at).await?,
            },
            path.as_path(),
            terms,
        )?;
        if steps.is_empty() {
            return self.rotate_staged(id, &asked, &request.secrets, cx).await;
        }
        let context = &request.context;
        let kept = self.backend.provision().describe_volume(id, context).await?;
        kept.uses.check(id, &request.capability)?;
        let mut work = Work {
            id,
            request,
            path,
            terms,
            asked,
            record: before.record.clone().unwrap_or_else(|| self.store.blank(&volume)),
            mounted: false,
            connected: false,
            unlocked: None,
            found: false,
            limits: kept.limits,
        };
        let Err(fault) = self.stage_steps(&mut work, &steps, cx).await else { return Ok(()) };
        if fault.is_simulated_crash() {
            return Err(fault);
        }
        let undone = if before.published || before.at.is_ours() || work.found {
            // Workloads use what is connected; only the record goes back to what it said.
            self.restore(before.record, work.mounted.then(|| path.clone()), work.record).await
        } else if work.connected || before.at != Seen::Unknown {
            self.take_back(id, &mut work.record, cx).await
        } else {
            // Something is mounted there and could not be told; it may be this volume.
            self.restore(before.record, None, work.record).await
        };
        Err(match undone {
            Ok(()) => fault,
            Err(second) if second.is_simulated_crash() => second,
            Err(second) => fault.during(format!("(and could not take it back: {second})")),
        })
    }

    async fn look_before_stage(
        self: &Arc<Self>,
        volume: String,
        path: &TargetPath,
        terms: &Terms,
    ) -> Result<Before> {
        let (path, terms) = (path.clone(), terms.clone());
        self.blocking(move |this| {
            let record = this.store.load(&volume)?;
            let staged = record.as_ref().and_then(|record| record.staged.as_ref());
            let alike = staged.is_some_and(|staged| staged.terms.stage_alike(&terms));
            // Whether it is read-only matters only where the record does not tell.
            let at = this.see_staged(path.as_path(), staged, alike.then_some(false))?;
            let elsewhere = match staged {
                Some(staged) if staged.path != path.as_path() => {
                    this.see_staged(&staged.path, Some(staged), Some(false))?.is_ours()
                }
                _ => false,
            };
            let published = match &record {
                Some(record) => !this.standing(record)?.is_empty(),
                None => false,
            };
            Ok(Before { record, at, elsewhere, published })
        })
        .await
    }

    /// Whether the recorded attachment still stands. What is mounted stands; raw devices are asked.
    pub(super) async fn stands(
        &self,
        id: &VolumeId,
        staged: Option<&Staged>,
        at: &Seen,
    ) -> Result<bool> {
        match staged.and_then(|staged| staged.attachment.as_ref()) {
            Some(_) if at.is_ours() => Ok(true),
            Some(_) => match staged {
                Some(staged) => self.is_connected(id, staged).await,
                None => Ok(false),
            },
            None => Ok(false),
        }
    }

    async fn stage_steps(
        self: &Arc<Self>,
        work: &mut Work<'_>,
        steps: &[StageStep],
        cx: &Cx,
    ) -> Result<()> {
        let mut source = None;
        for step in steps {
            match step {
                StageStep::TakeBack => self.take_back(work.id, &mut work.record, cx).await?,
                StageStep::Record => {
                    cx.step("record that the volume is being staged")?;
                    let former = work.record.staged.take();
                    work.record.staged = Some(Staged {
                        phase: Phase::Staging,
                        path: work.path.as_path().to_owned(),
                        terms: work.terms.clone(),
                        // Until it is connected anew, what is known of a former connection counts.
                        attachment: former.as_ref().and_then(|f| f.attachment.clone()),
                        shows: former.as_ref().and_then(|f| f.shows.clone()),
                        root: former.and_then(|f| f.root),
                        reader: work.asked.reader,
                        encrypted: work.asked.encryption.is_some(),
                        later: Later::new(),
                    });
                    self.save(&work.record).await?;
                }
                _ => source = Some(self.connect_source(work, cx).await?),
            }
        }
        let Some(source) = source else { return Ok(()) };
        let at = {
            let (path, staged) = (work.path.clone(), work.record.staged.clone());
            self.blocking(move |this| this.see_staged(path.as_path(), staged.as_ref(), None))
                .await?
        };
        work.found = at.is_ours();
        let wanted = SourceWanted {
            block: work.terms.block,
            reader: work.asked.reader,
            group: work.asked.group.is_some(),
        };
        let seen = SourceSeen { kind: kind_of(&source), at: &at };
        let mut fs = None;
        for step in plan::source(seen, wanted, work.path.as_path())? {
            match step {
                StageStep::NoteRaw => self.note_raw(work, cx).await?,
                StageStep::Prepare => fs = Some(self.prepare(work, &source, cx).await?),
                StageStep::Mount => self.mount_source(work, &source, fs, cx).await?,
                StageStep::Bind => self.bind_source(work, &source, cx).await?,
                StageStep::Grow => self.grow_staged(work, &source, cx).await?,
                StageStep::Group => {
                    let (path, group) = (work.path.clone(), work.asked.group);
                    self.give_to_group(path.as_path(), group, cx).await?;
                }
                _ => self.confirm(work, cx).await?,
            }
        }
        Ok(())
        // `source` holds the device until here: by now it is mounted.
    }

    async fn connect_source(self: &Arc<Self>, work: &mut Work<'_>, cx: &Cx) -> Result<Source> {
        cx.step("connect the volume")?;
        let request = ConnectRequest {
            id: work.id.clone(),
            capability: work.request.capability.clone(),
            readonly: work.asked.reader,
            context: work.request.context.clone(),
            publish_context: work.request.publish_context.clone(),
            secrets: work.request.secrets.clone(),
        };
        let (source, attachment) = self.backend.connect().connect(&request, cx).await?;
        work.connected = true;
        let former = work.record.staged.clone();
        cx.step("record what is connected")?;
        if let Some(staged) = &mut work.record.staged {
            staged.attachment = Some(attachment);
        }
        let source = self.decrypt_source(work, source, cx).await?;
        let (source, shows) = self
            .blocking(move |this| {
                let shows = sight::shows(&this.host, &source)?;
                Ok((source, shows))
            })
            .await?;
        let known = former.as_ref().and_then(|former| former.shows.as_ref());
        let shows = shows.keeping(known);
        // The number that it had before may be another's next.
        if let Some(former) = former.filter(|former| former.shows.as_ref() != Some(&shows)) {
            let (shows, attachment) = (former.shows.as_ref(), former.attachment.as_ref());
            self.lift(work.id, shows, attachment, cx).await?;
        }
        if let Some(staged) = &mut work.record.staged {
            if staged.shows.as_ref() != Some(&shows) {
                staged.root = None;
            }
            staged.shows = Some(shows);
        }
        self.save(&work.record).await?;
        Ok(source)
    }

    /// The device that shall be used: the one that was connected, or what opening it gives.
    async fn decrypt_source(
        self: &Arc<Self>,
        work: &mut Work<'_>,
        source: Source,
        cx: &Cx,
    ) -> Result<Source> {
        let Some(encryption) = work.asked.encryption else {
            if let Source::Device { .. } = &source {
                crypt::refuse_encrypted(self.backend.connect().format_state(work.id).await?)?;
            }
            return Ok(source);
        };
        let Source::Device { path, hold } = source else {
            return Err(Fault::precondition("encrypt it: this kind of volume is no block device"));
        };
        // What closes it after a crash must know that there may be something to close.
        self.save(&work.record).await?;
        let locked = Locked {
            id: work.id,
            device: path,
            encryption,
            block: work.terms.block,
            fs: work.asked.fs.unwrap_or(work.asked.default_fs),
            reader: work.asked.reader,
            secrets: &work.request.secrets,
        };
        let (opened, unlocked) = self.unlock(locked, cx).await?;
        work.unlocked = Some(unlocked);
        cx.step("record what is opened")?;
        Ok(Source::Device { path: opened, hold })
    }

    /// What is known of the device that is used.
    async fn state_of(&self, work: &Work<'_>) -> Result<FormatState> {
        match &work.unlocked {
            Some(unlocked) => Ok(unlocked.inside.into()),
            None => self.backend.connect().format_state(work.id).await,
        }
    }

    /// Records it with the volume.
    async fn note_state(&self, work: &mut Work<'_>, inside: Inside) -> Result<()> {
        let state = match &mut work.unlocked {
            Some(unlocked) => {
                unlocked.inside = inside;
                FormatState::Encrypted { luks: unlocked.luks, inside }
            }
            None => inside.into(),
        };
        self.backend.connect().set_format_state(work.id, state).await
    }

    /// A workload will write where no probe looks: after this, only its own file system is mounted.
    async fn note_raw(&self, work: &mut Work<'_>, cx: &Cx) -> Result<()> {
        match self.state_of(work).await? {
            FormatState::Raw | FormatState::Formatted { .. } => Ok(()),
            _ => {
                cx.step("record that the volume is used as a raw block device")?;
                self.note_state(work, Inside::Raw).await
            }
        }
    }

    /// Makes sure that the device holds a file system that may be mounted.
    async fn prepare(
        self: &Arc<Self>,
        work: &mut Work<'_>,
        source: &Source,
        cx: &Cx,
    ) -> Result<FsType> {
        let Source::Device { path: device, .. } = source else {
            return Err(Fault::internal("prepare a source that is no device"));
        };
        cx.step("look at what is on the device")?;
        let state = self.state_of(work).await?;
        let found = {
            let device = device.clone();
            self.blocking(move |this| this.host.filesystems.probe(&device)).await?
        };
        let Asked { fs: asked, default_fs: default, reader, .. } = work.asked;
        match format::decide(state, &found, Wanted { asked, default, reader })? {
            Decision::Use { fs, note } => {
                if note {
                    cx.step("record that the device is formatted")?;
                    self.note_state(work, Inside::Formatted { fs }).await?;
                }
                // One that is mounted (a staging mount was lost while workloads have theirs) is the
                // kernel's to keep sound, and no tool's to look at.
                if !reader && !self.is_mounted(work).await? {
                    cx.step("check the file system")?;
                    let (device, cx) = (device.clone(), cx.clone());
                    self.blocking(move |this| {
                        this.host.filesystems.check(&device, fs)?;
                        this.grow_unmounted(&device, fs, &cx)
                    })
                    .await?;
                }
                Ok(fs)
            }
            Decision::Make { fs, over } => {
                let options = larder_model::mkfs::options(&work.asked.mkfs_options, fs)?;
                if over == Over::Unread {
                    cx.step("read all of the device")?;
                    let (device, cx) = (device.clone(), cx.clone());
                    format::unread(
                        self.blocking(move |this| this.host.filesystems.first_data(&device, &cx))
                            .await?,
                    )?;
                }
                cx.step("record that formatting begins")?;
                self.note_state(work, Inside::Formatting { fs }).await?;
                cx.step("make the file system")?;
                let device = device.clone();
                self.blocking(move |this| {
                    let filesystems = &this.host.filesystems;
                    if over == Over::Remains {
                        filesystems.make_again(&device, fs, &options)
                    } else {
                        filesystems.make(&device, fs, &options)
                    }
                })
                .await?;
                cx.step("record that the device is formatted")?;
                self.note_state(work, Inside::Formatted { fs }).await?;
                Ok(fs)
            }
        }
    }

    /// Whether what is connected is mounted anywhere in sight.
    async fn is_mounted(self: &Arc<Self>, work: &Work<'_>) -> Result<bool> {
        let staged = work.record.staged.as_ref();
        let Some(shows) = staged.and_then(|staged| staged.shows.clone()) else { return Ok(false) };
        self.blocking(move |this| {
            Ok(this.host.mounts.table()?.iter().any(|entry| sight::matches(&shows, entry)))
        })
        .await
    }

    async fn mount_source(
        self: &Arc<Self>,
        work: &mut Work<'_>,
        source: &Source,
        fs: Option<FsType>,
        cx: &Cx,
    ) -> Result<()> {
        let mut request = MountRequest {
            target: work.path.as_path().to_owned(),
            read_only: work.asked.reader,
            ..MountRequest::default()
        };
        // Of options that contradict each other the last one counts, and a class's come last.
        let mut add = |option: &str| {
            request.options.retain(|there| there != option);
            request.options.push(option.to_owned());
        };
        match (source, fs) {
            (Source::Device { path, .. }, Some(fs)) => {
                work.asked.flags.options.iter().for_each(|option| add(option));
                if work.asked.reader {
                    reader_options(fs).iter().for_each(|option| add(option));
                }
                if fs == FsType::Xfs && self.backend.connect().copies_share_uuid() {
                    add("nouuid");
                }
                request.fs_type = fs.as_str().to_owned();
                request.source = path.to_string_lossy().into_owned();
            }
            (Source::FileSystem { fs_type, source, options }, _) => {
                options.iter().for_each(|option| add(option));
                work.asked.flags.options.iter().for_each(|option| add(option));
                request.fs_type.clone_from(fs_type);
                request.source.clone_from(source);
            }
            _ => return Err(Fault::internal("mount a source that is no file system")),
        }
        cx.step("mount the volume")?;
        if let Some(shows) = work.record.shows_mut().filter(|shows| shows.is_network()) {
            shows.begin_to_mount();
            self.save(&work.record).await?;
        }
        work.mounted = true;
        self.blocking(move |this| this.host.mounts.mount(&request)).await
    }

    async fn bind_source(
        self: &Arc<Self>,
        work: &mut Work<'_>,
        source: &Source,
        cx: &Cx,
    ) -> Result<()> {
        let Source::Directory { path } = source else {
            return Err(Fault::internal("bind a source that is no directory"));
        };
        let request = BindRequest {
            source: path.clone(),
            target: work.path.as_path().to_owned(),
            read_only: work.asked.reader,
            options: work.asked.flags.for_bind()?,
        };
        cx.step("bind the volume's directory")?;
        work.mounted = true;
        self.blocking(move |this| this.host.mounts.bind(&request)).await
    }

    /// A clone restored larger, or growth while it was not mounted: the file system catches up.
    async fn grow_staged(
        self: &Arc<Self>,
        work: &Work<'_>,
        source: &Source,
        cx: &Cx,
    ) -> Result<()> {
        let Source::Device { path: device, .. } = source else { return Ok(()) };
        let (path, found) = (work.path.as_path().to_owned(), !work.mounted);
        let (device, cx) = (device.clone(), cx.clone());
        self.blocking(move |this| {
            let Some(fs) = this.mounted_fs(&path)? else { return Ok(()) };
            if !this.host.filesystems.grows_mounted(fs) {
                // Workloads have it mounted: their data is theirs, however large it is.
                return Ok(());
            }
            this.grow_mounted(&device, fs, &path, found, &cx)
        })
        .await
    }

    /// The file system that is mounted at `path`, if it is one that grows.
    ///
    /// # Errors
    /// As [`larder_host::Mounts::mounts_at`].
    pub(super) fn mounted_fs(&self, path: &Path) -> Result<Option<FsType>> {
        let top = self.host.mounts.top_at(path)?;
        Ok(top.and_then(|entry| entry.fs_type.parse().ok()))
    }

    /// Gives a mounted volume to a group.
    ///
    /// # Errors
    /// Those of [`larder_host::group::give`].
    pub(super) async fn give_to_group(
        self: &Arc<Self>,
        path: &Path,
        group: Option<u32>,
        cx: &Cx,
    ) -> Result<()> {
        let Some(group) = group else { return Ok(()) };
        cx.step("give the files to the mount group")?;
        let path = path.to_owned();
        self.blocking(move |_| larder_host::group::give(&path, group).map(|_| ())).await
    }

    async fn confirm(self: &Arc<Self>, work: &mut Work<'_>, cx: &Cx) -> Result<()> {
        // Only now: making and checking a file system is not held to them, wherever Larder itself runs.
        let shows = work.record.staged.as_ref().and_then(|staged| staged.shows.as_ref());
        if let Some(Shows::Device { number, .. }) = shows {
            self.try_to_hold(work.id, (*number).into(), work.limits, cx).await?;
        }
        cx.step("record that the volume is staged")?;
        let path = work.path.clone();
        let network = work.record.shows_mut().is_some_and(|shows| shows.is_network());
        let root = if network {
            self.note_how_it_is_shown(&mut work.record, work.path).await?;
            None
        } else if work.terms.block {
            None
        } else {
            self.blocking(move |this| this.host.mounts.mount_root(path.as_path())).await?
        };
        if let Some(staged) = &mut work.record.staged {
            staged.phase = Phase::Staged;
            staged.root = root.map(Into::into);
        }
        self.save(&work.record).await
    }

    /// Takes back a staging that was not finished: unmounts what is ours, disconnects, forgets.
    ///
    /// # Errors
    /// `Precondition` while it is in use; the record then stays.
    pub(super) async fn take_back(
        self: &Arc<Self>,
        id: &VolumeId,
        record: &mut Record,
        cx: &Cx,
    ) -> Result<()> {
        let Some(staged) = record.staged.clone() else { return Ok(()) };
        self.lift(id, staged.shows.as_ref(), staged.attachment.as_ref(), cx).await?;
        cx.step("unmount what a former attempt left")?;
        let (attachment, shows) = (staged.attachment.clone(), staged.shows.clone());
        self.blocking(move |this| {
            if this.see_staged(&staged.path, Some(&staged), Some(false))?.is_ours() {
                this.unmount_ours(&staged.path, staged.shows.as_ref(), staged.root.as_ref())?;
            }
            Ok(())
        })
        .await?;
        cx.step("disconnect what a former attempt left")?;
        self.disconnect(id, shows.as_ref(), attachment.as_ref(), cx).await?;
        cx.step("forget the former attempt")?;
        record.staged = None;
        let record = record.clone();
        self.blocking(move |this| this.store.save_or_forget(&record)).await
    }

    /// Puts the record back to what it said, and unmounts what this attempt mounted.
    async fn restore(
        self: &Arc<Self>,
        former: Option<Record>,
        mounted: Option<TargetPath>,
        current: Record,
    ) -> Result<()> {
        self.blocking(move |this| {
            if let (Some(path), Some(staged)) = (mounted, &current.staged)
                && this.see_staged(path.as_path(), Some(staged), Some(false))?.is_ours()
            {
                this.unmount_ours(path.as_path(), staged.shows.as_ref(), staged.root.as_ref())?;
            }
            match former {
                Some(former) => this.store.save(&former),
                None => this.store.forget(&current.volume),
            }
        })
        .await
    }

    /// Writes a record durably.
    ///
    /// # Errors
    /// See [`Store::save`](super::record::Store::save).
    pub(super) async fn save(self: &Arc<Self>, record: &Record) -> Result<()> {
        let record = record.clone();
        self.blocking(move |this| this.store.save(&record)).await
    }
}
