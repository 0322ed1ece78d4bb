//! What must hold of anything that comes from outside and is parsed.
//!
//! | module | what is parsed |
//! |---|---|
//! | [`requests`] | CSI requests: protobuf, then the checks of every field |
//! | [`handles`] | ids, names, sizes, periods, endpoints, names of files in a pool |
//! | [`config`] | the configuration file |
//! | [`mountinfo`] | the kernel's mount table |
//! | [`records`] | everything that is written to disk |
//!
//! Each has one function over any bytes, which panics when one of its properties does not hold.
//! `cargo xtask fuzz` looks for such bytes with libFuzzer; what it kept in `corpus/` and what it once
//! found, in `regressions/`, the tests of this crate try again everywhere.

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a property that does not hold is a panic"
)]

pub mod config;
pub mod handles;
pub mod mountinfo;
pub mod records;
pub mod requests;

use larder_model::{Fault, Kind};

/// A name, and what must hold of any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] = [
    ("requests", requests::check),
    ("handles", handles::check),
    ("config", config::check),
    ("mountinfo", mountinfo::check),
    ("records", records::check),
];

/// What is refused is refused with a kind that its caller understands, in words that fit on one line
/// of a log and are not written by whoever sent it.
fn well_refused(fault: &Fault, kinds: &[Kind]) {
    assert!(kinds.contains(&fault.kind()), "{:?} for {fault}", fault.kind());
    let text = fault.to_string();
    assert!(!text.is_empty());
    assert!(!text.chars().any(char::is_control), "a control character in {text:?}");
}
