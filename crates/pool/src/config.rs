//! How a pool is configured.

use larder_host::Host;
use larder_model::{Bytes, Fault, FsType, Period, PoolName, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

/// One entry under `pools` in the configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolConfig {
    /// The directory. Absolute.
    pub path: PathBuf,
    /// Several nodes work on it at once (network or cluster file system): volumes can be used
    /// everywhere, and each volume is locked by itself instead of the pool as a whole.
    #[serde(default)]
    pub shared: bool,
    /// The file system of new volumes whose class names none; None: the backend's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsType>,
    /// Whether the path must be a mount point.
    #[serde(default)]
    pub mount: MountRule,
    /// How often the pool's size may be promised to volumes: 1 promises each byte once. None: no
    /// limit, volumes share what is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overprovision: Option<f64>,
    /// Free space that new volumes, snapshots and growth leave alone.
    #[serde(default, skip_serializing_if = "is_zero", with = "quantity")]
    pub reserve: Bytes,
    /// New volumes are refused where their size cannot be enforced (`dir`: no project quota, no
    /// btrfs qgroup). Images are their size anyway.
    #[serde(default)]
    pub require_quota: bool,
    /// What is deleted is kept for so long, as far as there is room. None: it is removed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Period>,
    /// Make the pool's identity when the directory is empty (or absent).
    #[serde(default)]
    pub create: bool,
}

/// Whether a pool's path must be a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountRule {
    /// It may be any directory.
    #[default]
    Optional,
    /// While nothing is mounted there, the pool is away.
    Required,
}

impl PoolConfig {
    /// A pool in `path` with the defaults for everything else.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: false,
            fs: None,
            mount: MountRule::Optional,
            overprovision: None,
            reserve: Bytes::ZERO,
            require_quota: false,
            trash: None,
            create: false,
        }
    }

    /// Refuses the directory below a mount that is missing: neither is it the pool, nor is it made one.
    ///
    /// # Errors
    /// `Unavailable`, and those of [`larder_host::Mounts::is_mount_point`].
    pub fn is_mounted(&self, host: &Host, name: &PoolName) -> Result<()> {
        if self.mount == MountRule::Required && !host.mounts.is_mount_point(&self.path)? {
            let what = format!("use pool {name}: nothing is mounted at {}", self.path.display());
            return Err(
                Fault::unavailable(what).hint("mount it; the configuration says `mount: required`")
            );
        }
        Ok(())
    }

    /// Refuses what cannot work, before anything is opened.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self) -> Result<()> {
        let clean = self.path.is_absolute()
            && self.path.parent().is_some()
            && self.path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
        if !clean {
            return Err(Fault::invalid(format!("use path {} for a pool", self.path.display()))
                .hint("name an absolute directory without '..', and not the root"));
        }
        if self.shared && self.trash.is_some() {
            return Err(Fault::invalid(
                "use trash for a shared pool: several nodes would empty it",
            )
            .hint("leave trash out; snapshots guard against deletion by mistake there"));
        }
        match self.overprovision {
            Some(f) if !(f.is_finite() && f > 0.0) => {
                Err(Fault::invalid(format!("use overprovision {f} for a pool"))
                    .hint("1 promises each byte once, 2 twice; leave it out for no limit"))
            }
            _ => Ok(()),
        }
    }
}

fn is_zero(bytes: &Bytes) -> bool {
    *bytes == Bytes::ZERO
}

/// Sizes in configuration files: `5Gi` or a plain number.
mod quantity {
    use super::{Bytes, Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Number(u64),
        Quantity(String),
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        match Text::deserialize(d)? {
            Text::Number(n) => Ok(Bytes::new(n)),
            Text::Quantity(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_enough_and_sizes_are_quantities() {
        let read = |text: &str| serde_json::from_str::<PoolConfig>(text);
        assert_eq!(read(r#"{"path": "/p"}"#).unwrap(), PoolConfig::new("/p"));
        let full =
            r#"{"path":"/p","fs":"xfs","mount":"required","overprovision":2,"reserve":"1Gi"}"#;
        let full = read(full).unwrap();
        assert_eq!((full.reserve, full.mount), (Bytes::gib(1), MountRule::Required));
        assert_eq!(read(&serde_json::to_string(&full).unwrap()).unwrap(), full);
        let kept = read(r#"{"path": "/p", "trash": "24h"}"#).unwrap();
        assert_eq!(kept.trash.map(Period::seconds), Some(86_400));
        assert_eq!(read(&serde_json::to_string(&kept).unwrap()).unwrap(), kept);
        assert!(read(r#"{"path": "/p", "trash": "soon"}"#).is_err());
        assert!(PoolConfig { shared: true, ..kept }.check().is_err());
        assert!(read(r#"{"path": "/p", "size": 1}"#).is_err(), "unknown keys are refused");
    }

    #[test]
    fn paths_and_factors_that_cannot_work_are_refused() {
        for path in ["", "relative", "/", "/a/../b"] {
            assert!(PoolConfig::new(path).check().is_err(), "{path}");
        }
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let config = PoolConfig { overprovision: Some(factor), ..PoolConfig::new("/p") };
            assert!(config.check().is_err(), "{factor}");
        }
        PoolConfig { overprovision: Some(0.5), ..PoolConfig::new("/p") }.check().unwrap();
    }
}
