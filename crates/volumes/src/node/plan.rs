//! Observe, *decide*, act: the decisions.
//!
//! Every function here is pure: from what was observed and what is wanted it makes the list of steps
//! that are left to do, or refuses. An operation that was cut at any step and is begun again
//! observes how far it came and gets the rest of the list; nothing is mounted twice because a mount
//! that is there already leaves no step for it.

use super::record::{Phase, Publication, Staged, Terms};
use larder_model::{AccessMode, Fault, Result};
use std::path::Path;

/// What was seen at a path, with what is known of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing is there.
    Missing,
    /// A directory, nothing mounted.
    Directory {
        /// Nothing is in it.
        empty: bool,
    },
    /// A plain file, nothing mounted.
    File {
        /// It has no contents.
        empty: bool,
    },
    /// A symlink, a device node …, in words.
    Obstacle(&'static str),
    /// This volume is mounted there.
    Ours {
        /// Nothing can be written through it.
        read_only: bool,
    },
    /// Something else is mounted there, in words.
    Foreign(String),
    /// Something is mounted there, and no record tells whether it is this volume.
    Unknown,
}

impl Seen {
    /// Whether this volume is mounted there.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours { .. })
    }
}

fn in_the_way(path: &Path, what: &str) -> Fault {
    Fault::precondition(format!("use {}: {what} is in the way", path.display()))
        .hint("remove it, or unmount it by hand after a look at who put it there")
}

/// A step of staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StageStep {
    /// Undo what a former attempt on other terms left.
    TakeBack,
    /// Record that staging begins.
    Record,
    /// Connect, and record what that left.
    Connect,
    /// Record with the volume that a workload has it raw.
    NoteRaw,
    /// Decide about formatting, and check what is there.
    Prepare,
    /// Mount the device or file system.
    Mount,
    /// Bind the directory.
    Bind,
    /// Make the file system as large as its device.
    Grow,
    /// Give it to the mount group.
    Group,
    /// Record that it is done.
    Confirm,
}

/// What staging observes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct StageSeen<'a> {
    /// The record of a staging.
    pub(super) staged: Option<&'a Staged>,
    /// What is at the asked path.
    pub(super) at: &'a Seen,
    /// The staging of the record, at another path, is still mounted.
    pub(super) elsewhere: bool,
    /// Some workload has the volume mounted.
    pub(super) published: bool,
    /// The recorded attachment still stands.
    pub(super) connected: bool,
}

/// The first steps of staging at `path` on `terms`; the rest follows from what `connect` returns
/// ([`source`]). Empty: it is staged already.
///
/// # Errors
/// `Conflict` when it is staged on other terms; `Precondition` when something is in the way.
pub(super) fn stage(seen: StageSeen<'_>, path: &Path, terms: &Terms) -> Result<Vec<StageStep>> {
    use StageStep::{Connect, Record, TakeBack};
    match seen.at {
        Seen::Missing => {
            return Err(Fault::precondition(format!(
                "use staging path {}: it does not exist",
                path.display()
            ))
            .hint("the caller makes this directory before it stages a volume"));
        }
        Seen::Obstacle(what) => return Err(in_the_way(path, what)),
        Seen::File { .. } => return Err(in_the_way(path, "a file")),
        Seen::Foreign(what) => return Err(in_the_way(path, what)),
        Seen::Directory { .. } | Seen::Ours { .. } | Seen::Unknown => {}
    }
    let afresh = Ok(vec![Record, Connect]);
    let Some(staged) = seen.staged else { return afresh };
    let alike = staged.terms.stage_alike(terms);
    if staged.path != path {
        // Its data is still in use at the other place, or (raw block) may be.
        let stands = staged.terms.block && seen.connected && staged.phase == Phase::Staged;
        if seen.elsewhere || seen.published || stands {
            return Err(Fault::precondition(format!(
                "stage at {}: the volume is staged at {}",
                path.display(),
                staged.path.display()
            ))
            .hint("unstage it there first"));
        }
        return Ok(vec![TakeBack, Record, Connect]);
    }
    let stands = seen.connected && (seen.at.is_ours() || staged.terms.block);
    match staged.phase {
        Phase::Staged if stands && alike => Ok(vec![]),
        Phase::Staged if stands || (seen.published && !alike) => {
            let difference = staged.terms.difference(terms);
            Err(Fault::conflict(format!(
                "stage at {}: it is staged there already with another {difference}",
                path.display()
            ))
            .hint("unstage it first, or ask for the same"))
        }
        _ if alike || seen.published => afresh,
        _ => Ok(vec![TakeBack, Record, Connect]),
    }
}

/// What a connected volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A block device.
    Device,
    /// A directory.
    Directory,
    /// A network file system.
    FileSystem,
}

/// What staging observes once the volume is connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceSeen<'a> {
    /// What it is.
    pub(super) kind: Kind,
    /// What is at the staging path.
    pub(super) at: &'a Seen,
}

/// How it is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceWanted {
    /// As a raw block device.
    pub(super) block: bool,
    /// Only for reading.
    pub(super) reader: bool,
    /// With files of a group.
    pub(super) group: bool,
}

/// The steps of staging that are left once the volume is connected.
///
/// # Errors
/// `Precondition` when something else is mounted there, or it cannot be used in that way.
pub(super) fn source(
    seen: SourceSeen<'_>,
    wanted: SourceWanted,
    path: &Path,
) -> Result<Vec<StageStep>> {
    use StageStep::{Bind, Confirm, Group, Grow, Mount, NoteRaw, Prepare};
    let mounted = match seen.at {
        Seen::Foreign(what) => return Err(in_the_way(path, what)),
        Seen::Unknown => return Err(in_the_way(path, "a mount that is not this volume's")),
        Seen::Ours { read_only } => Some(*read_only),
        _ => None,
    };
    if wanted.block {
        if mounted.is_some() {
            return Err(Fault::conflict(format!(
                "stage as a raw block device: a file system is mounted at {}",
                path.display()
            ))
            .hint("unstage it first"));
        }
        if seen.kind != Kind::Device {
            return Err(Fault::precondition(
                "stage as a raw block device: this kind of volume is no block device",
            ));
        }
        return Ok(if wanted.reader { vec![Confirm] } else { vec![NoteRaw, Confirm] });
    }
    if mounted.is_some_and(|read_only| read_only != wanted.reader) {
        return Err(Fault::conflict(format!(
            "stage at {}: it is mounted there {}",
            path.display(),
            if wanted.reader { "for writing" } else { "read-only" }
        ))
        .hint("unstage it first, or ask for the same"));
    }
    let mut steps = Vec::new();
    match seen.kind {
        Kind::Device => {
            if mounted.is_none() {
                steps.extend([Prepare, Mount]);
            }
            if !wanted.reader {
                steps.push(Grow);
            }
        }
        Kind::Directory if mounted.is_none() => steps.push(Bind),
        Kind::FileSystem if mounted.is_none() => steps.push(Mount),
        Kind::Directory | Kind::FileSystem => {}
    }
    if wanted.group && !wanted.reader {
        steps.push(Group);
    }
    steps.push(Confirm);
    Ok(steps)
}

/// A step of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PublishStep {
    /// Record the publication.
    Record,
    /// Make the target.
    MakeTarget,
    /// Bind the volume there.
    Bind,
    /// Give it to the mount group.
    Group,
}

/// What publishing observes.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublishSeen<'a> {
    /// Its staging; None: not staged.
    pub(super) staged: Option<&'a Staged>,
    /// The staged volume stands: mounted, or for raw block connected.
    pub(super) stands: bool,
    /// What is at the target.
    pub(super) at: &'a Seen,
    /// The record of a publication there.
    pub(super) published: Option<&'a Publication>,
    /// Publications at other targets that still stand.
    pub(super) others: &'a [&'a Publication],
}

/// The steps that are left to publish. Empty: it is published already.
///
/// # Errors
/// `Precondition` when it is not staged (or not so), something is in the way, or another workload
/// has it; `Conflict` when it is published there on other terms.
pub(super) fn publish(
    seen: PublishSeen<'_>,
    staging: &Path,
    wanted: &Publication,
) -> Result<Vec<PublishStep>> {
    use PublishStep::{Bind, Group, MakeTarget, Record};
    let target = &wanted.target;
    let staged = seen.staged.filter(|s| s.phase == Phase::Staged && s.path == staging);
    let Some(staged) = staged.filter(|_| seen.stands) else {
        let where_ = match seen.staged {
            Some(s) if s.path != staging => format!("; it is staged at {}", s.path.display()),
            _ => String::new(),
        };
        return Err(Fault::precondition(format!(
            "publish: the volume is not staged at {}{where_}",
            staging.display()
        ))
        .hint("stage it there first"));
    };
    if staged.terms.block != wanted.terms.block {
        let (is, asked) = if staged.terms.block {
            ("a raw block device", "a mount")
        } else {
            ("a mount", "a raw block device")
        };
        return Err(Fault::precondition(format!("publish as {asked}: it is staged as {is}"))
            .hint("unstage it first"));
    }
    if wanted.terms.block && wanted.readonly && !staged.reader {
        // Whoever can open a device node can write through it: no mount of the node, however
        // read-only, stands in the way. Only the device itself can refuse.
        return Err(Fault::precondition(
            "publish a raw block device read-only: it is staged for writing",
        )
        .hint(
            "stage it with an access mode that only reads (SINGLE_NODE_READER_ONLY, \
             MULTI_NODE_READER_ONLY), or publish it without readonly",
        ));
    }
    second_target(wanted, seen.others)?;
    // A mount is read-only as a whole where its file system is, or where this workload asked so.
    let read_only = wanted.readonly || staged.reader;
    let conflict = |what: &str| {
        Err(Fault::conflict(format!(
            "publish at {}: it is published there already with another {what}",
            target.display()
        ))
        .hint("unpublish it there first, or ask for the same"))
    };
    let group = (wanted.terms.group.is_some() && !read_only).then_some(Group);
    match seen.at {
        Seen::Obstacle(what) => Err(in_the_way(target, what)),
        Seen::Foreign(what) => Err(in_the_way(target, what)),
        Seen::Unknown => Err(in_the_way(target, "a mount that is not this volume's")),
        Seen::Directory { .. } if wanted.terms.block => Err(in_the_way(target, "a directory")),
        Seen::File { .. } if !wanted.terms.block => Err(in_the_way(target, "a file")),
        Seen::Directory { empty: false } => Err(in_the_way(target, "a directory with files in it")),
        Seen::File { empty: false } => Err(in_the_way(target, "a file with contents")),
        Seen::Ours { read_only: is } => match seen.published {
            Some(there) if there.readonly != wanted.readonly => conflict("readonly"),
            Some(there) if there.terms != wanted.terms => {
                conflict(&there.terms.difference(&wanted.terms))
            }
            Some(_) => Ok(vec![]),
            // The records were wiped: what the kernel tells has to do.
            None if *is != read_only && !wanted.terms.block => conflict("readonly"),
            None => Ok([Some(Record), group].into_iter().flatten().collect()),
        },
        Seen::Missing | Seen::Directory { .. } | Seen::File { .. } => {
            Ok([Some(Record), Some(MakeTarget), group, Some(Bind)].into_iter().flatten().collect())
        }
    }
}

/// Whether a second target on this node is allowed.
///
/// Differs from the CSI table in one place: `SINGLE_NODE_WRITER` is accepted, because kubelet
/// publishes a ReadWriteOnce volume twice whenever two pods of one node use it, also while an old
/// pod is still ending.
fn second_target(wanted: &Publication, others: &[&Publication]) -> Result<()> {
    let alone = |mode| {
        matches!(mode, AccessMode::SingleNodeSingleWriter | AccessMode::SingleNodeReaderOnly)
    };
    let Some(other) =
        others.iter().find(|other| alone(wanted.terms.mode) || alone(other.terms.mode))
    else {
        return Ok(());
    };
    let mode = if alone(wanted.terms.mode) { wanted.terms.mode } else { other.terms.mode };
    Err(Fault::precondition(format!(
        "publish at {}: with access mode {mode} only one workload can have the volume, and it is \
         published at {}",
        wanted.target.display(),
        other.target.display()
    ))
    .hint("wait until it is unpublished there"))
}

/// A step of unpublishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnpublishStep {
    /// Unmount everything of ours at the target.
    Unmount,
    /// Remove the target.
    RemoveTarget,
    /// Forget the publication.
    Forget,
}

/// The steps that are left to unpublish. `recorded`: a record tells of this publication.
///
/// # Errors
/// `Precondition` when something else is mounted there, or files that are not the volume's would
/// have to go.
pub(super) fn unpublish(at: &Seen, recorded: bool, target: &Path) -> Result<Vec<UnpublishStep>> {
    use UnpublishStep::{Forget, RemoveTarget, Unmount};
    Ok(match at {
        Seen::Missing => vec![Forget],
        Seen::Ours { .. } => vec![Unmount, RemoveTarget, Forget],
        Seen::Directory { empty: true } | Seen::File { empty: true } => vec![RemoveTarget, Forget],
        Seen::Directory { .. } | Seen::File { .. } if recorded => {
            return Err(Fault::precondition(format!(
                "remove target {}: it holds files that are not on the volume",
                target.display()
            ))
            .hint(
                "they were written while nothing was mounted there: save them, then remove them",
            ));
        }
        // Nothing of ours, nothing to take back.
        Seen::Directory { .. } | Seen::File { .. } => vec![],
        Seen::Obstacle(what) => return Err(in_the_way(target, what)),
        Seen::Foreign(what) => return Err(in_the_way(target, what)),
        Seen::Unknown => return Err(in_the_way(target, "a mount that is not this volume's")),
    })
}

/// A step of unstaging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnstageStep {
    /// Record that it is being taken back.
    Record,
    /// Unmount everything of ours at the staging path.
    Unmount,
    /// Make sure that nobody uses the device.
    ProveUnused,
    /// Let the backend take it back.
    Disconnect,
    /// Forget it.
    Forget,
}

/// What unstaging observes.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnstageSeen<'a> {
    /// The record of a staging.
    pub(super) staged: Option<&'a Staged>,
    /// What is at the path.
    pub(super) at: &'a Seen,
    /// Targets where it is still published.
    pub(super) published: &'a [&'a Path],
}

/// The steps that are left to unstage. Empty: it is not staged there.
///
/// # Errors
/// `Precondition` while a workload has it, or when something else is mounted there.
pub(super) fn unstage(seen: UnstageSeen<'_>, path: &Path) -> Result<Vec<UnstageStep>> {
    use UnstageStep::{Disconnect, Forget, ProveUnused, Record, Unmount};
    match seen.at {
        Seen::Obstacle(what) => return Err(in_the_way(path, what)),
        Seen::Foreign(what) => return Err(in_the_way(path, what)),
        Seen::Unknown => return Err(in_the_way(path, "a mount that is not this volume's")),
        Seen::Missing | Seen::Directory { .. } | Seen::File { .. } | Seen::Ours { .. } => {}
    }
    if let Some(staged) = seen.staged.filter(|staged| staged.path != path) {
        if seen.at.is_ours() {
            return Err(Fault::precondition(format!(
                "unstage from {}: the volume is staged at {}",
                path.display(),
                staged.path.display()
            ))
            .hint("if this is a target, unpublish it"));
        }
        return Ok(vec![]);
    }
    if !seen.published.is_empty() {
        let targets: Vec<_> = seen.published.iter().map(|t| t.display().to_string()).collect();
        return Err(Fault::precondition(format!(
            "unstage: the volume is still published at {}",
            targets.join(", ")
        ))
        .hint("unpublish it there first"));
    }
    let mut steps = Vec::new();
    if seen.staged.is_some() {
        steps.push(Record);
    }
    if seen.at.is_ours() {
        steps.push(Unmount);
    }
    steps.extend([ProveUnused, Disconnect, Forget]);
    Ok(steps)
}

#[cfg(test)]
mod tests;
