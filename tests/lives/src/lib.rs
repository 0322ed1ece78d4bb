//! The lives of many volumes at once against a Larder that may die at any moment, and a ledger of
//! what it said is done.
//!
//! ```text
//! life      create, write, expand, snapshot, restore, clone, group, trash, … delete: every call is
//!           repeated until it is answered, as orchestrators do
//! ledger    what was acknowledged, by event; what must be there, with which bytes, follows from it
//! marks     the same events on a disk whose writes are recorded, so that every moment of the record
//!           tells what had been acknowledged by then
//! check     after a power cut: everything in the ledger is there, works, and can be removed
//! ```
//! Only the socket and the mounts are used, so that the same lives run on this machine and in a
//! virtual one (`larder-lives`, the binary).

#![allow(clippy::missing_errors_doc, reason = "errors end the test; they say what failed")]

mod caller;
mod check;
mod data;
mod ledger;
mod life;
mod marks;
mod place;

pub use caller::{Caller, Use};
pub use check::check;
pub use data::Random;
pub use ledger::{Event, Ledger, State};
pub use life::{Book, Volume, World, live};
pub use marks::{BLOCK, Marks, events};
