//! StorageClass parameters and volume attributes.
//!
//! Readers *take* the keys they understand; [`Params::finish`] refuses what is left, by name, so
//! that a misspelt key never silently means "default". Keys under `csi.storage.k8s.io/` belong to
//! Kubernetes and are never refused: callers put them in (pod and claim names, tokens) whether or
//! not a driver reads them.

use crate::fault::{Fault, Result};
use std::{collections::BTreeMap, str::FromStr};

/// The prefix of keys that belong to Kubernetes.
pub const RESERVED: &str = "csi.storage.k8s.io/";

/// A map of parameters that is consumed by those who understand them.
#[derive(Debug, Clone, Default)]
pub struct Params {
    left: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl Params {
    /// All of `map` but the reserved keys.
    pub fn new(map: &BTreeMap<String, String>) -> Self {
        let left = map.iter().filter(|(k, _)| !k.starts_with(RESERVED));
        Self { left: left.map(|(k, v)| (k.clone(), v.clone())).collect(), known: Vec::new() }
    }

    /// Takes `key` as text.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.left.remove(key)
    }

    /// Takes `key` and parses it.
    ///
    /// # Errors
    /// `Invalid`, naming the key, where the value cannot be parsed.
    pub fn parse<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>> {
        self.take(key)
            .map(|text| {
                text.parse().map_err(|e: T::Err| {
                    let text = crate::id::quoted(&text);
                    Fault::invalid(format!("use parameter {key}={text}: {e}"))
                })
            })
            .transpose()
    }

    /// Refuses whatever nobody took.
    ///
    /// # Errors
    /// `Invalid` that names the unknown keys and the known ones.
    pub fn finish(mut self) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        self.known.sort_unstable();
        self.known.dedup();
        let unknown: Vec<_> = self.left.keys().map(|k| crate::id::quoted(k)).collect();
        let fault = Fault::invalid(format!("use unknown parameter {}", unknown.join(", ")));
        Err(match self.known.as_slice() {
            [] => fault.hint("there are none"),
            known => fault.hint(format!("known are {}", known.join(", "))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parameters_are_refused_by_name_and_reserved_ones_are_not() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let mut p = Params::new(&map(&[("fs", "xfs"), ("csi.storage.k8s.io/pvc/name", "x")]));
        assert_eq!(p.parse::<crate::FsType>("fs").unwrap(), Some(crate::FsType::Xfs));
        p.finish().unwrap();
        let mut p = Params::new(&map(&[("fsType", "xfs")]));
        assert_eq!(p.take("fs"), None);
        let fault = p.finish().unwrap_err().to_string();
        assert!(fault.contains("\"fsType\"") && fault.contains("known are fs"), "{fault}");
        let mut p = Params::new(&map(&[("fs", "ntfs")]));
        assert!(p.parse::<crate::FsType>("fs").unwrap_err().to_string().contains("fs=\"ntfs\""));
    }
}
