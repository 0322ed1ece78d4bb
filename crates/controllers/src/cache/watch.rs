//! Keeps a store like the cluster: list, then watch, for ever.
//!
//! ```text
//! list (pages) ─▶ watch from there ─▶ ended by the server: watch again from the last state seen
//!   ▲                                 └ state expired (compaction, a long gap): list again
//!   └ later and later ◀─ failed
//! ```
//! Between the list and its end nothing is taken away, so that a controller never believes that
//! everything is gone because the API server was.

use super::Store;
use crate::{
    api::Object,
    client::{ApiError, Event, Kube},
};
use futures::StreamExt;
use std::{pin::pin, time::Duration};

/// What is watched of a kind.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Empty: all of them.
    pub namespace: String,
    /// `labelSelector=…`, encoded; empty: everything.
    pub query: String,
}

const FIRST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(30);

/// Keeps `store` like the cluster, for ever; `door` says what is kept, and in which form.
pub async fn reflect<T: Object>(
    kube: Kube,
    store: Store<T>,
    scope: Scope,
    door: impl Fn(T) -> Option<T> + Send + Sync,
) {
    let mut pause = FIRST;
    let mut state = String::new();
    // What was told last, of any list or watch.
    let mut newest = 0;
    loop {
        newest = newest.max(version(&state));
        let failed = match state.is_empty() {
            true => list(&kube, &store, &scope, &door, newest).await.map(|listed| {
                newest = version(&listed);
                state = listed;
            }),
            false => watch(&kube, &store, &scope, &door, &mut state, &mut pause).await,
        };
        match failed {
            Ok(()) => continue,
            Err(error) if error.is_expired() => {
                tracing::info!(kind = T::PLACE.plural, "the watch has a gap: listing again");
                state.clear();
            }
            Err(error) => tracing::warn!("failed to {error}; again in {pause:?}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST);
    }
}

async fn list<T: Object>(
    kube: &Kube,
    store: &Store<T>,
    scope: &Scope,
    door: &(impl Fn(T) -> Option<T> + Send + Sync),
    before: u64,
) -> Result<String, ApiError> {
    let mut kept = Vec::new();
    let page = |objects: Vec<T>| kept.extend(objects.into_iter().filter_map(door));
    let state = kube.list(&scope.namespace, &scope.query, page).await?;
    store.listed(kept, version(&state), before);
    Ok(state)
}

fn version(state: &str) -> u64 {
    state.parse().unwrap_or(0)
}

/// One watch, until the server ends it.
async fn watch<T: Object>(
    kube: &Kube,
    store: &Store<T>,
    scope: &Scope,
    door: &(impl Fn(T) -> Option<T> + Send + Sync),
    state: &mut String,
    pause: &mut Duration,
) -> Result<(), ApiError> {
    let started = std::time::Instant::now();
    let mut events = pin!(kube.watch::<T>(&scope.namespace, &scope.query, state).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        let told = match &event {
            Event::Applied(object) | Event::Deleted(object) => object.meta().version(),
            Event::Bookmark(bookmark) => version(bookmark),
        };
        if 0 < told && told < version(state) {
            tracing::info!(kind = T::PLACE.plural, "the watch goes back in time: listing again");
            state.clear();
            return Ok(());
        }
        match event {
            Event::Applied(object) => {
                state.clone_from(&object.meta().resource_version);
                let (key, version) = (object.key(), object.meta().version());
                match door(object) {
                    Some(object) => store.apply(object),
                    None => store.leave_out(&key, version),
                }
            }
            Event::Deleted(object) => {
                state.clone_from(&object.meta().resource_version);
                store.remove(&object.key(), object.meta().version());
            }
            Event::Bookmark(bookmark) => *state = bookmark,
        }
        *pause = FIRST;
    }
    // A server that ends each watch at once is not asked in a circle.
    if started.elapsed() < FIRST {
        tokio::time::sleep(FIRST).await;
    }
    Ok(())
}
