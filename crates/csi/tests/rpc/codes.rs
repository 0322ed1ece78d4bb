//! The whole code space: whatever kind of fault an RPC meets in its backend, its caller gets that
//! kind's code, and the message.

use crate::{
    message::{call, code, method, with},
    support::{Rig, devices, directories},
    valid::{self, block, map},
};
use larder_csi::status;
use larder_host::fake::FakeKernel;
use larder_model::{Fault, Kind};
use larder_proto::csi;
use larder_volumes::testing::{Inject, Memory};
use prost_reflect::{DynamicMessage, Value};
use std::collections::BTreeSet;
use tonic::Code;

const KINDS: [Kind; 14] = [
    Kind::Invalid,
    Kind::NotFound,
    Kind::Conflict,
    Kind::Aborted,
    Kind::Precondition,
    Kind::OutOfRange,
    Kind::Exhausted,
    Kind::Denied,
    Kind::Unauthenticated,
    Kind::Unavailable,
    Kind::Deadline,
    Kind::Unsupported,
    Kind::Corrupt,
    Kind::Internal,
];

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// What an RPC answers when the backend's `method` fails with each kind.
async fn faults_pass(
    rig: &Rig,
    rpc: &str,
    backend: &'static str,
    request: &DynamicMessage,
    otherwise: impl Fn(Kind) -> Option<Code>,
) {
    for kind in KINDS {
        let fault = Fault::new(kind, "do what the test wants").hint("look into the test");
        rig.backend.inject(backend, Inject::Fail(fault));
        let before = rig.backend.calls(backend);
        let answer = call(&rig.driver.client(), method(rpc), request).await;
        assert!(rig.backend.calls(backend) > before, "{rpc} does not call {backend}");
        let expected = otherwise(kind).unwrap_or(status::code(kind));
        assert_eq!(code(&answer), expected, "{rpc}: {backend} fails with {kind:?}: {answer:?}");
        if let Err(status) = answer {
            assert!(status.message().contains("do what the test wants"), "{rpc}: {status:?}");
            assert!(status.message().contains("look into the test"), "{rpc}: {status:?}");
            assert!(status.details().is_empty());
        }
    }
}

/// Absence is what deletion aims at.
fn absent(kind: Kind) -> Option<Code> {
    (kind == Kind::NotFound).then_some(Code::Ok)
}

fn as_it_is(_: Kind) -> Option<Code> {
    None
}

/// The RPCs that call nothing that can fail.
const STATIC: [&str; 7] = [
    "GetPluginInfo",
    "GetPluginCapabilities",
    "ControllerGetCapabilities",
    "GroupControllerGetCapabilities",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "NodeGetStorageHealth",
];

#[tokio::test]
async fn every_kind_of_fault_reaches_the_caller_as_its_code() {
    let mut seen: BTreeSet<&str> = STATIC.into();
    let rig = Rig::filled(Memory::default()).await;
    let request = |rpc: &str| valid::request(rpc, rig.folder());
    for (rpc, backend) in [
        ("CreateVolume", "ensure_volume"),
        ("ControllerPublishVolume", "attach_volume"),
        ("ValidateVolumeCapabilities", "get_volume"),
        ("ListVolumes", "list_volumes"),
        ("ControllerGetVolume", "get_volume"),
        ("ControllerModifyVolume", "modify_volume"),
        ("GetCapacity", "capacity"),
        ("CreateSnapshot", "ensure_snapshot"),
        ("GetSnapshot", "get_snapshot"),
        ("ControllerExpandVolume", "expand_volume"),
        ("ControllerGetVolumeHealth", "volume_health"),
        ("ControllerListVolumeHealth", "list_volumes"),
        ("NodeStageVolume", "connect"),
        ("NodeGetVolumeHealth", "node_health"),
        ("CreateVolumeGroupSnapshot", "ensure_group"),
        ("GetVolumeGroupSnapshot", "get_group"),
        ("GetMetadataAllocated", "extents"),
        ("GetMetadataDelta", "extents"),
    ] {
        faults_pass(&rig, rpc, backend, &request(rpc), as_it_is).await;
        seen.insert(rpc);
    }
    for (rpc, backend) in [
        ("DeleteVolume", "delete_volume"),
        ("ControllerUnpublishVolume", "detach_volume"),
        ("DeleteSnapshot", "delete_snapshot"),
        ("DeleteVolumeGroupSnapshot", "delete_group"),
    ] {
        faults_pass(&rig, rpc, backend, &request(rpc), absent).await;
        seen.insert(rpc);
    }
    // CSI knows one code for "unhealthy".
    let unhealthy = |_| Some(Code::FailedPrecondition);
    faults_pass(&rig, "Probe", "probe", &request("Probe"), unhealthy).await;
    seen.insert("Probe");
    let all = with(&request("ListSnapshots"), "snapshot_id", text(""));
    faults_pass(&rig, "ListSnapshots", "list_snapshots", &all, as_it_is).await;
    seen.insert("ListSnapshots");

    seen.extend(node_faults().await);
    let all: BTreeSet<&str> = csi::METHODS.iter().map(|method| method.name).collect();
    assert_eq!(seen, all, "every RPC is tried");
}

async fn node_faults() -> [&'static str; 6] {
    let ok = async |rig: &Rig, rpc: &str, request: &DynamicMessage| {
        let answer = call(&rig.driver.client(), method(rpc), request).await;
        assert_eq!(code(&answer), Code::Ok, "{rpc}: {answer:?}");
    };
    let rig = Rig::filled(directories()).await;
    let request = |rpc: &str| valid::request(rpc, rig.folder());
    for rpc in ["NodeStageVolume", "NodePublishVolume"] {
        ok(&rig, rpc, &request(rpc)).await;
    }
    let (stats, expand) = ("NodeGetVolumeStats", "NodeExpandVolume");
    faults_pass(&rig, stats, "usage", &request(stats), as_it_is).await;
    faults_pass(&rig, expand, "refresh_size", &request(expand), as_it_is).await;
    ok(&rig, "NodeUnpublishVolume", &request("NodeUnpublishVolume")).await;
    let unstage = "NodeUnstageVolume";
    for kind in KINDS {
        // Staged anew each time: whatever the fault, nothing is mounted any more. What is still in
        // use is asked for several times, because udev and others look at devices for a moment.
        ok(&rig, "NodeStageVolume", &request("NodeStageVolume")).await;
        let faults = if kind == Kind::Precondition { 20 } else { 1 };
        for _ in 0..faults {
            rig.backend.inject("disconnect", Inject::Fail(Fault::new(kind, "let go of it")));
        }
        let answer = call(&rig.driver.client(), method(unstage), &request(unstage)).await;
        assert_eq!(code(&answer), status::code(kind), "{unstage}: {kind:?}: {answer:?}");
        let mut again = answer;
        for _ in 0..faults {
            if again.is_err() {
                again = call(&rig.driver.client(), method(unstage), &request(unstage)).await;
            }
        }
        assert_eq!(code(&again), Code::Ok, "{unstage} after {kind:?}: {again:?}");
    }

    // A raw device is looked at before it is published.
    let kernel = FakeKernel::new();
    let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
    rig.fill().await;
    let raw = |rpc: &str| {
        let mut request = valid::request(rpc, rig.folder());
        let capability = prost::Message::encode_to_vec(&block());
        let descriptor = crate::message::descriptor("VolumeCapability");
        let capability = DynamicMessage::decode(descriptor, capability.as_slice()).unwrap();
        request.set_field_by_name("volume_capability", Value::Message(capability));
        if rpc == "NodePublishVolume" {
            request.set_field_by_name("readonly", Value::Bool(false));
        }
        request
    };
    ok(&rig, "NodeStageVolume", &raw("NodeStageVolume")).await;
    let publish = "NodePublishVolume";
    faults_pass(&rig, publish, "is_connected", &raw(publish), as_it_is).await;

    // An inline volume is deleted when it is unpublished.
    let rig = Rig::filled(directories()).await;
    let inline = text("csi-0123456789abcdef");
    let mut publish = with(&valid::request("NodePublishVolume", rig.folder()), "volume_id", inline);
    let context = map(&[("csi.storage.k8s.io/ephemeral", "true")]);
    let context =
        context.into_iter().map(|(k, v)| (prost_reflect::MapKey::String(k), Value::String(v)));
    let context = context.collect();
    publish.set_field_by_name("volume_context", Value::Map(context));
    publish.set_field_by_name("readonly", Value::Bool(false));
    let unpublish = "NodeUnpublishVolume";
    let request = valid::request(unpublish, rig.folder());
    let request = with(&request, "volume_id", text("csi-0123456789abcdef"));
    for kind in KINDS {
        ok(&rig, "NodePublishVolume", &publish).await;
        rig.backend.inject("delete_volume", Inject::Fail(Fault::new(kind, "delete it")));
        let answer = call(&rig.driver.client(), method(unpublish), &request).await;
        let expected = absent(kind).unwrap_or(status::code(kind));
        assert_eq!(code(&answer), expected, "{unpublish}: {kind:?}: {answer:?}");
        ok(&rig, unpublish, &request).await;
    }
    [stats, expand, unstage, unpublish, "NodePublishVolume", "NodeStageVolume"]
}

#[tokio::test]
async fn a_panic_in_the_backend_is_one_callers_internal_error() {
    let rig = Rig::filled(Memory::default()).await;
    let client = rig.remote().await;
    for (rpc, backend) in [("CreateVolume", "ensure_volume"), ("ListVolumes", "list_volumes")] {
        rig.backend.inject(backend, Inject::Panic);
        let request = valid::request(rpc, rig.folder());
        let answer = call(&client, method(rpc), &request).await;
        assert_eq!(code(&answer), Code::Internal, "{answer:?}");
        let again = call(&client, method(rpc), &request).await;
        assert_eq!(code(&again), Code::Ok, "the next call is as good as any: {again:?}");
    }
}
