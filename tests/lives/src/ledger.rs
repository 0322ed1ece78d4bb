//! What was acknowledged, and what must therefore be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::caller::Use;

/// What a client tells the ledger: that something is done, or (`…ing`) that it is about to be
/// undone. Written as a line of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The volume was made, of that size, as a copy of something or not.
    Made {
        /// Its name.
        volume: String,
        /// Its size.
        bytes: i64,
        /// What for.
        usage: Use,
        /// The volume or snapshot that it is a copy of.
        from: Option<String>,
    },
    /// The file with [the content of this name](crate::data) was made durable in the volume.
    Wrote {
        /// Where.
        volume: String,
        /// Which.
        file: String,
    },
    /// The volume has this size now.
    Grew {
        /// Its name.
        volume: String,
        /// Its size.
        bytes: i64,
    },
    /// The snapshot was cut.
    Cut {
        /// Its name.
        snapshot: String,
        /// Of which volume.
        volume: String,
    },
    /// A group was cut.
    Grouped {
        /// Its name.
        group: String,
        /// Its snapshots, each with its volume.
        members: Vec<(String, String)>,
    },
    /// A volume, snapshot or group is about to be deleted.
    Removing(String),
    /// It was deleted.
    Removed(String),
    /// It is about to be put back from the trash.
    Restoring(String),
    /// It was put back.
    Restored(String),
    /// It is about to be removed from the trash.
    Dropping(String),
    /// It was.
    Dropped(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made { volume, bytes, usage, from } => {
                let from = from.as_deref().unwrap_or("-");
                write!(f, "made {volume} {bytes} {usage} {from}")
            }
            Self::Wrote { volume, file } => write!(f, "wrote {volume} {file}"),
            Self::Grew { volume, bytes } => write!(f, "grew {volume} {bytes}"),
            Self::Cut { snapshot, volume } => write!(f, "cut {snapshot} {volume}"),
            Self::Grouped { group, members } => {
                write!(f, "grouped {group}")?;
                members.iter().try_for_each(|(snapshot, volume)| write!(f, " {snapshot} {volume}"))
            }
            Self::Removing(name) => write!(f, "removing {name}"),
            Self::Removed(name) => write!(f, "removed {name}"),
            Self::Restoring(name) => write!(f, "restoring {name}"),
            Self::Restored(name) => write!(f, "restored {name}"),
            Self::Dropping(name) => write!(f, "dropping {name}"),
            Self::Dropped(name) => write!(f, "dropped {name}"),
        }
    }
}

impl FromStr for Event {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let parsed = match &words[..] {
            [word, volume, bytes, usage, from] if word == "made" => Self::Made {
                volume: volume.clone(),
                bytes: bytes.parse()?,
                usage: usage.parse()?,
                from: (from != "-").then(|| from.clone()),
            },
            [word, volume, file] if word == "wrote" => {
                Self::Wrote { volume: volume.clone(), file: file.clone() }
            }
            [word, volume, bytes] if word == "grew" => {
                Self::Grew { volume: volume.clone(), bytes: bytes.parse()? }
            }
            [word, snapshot, volume] if word == "cut" => {
                Self::Cut { snapshot: snapshot.clone(), volume: volume.clone() }
            }
            [word, group, members @ ..] if word == "grouped" => {
                let pairs = members.as_chunks::<2>().0.iter();
                let members = pairs.map(|[snapshot, volume]| (snapshot.clone(), volume.clone()));
                Self::Grouped { group: group.clone(), members: members.collect() }
            }
            [word, name] => {
                let name = name.clone();
                match word.as_str() {
                    "removing" => Self::Removing(name),
                    "removed" => Self::Removed(name),
                    "restoring" => Self::Restoring(name),
                    "restored" => Self::Restored(name),
                    "dropping" => Self::Dropping(name),
                    "dropped" => Self::Dropped(name),
                    _ => bail!("no event: {line:?}"),
                }
            }
            _ => bail!("no event: {line:?}"),
        };
        Ok(parsed)
    }
}

/// Where something must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It must be listed.
    Here,
    /// A deletion has begun: it is here, in the trash, or gone.
    Removing,
    /// It must not be listed; where there is a trash, it must be in it.
    Removed,
    /// It is in the trash, or listed again.
    Restoring,
    /// It is in the trash, or gone.
    Dropping,
    /// It is nowhere.
    Gone,
}

/// A volume or a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Thing {
    pub(crate) state: State,
    pub(crate) bytes: i64,
    pub(crate) usage: Use,
    /// What must be in it.
    pub(crate) files: BTreeSet<String>,
    /// Of a snapshot: of which volume.
    pub(crate) volume: Option<String>,
}

/// All that was told.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub(crate) things: BTreeMap<String, Thing>,
    pub(crate) groups: BTreeMap<String, Vec<String>>,
    pub(crate) len: usize,
}

impl Ledger {
    /// The ledger after these events.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Self> {
        let mut ledger = Self::default();
        events.into_iter().try_for_each(|event| ledger.note(event))?;
        Ok(ledger)
    }

    pub(crate) fn thing(&self, name: &str) -> Result<&Thing> {
        self.things.get(name).with_context(|| format!("{name} is not in the ledger"))
    }

    fn known(&mut self, name: &str) -> Result<&mut Thing> {
        self.things.get_mut(name).with_context(|| format!("{name} is not in the ledger"))
    }

    /// Notes an event.
    pub fn note(&mut self, event: &Event) -> Result<()> {
        self.len += 1;
        match event {
            Event::Made { volume, bytes, usage, from } => {
                let files = match from {
                    Some(from) => self.thing(from)?.files.clone(),
                    None => BTreeSet::new(),
                };
                let (bytes, usage) = (*bytes, *usage);
                let thing = Thing { state: State::Here, bytes, usage, files, volume: None };
                ensure!(self.things.insert(volume.clone(), thing).is_none(), "{volume} was known");
            }
            Event::Wrote { volume, file } => {
                self.known(volume)?.files.insert(file.clone());
            }
            Event::Grew { volume, bytes } => self.known(volume)?.bytes = *bytes,
            Event::Cut { snapshot, volume } => self.cut(snapshot, volume)?,
            Event::Grouped { group, members } => {
                for (snapshot, volume) in members {
                    self.cut(snapshot, volume)?;
                }
                let names = members.iter().map(|(snapshot, _)| snapshot.clone()).collect();
                self.groups.insert(group.clone(), names);
            }
            Event::Removing(name) => self.set(name, State::Removing)?,
            Event::Removed(name) => self.set(name, State::Removed)?,
            Event::Restoring(name) => self.set(name, State::Restoring)?,
            Event::Restored(name) => self.set(name, State::Here)?,
            Event::Dropping(name) => self.set(name, State::Dropping)?,
            Event::Dropped(name) => self.set(name, State::Gone)?,
        }
        Ok(())
    }

    fn cut(&mut self, snapshot: &str, volume: &str) -> Result<()> {
        let source = self.thing(volume)?.clone();
        let thing = Thing { state: State::Here, volume: Some(volume.to_owned()), ..source };
        ensure!(self.things.insert(snapshot.to_owned(), thing).is_none(), "{snapshot} was known");
        Ok(())
    }

    fn set(&mut self, name: &str, state: State) -> Result<()> {
        if let Some(members) = self.groups.get(name).cloned() {
            // Members of groups do not go into the trash.
            let state = if state == State::Removed { State::Gone } else { state };
            return members.iter().try_for_each(|member| {
                self.known(member)?.state = state;
                Ok(())
            });
        }
        self.known(name)?.state = state;
        Ok(())
    }

    /// The names of what is in this state: volumes, or snapshots.
    pub fn named(&self, state: State, volumes: bool) -> BTreeSet<String> {
        let wanted = |(name, thing): (&String, &Thing)| {
            (thing.state == state && thing.volume.is_none() == volumes).then(|| name.clone())
        };
        self.things.iter().filter_map(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "what fails here is the test")]
    use super::*;

    fn ledger(text: &str) -> Ledger {
        let events: Vec<Event> = text.lines().map(|line| line.trim().parse().unwrap()).collect();
        for (event, line) in events.iter().zip(text.lines()) {
            assert_eq!(event.to_string(), line.trim());
        }
        Ledger::of(&events).unwrap()
    }

    #[test]
    fn a_copy_holds_what_its_source_held_when_it_was_made() {
        let ledger = ledger(
            "made v 10 block -\nwrote v f1\ncut s v\nwrote v f2\nmade c 10 block s\ngrouped g m v n c",
        );
        let files = |name: &str| ledger.things[name].files.iter().cloned().collect::<Vec<_>>();
        assert_eq!(files("s"), ["f1"]);
        assert_eq!(files("c"), ["f1"]);
        assert_eq!(files("m"), ["f1", "f2"]);
        assert_eq!(ledger.groups["g"], ["m", "n"]);
    }

    #[test]
    fn a_group_goes_as_a_whole_and_past_the_trash() {
        let ledger =
            ledger("made v 10 xfs -\ngrouped g m v\nremoving g\nremoved g\nremoving v\nremoved v");
        assert_eq!(ledger.things["m"].state, State::Gone);
        assert_eq!(ledger.things["v"].state, State::Removed);
    }
}
