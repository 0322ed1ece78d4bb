//! Larder proto.
