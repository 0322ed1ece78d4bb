//! Writes the tables of what exists: methods for layers and metrics, messages
//! for the tests.

use std::fmt::Write;

use prost_reflect::{DescriptorPool, FileDescriptor, MessageDescriptor};

use crate::names;

/// `METHODS` of one file, in the order of the file.
pub(crate) fn generate(file: &FileDescriptor) -> String {
    let mut out =
        String::from("/// Every RPC of this package.\npub const METHODS: &[crate::Method] = &[\n");
    for service in file.services() {
        for method in service.methods() {
            let _ = writeln!(
                out,
                "crate::Method {{ path: \"/{service}/{name}\", service: {service:?}, \
                 name: {name:?}, \
                 request: {request:?}, response: {response:?}, server_streaming: {streaming} }},",
                service = service.full_name(),
                name = method.name(),
                request = method.input().name(),
                response = method.output().name(),
                streaming = method.is_server_streaming(),
            );
        }
    }
    out.push_str("];\n");
    out
}

/// A macro that calls another one with `(full name, type)` of every message of
/// `files`, nested ones included: a new message cannot be forgotten by a test.
pub(crate) fn every_message(pool: &DescriptorPool, files: &[&str]) -> String {
    let mut out = String::from("macro_rules! every_message { ($then:ident) => {\n");
    for file in pool.files().filter(|file| files.contains(&file.name())) {
        let package = file.package_name();
        let module = package.split('.').next().unwrap_or_default();
        for message in file.messages() {
            list(&mut out, module, package, &message);
        }
    }
    out.push_str("} }\n");
    out
}

fn list(out: &mut String, module: &str, package: &str, message: &MessageDescriptor) {
    if message.is_map_entry() {
        return;
    }
    let name = message.full_name();
    let path = names::path(package, name);
    let _ = writeln!(out, "$then!({name:?}, ::larder_proto::{module}::{path});");
    for nested in message.child_messages() {
        list(out, module, package, &nested);
    }
}
