//! The server under test.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::bench::Bench;
use crate::proc;

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

/// A running `larder serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: std::path::PathBuf,
}

impl Server {
    /// Starts it on that pool, and waits until it answers calls.
    pub(crate) fn start(larder: &Path, backend: &str, pool: &str, bench: &Bench) -> Result<Self> {
        let log = bench.server_log();
        let file = File::create(&log)?;
        let mut command = Command::new(larder);
        command.args(["serve", "--backend", backend, "--node", "sanity-node"]);
        command.args(["--pool", pool]);
        command.arg("--endpoint").arg(bench.endpoint());
        command.arg("--state-dir").arg(bench.state());
        command.args(["--log-level", "debug"]);
        let child = command
            .current_dir(bench.path("work"))
            .env_remove("CSI_ENDPOINT")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("failed to start {}", larder.display()))?;
        let mut server = Self { child, log };
        let began = Instant::now();
        // It listens before it is ready: until then calls are refused.
        while !answers(larder, bench) {
            if let Some(status) = server.child.try_wait()? {
                bail!("larder serve ended with {status}:\n{}", server.last_words());
            }
            if began.elapsed() >= START {
                bail!("larder serve is not ready after {START:?}:\n{}", server.last_words());
            }
            thread::sleep(POLL);
        }
        Ok(server)
    }

    /// Asks it to end; what was wrong with how it did.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(vec![format!("the server died: {status}:\n{}", self.last_words())]);
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < STOP {
            if let Some(status) = self.child.try_wait()? {
                let clean = status.success();
                let wrong = format!("the server ended with {status}:\n{}", self.last_words());
                return Ok(if clean { self.panics() } else { vec![wrong] });
            }
            thread::sleep(POLL);
        }
        Ok(vec![format!("the server still runs {STOP:?} after SIGTERM:\n{}", self.last_words())])
    }

    /// A panic ends one call, not the server: it would go unseen.
    fn panics(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let panics = text.lines().filter(|line| line.contains("panicked at"));
        panics.map(|line| format!("the server's log has: {line}")).collect()
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn answers(larder: &Path, bench: &Bench) -> bool {
    let mut list = Command::new(larder);
    list.args(["volume", "ls", "--socket"]).arg(bench.endpoint());
    UnixStream::connect(bench.socket()).is_ok() && proc::output(&mut list).is_ok()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended, or must now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
