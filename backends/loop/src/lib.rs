//! The `loop` backend.
mod btrfs;
mod copying;
mod devices;
mod health;
mod medium;
mod mounted;
mod params;
pub use copying::FreezeLimits;
