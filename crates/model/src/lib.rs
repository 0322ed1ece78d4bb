//! The words of Larder: ids, sizes, capabilities, faults, and the traits that a backend implements.
//!
//! Everything here is plain data and pure functions: no gRPC, no Kubernetes, no operating system.
//! Text from outside (names, handles, sizes, tokens) becomes a type of this crate at the boundary,
//! so that nothing behind the boundary has to ask again whether it is well-formed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`fault`] | the one domain error; its [`fault::Kind`] decides the gRPC code |
//! | [`bytes`] | sizes and capacity ranges |
//! | [`id`] | driver, node and pool names, requested names, volume and snapshot ids |
//! | [`capability`] | access modes and types, file systems |
//! | [`topology`] | segments and requirements |
//! | [`volume`] | what is asked for and what exists: volumes, snapshots, health, listing |
//! | [`encryption`] | encryption at rest: parameters, keys of secrets |
//! | [`limits`] | how fast a volume may be read and written |
//! | [`mkfs`] | arguments for mkfs from outside |
//! | [`period`] | lengths of time |
//! | [`params`] | StorageClass parameters, unknown ones refused by name |
//! | [`secrets`] | secrets that cannot be printed, and are overwritten |
//! | [`cx`] | the context of one running operation: step, progress, crash points, undo |
//! | [`trash`] | what was deleted and is kept for a while |
//! | [`backend`] | the traits |

pub mod backend;
pub mod bytes;
pub mod capability;
pub mod cx;
pub mod encryption;
pub mod fault;
pub mod id;
pub mod limits;
pub mod mkfs;
pub mod params;
pub mod period;
pub mod secrets;
pub mod topology;
pub mod trash;
pub mod volume;

pub use backend::{Backend, Connect, Provision};
pub use bytes::{Bytes, CapacityRange};
pub use capability::{AccessMode, AccessType, FsType, MountAccess, Uses, VolumeCapability};
pub use cx::Cx;
pub use encryption::Encryption;
pub use fault::{Fault, Kind, Result, Shortage};
pub use id::{DriverName, Handle, Native, NodeName, PoolName, RequestedName, SnapshotId, VolumeId};
pub use limits::{Limits, LimitsChange};
pub use params::Params;
pub use period::Period;
pub use secrets::{Passphrase, Secrets};
