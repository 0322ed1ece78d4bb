//! Requests to the API server.
//!
//! ```text
//! get, list, watch, create, patch, delete ─▶ turn (rate, by priority) ─▶ slot (so many at a time)
//!      ─▶ send ─▶ 429: waits as long as the server says, and again ─▶ parsed, or an ApiError
//! ```
//! Only what a body is parsed into is kept, and a body is never logged: it may be a Secret.

mod error;
mod limit;
mod watch;

pub use error::{ApiError, Asked};
pub use limit::Priority;
pub use watch::Event;

use crate::api::{Key, List, Object, Place, Pod};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::{
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use larder_model::{Fault, Result};
use limit::Limiter;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// How long an answer may take; watches excepted.
const LONGEST: Duration = Duration::from_secs(30);
/// How often a request is repeated that the server has no time for.
const BUSY: u32 = 5;
/// How long it waits at most each time.
const PAUSE: Duration = Duration::from_secs(10);
/// Each has a connection of its own.
const AT_A_TIME: usize = 32;
/// Objects on a page of a list: bounds the memory of reading a large cluster.
const PAGE: usize = 500;

/// How the API server is reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// A kubeconfig; None: `$KUBECONFIG`, or the pod's ServiceAccount.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server instead of the one that is configured.
    pub server: Option<String>,
    /// Requests per second.
    pub per_second: f64,
    /// How many at once after a pause.
    pub burst: u32,
    /// `larder/VERSION`
    pub agent: String,
}

impl Default for Access {
    /// 200 requests a second, 400 after a pause: nothing is asked that need not be, and API priority
    /// and fairness protects the server.
    fn default() -> Self {
        Self {
            kubeconfig: None,
            server: None,
            per_second: 200.0,
            burst: 400,
            agent: concat!("larder/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

/// The API server. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Kube(Arc<Inner>);

struct Inner {
    client: kube::Client,
    limiter: Limiter,
    slots: Semaphore,
    requests: Family<RequestLabels, Counter>,
}

impl std::fmt::Debug for Kube {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kube")
    }
}

/// What a patch is.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// Maps are merged, lists replaced, null removes.
    Merge(serde_json::Value),
    /// Operations in order; all or none.
    Json(serde_json::Value),
}

/// One request, before it is sent.
#[derive(Debug, Clone)]
struct Ask {
    asked: Asked,
    method: Method,
    uri: String,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Kube {
    /// Prepares the connection. Nothing is asked yet.
    ///
    /// # Errors
    /// Where there is neither a kubeconfig nor a ServiceAccount, or it cannot be used.
    pub async fn new(access: &Access, registry: &mut Registry) -> Result<Self> {
        let file = std::env::var_os("KUBECONFIG").map(PathBuf::from).filter(|p| p != "");
        let file = file.or_else(|| access.kubeconfig.clone());
        let mut config = match file {
            Some(file) => {
                let what = format!("read kubeconfig {}", file.display());
                let read = Kubeconfig::read_from(&file).map_err(|e| wrong(what.clone(), &e))?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(read, &options)
                    .await
                    .map_err(|e| wrong(what, &e))?
            }
            None => kube::Config::incluster()
                .map_err(|e| wrong("find the API server of this pod".to_owned(), &e))?,
        };
        if let Some(server) = &access.server {
            config.cluster_url =
                server.parse().map_err(|e| wrong(format!("use API server {server:?}"), &e))?;
        }
        Self::with(config, access, registry)
    }

    /// As a person's kubectl: with the kubeconfig that is named, else `$KUBECONFIG` (also several
    /// files), else `~/.kube/config`, else the pod's ServiceAccount.
    ///
    /// # Errors
    /// As [`Kube::new`].
    pub async fn for_person(file: Option<&Path>, context: Option<&str>) -> Result<Self> {
        let read = match file {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
        let config = match read {
            Ok(read) => kube::Config::from_custom_kubeconfig(read, &options).await,
            Err(error) if file.is_none() && context.is_none() => {
                kube::Config::incluster().map_err(|_| error)
            }
            Err(error) => Err(error),
        };
        let config = config.map_err(|e| wrong("read the kubeconfig".to_owned(), &e))?;
        Self::with(config, &Access::default(), &mut Registry::default())
    }

    fn with(mut config: kube::Config, access: &Access, registry: &mut Registry) -> Result<Self> {
        let agent = access
            .agent
            .parse()
            .map_err(|e: header::InvalidHeaderValue| wrong("set the user agent".to_owned(), &e))?;
        config.headers.push((header::USER_AGENT, agent));
        // Ours: by priority, and watches end when the server says so.
        config.default_retry = false;
        config.read_timeout = None;
        let client = kube::Client::try_from(config)
            .map_err(|e| wrong("prepare the connection to the API server".to_owned(), &e))?;
        Ok(Self::over(client, access, registry))
    }

    /// Over a client of its own making: tests.
    pub fn over(client: kube::Client, access: &Access, registry: &mut Registry) -> Self {
        let requests = Family::default();
        registry.register(
            "rest_client_requests",
            "Requests to the API server by verb, resource and HTTP code (0: no answer)",
            requests.clone(),
        );
        Self(Arc::new(Inner {
            client,
            limiter: Limiter::new(access.per_second, access.burst),
            slots: Semaphore::new(AT_A_TIME),
            requests,
        }))
    }

    /// An object; None where there is none.
    ///
    /// # Errors
    /// Everything but "not found".
    pub async fn get<T: Object>(
        &self,
        key: &Key,
        priority: Priority,
    ) -> Result<Option<T>, ApiError> {
        let ask = Ask::new::<T>("get", Method::GET, key, "");
        match self.ask(ask, priority).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects of a kind, page by page, and the state they are of. `query` as in
    /// `labelSelector=…`, encoded.
    ///
    /// # Errors
    /// Of the first page that could not be had.
    pub async fn list<T: Object>(
        &self,
        namespace: &str,
        query: &str,
        page: impl FnMut(Vec<T>),
    ) -> Result<String, ApiError> {
        self.pages(T::PLACE, namespace, query, page).await
    }

    async fn pages<T: DeserializeOwned>(
        &self,
        place: Place,
        namespace: &str,
        query: &str,
        mut page: impl FnMut(Vec<T>),
    ) -> Result<String, ApiError> {
        let key = Key::new(namespace, "");
        let mut next = String::new();
        loop {
            let mut ask = Ask::of(place, "list", Method::GET, &key, "");
            ask.uri.push_str(&format!("?limit={PAGE}&{query}"));
            if !next.is_empty() {
                ask.uri.push_str("&continue=");
                ask.uri.push_str(&encoded(&next));
            }
            let list: List<T> = self.ask(ask, Priority::Fresh).await?;
            page(list.items);
            if list.metadata.next.is_empty() {
                return Ok(list.metadata.resource_version);
            }
            next = list.metadata.next;
        }
    }

    /// An object as the API server tells it, of any kind; None where there is none. For looking,
    /// not for controllers.
    ///
    /// # Errors
    /// Everything but "not found".
    pub async fn look(&self, place: Place, key: &Key) -> Result<Option<Value>, ApiError> {
        let ask = Ask::of(place, "get", Method::GET, key, "");
        match self.ask::<Value>(ask, Priority::Fresh).await {
            Ok(object) => Ok(Some(plain(object))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Kube::look`], all objects of a kind. `query` as in [`Kube::list`].
    ///
    /// # Errors
    /// Of the first page that could not be had.
    pub async fn look_all(
        &self,
        place: Place,
        namespace: &str,
        query: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let mut found = Vec::new();
        let page = |items: Vec<Value>| found.extend(items.into_iter().map(plain));
        self.pages(place, namespace, query, page).await?;
        Ok(found)
    }

    /// A page that is no object: a log, what a pod serves.
    ///
    /// # Errors
    /// As [`Kube::look`]; "not found" included.
    pub async fn page(&self, path: &str) -> Result<String, ApiError> {
        let mut ask = Ask::of(Pod::PLACE, "get", Method::GET, &Key::default(), "");
        path.clone_into(&mut ask.uri);
        let text = self.once(&ask, Priority::Fresh).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The namespace of the kubeconfig's context.
    pub fn namespace(&self) -> &str {
        self.0.client.default_namespace()
    }

    /// Makes an object; `object` is the whole of it.
    ///
    /// # Errors
    /// Whatever the API server says.
    pub async fn create<T: Object>(
        &self,
        namespace: &str,
        object: &impl Serialize,
        priority: Priority,
    ) -> Result<T, ApiError> {
        let key = Key::new(namespace, "");
        let mut ask = Ask::new::<T>("create", Method::POST, &key, "");
        ask.body = body(object, &ask.asked)?;
        self.ask(ask, priority).await
    }

    /// Changes an object, or a subresource of it (`"status"`; `""`: the object).
    ///
    /// # Errors
    /// Whatever the API server says.
    pub async fn patch<T: Object>(
        &self,
        key: &Key,
        subresource: &'static str,
        patch: &Patch,
        priority: Priority,
    ) -> Result<T, ApiError> {
        let mut ask = Ask::new::<T>("patch", Method::PATCH, key, subresource);
        let (content_type, value) = match patch {
            Patch::Merge(value) => ("application/merge-patch+json", value),
            Patch::Json(value) => ("application/json-patch+json", value),
        };
        ask.content_type = content_type;
        ask.body = body(value, &ask.asked)?;
        self.ask(ask, priority).await
    }

    /// Deletes the object with that UID. One that is gone already is deleted.
    ///
    /// # Errors
    /// Whatever the API server says; a conflict where the name belongs to another object by now.
    pub async fn delete<T: Object>(
        &self,
        key: &Key,
        uid: &str,
        priority: Priority,
    ) -> Result<(), ApiError> {
        let mut ask = Ask::new::<T>("delete", Method::DELETE, key, "");
        let only = serde_json::json!({"preconditions": {"uid": uid}});
        ask.body = body(&only, &ask.asked)?;
        match self.ask::<serde::de::IgnoredAny>(ask, priority).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn ask<R: DeserializeOwned>(&self, ask: Ask, priority: Priority) -> Result<R, ApiError> {
        let mut repeated = 0;
        loop {
            let error = match self.once(&ask, priority).await {
                Ok(answer) => return parse(&answer, &ask.asked),
                Err(error) => error,
            };
            repeated += 1;
            if error.code != 429 || repeated > BUSY {
                return Err(error);
            }
            tokio::time::sleep(error.retry_after.unwrap_or(Duration::from_secs(1)).min(PAUSE))
                .await;
        }
    }

    async fn once(&self, ask: &Ask, priority: Priority) -> Result<Vec<u8>, ApiError> {
        self.0.limiter.turn(priority).await;
        // Leases do not queue behind slow answers.
        let _slot = match priority {
            Priority::Urgent => None,
            _ => self.0.slots.acquire().await.ok(),
        };
        let answer = async {
            let response = self.send(ask).await?;
            let body = response.into_body().collect().await;
            body.map(|b| b.to_bytes().to_vec()).map_err(|e| no_answer(&ask.asked, &e))
        };
        let answer = tokio::time::timeout(LONGEST, answer).await.unwrap_or_else(|_| {
            let why = format!("the API server has not answered in {LONGEST:?}");
            Err(no_answer(&ask.asked, &std::io::Error::other(why)))
        });
        self.count(&ask.asked, answer.as_ref().map_or_else(|e| e.code, |_| 200));
        answer
    }

    fn count(&self, asked: &Asked, code: u16) {
        let labels = RequestLabels { verb: asked.verb, resource: asked.place.plural, code };
        self.0.requests.get_or_create(&labels).inc();
    }

    /// Sends it and looks at the status; the body of a success is still to be read.
    async fn send(&self, ask: &Ask) -> Result<http::Response<Body>, ApiError> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.uri)
            .header(header::ACCEPT, "application/json");
        if !ask.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, ask.content_type);
        }
        let request = request
            .body(Body::from(ask.body.clone()))
            .map_err(|error| no_answer(&ask.asked, &error))?;
        let response =
            self.0.client.send(request).await.map_err(|error| no_answer(&ask.asked, &error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let status: StatusBody = serde_json::from_slice(&body).unwrap_or_default();
        let message = match status.message.is_empty() {
            false => status.message,
            true => format!("the API server answers {code}"),
        };
        let (reason, asked) = (status.reason, Box::new(ask.asked.clone()));
        Err(ApiError { code, reason, message, retry_after: after.map(Duration::from_secs), asked })
    }
}

fn wrong(what: String, error: &dyn std::error::Error) -> Fault {
    Fault::invalid(format!("{what}: {error}"))
        .hint("run in a pod with a ServiceAccount, set KUBECONFIG, or name a kubeconfig")
}

/// The body of a failure.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StatusBody {
    code: u16,
    reason: String,
    message: String,
}

/// Without what only the API server's own bookkeeping needs: often half of an object.
fn plain(mut object: Value) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    object
}

impl Ask {
    fn new<T: Object>(
        verb: &'static str,
        method: Method,
        key: &Key,
        subresource: &'static str,
    ) -> Self {
        Self::of(T::PLACE, verb, method, key, subresource)
    }

    fn of(
        place: Place,
        verb: &'static str,
        method: Method,
        key: &Key,
        subresource: &'static str,
    ) -> Self {
        let mut uri = place.path(&key.namespace);
        for part in [key.name.as_str(), subresource] {
            if !part.is_empty() {
                uri.push('/');
                uri.push_str(&encoded(part));
            }
        }
        let asked = Asked { verb, place, subresource, key: key.clone() };
        Self { asked, method, uri, content_type: "application/json", body: Vec::new() }
    }
}

/// For a path or a query.
pub(crate) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn body(value: &impl Serialize, asked: &Asked) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|error| no_answer(asked, &error))
}

fn parse<R: DeserializeOwned>(answer: &[u8], asked: &Asked) -> Result<R, ApiError> {
    // serde's message names the place, not the text.
    serde_json::from_slice(answer).map_err(|error| no_answer(asked, &error))
}

fn no_answer(asked: &Asked, error: &dyn std::error::Error) -> ApiError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    ApiError {
        code: 0,
        reason: String::new(),
        message,
        retry_after: None,
        asked: Box::new(asked.clone()),
    }
}
