//! Leading, and what happens to work when that ends.

use crate::lab::{DRIVER, Plugin, Server, candidate, options};
use larder_controllers::{Which, lease::Standing};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn requests_that_are_swallowed_cost_no_lease_while_there_is_time_for_another() {
    for swallowed in 1..=2 {
        let server = Server::default();
        let mut candidate = candidate(&server);
        candidate.win().await;
        server.api().swallow = swallowed;
        let stop = CancellationToken::new();
        let kept = candidate.keep(&stop);
        assert!(tokio::time::timeout(Duration::from_secs(60), kept).await.is_err(), "{swallowed}");
        assert_eq!(server.api().swallow, 0);
        assert_eq!(*candidate.watch().borrow(), Standing::Leads);
    }
}

#[tokio::test(start_paused = true)]
async fn leadership_ends_a_deadline_after_the_first_lease_was_renewed_not_the_last() {
    let server = Server::default();
    let mut candidate = candidate(&server);
    candidate.win().await;
    server.api().slow.insert("second".to_owned(), Duration::from_secs(3));
    let stop = CancellationToken::new();
    let over = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        server.api().swallow = usize::MAX;
    };
    let kept = async {
        candidate.keep(&stop).await;
        Instant::now()
    };
    let (ended, ()) = tokio::join!(kept, over);
    let writes = server.api().writes.clone();
    let last = writes.iter().rfind(|(name, _)| name == "second").unwrap().1;
    let first = writes.iter().rfind(|(name, at)| name == "first" && *at <= last);
    let passed = ended - first.unwrap().1;
    assert!(passed <= Duration::from_millis(10_100), "{passed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_has_lost_its_lease_asks_nothing_of_the_driver_any_more() {
    let server = Server::default();
    {
        let mut api = server.api();
        let finalizer = format!("external-attacher/{}", DRIVER.replace('.', "-"));
        api.lists.insert("/api/v1/persistentvolumes", json!([{
            "metadata": {"name": "pv", "uid": "1", "resourceVersion": "1", "finalizers": [finalizer]},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "csi": {
                    "driver": DRIVER, "volumeHandle": "v",
                    "controllerPublishSecretRef": {"name": "key", "namespace": "ns"},
                },
            },
        }]));
        api.lists.insert(
            "/apis/storage.k8s.io/v1/volumeattachments",
            json!([{
                "metadata": {"name": "va", "uid": "2", "resourceVersion": "2"},
                "spec": {
                    "attacher": DRIVER, "nodeName": "n", "source": {"persistentVolumeName": "pv"},
                },
            }]),
        );
        api.lists.insert(
            "/apis/storage.k8s.io/v1/csinodes",
            json!([{
                "metadata": {"name": "n", "uid": "3", "resourceVersion": "3"},
                "spec": {"drivers": [{"name": DRIVER, "nodeID": "id"}]},
            }]),
        );
        // The worker waits in this request when the Lease is lost.
        api.secret = Duration::from_secs(25);
    }
    for cut in [false, true] {
        // PUBLISH_UNPUBLISH_VOLUME
        let plugin = Plugin::that_can(&[2]);
        let (controllers, stop) = (server.controllers(), CancellationToken::new());
        let serving = controllers.serve(plugin.client(), options(Which::Attacher), stop.clone());
        let watching = async {
            while plugin.calls("Probe") < 2 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if cut {
                server.api().swallow = usize::MAX;
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            let calls = plugin.calls("ControllerPublishVolume");
            server.api().swallow = 0;
            stop.cancel();
            calls
        };
        let (served, calls) = tokio::join!(serving, watching);
        served.unwrap();
        assert_eq!(calls > 0, !cut, "it is attached by who leads, and by nobody else: {calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_with_nothing_to_do_says_so_and_takes_no_lease() {
    for (node, wanted) in [(12, "it can do neither"), (14, "whether its nodes grow volumes")] {
        let (server, plugin) = (Server::default(), Plugin::that_can(&[1]));
        plugin.state().node = node;
        let (controllers, stop) = (server.controllers(), CancellationToken::new());
        let served = controllers.serve(plugin.client(), options(Which::Resizer), stop);
        let served = tokio::time::timeout(Duration::from_secs(600), served).await;
        let fault = served.expect("it ends").unwrap_err().to_string();
        assert!(fault.contains(wanted), "{fault}");
        assert!(server.api().writes.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_gone_costs_the_leases_and_is_asked_anew_when_it_is_back() {
    // EXPAND_VOLUME
    let (server, plugin) = (Server::default(), Plugin::that_can(&[9]));
    for kind in ["/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"] {
        server.api().lists.insert(kind, json!([]));
    }
    let (controllers, stop) = (server.controllers(), CancellationToken::new());
    let lease = "external-resizer-some-csi-dev";
    let serving = controllers.serve(plugin.client(), options(Which::Resizer), stop.clone());
    let watching = async {
        let after = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        after(5).await;
        assert_eq!(server.holder(lease).as_deref(), Some("pod-a"));
        // Shorter than the update of a container: nothing happens.
        plugin.state().down = true;
        after(6).await;
        plugin.state().down = false;
        after(60).await;
        assert_eq!(server.holder(lease).as_deref(), Some("pod-a"));
        assert_eq!(plugin.calls("GetPluginInfo"), 1);
        plugin.state().down = true;
        after(30).await;
        assert_eq!(server.holder(lease).as_deref(), Some(""));
        assert!(controllers.ready().unwrap_err().contains(DRIVER));
        plugin.state().down = false;
        after(30).await;
        assert_eq!(server.holder(lease).as_deref(), Some("pod-a"));
        assert_eq!(controllers.ready(), Ok(()));
        assert_eq!(plugin.calls("ControllerGetCapabilities"), 2);
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, watching);
    served.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_reads_a_released_volume_anew_before_it_deletes_its_data() {
    for (policy, deleted) in [("Retain", false), ("Delete", true)] {
        let (server, plugin) = (Server::default(), Plugin::that_can(&[1]));
        let volume = |policy: &str, version: &str| {
            json!({
                "metadata": {
                    "name": "pv", "uid": "1", "resourceVersion": version,
                    "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER},
                    "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"],
                },
                "spec": {
                    "csi": {"driver": DRIVER, "volumeHandle": "v"},
                    "persistentVolumeReclaimPolicy": policy,
                },
                "status": {"phase": "Released"},
            })
        };
        {
            let mut api = server.api();
            api.lists.insert("/api/v1/persistentvolumeclaims", json!([]));
            api.lists.insert("/apis/storage.k8s.io/v1/storageclasses", json!([]));
            // What the watch of a follower, dead for minutes, has left in its cache, and what is.
            api.lists.insert("/api/v1/persistentvolumes", json!([volume("Delete", "5")]));
            api.objects.insert("/api/v1/persistentvolumes/pv", volume(policy, "9"));
        }
        let (controllers, stop) = (server.controllers(), CancellationToken::new());
        let serving = controllers.serve(plugin.client(), options(Which::Provisioner), stop.clone());
        let watching = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.cancel();
        };
        let (served, ()) = tokio::join!(serving, watching);
        served.unwrap();
        assert_eq!(plugin.calls("DeleteVolume") > 0, deleted, "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_once_could_not_grow_is_asked_for_again_where_pods_may_not_be_listed() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[9]));
    {
        let mut api = server.api();
        api.lists.insert("/api/v1/persistentvolumeclaims", json!([{
            "metadata": {"name": "data", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
            "spec": {
                "volumeName": "pv", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "2Gi"}},
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }]));
        api.lists.insert(
            "/api/v1/persistentvolumes",
            json!([{
                "metadata": {"name": "pv", "uid": "1", "resourceVersion": "2"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                    "csi": {"driver": DRIVER, "volumeHandle": "v"},
                    "claimRef": {"namespace": "shop", "name": "data", "uid": "u"},
                },
                "status": {"phase": "Bound"},
            }]),
        );
    }
    let (controllers, stop) = (server.controllers(), CancellationToken::new());
    let serving = controllers.serve(plugin.client(), options(Which::Resizer), stop.clone());
    let watching = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, watching);
    served.unwrap();
    let calls = plugin.calls("ControllerExpandVolume");
    assert!(calls > 2, "FAILED_PRECONDITION may be over by now: {calls}");
}
