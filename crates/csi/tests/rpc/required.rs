//! Every field that the specification requires: a valid request without it is INVALID_ARGUMENT.

use crate::{
    message::{self, call, code, edit, with, without},
    support::Rig,
    tables, valid,
};
use larder_proto::csi;
use larder_volumes::testing::Memory;
use prost_reflect::{DynamicMessage, ReflectMessage, Value};
use std::collections::BTreeSet;
use tonic::Code;

/// The requests that lack what an item of the table requires, and the code each must get.
fn lacking(rpc: &str, item: &str, valid: &DynamicMessage) -> Vec<(String, DynamicMessage, Code)> {
    const INVALID: Code = Code::InvalidArgument;
    let cleared = |paths: &[&str]| {
        paths.iter().map(|path| ((*path).to_owned(), without(valid, path), INVALID)).collect()
    };
    let one = |what: &str, request| vec![(what.to_owned(), request, INVALID)];
    // A oneof is unset when none of its cases is set.
    let no_case = |capability: &str| {
        let mut request = valid.clone();
        edit(&mut request, &format!("{capability}.mount"), DynamicMessage::clear_field);
        request
    };
    match item {
        "each volume_capabilities[].access_mode.mode != UNKNOWN" => {
            cleared(&["volume_capabilities.access_mode", "volume_capabilities.access_mode.mode"])
        }
        "each volume_capabilities[].access_type oneof set" => {
            one(item, no_case("volume_capabilities"))
        }
        "volume_capability (+access_mode, access_type)" => {
            let mut all = cleared(&[
                "volume_capability",
                "volume_capability.access_mode",
                "volume_capability.access_mode.mode",
            ]);
            all.extend(one(item, no_case("volume_capability")));
            all
        }
        "volume_content_source.snapshot.snapshot_id or volume_content_source.volume.volume_id when that source is set" =>
        {
            let mut all = cleared(&["volume_content_source.snapshot.snapshot_id"]);
            let volume = with(
                valid,
                "volume_content_source.volume",
                Value::Message(DynamicMessage::new(message::descriptor(
                    "VolumeContentSource.VolumeSource",
                ))),
            );
            all.extend(one("volume_content_source.volume.volume_id", volume));
            all
        }
        "accessibility_requirements (when set): requisite or preferred non-empty" => {
            let one_less = without(valid, "accessibility_requirements.requisite");
            one(item, without(&one_less, "accessibility_requirements.preferred"))
        }
        "staging_target_path is checked with FAILED_PRECONDITION instead, when STAGE_UNSTAGE_VOLUME is advertised" =>
        {
            let request = without(valid, "staging_target_path");
            vec![(item.to_owned(), request, Code::FailedPrecondition)]
        }
        // Of a group that exists; see below for others.
        "snapshot_ids (>=1)" => {
            let group = Value::String(valid::GROUP.to_owned());
            one(item, without(&with(valid, "group_snapshot_id", group), "snapshot_ids"))
        }
        "(none; max_entries negative is invalid)"
        | "(none; 1.13+; max_entries negative is invalid)" => {
            one(item, with(valid, "max_entries", Value::I32(-1)))
        }
        "(empty request)" | "(none)" | "(none; 1.13+)" => Vec::new(),
        // Zero is a valid offset.
        "starting_offset (zero is valid, so not detectable)"
        | "starting_offset (zero is valid)" => Vec::new(),
        _ => {
            let field = item.split(" (").next().unwrap();
            let known = valid.descriptor().get_field_by_name(field).is_some();
            assert!(known, "{rpc}: nobody knows how to leave out {item:?}");
            cleared(&[field])
        }
    }
}

/// The items of a row: separated by semicolons, except within brackets.
fn items(row: &str) -> Vec<String> {
    let (mut items, mut depth) = (vec![String::new()], 0);
    for c in row.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ';' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        items.last_mut().unwrap().push(c);
    }
    items.iter().map(|item| item.trim().to_owned()).collect()
}

#[tokio::test]
async fn a_request_without_a_required_field_is_invalid() {
    let rig = Rig::filled(Memory::default()).await;
    rig.group().await;
    let clients = [rig.driver.client(), rig.remote().await];
    let mut seen = BTreeSet::new();
    let mut cases = 0;
    for [rpc, row] in tables::rows(tables::REQUIRED) {
        if rpc.starts_with("response:") {
            continue;
        }
        seen.insert(rpc);
        let method = message::method(rpc);
        let valid = valid::request(rpc, rig.folder());
        for item in items(row) {
            for (what, request, expected) in lacking(rpc, &item, &valid) {
                cases += 1;
                for client in &clients {
                    let status = call(client, method, &request).await.unwrap_err();
                    assert_eq!(status.code(), expected, "{rpc} without {what}: {status:?}");
                    assert!(!status.message().is_empty() && status.details().is_empty());
                }
            }
        }
    }
    let all: BTreeSet<&str> = csi::METHODS.iter().map(|method| method.name).collect();
    assert_eq!(seen, all, "every RPC has a row");
    assert!(cases > 60, "{cases}");
}

#[tokio::test]
async fn a_group_that_does_not_exist_needs_no_members() {
    let rig = Rig::filled(Memory::default()).await;
    let client = rig.driver.client();
    for (rpc, expected) in
        [("DeleteVolumeGroupSnapshot", Code::Ok), ("GetVolumeGroupSnapshot", Code::NotFound)]
    {
        let request = without(&valid::request(rpc, rig.folder()), "snapshot_ids");
        for id in ["default/no-group", "not an id of ours"] {
            let request = with(&request, "group_snapshot_id", Value::String(id.to_owned()));
            let answer = call(&client, message::method(rpc), &request).await;
            assert_eq!(code(&answer), expected, "{rpc} of {id}: {answer:?}");
        }
    }
}

/// Guards the tests that break valid requests: were they invalid already, those would prove nothing.
#[tokio::test]
async fn the_valid_requests_are_valid() {
    let rig = Rig::filled(Memory::default()).await;
    let client = rig.driver.client();
    for method in csi::METHODS {
        let request = valid::request(method.name, rig.folder());
        let answer = call(&client, method, &request).await;
        let expected = match method.name {
            // The backend in memory has nothing that could be mounted.
            "NodeStageVolume" | "NodePublishVolume" => Code::FailedPrecondition,
            "NodeGetVolumeStats" | "NodeExpandVolume" | "GetVolumeGroupSnapshot" => Code::NotFound,
            _ => Code::Ok,
        };
        assert_eq!(code(&answer), expected, "{}: {answer:?}", method.name);
    }
}

/// The response rows of the table: what a caller needs to find filled in.
#[tokio::test]
async fn answers_hold_every_required_field() {
    let rig = Rig::filled(Memory::default()).await;
    let client = rig.driver.client();
    let ask = async |rpc: &str| {
        let request = valid::request(rpc, rig.folder());
        call(&client, message::method(rpc), &request).await.unwrap().remove(0)
    };
    let filled = |message: &DynamicMessage, path: &str| {
        let mut at = message.clone();
        for part in path.split('.') {
            let value = at.get_field_by_name(part).unwrap().into_owned();
            let first = match value {
                Value::List(items) => items.first().cloned().unwrap_or(Value::Bool(false)),
                value => value,
            };
            match first {
                Value::Message(nested) => at = nested,
                Value::String(text) => return !text.is_empty(),
                Value::I64(n) => return n != 0,
                Value::Bool(set) => return set,
                _ => return true,
            }
        }
        true
    };
    for [row, fields] in tables::rows(tables::REQUIRED) {
        let Some(response) = row.strip_prefix("response:") else { continue };
        let (rpc, paths): (&str, &[&str]) = match response {
            "GetPluginInfoResponse" => ("GetPluginInfo", &["name", "vendor_version"]),
            "ProbeResponse" => ("Probe", &["ready.value"]),
            "CreateVolumeResponse" => {
                let paths = &["volume.volume_id", "volume.content_source.snapshot.snapshot_id"];
                ("CreateVolume", paths)
            }
            // Without content where attaching needs none.
            "ControllerPublishVolumeResponse" => ("ControllerPublishVolume", &[]),
            "ValidateVolumeCapabilitiesResponse" => {
                ("ValidateVolumeCapabilities", &["confirmed.volume_capabilities.access_mode.mode"])
            }
            "ListVolumesResponse.Entry" => {
                ("ListVolumes", &["entries.volume.volume_id", "entries.status"])
            }
            "ControllerGetVolumeResponse" => {
                ("ControllerGetVolume", &["volume.volume_id", "status"])
            }
            "GetCapacityResponse" => ("GetCapacity", &["available_capacity"]),
            "CreateSnapshotResponse" => (
                "CreateSnapshot",
                &[
                    "snapshot.snapshot_id",
                    "snapshot.source_volume_id",
                    "snapshot.creation_time.seconds",
                    "snapshot.ready_to_use",
                ],
            ),
            "ControllerExpandVolumeResponse" => {
                ("ControllerExpandVolume", &["capacity_bytes", "node_expansion_required"])
            }
            "NodeGetInfoResponse" => ("NodeGetInfo", &["node_id"]),
            "VolumeGroupSnapshot" => (
                "CreateVolumeGroupSnapshot",
                &[
                    "group_snapshot.group_snapshot_id",
                    "group_snapshot.snapshots.snapshot_id",
                    "group_snapshot.creation_time.seconds",
                    "group_snapshot.ready_to_use",
                ],
            ),
            "Snapshot inside VolumeGroupSnapshot" => {
                ("CreateVolumeGroupSnapshot", &["group_snapshot.snapshots.group_snapshot_id"])
            }
            // Proven where a volume is mounted: end_to_end.rs.
            "VolumeUsage" => continue,
            "VolumeHealth (1.13+)" => ("ControllerGetVolumeHealth", &["volume_health.volume_id"]),
            // Proven where something is wrong: health.rs.
            "VolumeHealth.VolumeHealthEntry (1.13+)"
            | "NodeGetStorageHealthResponse.StorageBackendHealth (1.13+)" => continue,
            other => panic!("nobody knows where {other} is answered ({fields})"),
        };
        let answer = ask(rpc).await;
        for path in paths {
            assert!(filled(&answer, path), "{rpc} leaves {path} empty: {answer:?}");
        }
    }
    let created = ask("CreateVolumeGroupSnapshot").await;
    let group = created.get_field_by_name("group_snapshot").unwrap();
    let group = group.as_message().unwrap();
    let id = group.get_field_by_name("group_snapshot_id").unwrap().into_owned();
    for member in group.get_field_by_name("snapshots").unwrap().as_list().unwrap() {
        let member = member.as_message().unwrap();
        assert_eq!(*member.get_field_by_name("group_snapshot_id").unwrap(), id);
    }
}
