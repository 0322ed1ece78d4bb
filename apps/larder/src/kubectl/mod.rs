//! `larder kubectl …`, and the same as `kubectl larder …`: a look at a cluster's storage with the
//! rights of whoever asks.

mod bundle;
mod flags;
mod nodes;
mod redact;
mod volumes;
mod why;

use anyhow::Result;
use flags::Cluster;
pub(crate) use flags::Kubectl;
use larder_controllers::client::Kube;
use std::{ffi::OsString, path::Path};

/// How kubectl calls its plugin.
const PLUGIN: &str = "kubectl-larder";

/// The arguments of the program: those of the plugin are those of `larder kubectl`.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<_> = given.into_iter().collect();
    let name = given.first().and_then(|first| Path::new(first).file_stem());
    if name.is_some_and(|name| name == PLUGIN) {
        given.splice(0..1, ["larder".into(), "kubectl".into()]);
    }
    given
}

/// Runs `larder kubectl`.
pub(crate) async fn run(command: Kubectl) -> Result<()> {
    match command {
        Kubectl::Why(flags) => why::run(flags).await,
        Kubectl::Get(command) => volumes::run(command).await,
        Kubectl::SupportBundle(flags) => bundle::run(flags).await,
    }
}

impl Cluster {
    async fn kube(&self) -> larder_model::Result<Kube> {
        Kube::for_person(self.kubeconfig.as_deref(), self.context.as_deref()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&["/usr/local/bin/kubectl-larder", "why", "pvc/a"], &["larder", "kubectl", "why", "pvc/a"])]
    #[case(&["kubectl-larder"], &["larder", "kubectl"])]
    #[case(&["larder", "kubectl", "why"], &["larder", "kubectl", "why"])]
    #[case(&["/bin/larder", "volume", "ls"], &["/bin/larder", "volume", "ls"])]
    fn as_a_plugin_it_has_the_commands_of_kubectl(#[case] given: &[&str], #[case] wanted: &[&str]) {
        assert_eq!(arguments(given.iter().map(OsString::from)), wanted);
    }
}
