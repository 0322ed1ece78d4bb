//! Larder model.
