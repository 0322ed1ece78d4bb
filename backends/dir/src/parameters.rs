//! What a StorageClass may say about a directory.

use larder_model::{Fault, Limits, Params, Result, backend::Parameter, volume::Attributes};

/// The parameters, for help, docs and `driver info`.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "mode",
        what: "Permissions of the volume's top directory, octal. An existing one (clone, restore) \
               keeps its own.",
        default: "0777",
    },
    Parameter { name: "uid", what: "Owner of the volume's top directory, a number.", default: "0" },
    Parameter { name: "gid", what: "Group of the volume's top directory, a number.", default: "0" },
    Parameter {
        name: "inodes",
        what: "The most files and directories in the volume; needs project quota (ext4, xfs).",
        default: "no limit",
    },
    Parameter {
        name: "requireQuota",
        what: "true: refuse to make the volume where its size cannot be enforced.",
        default: "false, or the pool's requireQuota",
    },
];

/// The parameters of one volume, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VolumeParameters {
    /// Permissions of the top directory.
    pub(crate) mode: u32,
    /// Owner of the top directory.
    pub(crate) uid: u32,
    /// Group of the top directory.
    pub(crate) gid: u32,
    /// The most files and directories.
    pub(crate) inodes: Option<u64>,
    /// Refuse where the size cannot be enforced.
    pub(crate) require_quota: bool,
}

impl VolumeParameters {
    /// Reads them; unknown keys are refused by name.
    pub(crate) fn read(parameters: &Attributes) -> Result<Self> {
        Limits::refuse(
            parameters,
            "dir",
            "a directory has no device of its own whose throughput the kernel could limit",
        )?;
        let mut params = Params::new(parameters);
        let mode = match params.take("mode") {
            None => 0o777,
            Some(text) => octal(&text).ok_or_else(|| {
                Fault::invalid(format!("use parameter mode={}", larder_model::id::quoted(&text)))
                    .hint("write permissions in octal, from 0 to 7777, as in 0777 or 2770")
            })?,
        };
        let read = Self {
            mode,
            uid: id(&mut params, "uid")?,
            gid: id(&mut params, "gid")?,
            inodes: params.parse("inodes")?,
            require_quota: params.parse("requireQuota")?.unwrap_or(false),
        };
        params.finish()?;
        if read.inodes == Some(0) {
            return Err(Fault::invalid("use parameter inodes=0")
                .hint("the top directory is one already; leave it out for no limit"));
        }
        Ok(read)
    }
}

fn octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u32::from_str_radix(digits, 8).ok().filter(|mode| plain && *mode <= 0o7777)
}

/// A user or group. The largest number means "unchanged" to chown(2), so it names nobody.
fn id(params: &mut Params, key: &'static str) -> Result<u32> {
    match params.parse(key)? {
        Some(u32::MAX) => Err(Fault::invalid(format!("use parameter {key}={}", u32::MAX))
            .hint("that number stands for no user or group")),
        id => Ok(id.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    fn read(pairs: &[(&str, &str)]) -> Result<VolumeParameters> {
        VolumeParameters::read(
            &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        )
    }

    #[test]
    fn a_class_without_parameters_gives_everybody_access_as_hostpath_does() {
        let read = read(&[]).unwrap();
        assert_eq!((read.mode, read.uid, read.gid), (0o777, 0, 0));
        assert_eq!((read.inodes, read.require_quota), (None, false));
    }

    #[test]
    fn limits_are_refused_by_name_with_what_can_have_them() {
        let fault = read(&[("maxReadBps", "10Mi")]).unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid);
        let text = fault.to_string();
        assert!(text.contains("maxReadBps") && text.contains("the dir backend"), "{text}");
        assert!(text.contains("loop"), "{text}");
    }

    #[test]
    fn parameters_are_read() {
        let all = [
            ("mode", "2770"),
            ("uid", "1000"),
            ("gid", "2000"),
            ("inodes", "500"),
            ("requireQuota", "true"),
            ("csi.storage.k8s.io/pvc/name", "ignored"),
        ];
        let expected = VolumeParameters {
            mode: 0o2770,
            uid: 1000,
            gid: 2000,
            inodes: Some(500),
            require_quota: true,
        };
        assert_eq!(read(&all).unwrap(), expected);
        assert_eq!(read(&[("mode", "0o700")]).unwrap().mode, 0o700);
    }

    #[test]
    fn wrong_values_and_unknown_keys_are_refused_by_name() {
        for (key, value) in [
            ("mode", "rwx"),
            ("mode", "888"),
            ("mode", "10000"),
            ("mode", ""),
            ("mode", "+7"),
            ("mode", "-7"),
            ("uid", "root"),
            ("uid", "-1"),
            ("gid", "4294967295"),
            ("gid", "4294967296"),
            ("inodes", "0"),
            ("inodes", "many"),
            ("requireQuota", "yes"),
            ("Mode", "0777"),
            ("fs", "xfs"),
        ] {
            let fault = read(&[(key, value)]).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{key}={value}");
            assert!(fault.to_string().contains(key), "{fault}");
        }
    }

    #[test]
    fn every_parameter_that_is_read_is_described() {
        let fault = read(&[("x", "y")]).unwrap_err();
        let mut described: Vec<_> = PARAMETERS.iter().map(|p| p.name).collect();
        described.sort_unstable();
        assert_eq!(fault.hint_text(), Some(&*format!("known are {}", described.join(", "))));
    }
}
