//! The protocols as a peer sees them: they are compared with tables of the
//! specifications' numbers (`tests/tables/`), filled by reflection, encoded,
//! decoded and printed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

include!(concat!(env!("OUT_DIR"), "/every_message.rs"));

mod agreement;
mod compatibility;
mod fill;
mod redaction;
mod services;
mod tables;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// What the crate was generated from.
fn descriptors() -> DescriptorPool {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(larder_proto::FILE_DESCRIPTOR_SET).unwrap());
    POOL.clone()
}

/// The full names of all messages of this crate, nested ones included.
fn message_names() -> std::collections::BTreeSet<String> {
    descriptors()
        .all_messages()
        .filter(|message| !message.is_map_entry() && message.package_name() != "google.protobuf")
        .map(|message| message.full_name().to_owned())
        .collect()
}
