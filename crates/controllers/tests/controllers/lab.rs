//! An API server and a driver of a few lines.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, channel::mpsc::UnboundedSender};
use larder_controllers::{
    Controllers, Leases, Options, Which, attach,
    client::{Access, Kube},
    lease::{Candidate, Election},
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

pub(crate) const DRIVER: &str = "some.csi.dev";

/// Leases, and a few objects that are only read.
#[derive(Debug, Default)]
pub(crate) struct Api {
    pub(crate) leases: BTreeMap<String, Value>,
    pub(crate) version: u64,
    /// Writes of Leases: which, and when.
    pub(crate) writes: Vec<(String, Instant)>,
    /// So many requests about Leases have no answer, ever.
    pub(crate) swallow: usize,
    /// How long a write of a Lease of that name takes.
    pub(crate) slow: BTreeMap<String, Duration>,
    /// What lists have, by path.
    pub(crate) lists: BTreeMap<&'static str, Value>,
    /// Objects that are not any more what lists had of them.
    pub(crate) objects: BTreeMap<&'static str, Value>,
    /// How long a Secret takes.
    pub(crate) secret: Duration,
    /// Secrets may not be read.
    pub(crate) no_secrets: bool,
    /// The next patch comes too late: somebody else has written that.
    pub(crate) beaten: Option<Value>,
    /// Patches find nothing: the object was deleted.
    pub(crate) gone: bool,
    /// What was patched: path and patch.
    pub(crate) patches: Vec<(String, Value)>,
    /// Events: reason and message.
    pub(crate) events: Vec<(String, String)>,
    /// Watches that are open, by path.
    pub(crate) watches: BTreeMap<String, UnboundedSender<Vec<u8>>>,
}

impl Api {
    /// The object of a list that has that path.
    fn object(&mut self, path: &str) -> Option<&mut Value> {
        let (kind, name) = path.rsplit_once('/')?;
        let kind = kind.replace("/namespaces/shop", "");
        let items = self.lists.get_mut(kind.as_str())?.as_array_mut()?;
        items.iter_mut().find(|item| item["metadata"]["name"] == name)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Server(Arc<Mutex<Api>>);

impl Server {
    pub(crate) fn api(&self) -> MutexGuard<'_, Api> {
        self.0.lock().unwrap()
    }

    pub(crate) fn kube(&self) -> Kube {
        let this = self.clone();
        let router = Router::new().fallback(move |request: Request| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        let client = kube::Client::new(router, "default");
        Kube::over(client, &Access::default(), &mut Registry::default())
    }

    pub(crate) fn controllers(&self) -> Controllers {
        let drivers = [DRIVER.to_owned()];
        Controllers::over(self.kube(), drivers, "pod-a", &mut Registry::default())
    }

    pub(crate) fn holder(&self, lease: &str) -> Option<String> {
        let api = self.api();
        Some(api.leases.get(lease)?["spec"]["holderIdentity"].as_str()?.to_owned())
    }

    /// Has watches of that path hear of an object.
    pub(crate) fn tell(&self, path: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
        self.api().watches[path].unbounded_send(line.into_bytes()).unwrap();
    }

    /// The reasons of all Events.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.api().events.iter().map(|(reason, _)| reason.clone()).collect()
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
            let (wait, refused) = {
                let api = self.api();
                (api.secret, api.no_secrets)
            };
            tokio::time::sleep(wait).await;
            if refused {
                return status(StatusCode::FORBIDDEN, "Forbidden");
            }
            return ok(&json!({"metadata": {"name": "key"}, "data": {}}));
        }
        if uri.query().is_some_and(|q| q.contains("watch=true")) {
            let (sender, told) = futures::channel::mpsc::unbounded();
            self.api().watches.insert(path.to_owned(), sender);
            return Body::from_stream(told.map(Ok::<_, Infallible>)).into_response();
        }
        // What happens again is counted in the Event that is there.
        if method == Method::PATCH && path.contains("/events/") {
            return ok(&body);
        }
        if method == Method::POST && path.ends_with("/events") {
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            self.api().events.push((text("reason"), text("message")));
            return ok(&body);
        }
        if path.ends_with("/pods") {
            return status(StatusCode::FORBIDDEN, "Forbidden");
        }
        let (items, object) = {
            let mut api = self.api();
            let object = api.objects.get(path).cloned();
            let object = object.or_else(|| api.object(path).cloned());
            (api.lists.get(path).cloned(), object)
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
        let (gone, beaten) = (api.gone, api.beaten.take());
        let Some(object) = api.object(path).filter(|_| !gone) else {
            return status(StatusCode::NOT_FOUND, "NotFound");
        };
        merge(object, beaten.as_ref().unwrap_or(patch));
        object["metadata"]["resourceVersion"] = version.into();
        if beaten.is_some() {
            return status(StatusCode::CONFLICT, "Conflict");
        }
        let answer = ok(object);
        api.patches.push((path.to_owned(), patch.clone()));
        answer
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
pub(crate) struct Plugin(Arc<Mutex<PluginState>>);

#[derive(Debug, Default)]
pub(crate) struct PluginState {
    pub(crate) down: bool,
    /// Types of its controller's capabilities.
    pub(crate) can: Vec<u8>,
    /// What its node answers: a code, or 0 and nothing.
    pub(crate) node: u8,
    /// What it answers to each ControllerModifyVolume, codes, in turn; then OK.
    pub(crate) modify: Vec<u8>,
    pub(crate) called: Vec<String>,
}

impl Plugin {
    pub(crate) fn that_can(can: &[u8]) -> Self {
        let this = Self::default();
        this.state().can = can.to_vec();
        this.state().node = 12;
        this
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, PluginState> {
        self.0.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
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
            "ControllerModifyVolume" if !state.modify.is_empty() => Err(state.modify.remove(0)),
            // On node1, by the key k.
            "NodeGetInfo" => Ok(b"\x0a\x01n\x1a\x0d\x0a\x0b\x0a\x01k\x12\x06node-1".to_vec()),
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

    pub(crate) fn calls(&self, name: &str) -> usize {
        self.state().called.iter().filter(|path| path.ends_with(name)).count()
    }
}

pub(crate) fn options(which: Which) -> Options {
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

pub(crate) fn candidate(server: &Server) -> Candidate {
    let names = vec!["first".to_owned(), "second".to_owned()];
    Candidate::new(server.kube(), Election::new(names, "ns", "pod-a"))
}
