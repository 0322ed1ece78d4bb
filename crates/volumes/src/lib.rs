//! Larder volumes.

pub mod node;
