//! Callers that give up, have deadlines, flood, or send what is no message.

use crate::{
    message::{call, call_bytes, code, method},
    support::{LONG, Rig},
    valid::{self, VOLUME},
};
use larder_csi::Client;
use larder_proto::csi;
use larder_volumes::testing::{Inject, Memory};
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, sync::Semaphore, task::JoinSet};
use tonic::Code;

fn create(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![valid::mounted()],
        ..Default::default()
    }
}

#[tokio::test]
async fn work_goes_on_when_its_caller_has_gone_and_an_equal_call_gets_its_answer() {
    let rig = Rig::ready(Memory::default()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.backend.inject("ensure_volume", Inject::Hold(gate.clone()));
    let client = rig.remote().await;
    // One hangs up, with its connection; one has a deadline; one is patient.
    let gone = Client::connect(&rig.endpoint()).unwrap();
    let hung_up = tokio::time::timeout(Duration::from_millis(100), async move {
        gone.controller().create_volume(create("v")).await
    });
    hung_up.await.unwrap_err();
    let mut hurried = tonic::Request::new(create("v"));
    hurried.set_timeout(Duration::from_millis(100));
    let late = client.controller().create_volume(hurried).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let mut patient = JoinSet::new();
    patient.spawn(async move { client.controller().create_volume(create("v")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.driver.operations().len(), 1, "all of them wait for one operation");
    gate.add_permits(1);
    let made = patient.join_next().await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(made.volume.unwrap().volume_id, "default/v");
    assert_eq!(rig.backend.calls("ensure_volume"), 1);
}

#[tokio::test]
async fn an_operation_that_hangs_takes_one_place_however_often_it_is_asked_for() {
    let rig = Rig::with(Memory::default(), larder_host::fake::FakeKernel::new(), |settings| {
        settings.limits = larder_csi::Limits { running: 2, waiting: 1, ..Default::default() };
    });
    let rig = rig.started().await;
    let gate = Arc::new(Semaphore::new(0));
    rig.backend.inject("ensure_volume", Inject::Hold(gate.clone()));
    let client = rig.remote().await;
    let mut hung = JoinSet::new();
    for n in 0..10 {
        let mut controller = client.controller();
        hung.spawn(async move {
            let mut request = tonic::Request::new(create("hung"));
            if n % 2 == 1 {
                request.set_timeout(Duration::from_millis(50));
            }
            controller.create_volume(request).await
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.controller().create_volume(create("other")).await.unwrap();
    gate.add_permits(1);
    let answers = hung.join_all().await;
    // All that had no deadline, and perhaps one whose deadline has not passed yet.
    assert!(answers.iter().filter(|answer| answer.is_ok()).count() >= 5, "{answers:?}");
    // And it is given back with the end of the operation.
    for name in ["a", "b", "c"] {
        client.controller().create_volume(create(name)).await.unwrap();
    }
}

#[tokio::test]
async fn a_deadline_is_told_as_such_and_what_to_do() {
    let rig = Rig::ready(Memory::default()).await;
    rig.backend.inject("list_volumes", Inject::Sleep(LONG));
    // In process nobody but the driver looks at the deadline.
    let mut request = tonic::Request::new(csi::ListVolumesRequest::default());
    request.set_timeout(Duration::from_millis(50));
    let late = rig.driver.client().controller().list_volumes(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(late.message().contains("hint"), "{late:?}");
}

#[tokio::test]
async fn a_different_call_on_the_same_volume_is_told_who_works_on_it() {
    let rig = Rig::filled(Memory::default()).await;
    let gate = Arc::new(Semaphore::new(0));
    rig.backend.inject("expand_volume", Inject::Hold(gate.clone()));
    let client = rig.remote().await;
    let grow = |required_bytes| csi::ControllerExpandVolumeRequest {
        volume_id: VOLUME.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes: 0 }),
        ..Default::default()
    };
    let mut first = JoinSet::new();
    let mut controller = client.controller();
    first.spawn(async move { controller.controller_expand_volume(grow(2 << 30)).await });
    while rig.driver.operations().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = client.controller().controller_expand_volume(grow(3 << 30)).await.unwrap_err();
    assert_eq!(other.code(), Code::Aborted);
    for told in ["expand volume default/vol", "running for", "look at the volume"] {
        assert!(other.message().contains(told), "{told}: {}", other.message());
    }
    // Reading is no operation.
    let get = csi::ControllerGetVolumeRequest { volume_id: VOLUME.to_owned() };
    client.controller().controller_get_volume(get).await.unwrap();
    gate.add_permits(1);
    first.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_the_callers_fault() {
    let rig = Rig::filled(Memory::default()).await;
    for client in [rig.driver.client(), rig.remote().await] {
        let mut huge = create("v");
        huge.parameters.insert("k".to_owned(), "v".repeat(5 << 20));
        let refused = client.controller().create_volume(huge).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        // A field that says it is longer than the message; a field of another type.
        for bytes in [vec![0x0a, 0x7f], vec![0x08, 0x01], vec![0xff; 20]] {
            let answer = call_bytes(&client, method("CreateVolume"), bytes.clone()).await;
            assert_eq!(code(&answer), Code::InvalidArgument, "{bytes:?}: {answer:?}");
        }
        let probe = call(&client, method("Probe"), &valid::request("Probe", rig.folder())).await;
        assert_eq!(code(&probe), Code::Ok);
    }
}

#[tokio::test]
async fn fields_of_later_revisions_are_ignored() {
    let rig = Rig::filled(Memory::default()).await;
    let mut bytes = prost::Message::encode_to_vec(&create("v"));
    bytes.extend([0xfa, 0x3f, 0x01, b'x']); // field 1023
    let answer = call_bytes(&rig.driver.client(), method("CreateVolume"), bytes).await;
    assert_eq!(code(&answer), Code::Ok, "{answer:?}");
}

#[tokio::test]
async fn many_connections_and_calls_at_once_are_all_answered() {
    let rig = Rig::filled(Memory::default()).await;
    rig.remote().await;
    let mut calls = JoinSet::new();
    for n in 0..200 {
        // kubelet makes a new connection for every call.
        let client = Client::connect(&rig.endpoint()).unwrap();
        calls.spawn(async move {
            client.controller().create_volume(create(&format!("v{}", n % 20))).await.map(drop)
        });
    }
    while let Some(answer) = calls.join_next().await {
        answer.unwrap().unwrap();
    }
    let mut controller = rig.driver.client().controller();
    let made = controller.list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
    assert_eq!(made.into_inner().entries.len(), 21);
}

#[tokio::test]
async fn a_driver_that_is_not_there_is_unavailable() {
    let rig = Rig::ready(Memory::default()).await;
    let client = Client::connect(&rig.endpoint()).unwrap();
    let refused = client.identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let fault = larder_csi::client::fault(&refused);
    assert_eq!(fault.kind(), larder_model::Kind::Unavailable);
    let told = fault.to_string();
    assert!(told.contains("csi.sock") && told.contains("No such file"), "{told}");
    // The same client finds it when it comes, and again after a restart.
    rig.driver.listen(&rig.endpoint()).await.unwrap();
    client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    assert!(rig.driver.shutdown(LONG).await.is_empty());
    let lost = client.identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    let next = Rig::ready(Memory::default()).await;
    next.driver.listen(&rig.endpoint()).await.unwrap();
    client.identity().probe(csi::ProbeRequest {}).await.unwrap();
}

/// As kill -9 does it: the connection breaks in the middle of a call.
#[test]
fn a_driver_that_dies_during_a_call_is_unavailable() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (server, caller) = (runtime().unwrap(), runtime().unwrap());
    let rig = server.block_on(Rig::ready(Memory::default()));
    rig.backend.inject("list_volumes", Inject::Sleep(LONG));
    server.block_on(rig.driver.listen(&rig.endpoint())).unwrap();
    let client = {
        let _entered = caller.enter();
        Client::connect(&rig.endpoint()).unwrap()
    };
    let mut controller = client.controller();
    let call = caller
        .spawn(async move { controller.list_volumes(csi::ListVolumesRequest::default()).await });
    while rig.backend.calls("list_volumes") == 0 {
        std::thread::yield_now();
    }
    server.shutdown_background();
    let lost = caller.block_on(call).unwrap().unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
}

/// The same between two calls: what was not sent yet has not waited either.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_driver_that_dies_before_a_call_is_sent_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("csi.sock");
    let endpoint = socket.to_str().unwrap().parse().unwrap();
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let mut hangs_up = JoinSet::new();
    hangs_up.spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            // Settings of HTTP/2: the connection stands, and is ended.
            connection.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        }
    });
    let client = Client::connect(&endpoint).unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let mut identity = client.identity();
        callers.spawn(async move {
            for _ in 0..300 {
                let lost = identity.probe(csi::ProbeRequest {}).await.unwrap_err();
                assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    hangs_up.abort_all();
}
