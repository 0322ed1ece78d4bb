//! Pools on a real file system, with a medium that shows every leak.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests; the exemption in clippy.toml sees only functions marked #[test]"
)]
#![allow(unreachable_pub, reason = "modules of a test program")]

mod away;
mod blocks;
mod capacity;
mod crash;
mod damage;
mod dead;
mod filler;
mod formats;
mod full;
mod groups;
mod listing;
mod lives;
mod power;
mod processes;
mod silent;
mod snapshots;
mod support;
mod trash;
mod trash_crash;
mod volumes;
mod yielding;
