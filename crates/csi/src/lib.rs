//! Larder csi.
