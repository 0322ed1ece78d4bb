//! Leading, and what happens to work when that ends: with an API server and a driver of a few lines,
//! and a clock that runs when everybody waits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use larder_controllers::{
    Controllers, Leases, Options, Which, attach,
    client::{Access, Kube},
    lease::{Candidate, Election, Standing},
    modify, provision, resize,
};
use larder_csi::Client;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const DRIVER: &str = "some.csi.dev";

/// Leases, and a few objects that are only read.
#[derive(Debug, Default)]
struct Api {
    leases: BTreeMap<String, Value>,
    version: u64,
    /// Writes of Leases: which, and when.
    writes: Vec<(String, Instant)>,
    /// So many requests about Leases have no answer, ever.
    swallow: usize,
    /// How long a write of a Lease of that name takes.
    slow: BTreeMap<String, Duration>,
    /// What lists have, by path.
    lists: BTreeMap<&'static str, Value>,
    /// Objects that are not any more what lists had of them.
    objects: BTreeMap<&'static str, Value>,
    /// How long a Secret takes.
    secret: Duration,
}

#[derive(Debug, Clone, Default)]
struct Server(Arc<Mutex<Api>>);

impl Server {
    fn api(&self) -> MutexGuard<'_, Api> {
        self.0.lock().unwrap()
    }

    fn kube(&self) -> Kube {
        let this = self.clone();
        let router = Router::new().fallback(move |request: Request| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        let client = kube::Client::new(router, "default");
        Kube::over(client, &Access::default(), &mut Registry::default())
    }

    fn controllers(&self) -> Controllers {
        let drivers = [DRIVER.to_owned()];
        Controllers::over(self.kube(), drivers, "pod-a", &mut Registry::default())
    }

    fn holder(&self, lease: &str) -> Option<String> {
        let api = self.api();
        Some(api.leases.get(lease)?["spec"]["holderIdentity"].as_str()?.to_owned())
    }

    async fn answer(&self, request: Request) -> Response {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = uri.path();
        if path.contains("/leases") {
            return self.lease(&method, path, &body).await;
        }
        if path.contains("/secrets/") {
            let wait = self.api().secret;
            tokio::time::sleep(wait).await;
            return ok(&json!({"metadata": {"name": "key"}, "data": {}}));
        }
        if uri.query().is_some_and(|q| q.contains("watch=true")) {
            let silent = futures::stream::pending::<Result<Vec<u8>, Infallible>>();
            return Body::from_stream(silent).into_response();
        }
        if path.ends_with("/pods") {
            return status(StatusCode::FORBIDDEN, "Forbidden");
        }
        let (items, object) = {
            let api = self.api();
            (api.lists.get(path).cloned(), api.objects.get(path).cloned())
        };
        match (method, items) {
            (Method::GET, None) if object.is_some() => ok(&object.unwrap()),
            (Method::GET, Some(items)) => {
                ok(&json!({"metadata": {"resourceVersion": "9"}, "items": items}))
            }
            (Method::PATCH, _) => self.patch(path, &body),
            _ => status(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    /// What is written comes back, newer; a JSON patch changes nothing else here.
    fn patch(&self, path: &str, patch: &Value) -> Response {
        let mut api = self.api();
        api.version += 1;
        let version = (100 + api.version).to_string();
        let path = path.trim_end_matches("/status");
        let (kind, name) = path.rsplit_once('/').unwrap();
        let kind = kind.replace("/namespaces/shop", "");
        let of_name = |items: &&mut Value| items["metadata"]["name"] == name;
        let items = api.lists.get_mut(kind.as_str()).and_then(Value::as_array_mut);
        let Some(object) = items.and_then(|items| items.iter_mut().find(of_name)) else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        merge(object, patch);
        object["metadata"]["resourceVersion"] = version.into();
        ok(object)
    }

    async fn lease(&self, method: &Method, path: &str, body: &Value) -> Response {
        let name = match *method {
            Method::POST => body["metadata"]["name"].as_str().unwrap().to_owned(),
            _ => path.rsplit('/').next().unwrap().to_owned(),
        };
        let (swallowed, slow) = {
            let mut api = self.api();
            let swallowed = api.swallow > 0;
            api.swallow = api.swallow.saturating_sub(1);
            (swallowed, api.slow.get(&name).copied().unwrap_or_default())
        };
        if swallowed {
            return std::future::pending().await;
        }
        if *method == Method::GET {
            let found = self.api().leases.get(&name).cloned();
            return found.map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |l| ok(&l));
        }
        let came = Instant::now();
        tokio::time::sleep(slow).await;
        let mut api = self.api();
        let known = api.leases.get(&name).map(|l| l["metadata"]["resourceVersion"].clone());
        match (method.clone(), known) {
            (Method::PATCH, Some(known)) if body["metadata"]["resourceVersion"] != known => {
                return status(StatusCode::CONFLICT, "Conflict");
            }
            (Method::POST, Some(_)) => return status(StatusCode::CONFLICT, "AlreadyExists"),
            (Method::PATCH, None) => return status(StatusCode::NOT_FOUND, "NotFound"),
            _ => {}
        }
        api.version += 1;
        let version = api.version.to_string();
        let lease = json!({
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version},
            "spec": body["spec"],
        });
        api.leases.insert(name.clone(), lease.clone());
        api.writes.push((name, came));
        ok(&lease)
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            Value::Object(_) => {
                if !into[key].is_object() {
                    into[key] = json!({});
                }
                merge(&mut into[key], value);
            }
            other => into[key] = other.clone(),
        }
    }
}

fn ok(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({"code": code.as_u16(), "reason": reason, "message": reason});
    (code, body.to_string()).into_response()
}

/// A driver: what it answers to a call, as protobuf or as a gRPC code.
#[derive(Debug, Clone, Default)]
struct Plugin(Arc<Mutex<PluginState>>);

#[derive(Debug, Default)]
struct PluginState {
    down: bool,
    /// Types of its controller's capabilities.
    can: Vec<u8>,
    /// What its node answers: a code, or 0 and nothing.
    node: u8,
    called: Vec<String>,
}

impl Plugin {
    fn that_can(can: &[u8]) -> Self {
        let this = Self::default();
        this.state().can = can.to_vec();
        this.state().node = 12;
        this
    }

    fn state(&self) -> MutexGuard<'_, PluginState> {
        self.0.lock().unwrap()
    }

    fn client(&self) -> Client {
        let this = self.clone();
        Client::in_process(tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let answer = this.answer(request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        }))
    }

    fn answer(&self, path: &str) -> http::Response<tonic::body::Body> {
        let mut state = self.state();
        state.called.push(path.to_owned());
        let one = |kind: &u8| vec![0x0a, 4, 0x0a, 2, 8, *kind];
        let message = match path.rsplit('/').next().unwrap() {
            _ if state.down => Err(14),
            "GetPluginInfo" => {
                Ok([&[0x0a, u8::try_from(DRIVER.len()).unwrap()], DRIVER.as_bytes()].concat())
            }
            "GetPluginCapabilities" => Ok(one(&1)),
            "ControllerGetCapabilities" => Ok(state.can.iter().flat_map(one).collect()),
            "ControllerExpandVolume" => Err(9),
            "NodeGetCapabilities" if state.node != 0 => Err(state.node),
            _ => Ok(Vec::new()),
        };
        let answer = http::Response::builder().header("content-type", "application/grpc");
        match message {
            Err(code) => {
                answer.header("grpc-status", code.to_string()).body(tonic::body::Body::empty())
            }
            Ok(message) => {
                let length = u32::try_from(message.len()).unwrap().to_be_bytes();
                let frame = [&[0], &length[..], &message].concat();
                let body = http_body_util::Full::new(axum::body::Bytes::from(frame));
                answer.header("grpc-status", "0").body(tonic::body::Body::new(body))
            }
        }
        .unwrap()
    }

    fn calls(&self, name: &str) -> usize {
        self.state().called.iter().filter(|path| path.ends_with(name)).count()
    }
}

fn options(which: Which) -> Options {
    Options {
        which: [which].into(),
        timeout: Duration::from_secs(10),
        leases: Some(Leases::new("ns")),
        local_node: None,
        capacity: None,
        provision: provision::Settings::default(),
        attach: attach::Settings::default(),
        resize: resize::Settings::default(),
        modify: modify::Settings::default(),
    }
}

fn candidate(server: &Server) -> Candidate {
    let names = vec!["first".to_owned(), "second".to_owned()];
    Candidate::new(server.kube(), Election::new(names, "ns", "pod-a"))
}

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
