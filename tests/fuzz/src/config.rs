//! The configuration file.

use crate::{handles::absolute, well_refused};
use larder_model::Kind;

/// What `larder config show` prints is a configuration, and the same one; and what the check lets
/// pass has its pools and sockets at places of their own.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = match larder::fuzzing::config(text) {
        Ok(read) => read,
        Err(fault) => {
            well_refused(&fault, &[Kind::Invalid]);
            return;
        }
    };
    let again = larder::fuzzing::config(&read.shown)
        .unwrap_or_else(|fault| panic!("what is shown is refused: {fault}\n{}", read.shown));
    assert_eq!(read.shown, again.shown);
    assert_eq!(read.fine, again.fine, "{}", read.shown);
    if !read.fine {
        return;
    }
    assert!(!read.pools.is_empty(), "a configuration without a pool passes");
    read.pools.iter().for_each(|path| absolute(path));
    read.sockets.iter().for_each(|path| absolute(path));
    for (n, path) in read.pools.iter().enumerate() {
        for other in &read.pools[n + 1..] {
            let apart = !path.starts_with(other) && !other.starts_with(path);
            assert!(apart, "{} and {}", path.display(), other.display());
        }
    }
    for (n, socket) in read.sockets.iter().enumerate() {
        for other in &read.sockets[n + 1..] {
            assert_ne!(socket.parent(), other.parent());
        }
    }
}
