//! The names that prost-build gives to things, repeated here because it does
//! not export them. A difference cannot go unnoticed: what is generated with
//! them would not compile.

use heck::{ToSnakeCase, ToUpperCamelCase};
use prost_reflect::MessageDescriptor;

/// The Rust name of a field: `type` becomes `r#type`.
pub(crate) fn field(name: &str) -> String {
    let snake = name.to_snake_case();
    match snake.as_str() {
        "type" => "r#type".to_owned(),
        _ => snake,
    }
}

/// The Rust name of a message, enum, oneof or oneof case: `RPC` becomes `Rpc`.
pub(crate) fn camel(name: &str) -> String {
    name.to_upper_camel_case()
}

/// The path of a type below the module of its package:
/// `NodeServiceCapability.RPC` becomes `node_service_capability::Rpc`.
pub(crate) fn path(package: &str, full_name: &str) -> String {
    let local = full_name.strip_prefix(package).unwrap_or(full_name).trim_start_matches('.');
    let mut parts: Vec<&str> = local.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut path: String = parts.iter().map(|part| part.to_snake_case() + "::").collect();
    path.push_str(&camel(last));
    path
}

/// The path of a oneof of a message: `VolumeContentSource.type` becomes
/// `volume_content_source::Type`.
pub(crate) fn oneof_path(package: &str, message: &MessageDescriptor, oneof: &str) -> String {
    path(package, &format!("{}.{oneof}", message.full_name()))
}
