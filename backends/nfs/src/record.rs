//! What is kept beside the volumes, in the export: with it alone, every volume is found, used and deleted.
//!
//! **Versions.** `format` is 1. A reader refuses a higher number. Fields may be added without a new one:
//! those that a release does not know, it keeps and writes back.

use crate::{config::OnDelete, place::SubDir};
use larder_model::{Bytes, Fault, Native, Result, volume::Attributes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The format version that this release writes, and the highest that it reads.
pub(crate) const FORMAT: u32 = 1;

/// What proves that an export is a pool of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) format: u32,
    pub(crate) backend: String,
    pub(crate) id: uuid::Uuid,
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) format: u32,
    /// The name as the caller wrote it.
    pub(crate) name: String,
    /// Asked for; nothing holds the volume to it.
    pub(crate) size: Bytes,
    pub(crate) created: jiff::Timestamp,
    pub(crate) state: State,
    /// Its directory in the export.
    pub(crate) sub_dir: SubDir,
    /// The directory was there before the volume: it is never removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) found: bool,
    pub(crate) on_delete: OnDelete,
    /// What it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<Source>,
    /// The copy is complete, and moved to its place next, or there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) copied: bool,
    /// Where the directory of a volume that goes is archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) archive: Option<SubDir>,
    /// Which call makes it, as long as it is being made: no other one ends it or takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attempt: Option<uuid::Uuid>,
    /// Parameters of its creation.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub(crate) parameters: Attributes,
    /// Fields of later releases, kept.
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// What a volume was made from, in the same export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Source {
    /// A snapshot that was restored.
    Snapshot(Native),
    /// A volume that was cloned.
    Volume(Native),
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Being made, and never shown to anybody.
    Creating,
    /// It exists.
    Ready,
    /// Being deleted, and gone for everybody.
    Deleting,
}

/// The path of a volume's record in the export.
pub(crate) fn path(native: &Native) -> String {
    format!("{}/{native}.json", folder())
}

/// The folder of records.
pub(crate) fn folder() -> String {
    format!("{}/volumes", crate::place::OURS)
}

/// Puts a record into words.
pub(crate) fn text<T: Serialize>(record: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(record)
        .map_err(|e| Fault::internal("put a record into words").because(e))?;
    Ok(text + "\n")
}

/// Understands what is at `path` of an export.
///
/// # Errors
/// `Corrupt` when it is damaged, or of a newer release.
pub(crate) fn understand<T: DeserializeOwned>(path: &str, text: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let broken = |e: serde_json::Error| {
        Fault::corrupt(format!("understand the record {path}"))
            .because(e)
            .hint("it was damaged; restore it from a backup of the server")
    };
    let Version { format } = serde_json::from_str(text).map_err(broken)?;
    if format > FORMAT {
        return Err(Fault::corrupt(format!(
            "understand the record {path}: it has format {format}"
        ))
        .hint("a newer release wrote it: run that one"));
    }
    serde_json::from_str(text).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    #[test]
    fn fields_of_a_later_release_are_kept_and_a_later_format_is_refused() {
        let written = r#"{"format":1,"name":"a","size":7,"created":"2026-01-02T03:04:05Z",
            "state":"ready","subDir":"a/b","onDelete":"retain","later":{"x":1}}"#;
        let record: Record = understand("x", written).unwrap();
        assert_eq!((record.sub_dir.as_str(), record.found), ("a/b", false));
        let again: Value = serde_json::from_str(&text(&record).unwrap()).unwrap();
        assert_eq!(again["later"]["x"], 1);
        let newer = written.replace("\"format\":1", "\"format\":2");
        let fault = understand::<Record>("x", &newer).unwrap_err();
        assert_eq!(fault.kind(), Kind::Corrupt);
        let outside = written.replace("a/b", "../b");
        assert_eq!(understand::<Record>("x", &outside).unwrap_err().kind(), Kind::Corrupt);
    }
}
