//! What of a class's parameters is for the driver, and what is for us.

use crate::secrets::{self, PREFIX};
use larder_model::{Fault, Result, id::quoted};
use std::collections::BTreeMap;

/// The file system; without it, `fstype` in any case counts, too.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// The file system that a class asks for; empty: the driver's choice.
///
/// # Errors
/// `Invalid` where it is given twice.
pub fn fs_type(parameters: &BTreeMap<String, String>, default: &str) -> Result<String> {
    let named = |key: &str| key == FS_TYPE || key.eq_ignore_ascii_case("fstype");
    let mut found = parameters.iter().filter(|(key, _)| named(key));
    let (first, second) = (found.next(), found.next());
    if let (Some((a, _)), Some((b, _))) = (first, second) {
        return Err(Fault::invalid(format!("use file system: both {a} and {b} are given"))
            .hint(format!("keep {FS_TYPE} in the StorageClass only")));
    }
    let given = first.map(|(_, value)| value.as_str()).filter(|v| !v.is_empty());
    Ok(given.unwrap_or(default).to_owned())
}

/// What the driver is told.
///
/// # Errors
/// `Invalid` for a key with our prefix that nobody knows: a typing error would be silent otherwise.
pub fn for_driver(parameters: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (key, value) in parameters {
        if !key.starts_with(PREFIX) {
            out.insert(key.clone(), value.clone());
        } else if key != FS_TYPE && !secrets::is_key(key) {
            return Err(Fault::invalid(format!("use parameter {}: nothing is called so", quoted(key)))
                .hint("keys that start with csi.storage.k8s.io/ are for the controllers; correct it, or take it out of the StorageClass"));
        }
    }
    Ok(out)
}

/// The names of the objects, for drivers that want them.
pub fn metadata(claim: &str, namespace: &str, volume: &str) -> [(String, String); 3] {
    [("pvc/name", claim), ("pvc/namespace", namespace), ("pv/name", volume)]
        .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn map(text: &[(&str, &str)]) -> BTreeMap<String, String> {
        text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[rstest]
    #[case(&[], "", Some(""))]
    #[case(&[], "ext4", Some("ext4"))]
    #[case(&[(FS_TYPE, "xfs")], "ext4", Some("xfs"))]
    #[case(&[(FS_TYPE, "")], "ext4", Some("ext4"))]
    #[case(&[("fstype", "xfs")], "", Some("xfs"))]
    #[case(&[("FsType", "xfs")], "", Some("xfs"))]
    #[case(&[("fsType", "xfs"), (FS_TYPE, "xfs")], "", None)]
    #[case(&[("fstype", "xfs"), ("FSTYPE", "xfs")], "", None)]
    fn the_file_system_is_found(
        #[case] text: &[(&str, &str)],
        #[case] default: &str,
        #[case] wanted: Option<&str>,
    ) {
        assert_eq!(fs_type(&map(text), default).ok().as_deref(), wanted);
    }

    #[test]
    fn the_driver_gets_everything_but_what_is_ours() {
        let given = map(&[
            ("pool", "fast"),
            ("fstype", "xfs"),
            ("csiNodeStageSecretName", "kept"),
            (FS_TYPE, "xfs"),
            ("csi.storage.k8s.io/secret-name", "x"),
            ("csi.storage.k8s.io/node-stage-secret-namespace", "x"),
            ("csi.storage.k8s.io/controller-modify-secret-name", "x"),
        ]);
        let keys: Vec<_> = for_driver(&given).unwrap().into_keys().collect();
        assert_eq!(keys, ["csiNodeStageSecretName", "fstype", "pool"]);
    }

    #[rstest]
    #[case("csi.storage.k8s.io/fsType")]
    #[case("csi.storage.k8s.io/pvc/name")]
    #[case("csi.storage.k8s.io/node-stage-secret-nam")]
    fn an_unknown_reserved_key_is_refused(#[case] key: &str) {
        assert!(for_driver(&map(&[(key, "x")])).unwrap_err().to_string().contains(key));
    }
}
