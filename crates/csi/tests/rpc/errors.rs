//! Every condition of the table of errors: each is brought about, and gets the code of its row.

mod nodes;

use nodes::nodes;

use crate::{
    message::{call, code, method, with},
    support::{Rig, directories},
    tables,
    valid::{self, SNAPSHOT, VOLUME, map},
};
use larder_model::{Bytes, Fault, VolumeId};
use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use larder_volumes::testing::{Abilities, Inject, Memory};
use prost_reflect::Value;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// Where a row is proven.
enum Proof {
    /// Here: the code that was seen.
    Seen(Code),
    /// In another test.
    By(&'static str),
    /// We deviate: docs/semantics.md says why, and names the test.
    Deviates(Code),
}

use Proof::{By, Deviates, Seen};

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// The code of the valid request of `rpc` with other values.
async fn ask(rig: &Rig, rpc: &str, changes: &[(&str, Value)]) -> Code {
    code(&answer(rig, rpc, changes).await)
}

async fn answer(
    rig: &Rig,
    rpc: &str,
    changes: &[(&str, Value)],
) -> Result<Vec<prost_reflect::DynamicMessage>, Status> {
    let mut request = valid::request(rpc, rig.folder());
    for (path, value) in changes {
        request = with(&request, path, value.clone());
    }
    call(&rig.driver.client(), method(rpc), &request).await
}

async fn filled() -> Rig {
    Rig::filled(Memory::default()).await
}

/// `rpc` while the backend's `held` works on the same object for a call that differs.
async fn meanwhile(held: &'static str, first: &str, rpc: &str, changes: &[(&str, Value)]) -> Code {
    let rig = filled().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.backend.inject(held, Inject::Hold(gate.clone()));
    let request = valid::request(first, rig.folder());
    let client = rig.driver.client();
    let first = method(first);
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move { call(&client, first, &request).await });
    while rig.driver.operations().is_empty() {
        tokio::task::yield_now().await;
    }
    let status = answer(&rig, rpc, changes).await.unwrap_err();
    // The holder is named, with its age and its step.
    assert!(status.message().contains("is held by"), "{status:?}");
    assert!(status.message().contains("running for"), "{status:?}");
    gate.add_permits(1);
    running.join_next().await;
    status.code()
}

/// A capability with another mode.
fn mode(mode: Mode) -> Value {
    Value::EnumNumber(mode.into())
}

/// A group of one volume; returns the id of its member.
async fn grouped(rig: &Rig) -> String {
    rig.group().await
}

async fn identity_and_general(rpc: &str, condition: &str) -> Option<Proof> {
    Some(match (rpc, condition) {
        ("*", c) if c.starts_with("required field absent") => By("required"),
        ("*", "field value not allowed or unsupported") => By("limits"),
        ("*", "identity derived from secrets lacks permission")
        | ("*", "secrets missing or invalid for authentication") => By("codes"),
        ("*", c) if c.starts_with("another operation is in flight") => {
            let changes = [("node_id", text("node-2"))];
            let publish = "ControllerPublishVolume";
            Seen(meanwhile("attach_volume", publish, publish, &changes).await)
        }
        ("*", "rpc not implemented or disabled in this mode") => {
            let rig = Rig::ready(Memory { abilities: Abilities::NONE, ..Memory::default() }).await;
            Seen(ask(&rig, "ListVolumes", &[]).await)
        }
        ("Probe", "plugin unhealthy or not ready") => {
            let rig = filled().await;
            rig.backend.inject("probe", Inject::Fail(Fault::unavailable("reach the server")));
            Seen(ask(&rig, "Probe", &[]).await)
        }
        ("Probe", "a needed dependency of the plugin is missing") => {
            let rig = Rig::new(Memory::default());
            rig.backend.inject("start", Inject::Fail(Fault::not_found("find command mkfs.xfs")));
            rig.driver.start().await.unwrap_err();
            Seen(ask(&rig, "Probe", &[]).await)
        }
        _ => return None,
    })
}

async fn volumes(rpc: &str, condition: &str) -> Option<Proof> {
    let rig = filled().await;
    let nobody = || [("volume_id", text("default/nobody"))];
    Some(match (rpc, condition) {
        ("CreateVolume", c) if c.starts_with("content source kind unsupported") => {
            let abilities = Abilities { snapshots: false, ..Abilities::ALL };
            let rig = Rig::ready(Memory { abilities, ..Memory::default() }).await;
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("CreateVolume", c) if c.starts_with("content source (snapshot or volume) not found") => {
            let path = "volume_content_source.snapshot.snapshot_id";
            Seen(ask(&rig, rpc, &[(path, text("default/nobody"))]).await)
        }
        ("CreateVolume", c) if c.starts_with("name taken") => {
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok);
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok, "an equal repeat is the same volume");
            let other = [("capacity_range.required_bytes", Value::I64(3 << 30))];
            Seen(ask(&rig, rpc, &other).await)
        }
        ("CreateVolume", "topology valid but no room in it") => {
            let pool_size = Bytes::gib(3);
            let rig = Rig::filled(Memory { pool_size, ..Memory::default() }).await;
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("CreateVolume", c) if c.starts_with("capacity_range not satisfiable") => {
            let smaller = [("capacity_range.required_bytes", Value::I64(1 << 20))];
            Seen(ask(&rig, rpc, &smaller).await)
        }
        ("DeleteVolume", c) if c.starts_with("volume in use") => {
            rig.backend.set_in_use(VOLUME, true);
            Seen(ask(&rig, rpc, &[("volume_id", text(VOLUME))]).await)
        }
        ("DeleteVolume", "volume unknown") => {
            for unknown in ["default/nobody", "not an id of ours", "/etc/passwd", "a/b/c"] {
                assert_eq!(ask(&rig, rpc, &[("volume_id", text(unknown))]).await, Code::Ok);
            }
            Seen(Code::Ok)
        }
        ("ControllerPublishVolume", "volume not found") => Seen(ask(&rig, rpc, &nobody()).await),
        ("ControllerPublishVolume", "node_id not found") => {
            Seen(ask(&rig, rpc, &[("node_id", text("nobody"))]).await)
        }
        ("ControllerPublishVolume", c) if c.starts_with("already published to this node") => {
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok);
            Seen(ask(&rig, rpc, &[("readonly", Value::Bool(false))]).await)
        }
        ("ControllerPublishVolume", c) if c.starts_with("single-node volume already") => {
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok);
            let status = answer(&rig, rpc, &[("node_id", text("node-2"))]).await.unwrap_err();
            assert!(status.message().contains("node-1"), "{status:?}");
            Seen(status.code())
        }
        ("ControllerPublishVolume", "node attach limit reached") => {
            let full = Fault::exhausted("attach: all 25 slots of the node are taken");
            rig.backend.inject("attach_volume", Inject::Fail(full));
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("ControllerUnpublishVolume", c) if c.ends_with("not provably unpublished") => {
            for unknown in [("volume_id", "default/nobody"), ("node_id", "node-9")] {
                let changes = [(unknown.0, text(unknown.1))];
                assert_eq!(ask(&rig, rpc, &changes).await, Code::Ok);
            }
            // What cannot be looked at may still be attached.
            rig.backend.lose_pool("default", true);
            Deviates(ask(&rig, rpc, &[]).await)
        }
        ("ControllerUnpublishVolume", c) if c.starts_with("not attached there") => {
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("ValidateVolumeCapabilities", "volume not found")
        | ("ControllerGetVolume", "volume not found")
        | ("ControllerModifyVolume", "volume not found")
        | ("ControllerExpandVolume", "volume not found") => Seen(ask(&rig, rpc, &nobody()).await),
        ("ValidateVolumeCapabilities", "some capability unsupported") => {
            let modes = larder_model::AccessMode::SINGLE_NODE.to_vec();
            let rig = Rig::filled(with_modes(modes)).await;
            let path = "volume_capabilities.access_mode.mode";
            let changes = [(path, mode(Mode::MultiNodeMultiWriter))];
            let answer = answer(&rig, rpc, &changes).await.unwrap().remove(0);
            assert!(!answer.has_field_by_name("confirmed"), "{answer:?}");
            let message = answer.get_field_by_name("message").unwrap().into_owned();
            assert!(message.as_str().unwrap().contains("MULTI_NODE_MULTI_WRITER"));
            Seen(Code::Ok)
        }
        ("ListVolumes", "starting_token invalid") => {
            for token in ["x", "1v", "default/vol", "1v000000.00000000/a", "😀"] {
                let changes = [("starting_token", text(token))];
                assert_eq!(ask(&rig, rpc, &changes).await, Code::Aborted, "{token}");
            }
            Seen(Code::Aborted)
        }
        ("ControllerModifyVolume", c) if c.starts_with("mutable parameter keys") => {
            let before = rig.backend.inventory();
            let path = "mutable_parameters";
            let unknown = with_map(&[("tier", "silver"), ("colour", "red")]);
            let code = ask(&rig, rpc, &[(path, unknown)]).await;
            assert_eq!(rig.backend.inventory(), before, "nothing was applied");
            Seen(code)
        }
        ("ControllerExpandVolume", "capability not supported by the volume") => {
            let modes = larder_model::AccessMode::SINGLE_NODE.to_vec();
            let rig = Rig::filled(with_modes(modes)).await;
            let path = "volume_capability.access_mode.mode";
            Seen(ask(&rig, rpc, &[(path, mode(Mode::MultiNodeMultiWriter))]).await)
        }
        ("ControllerExpandVolume", c) if c.starts_with("published on a node") => {
            let mut memory = Memory::default();
            memory.facts.online_expansion = false;
            let rig = Rig::filled(memory).await;
            assert_eq!(ask(&rig, "ControllerPublishVolume", &[]).await, Code::Ok);
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("ControllerExpandVolume", "capacity_range not allowed") => {
            let changes = [
                ("capacity_range.required_bytes", Value::I64(0)),
                ("capacity_range.limit_bytes", Value::I64(1 << 20)),
            ];
            Seen(ask(&rig, rpc, &changes).await)
        }
        ("ControllerExpandVolume", "already at least the wanted size") => {
            let smaller = [("capacity_range.required_bytes", Value::I64(1 << 20))];
            Seen(ask(&rig, rpc, &smaller).await)
        }
        _ => return None,
    })
}

fn with_modes(access_modes: Vec<larder_model::AccessMode>) -> Memory {
    let mut memory = Memory::default();
    memory.facts.access_modes = access_modes;
    memory
}

fn with_map(pairs: &[(&str, &str)]) -> Value {
    use prost_reflect::MapKey;
    let pairs = map(pairs).into_iter();
    Value::Map(pairs.map(|(k, v)| (MapKey::String(k), Value::String(v))).collect())
}

async fn snapshots(rpc: &str, condition: &str) -> Option<Proof> {
    let rig = filled().await;
    let nobody = || text("default/nobody");
    Some(match (rpc, condition) {
        ("CreateSnapshot", "name taken by snapshot of another source volume") => {
            let other = csi::CreateVolumeRequest {
                name: "other".to_owned(),
                volume_capabilities: vec![valid::mounted()],
                ..Default::default()
            };
            rig.driver.client().controller().create_volume(other).await.unwrap();
            Seen(ask(&rig, rpc, &[("source_volume_id", text("default/other"))]).await)
        }
        ("CreateSnapshot", "operation pending for snapshot") => {
            let changes = [("parameters", with_map(&[]))];
            Seen(meanwhile("ensure_snapshot", rpc, rpc, &changes).await)
        }
        ("CreateSnapshot", c) if c.starts_with("no space for snapshot") => {
            let pool_size = Bytes::gib(3);
            let rig = Rig::filled(Memory { pool_size, ..Memory::default() }).await;
            let code = ask(&rig, rpc, &[("name", text("one-more"))]).await;
            assert_eq!(rig.backend.calls("ensure_snapshot"), 3);
            Seen(code)
        }
        ("DeleteSnapshot", c) if c.starts_with("snapshot belongs to a group") => {
            let member = grouped(&rig).await;
            Seen(ask(&rig, rpc, &[("snapshot_id", text(&member))]).await)
        }
        ("DeleteSnapshot", "snapshot in use") => {
            rig.backend.set_in_use(SNAPSHOT, true);
            Seen(ask(&rig, rpc, &[("snapshot_id", text(SNAPSHOT))]).await)
        }
        ("DeleteSnapshot", "operation pending for snapshot") => {
            let changes = [("snapshot_id", text(SNAPSHOT))];
            Seen(meanwhile("ensure_snapshot", "CreateSnapshot", rpc, &changes).await)
        }
        ("DeleteSnapshot", "snapshot unknown") => {
            for unknown in ["default/nobody", "not an id of ours"] {
                assert_eq!(ask(&rig, rpc, &[("snapshot_id", text(unknown))]).await, Code::Ok);
            }
            Seen(Code::Ok)
        }
        ("ListSnapshots", "starting_token invalid") => {
            // Also one of another listing.
            let one = [("max_entries", Value::I32(1)), ("snapshot_id", text(""))];
            let token = answer(&rig, rpc, &one).await.unwrap().remove(0);
            let token = token.get_field_by_name("next_token").unwrap().into_owned();
            assert_ne!(token.as_str(), Some(""));
            let other = [("starting_token", token)];
            assert_eq!(ask(&rig, "ListVolumes", &other).await, Code::Aborted);
            Seen(ask(&rig, rpc, &[("starting_token", text("x"))]).await)
        }
        ("ListSnapshots", c) if c.starts_with("filter snapshot_id") => {
            for filter in ["snapshot_id", "source_volume_id"] {
                for unknown in ["default/nobody", "not an id of ours"] {
                    let answer = answer(&rig, rpc, &[(filter, text(unknown))]).await.unwrap();
                    assert!(!answer[0].has_field_by_name("entries"), "{answer:?}");
                }
            }
            Seen(Code::Ok)
        }
        ("GetSnapshot", "snapshot not found") => {
            Seen(ask(&rig, rpc, &[("snapshot_id", nobody())]).await)
        }
        _ => return None,
    })
}

async fn groups(rpc: &str, condition: &str) -> Option<Proof> {
    let rig = filled().await;
    let ids = |ids: &[&str]| Value::List(ids.iter().map(|id| text(id)).collect());
    Some(match (rpc, condition) {
        ("CreateVolumeGroupSnapshot", "name taken by incompatible group snapshot") => {
            grouped(&rig).await;
            let other = csi::CreateVolumeRequest {
                name: "other".to_owned(),
                volume_capabilities: vec![valid::mounted()],
                ..Default::default()
            };
            rig.driver.client().controller().create_volume(other).await.unwrap();
            Seen(ask(&rig, rpc, &[("source_volume_ids", ids(&["default/other"]))]).await)
        }
        ("CreateVolumeGroupSnapshot", "volumes cannot be snapshotted together") => {
            let elsewhere = csi::CreateVolumeRequest {
                name: "elsewhere".to_owned(),
                volume_capabilities: vec![valid::mounted()],
                parameters: map(&[("pool", "other")]),
                ..Default::default()
            };
            rig.driver.client().controller().create_volume(elsewhere).await.unwrap();
            let both = ids(&[VOLUME, "other/elsewhere"]);
            Seen(ask(&rig, rpc, &[("source_volume_ids", both)]).await)
        }
        ("CreateVolumeGroupSnapshot", c) if c.starts_with("no space") => {
            let pool_size = Bytes::gib(3);
            let rig = Rig::filled(Memory { pool_size, ..Memory::default() }).await;
            Seen(ask(&rig, rpc, &[]).await)
        }
        (_, "snapshot_ids do not match the group") => {
            grouped(&rig).await;
            for other in [SNAPSHOT, "default/nobody", "not an id of ours"] {
                let changes =
                    [("group_snapshot_id", text(valid::GROUP)), ("snapshot_ids", ids(&[other]))];
                assert_eq!(ask(&rig, rpc, &changes).await, Code::InvalidArgument, "{other}");
            }
            Seen(Code::InvalidArgument)
        }
        ("DeleteVolumeGroupSnapshot", "group snapshot in use") => {
            let member = grouped(&rig).await;
            rig.backend.set_in_use(valid::GROUP, true);
            let changes =
                [("group_snapshot_id", text(valid::GROUP)), ("snapshot_ids", ids(&[&member]))];
            Seen(ask(&rig, rpc, &changes).await)
        }
        ("DeleteVolumeGroupSnapshot", "group snapshot unknown")
        | ("GetVolumeGroupSnapshot", "group snapshot not found") => Seen(ask(&rig, rpc, &[]).await),
        ("GetMetadataAllocated" | "GetMetadataDelta", "argument missing or invalid") => {
            Seen(ask(&rig, rpc, &[("max_results", Value::I32(-1))]).await)
        }
        ("GetMetadataAllocated", "snapshot_id unknown") => {
            Seen(ask(&rig, rpc, &[("snapshot_id", text("default/nobody"))]).await)
        }
        ("GetMetadataDelta", "base_snapshot_id or target_snapshot_id unknown") => {
            let unknown = text("default/nobody");
            let base = ask(&rig, rpc, &[("base_snapshot_id", unknown.clone())]).await;
            assert_eq!(ask(&rig, rpc, &[("target_snapshot_id", unknown)]).await, base);
            Seen(base)
        }
        ("GetMetadataDelta", c) if c.starts_with("changed block tracking disabled") => {
            let fault = Fault::precondition("tell changed blocks: they are not tracked");
            rig.backend.inject("extents", Inject::Fail(fault));
            Seen(ask(&rig, rpc, &[]).await)
        }
        (_, "starting_offset negative or beyond volume size") => {
            let negative = ask(&rig, rpc, &[("starting_offset", Value::I64(-1))]).await;
            let beyond = Value::I64((1 << 30) + 1);
            assert_eq!(ask(&rig, rpc, &[("starting_offset", beyond)]).await, negative);
            Seen(negative)
        }
        _ => return None,
    })
}

#[tokio::test]
async fn every_condition_of_the_specification_gets_its_code() {
    let mut deviations = Vec::new();
    for [rpc, condition, name, number, _reaction] in tables::rows(tables::ERRORS) {
        let number: i32 = number.parse().unwrap();
        let expected = Code::from(number);
        let proof = if let Some(proof) = identity_and_general(rpc, condition).await {
            proof
        } else if let Some(proof) = volumes(rpc, condition).await {
            proof
        } else if let Some(proof) = snapshots(rpc, condition).await {
            proof
        } else if let Some(proof) = groups(rpc, condition).await {
            proof
        } else if let Some(proof) = nodes(rpc, condition).await {
            proof
        } else {
            panic!("nobody proves {rpc}: {condition}");
        };
        match proof {
            Seen(code) => assert_eq!(code, expected, "{rpc}: {condition} ({name})"),
            By(test) => assert!(["required", "limits", "codes"].contains(&test)),
            Deviates(code) => {
                assert_ne!(code, expected, "{rpc}: {condition} does not deviate");
                deviations.push((rpc, code));
            }
        }
    }
    assert_eq!(
        deviations,
        [
            ("ControllerUnpublishVolume", Code::Unavailable),
            ("ControllerUnpublishVolume", Code::Unavailable),
            ("NodeUnstageVolume", Code::Ok),
            ("NodeUnpublishVolume", Code::Ok),
        ]
    );
}

#[tokio::test]
async fn a_second_target_is_refused_for_one_workload_only() {
    let path = "volume_capability.access_mode.mode";
    for (number, expected) in [
        (Mode::SingleNodeWriter, Code::Ok),
        (Mode::SingleNodeReaderOnly, Code::FailedPrecondition),
        (Mode::MultiNodeReaderOnly, Code::Ok),
        (Mode::MultiNodeSingleWriter, Code::Ok),
        (Mode::MultiNodeMultiWriter, Code::Ok),
        (Mode::SingleNodeMultiWriter, Code::Ok),
        (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
    ] {
        let rig = Rig::filled(directories()).await;
        let first = [(path, mode(number))];
        assert_eq!(ask(&rig, "NodeStageVolume", &first).await, Code::Ok);
        assert_eq!(ask(&rig, "NodePublishVolume", &first).await, Code::Ok);
        let target = text(rig.folder().join("pod/second").to_str().unwrap());
        let second = [(path, mode(number)), ("target_path", target)];
        assert_eq!(ask(&rig, "NodePublishVolume", &second).await, expected, "{number:?}");
    }
}

#[tokio::test]
async fn what_a_backend_does_not_offer_is_unimplemented() {
    let rig = Rig::ready(Memory { abilities: Abilities::NONE, ..Memory::default() }).await;
    let client = rig.driver.client();
    let always = [
        ("GetPluginInfo", Code::Ok),
        ("GetPluginCapabilities", Code::Ok),
        ("Probe", Code::Ok),
        ("CreateVolume", Code::InvalidArgument), // from a snapshot, which is not offered
        ("DeleteVolume", Code::Ok),
        ("ValidateVolumeCapabilities", Code::NotFound),
        ("ControllerGetCapabilities", Code::Ok),
        ("ControllerGetVolume", Code::NotFound),
        ("NodeStageVolume", Code::NotFound),
        ("NodeUnstageVolume", Code::Ok),
        ("NodePublishVolume", Code::NotFound),
        ("NodeUnpublishVolume", Code::Ok),
        ("NodeGetVolumeStats", Code::NotFound),
        ("NodeGetVolumeHealth", Code::NotFound),
        ("NodeGetStorageHealth", Code::Ok),
        ("NodeGetCapabilities", Code::Ok),
        ("NodeGetInfo", Code::Ok),
    ];
    for method in csi::METHODS {
        let answer = call(&client, method, &valid::request(method.name, rig.folder())).await;
        let expected = always.iter().find(|(rpc, _)| *rpc == method.name);
        let expected = expected.map_or(Code::Unimplemented, |(_, code)| *code);
        // Nothing is mounted here, whatever a node call finds first.
        let not_here = [Code::NotFound, Code::FailedPrecondition];
        let fine = code(&answer) == expected
            || (not_here.contains(&expected) && not_here.contains(&code(&answer)));
        assert!(fine, "{}: {answer:?}", method.name);
    }
}

#[tokio::test]
async fn a_controller_without_a_node_serves_no_node_calls() {
    let rig = Rig::without_node().await;
    let client = rig.driver.client();
    for method in csi::METHODS.iter().filter(|m| m.service == "csi.v1.Node") {
        let answer = call(&client, method, &valid::request(method.name, rig.folder())).await;
        assert_eq!(code(&answer), Code::Unimplemented, "{}: {answer:?}", method.name);
    }
}

#[tokio::test]
async fn a_pool_that_is_away_is_unavailable_and_never_gone() {
    let rig = filled().await;
    rig.backend.lose_pool("default", true);
    for (rpc, changes) in [
        ("DeleteVolume", vec![("volume_id", text(VOLUME))]),
        ("DeleteSnapshot", vec![("snapshot_id", text(SNAPSHOT))]),
        ("ControllerGetVolume", vec![]),
        ("GetSnapshot", vec![]),
        ("CreateVolume", vec![]),
        ("ControllerExpandVolume", vec![]),
    ] {
        assert_eq!(ask(&rig, rpc, &changes).await, Code::Unavailable, "{rpc}");
    }
    let unknown = [("volume_id", text("never-configured/vol"))];
    assert_eq!(ask(&rig, "DeleteVolume", &unknown).await, Code::Unavailable);
    rig.backend.lose_pool("default", false);
    let id: VolumeId = VolumeId(VOLUME.parse().unwrap());
    assert!(rig.backend.read(&id).is_some());
}
