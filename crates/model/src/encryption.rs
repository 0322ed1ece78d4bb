//! Encryption at rest: what a StorageClass asks for, and what a volume's attributes say.
//!
//! The node engine encrypts any device that a backend hands over, so the parameters mean the same for
//! all backends. They are taken out of a request before its backend sees the rest, and stand in the
//! volume's context afterwards. Passphrases are no parameters: they come with the requests of the
//! node, as secrets.

use crate::{
    backend::Parameter,
    bytes::Bytes,
    fault::{Fault, Result},
    id::quoted,
    volume::Attributes,
};
use std::{fmt, str::FromStr};

/// What the header takes of a volume: its two copies, and the places for its keys.
pub const HEADER: Bytes = Bytes::mib(16);

/// Keys of a request's secrets.
pub mod secret {
    /// Opens the volume.
    pub const PASSPHRASE: &str = "passphrase";
    /// Opened it before: replaced by [`PASSPHRASE`] and taken away.
    pub const OLD_PASSPHRASE: &str = "oldPassphrase";
}

const ENCRYPTION: &str = "encryption";
const LUKS2: &str = "luks2";
const DISCARD: &str = "encryptionDiscard";
const CIPHER: &str = "encryptionCipher";
const KEY_SIZE: &str = "encryptionKeySize";
const MEMORY: &str = "encryptionMemory";
const KEYS: [&str; 5] = [ENCRYPTION, DISCARD, CIPHER, KEY_SIZE, MEMORY];

/// The parameters, for help and docs.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: ENCRYPTION,
        what: "luks2: the node encrypts the volume's device with the passphrase in the node-stage secret.",
        default: "not encrypted",
    },
    Parameter {
        name: DISCARD,
        what: "true: what the file system gives up is given back to the storage. Whoever sees the \
               storage then sees how much is in use, and where.",
        default: "false",
    },
    Parameter {
        name: CIPHER,
        what: "aes-xts-plain64, or xchacha20,aes-adiantum-plain64 for processors without AES.",
        default: "aes-xts-plain64",
    },
    Parameter {
        name: KEY_SIZE,
        what: "Bits of the volume's key: 256 or 512.",
        default: "512 (adiantum: 256)",
    },
    Parameter {
        name: MEMORY,
        what: "Memory that turning a passphrase into a key takes (argon2id), 4Mi to 1Gi. The node's \
               memory limit must leave room for it; a header that asks for more is not opened.",
        default: "64Mi",
    },
];

/// How a volume is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Encryption {
    /// Discards are passed on to the storage.
    pub discard: bool,
    /// The cipher of its data.
    pub cipher: Cipher,
    /// Bits of its key.
    pub key_size: u32,
    /// The most memory that opening it may take.
    pub memory: Bytes,
}

/// A cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cipher {
    /// AES, which nearly every processor has instructions for.
    #[default]
    AesXts,
    /// For processors that have none.
    Adiantum,
}

impl Cipher {
    /// The name that cryptsetup and the kernel know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AesXts => "aes-xts-plain64",
            Self::Adiantum => "xchacha20,aes-adiantum-plain64",
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cipher {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::AesXts, Self::Adiantum];
        all.into_iter().find(|cipher| cipher.as_str() == text).ok_or_else(|| {
            format!("choose one of {}", all.map(|cipher| quoted(cipher.as_str())).join(", "))
        })
    }
}

impl Default for Encryption {
    fn default() -> Self {
        Self { discard: false, cipher: Cipher::AesXts, key_size: 512, memory: Bytes::mib(64) }
    }
}

impl Encryption {
    /// Takes the keys that are about encryption out of a request's parameters.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn take(parameters: &mut Attributes) -> Result<Option<Self>> {
        let found = Self::of_context(parameters);
        parameters.retain(|key, _| !KEYS.contains(&key.as_str()));
        found
    }

    /// What the context of a volume says, whoever wrote it.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn of_context(context: &Attributes) -> Result<Option<Self>> {
        let wrong = |key: &str, text: &str, why: &str| {
            Fault::invalid(format!("use parameter {key}={}: {why}", quoted(text)))
        };
        match context.get(ENCRYPTION).map(String::as_str) {
            Some(LUKS2) => {}
            Some(other) => return Err(wrong(ENCRYPTION, other, "it can only be luks2")),
            None => {
                return match KEYS.iter().find(|key| context.contains_key(**key)) {
                    Some(key) => {
                        Err(Fault::invalid(format!("use parameter {key}: it says nothing alone"))
                            .hint(format!("add {ENCRYPTION}={LUKS2}")))
                    }
                    None => Ok(None),
                };
            }
        }
        let mut found = Self::default();
        let get = |key| context.get(key).map(String::as_str);
        if let Some(text) = get(DISCARD) {
            found.discard =
                text.parse().map_err(|_| wrong(DISCARD, text, "it is true or false"))?;
        }
        if let Some(text) = get(CIPHER) {
            found.cipher = text.parse().map_err(|why: String| wrong(CIPHER, text, &why))?;
        }
        let sizes: &[u32] = match found.cipher {
            Cipher::AesXts => &[512, 256],
            Cipher::Adiantum => &[256],
        };
        found.key_size = match get(KEY_SIZE) {
            None => sizes[0],
            Some(text) => {
                text.parse().ok().filter(|size| sizes.contains(size)).ok_or_else(|| {
                    wrong(KEY_SIZE, text, &format!("with {} it is one of {sizes:?}", found.cipher))
                })?
            }
        };
        if let Some(text) = get(MEMORY) {
            let memory: Bytes = text.parse().map_err(|f: Fault| wrong(MEMORY, text, f.what()))?;
            if !(Bytes::mib(4)..=Bytes::gib(1)).contains(&memory) {
                return Err(wrong(MEMORY, text, "it is at least 4Mi and at most 1Gi"));
            }
            found.memory = memory;
        }
        Ok(Some(found))
    }

    /// For a volume's context: what differs from the defaults, and that it is encrypted at all.
    pub fn context(&self) -> Attributes {
        let usual = Self { cipher: self.cipher, ..Self::default() };
        let usual_size = if self.cipher == Cipher::Adiantum { 256 } else { usual.key_size };
        let mut context = Attributes::from([(ENCRYPTION.to_owned(), LUKS2.to_owned())]);
        let mut add = |differs: bool, key: &str, value: String| {
            if differs {
                context.insert(key.to_owned(), value);
            }
        };
        add(self.discard, DISCARD, self.discard.to_string());
        add(self.cipher != Cipher::default(), CIPHER, self.cipher.to_string());
        add(self.key_size != usual_size, KEY_SIZE, self.key_size.to_string());
        add(self.memory != usual.memory, MEMORY, self.memory.to_string());
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn map(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn parameters_become_the_volumes_context_and_are_read_back_from_it() {
        for (pairs, wanted) in [
            (vec![("encryption", "luks2")], Encryption::default()),
            (
                vec![
                    ("encryption", "luks2"),
                    ("encryptionDiscard", "true"),
                    ("encryptionMemory", "4Mi"),
                ],
                Encryption { discard: true, memory: Bytes::mib(4), ..Encryption::default() },
            ),
            (
                vec![
                    ("encryption", "luks2"),
                    ("encryptionCipher", "xchacha20,aes-adiantum-plain64"),
                ],
                Encryption { cipher: Cipher::Adiantum, key_size: 256, ..Encryption::default() },
            ),
            (
                vec![("encryption", "luks2"), ("encryptionKeySize", "256")],
                Encryption { key_size: 256, ..Encryption::default() },
            ),
        ] {
            let mut parameters = map(&pairs);
            parameters.insert("fs".into(), "xfs".into());
            assert_eq!(Encryption::take(&mut parameters).unwrap(), Some(wanted));
            assert_eq!(parameters, map(&[("fs", "xfs")]));
            assert_eq!(wanted.context(), map(&pairs));
            assert_eq!(Encryption::of_context(&wanted.context()).unwrap(), Some(wanted));
        }
        assert_eq!(Encryption::take(&mut map(&[("fs", "xfs")])).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (key, value) in [
            ("encryption", "luks1"),
            ("encryption", ""),
            ("encryptionDiscard", "yes"),
            ("encryptionCipher", "aes-cbc"),
            ("encryptionKeySize", "128"),
            ("encryptionMemory", "1Ki"),
            ("encryptionMemory", "8Gi"),
        ] {
            let mut pairs = map(&[("encryption", "luks2")]);
            pairs.insert(key.into(), value.into());
            let fault = Encryption::of_context(&pairs).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid);
            assert!(fault.to_string().contains(key), "{fault}");
        }
        let alone = Encryption::of_context(&map(&[("encryptionDiscard", "true")])).unwrap_err();
        assert!(alone.to_string().contains("encryption=luks2"), "{alone}");
    }
}
