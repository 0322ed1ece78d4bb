//! Publishing: bind what is staged to where a workload sees it.
//!
//! This is the call that starts pods, so in the common case it is one trip to a thread: read the
//! record, two statx, write the record, bind.

use super::{
    PublishRequest, StageRequest,
    executor::Executor,
    plan::{self, PublishSeen, PublishStep, Seen},
    record::{Later, Phase, Publication, Record, Shows, Staged, Terms},
};
use larder_host::{BindRequest, paths::TargetPath};
use larder_model::{Cx, Fault, Kind, Result, VolumeId};
use std::{path::Path, sync::Arc};

/// What publishing works with.
#[derive(Clone)]
struct Work {
    volume: String,
    staging: TargetPath,
    target: TargetPath,
    wanted: Publication,
    options: Vec<String>,
    cx: Cx,
}

/// How far one trip came.
enum Trip {
    /// Published.
    Done,
    /// A raw device: whether it is still connected must be asked first.
    AskConnected(Box<Staged>),
    /// Something is mounted at the staging path, and no record tells what.
    Unknown,
    /// What is mounted at the staging path is gone from its server.
    Stale,
}

impl Executor {
    /// See [`super::NodeEngine::publish`].
    pub(super) async fn publish(
        self: &Arc<Self>,
        id: &VolumeId,
        request: PublishRequest,
        staging: &TargetPath,
        target: &TargetPath,
        cx: &Cx,
    ) -> Result<()> {
        let asked = self.asked(&request.capability, &request.context)?;
        let work = Work {
            volume: request.volume.clone(),
            staging: staging.clone(),
            target: target.clone(),
            wanted: Publication {
                target: target.as_path().to_owned(),
                terms: Terms::new(&request.capability, &request.context),
                readonly: request.readonly || asked.reader,
                later: Later::new(),
            },
            options: asked.flags.per_mount(),
            cx: cx.clone(),
        };
        let mut connected = None;
        let mut adopted = false;
        loop {
            let trip = {
                let work = work.clone();
                self.blocking(move |this| this.publish_trip(&work, connected)).await?
            };
            let lost = matches!(trip, Trip::Unknown);
            match trip {
                Trip::Done => return Ok(()),
                Trip::AskConnected(staged) => {
                    let alive = self.is_connected(id, &staged).await?;
                    if !alive {
                        return Err(Fault::precondition("publish: the staged device is gone")
                            .hint("unstage the volume and stage it again"));
                    }
                    connected = Some(alive);
                }
                Trip::Unknown | Trip::Stale if adopted => {
                    return Err(Fault::internal("publish: what was staged just now is not known"));
                }
                Trip::Unknown | Trip::Stale => {
                    // The records were wiped under a staged volume: staging again finds it mounted.
                    let again = StageRequest {
                        volume: request.volume.clone(),
                        staging_path: staging.as_path().to_owned(),
                        capability: request.capability.clone(),
                        context: request.context.clone(),
                        publish_context: request.publish_context.clone(),
                        secrets: request.secrets.clone(),
                    };
                    let terms = &work.wanted.terms;
                    let staged = self.stage(id, again, staging, terms, cx).await;
                    staged.map_err(if lost { not_staged } else { |fault| fault })?;
                    adopted = true;
                }
            }
        }
    }

    fn publish_trip(&self, work: &Work, connected: Option<bool>) -> Result<Trip> {
        let loaded = self.store.load(&work.volume)?;
        let staging = work.staging.as_path();
        let Some(staged) = loaded.as_ref().and_then(|r| r.staged.as_ref()) else {
            let seen = self.see_staged(staging, None, None)?;
            return match seen {
                Seen::Unknown if !work.wanted.terms.block => Ok(Trip::Unknown),
                _ => self.publish_steps(work, loaded, false),
            };
        };
        let here = staged.phase == Phase::Staged && staged.path == staging;
        let stands = if !here {
            false
        } else if staged.terms.block {
            match connected {
                Some(connected) => connected,
                None => return Ok(Trip::AskConnected(Box::new(staged.clone()))),
            }
        } else {
            // A workload that starts must not get what its server has no more: staging heals it.
            if self.is_stale(staged)? {
                return Ok(Trip::Stale);
            }
            self.see_staged(staging, Some(staged), Some(false))?.is_ours()
        };
        self.publish_steps(work, loaded, stands)
    }

    fn publish_steps(&self, work: &Work, loaded: Option<Record>, stands: bool) -> Result<Trip> {
        let mut record = loaded.unwrap_or_else(|| self.store.blank(&work.volume));
        let target = work.target.as_path();
        let published = record.publication(target);
        let at = self.see_staged(target, record.staged.as_ref(), published.map(|p| p.readonly))?;
        let standing = if record.publications.iter().any(|p| p.target != target) {
            self.standing(&record)?
        } else {
            Vec::new()
        };
        let others: Vec<&Publication> =
            standing.into_iter().filter(|other| other.target != target).collect();
        let seen = PublishSeen {
            staged: record.staged.as_ref(),
            stands,
            at: &at,
            published,
            others: &others,
        };
        let steps = plan::publish(seen, work.staging.as_path(), &work.wanted)?;
        let Some(staged) = record.staged.clone().filter(|_| !steps.is_empty()) else {
            return Ok(Trip::Done);
        };
        let former = record.publication(target).cloned();
        let done = self.carry_out_publish(work, &steps, &staged, &mut record);
        let Err(fault) = done else { return Ok(Trip::Done) };
        if fault.is_simulated_crash() || at.is_ours() {
            return Err(fault);
        }
        // Binding is the last step: what failed left at most an empty target and the record.
        record.unpublish(target);
        record.publications.extend(former);
        let undone = self.remove_target(&work.target).and_then(|()| self.store.save_less(&record));
        Err(match undone {
            Ok(()) => fault,
            Err(second) => fault.during(format!("(and could not take it back: {second})")),
        })
    }

    fn carry_out_publish(
        &self,
        work: &Work,
        steps: &[PublishStep],
        staged: &Staged,
        record: &mut Record,
    ) -> Result<()> {
        for step in steps {
            match step {
                PublishStep::Record => {
                    work.cx.step("record the publication")?;
                    record.publish(work.wanted.clone());
                    self.store.save(record)?;
                }
                PublishStep::MakeTarget => {
                    work.cx.step("make the target")?;
                    make_target(&work.target, staged.terms.block)?;
                }
                PublishStep::Group => {
                    if let Some(group) = work.wanted.terms.group {
                        work.cx.step("give the files to the mount group")?;
                        larder_host::group::give(&staged.path, group)?;
                    }
                }
                PublishStep::Bind => {
                    work.cx.step("bind the volume to its target")?;
                    self.host.mounts.bind(&BindRequest {
                        source: bound_source(staged)?.to_owned(),
                        target: work.wanted.target.clone(),
                        read_only: work.wanted.readonly,
                        options: work.options.clone(),
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// The target's parent is the caller's to make: a missing one means that the workload is gone.
fn make_target(target: &TargetPath, block: bool) -> Result<()> {
    let parent = target.as_path().parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(Fault::precondition(format!(
            "make target {}: its directory does not exist",
            target.as_path().display()
        ))
        .hint("the caller makes the directory above a target"));
    }
    if block { target.prepare_file() } else { target.prepare_dir() }
}

/// What is bound: the device itself, or the staging mount.
fn bound_source(staged: &Staged) -> Result<&Path> {
    match &staged.shows {
        Some(Shows::Device { path, .. }) if staged.terms.block => Ok(path),
        _ if staged.terms.block => Err(Fault::internal("publish a raw volume without a device")),
        _ => Ok(&staged.path),
    }
}

/// Whatever kept an unknown mount from being taken for this volume: to the caller it is not staged.
fn not_staged(fault: Fault) -> Fault {
    let final_here = matches!(fault.kind(), Kind::NotFound | Kind::Precondition | Kind::Conflict);
    let fault = fault.during("(the node's records were lost) find what is staged");
    if final_here { fault.with_kind(Kind::Precondition) } else { fault }
}
