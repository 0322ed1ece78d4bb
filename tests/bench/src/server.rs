//! The program under test.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use larder_proto::csi;

use crate::client::Client;

const START: Duration = Duration::from_secs(60);
/// How often a server that starts is looked at.
const POLL: Duration = Duration::from_micros(200);

/// How a start went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// From the start of the process to the first answered Probe.
    pub(crate) answered: Duration,
    /// To the first Probe that said "ready".
    pub(crate) ready: Duration,
    /// Whether a Probe said "not ready" before.
    pub(crate) waited: bool,
}

/// A running `larder serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    began: Instant,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts it; `run` gets socket, node records and log.
    pub(crate) fn spawn(larder: &Path, backend: &str, pool: &Path, run: PathBuf) -> Result<Self> {
        let (socket, log) = (run.join("csi.sock"), run.join("log"));
        let file = File::create(&log)?;
        let mut command = Command::new(larder);
        command.args(["serve", "--backend", backend, "--node", "bench"]);
        command.arg("--pool").arg(pool).arg("--state-dir").arg(run.join("state"));
        command.arg("--endpoint").arg(format!("unix://{}", socket.display()));
        for name in ["LARDER_CONFIG", "LARDER_LOG", "CSI_ENDPOINT", "NODE_NAME"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let began = Instant::now();
        let child =
            command.spawn().with_context(|| format!("failed to start {}", larder.display()))?;
        Ok(Self { child, began, socket, log })
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&mut self) -> Result<Start> {
        while UnixStream::connect(&self.socket).is_err() {
            self.still_starts()?;
            std::thread::sleep(POLL);
        }
        let mut client = self.client().await?;
        let mut start = None;
        loop {
            let answer = client.identity.probe(csi::ProbeRequest {}).await?.into_inner();
            let now = self.began.elapsed();
            let start = start.get_or_insert(Start { answered: now, ready: now, waited: false });
            if answer.ready == Some(true) {
                start.ready = now;
                return Ok(*start);
            }
            start.waited = true;
            self.still_starts()?;
            tokio::time::sleep(POLL).await;
        }
    }

    fn still_starts(&mut self) -> Result<()> {
        let text = || fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(status) = self.child.try_wait()? {
            bail!("larder serve ended with {status}:\n{}", text());
        }
        if self.began.elapsed() > START {
            bail!("larder serve is not ready after {START:?}:\n{}", text());
        }
        Ok(())
    }

    /// A connection of its own.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.socket).await
    }

    /// Memory in MB (resident; and of that, what is not the program's own file).
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> Result<f64> {
            let line = text.lines().find(|l| l.starts_with(name)).context("no such field")?;
            let kib: f64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
            Ok(kib * 1024.0 / 1e6)
        };
        Ok((field("VmRSS:")?, field("RssAnon:")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, or must now: pools outlive that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
