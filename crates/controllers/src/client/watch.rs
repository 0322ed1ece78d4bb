//! Watching a kind: one long answer, a line for each change.

use super::{ApiError, Ask, Kube, Priority, StatusBody, encoded, no_answer};
use crate::api::{Key, Object};
use futures::{Stream, StreamExt, stream};
use http::Method;
use http_body_util::BodyExt;
use serde::Deserialize;
use std::time::Duration;

/// The server ends a watch after so many seconds (the client goes on from where it stood), so that
/// one whose connection died silently is noticed some time.
const SECONDS: u64 = 290;
/// Bookmarks come once a minute: a watch that tells nothing for so long has lost its connection without
/// a word, as behind a load balancer that was replaced. One that was only slow goes on where it stood.
const SILENCE: Duration = Duration::from_secs(90);
/// No object is larger (etcd takes 1.5 MiB).
const LONGEST_LINE: usize = 16 << 20;

/// What a watch tells.
#[derive(Debug)]
pub enum Event<T> {
    /// It is new, or changed.
    Applied(T),
    /// It is gone; its last state.
    Deleted(T),
    /// Everything up to that state was told.
    Bookmark(String),
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum Line<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(Bookmark),
    Error(StatusBody),
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: crate::api::ListMeta,
}

impl Kube {
    /// The changes of a kind since state `since`. The stream ends when the server ends it: go on from
    /// the last state seen. An expired state is an error of its own ([`ApiError::is_expired`]).
    ///
    /// # Errors
    /// Where it does not even start.
    pub async fn watch<T: Object>(
        &self,
        namespace: &str,
        query: &str,
        since: &str,
    ) -> Result<impl Stream<Item = Result<Event<T>, ApiError>> + use<T>, ApiError> {
        let mut ask = Ask::new::<T>("watch", Method::GET, &Key::new(namespace, ""), "");
        let since = encoded(since);
        ask.uri.push_str(&format!(
            "?watch=true&allowWatchBookmarks=true&timeoutSeconds={SECONDS}&resourceVersion={since}&{query}"
        ));
        self.0.limiter.turn(Priority::Fresh).await;
        let started = tokio::time::timeout(super::LONGEST, self.send(&ask)).await;
        let response = started.unwrap_or_else(|_| {
            Err(no_answer(&ask.asked, &std::io::Error::other("the API server has not answered")))
        });
        self.count(&ask.asked, response.as_ref().map_or_else(|e| e.code, |_| 200));
        let body = response?.into_body().into_data_stream();
        let state = (Box::pin(body), Vec::<u8>::new(), 0, ask.asked);
        Ok(stream::unfold(state, |(mut body, mut rest, mut looked, asked)| async move {
            loop {
                if let Some(end) = rest[looked..].iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = rest.drain(..=looked + end).collect();
                    return Some((event(&line, &asked), (body, rest, 0, asked)));
                }
                looked = rest.len();
                let dead =
                    || no_answer(&asked, &std::io::Error::other("the watch has gone silent"));
                match tokio::time::timeout(SILENCE, body.next()).await {
                    Err(_) => return Some((Err(dead()), (body, Vec::new(), 0, asked))),
                    Ok(None) => return None,
                    Ok(Some(Err(error))) => {
                        tracing::debug!(%error, what = %asked, "a watch was cut");
                        return None;
                    }
                    Ok(Some(Ok(bytes))) => rest.extend_from_slice(&bytes),
                }
                if rest.len() > LONGEST_LINE {
                    let error = std::io::Error::other("the watch tells of an endless object");
                    return Some((Err(no_answer(&asked, &error)), (body, Vec::new(), 0, asked)));
                }
            }
        }))
    }
}

fn event<T: Object>(line: &[u8], asked: &super::Asked) -> Result<Event<T>, ApiError> {
    match serde_json::from_slice(line).map_err(|error| no_answer(asked, &error))? {
        Line::Added(object) | Line::Modified(object) => Ok(Event::Applied(object)),
        Line::Deleted(object) => Ok(Event::Deleted(object)),
        Line::Bookmark(Bookmark { metadata }) => Ok(Event::Bookmark(metadata.resource_version)),
        Line::Error(StatusBody { code, reason, message }) => Err(ApiError {
            code,
            reason,
            message,
            retry_after: None,
            asked: Box::new(asked.clone()),
        }),
    }
}
