//! Every row of the table of limits. What holds for a kind of field is tried on every field of that
//! kind in every request, found by reflection, so that a new field cannot be forgotten.

use crate::{
    message::{self, call, code, is_text_list, method, with},
    support::Rig,
    tables, valid,
};
use larder_csi::Client;
use larder_proto::{Method, csi};
use larder_volumes::testing::Memory;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};
use std::collections::{BTreeMap, HashMap};
use tonic::{Code, Status};

struct Calls {
    rig: Rig,
    client: Client,
}

impl Calls {
    async fn new() -> Self {
        let rig = Rig::filled(Memory::default()).await;
        let client = rig.remote().await;
        Self { rig, client }
    }

    fn valid(&self, rpc: &str) -> DynamicMessage {
        valid::request(rpc, self.rig.folder())
    }

    /// The answer to `rpc` with another value at `path`.
    async fn ask(
        &self,
        rpc: &str,
        path: &str,
        value: Value,
    ) -> Result<Vec<DynamicMessage>, Status> {
        call(&self.client, method(rpc), &with(&self.valid(rpc), path, value)).await
    }

    async fn refused(&self, rpc: &str, path: &str, value: Value, expected: Code) {
        let shown = format!("{value:?}");
        let shown: String = shown.chars().take(100).collect();
        let answer = self.ask(rpc, path, value).await;
        assert_eq!(code(&answer), expected, "{rpc} {path}={shown}: {answer:?}");
        assert!(!answer.unwrap_err().message().is_empty());
    }

    /// Whatever else is said of the value: not that it is too long.
    async fn not_too_long(&self, rpc: &str, path: &str, value: Value) {
        if let Err(status) = self.ask(rpc, path, value).await {
            assert!(!status.message().contains("at most"), "{rpc} {path}: {status:?}");
        }
    }

    /// Every field of every request that is set, or would be on a later page.
    fn fields(&self) -> Vec<(&'static Method, String, FieldDescriptor)> {
        let of = |method: &'static Method| {
            let valid = self.valid(method.name);
            let mut all = message::paths(&valid);
            let descriptor = message::descriptor(method.request);
            all.extend(
                descriptor
                    .get_field_by_name("starting_token")
                    .map(|field| (field.name().to_owned(), field)),
            );
            all.into_iter().map(move |(path, field)| (method, path, field))
        };
        csi::METHODS.iter().flat_map(of).collect()
    }

    fn texts(&self) -> Vec<(&'static Method, String, FieldDescriptor)> {
        let text = |field: &FieldDescriptor| field.kind() == Kind::String && !field.is_map();
        self.fields().into_iter().filter(|(_, _, field)| text(field)).collect()
    }

    fn maps(&self) -> Vec<(&'static Method, String, FieldDescriptor)> {
        self.fields().into_iter().filter(|(_, _, field)| field.is_map()).collect()
    }
}

/// How many bytes a field takes, and the code for one more. None: its values are of a form that has
/// no length.
fn most(field: &FieldDescriptor) -> Option<(usize, Code)> {
    const INVALID: Code = Code::InvalidArgument;
    Some(match field.name() {
        "staging_target_path" | "target_path" | "volume_path" | "volume_publish_path" => {
            (4095, INVALID)
        }
        "node_id" => (256, INVALID),
        "mount_flags" => (4096, INVALID),
        "starting_token" => (128, Code::Aborted),
        "volume_mount_group" => return None,
        _ => (128, INVALID),
    })
}

/// A legal value of `bytes` bytes.
fn long(field: &FieldDescriptor, bytes: usize) -> Value {
    let text = match field.name() {
        // Names in a path have a limit of their own.
        name if name.contains("path") => format!("/{}", "a/".repeat(bytes))[..bytes].to_owned(),
        _ => "a".repeat(bytes),
    };
    as_value(field, text)
}

fn as_value(field: &FieldDescriptor, text: String) -> Value {
    if is_text_list(field) { Value::List(vec![Value::String(text)]) } else { Value::String(text) }
}

fn text_map(pairs: impl IntoIterator<Item = (String, String)>) -> Value {
    let pairs = pairs.into_iter().map(|(key, value)| (MapKey::String(key), Value::String(value)));
    Value::Map(pairs.collect::<HashMap<_, _>>())
}

fn one(key: &str, value: &str) -> Value {
    text_map([(key.to_owned(), value.to_owned())])
}

async fn texts_are_bounded(calls: &Calls, which: impl Fn(&FieldDescriptor) -> bool) {
    let mut tried = 0;
    for (method, path, field) in calls.texts() {
        let Some((most, code)) = most(&field).filter(|_| which(&field)) else { continue };
        tried += 1;
        calls.refused(method.name, &path, long(&field, most + 1), code).await;
        calls.not_too_long(method.name, &path, long(&field, most)).await;
    }
    assert!(tried > 0);
}

async fn maps_are_bounded(calls: &Calls) {
    let mut tried = 0;
    for (method, path, field) in calls.maps() {
        // Topology has narrower limits; secrets wider ones (docs/semantics.md).
        let most = match field.name() {
            "segments" => continue,
            "secrets" => 64 * 1024,
            _ => 4096,
        };
        tried += 1;
        let filled = |bytes: usize| text_map([("k".to_owned(), "v".repeat(bytes - 1))]);
        calls.refused(method.name, &path, filled(most + 1), Code::InvalidArgument).await;
        calls.not_too_long(method.name, &path, filled(most)).await;
        let many = (0..most / 8).map(|n| (format!("k{n:04}"), "vvvv".to_owned()));
        calls.refused(method.name, &path, text_map(many), Code::InvalidArgument).await;
    }
    assert!(tried > 20, "{tried}");
}

async fn names_hold_no_control_characters(calls: &Calls) {
    for rpc in ["CreateVolume", "CreateSnapshot", "CreateVolumeGroupSnapshot"] {
        for forbidden in (0..=8).chain([0xb, 0xc]).chain(0xe..=0x1f).chain(0x7f..=0x9f) {
            let name = format!("a{}b", char::from_u32(forbidden).unwrap());
            calls.refused(rpc, "name", Value::String(name), Code::InvalidArgument).await;
        }
        for allowed in ["ü", "日本", "a b", "../../etc", "a/b", "%n", "\u{a0}x"] {
            let answer = calls.ask(rpc, "name", Value::String(allowed.to_owned())).await;
            assert_eq!(code(&answer), Code::Ok, "{rpc} {allowed:?}: {answer:?}");
        }
    }
}

const TOPOLOGY: &str = "accessibility_requirements.requisite.segments";

async fn topology_keys_have_a_form(calls: &Calls) {
    let long = "a".repeat(64);
    let prefixed = [format!("{long}/zone"), format!("example.com/{long}"), long.clone()];
    let wrong = ["", "/", "/zone", "example.com/", "a/b/c", "Example.com/zone", "-a/zone", "a-/z"]
        .into_iter()
        .chain(["zone!", "_zone", "zone.", "zone\n", "zo ne"])
        .chain(prefixed.iter().map(String::as_str));
    for key in wrong {
        let refused = Code::InvalidArgument;
        calls.refused("CreateVolume", TOPOLOGY, one(key, "z1"), refused).await;
        calls.refused("CreateSnapshot", TOPOLOGY, one(key, "z1"), refused).await;
        calls.refused("GetCapacity", "accessible_topology.segments", one(key, "z1"), refused).await;
    }
    let twice = text_map([("zone", "a"), ("Zone", "a")].map(|(k, v)| (k.into(), v.into())));
    calls.refused("CreateVolume", TOPOLOGY, twice, Code::InvalidArgument).await;
    // Keys compare without case: this is the driver's own place.
    let place = |key| {
        let segments = one(key, valid::NODE);
        calls.ask("GetCapacity", "accessible_topology.segments", segments)
    };
    for key in ["topology.larder.dev/node", "topology.larder.dev/NODE"] {
        let answer = place(key).await.unwrap().remove(0);
        let free = answer.get_field_by_name("available_capacity").unwrap().as_i64().unwrap();
        assert!(free > 0, "{key}");
    }
}

async fn topology_values_have_a_form(calls: &Calls) {
    for value in ["", "-a", "a-", "a b", "a/b", "a\n", &"a".repeat(64)] {
        let segments = one("topology.larder.dev/node", value);
        calls.refused("CreateVolume", TOPOLOGY, segments, Code::InvalidArgument).await;
    }
}

async fn secrets_keys_have_a_form(calls: &Calls) {
    for (method, path, _) in calls.maps().into_iter().filter(|(_, p, _)| p == "secrets") {
        for key in ["", "a b", "a/b", "ä", "a\n", "a\0"] {
            calls.refused(method.name, &path, one(key, "x"), Code::InvalidArgument).await;
        }
        let answer = calls.ask(method.name, &path, one("a-B_1.c", "x")).await;
        assert_ne!(code(&answer), Code::InvalidArgument, "{answer:?}");
    }
}

async fn pages_are_not_negative(calls: &Calls) {
    let mut tried = 0;
    for (method, path, _) in calls.fields() {
        if path == "max_entries" || path == "max_results" {
            tried += 1;
            for negative in [-1, i32::MIN] {
                calls
                    .refused(method.name, &path, Value::I32(negative), Code::InvalidArgument)
                    .await;
            }
            for fine in [0, 1, i32::MAX] {
                let answer = calls.ask(method.name, &path, Value::I32(fine)).await;
                assert_eq!(code(&answer), Code::Ok, "{}: {answer:?}", method.name);
            }
        }
    }
    assert_eq!(tried, 5);
}

async fn ranges_are_sizes(calls: &Calls) {
    let range = |required: i64, limit: i64| {
        let mut range = DynamicMessage::new(message::descriptor("CapacityRange"));
        range.set_field_by_name("required_bytes", Value::I64(required));
        range.set_field_by_name("limit_bytes", Value::I64(limit));
        Value::Message(range)
    };
    for rpc in ["CreateVolume", "ControllerExpandVolume", "NodeExpandVolume"] {
        let path = "capacity_range";
        for (required, limit) in [(-1, 0), (0, -1), (i64::MIN, i64::MIN), (1, -1), (0, 0)] {
            let code = Code::InvalidArgument;
            calls.refused(rpc, path, range(required, limit), code).await;
        }
        calls.refused(rpc, path, range(2, 1), Code::OutOfRange).await;
    }
    for rpc in ["CreateVolume", "ControllerExpandVolume"] {
        calls.refused(rpc, "capacity_range", range(i64::MAX, 0), Code::OutOfRange).await;
    }
    let exact = calls.ask("ControllerExpandVolume", "capacity_range", range(3 << 30, 3 << 30));
    let exact = exact.await.unwrap().remove(0);
    assert_eq!(exact.get_field_by_name("capacity_bytes").unwrap().as_i64(), Some(3 << 30));
}

/// No number in any answer is negative.
async fn answers_are_not_negative(calls: &Calls) {
    fn check(message: &DynamicMessage) {
        for (field, value) in message.fields() {
            match value {
                Value::I64(n) => assert!(*n >= 0, "{} is {n}", field.full_name()),
                Value::Message(nested) => check(nested),
                Value::List(items) => items.iter().filter_map(Value::as_message).for_each(check),
                _ => {}
            }
        }
    }
    for method in csi::METHODS {
        let answers = call(&calls.client, method, &calls.valid(method.name)).await;
        answers.iter().flatten().for_each(check);
    }
}

#[tokio::test]
async fn every_limit_of_the_specification_is_kept() {
    let calls = Calls::new().await;
    let special = |field: &FieldDescriptor| {
        let name = field.name();
        name == "node_id" || name == "name" || name == "mount_flags" || name.contains("path")
    };
    for [item, _limit, _note] in tables::rows(tables::LIMITS) {
        match item {
            "string field (general)" => texts_are_bounded(&calls, |field| !special(field)).await,
            "map<string,string> field (general)" => maps_are_bounded(&calls).await,
            "VolumeCapability.MountVolume.mount_flags" => {
                texts_are_bounded(&calls, |field| field.name() == "mount_flags").await;
            }
            "ControllerPublishVolumeRequest.node_id / ControllerUnpublishVolumeRequest.node_id" => {
                texts_are_bounded(&calls, |field| field.name() == "node_id").await;
            }
            "staging_target_path (all), target_path, volume_path (all), NodeGetVolumeHealthRequest.volume_publish_path" =>
            {
                texts_are_bounded(&calls, |field| field.name().contains("path")).await;
            }
            "CreateVolumeRequest.name, CreateSnapshotRequest.name, CreateVolumeGroupSnapshotRequest.name" =>
            {
                texts_are_bounded(&calls, |field| field.name() == "name").await;
                names_hold_no_control_characters(&calls).await;
            }
            "GetPluginInfoResponse.name" => {
                let name = |text: &str| text.parse::<larder_model::DriverName>();
                name(&"a".repeat(63)).unwrap();
                for wrong in ["", &"a".repeat(64), "-a", "a.", "a_b", "a/b"] {
                    name(wrong).unwrap_err();
                }
            }
            "NodeGetInfoResponse.node_id" => {
                let name = |text: &str| text.parse::<larder_model::NodeName>();
                name(&"a".repeat(256)).unwrap();
                name(&"a".repeat(257)).unwrap_err();
            }
            "Topology.segments key" => topology_keys_have_a_form(&calls).await,
            "Topology.segments value" => topology_values_have_a_form(&calls).await,
            "secrets map key" => secrets_keys_have_a_form(&calls).await,
            "max_entries / max_results" => pages_are_not_negative(&calls).await,
            "CapacityRange.required_bytes / limit_bytes" => ranges_are_sizes(&calls).await,
            "Volume.capacity_bytes"
            | "Snapshot.size_bytes"
            | "NodeGetInfoResponse.max_volumes_per_node"
            | "VolumeUsage.available/total/used" => answers_are_not_negative(&calls).await,
            // metadata.rs
            "BlockMetadata.size_bytes" => {}
            // endpoint.rs and socket.rs of the crate
            "CSI_ENDPOINT" => {}
            // Of the process and its supervisor, no matter of a call.
            "CSI_ prefix" | "CAP_SYS_ADMIN" => {}
            // end_to_end.rs
            "staging_target_path creation" | "target_path creation" | "target_path removal" => {}
            other => panic!("nobody proves the limit of {other}"),
        }
    }
}

#[tokio::test]
async fn text_with_control_characters_is_refused_everywhere() {
    let calls = Calls::new().await;
    for (method, path, field) in calls.texts() {
        let (_, code) = most(&field).unwrap_or((0, Code::InvalidArgument));
        let head = if field.name().contains("path") { "/a" } else { "a" };
        for wrong in ["\0", "\n", "\r", "\t", "\u{1b}[2J", "\u{7f}", "\u{85}"] {
            let value = as_value(&field, format!("{head}{wrong}b"));
            calls.refused(method.name, &path, value, code).await;
        }
    }
    for (method, path, _) in calls.maps() {
        for wrong in [one("a\0b", "x"), one("a\nb", "x"), one("a", "x\0y")] {
            calls.refused(method.name, &path, wrong, Code::InvalidArgument).await;
        }
    }
}

#[tokio::test]
async fn paths_are_absolute_and_stay_below_their_root() {
    let calls = Calls::new().await;
    let long_name = format!("/var/{}", "a".repeat(256));
    for (method, path, field) in calls.texts() {
        if !field.name().contains("path") {
            continue;
        }
        for wrong in ["/a/../b", "/a/..", "/..", "/", &long_name] {
            let value = Value::String(wrong.to_owned());
            calls.refused(method.name, &path, value, Code::InvalidArgument).await;
        }
        // Where a volume is said to be already, csi-sanity wants another code (docs/semantics.md).
        let expected = match field.name() {
            "volume_path" => Code::NotFound,
            _ => Code::InvalidArgument,
        };
        for relative in ["a/b", "../a", "./a", "some/path"] {
            let value = Value::String(relative.to_owned());
            calls.refused(method.name, &path, value, expected).await;
        }
    }
}

#[tokio::test]
async fn unknown_and_contradictory_capabilities_are_refused() {
    let calls = Calls::new().await;
    let mut tried = 0;
    for (method, path, _) in calls.fields() {
        if path.ends_with("access_mode.mode") {
            tried += 1;
            for unknown in [0, 8, 4711, -1, i32::MIN] {
                calls
                    .refused(method.name, &path, Value::EnumNumber(unknown), Code::InvalidArgument)
                    .await;
            }
        }
        if path.ends_with("volume_mount_group") {
            for wrong in ["users", "-1", "+1", "4294967295", "4294967296", "0x10", " 1", "1.0"] {
                let value = Value::String(wrong.to_owned());
                calls.refused(method.name, &path, value, Code::InvalidArgument).await;
            }
        }
    }
    assert_eq!(tried, 8);
    let valid = calls.valid("CreateVolume");
    let list = valid.get_field_by_name("volume_capabilities").unwrap().into_owned();
    let mut list = list.as_list().unwrap().to_vec();
    let other =
        with(list[0].as_message().unwrap(), "mount.fs_type", Value::String("xfs".to_owned()));
    list.push(Value::Message(other));
    calls
        .refused("CreateVolume", "volume_capabilities", Value::List(list), Code::InvalidArgument)
        .await;
}

#[tokio::test]
async fn a_preferred_place_must_be_among_the_requisite_ones() {
    let calls = Calls::new().await;
    for rpc in ["CreateVolume", "CreateSnapshot"] {
        let path = "accessibility_requirements.preferred.segments";
        calls.refused(rpc, path, one("zone", "b"), Code::InvalidArgument).await;
    }
}

/// kubelet adds the tokens of service accounts without looking at the limit of maps, and with
/// `serviceAccountTokenInSecrets` under a key that the rule for secrets' keys forbids.
#[tokio::test]
async fn what_kubelet_adds_is_taken_above_the_limit_of_maps() {
    let calls = Calls::new().await;
    let tokens = "csi.storage.k8s.io/serviceAccount.tokens";
    let map = |bytes: usize| {
        let own = BTreeMap::from([(tokens.to_owned(), "t".repeat(bytes))]);
        text_map(own)
    };
    for path in ["volume_context", "secrets"] {
        let answer = calls.ask("NodePublishVolume", path, map(20_000)).await;
        assert_eq!(code(&answer), Code::FailedPrecondition, "{path}: {answer:?}");
        calls.refused("NodePublishVolume", path, map(70_000), Code::InvalidArgument).await;
    }
}
