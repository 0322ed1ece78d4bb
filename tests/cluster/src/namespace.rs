//! A namespace of a test, gone with the test.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Cluster, process};

/// A namespace that is deleted, with all in it, when this is dropped.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Cluster {
    /// Makes a namespace of a new name, in which pods can be made at once.
    ///
    /// # Errors
    /// kubectl failed, or no service account came to be.
    pub fn namespace(&self, prefix: &str) -> Result<Namespace<'_>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{count}", std::process::id());
        self.kubectl(["create", "namespace", &name])?;
        let namespace = Namespace { cluster: self, name };
        // Pods are refused until the controller manager has made it.
        namespace.wait_for(
            &["serviceaccount", "default"],
            Duration::from_secs(60),
            |_| Some(()),
        )?;
        Ok(namespace)
    }
}

impl Namespace<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// kubectl as administrator in this namespace, without arguments.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args(["--namespace", &self.name]);
        kubectl
    }

    /// Runs kubectl; what it printed.
    ///
    /// # Errors
    /// It failed; the message has its standard error.
    pub fn kubectl<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String> {
        process::output(self.kubectl_command().args(words))
    }

    /// `kubectl apply` of a manifest.
    ///
    /// # Errors
    /// It was refused; the message says why.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.cluster.apply_in(&self.name, manifest)
    }

    /// Looks at an object until `look` finds something in it.
    ///
    /// # Errors
    /// Not within the time; the message has the object.
    pub fn wait_for<T>(
        &self,
        words: &[&str],
        limit: Duration,
        look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let all: Vec<_> = ["--namespace", &self.name].iter().chain(words).copied().collect();
        self.cluster.wait_for(&all, limit, look)
    }

    /// Waits until a pod is in this phase.
    ///
    /// # Errors
    /// Not within the time, or it ended in another one; the message has the pod, its
    /// events and its output.
    pub fn wait_for_pod(&self, name: &str, phase: &str, limit: Duration) -> Result<Value> {
        let is_over = |now: &str| matches!(now, "Succeeded" | "Failed") || now == phase;
        let pod = self.wait_for(&["pod", name], limit, |pod| {
            let now = pod.pointer("/status/phase")?.as_str()?;
            is_over(now).then(|| pod.clone())
        });
        let explain = || {
            let filter = format!("involvedObject.name={name}");
            let events = self.kubectl(["get", "events", "--field-selector", &filter]);
            let logs = self.kubectl(["logs", name]);
            format!(
                "pod {name}: events:\n{}\noutput:\n{}",
                events.unwrap_or_default(),
                logs.unwrap_or_default()
            )
        };
        let pod = pod.with_context(explain)?;
        let now = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
        ensure!(now == phase, "it is {now}, not {phase}; {}", explain());
        Ok(pod)
    }

    /// Waits until a pod has ended well; what it printed.
    ///
    /// # Errors
    /// As [`Self::wait_for_pod`].
    pub fn output_of_pod(&self, name: &str, limit: Duration) -> Result<String> {
        self.wait_for_pod(name, "Succeeded", limit)?;
        self.kubectl(["logs", name])
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Pods that are asked to end may take half a minute; nobody waits for that here.
        let words = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(error) = self.cluster.kubectl(words) {
            crate::say(&format!("{error:#}"));
        }
    }
}
