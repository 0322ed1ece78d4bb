//! Encrypted volumes on a kernel with dm-crypt, real headers, real keys: what must never break, once. All else is in
//! `soak.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait")]
#![allow(clippy::print_stderr, reason = "a failed test shows the end of the server's log")]

mod data;
mod keys;
mod lab;
mod life;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
