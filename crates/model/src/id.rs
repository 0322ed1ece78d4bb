//! Names and ids. Text from outside is parsed here once; what comes out can be a path component.
//!
//! ```text
//! requested name  "Data Base/1"          any Unicode the caller likes, at most 128 bytes
//!   └─ native     "data-base-1-9c56…"    [a-z0-9.-], at most 63 bytes, derived, stable
//! handle          "default/data-base-1-9c56…"   <pool>/<native>, what CSI calls volume_id
//! ```
//!
//! The native name derives from the *requested* name, so creation by name and deletion by id share
//! one key space: a crashed creation is found again by its next call.

use crate::fault::{Fault, Result};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

const MAX_LABEL: usize = 63;
/// The longest requested name and handle, in bytes (CSI's general limit for strings).
pub const MAX_TEXT: usize = 128;

fn label(text: &str, what: &str, inner: fn(u8) -> bool, rule: &str) -> Result<String> {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let fine = bytes.len() <= MAX_LABEL
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| inner(*b));
    if fine {
        Ok(text.to_owned())
    } else {
        Err(Fault::invalid(format!("accept {what} {}", quoted(text))).hint(rule))
    }
}

/// Foreign text for a message: escaped, and cut so that it cannot flood a log.
pub fn quoted(text: &str) -> String {
    let cut = text.char_indices().nth(80).map_or(text.len(), |(i, _)| i);
    let dots = if cut < text.len() { "…" } else { "" };
    format!("{:?}{dots}", &text[..cut])
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $inner:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = Fault;
            fn from_str(text: &str) -> Result<Self> {
                label(text, $what, $inner, $rule).map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn dns(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

name_type!(
    /// A CSI driver's name, as in `loop.csi.larder.dev`: domain notation, at most 63 characters.
    DriverName, "driver name", |b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.',
    "use at most 63 letters, digits, dots and dashes, with a letter or digit at both ends"
);
name_type!(
    /// The name of a pool in the configuration.
    PoolName, "pool name", dns,
    "use at most 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
);
name_type!(
    /// The backend's own name of a volume or snapshot inside its pool. Safe as a path component.
    Native, "native volume name", |b| dns(b) || b == b'.',
    "it has at most 63 of a-z, 0-9, '.' and '-', with a letter or digit at both ends"
);

/// The id of a node within a driver: at most 256 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl NodeName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for NodeName {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
            return Err(Fault::invalid(format!("accept node name {}", quoted(text)))
                .hint("use 1 to 256 bytes without control characters"));
        }
        Ok(Self(text.to_owned()))
    }
}
impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name under which a caller asks for a volume or snapshot: 1 to 128 bytes of Unicode without
/// the control characters that CSI forbids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestedName(String);

impl RequestedName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The native name: the requested one where it is one already, otherwise a readable head of it
    /// and twelve hexadecimal digits of its SHA-256.
    pub fn native(&self) -> Native {
        if let Ok(native) = self.0.parse() {
            return native;
        }
        let mut head = String::with_capacity(50);
        for c in self.0.chars().flat_map(char::to_lowercase) {
            let c = if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
            if head.len() == 50 {
                break;
            }
            if c.is_ascii_alphanumeric() || (!head.is_empty() && !head.ends_with(['-', '.'])) {
                head.push(c);
            }
        }
        let head = match head.trim_end_matches(['-', '.']) {
            "" => "v",
            head => head,
        };
        let hash = Sha256::digest(self.0.as_bytes());
        let hex: String = hash.iter().take(6).map(|b| format!("{b:02x}")).collect();
        Native(format!("{head}-{hex}"))
    }
}
impl FromStr for RequestedName {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        // CSI forbids U+0000-08, 0B, 0C, 0E-1F and 7F-9F; tab, newline and return are let through
        // there but can only be a mistake in a name, and would forge log lines.
        if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(Fault::invalid(format!("accept name {}", quoted(text)))
                .hint("use 1 to 128 bytes without control characters"));
        }
        Ok(Self(text.to_owned()))
    }
}
impl fmt::Display for RequestedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A parsed handle: where a volume or snapshot lives, and the text that callers know it by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    raw: String,
    pool: PoolName,
    native: Native,
}

impl Handle {
    /// Our own form, `<pool>/<native>`.
    pub fn new(pool: PoolName, native: Native) -> Self {
        Self { raw: format!("{pool}/{native}"), pool, native }
    }
    /// A handle of another project's form, kept as its users know it (personas).
    pub fn foreign(raw: String, pool: PoolName, native: Native) -> Self {
        Self { raw, pool, native }
    }
    /// The text that callers know it by.
    pub fn as_str(&self) -> &str {
        &self.raw
    }
    /// The pool it lives in.
    pub fn pool(&self) -> &PoolName {
        &self.pool
    }
    /// Its name inside the pool.
    pub fn native(&self) -> &Native {
        &self.native
    }
}

/// Our own form, `<pool>/<native>`.
impl FromStr for Handle {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let ours = || {
            let (pool, native) = text.split_once('/')?;
            Some(Self::new(pool.parse().ok()?, native.parse().ok()?))
        };
        ours().ok_or_else(|| {
            Fault::not_found(format!("find {}: it is not an id of this driver", quoted(text)))
                .hint("ids have the form <pool>/<name>")
        })
    }
}
impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.raw)
    }
}
impl Serialize for Handle {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&self.raw)
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub Handle);

        impl std::ops::Deref for $name {
            type Target = Handle;
            fn deref(&self) -> &Handle {
                &self.0
            }
        }
        impl $name {
            /// The id of `native` in `pool`, in our own form.
            pub fn new(pool: PoolName, native: Native) -> Self {
                Self(Handle::new(pool, native))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
id_type!(
    /// The id of a volume (CSI `volume_id`).
    VolumeId
);
id_type!(
    /// The id of a snapshot (CSI `snapshot_id`).
    SnapshotId
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use proptest::prelude::*;

    #[test]
    fn plain_names_stay_as_they_are_and_others_get_a_readable_unique_form() {
        let native = |n: &str| n.parse::<RequestedName>().unwrap().native().to_string();
        assert_eq!(native("pvc-8f2e"), "pvc-8f2e");
        assert!(native("Data Base/1").starts_with("data-base-1-"), "{}", native("Data Base/1"));
        assert_ne!(native("Data Base/1"), native("data base/1"));
        assert!(native("../../etc").starts_with("etc-"));
        assert!(native("…").starts_with("v-"));
        assert!(native(&"x".repeat(128)).len() <= 63);
    }

    #[test]
    fn names_that_could_leave_a_pool_are_refused() {
        for bad in
            ["", ".", "..", "a/b", "../a", "/a", "-a", "a-", "A", "a\0", "a\n", &"a".repeat(64)]
        {
            assert_eq!(bad.parse::<Native>().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
        for bad in ["", "a\0b", "a\nb", &"a".repeat(129)] {
            assert_eq!(bad.parse::<RequestedName>().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn a_handle_that_cannot_be_ours_is_not_found() {
        for bad in ["", "a", "a/", "/a", "a/b/c", "../a", "a/..", "a/../b", "pool/UP", "a/b\0"] {
            assert_eq!(bad.parse::<Handle>().unwrap_err().kind(), Kind::NotFound, "{bad:?}");
        }
        let handle: Handle = "default/pvc-1".parse().unwrap();
        assert_eq!((handle.pool().as_str(), handle.native().as_str()), ("default", "pvc-1"));
    }

    proptest! {
        #[test]
        fn random_legal_names_give_legal_native_names_and_handles(name in "\\PC{1,40}") {
            if let Ok(name) = name.parse::<RequestedName>() {
                let native = name.native();
                prop_assert!(native.as_str().parse::<Native>().is_ok());
                let handle = Handle::new("default".parse().unwrap(), native);
                prop_assert_eq!(handle.as_str().parse::<Handle>().unwrap(), handle);
            }
        }
    }
}
