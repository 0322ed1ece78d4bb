//! What is written to disk.

use crate::{handles, well_refused};
use larder_model::{Kind, Result};
use serde_json::{Map, Value};

/// One sort of record.
struct Sort {
    /// Its name.
    name: &'static str,
    /// Reads it, and writes it again.
    again: fn(&[u8]) -> Result<Vec<u8>>,
    /// The field with its version; empty: it is part of another record, or its loss harms nobody.
    version: &'static str,
    /// Fields of later releases are kept.
    keeps: bool,
}

macro_rules! sort {
    ($name:literal, $again:expr, $version:literal, $keeps:literal) => {
        Sort { name: $name, again: $again, version: $version, keeps: $keeps }
    };
}

/// All sorts, by the first byte of the input.
const SORTS: &[Sort] = &[
    sort!("volume", |text| larder_pool::fuzzing::record("volume", text), "format", true),
    sort!("snapshot", |text| larder_pool::fuzzing::record("snapshot", text), "format", true),
    sort!("group", |text| larder_pool::fuzzing::record("group", text), "format", true),
    sort!("identity", |text| larder_pool::fuzzing::record("identity", text), "format", true),
    sort!("trash", |text| larder_pool::fuzzing::record("trash", text), "format", true),
    sort!("node", larder_volumes::node::fuzz, "format", true),
    sort!("freeze", larder_host::fuzzing::freeze_record, "version", false),
    sort!("lock", larder_host::fuzzing::holder, "", false),
    sort!("mounted", larder::fuzzing::mounted, "format", true),
    sort!("dir volume", |text| larder_backend_dir::fuzzing::value(false, text), "", false),
    sort!("dir snapshot", |text| larder_backend_dir::fuzzing::value(true, text), "", false),
    sort!("loop volume", larder_backend_loop::fuzzing::value, "", false),
];

/// The highest version that this release reads, of all that have one.
const VERSION: u64 = 1;

/// A record that is read is written as something that is read as the same; one of a newer version is
/// refused and says so, whatever else is in it; what a later release added is kept.
pub fn check(data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let sort = &SORTS[usize::from(*first) % SORTS.len()];
    let mut object = match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    };
    match (sort.again)(text) {
        Ok(written) => {
            let again = (sort.again)(&written);
            assert_eq!(again.ok().as_ref(), Some(&written), "{}", sort.name);
            if let Ok(Value::Object(written)) = serde_json::from_slice(&written) {
                names(sort, &written);
                if !sort.version.is_empty() {
                    let version = written.get(sort.version).and_then(Value::as_u64);
                    assert!(version.is_some_and(|v| v <= VERSION), "{}: {version:?}", sort.name);
                }
            }
            if let Some(object) = &object {
                later(sort, object);
            }
        }
        Err(fault) => well_refused(&fault, &[Kind::Corrupt]),
    }
    if let Some(object) = &mut object
        && !sort.version.is_empty()
    {
        newer(sort, object);
    }
}

/// Names in a record are as harmless as those in requests.
fn names(sort: &Sort, record: &Map<String, Value>) {
    let keys: &[&str] = match sort.name {
        "snapshot" => &["source"],
        "trash" => &["native", "source"],
        _ => &[],
    };
    for key in keys {
        if let Some(name) = record.get(*key).and_then(Value::as_str) {
            handles::check(name.as_bytes());
            assert!(name.parse::<larder_model::Native>().is_ok(), "{key}: {name:?}");
        }
    }
}

/// What this release does not know is still there after it has written the record.
fn later(sort: &Sort, object: &Map<String, Value>) {
    let key = "addedLater";
    if !sort.keeps || object.contains_key(key) {
        return;
    }
    let added = serde_json::json!({ "a": [1, null, "x"], "b": { "c": true } });
    let mut object = object.clone();
    object.insert(key.to_owned(), added.clone());
    let text = serde_json::to_vec(&object).expect("JSON");
    let written = (sort.again)(&text).expect("it was read without the addition");
    let written: Map<String, Value> = serde_json::from_slice(&written).expect("JSON");
    assert_eq!(written.get(key), Some(&added), "{}", sort.name);
}

/// A newer version is refused, also when it lacks what this one needs.
fn newer(sort: &Sort, object: &mut Map<String, Value>) {
    object.insert(sort.version.to_owned(), Value::from(VERSION + 1));
    let text = serde_json::to_vec(&object).expect("JSON");
    let fault = (sort.again)(&text).expect_err("a newer version was read");
    well_refused(&fault, &[Kind::Corrupt]);
    assert!(
        fault.to_string().contains("newer") || fault.to_string().contains("release"),
        "{fault}"
    );
}
