//! What a check finds.

use super::fix::Fix;
use serde::{Serialize, Serializer};
use std::{fmt, path::Path};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Data is lost or may be, or a volume cannot be used.
    Critical,
    /// Something holds resources, or will go wrong.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A kind of finding: part of the interface.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sort {
    /// Its name, for ever.
    pub(crate) name: &'static str,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Why it matters.
    pub(crate) why: &'static str,
}

/// Something found. The JSON form is part of the interface.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// The same in every run, as long as it is there.
    pub(crate) id: String,
    /// See [`Sort::name`].
    pub(crate) kind: &'static str,
    /// See [`Severity`].
    pub(crate) severity: Severity,
    /// The driver; empty: all of them.
    pub(crate) driver: String,
    /// Its pool, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    /// The volume's or snapshot's id, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume: Option<String>,
    /// A path.
    #[serde(rename = "where")]
    pub(crate) place: String,
    /// What is wrong.
    pub(crate) what: String,
    /// See [`Sort::why`].
    pub(crate) why: &'static str,
    /// What mends it.
    pub(crate) mend: String,
    /// Whether `--fix` does that.
    #[serde(rename = "fixable", serialize_with = "is_some")]
    pub(crate) fix: Option<Fix>,
}

#[allow(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn is_some<S: Serializer>(fix: &Option<Fix>, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_bool(fix.is_some())
}

impl Finding {
    /// Of that sort at `place`, which tells it from others of its sort.
    pub(crate) fn new(sort: &'static Sort, place: &Path, what: impl Into<String>) -> Self {
        let place = place.display().to_string();
        Self {
            id: format!("{}:{place}", sort.name),
            kind: sort.name,
            severity: sort.severity,
            driver: String::new(),
            pool: None,
            volume: None,
            place,
            what: what.into(),
            why: sort.why,
            mend: String::new(),
            fix: None,
        }
    }

    /// Of that driver.
    pub(crate) fn of(mut self, driver: &str) -> Self {
        driver.clone_into(&mut self.driver);
        self
    }

    /// In that pool.
    pub(crate) fn in_pool(mut self, pool: impl fmt::Display) -> Self {
        self.pool = Some(pool.to_string());
        self
    }

    /// About that volume.
    pub(crate) fn volume(mut self, volume: impl fmt::Display) -> Self {
        self.volume = Some(volume.to_string());
        self
    }

    /// What a person has to do.
    pub(crate) fn by_hand(mut self, mend: impl Into<String>) -> Self {
        self.mend = mend.into();
        self
    }

    /// What `--fix` does.
    pub(crate) fn by(mut self, fix: Fix) -> Self {
        self.mend = fix.to_string();
        self.fix = Some(fix);
        self
    }

    /// As bad as that.
    pub(crate) fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

/// A time for people.
pub(crate) fn in_words(time: std::time::Duration) -> String {
    match time.as_secs() {
        0..120 => "less than two minutes".to_owned(),
        s if s < 7200 => format!("{} minutes", s / 60),
        s if s < 172_800 => format!("{} hours", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}
