//! What Larder's own tools and kubelet ask beside CSI.

use crate::support::{LONG, Rig};
use larder_csi::{Client, Endpoint, Limits, Registered};
use larder_host::fake::FakeKernel;
use larder_model::Fault;
use larder_proto::{csi, larder, pluginregistration as registration};
use larder_volumes::testing::{Inject, Memory};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tonic::Code;

#[tokio::test]
async fn pools_are_shown_as_the_backend_sees_them() {
    let rig = Rig::filled(Memory::default()).await;
    let mut admin = rig.remote().await.admin();
    let pools = admin.list_pools(larder::ListPoolsRequest {}).await.unwrap().into_inner().pools;
    let names: Vec<_> = pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["default", "other"]);
    assert_eq!((pools[0].volumes, pools[0].snapshots), (1, 2));
    assert_eq!(pools[0].total_bytes, 1 << 40);
    assert!(pools[0].fault.is_empty());
    rig.backend.lose_pool("other", true);
    let pools = admin.list_pools(larder::ListPoolsRequest {}).await.unwrap().into_inner().pools;
    assert!(!pools[1].fault.is_empty());
}

#[tokio::test]
async fn the_log_level_changes_through_the_process() {
    let set: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = set.clone();
    let rig = Rig::with(Memory::default(), FakeKernel::new(), |settings| {
        settings.set_log_level = Some(Arc::new(move |filter| {
            if filter.contains('!') {
                return Err(Fault::invalid(format!("read log filter {filter}")));
            }
            seen.lock().unwrap().push(filter.to_owned());
            Ok("info".to_owned())
        }));
    });
    let mut admin = rig.driver.client().admin();
    let mut change = async |filter: &str| {
        let request = larder::SetLogLevelRequest { filter: filter.to_owned() };
        admin.set_log_level(request).await.map(|answer| answer.into_inner().previous)
    };
    assert_eq!(change("debug").await.unwrap(), "info");
    for wrong in ["!", "", &"a".repeat(5000)] {
        assert_eq!(change(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(*set.lock().unwrap(), ["debug"]);
    let without = Rig::new(Memory::default());
    let request = larder::SetLogLevelRequest { filter: "debug".to_owned() };
    let refused = without.driver.client().admin().set_log_level(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_busy_driver_still_says_that_it_lives_and_what_it_does() {
    let rig = Rig::with(Memory::default(), FakeKernel::new(), |settings| {
        settings.limits = Limits { running: 1, waiting: 1, ..Limits::default() };
    });
    let rig = rig.started().await;
    rig.backend.inject("list_volumes", Inject::Sleep(LONG));
    let client = rig.remote().await;
    let mut hung = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let mut controller = client.controller();
        hung.spawn(
            async move { controller.list_volumes(csi::ListVolumesRequest::default()).await },
        );
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = client.controller().list_volumes(csi::ListVolumesRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    client.admin().list_operations(larder::ListOperationsRequest {}).await.unwrap();
}

/// The calls of kubelet's plugin watcher.
#[tokio::test]
async fn kubelet_learns_where_the_driver_is_and_says_whether_it_took_it() {
    let rig = Rig::ready(Memory::default()).await;
    let registry = rig.folder().join("plugins_registry");
    let host: Endpoint = "/var/lib/kubelet/plugins/memory.test/csi.sock".parse().unwrap();
    let mut registered = rig.driver.register(&registry, &host).await.unwrap();
    let socket = registry.join("memory.test-reg.sock");
    let files: Vec<_> = std::fs::read_dir(&registry).unwrap().collect();
    assert_eq!(files.len(), 1, "kubelet looks at every socket there");

    let endpoint: Endpoint = socket.to_str().unwrap().parse().unwrap();
    let channel = Client::connect(&endpoint).unwrap().channel();
    let mut kubelet = registration::registration_client::RegistrationClient::new(channel);
    let info = kubelet.get_info(registration::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(
        info,
        registration::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: "memory.test".to_owned(),
            endpoint: "/var/lib/kubelet/plugins/memory.test/csi.sock".to_owned(),
            supported_versions: vec!["1.0.0".to_owned()],
        }
    );
    assert_eq!(*registered.borrow_and_update(), Registered::Waiting);
    for (plugin_registered, error, expected) in [
        (false, "name is taken", Registered::Refused("name is taken".to_owned())),
        (true, "", Registered::Yes),
    ] {
        let status =
            registration::RegistrationStatus { plugin_registered, error: error.to_owned() };
        kubelet.notify_registration_status(status).await.unwrap();
        assert_eq!(*registered.borrow_and_update(), expected);
    }
    // Nothing else is served there.
    let client = Client::connect(&endpoint).unwrap();
    let other = client.identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert_eq!(other.code(), Code::Unimplemented);
    assert!(rig.driver.shutdown(LONG).await.is_empty());
    assert!(!socket.exists(), "kubelet forgets a driver whose socket goes");
}

/// Whoever empties the folder, or kubelet itself when it starts: a driver whose socket is gone would never
/// be known again.
#[tokio::test]
async fn a_registration_socket_that_vanished_comes_back_and_kubelet_registers_anew() {
    let rig = Rig::ready(Memory::default()).await;
    let registry = rig.folder().join("plugins_registry");
    let host: Endpoint = "/var/lib/kubelet/plugins/memory.test/csi.sock".parse().unwrap();
    let mut registered = rig.driver.register(&registry, &host).await.unwrap();
    let socket = registry.join("memory.test-reg.sock");
    for emptied in [false, true] {
        if emptied {
            std::fs::remove_dir_all(&registry).unwrap();
            std::fs::create_dir(&registry).unwrap();
        } else {
            std::fs::remove_file(&socket).unwrap();
        }
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(tokio::time::Instant::now() < until, "emptied: {emptied}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let endpoint: Endpoint = socket.to_str().unwrap().parse().unwrap();
        let channel = Client::connect(&endpoint).unwrap().channel();
        let mut kubelet = registration::registration_client::RegistrationClient::new(channel);
        let info = kubelet.get_info(registration::InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.name, "memory.test");
        let error = String::new();
        let status = registration::RegistrationStatus { plugin_registered: true, error };
        kubelet.notify_registration_status(status).await.unwrap();
        assert_eq!(*registered.borrow_and_update(), Registered::Yes);
    }
    assert!(rig.driver.shutdown(LONG).await.is_empty());
}

#[tokio::test]
async fn limits_are_told_as_the_record_and_the_node_have_them() {
    let rig = Rig::filled(Memory::default()).await;
    let mut admin = rig.driver.client().admin();
    let mut ask = async |id: &str| {
        let request = larder::GetLimitsRequest { volume_id: id.to_owned() };
        admin.get_limits(request).await.map(tonic::Response::into_inner)
    };
    let told = ask("default/vol").await.unwrap();
    assert_eq!(told.asked, Some(larder::Limits::default()));
    assert_eq!((told.device.as_str(), told.fault.as_str()), ("", ""));
    assert_eq!(ask("default/none").await.unwrap_err().code(), tonic::Code::NotFound);
    // Wrong keys are refused before anything is asked of the backend.
    let request = csi::ControllerModifyVolumeRequest {
        volume_id: "default/vol".to_owned(),
        mutable_parameters: [("speed".to_owned(), "9".to_owned())].into(),
        ..Default::default()
    };
    let refused = rig.driver.client().controller().controller_modify_volume(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("speed"), "{refused}");
}
