//! Larder host.
