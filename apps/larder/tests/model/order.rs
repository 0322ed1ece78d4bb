//! Whether some order of overlapping calls explains what was answered.

use crate::{
    call::{Answer, Call},
    state::State,
};
use std::{
    collections::{BTreeSet, HashSet},
    time::Instant,
};
use tonic::Code;

/// A call that was made.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) task: usize,
    pub(crate) call: Call,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// None: the driver was killed meanwhile.
    pub(crate) answer: Option<Answer>,
    /// What a refusal said.
    pub(crate) text: String,
}

impl Event {
    /// What works on the same may send it away, and it did nothing then: at once, or, as a copy,
    /// when it found that what it copied has changed meanwhile.
    fn was_sent_away(&self) -> bool {
        match self.answer {
            Some(Err(Code::Aborted)) => true,
            Some(Err(Code::Unavailable)) => self.call.copies(),
            _ => false,
        }
    }
    fn overlaps(&self, other: &Self) -> bool {
        self.began < other.ended && other.began < self.ended
    }
}

/// All states that the calls can have left, from any of `before`. None: no order explains them.
///
/// # Errors
/// Why not.
pub(crate) fn explain(
    before: &BTreeSet<State>,
    events: &[Event],
) -> Result<BTreeSet<State>, String> {
    for event in events.iter().filter(|event| event.was_sent_away()) {
        let mine = event.call.subjects();
        let excused = events.iter().any(|other| {
            !std::ptr::eq(event, other)
                && event.overlaps(other)
                && other.call.subjects().iter().any(|subject| mine.contains(subject))
        });
        if !excused {
            return Err(format!("sent away, and nothing worked on the same: {event:?}"));
        }
    }
    let events: Vec<_> = events.iter().filter(|event| !event.was_sent_away()).collect();
    assert!(events.len() < 64, "a bit each");
    let mut search = Search { events, seen: HashSet::new(), ends: BTreeSet::new() };
    for state in before {
        search.go(0, state);
    }
    if search.ends.is_empty() {
        Err("no order of the calls explains it".to_owned())
    } else {
        Ok(search.ends)
    }
}

struct Search<'a> {
    events: Vec<&'a Event>,
    seen: HashSet<(u64, State)>,
    ends: BTreeSet<State>,
}

impl Search<'_> {
    fn go(&mut self, done: u64, state: &State) {
        if !self.seen.insert((done, state.clone())) {
            return;
        }
        let left = |n: usize| done & (1 << n) == 0;
        if (0..self.events.len()).all(|n| !left(n) || self.events[n].answer.is_none()) {
            self.ends.insert(state.clone());
        }
        for n in (0..self.events.len()).filter(|n| left(*n)) {
            let event = self.events[n];
            // Nothing that was answered before it began may come after it.
            let early = (0..self.events.len()).any(|other| {
                let other_event = self.events[other];
                other != n
                    && left(other)
                    && other_event.answer.is_some()
                    && other_event.ended < event.began
            });
            if early {
                continue;
            }
            let next: Vec<State> = match &event.answer {
                None => state.remains(&event.call),
                Some(answer) => {
                    let all = state.outcomes(&event.call).into_iter();
                    all.filter(|(may, _)| may == answer).map(|(_, state)| state).collect()
                }
            };
            for state in next {
                self.go(done | 1 << n, &state);
            }
        }
    }
}

/// The calls as a person wants to read them.
pub(crate) fn told(events: &[Event]) -> String {
    let zero = events.iter().map(|event| event.began).min();
    let mut lines: Vec<_> = events.iter().collect();
    lines.sort_by_key(|event| event.began);
    let ms = |at: Instant| zero.map_or(0.0, |zero| (at - zero).as_secs_f64() * 1000.0);
    let line = |e: &&Event| {
        format!(
            "{:9.3} {:9.3} task {} {:?} -> {:?} {}\n",
            ms(e.began),
            ms(e.ended),
            e.task,
            e.call,
            e.answer,
            e.text
        )
    };
    lines.iter().map(line).collect()
}
