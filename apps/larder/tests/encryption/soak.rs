//! All of it about encrypted volumes: what the short target has, with every variant, and what takes long.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait")]
#![allow(clippy::print_stderr, reason = "a failed test shows the end of the server's log")]

mod blocks;
mod data;
mod hand;
mod keys;
mod kills;
mod lab;
mod life;
mod owners;
mod refusals;
mod restarts;
mod storage;
#[path = "../support/mod.rs"]
mod support;
