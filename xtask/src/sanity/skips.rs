//! The list of specs that may be skipped, each with the reason: tests/sanity/skips.toml.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::report::{self, Outcome};

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    #[serde(default)]
    skip: Vec<Entry>,
}

/// Which specs, where, why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Part of the specs' names.
    spec: String,
    /// What the suite says when it skips them, in part.
    says: String,
    /// Backends; none: all.
    #[serde(default)]
    backend: Vec<String>,
    /// Accesses; none: all.
    #[serde(default)]
    access: Vec<String>,
    /// Why this kind of storage cannot have it.
    reason: String,
}

impl Entry {
    fn covers(&self, backend: &str, access: &str) -> bool {
        let one_of =
            |list: &[String], value: &str| list.is_empty() || list.iter().any(|v| v == value);
        one_of(&self.backend, backend) && one_of(&self.access, access)
    }
}

/// What the list says about a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Skipped as listed: how many, which, and the reason.
    pub(crate) allowed: Vec<(u32, String, String)>,
    /// Skipped and not listed.
    pub(crate) unlisted: Vec<String>,
    /// Listed and not skipped.
    pub(crate) stale: Vec<String>,
}

impl List {
    /// Reads the list.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let context = || format!("failed to read {}", path.display());
        let text = fs::read_to_string(path).with_context(context)?;
        Self::parse(&text).with_context(context)
    }

    fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for entry in &list.skip {
            ensure!(!entry.spec.is_empty() && !entry.says.is_empty(), "an entry covers everything");
            ensure!(!entry.reason.is_empty(), "no reason for {:?}", entry.spec);
        }
        Ok(list)
    }

    /// Compares a run with the list.
    pub(crate) fn judge(&self, backend: &str, access: &str, outcomes: &[Outcome]) -> Judged {
        let entries: Vec<_> =
            self.skip.iter().filter(|entry| entry.covers(backend, access)).collect();
        let mut used = vec![0; entries.len()];
        let mut judged = Judged::default();
        for Outcome { name, result } in outcomes {
            let report::Result::Skipped(said) = result else { continue };
            let listed = |entry: &&Entry| name.contains(&entry.spec) && said.contains(&entry.says);
            if let Some(index) = entries.iter().position(listed) {
                used[index] += 1;
            } else {
                judged.unlisted.push(format!("{name} was skipped and is not listed: {said}"));
            }
        }
        for (entry, used) in entries.iter().zip(used) {
            let Entry { spec, says, reason, .. } = entry;
            if used == 0 {
                judged.stale.push(format!("listed but not skipped: {spec:?} ({says})"));
            } else {
                judged.allowed.push((used, spec.clone(), reason.clone()));
            }
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"
        [[skip]]
        spec = "ControllerPublishVolume"
        says = "not supported"
        reason = "nothing to attach"

        [[skip]]
        spec = "Expand"
        says = "not supported"
        backend = ["dir"]
        access = ["mount"]
        reason = "a test"
    "#;

    fn skipped(name: &str) -> Outcome {
        let result = report::Result::Skipped("X not supported".into());
        Outcome { name: name.into(), result }
    }

    #[test]
    fn a_listed_skip_is_allowed_where_it_is_listed() {
        let list = List::parse(LIST).unwrap();
        let outcomes = [skipped("ControllerPublishVolume should"), skipped("Expand should")];
        let judged = list.judge("dir", "mount", &outcomes);
        assert_eq!(judged.allowed.iter().map(|(count, ..)| count).sum::<u32>(), 2);
        assert!(judged.unlisted.is_empty() && judged.stale.is_empty());
        let judged = list.judge("loop", "mount", &outcomes);
        assert_eq!((judged.allowed.len(), judged.unlisted.len()), (1, 1));
    }

    #[test]
    fn a_listed_skip_that_does_not_happen_is_stale() {
        let passed = Outcome { name: "Expand should".into(), result: report::Result::Passed };
        let judged = List::parse(LIST).unwrap().judge("dir", "mount", &[passed]);
        assert_eq!(judged.stale.len(), 2);
    }

    #[test]
    fn an_entry_without_a_reason_or_for_everything_is_refused() {
        assert!(List::parse("[[skip]]\nspec = \"a\"\nsays = \"b\"\nreason = \"\"").is_err());
        assert!(List::parse("[[skip]]\nspec = \"\"\nsays = \"b\"\nreason = \"c\"").is_err());
        assert!(List::parse("[[skip]]\nspec = \"a\"\nsays = \"b\"").is_err());
        assert!(
            List::parse("[[skip]]\nspec = \"a\"\nsays = \"b\"\nreason = \"c\"\nx = 1").is_err()
        );
    }

    #[test]
    fn the_projects_own_list_is_valid() {
        List::load(&crate::root().join("tests/sanity/skips.toml")).unwrap();
    }
}
