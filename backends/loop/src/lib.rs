//! The `loop` backend.
