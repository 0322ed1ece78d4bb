//! The `dir` backend.
