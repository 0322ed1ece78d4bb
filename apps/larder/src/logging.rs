//! Logs on standard error: text or JSON, the level changeable while running.

use clap::ValueEnum;
use larder_model::{Fault, Result};
use serde::{Deserialize, Serialize};
use std::{
    io::IsTerminal,
    sync::{Arc, OnceLock},
};
use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// Log formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

type Reload = Arc<dyn Fn(&str) -> Result<String> + Send + Sync>;
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Reads a level or filter.
///
/// # Errors
/// `Invalid`, saying what there is.
pub(crate) fn filter(level: &str) -> Result<EnvFilter> {
    level.parse().map_err(|e: tracing_subscriber::filter::ParseError| {
        Fault::invalid(format!("use log level {}", larder_model::id::quoted(level)))
            .because(e)
            .hint("use error, warn, info, debug or trace, or a filter as in info,larder_csi=debug")
    })
}

/// Starts logging. Called once.
///
/// # Errors
/// `Invalid` where the level cannot be read.
pub(crate) fn start(format: LogFormat, level: &str) -> Result<()> {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
            registry.with(layer.with_ansi(colours())).try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    if started.is_ok() {
        let _ = RELOAD.set(Arc::new(move |level| {
            let failed = |e| Fault::internal("change the log level").because(e);
            let before = handle.with_current(ToString::to_string).map_err(failed)?;
            handle.reload(self::filter(level)?).map_err(failed)?;
            Ok(before)
        }));
    }
    Ok(())
}

/// Colours are for terminals: in a file or a journal they are noise.
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted
}

/// Changes the level of the running process; returns what it was.
///
/// # Errors
/// `Invalid` where it cannot be read.
pub(crate) fn set_level(level: &str) -> Result<String> {
    let reload = RELOAD
        .get()
        .ok_or_else(|| Fault::precondition("change the log level: nothing is logged"))?;
    let before = reload(level)?;
    tracing::info!(level, before, "the log level was changed");
    Ok(before)
}
