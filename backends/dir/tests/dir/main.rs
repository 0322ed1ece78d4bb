//! The `dir` backend on real file systems: ext4, xfs with reflink, btrfs with and without qgroups.
//! Project quota takes a kernel with quota: see `project_quota.rs`, which runs in a virtual machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod copies;
mod crash;
mod lives;
mod sizes;
mod trash;
