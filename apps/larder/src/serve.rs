//! `larder serve`
//!
//! ```text
//! settings checked ─▶ http ─▶ sockets (Probe: not ready) ─▶ drivers started ─▶ ready
//!   (with `kubernetes:` the controllers of each driver begin once it is ready, and end first)
//!   SIGTERM, SIGINT ─▶ not ready ─▶ no new calls ─▶ running calls end ─▶ pools let go ─▶ exit 0
//!     a driver cannot be served ─▶ the same, and the exit status of that fault
//!                  a second signal ─▶ exit at once
//! ```
//! Mounts stay as they are: whoever serves next finds them.

use crate::{
    config::{self, DriverSettings, ServeFlags, Settings},
    controllers,
    exit::WrongConfig,
    http, logging, memory, output,
    wiring::Common,
};
use anyhow::Result;
use larder_csi::{Driver, Registered, State};
use prometheus_client::registry::Registry;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long to wait before a driver that could not be started is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs `larder serve`.
pub(crate) async fn run(flags: ServeFlags) -> Result<()> {
    let settings = config::of_serve(&flags).map_err(|fault| WrongConfig(fault.to_string()))?;
    let problems = config::check(&settings);
    if let Some(why) = config::refusal(&problems) {
        return Err(WrongConfig(why).into());
    }
    logging::start(settings.log.format, &settings.log.level)
        .map_err(|fault| WrongConfig(fault.to_string()))?;
    for problem in &problems {
        tracing::warn!("{}: {}", problem.path, problem.text);
    }
    raise_descriptor_limit();
    let mut registry = Registry::default();
    let common = Common::new(&settings, &mut registry).await?;
    let drivers =
        settings.drivers.iter().map(|d| common.driver(&settings, d)).collect::<Result<Vec<_>, _>>();
    let drivers = drivers.map_err(|fault| WrongConfig(fault.to_string()))?;

    let controllers = match &settings.kubernetes {
        None => None,
        Some(of) => Some((controllers::start(&settings, of, &mut registry).await?, of.clone())),
    };

    let known: Arc<Vec<Known>> = Arc::new(settings.drivers.iter().map(Known::new).collect());
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    tasks.spawn(memory::keep_small(stop.clone()));
    if let Some(address) = settings.http {
        let (seen, known) = (drivers.clone(), known.clone());
        let leases = controllers.as_ref().map(|(controllers, _)| controllers.health());
        let ready = Box::new(move || ready(&seen, &known));
        let metrics = "/metrics".to_owned();
        let pages = http::Pages { registry, ready, leases, metrics };
        let (bound, serving) = http::serve(address, pages, stop.clone()).await?;
        tracing::info!(address = %bound, "http is served");
        tasks.spawn(serving);
    }
    let failed = Arc::new(OnceLock::new());
    // Ends before the drivers: what it waits for is their answers.
    let controlling = TaskTracker::new();
    for (i, (driver, of)) in drivers.iter().zip(&settings.drivers).enumerate() {
        let (driver, of, kubelet) = (driver.clone(), of.clone(), settings.kubelet_dir.clone());
        let (stop, failed, known) = (stop.clone(), failed.clone(), known.clone());
        let wanted = controllers.clone().filter(|(_, kubernetes)| kubernetes.is_for(&of.name));
        let controls = wanted.map(|(controllers, kubernetes)| {
            (controllers, controllers::of_driver(&settings, &kubernetes, &of), controlling.clone())
        });
        tasks.spawn(async move {
            let serving = async {
                driver.listen(&of.endpoint).await?;
                start(&driver).await;
                if let Some((controllers, options, controlling)) = controls {
                    let (client, stop, name) = (driver.client(), stop.clone(), of.name.clone());
                    controlling.spawn(async move {
                        let mut pause = Duration::from_secs(1);
                        // The process has other work; nobody would start it again for this.
                        while let Err(fault) =
                            controllers.serve(client.clone(), options.clone(), stop.clone()).await
                        {
                            tracing::error!(driver = %name, "failed to {fault}; trying again");
                            let wait = tokio::time::sleep(pause);
                            if stop.run_until_cancelled(wait).await.is_none() {
                                break;
                            }
                            pause = (2 * pause).min(Duration::from_secs(60));
                        }
                    });
                }
                if of.register {
                    let registry = kubelet.join("plugins_registry");
                    let heard = driver.register(&registry, &of.endpoint).await?;
                    // Nobody else sets it.
                    let _ = known[i].heard.set(heard);
                }
                Ok::<_, larder_model::Fault>(())
            };
            tokio::select! {
                () = stop.cancelled() => {}
                // Not when it is our own stop that ended it.
                served = serving => if let Err(fault) = served && !stop.is_cancelled() {
                    tracing::error!(driver = %of.name, "failed to {fault}");
                    // The first is the reason; what follows may come of stopping.
                    let _ = failed.set(fault.during(format!("serve driver {}", of.name)));
                    stop.cancel();
                }
            }
        });
    }
    stop.cancelled().await;
    controlling.close();
    let grace = Duration::from_secs(settings.shutdown_grace_seconds);
    let _ = tokio::time::timeout(grace / 2, controlling.wait()).await;
    if let Some((controllers, _)) = &controllers {
        controllers.end().await;
    }
    shut_down(&settings, drivers).await;
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    failed.get().map_or(Ok(()), |fault| Err(fault.clone().into()))
}

/// Copies of trees hold many files open at once, and services start with a soft limit of 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Starts the driver, again and again where an administrator must mend something first.
async fn start(driver: &Driver) {
    while let Err(fault) = driver.start().await {
        tracing::error!(driver = %driver.name(), "failed to {fault}");
        tokio::time::sleep(AGAIN).await;
    }
    tracing::info!(driver = %driver.name(), "ready");
}

/// What kubelet says of a driver that is to be known to it.
struct Known {
    wanted: bool,
    heard: OnceLock<watch::Receiver<Registered>>,
}

impl Known {
    fn new(of: &DriverSettings) -> Self {
        Self { wanted: of.register, heard: OnceLock::new() }
    }

    /// Why pods cannot use the driver yet.
    fn missing(&self) -> Option<String> {
        match self.heard.get().map(|heard| heard.borrow().clone()) {
            _ if !self.wanted => None,
            Some(Registered::Yes) => None,
            Some(Registered::Refused(why)) => Some(format!("kubelet refuses it: {why}")),
            Some(Registered::Waiting) | None => Some("kubelet has not registered it".to_owned()),
        }
    }
}

fn ready(drivers: &[Driver], known: &[Known]) -> Result<(), String> {
    let why = |(driver, known): (&Driver, &Known)| {
        let why = match driver.state() {
            State::Ready => known.missing()?,
            state => format!("{state:?}"),
        };
        Some(format!("{}: {why}", driver.name()))
    };
    let waiting: Vec<_> = drivers.iter().zip(known).filter_map(why).collect();
    if waiting.is_empty() { Ok(()) } else { Err(waiting.join("\n")) }
}

async fn shut_down(settings: &Settings, drivers: Vec<Driver>) {
    tracing::info!("stopping");
    let grace = Duration::from_secs(settings.shutdown_grace_seconds);
    let ends = drivers.iter().map(|driver| driver.shutdown(grace));
    let busy: usize = futures::future::join_all(ends).await.iter().map(Vec::len).sum();
    if busy == 0 {
        tracing::info!("stopped");
    } else {
        tracing::warn!(
            busy,
            "stopped before everything was finished: the next equal calls finish it"
        );
    }
}

/// SIGTERM and SIGINT stop, a second one at once; SIGHUP switches debug logs on and off.
#[allow(clippy::disallowed_methods, reason = "it has no end that shutdown could wait for")]
pub(crate) fn watch_signals(stop: CancellationToken) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut before: Option<String> = None;
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = hup.recv() => {
                    match logging::set_level(before.as_deref().unwrap_or("debug")) {
                        // Raised: what to go back to. Back: nothing.
                        Ok(level) => before = before.xor(Some(level)),
                        Err(fault) => tracing::error!("failed to {fault}"),
                    }
                    continue;
                }
            }
            if stop.is_cancelled() {
                output::note("stopped at once by a second signal");
                quit();
            }
            stop.cancel();
        }
    });
    Ok(())
}

#[allow(clippy::exit, reason = "the second signal asks for exactly this")]
fn quit() -> ! {
    std::process::exit(1)
}
