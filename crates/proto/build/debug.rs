//! Writes `Debug` for every message, oneof and enum of a file.
//!
//! Requests are logged when something goes wrong, and many of them carry
//! credentials. So nothing is left to the care of whoever writes a log line:
//! the only `Debug` there is hides
//! - each field with the `csi_secret` option,
//! - each field of [`ALSO_SECRET`],
//! - the values of well-known keys in any other string map (`redact::Map`).

use std::fmt::Write;

use prost_reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, Value,
};

use crate::names;

/// What the specification marks fields with that are never logged.
const SECRET_OPTION: &str = "csi.v1.csi_secret";

/// Fields that hold credentials without the option that says so.
const ALSO_SECRET: [&str; 3] = [
    // "May hold sensitive text", says the specification: CIFS takes a password here.
    "csi.v1.VolumeCapability.MountVolume.mount_flags",
    "snapshotmetadata.GetMetadataAllocatedRequest.security_token",
    "snapshotmetadata.GetMetadataDeltaRequest.security_token",
];

/// The source of all `Debug` implementations of one file.
pub(crate) fn generate(file: &FileDescriptor) -> Result<String, String> {
    let mut out = String::new();
    for message in file.messages() {
        message_and_nested(&mut out, file, &message)?;
    }
    for kind in file.enums() {
        enumeration(&mut out, file.package_name(), &kind);
    }
    Ok(out)
}

fn message_and_nested(
    out: &mut String,
    file: &FileDescriptor,
    message: &MessageDescriptor,
) -> Result<(), String> {
    if message.is_map_entry() {
        return Ok(());
    }
    let package = file.package_name();
    let mut body = format!("f.debug_struct({:?})", names::camel(message.name()));
    for field in message.fields().filter(|field| field.containing_oneof().is_none()) {
        let name = names::field(field.name());
        let value = shown(package, &field, &format!("&self.{name}"))?;
        let _ = write!(body, ".field({:?}, {value})", field.name());
    }
    for oneof in message.oneofs() {
        let name = names::field(oneof.name());
        let _ = write!(body, ".field({:?}, &self.{name})", oneof.name());
        let path = names::oneof_path(package, message, oneof.name());
        let mut arms = String::new();
        for field in oneof.fields() {
            let case = names::camel(field.name());
            let value = shown(package, &field, "value")?;
            let _ = write!(
                arms,
                "Self::{case}(value) => f.debug_tuple({case:?}).field({value}).finish(),"
            );
        }
        implementation(out, &path, &format!("match self {{ {arms} }}"));
    }
    body.push_str(".finish()");
    implementation(out, &names::path(package, message.full_name()), &body);

    for nested in message.child_messages() {
        message_and_nested(out, file, &nested)?;
    }
    for kind in message.child_enums() {
        enumeration(out, package, &kind);
    }
    Ok(())
}

/// Enums are shown by the names of the specification.
fn enumeration(out: &mut String, package: &str, kind: &EnumDescriptor) {
    implementation(out, &names::path(package, kind.full_name()), "f.write_str(self.as_str_name())");
}

/// The expression that shows the field found at `place`.
fn shown(package: &str, field: &FieldDescriptor, place: &str) -> Result<String, String> {
    let secret = is_secret(field)?;
    match field.kind() {
        Kind::String if secret => Ok(format!("&crate::redact::Secret({place})")),
        Kind::Message(_) if secret && is_string_map(field) => {
            Ok(format!("&crate::redact::Secret({place})"))
        }
        _ if secret => Err(format!("{}: no way to hide a secret of this type", field.full_name())),
        Kind::Message(_) if is_string_map(field) => Ok(format!("&crate::redact::Map({place})")),
        Kind::Enum(kind) if !field.is_list() => {
            let path = names::path(package, kind.full_name());
            Ok(format!("&crate::redact::Enum::<{path}>::new({place})"))
        }
        _ => Ok(place.to_owned()),
    }
}

fn is_secret(field: &FieldDescriptor) -> Result<bool, String> {
    let option = field
        .parent_pool()
        .get_extension_by_name(SECRET_OPTION)
        .ok_or_else(|| format!("{SECRET_OPTION} is not defined: no secret would be hidden"))?;
    Ok(ALSO_SECRET.contains(&field.full_name())
        || *field.options().get_extension(&option) == Value::Bool(true))
}

fn is_string_map(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(entry) if field.is_map()
        && entry.map_entry_key_field().kind() == Kind::String
        && entry.map_entry_value_field().kind() == Kind::String)
}

fn implementation(out: &mut String, path: &str, body: &str) {
    let _ = writeln!(
        out,
        "impl ::core::fmt::Debug for {path} {{ \
         fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{ {body} }} }}"
    );
}
