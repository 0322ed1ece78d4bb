//! kubectl and helm against a cluster, and waiting with them.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{cluster::Cluster, process};

impl Cluster {
    /// kubectl as administrator, without arguments.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        self.tool("kubectl")
    }

    /// helm as administrator, without arguments.
    #[must_use]
    pub fn helm_command(&self) -> Command {
        self.tool("helm")
    }

    /// A command that has this cluster's programs first on its path, and its kubeconfig.
    #[must_use]
    pub fn tool(&self, program: &str) -> Command {
        let own = self.binaries().join(program);
        let mut command = if own.exists() { Command::new(own) } else { Command::new(program) };
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command
    }

    /// Runs kubectl; what it printed.
    ///
    /// # Errors
    /// It failed; the message has its standard error.
    pub fn kubectl<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String> {
        process::output(self.kubectl_command().args(words))
    }

    /// Runs helm; what it printed.
    ///
    /// # Errors
    /// It failed; the message has its standard error.
    pub fn helm<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String> {
        process::output(self.helm_command().args(words))
    }

    /// `kubectl apply` of a manifest.
    ///
    /// # Errors
    /// It was refused; the message says why.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.apply_in("default", manifest)
    }

    pub(crate) fn apply_in(&self, namespace: &str, manifest: &str) -> Result<()> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--namespace", namespace, "--filename", "-"]);
        kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("failed to start kubectl")?;
        let mut stdin = child.stdin.take().context("no pipe to kubectl")?;
        // It may end early and say why.
        let _ = stdin.write_all(manifest.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {}", stderr.trim());
        Ok(())
    }

    /// An object or a list, such as `["pod", "x"]`, as JSON.
    ///
    /// # Errors
    /// kubectl failed.
    pub fn get<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["get", "--output", "json"]).args(words);
        Ok(serde_json::from_str(&process::output(&mut kubectl)?)?)
    }

    /// Looks at an object until `look` finds something in it.
    ///
    /// # Errors
    /// Not within the time; the message has the object.
    pub fn wait_for<T>(
        &self,
        words: &[&str],
        limit: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = Value::Null;
        let found = process::wait_for(limit, || {
            // It may not be there yet, and the API server may be busy.
            let Ok(value) = self.get(words.iter().copied()) else { return Ok(None) };
            let found = look(&value);
            last = value;
            Ok(found)
        });
        found.with_context(|| format!("waited for {}: {last:#}", words.join(" ")))
    }
}
