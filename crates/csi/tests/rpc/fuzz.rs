//! Whatever is asked: no panic, and never INTERNAL or UNKNOWN, which would be ours.

use crate::{
    message::{call, call_bytes, descriptor},
    support::{Rig, directories},
    valid,
};
use larder_proto::{Method, csi};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};
use std::{collections::HashMap, path::Path};
use tonic::{Code, Status};

/// Bytes that decide, one after the other. When they are used up everything is its first choice, so
/// that a shorter sequence is a simpler message.
struct Choices<'a> {
    bytes: std::slice::Iter<'a, u8>,
    folder: &'a Path,
}

impl Choices<'_> {
    fn byte(&mut self) -> usize {
        usize::from(self.bytes.next().copied().unwrap_or(0))
    }

    fn of<'t, T: ?Sized>(&mut self, choices: &[&'t T]) -> &'t T {
        choices[self.byte() % choices.len()]
    }

    fn text(&mut self, field: &FieldDescriptor) -> String {
        if field.name().contains("path") {
            return self.path();
        }
        let text = self.of(&[
            "",
            valid::VOLUME,
            valid::SNAPSHOT,
            valid::GROUP,
            valid::NODE,
            "vol",
            "snap",
            "a",
            "default/",
            "/vol",
            "other/vol",
            "nowhere/vol",
            "default/../default/vol",
            "../../../etc/passwd",
            "a\0b",
            "a\nb",
            "ä😀\u{202e}",
            "ext4",
            "xfs",
            "noatime",
            "ro",
            "1000",
            "-1",
            "99999999999999999999",
            "true",
            "1v3f9c01.5a1c22d0/vol",
            "csi-0123456789abcdef",
            "topology.larder.dev/node",
            "csi.storage.k8s.io/ephemeral",
        ]);
        match self.byte() % 16 {
            15 => text.repeat(200),
            _ => text.to_owned(),
        }
    }

    /// Never outside the test's folder: these calls are meant seriously.
    fn path(&mut self) -> String {
        let name = self.of(&["staging", "pod/target", "pod", "nowhere/x", "", "staging/deep/er"]);
        let path = self.folder.join(name).to_str().unwrap().to_owned();
        match self.byte() % 8 {
            5 => String::new(),
            6 => name.to_owned(),
            7 => format!("{path}/../x"),
            _ => path,
        }
    }

    fn number(&mut self) -> i64 {
        [0, 1, -1, 7, 4096, 1 << 30, 2 << 30, 1 << 62, i64::MAX, i64::MIN][self.byte() % 10]
    }

    fn message(&mut self, mut message: DynamicMessage, depth: usize) -> DynamicMessage {
        for field in message.descriptor().fields() {
            // The fewer choices are left, the more stays as it is.
            if self.byte() % 3 != 1 {
                continue;
            }
            if self.byte() % 4 == 3 {
                message.clear_field(&field);
                continue;
            }
            let value = if field.is_map() {
                let pairs = (0..self.byte() % 4)
                    .map(|_| (MapKey::String(self.text(&field)), Value::String(self.text(&field))));
                Value::Map(pairs.collect::<HashMap<_, _>>())
            } else if field.is_list() {
                Value::List((0..self.byte() % 4).map(|_| self.value(&field, depth)).collect())
            } else {
                self.value(&field, depth)
            };
            message.set_field(&field, value);
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        match field.kind() {
            Kind::Message(nested) if depth < 6 => {
                Value::Message(self.message(DynamicMessage::new(nested), depth + 1))
            }
            Kind::Message(nested) => Value::Message(DynamicMessage::new(nested)),
            Kind::String => Value::String(self.text(field)),
            Kind::Bool => Value::Bool(self.byte() % 2 == 1),
            #[allow(clippy::cast_possible_truncation, reason = "any number will do")]
            Kind::Int32 => Value::I32(self.number() as i32),
            Kind::Int64 => Value::I64(self.number()),
            Kind::Enum(_) => Value::EnumNumber(i32::try_from(self.byte() % 10).unwrap() - 1),
            other => panic!("a type not in use here: {other:?}"),
        }
    }
}

fn fine<T>(method: &Method, answer: &Result<T, Status>) -> Result<(), TestCaseError> {
    if let Err(status) = answer {
        let ours = [Code::Internal, Code::Unknown, Code::DataLoss].contains(&status.code());
        prop_assert!(!ours, "{}: {status:?}", method.name);
        prop_assert!(!status.message().is_empty(), "{}: {status:?}", method.name);
        prop_assert!(status.details().is_empty());
    }
    Ok(())
}

fn runner() -> TestRunner {
    // Failures are told with their input; there is no file to keep them in.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
}

/// Valid requests of all RPCs, changed at will, against one driver: its state wanders, too.
#[test]
fn no_random_request_is_our_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::filled(directories()));
    let client = rig.driver.client();
    let requests = (0..csi::METHODS.len(), vec(any::<u8>(), 0..200));
    // Several calls a case: what one leaves, the next finds.
    runner()
        .run(&vec(requests, 1..8), |calls| {
            for (which, bytes) in calls {
                let method = &csi::METHODS[which];
                let mut choices = Choices { bytes: bytes.iter(), folder: rig.folder() };
                let valid = valid::request(method.name, rig.folder());
                let request = choices.message(valid, 0);
                let answer = runtime.block_on(call(&client, method, &request));
                fine(method, &answer)?;
            }
            Ok(())
        })
        .unwrap();
}

/// Any bytes that are a message at all.
#[test]
fn no_random_bytes_are_our_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::filled(directories()));
    let client = runtime.block_on(rig.remote());
    // Short fields, so that many sequences are messages.
    let field = (1u8..16, prop_oneof![Just(0u8), Just(2)], vec(any::<u8>(), 0..5));
    let bytes = vec(field, 0..6).prop_map(|fields| {
        let mut bytes = Vec::new();
        for (number, wire, content) in fields {
            bytes.push(number << 3 | wire);
            if wire == 0 {
                bytes.push(content.first().copied().unwrap_or(0) & 0x7f);
            } else {
                bytes.push(u8::try_from(content.len()).unwrap());
                bytes.extend(content);
            }
        }
        bytes
    });
    runner()
        .run(
            &(0..csi::METHODS.len(), prop_oneof![bytes, vec(any::<u8>(), 0..40)]),
            |(which, bytes)| {
                let method = &csi::METHODS[which];
                let message = DynamicMessage::decode(descriptor(method.request), bytes.as_slice());
                // Five bytes make no absolute path but these few.
                let harmless = |m: &DynamicMessage| {
                    m.fields().all(|(field, value)| {
                        !field.name().contains("path")
                            || !value.as_str().unwrap_or("").starts_with('/')
                    })
                };
                let Ok(message) = message else { return Ok(()) };
                if harmless(&message) {
                    let encoded = message.encode_to_vec();
                    fine(method, &runtime.block_on(call_bytes(&client, method, encoded)))?;
                }
                Ok(())
            },
        )
        .unwrap();
    for method in csi::METHODS {
        let empty = runtime.block_on(call_bytes(&client, method, Vec::new()));
        fine(method, &empty).unwrap();
    }
}
