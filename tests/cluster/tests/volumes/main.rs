//! Larder's own drivers, and one that attaches, in a real cluster: without the stock sidecars.
//!
//! One process of `larder serve` on each node, as a ServiceAccount that has what docs/kubernetes.md
//! says it needs, and nothing else.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test starts programs and waits, and a broken helper fails it"
)]

mod attach;
mod driver;
mod faults;
mod grow;
mod life;
mod room;
mod sidecars;
mod support;
