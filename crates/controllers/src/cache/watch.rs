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
use std::{collections::BTreeSet, pin::pin, time::Duration};

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
    loop {
        let failed = match state.is_empty() {
            true => list(&kube, &store, &scope, &door).await.map(|listed| state = listed),
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
) -> Result<String, ApiError> {
    let mut keys = BTreeSet::new();
    let page = |objects: Vec<T>| {
        for object in objects.into_iter().filter_map(door) {
            keys.insert(object.key());
            store.apply(object);
        }
    };
    let state = kube.list(&scope.namespace, &scope.query, page).await?;
    store.listed(&keys, state.parse().unwrap_or(0));
    Ok(state)
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
        match event? {
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
