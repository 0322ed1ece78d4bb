//! The engines of Larder: what happens between a typed request and a backend.
//!
//! | module | what it does |
//! |---|---|
//! | [`claims`] | one claim per volume and snapshot; equal repeats join, others are told who works |
//! | [`control`] | the control engine: volumes and snapshots come, grow, change and go |
//! | [`node`] | the node engine: volumes are connected, formatted, mounted and taken back |
//!
//! Neither engine knows gRPC or Kubernetes, and neither touches the operating system but through
//! `larder-host`. `docs/design/flows.md` tells each flow step by step, with what a crash leaves.

pub mod claims;
pub mod control;
pub mod node;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use claims::{Claims, Fingerprint, Key, Operation, Running};
pub use control::ControlEngine;
