//! The services as callers see them: in process and over a real unix socket.
//!
//! The tables in `tests/tables` are the specification's: `required.rs`, `limits.rs` and `errors.rs`
//! each go through one of them and fail for a row that they do not know. What deviates from them is
//! listed in docs/semantics.md, with the test that proves it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

mod admin;
mod capabilities;
mod codes;
mod end_to_end;
mod errors;
mod fuzz;
mod life;
mod limits;

mod message;
mod metadata;
mod paging;
mod required;
mod semantics;
mod support;
mod tables;
mod transport;
mod valid;
