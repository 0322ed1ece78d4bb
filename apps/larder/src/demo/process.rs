//! This very program, run as a user would run it.
#![allow(
    clippy::disallowed_methods,
    reason = "the demo plays a user's shell: its children are not commands of a storage operation"
)]

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::{Child, Command};

/// How to call Larder against the demo's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Larder {
    program: PathBuf,
    config: PathBuf,
}

/// Longest run of one command of the demo.
const PATIENCE: Duration = Duration::from_secs(60);

impl Larder {
    /// Against the configuration file `config`.
    pub(crate) fn new(config: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("failed to find this program")?;
        Ok(Self { program, config: config.to_owned() })
    }

    /// Runs `larder ARGUMENTS` and returns what it prints.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(arguments);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| {
                format!("failed to finish `larder {}` in {PATIENCE:?}", arguments.join(" "))
            })?
            .context("failed to run this program")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A process that ends with the demo, also when that is killed.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("LARDER_CONFIG", &self.config).stdin(Stdio::null());
        larder_host::command::die_with_parent(command.as_std_mut());
        command.kill_on_drop(true);
        command
    }

    /// Starts `larder serve` at `socket` and waits until it is ready; its log goes to `log`.
    pub(crate) async fn serve(&self, log: &Path, socket: &Path) -> Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = self
            .command(&["serve"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("failed to start this program")?;
        for _ in 0..500 {
            if let Some(status) = child.try_wait()? {
                bail!("failed to serve: it ended with {status}");
            }
            // Its socket: by its configuration, a command that comes first serves to itself.
            let info = ["driver", "info", "--socket", &socket.display().to_string(), "-o", "json"];
            if let Ok(info) = self.run(&info).await
                && info.contains("\"ready\": true")
            {
                return Ok(child);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("failed to see the server get ready in time")
    }
}
