//! Larder pool.
