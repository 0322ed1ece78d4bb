//! The node engine over a small image backend, on the fake kernel and on the real one.
//!
//! The real kernel needs root, loop devices and the tools of ext4, xfs and btrfs; a test that misses
//! one fails and says so.

#[cfg(test)]
mod backend;
#[cfg(test)]
mod busy;
#[cfg(test)]
mod concurrency;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod data;
#[cfg(test)]
mod growth;
#[cfg(test)]
mod inline;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod terms;
#[cfg(test)]
mod wiped;
#[cfg(test)]
mod world;
