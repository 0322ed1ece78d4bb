//! From the wire to what the engines take.
//!
//! Every RPC has one [`Check`]: a list of its fields, each with the rule of [`field`] that it obeys.
//! What comes out of one needs no more questions about presence, length or form; whether a volume
//! exists or a capability can be had is for the engines.

mod control;
pub(crate) mod field;
mod node;

pub(crate) use control::{Get, Remove};

use larder_model::Result;

/// A request that can be checked and turned into what an engine takes.
pub(crate) trait Check {
    /// What an engine takes.
    type Typed;

    /// The id or name that the request is about, for logs. Not checked yet.
    fn subject(&self) -> Option<&str> {
        None
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid`; `OutOfRange` for a capacity that no size satisfies; `Aborted` for a paging token
    /// that cannot be ours.
    fn check(self) -> Result<Self::Typed>;
}
