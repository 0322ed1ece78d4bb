//! Progress of long calls.
//!
//! A CSI call says nothing until it ends. Our drivers tell on the side (`larder.v1.Admin`) what they
//! are working on, so a call that takes longer than a moment is shown with its step and how far it
//! is; of a foreign driver only the time that has passed.

use crate::session::Session;
use indicatif::{ProgressBar, ProgressStyle};
use larder_proto::larder::{ListOperationsRequest, Operation};
use std::{io::IsTerminal, time::Duration};

const PATIENCE: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_millis(250);
/// Without a terminal, a line this often.
const LINES: u32 = 40;

/// Awaits `call`, showing progress on standard error when it takes long.
pub(crate) async fn show<T>(
    session: &Session,
    what: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<tonic::Response<T>, tonic::Status> {
    tokio::pin!(call);
    if let Ok(result) = tokio::time::timeout(PATIENCE, &mut call).await {
        return session.in_time(what, result);
    }
    let bar = bar(what);
    let mut ticks = 0u32;
    loop {
        tokio::select! {
            result = &mut call => {
                bar.finish_and_clear();
                return session.in_time(what, result);
            }
            () = tokio::time::sleep(REFRESH) => {}
        }
        let line = match longest(session).await {
            Some(operation) => describe(&bar, &operation),
            None => String::new(),
        };
        if bar.is_hidden() && ticks.is_multiple_of(LINES) {
            crate::output::note(format!("{what} {line}"));
        }
        ticks = ticks.wrapping_add(1);
        bar.tick();
    }
}

fn bar(what: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(style("{spinner} {prefix} {msg} {elapsed}"));
    bar.set_prefix(what.to_owned());
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn describe(bar: &ProgressBar, operation: &Operation) -> String {
    let (done, total) =
        (u64::try_from(operation.done).unwrap_or(0), u64::try_from(operation.total).unwrap_or(0));
    bar.set_message(operation.step.clone());
    if total > 0 {
        bar.set_style(style("{spinner} {prefix} {msg} {bar:20} {percent}% {eta}"));
        bar.set_length(total);
        bar.set_position(done);
        format!("{}: {}%", operation.step, done.saturating_mul(100) / total)
    } else {
        operation.step.clone()
    }
}

/// The operation that says most: the one with a known end, else the oldest.
async fn longest(session: &Session) -> Option<Operation> {
    let listed =
        session.client().admin().list_operations(ListOperationsRequest {}).await.ok()?.into_inner();
    listed.operations.into_iter().max_by_key(|o| (o.total > 0, o.age_millis))
}
