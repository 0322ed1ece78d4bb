//! Where a volume is. Text from outside is parsed here once; what comes out leaves no export.

use larder_model::{Fault, Result, id::quoted, volume::Attributes};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The folder of records in an export.
pub(crate) const OURS: &str = ".larder";
/// The file that says whose a directory is, under the folder of places.
pub(crate) const HOLDER: &str = ".volume";
/// The longest name of a directory, and of a path.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 1024;

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = Fault;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_type!(
    /// A server: a DNS name or an address; IPv6 without brackets.
    Server
);
text_type!(
    /// The absolute path that a server exports; without a slash at its end, but for the root.
    Share
);
text_type!(
    /// A directory in a share: one or more names with slashes between.
    SubDir
);

impl FromStr for Server {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        let v6 = bare.parse::<std::net::Ipv6Addr>().is_ok();
        let name = !bare.is_empty()
            && bare.len() <= 253
            && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            && !bare.starts_with(['-', '.']);
        if v6 || (name && bare == text) {
            return Ok(Self(bare.to_owned()));
        }
        Err(Fault::invalid(format!("use the server {}", quoted(text)))
            .hint("write its DNS name or its address"))
    }
}

/// Names between slashes, none of which leads anywhere else.
fn names(text: &str) -> Option<Vec<&str>> {
    let names: Vec<&str> = text.split('/').collect();
    let fine = |name: &&str| {
        !matches!(*name, "" | "." | "..")
            && name.len() <= LONGEST_NAME
            && !name.chars().any(char::is_control)
    };
    (text.len() <= LONGEST_PATH && names.iter().all(fine)).then_some(names)
}

impl FromStr for Share {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            Fault::invalid(format!("use the share {}", quoted(text)))
                .hint("write the absolute path that the server exports, without . and ..")
        };
        let below = text.strip_prefix('/').ok_or_else(refused)?.trim_end_matches('/');
        if below.is_empty() {
            return Ok(Self("/".to_owned()));
        }
        names(below).map(|names| Self(format!("/{}", names.join("/")))).ok_or_else(refused)
    }
}

impl FromStr for SubDir {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            Fault::invalid(format!("use the directory {} of an export", quoted(text))).hint(why)
        };
        let below = text.trim_matches('/');
        let names = names(below).ok_or_else(|| {
            refused("write names with / between, without . and .., as in team/data")
        })?;
        if names[0] == OURS || names.contains(&HOLDER) {
            return Err(refused(".larder and .volume are Larder's own names; choose another"));
        }
        Ok(Self(names.join("/")))
    }
}

impl SubDir {
    /// The directories above it, from the top.
    pub(crate) fn above(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }

    /// The same in another folder, or with another last name.
    pub(crate) fn renamed(&self, name: impl FnOnce(&str) -> String) -> Result<Self> {
        match self.0.rsplit_once('/') {
            Some((above, last)) => format!("{above}/{}", name(last)).parse(),
            None => name(&self.0).parse(),
        }
    }
}

/// Where a volume is, as the kernel is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) server: Server,
    pub(crate) share: Share,
    pub(crate) sub_dir: Option<SubDir>,
}

impl Location {
    /// What the attributes of a volume tell; None: neither server nor share.
    ///
    /// # Errors
    /// `Invalid`, naming the attribute.
    pub(crate) fn of(attributes: &Attributes) -> Result<Option<Self>> {
        let given = |key: &str| attributes.get(key).filter(|text| !text.is_empty());
        let (server, share) = match (given("server"), given("share")) {
            (None, None) => return Ok(None),
            (Some(server), Some(share)) => (server.parse()?, share.parse()?),
            (None, Some(_)) => return Err(Fault::invalid("use attribute share without server")),
            (Some(_), None) => return Err(Fault::invalid("use attribute server without share")),
        };
        let sub_dir = given("subDir").map(|text| text.parse()).transpose()?;
        Ok(Some(Self { server, share, sub_dir }))
    }

    /// `server:/share/directory`, as in mount(2).
    pub(crate) fn source(&self) -> String {
        let server = self.server.as_str();
        let server = if server.contains(':') { format!("[{server}]") } else { server.to_owned() };
        match (self.share.as_str(), &self.sub_dir) {
            (share, None) => format!("{server}:{share}"),
            ("/", Some(sub_dir)) => format!("{server}:/{sub_dir}"),
            (share, Some(sub_dir)) => format!("{server}:{share}/{sub_dir}"),
        }
    }
}

/// What can stand in a template, and the key that holds it.
const TEMPLATES: [(&str, &str); 3] = [
    ("${pvc.metadata.name}", "csi.storage.k8s.io/pvc/name"),
    ("${pvc.metadata.namespace}", "csi.storage.k8s.io/pvc/namespace"),
    ("${pv.metadata.name}", "csi.storage.k8s.io/pv/name"),
];

/// The directory that `template` names for a volume that is asked for as `name` by whom `about` tells.
///
/// # Errors
/// `Invalid` where something in it is not known, or what comes out is no directory.
pub(crate) fn directory(template: &str, name: &str, about: &Attributes) -> Result<SubDir> {
    let mut text = template.to_owned();
    for (word, key) in TEMPLATES {
        if !text.contains(word) {
            continue;
        }
        let value = match about.get(key) {
            Some(value) => value,
            // Provisioners ask under the name that the PersistentVolume gets.
            None if key.ends_with("pv/name") => name,
            None => {
                return Err(Fault::invalid(format!(
                    "make the directory {template}: {key} is not told"
                ))
                .hint("let the provisioner run with --extra-create-metadata"));
            }
        };
        // Else a claim's name could lead out of its namespace's directory.
        if value.contains('/') || value.contains("${") {
            return Err(Fault::invalid(format!(
                "make the directory {template} from {}",
                quoted(value)
            )));
        }
        text = text.replace(word, value);
    }
    if text.contains("${") {
        let known: Vec<_> = TEMPLATES.iter().map(|(word, _)| *word).collect();
        return Err(Fault::invalid(format!("make the directory {}", quoted(template)))
            .hint(format!("known are {}", known.join(", "))));
    }
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;
    use proptest::prelude::*;

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for bad in [
            "",
            "/",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "./a",
            "a//b",
            "a/./b",
            "a\0b",
            "a\nb",
            ".larder",
            ".larder/x",
            "a/.volume",
            &"a".repeat(256),
            &"a/".repeat(600),
        ] {
            let fault = bad.parse::<SubDir>().unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{bad:?}");
        }
        for bad in ["", "x", "../x", "/..", "/a/../b", "/a//b", "/a/./b", "/a\0b"] {
            assert_eq!(bad.parse::<Share>().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
        for bad in ["", "a/b", "a:b", "-o", ".x", "a b", "[::1", "a,b", "a#b", "[a]", "a\nb"] {
            assert_eq!(bad.parse::<Server>().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn a_location_is_written_as_mount_takes_it() {
        let source = |server: &str, share: &str, sub_dir: Option<&str>| {
            let sub_dir = sub_dir.map(|text| text.parse().unwrap());
            let (server, share) = (server.parse().unwrap(), share.parse().unwrap());
            Location { server, share, sub_dir }.source()
        };
        assert_eq!(source("nas", "/x/", None), "nas:/x");
        assert_eq!(source("10.0.0.1", "/", Some("/a/b/")), "10.0.0.1:/a/b");
        assert_eq!(source("[fd00::1]", "/x y", Some("v")), "[fd00::1]:/x y/v");
    }

    #[test]
    fn templates_are_filled_from_what_is_told_of_the_claim() {
        let about: Attributes = [
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "team"),
            ("csi.storage.k8s.io/pv/name", "pvc-1"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let made = |template: &str| directory(template, "n", &about).map(|d| d.to_string());
        assert_eq!(
            made("${pvc.metadata.namespace}/${pvc.metadata.name}-${pv.metadata.name}").unwrap(),
            "team/data-pvc-1"
        );
        assert_eq!(made("fixed").unwrap(), "fixed");
        assert!(made("${pvc.metadata.uid}").unwrap_err().to_string().contains("known are"));
        let none = Attributes::new();
        assert_eq!(directory("${pv.metadata.name}", "n", &none).unwrap().as_str(), "n");
        let fault = directory("${pvc.metadata.name}", "n", &none).unwrap_err();
        assert!(fault.to_string().contains("extra-create-metadata"), "{fault}");
        let bad = [("csi.storage.k8s.io/pvc/name".to_owned(), "../other".to_owned())].into();
        assert!(directory("${pvc.metadata.name}", "n", &bad).is_err());
        let dots = [("csi.storage.k8s.io/pvc/name".to_owned(), "..".to_owned())].into();
        assert!(directory("team/${pvc.metadata.name}", "n", &dots).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_below_its_share(text in "[a./$]{0,12}|\\PC{0,20}") {
            if let Ok(sub_dir) = text.parse::<SubDir>() {
                let path = std::path::Path::new("/x").join(sub_dir.as_str());
                let normal = |c| matches!(c, std::path::Component::Normal(_) | std::path::Component::RootDir);
                prop_assert!(path.starts_with("/x") && path.components().all(normal));
                prop_assert_eq!(sub_dir.as_str().parse::<SubDir>().unwrap(), sub_dir);
            }
        }
    }
}
