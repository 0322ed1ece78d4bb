//! The .proto files agree with the tables, in both directions: each side is
//! written as a set of lines, and the sets are equal.

use std::collections::BTreeSet;

use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ServiceDescriptor,
    Syntax,
};

use crate::descriptors;
use crate::tables::{self, Row, rows};

type Lines = BTreeSet<String>;

fn assert_agree(table: &Lines, descriptors: &Lines) {
    let missing: Vec<&String> = table.difference(descriptors).collect();
    let extra: Vec<&String> = descriptors.difference(table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table, not in the .proto file: {missing:#?}\n\
         in the .proto file, not in the table: {extra:#?}"
    );
}

#[test]
fn csi_agrees_with_its_tables() {
    assert_agree(&csi_tables(), &described("csi.v1"));
}

#[test]
fn plugin_registration_agrees_with_its_table() {
    let table = small_table("pluginregistration", &rows(tables::REGISTRATION));
    assert_agree(&table, &described("pluginregistration"));
}

#[test]
fn snapshot_metadata_agrees_with_its_table() {
    let table = small_table("snapshotmetadata", &rows(tables::SNAPSHOT_METADATA));
    assert_agree(&table, &described("snapshotmetadata"));
}

#[test]
fn there_is_one_proto3_file_for_each_package_and_nothing_else() {
    let pool = descriptors();
    let mut packages = Vec::new();
    for file in pool.files().filter(|file| file.package_name() != "google.protobuf") {
        assert_eq!(file.syntax(), Syntax::Proto3, "{}", file.name());
        packages.push(file.package_name().to_owned());
    }
    packages.sort();
    assert_eq!(packages, ["csi.v1", "larder.v1", "pluginregistration", "snapshotmetadata"]);
}

#[test]
fn the_registration_type_of_a_csi_driver_is_one_that_kubelet_allows() {
    let allowed = rows(tables::REGISTRATION);
    assert!(allowed.iter().any(|row| {
        &row["kind"] == "const"
            && &row["owner"] == "PluginInfo.type"
            && &row["name"] == larder_proto::pluginregistration::CSI_PLUGIN
    }));
}

// The lines, the same for both sides.

fn message_line(full_name: &str, options: &Lines) -> String {
    format!("message {full_name} {options:?}")
}

fn field_line(
    full_name: &str,
    number: &str,
    (kind, cardinality): (&str, &str),
    oneof: &str,
    options: &Lines,
) -> String {
    format!("field {full_name} = {number}: {cardinality} {kind}, oneof {oneof} {options:?}")
}

fn value_line(enum_name: &str, value: &str, number: &str, options: &Lines) -> String {
    format!("enum {enum_name}: {value} = {number} {options:?}")
}

fn rpc_line(path: &str, signature: &str, options: &Lines) -> String {
    format!("rpc {path}: {signature} {options:?}")
}

fn service_line(full_name: &str, options: &Lines) -> String {
    format!("service {full_name} {options:?}")
}

fn extension_line(full_name: &str, number: &str, kind: &str, extended: &str) -> String {
    format!("extension {full_name} = {number}: singular {kind} of {extended}")
}

// The side of the tables.

/// A type of the tables with its package.
fn qualified(package: &str, kind: &str) -> String {
    match kind {
        "string" | "bool" | "int32" | "int64" => kind.to_owned(),
        _ if kind.starts_with("map<") || kind.starts_with("google.protobuf.") => kind.to_owned(),
        _ => format!("{package}.{kind}"),
    }
}

/// The options that a row says yes to, as `described` writes them.
fn options_of(row: &Row, columns: &[(&str, &str)]) -> Lines {
    columns
        .iter()
        .filter(|(column, _)| row.yes(column))
        .map(|(_, option)| format!("{option} = Bool(true)"))
        .collect()
}

fn csi_tables() -> Lines {
    let mut lines = Lines::new();
    for row in rows(tables::MESSAGES) {
        let message = format!("csi.v1.{}", &row["message"]);
        let alpha = options_of(&row, &[("alpha_message", "csi.v1.alpha_message")]);
        lines.insert(message_line(&message, &alpha));
        if &row["field"] == "(none)" {
            continue;
        }
        lines.insert(field_line(
            &format!("{message}.{}", &row["field"]),
            &row["number"],
            (&qualified("csi.v1", &row["type"]), &row["cardinality"]),
            &row["oneof"],
            &options_of(
                &row,
                &[
                    ("csi_secret", "csi.v1.csi_secret"),
                    ("alpha_field", "csi.v1.alpha_field"),
                    ("deprecated", "google.protobuf.FieldOptions.deprecated"),
                ],
            ),
        ));
    }
    for row in rows(tables::ENUMS) {
        let name = format!("csi.v1.{}", &row["enum"]);
        let alpha = options_of(&row, &[("alpha", "csi.v1.alpha_enum_value")]);
        lines.insert(format!("enum {name} {:?}", Lines::new()));
        lines.insert(value_line(&name, &row["value"], &row["number"], &alpha));
    }
    for row in rows(tables::RPCS) {
        let service = format!("csi.v1.{}", &row["service"]);
        let alpha = options_of(&row, &[("alpha_service", "csi.v1.alpha_service")]);
        lines.insert(service_line(&service, &alpha));
        let stream = match &row["streaming"] {
            "unary" => "",
            "server-stream" => "stream ",
            other => panic!("unknown streaming {other:?}"),
        };
        lines.insert(rpc_line(
            &format!("/{service}/{}", &row["rpc"]),
            &format!("csi.v1.{} -> {stream}csi.v1.{}", &row["request"], &row["response"]),
            &options_of(&row, &[("alpha_method", "csi.v1.alpha_method")]),
        ));
    }
    for row in rows(tables::OPTIONS) {
        let name = format!("csi.v1.{}", &row["extension"]);
        lines.insert(extension_line(&name, &row["number"], &row["type"], &row["extendee"]));
    }
    lines
}

fn small_table(package: &str, rows: &[Row]) -> Lines {
    let mut lines = Lines::new();
    let none = Lines::new();
    for row in rows {
        let (owner, name, number) = (&row["owner"], &row["name"], &row["number"]);
        let full_owner = format!("{package}.{owner}");
        match &row["kind"] {
            "message" => {
                lines.insert(message_line(&full_owner, &none));
            }
            "field" => {
                lines.insert(message_line(&full_owner, &none));
                let kind = qualified(package, &row["type"]);
                lines.insert(field_line(
                    &format!("{full_owner}.{name}"),
                    number,
                    (&kind, &row["cardinality"]),
                    "-",
                    &none,
                ));
            }
            "enum" => {
                lines.insert(format!("enum {full_owner} {none:?}"));
                lines.insert(value_line(&full_owner, name, number, &none));
            }
            "rpc" => {
                lines.insert(service_line(&full_owner, &none));
                let (request, response) = row["type"].split_once(" -> ").expect("a signature");
                let (stream, response) = match response.strip_prefix("stream ") {
                    Some(response) => ("stream ", response),
                    None => ("", response),
                };
                lines.insert(rpc_line(
                    &format!("/{full_owner}/{name}"),
                    &format!("{package}.{request} -> {stream}{package}.{response}"),
                    &none,
                ));
            }
            // Values that a string field may have; not part of the wire.
            "const" => {}
            other => panic!("unknown kind {other:?}"),
        }
    }
    lines
}

// The side of the descriptors.

fn described(package: &str) -> Lines {
    let pool = descriptors();
    let mut lines = Lines::new();
    for file in pool.files().filter(|file| file.package_name() == package) {
        lines.extend(set_options(&file.options()).into_iter().map(|line| format!("file {line}")));
    }
    for message in pool.all_messages().filter(|message| message.package_name() == package) {
        if !message.is_map_entry() {
            describe_message(&mut lines, &message);
        }
    }
    for kind in pool.all_enums().filter(|kind| kind.package_name() == package) {
        describe_enum(&mut lines, &kind);
    }
    for service in pool.services().filter(|service| service.package_name() == package) {
        describe_service(&mut lines, &service);
    }
    for extension in pool.all_extensions() {
        if extension.package_name() == package {
            lines.insert(extension_line(
                extension.full_name(),
                &extension.number().to_string(),
                &kind_name(&extension.kind()),
                extension.containing_message().full_name(),
            ));
            assert!(!extension.is_list(), "{} is repeated", extension.full_name());
        }
    }
    lines
}

fn describe_message(lines: &mut Lines, message: &MessageDescriptor) {
    let name = message.full_name();
    lines.insert(message_line(name, &set_options(&message.options())));
    for range in message.reserved_ranges().chain(message.extension_ranges()) {
        lines.insert(format!("message {name} sets {range:?} aside"));
    }
    for reserved in message.reserved_names() {
        lines.insert(format!("message {name} sets {reserved} aside"));
    }
    for field in message.fields() {
        let oneof = field.containing_oneof();
        lines.insert(field_line(
            field.full_name(),
            &field.number().to_string(),
            (&type_name(&field), cardinality(&field)),
            oneof.as_ref().map_or("-", |oneof| oneof.name()),
            &set_options(&field.options()),
        ));
    }
    for oneof in message.oneofs() {
        assert_eq!(set_options(&oneof.options()), Lines::new(), "options of {}", oneof.full_name());
    }
}

fn describe_enum(lines: &mut Lines, kind: &EnumDescriptor) {
    let name = kind.full_name();
    lines.insert(format!("enum {name} {:?}", set_options(&kind.options())));
    for range in kind.reserved_ranges() {
        lines.insert(format!("enum {name} sets {range:?} aside"));
    }
    for reserved in kind.reserved_names() {
        lines.insert(format!("enum {name} sets {reserved} aside"));
    }
    for value in kind.values() {
        let number = value.number().to_string();
        lines.insert(value_line(name, value.name(), &number, &set_options(&value.options())));
    }
}

fn describe_service(lines: &mut Lines, service: &ServiceDescriptor) {
    let name = service.full_name();
    lines.insert(service_line(name, &set_options(&service.options())));
    for method in service.methods() {
        let from = if method.is_client_streaming() { "stream " } else { "" };
        let to = if method.is_server_streaming() { "stream " } else { "" };
        lines.insert(rpc_line(
            &format!("/{name}/{}", method.name()),
            &format!("{from}{} -> {to}{}", method.input().full_name(), method.output().full_name()),
            &set_options(&method.options()),
        ));
    }
}

/// Every option that is set, the standard ones, extensions, and any that the
/// descriptors themselves do not know.
fn set_options(options: &DynamicMessage) -> Lines {
    let standard =
        options.fields().map(|(field, value)| format!("{} = {value:?}", field.full_name()));
    let extended =
        options.extensions().map(|(option, value)| format!("{} = {value:?}", option.full_name()));
    let unknown = options.unknown_fields().map(|field| format!("unknown {field:?}"));
    standard.chain(extended).chain(unknown).collect()
}

fn type_name(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => format!(
            "map<{},{}>",
            kind_name(&entry.map_entry_key_field().kind()),
            kind_name(&entry.map_entry_value_field().kind())
        ),
        kind => kind_name(&kind),
    }
}

fn kind_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(kind) => kind.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn cardinality(field: &FieldDescriptor) -> &'static str {
    if field.is_map() {
        "map"
    } else if field.is_list() {
        "repeated"
    } else if field.is_required() {
        "required"
    } else if field.field_descriptor_proto().proto3_optional() {
        "optional"
    } else {
        "singular"
    }
}
