//! Secrets that cannot be printed, and whose memory is overwritten when they are dropped.

use crate::fault::{Fault, Result};
use std::{collections::BTreeMap, fmt};
use zeroize::Zeroizing;

/// A request's secrets. Debug shows how many there are, never keys' values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, Zeroizing<String>>);

impl Secrets {
    /// Takes the map of a request.
    pub fn new(map: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(map.into_iter().map(|(key, value)| (key, Zeroizing::new(value))).collect())
    }
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.as_str())
    }
    /// The map, for a request that hides it again.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0.into_iter().map(|(key, mut value)| (key, std::mem::take(&mut *value))).collect()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The passphrase under `key`, where there is one.
    ///
    /// # Errors
    /// As [`Passphrase::new`].
    pub fn passphrase(&self, key: &str) -> Result<Option<Passphrase>> {
        let found = self.get(key).map(|text| Passphrase::new(text.as_bytes()));
        found.transpose().map_err(|fault| fault.during(format!("use the secret's key {key}")))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} secrets]", self.0.len())
    }
}

/// What opens an encrypted volume: these bytes, all of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// The longest: it must fit into a pipe at once.
    pub const LONGEST: usize = 8 << 10;

    /// Copies it.
    ///
    /// # Errors
    /// `Invalid` when it is empty or too long.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Fault::invalid("use an empty passphrase"));
        }
        if bytes.len() > Self::LONGEST {
            let longest = Self::LONGEST;
            return Err(Fault::invalid(format!("use a passphrase of more than {longest} bytes")));
        }
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_are_kept_byte_for_byte_and_never_shown() {
        let secrets =
            Secrets::new([("passphrase".into(), "geheim\n".into()), ("e".into(), String::new())]);
        let passphrase = secrets.passphrase("passphrase").unwrap().unwrap();
        assert_eq!(passphrase.bytes(), b"geheim\n");
        assert_eq!(format!("{secrets:?} {passphrase:?}"), "[2 secrets] ***");
        assert_eq!(secrets.passphrase("other").unwrap(), None);
        assert!(secrets.passphrase("e").unwrap_err().to_string().contains("key e"));
        assert!(Passphrase::new(&[b'x'; Passphrase::LONGEST + 1]).is_err());
    }
}
