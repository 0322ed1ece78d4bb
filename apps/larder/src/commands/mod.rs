//! The commands that work through a driver's CSI services.

pub(crate) mod adopt;
mod blocks;
pub(crate) mod config;
pub(crate) mod driver;
mod group;
mod last_copy;
pub(crate) mod limits;
mod mount_point;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod passphrase;
pub(crate) mod pool;
pub(crate) mod progress;
pub(crate) mod snapshot;
pub(crate) mod trash;
pub(crate) mod uninstall;
pub(crate) mod volume;

/// A driver's answer, or its status as a [`larder_model::Fault`] about `what`.
pub(crate) fn answer<T>(
    result: Result<tonic::Response<T>, tonic::Status>,
) -> larder_model::Result<T> {
    result.map(tonic::Response::into_inner).map_err(|status| larder_csi::client::fault(&status))
}
