//! CSI requests.

use crate::{handles::absolute, well_refused};
use larder_csi::fuzzing::{REQUESTS, Seen};
use larder_model::Kind;
use larder_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, Value};
use std::{path::Path, sync::LazyLock};

/// In place of every secret.
const SECRET: &str = "Hunter2-Hunter2";

/// What CSI defines of a request.
pub fn descriptor(request: &str) -> MessageDescriptor {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the descriptors are our own")
    });
    POOL.get_message_by_name(&format!("csi.v1.{request}")).expect("it is a message of CSI")
}

/// The first byte says which request, the others are its protobuf.
///
/// Whatever is asked: the message is encoded again as the same; a request that is accepted has only
/// ids, names and paths within their limits; one that is refused is so with a code that callers
/// understand; and no secret is in what a log would show.
pub fn check(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let (name, see) = REQUESTS[usize::from(*first) % REQUESTS.len()];
    let Ok(mut message) = DynamicMessage::decode(descriptor(name), bytes) else {
        assert!(see(bytes).is_none(), "{name}: only the generated code can read it");
        return;
    };
    let Some(seen) = see(bytes) else { panic!("{name}: only reflection can read it") };
    let again = see(&seen.encoded).unwrap_or_else(|| panic!("{name}: not read again"));
    assert_eq!(seen.encoded, again.encoded, "{name}");
    assert_eq!(seen.shown, again.shown, "{name}");
    let answer = |seen: &Seen| seen.typed.as_ref().map_err(ToString::to_string).cloned();
    assert_eq!(answer(&seen), answer(&again), "{name}");
    judge(name, &message, &seen);
    if !contains(bytes, SECRET.as_bytes())
        && hide(&mut message)
        && let Some(seen) = see(&message.encode_to_vec())
    {
        tells_nothing(name, &seen);
    }
}

fn judge(name: &str, message: &DynamicMessage, seen: &Seen) {
    match &seen.typed {
        Ok(_) => accepted(name, message),
        Err(fault) => {
            let mut kinds = vec![Kind::Invalid];
            if has_field(message, "capacity_range") {
                kinds.push(Kind::OutOfRange);
            }
            if has_field(message, "starting_token") {
                kinds.push(Kind::Aborted);
            }
            if has_field(message, "volume_path") {
                kinds.push(Kind::NotFound);
            }
            well_refused(fault, &kinds);
        }
    }
}

fn has_field(message: &DynamicMessage, name: &str) -> bool {
    message.has_field_by_name(name)
}

/// Rules of the specification, found by the names of the fields, not by the code that checks them.
fn accepted(request: &str, message: &DynamicMessage) {
    for (field, value) in message.fields() {
        let name = field.name();
        let each = |text: &str| {
            let at = format!("{request}: {name} {text:?}");
            assert!(!text.chars().any(|c| c.is_control()), "{at}");
            let limit = match name {
                "mount_flags" => 4096,
                "node_id" => 256,
                _ if name.ends_with("path") => 4095,
                _ => 128,
            };
            assert!(text.len() <= limit, "{at}");
            if name.ends_with("path") && !text.is_empty() {
                absolute(Path::new(text));
            }
            let required = name == "name"
                || name == "volume_id"
                || name == "source_volume_ids"
                || (name == "snapshot_id" && request != "ListSnapshotsRequest");
            assert!(!required || !text.is_empty(), "{at}");
        };
        match value {
            Value::String(text) => each(text),
            Value::List(items) => items.iter().for_each(|item| match item {
                Value::String(text) => each(text),
                Value::Message(nested) => accepted(request, nested),
                _ => {}
            }),
            Value::Message(nested) => accepted(request, nested),
            Value::I32(n) => {
                assert!(*n >= 0 || field.kind().as_enum().is_some(), "{request}: {name} {n}");
            }
            Value::Map(map) => {
                let size: usize = map.iter().map(|(key, value)| length(key, value)).sum();
                assert!(size <= 2 * 64 * 1024, "{request}: {name} has {size} bytes");
            }
            _ => {}
        }
    }
}

fn length(key: &MapKey, value: &Value) -> usize {
    key.as_str().map_or(0, str::len) + value.as_str().map_or(0, str::len)
}

/// Puts [`SECRET`] where secrets are; false: there are none.
fn hide(message: &mut DynamicMessage) -> bool {
    let mut hidden = false;
    for (field, value) in message.fields_mut() {
        match value {
            Value::Map(map) => {
                for (key, value) in map.iter_mut() {
                    let token = key.as_str() == Some("csi.storage.k8s.io/serviceAccount.tokens");
                    if field.name() == "secrets" || token {
                        *value = Value::String(SECRET.to_owned());
                        hidden = true;
                    }
                }
            }
            Value::List(items) if field.name() == "mount_flags" => {
                for item in items.iter_mut() {
                    *item = Value::String(SECRET.to_owned());
                    hidden = true;
                }
            }
            Value::List(items) => {
                for nested in items.iter_mut().filter_map(Value::as_message_mut) {
                    hidden |= hide(nested);
                }
            }
            Value::Message(nested) => hidden |= hide(nested),
            _ => {}
        }
    }
    hidden
}

fn tells_nothing(name: &str, seen: &Seen) {
    let typed = match &seen.typed {
        Ok(typed) => typed.clone(),
        Err(fault) => format!("{fault} {fault:?}"),
    };
    for shown in [&seen.shown, &typed] {
        assert!(!shown.contains(SECRET), "{name} tells a secret: {shown}");
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}
