//! Finds the test targets that want more than `cargo test`. A target says so with
//! `required-features`, which keeps it out of a plain `cargo test --workspace`:
//!
//! | feature | the target |
//! |---|---|
//! | `vm` | runs on the host and starts virtual machines |
//! | `in-vm` | runs in a virtual machine, whole |
//! | `cluster` | runs on the host, with a Kubernetes cluster that is up |
//! | `soak` | takes long: only with `--all` (on the host, or with `in-vm` in a machine) |
//!
//! ```toml
//! [[test]]
//! name = "quota"
//! required-features = ["in-vm"]
//!
//! [package.metadata.vm.quota]     # optional
//! memory = 2048                   # MiB
//! minutes = 10                    # limit
//! udev = true
//! ```

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::proc;

/// The features that mean something here.
const KNOWN: [&str; 4] = ["vm", "in-vm", "cluster", "soak"];

/// A test target.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) package: String,
    pub(crate) name: String,
    /// Its required features.
    pub(crate) features: Vec<String>,
    /// Memory of its machine in MiB.
    pub(crate) memory: u32,
    /// Its time limit.
    pub(crate) minutes: u16,
    /// Whether its machine has udev.
    pub(crate) udev: bool,
}

impl Target {
    /// Whether it runs only with `--all`.
    pub(crate) fn is_long(&self) -> bool {
        self.has("soak")
    }

    /// Whether it runs in a machine.
    pub(crate) fn is_inside(&self) -> bool {
        self.has("in-vm")
    }

    /// Whether it runs with a cluster.
    pub(crate) fn wants_cluster(&self) -> bool {
        self.has("cluster")
    }

    fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<RawTarget>,
    metadata: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawTarget {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

/// `package.metadata.vm.TARGET`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    memory: Option<u32>,
    minutes: Option<u16>,
    udev: bool,
}

/// All test targets of the workspace with one of the known features.
///
/// # Errors
/// cargo cannot describe the workspace, or a target's settings are wrong.
pub(crate) fn targets() -> Result<Vec<Target>> {
    let words = ["metadata", "--format-version", "1", "--no-deps"];
    from_json(&proc::output(proc::cargo().args(words))?)
}

fn from_json(json: &str) -> Result<Vec<Target>> {
    let metadata: Metadata = serde_json::from_str(json)?;
    let mut targets = Vec::new();
    for package in metadata.packages {
        for target in package.targets {
            let known = |feature: &String| KNOWN.contains(&feature.as_str());
            let is_test = target.kind.iter().any(|kind| kind == "test");
            if !is_test || !target.required_features.iter().any(known) {
                continue;
            }
            let path = format!("/vm/{}", target.name);
            let settings =
                package.metadata.as_ref().and_then(|value| value.pointer(&path)).cloned();
            let settings: Settings = settings
                .map_or_else(|| Ok(Settings::default()), serde_json::from_value)
                .with_context(|| format!("metadata.vm.{} of {}", target.name, package.name))?;
            targets.push(Target {
                package: package.name.clone(),
                name: target.name,
                features: target.required_features,
                memory: settings.memory.unwrap_or(2048),
                minutes: settings.minutes.unwrap_or(10),
                udev: settings.udev,
            });
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_by_their_features_with_their_settings() {
        let json = r#"{"packages": [{"name": "p", "metadata": {"vm": {"quota": {"memory": 512}}},
            "targets": [
                {"name": "plain", "kind": ["test"]},
                {"name": "other", "kind": ["test"], "required-features": ["crash-points"]},
                {"name": "quota", "kind": ["test"], "required-features": ["in-vm"]},
                {"name": "long", "kind": ["test"], "required-features": ["vm", "soak"]},
                {"name": "lib", "kind": ["lib"], "required-features": ["vm"]}]}]}"#;
        let found = from_json(json).unwrap();
        let names: Vec<_> = found.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["quota", "long"]);
        assert_eq!((found[0].memory, found[1].memory), (512, 2048));
        assert!(found[0].is_inside() && !found[0].is_long());
        assert!(!found[1].is_inside() && found[1].is_long());
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        let json = r#"{"packages": [{"name": "p", "metadata": {"vm": {"quota": {"memroy": 1}}},
            "targets": [{"name": "quota", "kind": ["test"], "required-features": ["in-vm"]}]}]}"#;
        let error = format!("{:#}", from_json(json).unwrap_err());
        assert!(error.contains("metadata.vm.quota of p") && error.contains("memroy"), "{error}");
    }
}
