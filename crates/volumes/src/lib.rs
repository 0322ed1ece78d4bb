//! Larder volumes.
