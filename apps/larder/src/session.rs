//! One command's connection to a driver.
//!
//! ```text
//! --socket ────────────────────────────────────────▶ that socket
//! configuration ─▶ endpoint answers? ─ yes ────────▶ that socket, once it is ready
//!                       │ no
//!                  pool owned by a live process? ──▶ its socket, once it is ready
//!                       │ no
//!                  serve the driver to ourselves ──▶ in process, until the command ends
//! ```
//! A server that starts at the same moment may be faster in taking the pool: then the command goes to
//! its socket after all.

use crate::{
    backends::BackendKind,
    cli::Target,
    config::{self, DriverSettings, Settings},
    exit::WrongConfig,
    wiring::{self, Served},
};
use larder_csi::{Client, Endpoint};
use larder_model::{Fault, PoolName, Result};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::Status;
use tower::ServiceExt;

/// How long until something is looked at again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a driver that starts is waited for, at most.
const LONGEST_START: Duration = Duration::from_secs(30);

/// A driver to talk to.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    driver: String,
    /// None: a driver behind `--socket`, of which nothing is known.
    settings: Option<DriverSettings>,
    mounts: PathBuf,
    time: Time,
    local: Option<Served>,
}

/// How long the command may take, from `--timeout`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    whole: Duration,
    end: Instant,
}

impl Time {
    fn of(target: &Target) -> Self {
        let whole = Duration::from_secs(target.timeout.into());
        Self { whole, end: Instant::now() + whole }
    }
    /// What is left of it.
    pub(crate) fn left(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
    /// Every call is given up at the end.
    fn limit(self, client: &Client) -> Client {
        let channel = client.channel();
        Client::in_process(tower::service_fn(move |request| {
            let call = channel.clone().oneshot(request);
            async move {
                match tokio::time::timeout_at(self.end.into(), call).await {
                    Ok(answer) => answer.map_err(BoxError::from),
                    Err(_) => Err(Status::deadline_exceeded(format!(
                        "get the driver's answer in {:?} (hint: repeat the command, or give it more \
                         --timeout)",
                        self.whole
                    ))
                    .into()),
                }
            }
        }))
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Session {
    /// The driver that the flags name.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (several), and what starting the driver in process can fail with.
    pub(crate) async fn open(target: &Target) -> anyhow::Result<Self> {
        if target.socket.is_some() {
            return Self::open_socket(target).await;
        }
        let settings = load(target)?;
        let driver = choose(&settings, target.driver.as_deref())?;
        Self::of_driver(&settings, driver, target).await
    }

    /// Every driver that the flags allow: all of the configuration's where none is named.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(crate) async fn open_all(target: &Target) -> anyhow::Result<Vec<Self>> {
        if target.socket.is_some() || target.driver.is_some() {
            return Ok(vec![Self::open(target).await?]);
        }
        let settings = load(target)?;
        let mut sessions = Vec::new();
        for driver in settings.drivers.clone() {
            sessions.push(Self::of_driver(&settings, driver, target).await?);
        }
        Ok(sessions)
    }

    async fn open_socket(target: &Target) -> anyhow::Result<Self> {
        let time = Time::of(target);
        let endpoint = target.socket.as_ref().ok_or_else(|| Fault::invalid("find --socket"))?;
        if !answers(endpoint).await {
            return Err(Fault::unavailable(format!("reach {endpoint}: nobody serves it")).into());
        }
        let client = time.limit(&Client::connect(endpoint)?);
        let request = larder_proto::csi::GetPluginInfoRequest {};
        let info = crate::commands::answer(client.identity().get_plugin_info(request).await)?;
        let mounts = mounts_dir(Path::new(config::DEFAULT_STATE), &info.name);
        Ok(Self { client, driver: info.name, settings: None, mounts, time, local: None })
    }

    /// That driver.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(crate) async fn of_driver(
        settings: &Settings,
        driver: DriverSettings,
        target: &Target,
    ) -> anyhow::Result<Self> {
        let time = Time::of(target);
        let patience = time.left().min(LONGEST_START);
        let reached = match owner(&driver).await {
            Some(endpoint) => Err(endpoint),
            None => tokio::select! {
                served = wiring::serve_to_ourselves(settings, &driver, patience) => Ok(served?),
                endpoint = outrun(&driver) => Err(endpoint),
            },
        };
        let (client, local) = match reached {
            Ok(served) => (time.limit(&served.client()), Some(served)),
            Err(endpoint) => (ready(&endpoint, time).await?, None),
        };
        Ok(Self {
            client,
            driver: driver.name.to_string(),
            mounts: mounts_dir(&settings.state_dir, driver.name.as_str()),
            settings: Some(driver),
            time,
            local,
        })
    }

    /// The driver's services.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
    /// The driver's name.
    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }
    /// Whether this process serves the driver to itself.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }
    /// Whether nothing is known of the driver but what CSI tells.
    pub(crate) fn is_foreign(&self) -> bool {
        self.settings.is_none()
    }
    /// Where `volume mount` keeps its records.
    pub(crate) fn mounts_dir(&self) -> &Path {
        &self.mounts
    }
    /// Of a call that failed with that code, `what` in words of the command where its time is over.
    pub(crate) fn in_time<T>(&self, what: &str, answer: Result<T, Status>) -> Result<T, Status> {
        answer.map_err(|status| {
            let over = self.time.left().is_zero();
            if !over || status.code() != tonic::Code::DeadlineExceeded {
                return status;
            }
            let then = match self.local {
                Some(_) => "it was left unfinished (hint: repeat the command to finish it",
                None => "the work goes on (hint: repeat the command to see its end",
            };
            Status::deadline_exceeded(format!(
                "finish {what} in {:?}: {then}, or give it more --timeout)",
                self.time.whole
            ))
        })
    }

    /// The pool of a name without one; None: a foreign driver.
    ///
    /// # Errors
    /// `Invalid` where several exist and none is called `default`.
    pub(crate) fn default_pool(&self) -> Result<Option<PoolName>> {
        self.settings.as_ref().map(default_pool).transpose()
    }

    /// What is known of the driver's backend.
    pub(crate) fn backend(&self) -> Option<&'static BackendKind> {
        self.settings.as_ref().and_then(|s| crate::backends::find(&s.backend))
    }

    /// Ends the session; a driver that was served in process lets go of its pools. What runs beyond
    /// the command's time is left to the next equal call.
    pub(crate) async fn close(mut self) {
        if let Some(served) = self.local.take() {
            served.stop(self.time.left()).await;
        }
    }
}

/// `volume mount`'s records stand beside the node records: both end with the boot.
pub(crate) fn mounts_dir(state: &Path, driver: &str) -> PathBuf {
    state.parent().unwrap_or(state).join("mounts").join(driver)
}

/// The settings that the flags name.
///
/// # Errors
/// Where they cannot be used.
pub(crate) fn load(target: &Target) -> anyhow::Result<Settings> {
    let settings = config::load(&target.config).map_err(|fault| WrongConfig(fault.to_string()))?;
    match config::refusal(&config::check(&settings)) {
        Some(why) => Err(WrongConfig(why).into()),
        None => Ok(settings),
    }
}

/// The driver of that name, or the only one with that backend, or the only one.
fn choose(settings: &Settings, wanted: Option<&str>) -> Result<DriverSettings> {
    let fitting: Vec<_> = settings
        .drivers
        .iter()
        .filter(|d| wanted.is_none_or(|w| d.name.as_str() == w || d.backend == w))
        .collect();
    let names = |drivers: &[&DriverSettings]| {
        drivers.iter().map(|d| d.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    match (fitting.as_slice(), wanted) {
        ([driver], _) => Ok((*driver).clone()),
        ([], wanted) => {
            Err(Fault::not_found(format!("find driver {}", wanted.unwrap_or_default())).hint(
                format!(
                    "the configuration has {}",
                    names(&settings.drivers.iter().collect::<Vec<_>>())
                ),
            ))
        }
        (several, _) => {
            let exact = several.iter().find(|d| Some(d.name.as_str()) == wanted);
            exact.map(|d| (**d).clone()).ok_or_else(|| {
                Fault::invalid("choose a driver: there are several")
                    .hint(format!("--driver with one of {}", names(several)))
            })
        }
    }
}

/// The settings of the driver that the flags name, without talking to it.
///
/// # Errors
/// As [`Session::open`].
pub(crate) fn driver_settings(target: &Target) -> anyhow::Result<DriverSettings> {
    Ok(choose(&load(target)?, target.driver.as_deref())?)
}

/// The pool of a request that names none.
///
/// # Errors
/// `Invalid` where several exist and none is called `default`.
pub(crate) fn default_pool(driver: &DriverSettings) -> Result<PoolName> {
    let mut pools = driver.pool_names();
    let default = driver.pool_names().find(|p| p.as_str() == "default");
    match (default, pools.next(), pools.next()) {
        (Some(pool), ..) | (None, Some(pool), None) => Ok(pool.clone()),
        _ => Err(Fault::invalid(format!(
            "choose a pool of driver {}: none is called default",
            driver.name
        ))
        .hint("write POOL/NAME")),
    }
}

/// The socket of whoever serves this driver or owns one of its pools.
pub(crate) async fn owner(driver: &DriverSettings) -> Option<Endpoint> {
    if answers(&driver.endpoint).await {
        return Some(driver.endpoint.clone());
    }
    for pool in driver.pools.values() {
        let endpoint = larder_pool::owner(&pool.path)
            .ok()
            .flatten()
            .and_then(|note| note.endpoint?.parse::<Endpoint>().ok());
        if let Some(endpoint) = endpoint
            && answers(&endpoint).await
        {
            return Some(endpoint);
        }
    }
    None
}

/// Waits for another process that has taken the pool before us; for ever, when that is us.
async fn outrun(driver: &DriverSettings) -> Endpoint {
    loop {
        tokio::time::sleep(AGAIN).await;
        let is_taken = driver.pools.values().any(|pool| {
            let owner = larder_pool::owner(&pool.path).ok().flatten();
            owner.is_some_and(|note| note.pid != std::process::id())
        });
        if is_taken && let Some(endpoint) = owner(driver).await {
            return endpoint;
        }
    }
}

/// Connects to a driver that may just be starting.
async fn ready(endpoint: &Endpoint, time: Time) -> Result<Client> {
    let client = time.limit(&Client::connect(endpoint)?);
    let end = Instant::now() + time.left().min(LONGEST_START);
    loop {
        let probed = client.identity().probe(larder_proto::csi::ProbeRequest {}).await;
        // A driver that cannot start says at the call itself what is wrong.
        if !probed.is_ok_and(|probe| probe.into_inner().ready == Some(false))
            || Instant::now() >= end
        {
            return Ok(client);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn answers(endpoint: &Endpoint) -> bool {
    match tokio::net::UnixStream::connect(endpoint.path()).await {
        Ok(_) => true,
        // So many are waiting there that one more does not fit.
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}
