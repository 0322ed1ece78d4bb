//! Whether two calls ask for the same.

use sha2::{Digest, Sha256};
use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// A digest of an operation's arguments. Callers leave secrets out: CSI does not compare them, and
/// they are rotated while a call is being repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The digest of `arguments` (a tuple of references does). SHA-256, because the arguments come
    /// from outside: nobody can craft a call that is taken for another one's repeat.
    pub fn of(arguments: &(impl Hash + ?Sized)) -> Self {
        let mut digest = Digester(Sha256::new());
        arguments.hash(&mut digest);
        Self(digest.0.finalize().into())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Feeds [`Hash`] into SHA-256. The standard implementations write lengths before sequences and an
/// end mark after text, so that ("ab", "c") and ("a", "bc") differ.
struct Digester(Sha256);

impl Hasher for Digester {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        let digest: [u8; 32] = self.0.clone().finalize().into();
        digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_equal_arguments_have_equal_fingerprints() {
        let map = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let print = |name: &str, map: &BTreeMap<String, String>| Fingerprint::of(&(name, map));
        assert_eq!(print("a", &map("k", "v")), print("a", &map("k", "v")));
        assert_ne!(print("a", &map("k", "v")), print("a", &map("kv", "")));
        assert_ne!(print("ak", &map("", "v")), print("a", &map("k", "v")));
        assert_ne!(Fingerprint::of(&("ab", "c")), Fingerprint::of(&("a", "bc")));
        assert_ne!(Fingerprint::of(&None::<u8>), Fingerprint::of(&Some(0u8)));
    }
}
