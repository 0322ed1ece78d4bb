//! The node engine.

pub mod request;
