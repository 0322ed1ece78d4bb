//! The commands and their help.

use crate::cli::Output;
use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// `kubectl`: commands on a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Kubectl {
    /// Explain what a claim, pod or volume waits for: the whole chain, what is stuck on what and since
    /// when, and what to do. Exit status 8 when something is stuck.
    ///
    /// Only looks, with the rights of whoever asks. Of Secrets it tells whether they are there and
    /// which keys they have, never a value.
    Why(Why),
    /// List what a cluster has.
    #[command(subcommand)]
    Get(Get),
    /// Write a tar file with what is needed to find a fault: objects, events, logs, doctor's findings.
    ///
    /// Without Secrets; tokens, passwords and values of environment variables are taken out. Look
    /// through it before you give it away: names of namespaces, claims and nodes stay.
    SupportBundle(SupportBundle),
}

/// Which cluster.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct Cluster {
    /// A kubeconfig [default: $KUBECONFIG, ~/.kube/config, or the pod's ServiceAccount].
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: the current one].
    #[arg(long)]
    pub(crate) context: Option<String>,
}

/// `kubectl why`.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// pvc/NAME, pod/NAME or pv/NAME.
    #[arg(value_name = "KIND/NAME")]
    pub(crate) subject: larder_controllers::why::Subject,
    /// The namespace of the claim or pod [default: of the kubeconfig's context].
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Do not ask Larder's pods on the nodes about the volume (they are asked with `kubectl exec`).
    #[arg(long)]
    pub(crate) no_nodes: bool,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `kubectl get`.
#[derive(Debug, Subcommand)]
pub(crate) enum Get {
    /// PersistentVolumes of CSI drivers, with claim, size, node, state and what is not settled.
    #[command(visible_aliases = ["volume", "pv"])]
    Volumes(GetVolumes),
}

/// `kubectl get volumes`.
#[derive(Debug, Args)]
pub(crate) struct GetVolumes {
    /// Only those for claims of that namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Only those of that CSI driver.
    #[arg(long, value_name = "NAME")]
    pub(crate) driver: Option<String>,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `kubectl support-bundle`.
#[derive(Debug, Args)]
pub(crate) struct SupportBundle {
    /// The file [default: larder-support-TIME.tar].
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Larder's namespace [default: wherever its pods are].
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// As many lines of each log.
    #[arg(long, value_name = "NUMBER", default_value_t = 5000)]
    pub(crate) lines: u32,
    /// Do not ask Larder's pods on the nodes (they are asked with `kubectl exec`).
    #[arg(long)]
    pub(crate) no_nodes: bool,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
}
