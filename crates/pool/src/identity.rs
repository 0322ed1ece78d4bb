//! A pool's identity: the file that proves that a directory is the pool and not the empty mount
//! point below it, somebody's home, or another backend's pool.
//!
//! Nothing is ever created or deleted in a directory without it. It is written once, by [`init`],
//! before anything else, and never replaced.

use crate::{
    layout::IDENTITY,
    record::{Versioned, parse},
};
use larder_host::{Host, durable};
use larder_model::{Fault, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// What `larder-pool.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Format version of the whole pool. A reader refuses a higher one.
    pub format: u32,
    /// Unique for ever.
    pub id: Uuid,
    /// The kind of backend that works in it.
    pub backend: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Fields of later releases.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Versioned for Identity {
    fn format(&self) -> u32 {
        self.format
    }
}

/// A file as the kernel tells it from others: device and inode.
pub(crate) type FileId = (u64, u64);

/// The identity of the pool in `path`, and which file holds it; None: there is none.
pub(crate) fn read_file(path: &Path) -> Result<Option<(Identity, FileId)>> {
    let file = path.join(IDENTITY);
    let io = |e| Fault::io(format!("read {}", file.display()), e);
    let open = match File::open(&file) {
        Ok(open) => open,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(io(e)),
    };
    let meta = open.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(Fault::corrupt(format!("read {}: it is no file", file.display())));
    }
    let mut text = Vec::new();
    open.take(1 << 20).read_to_end(&mut text).map_err(io)?;
    Ok(Some((parse(&file, &text)?, (meta.dev(), meta.ino()))))
}

/// The identity of the pool in `path`; None: it is no pool.
///
/// # Errors
/// `Unavailable` where its file system does not answer; `Corrupt`, I/O.
pub fn read(path: &Path) -> Result<Option<Identity>> {
    // Commands look here before they find the server that would tell them.
    Host::real().filesystems.answers(path)?;
    Ok(read_file(path)?.map(|(identity, _)| identity))
}

/// Makes `path` a pool of `backend`, or returns the identity it has. The directory is made where it
/// is absent. One that holds other files is refused unless `adopt_files`; then they stay as they
/// are.
///
/// # Errors
/// `Precondition` (a file, not empty, read-only), `Conflict` (a pool of another backend), I/O.
pub fn init(path: &Path, backend: &str, adopt_files: bool) -> Result<Identity> {
    let what = || format!("make a pool of {}", path.display());
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) => {
            return Err(Fault::precondition(format!("{}: it is no directory", what())));
        }
        Err(e) => return Err(Fault::io(what(), e)),
    }
    if let Some(identity) = read(path)? {
        return same_backend(identity, backend, path);
    }
    if !adopt_files && let Some(found) = first_file(path).map_err(|e| Fault::io(what(), e))? {
        return Err(Fault::precondition(format!("{}: it holds {}", what(), found.display())).hint(
            "choose an empty directory, or leave the files in place with --allow-non-empty",
        ));
    }
    let identity = Identity {
        format: crate::record::FORMAT,
        id: Uuid::new_v4(),
        backend: backend.to_owned(),
        created: jiff::Timestamp::now(),
        rest: Map::new(),
    };
    write_once(path, &identity).map_err(|fault| fault.during(what()))?;
    // Where two processes do this at once, the first link wins and both return its identity.
    match read(path)? {
        Some(identity) => same_backend(identity, backend, path),
        None => Err(Fault::unavailable(format!("{}: the identity went away again", what()))),
    }
}

fn same_backend(identity: Identity, backend: &str, path: &Path) -> Result<Identity> {
    if identity.backend == backend {
        return Ok(identity);
    }
    Err(Fault::conflict(format!(
        "use {} as a pool of backend {backend}: it is one of backend {}",
        path.display(),
        identity.backend
    ))
    .hint("configure another path; one directory serves one backend"))
}

/// Whatever makes the directory not empty. `lost+found` comes with a fresh ext4.
fn first_file(path: &Path) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != "lost+found" && !name.starts_with(".larder-pool-new.") {
            return Ok(Some(path.join(&*name)));
        }
    }
    Ok(None)
}

/// Writes the identity under its name unless one is there: a hard link fails where a rename would
/// replace.
fn write_once(path: &Path, identity: &Identity) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(identity)
        .map_err(|e| Fault::internal("write the pool's identity").because(e))?;
    text.push(b'\n');
    let temporary = path.join(format!(".larder-pool-new.{}", Uuid::new_v4().simple()));
    let made = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path.join(IDENTITY)) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    let removed = std::fs::remove_file(&temporary);
    made.and(removed).map_err(|e| Fault::io("write the pool's identity", e))?;
    durable::sync_dir(path)
}

/// What is wrong with a directory that should be a pool but has no identity.
pub(crate) fn missing(path: &Path) -> Fault {
    let fault = |what: &str, hint: &str| {
        Fault::unavailable(format!("use the pool at {}: {what}", path.display())).hint(hint)
    };
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => fault(
            "its identity is missing",
            "mount what holds the pool; what never was one is made one with `larder pool init`",
        ),
        Ok(_) => fault("it is no directory", "correct `path` in the configuration"),
        Err(e) if e.kind() == ErrorKind::NotFound => fault(
            "there is no such directory",
            "mount what holds it; what never was a pool is made one with `larder pool init`",
        ),
        Err(e) => {
            Fault::io(format!("use the pool at {}", path.display()), e).with_kind(Kind::Unavailable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/pool");
        let made = init(&path, "fake", false).unwrap();
        assert_eq!(init(&path, "fake", false).unwrap(), made);
        assert_eq!(read(&path).unwrap(), Some(made));
        assert_eq!(init(&path, "loop", false).unwrap_err().kind(), Kind::Conflict);
        let names: Vec<_> = path.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [IDENTITY], "no temporary file stays");
    }

    #[test]
    fn a_directory_with_files_is_refused_unless_told_and_a_file_always() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        let full = dir.path().join("lost+found");
        std::fs::write(full.join("precious"), "x").unwrap();
        let fault = init(&full, "fake", false).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("precious"), "{fault}");
        init(&full, "fake", true).unwrap();
        assert_eq!(std::fs::read(full.join("precious")).unwrap(), b"x");
        assert_eq!(
            init(&full.join("precious"), "fake", true).unwrap_err().kind(),
            Kind::Precondition
        );
        init(dir.path(), "fake", false).expect("lost+found alone counts as empty");
    }

    #[test]
    fn two_at_once_agree_on_one_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let ids: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..8).map(|_| s.spawn(|| init(path, "fake", true))).collect();
            all.into_iter().map(|t| t.join().unwrap().unwrap().id).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn an_identity_of_a_newer_release_or_a_broken_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(IDENTITY);
        for text in ["{\"format\": 99}", "", "{}", "[]", "{\"format\": 1}"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(dir.path()).unwrap_err().kind(), Kind::Corrupt, "{text}");
            assert!(init(dir.path(), "fake", true).is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it is left as it is");
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(read(dir.path()).is_err());
    }
}
