//! Paging tokens: opaque to callers, and refused when they are not ours.
//!
//! ```text
//! 1v3f9c01.5a1c22d0/pvc-7f0e     version, listing, check, where the page before ended
//! ```
//!
//! A token carries the last id of the page before, so it stays good across restarts and while
//! volumes come and go. The pool is told by a digest of its name, which keeps the token within
//! CSI's 128 bytes for every id of our own form. The check covers listing and filter: a token of
//! another listing, of another filter or of nobody is `Aborted`, upon which CSI callers start
//! again with an empty token.

use larder_model::{Backend, Fault, Handle, Native, PoolName, Result};
use sha2::{Digest, Sha256};

/// What is being listed, with its filter: a token is good for one of these.
#[derive(Debug, Clone, Copy)]
pub(super) enum Listing<'a> {
    Volumes,
    Snapshots { source: &'a str },
    Health,
}

const VERSION: char = '1';

impl Listing<'_> {
    fn letter(self) -> char {
        match self {
            Self::Volumes => 'v',
            Self::Snapshots { .. } => 's',
            Self::Health => 'h',
        }
    }

    /// The token of the page after `last`.
    pub(super) fn token(self, last: &Handle) -> String {
        let own = Handle::new(last.pool().clone(), last.native().clone());
        let place = if own == *last {
            format!("{}/{}", digest(&[last.pool().as_str()], 4), last.native())
        } else {
            format!("={}", last.as_str())
        };
        format!("{VERSION}{}{}.{place}", self.letter(), self.check(&place))
    }

    /// Where to go on: the last id of the page before; None for the empty token.
    ///
    /// # Errors
    /// `Aborted` for what [`Listing::token`] did not make.
    pub(super) fn after(self, token: &str, backend: &dyn Backend) -> Result<Option<String>> {
        if token.is_empty() {
            return Ok(None);
        }
        self.read(token, backend).map(Some).ok_or_else(|| {
            Fault::aborted("continue the listing: the token is not one of this listing")
                .hint("start again with an empty starting_token")
        })
    }

    fn read(self, token: &str, backend: &dyn Backend) -> Option<String> {
        let rest = token.strip_prefix(VERSION)?.strip_prefix(self.letter())?;
        let (check, place) = rest.split_once('.')?;
        if check != self.check(place) {
            return None;
        }
        if let Some(foreign) = place.strip_prefix('=') {
            return Some(foreign.to_owned());
        }
        let (pool, native) = place.split_once('/')?;
        let native: Native = native.parse().ok()?;
        let pools = backend.pools();
        let pool: &PoolName = pools.iter().find(|p| digest(&[p.as_str()], 4) == pool)?;
        Some(Handle::new(pool.clone(), native).as_str().to_owned())
    }

    fn check(self, place: &str) -> String {
        let filter = match self {
            Self::Snapshots { source } => source,
            Self::Volumes | Self::Health => "",
        };
        digest(&[&self.letter().to_string(), filter, place], 3)
    }
}

/// The first `bytes` of the SHA-256 of `parts`, in hexadecimal.
fn digest(parts: &[&str], bytes: usize) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
        digest.update([0xff]); // Never part of UTF-8, so that parts cannot run together.
    }
    digest.finalize().iter().take(bytes).map(|b| format!("{b:02x}")).collect()
}
