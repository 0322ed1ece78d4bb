//! Callers of both revisions are understood, and of revisions to come as far
//! as the encoding allows.

use std::collections::BTreeSet;
use std::fmt::Debug;

use larder_proto::FILE_DESCRIPTOR_SET;
use larder_proto::csi::{ListVolumesResponse, NodeGetVolumeStatsResponse};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value};
use prost_types::{DescriptorProto, FileDescriptorSet};

use crate::tables::{self, Row, rows};
use crate::{descriptors, fill, message_names};

#[test]
fn nothing_that_a_1_12_peer_says_is_lost() {
    assert_speaks(&revision("1.12-only", "1.13+"));
}

#[test]
fn nothing_that_a_1_13_peer_says_is_lost() {
    assert_speaks(&revision("1.13+", "1.12-only"));
}

/// The descriptors as one revision of the specification has them.
fn revision(own: &str, other: &str) -> DescriptorPool {
    let kept = |row: &Row| match &row["revisions"] {
        "both" => true,
        revision if revision == own => true,
        revision if revision == other => false,
        unknown => panic!("unknown revision {unknown:?}"),
    };
    let mut messages = BTreeSet::new();
    let mut fields = BTreeSet::new();
    for row in rows(tables::MESSAGES).into_iter().filter(kept) {
        messages.insert(row["message"].to_owned());
        fields.insert(format!("{}.{}", &row["message"], &row["field"]));
    }
    let enums: BTreeSet<String> = rows(tables::ENUMS)
        .iter()
        .filter(|row| kept(row))
        .map(|row| row["enum"].to_owned())
        .collect();

    let mut set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let file = set.file.iter_mut().find(|file| file.package() == "csi.v1").unwrap();
    file.service.clear();
    file.message_type.retain(|message| messages.contains(message.name()));
    file.enum_type.retain(|kind| enums.contains(kind.name()));
    for message in &mut file.message_type {
        let name = message.name().to_owned();
        keep_fields(message, &name, &fields);
    }
    DescriptorPool::from_file_descriptor_set(set).unwrap()
}

fn keep_fields(message: &mut DescriptorProto, name: &str, fields: &BTreeSet<String>) {
    message.field.retain(|field| fields.contains(&format!("{name}.{}", field.name())));
    for nested in &mut message.nested_type {
        let is_map_entry = nested.options.as_ref().is_some_and(|options| options.map_entry());
        if !is_map_entry {
            let name = format!("{name}.{}", nested.name());
            keep_fields(nested, &name, fields);
        }
    }
}

/// All that `peer` can say comes back from our types as it was said.
fn assert_speaks(peer: &DescriptorPool) {
    let mut spoken = 0;
    macro_rules! check {
        ($name:literal, $message:ty) => {
            if let Some(descriptor) = peer.get_message_by_name($name) {
                for filled in fill::every_case(&descriptor) {
                    let ours =
                        <$message>::decode(filled.message.encode_to_vec().as_slice()).unwrap();
                    let back =
                        DynamicMessage::decode(descriptor.clone(), ours.encode_to_vec().as_slice());
                    assert_eq!(back.unwrap(), filled.message, "{}", $name);
                }
                spoken += 1;
            }
        };
    }
    every_message!(check);
    assert!(spoken > 90 && spoken < message_names().len(), "{spoken} messages are not a revision");
}

#[test]
fn a_volume_condition_of_1_12_is_read_from_its_bytes() {
    // usage { available: 1, total: 3, used: 2, unit: BYTES },
    // volume_condition { abnormal: true, message: "disk" }
    let bytes = b"\x0a\x08\x08\x01\x10\x03\x18\x02\x20\x01\x12\x08\x08\x01\x12\x04disk";
    let stats = NodeGetVolumeStatsResponse::decode(bytes.as_slice()).unwrap();
    assert_eq!((stats.usage[0].available, stats.usage[0].total, stats.usage[0].used), (1, 3, 2));
    let condition = stats.volume_condition.unwrap();
    assert!(condition.abnormal);
    assert_eq!(condition.message, "disk");

    // entries { volume { capacity_bytes: 5, volume_id: "v" },
    //           status { published_node_ids: "n", volume_condition { message: "ok" } } }
    let bytes = b"\x0a\x12\x0a\x05\x08\x05\x12\x01v\x12\x09\x0a\x01n\x12\x04\x12\x02ok";
    let list = ListVolumesResponse::decode(bytes.as_slice()).unwrap();
    let status = list.entries[0].status.as_ref().unwrap();
    assert_eq!(status.published_node_ids, ["n"]);
    assert_eq!(status.volume_condition.as_ref().unwrap().message, "ok");
    assert_eq!(list.entries[0].volume.as_ref().unwrap().volume_id, "v");
}

/// Field 5000 in all four wire types: number, 8 bytes, text, 4 bytes.
const FROM_THE_FUTURE: &[u8] = b"\xc0\xb8\x02\x01\
    \xc1\xb8\x0212345678\
    \xc2\xb8\x02\x04text\
    \xc5\xb8\x021234";

#[test]
fn fields_of_later_revisions_are_ignored() {
    macro_rules! check {
        ($name:literal, $message:ty) => {
            assert_ignores_unknown_fields::<$message>($name);
        };
    }
    every_message!(check);
}

fn assert_ignores_unknown_fields<T: Message + Default + PartialEq + Debug>(name: &str) {
    let descriptor = descriptors().get_message_by_name(name).unwrap();
    for filled in fill::every_case(&descriptor) {
        let mut bytes = filled.message.encode_to_vec();
        let known = T::decode(bytes.as_slice()).unwrap();
        bytes.extend_from_slice(FROM_THE_FUTURE);
        let unknown = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
        assert_eq!(unknown.unknown_fields().count(), 4, "unknown fields given to {name}");
        assert_eq!(T::decode(bytes.as_slice()).unwrap(), known, "{name}");
    }
}

#[test]
fn enum_numbers_of_later_revisions_survive_and_are_shown_as_numbers() {
    let mut enum_fields = 0;
    macro_rules! check {
        ($name:literal, $message:ty) => {
            enum_fields += assert_keeps_unknown_enum_numbers::<$message>($name);
        };
    }
    every_message!(check);
    assert_eq!(enum_fields, enum_fields_of_the_tables());
}

fn assert_keeps_unknown_enum_numbers<T: Message + Default + Debug>(name: &str) -> usize {
    let descriptor = descriptors().get_message_by_name(name).unwrap();
    let enums = descriptor.fields().filter(|field| matches!(field.kind(), Kind::Enum(_)));
    enums
        .map(|field| {
            let mut message = DynamicMessage::new(descriptor.clone());
            message.set_field(&field, Value::EnumNumber(4711));
            let ours = T::decode(message.encode_to_vec().as_slice()).unwrap();
            assert_eq!(ours.encode_to_vec(), message.encode_to_vec(), "{}", field.full_name());
            let shown = format!("{ours:?}");
            assert!(shown.contains(&format!("{}: 4711", field.name())), "{shown}");
        })
        .count()
}

fn enum_fields_of_the_tables() -> usize {
    let enums: BTreeSet<String> =
        rows(tables::ENUMS).iter().map(|row| row["enum"].to_owned()).collect();
    let csi = rows(tables::MESSAGES).iter().filter(|row| enums.contains(&row["type"])).count();
    let metadata = rows(tables::SNAPSHOT_METADATA);
    csi + metadata.iter().filter(|row| &row["type"] == "BlockMetadataType").count()
}
