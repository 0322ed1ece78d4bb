//! Kubernetes controllers for CSI drivers, in one process.
//!
//! What runs as a container of its own beside every driver elsewhere (external-provisioner and its
//! kin) is a loop here. All loops of a process, for all its drivers, share one client with one rate
//! limit ([`client`]), one cache with one watch per kind ([`cache`]), and one recorder of events
//! ([`events`]).
//!
//! ```text
//!  API server ──watch──▶ cache ──changes──▶ queue ──key──▶ sync(key): observe ─▶ decide ─▶ one step
//!      ▲                   ▲                  ▲                                            │
//!      │                   └── answers of our own writes ◀──┐     again, later ◀── error ──┤
//!      └───────────────────────── patch, create, delete ────┴──────────────────────────────┤
//!                                            driver (in this process, or a socket) ◀───────┘
//! ```
//!
//! - Decisions are pure functions of what was observed, in files of their own, with tables as tests.
//! - A loop remembers nothing that a restart would need: names are deterministic, so the same call
//!   finds what an earlier one made.
//! - What other tools see (names, annotations, finalizers, reasons, error classes) is what the Go
//!   sidecars write.

pub mod api;
pub mod attach;
pub mod cache;
mod claims;
pub mod client;
mod conditions;
pub mod driver;
pub mod events;
mod finalizer;
pub mod lease;
pub mod modes;
pub mod modify;
mod outcome;
pub mod provision;
pub mod queue;
pub mod resize;
mod run;
pub mod secrets;
pub mod why;

pub use run::{Capacity, Controllers, Leases, Options, Which};
