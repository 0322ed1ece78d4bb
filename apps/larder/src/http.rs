//! `/metrics`, `/healthz`, `/readyz`.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use larder_model::{Fault, Result};
use prometheus_client::registry::Registry;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// What the pages show.
pub(crate) struct Pages {
    /// All metrics.
    pub(crate) registry: Registry,
    /// Err: why the process is not ready (or, once stopping, that it stops).
    pub(crate) ready: Box<dyn Fn() -> std::result::Result<(), String> + Send + Sync>,
    /// Whether the controllers of this process lead only while they hold their Leases.
    pub(crate) leases: Option<larder_controllers::lease::Health>,
    /// Where the metrics are.
    pub(crate) metrics: String,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pages")
    }
}

fn router(pages: Arc<Pages>) -> Router {
    Router::new()
        .route(&pages.metrics, get(metrics))
        // Alive is whoever answers; a process that cannot do its work yet is not ready, but killing
        // it would not help.
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/leader-election", get(leads))
        .route("/readyz", get(readyz))
        .with_state(pages)
}

/// Binds and serves until `stop`. Returns the bound address (port 0 chooses one).
///
/// # Errors
/// `Precondition` where the address is taken.
pub(crate) async fn serve(
    address: SocketAddr,
    pages: Pages,
    stop: CancellationToken,
) -> Result<(SocketAddr, impl Future<Output = ()>)> {
    let mut listener = tokio::net::TcpListener::bind(address).await;
    if listener.is_err() && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        // `[::]` is every address, of both versions; a kernel without version 6 has only the others.
        let every = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        listener = tokio::net::TcpListener::bind(every).await;
    }
    let listener = listener.map_err(|e| {
        Fault::precondition(format!("serve http on {address}"))
            .because(e)
            .hint("choose another --http")
    })?;
    let bound = listener.local_addr().map_err(|e| Fault::io("read the http address", e))?;
    let app = router(Arc::new(pages));
    let serving = async move {
        let stopped = async move { stop.cancelled().await };
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
            tracing::error!(%error, "http ended");
        }
    };
    Ok((bound, serving))
}

async fn metrics(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn leads(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    match pages.leases.as_ref().map_or(Ok(()), larder_controllers::lease::Health::check) {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}

async fn readyz(State(pages): State<Arc<Pages>>) -> impl IntoResponse {
    match (pages.ready)() {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}
