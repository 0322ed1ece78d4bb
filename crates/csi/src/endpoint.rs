//! Where a driver is served: `unix:///absolute/path.sock`, or just the path.

use larder_model::{Fault, Result};
use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// The address of a CSI socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(PathBuf);

impl Endpoint {
    /// The socket's path: absolute, without `..`.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        let wrong = |why: &str| {
            let text = larder_model::id::quoted(text);
            Err(Fault::invalid(format!("use endpoint {text}: {why}"))
                .hint("write unix:///absolute/path/csi.sock"))
        };
        let path = Path::new(path);
        if path.to_string_lossy().contains(|c: char| c == '\0' || c.is_control()) {
            return wrong("it has a control character");
        }
        if !path.is_absolute() {
            return wrong("it is not an absolute path of a unix socket");
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return wrong("it contains ..");
        }
        if path.file_name().is_none() || text.ends_with('/') {
            return wrong("it names a folder");
        }
        Ok(Self(path.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_absolute_unix_path() {
        for good in ["unix:///run/larder/csi.sock", "/run/larder/csi.sock"] {
            let endpoint: Endpoint = good.parse().unwrap();
            assert_eq!(endpoint.to_string(), "unix:///run/larder/csi.sock");
        }
        for bad in [
            "",
            "csi.sock",
            "unix://csi.sock",
            "tcp://1.2.3.4:5",
            "unix:///a/../b.sock",
            "/a/b/",
            "/",
            "/a\nb",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }
}
