//! The program as people and scripts use it: every command, with and without a process that serves the
//! driver, on real pools.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

#[path = "../support/mod.rs"]
mod support;

mod adopt;
mod config;
mod exits;
mod generated;
mod life;
mod limits;
mod mounts;
mod names;
mod output;
mod serve;
mod sockets;
mod trash;
