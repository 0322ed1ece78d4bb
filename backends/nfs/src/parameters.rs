//! What a StorageClass may say about a volume.

use crate::config::OnDelete;
use larder_model::{Fault, Limits, Params, Result, backend::Parameter, volume::Attributes};

/// The parameters, for help, docs and `driver info`.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "subDir",
        what: "The volume's directory in the export; ${pvc.metadata.name}, ${pvc.metadata.namespace} and \
               ${pv.metadata.name} are filled in. One that exists is used as it is, and never removed.",
        default: "the volume's name",
    },
    Parameter {
        name: "onDelete",
        what: "What becomes of a deleted volume's directory: delete, retain (it stays), archive (it is \
               renamed to archived-NAME).",
        default: "delete, or the export's onDelete",
    },
    Parameter {
        name: "mountPermissions",
        what: "Permissions of the volume's directory, octal; 0 leaves what the server gives.",
        default: "0777",
    },
];

/// Without advice from anybody, every user of a pod may write, as with hostPath.
const EVERYBODY: u32 = 0o777;

/// The parameters of one volume, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeParameters {
    /// A template.
    pub(crate) sub_dir: Option<String>,
    pub(crate) on_delete: Option<OnDelete>,
    /// None: the server's.
    pub(crate) mode: Option<u32>,
}

impl VolumeParameters {
    /// Reads them; unknown keys are refused by name.
    pub(crate) fn read(parameters: &Attributes) -> Result<Self> {
        Limits::refuse(
            parameters,
            "nfs",
            "a directory of a server has no device whose throughput the kernel could limit",
        )?;
        let mut params = Params::new(parameters);
        let sub_dir = params.take("subDir").filter(|text| !text.is_empty());
        let on_delete = params.parse("onDelete")?;
        let mode = match params.take("mountPermissions").filter(|text| !text.is_empty()) {
            None => Some(EVERYBODY),
            Some(text) => {
                octal(&text).map(|mode| Some(mode).filter(|mode| *mode != 0)).ok_or_else(|| {
                    let text = larder_model::id::quoted(&text);
                    Fault::invalid(format!("use parameter mountPermissions={text}"))
                        .hint("write permissions in octal, from 0 to 7777, as in 0777 or 2770")
                })?
            }
        };
        params.finish()?;
        Ok(Self { sub_dir, on_delete, mode })
    }
}

fn octal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u32::from_str_radix(text, 8).ok().filter(|mode| plain && *mode <= 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    fn read(pairs: &[(&str, &str)]) -> Result<VolumeParameters> {
        let map = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        VolumeParameters::read(&map)
    }

    #[test]
    fn parameters_are_read_and_have_defaults() {
        let none = VolumeParameters { sub_dir: None, on_delete: None, mode: Some(0o777) };
        assert_eq!(read(&[]).unwrap(), none);
        let all = [("subDir", "a/b"), ("onDelete", "archive"), ("mountPermissions", "0750")];
        let expected = VolumeParameters {
            sub_dir: Some("a/b".into()),
            on_delete: Some(OnDelete::Archive),
            mode: Some(0o750),
        };
        assert_eq!(read(&all).unwrap(), expected);
        assert_eq!(read(&[("mountPermissions", "0")]).unwrap().mode, None);
    }

    #[test]
    fn wrong_values_and_unknown_keys_are_refused_by_name() {
        for (key, value) in [
            ("onDelete", "keep"),
            ("mountPermissions", "rwx"),
            ("mountPermissions", "10000"),
            ("mountPermissions", "-7"),
            ("server", "nas"),
            ("maxReadBps", "10Mi"),
            ("subdir", "x"),
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
