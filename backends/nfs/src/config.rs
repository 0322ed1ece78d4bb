//! How an export is configured.

use crate::place::{Server, Share};
use larder_model::{Fault, id::quoted};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, str::FromStr};

/// One entry under `exports` in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportConfig {
    /// The server's name or address.
    pub server: Server,
    /// What it exports; volumes are directories in it.
    pub share: Share,
    /// As after `mount -o`, for every mount of its volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
    /// What becomes of a deleted volume whose class does not say.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// The first volume makes the export ours when it has no identity.
    #[serde(default)]
    pub create: bool,
    /// The identity that it must have; nothing is made then, whatever `create` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<uuid::Uuid>,
    /// Where the export is a directory of this very machine: the control plane works in it without NFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<PathBuf>,
}

impl ExportConfig {
    /// An export with the defaults for everything else.
    pub fn new(server: Server, share: Share) -> Self {
        Self {
            server,
            share,
            mount_options: Vec::new(),
            on_delete: OnDelete::default(),
            create: false,
            identity: None,
            local: None,
        }
    }
}

/// `server:/share`, as mount(8) has it.
impl FromStr for ExportConfig {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let (server, share) = text.rsplit_once(":/").ok_or_else(|| {
            Fault::invalid(format!("use the export {}", quoted(text)))
                .hint("write server:/share, as in nas.example:/export/volumes")
        })?;
        Ok(Self::new(server.parse()?, format!("/{share}").parse()?))
    }
}

/// What becomes of a deleted volume's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// It is removed with all that is in it.
    #[default]
    Delete,
    /// It stays where it is.
    Retain,
    /// It is renamed: `archived-` and its name.
    Archive,
}

impl FromStr for OnDelete {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "delete" => Ok(Self::Delete),
            "retain" => Ok(Self::Retain),
            "archive" => Ok(Self::Archive),
            _ => Err(Fault::invalid("it is none of delete, retain and archive")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_and_share_are_enough_and_unknown_keys_are_refused() {
        let read = |text: &str| serde_json::from_str::<ExportConfig>(text);
        let short = read(r#"{"server": "nas.example", "share": "/export/k8s/"}"#).unwrap();
        assert_eq!(short, "nas.example:/export/k8s".parse().unwrap());
        let full = r#"{"server":"::1","share":"/x","mountOptions":["nconnect=4"],"onDelete":"archive","create":true,
            "identity":"0b5ba0a5-4f4e-4b2c-9a4f-2a5a3b1c7d10"}"#;
        let full = read(full).unwrap();
        assert_eq!((full.on_delete, full.create), (OnDelete::Archive, true));
        assert_eq!(read(&serde_json::to_string(&full).unwrap()).unwrap(), full);
        for wrong in [
            r#"{"server": "nas", "share": "/x", "path": "/y"}"#,
            r#"{"server": "nas", "share": "/x/../y"}"#,
            r#"{"server": "nas/x", "share": "/x"}"#,
            r#"{"server": "nas", "share": "/x", "onDelete": "keep"}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_export_is_written_as_mount_has_it() {
        let read = |text: &str| text.parse::<ExportConfig>();
        assert_eq!(read("[::1]:/x").unwrap().server.as_str(), "::1");
        assert_eq!(read("nas:/a/b").unwrap().share.as_str(), "/a/b");
        for wrong in ["nas", "/x", ":/x", "nas:x", "nas:/a/../b"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
