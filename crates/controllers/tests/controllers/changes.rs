//! What others do while a controller is at work: they change their mind, are faster, or take away what
//! it works on.

use crate::lab::{DRIVER, Plugin, Server, options};
use larder_controllers::{Options, Which};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const CLAIMS: &str = "/api/v1/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";
const ATTRIBUTES_CLASSES: &str = "/apis/storage.k8s.io/v1/volumeattributesclasses";
const MODIFY: u8 = 14;

/// A bound claim of a volume of the driver, with the claim's spec and status merged in.
fn bound(server: &Server, spec: &Value, status: &Value) {
    let mut claim = json!({
        "metadata": {"name": "data", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
        "spec": {
            "volumeName": "pv", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    });
    for (part, more) in [("spec", spec), ("status", status)] {
        for (key, value) in more.as_object().unwrap() {
            claim[part][key] = value.clone();
        }
    }
    let volume = json!({
        "metadata": {"name": "pv", "uid": "1", "resourceVersion": "2"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "csi": {
                "driver": DRIVER, "volumeHandle": "v",
                "controllerExpandSecretRef": {"name": "key", "namespace": "shop"},
            },
            "claimRef": {"namespace": "shop", "name": "data", "uid": "u"},
        },
        "status": {"phase": "Bound"},
    });
    let mut api = server.api();
    api.lists.insert(CLAIMS, json!([claim]));
    api.lists.insert(VOLUMES, json!([volume]));
    let classes = ["a", "b"].map(|name| attributes_class(name, "3"));
    api.lists.insert(ATTRIBUTES_CLASSES, json!(classes));
}

fn attributes_class(name: &str, version: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("{name}-{version}"), "resourceVersion": version},
        "driverName": DRIVER, "parameters": {"speed": version},
    })
}

/// Serves for two minutes; after 30 s `then` happens.
async fn served(server: &Server, plugin: &Plugin, options: Options, then: impl FnOnce()) {
    let (controllers, stop) = (server.controllers(), CancellationToken::new());
    let serving = Box::pin(controllers.serve(plugin.client(), options, stop.clone()));
    let watching = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        then();
        tokio::time::sleep(Duration::from_secs(90)).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(serving, watching);
    served.unwrap();
}

/// What was written to that place of the claim, in order.
fn written(server: &Server, pointer: &str) -> Vec<Value> {
    let api = server.api();
    let of_claim = api.patches.iter().filter(|(path, _)| path.ends_with("/data"));
    of_claim.filter_map(|(_, patch)| patch.pointer(pointer).cloned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_size_that_is_not_asked_for_any_more_is_never_promised() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[9]));
    bound(&server, &json!({"resources": {"requests": {"storage": "10Gi"}}}), &json!({}));
    // While the promise is on its way somebody asks for less.
    server.api().beaten = Some(json!({"spec": {"resources": {"requests": {"storage": "8Gi"}}}}));
    served(&server, &plugin, options(Which::Resizer), || {}).await;
    let promised = written(&server, "/status/allocatedResources/storage");
    assert!(!promised.is_empty() && promised.iter().all(|size| size == "8Gi"), "{promised:?}");
    assert!(plugin.calls("ControllerExpandVolume") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_class_that_may_be_half_in_force_goes_first_although_its_secret_is_away_for_a_while() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[MODIFY]));
    let under_way = json!({"targetVolumeAttributesClassName": "a", "status": "InProgress"});
    let status = json!({"modifyVolumeStatus": under_way});
    bound(&server, &json!({"volumeAttributesClassName": "b"}), &status);
    server.api().no_secrets = true;
    let then = || {
        assert_eq!(plugin.calls("ControllerModifyVolume"), 0);
        assert!(server.reasons().contains(&"VolumeModifyFailed".to_owned()));
        server.api().no_secrets = false;
    };
    served(&server, &plugin, options(Which::Resizer), then).await;
    let done = written(&server, "/status/currentVolumeAttributesClassName");
    assert_eq!(done, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_class_that_is_made_anew_is_tried_at_once_after_it_was_infeasible() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[MODIFY]));
    bound(&server, &json!({"volumeAttributesClassName": "a"}), &json!({}));
    // UNAVAILABLE, and then INVALID_ARGUMENT: five minutes, were it not for the class.
    plugin.state().modify = vec![14, 3];
    let then = || {
        assert_eq!(plugin.calls("ControllerModifyVolume"), 2);
        server.tell(ATTRIBUTES_CLASSES, &attributes_class("a", "200"));
    };
    served(&server, &plugin, options(Which::Resizer), then).await;
    assert_eq!(plugin.calls("ControllerModifyVolume"), 3);
    assert_eq!(written(&server, "/status/currentVolumeAttributesClassName"), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_of_a_claim_that_is_gone() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[MODIFY]));
    bound(&server, &json!({"volumeAttributesClassName": "a"}), &json!({}));
    server.api().gone = true;
    served(&server, &plugin, options(Which::Resizer), || {}).await;
    assert_eq!(server.reasons(), Vec::<String>::new());
    assert_eq!(plugin.calls("ControllerModifyVolume"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_no_node_has_room_for_is_told_why_once() {
    let (server, plugin) = (Server::default(), Plugin::that_can(&[1, 4]));
    plugin.state().node = 0;
    {
        let mut api = server.api();
        api.lists.insert(VOLUMES, json!([]));
        api.lists.insert(
            CLASSES,
            json!([{
                "metadata": {"name": "local", "uid": "c", "resourceVersion": "3"},
                "provisioner": DRIVER, "volumeBindingMode": "Immediate",
            }]),
        );
        let annotations = json!({"volume.kubernetes.io/storage-provisioner": DRIVER});
        api.lists.insert(
            CLAIMS,
            json!([{
                "metadata": {
                    "name": "data", "namespace": "shop", "uid": "u", "resourceVersion": "1",
                    "annotations": annotations,
                },
                "spec": {
                    "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
                "status": {"phase": "Pending"},
            }]),
        );
    }
    let node = Some("node-1".to_owned());
    let options = Options { leases: None, local_node: node, ..options(Which::Provisioner) };
    served(&server, &plugin, options, || {}).await;
    let events = server.api().events.clone();
    let [(reason, message)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(reason, "ProvisioningFailed");
    for word in ["no node takes this claim", "node node-1 has 0 bytes", "1073741824"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(plugin.calls("GetCapacity") > 3, "it goes on asking");
    assert_eq!(plugin.calls("CreateVolume"), 0);
}
