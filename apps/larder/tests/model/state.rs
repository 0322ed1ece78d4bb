//! The model: what there is, and what each call may answer and leave.

use crate::call::{Answer, Call, Snapshot, Source, Told, Volume, sources};
use std::collections::BTreeMap;
use tonic::Code;

/// Of what a call did that was killed: not at all, whole, or somewhere between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Is {
    #[default]
    Not,
    Whole,
    Half,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Known {
    size: i64,
    source: Option<Source>,
    /// What is written in it; 0: nothing.
    pub(crate) data: u64,
    /// Its file system is made, for certain.
    formatted: bool,
    /// Making its file system may have been begun and not finished: nothing is copied from it then.
    begun: bool,
    staged: Is,
    pub(crate) targets: [Is; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cut {
    source: Volume,
    size: i64,
    data: u64,
    formatted: bool,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<Volume, Known>,
    snapshots: BTreeMap<Snapshot, Cut>,
    /// Of both volumes.
    group: Option<bool>,
    /// Volumes are images: there are groups, and nodes have something to grow.
    images: bool,
}

/// An answer, and what there is after it.
type Outcome = (Answer, State);

fn done() -> Answer {
    Ok(Told::Done)
}

impl State {
    /// Of a new driver.
    pub(crate) fn new(images: bool) -> Self {
        Self { images, ..Self::default() }
    }

    /// Nothing is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.snapshots.is_empty() && self.group.is_none()
    }

    /// Everything that the call may answer now, and what it leaves then.
    pub(crate) fn outcomes(&self, call: &Call) -> Vec<Outcome> {
        match call {
            Call::Create { volume, size, source } => self.create(*volume, *size, *source),
            Call::Delete(volume) => self.delete(*volume),
            Call::Snapshot { name, source } => self.cut(Snapshot::Own(*name), *source),
            Call::DeleteSnapshot(name) => {
                let mut next = self.clone();
                next.snapshots.remove(&Snapshot::Own(*name));
                vec![(done(), next)]
            }
            Call::Group { .. } | Call::DeleteGroup { .. } | Call::NodeExpand { .. }
                if !self.images =>
            {
                vec![self.refused(Code::Unimplemented)]
            }
            Call::Group { both } => self.cut_group(*both),
            Call::DeleteGroup { both } => vec![match self.group {
                Some(is) if is != *both => self.refused(Code::InvalidArgument),
                _ => {
                    let mut next = self.clone();
                    next.group = None;
                    next.snapshots.retain(|s, _| !matches!(s, Snapshot::Member(_)));
                    (done(), next)
                }
            }],
            Call::Expand { volume, size } => vec![match self.volumes.get(volume) {
                None => self.refused(Code::NotFound),
                Some(known) => {
                    let size = known.size.max(*size);
                    (Ok(Told::Size(size)), self.with(*volume, |known| known.size = size))
                }
            }],
            Call::Get(volume) => vec![match self.volumes.get(volume) {
                None => self.refused(Code::NotFound),
                Some(known) => (Ok(Told::Size(known.size)), self.clone()),
            }],
            Call::Volumes => {
                let all = self.volumes.iter().map(|(volume, known)| (*volume, known.size));
                vec![(Ok(Told::Volumes(all.collect())), self.clone())]
            }
            Call::Snapshots => {
                let all = self.snapshots.iter().map(|(name, cut)| (*name, (cut.source, cut.size)));
                vec![(Ok(Told::Snapshots(all.collect())), self.clone())]
            }
            Call::Stage(_)
            | Call::Unstage(_)
            | Call::Publish { .. }
            | Call::Unpublish { .. }
            | Call::NodeExpand { .. }
            | Call::Stats { .. } => self.node(call),
        }
    }

    /// What a call may leave whose driver was killed, besides nothing.
    pub(crate) fn remains(&self, call: &Call) -> Vec<Self> {
        let whole = self.outcomes(call).into_iter().filter(|(answer, _)| answer.is_ok());
        let mut all: Vec<_> = whole.map(|(_, state)| state).collect();
        match call {
            Call::Stage(volume) | Call::Unstage(volume) if !all.is_empty() => {
                let staging = matches!(call, Call::Stage(_));
                all.push(self.with(*volume, |known| {
                    known.staged = Is::Half;
                    known.begun |= staging && !known.formatted;
                }));
            }
            Call::Publish { volume, target } | Call::Unpublish { volume, target }
                if !all.is_empty() =>
            {
                let half = |known: &mut Known| known.targets[usize::from(*target)] = Is::Half;
                all.push(self.with(*volume, half));
            }
            _ => {}
        }
        all
    }

    fn refused(&self, code: Code) -> Outcome {
        (Err(code), self.clone())
    }

    fn with(&self, volume: Volume, change: impl FnOnce(&mut Known)) -> Self {
        let mut next = self.clone();
        next.volumes.get_mut(&volume).map(change);
        next
    }

    fn create(&self, volume: Volume, size: i64, source: Option<Source>) -> Vec<Outcome> {
        if let Some(known) = self.volumes.get(&volume) {
            let same = known.source == source && known.size >= size;
            return vec![match same {
                true => (Ok(Told::Size(known.size)), self.clone()),
                false => self.refused(Code::AlreadyExists),
            }];
        }
        let from = match source {
            None => Some((0, 0, false)),
            Some(Source::Volume(v)) => self.volumes.get(&v).map(|v| (v.size, v.data, v.formatted)),
            Some(Source::Snapshot(s)) => {
                self.snapshots.get(&s).map(|s| (s.size, s.data, s.formatted))
            }
        };
        let Some((least, data, formatted)) = from else {
            return vec![self.refused(Code::NotFound)];
        };
        if size < least {
            return vec![self.refused(Code::OutOfRange)];
        }
        let mut next = self.clone();
        let (begun, staged, targets) = (false, Is::Not, [Is::Not; 2]);
        let known = Known { size, source, data, formatted, begun, staged, targets };
        next.volumes.insert(volume, known);
        let mut all = vec![(Ok(Told::Size(size)), next)];
        if let Some(Source::Volume(volume)) = source {
            all.extend(self.refused_for(volume));
        }
        all
    }

    /// A copy may be refused while nobody knows whether the file system is whole.
    fn refused_for(&self, source: Volume) -> Option<Outcome> {
        let begun = self.volumes.get(&source).is_some_and(|known| known.begun);
        begun.then(|| self.refused(Code::FailedPrecondition))
    }

    fn delete(&self, volume: Volume) -> Vec<Outcome> {
        let mut next = self.clone();
        let used = next.volumes.remove(&volume).map_or(Is::Not, |known| {
            let all = [known.staged, known.targets[0], known.targets[1]];
            if all.contains(&Is::Whole) {
                Is::Whole
            } else if all.contains(&Is::Half) {
                Is::Half
            } else {
                Is::Not
            }
        });
        match used {
            Is::Not => vec![(done(), next)],
            Is::Whole => vec![self.refused(Code::FailedPrecondition)],
            Is::Half => vec![(done(), next), self.refused(Code::FailedPrecondition)],
        }
    }

    fn cut(&self, name: Snapshot, source: Volume) -> Vec<Outcome> {
        if let Some(cut) = self.snapshots.get(&name) {
            return vec![match cut.source == source {
                true => (Ok(Told::Size(cut.size)), self.clone()),
                false => self.refused(Code::AlreadyExists),
            }];
        }
        let Some(known) = self.volumes.get(&source) else {
            return vec![self.refused(Code::NotFound)];
        };
        let mut next = self.clone();
        let (size, data, formatted) = (known.size, known.data, known.formatted);
        next.snapshots.insert(name, Cut { source, size, data, formatted });
        let cut = (Ok(Told::Size(size)), next);
        std::iter::once(cut).chain(self.refused_for(source)).collect()
    }

    fn cut_group(&self, both: bool) -> Vec<Outcome> {
        match self.group {
            Some(is) if is == both => return vec![(done(), self.clone())],
            Some(_) => return vec![self.refused(Code::AlreadyExists)],
            None => {}
        }
        let mut next = self.clone();
        next.group = Some(both);
        let mut refused = Vec::new();
        for source in sources(both) {
            for (answer, with_member) in next.cut(Snapshot::Member(source), source) {
                match answer {
                    Ok(_) => next = with_member,
                    // It is of the first volume that is not there.
                    Err(Code::NotFound) => return vec![self.refused(Code::NotFound)],
                    Err(code) => refused.push(self.refused(code)),
                }
            }
        }
        std::iter::once((done(), next)).chain(refused).collect()
    }

    fn node(&self, call: &Call) -> Vec<Outcome> {
        let (Call::Stage(volume)
        | Call::Unstage(volume)
        | Call::Publish { volume, .. }
        | Call::Unpublish { volume, .. }
        | Call::NodeExpand { volume, .. }
        | Call::Stats { volume, .. }) = call
        else {
            return Vec::new();
        };
        let Some(known) = self.volumes.get(volume) else {
            return vec![match call {
                Call::Unstage(_) | Call::Unpublish { .. } => (done(), self.clone()),
                _ => self.refused(Code::NotFound),
            }];
        };
        let volume = *volume;
        let at = |target: &u8| usize::from(*target);
        match call {
            Call::Stage(_) => {
                let staged = |known: &mut Known| {
                    (known.staged, known.formatted, known.begun) = (Is::Whole, true, false);
                };
                vec![(done(), self.with(volume, staged))]
            }
            Call::Unstage(_) => {
                let unstaged = |known: &mut Known| {
                    (known.staged, known.targets) = (Is::Not, [Is::Not; 2]);
                };
                let gone = (done(), self.with(volume, unstaged));
                if known.targets.contains(&Is::Whole) {
                    vec![self.refused(Code::FailedPrecondition)]
                } else if known.targets.contains(&Is::Half) {
                    vec![gone, self.refused(Code::FailedPrecondition)]
                } else {
                    vec![gone]
                }
            }
            Call::Publish { target, .. } => {
                let there = |known: &mut Known| {
                    (known.staged, known.formatted, known.begun) = (Is::Whole, true, false);
                    known.targets[at(target)] = Is::Whole;
                };
                let there = (done(), self.with(volume, there));
                match known.staged {
                    Is::Whole => vec![there],
                    Is::Half => vec![there, self.refused(Code::FailedPrecondition)],
                    Is::Not => vec![self.refused(Code::FailedPrecondition)],
                }
            }
            Call::Unpublish { target, .. } => {
                vec![(done(), self.with(volume, |known| known.targets[at(target)] = Is::Not))]
            }
            // What is there answers; what is not is not found.
            Call::NodeExpand { target, .. } | Call::Stats { target, .. } => {
                let answers = (done(), self.clone());
                match known.targets[at(target)] {
                    Is::Whole => vec![answers],
                    Is::Half => vec![answers, self.refused(Code::NotFound)],
                    Is::Not => vec![self.refused(Code::NotFound)],
                }
            }
            _ => Vec::new(),
        }
    }
}
