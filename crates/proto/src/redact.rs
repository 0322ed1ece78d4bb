//! The wrappers that the generated `Debug` implementations put around fields.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;

use crate::STRIPPED;

/// Keys whose value is a credential although the map as a whole is not.
///
/// kubelet puts the tokens that a `CSIDriver` asks for with `tokenRequests`
/// into the volume context of NodePublishVolume, unless the object also has
/// `serviceAccountTokenInSecrets`.
const SECRET_KEYS: [&str; 1] = ["csi.storage.k8s.io/serviceAccount.tokens"];

/// Shows how much there is of a secret, and its keys, but no value.
pub(crate) struct Secret<'a, T>(pub(crate) &'a T);

impl Debug for Secret<'_, BTreeMap<String, String>> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, Hidden))).finish()
    }
}

impl Debug for Secret<'_, Vec<String>> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|_| Hidden)).finish()
    }
}

/// An empty one is shown as empty: that it is missing is no secret, and often
/// what was looked for.
impl Debug for Secret<'_, String> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("\"\"") } else { Hidden.fmt(f) }
    }
}

struct Hidden;

impl Debug for Hidden {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(STRIPPED)
    }
}

/// A map that is no secret, except for the values of [`SECRET_KEYS`].
pub(crate) struct Map<'a>(pub(crate) &'a BTreeMap<String, String>);

impl Debug for Map<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (key, value) in self.0 {
            if SECRET_KEYS.contains(&key.as_str()) {
                map.entry(key, &Hidden);
            } else {
                map.entry(key, value);
            }
        }
        map.finish()
    }
}

/// An enum field by its name; by its number when the name is not known here.
pub(crate) struct Enum<'a, T> {
    number: &'a i32,
    kind: PhantomData<T>,
}

impl<'a, T> Enum<'a, T> {
    pub(crate) fn new(number: &'a i32) -> Self {
        Self { number, kind: PhantomData }
    }
}

impl<T: TryFrom<i32> + Debug> Debug for Enum<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match T::try_from(*self.number) {
            Ok(known) => known.fmt(f),
            Err(_) => self.number.fmt(f),
        }
    }
}
