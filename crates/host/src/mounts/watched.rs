//! The mounts of this process's namespace, read again only after the kernel has told of a change.
//!
//! Whoever polls an open `mountinfo` is told of every mount, move and unmount that came after the last
//! poll (proc_pid_mounts(5)). It is polled before each use, and what was read after the last change
//! that was told holds everything that came before the poll. Only what changes with those events is
//! kept: a file system that the kernel makes read-only, or a directory that is renamed below a bind
//! mount, is told of by nobody.

use super::{MountPlace, table};
use larder_model::{Fault, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs::File,
    io::{Read as _, Seek as _},
    sync::{Arc, Mutex, PoisonError},
};

const TABLE: &str = "/proc/self/mountinfo";

/// The places, as of the last change.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<Option<Seen>>);

#[derive(Debug)]
struct Seen {
    file: File,
    places: Arc<[MountPlace]>,
}

impl Watched {
    /// All mounts, now.
    pub(super) fn now(&self) -> Result<Arc<[MountPlace]>> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = &*seen
            && is_unchanged(&seen.file)
        {
            return Ok(seen.places.clone());
        }
        // Taken out: what cannot be read now is not kept either.
        let file = match seen.take() {
            Some(old) => old.file,
            None => File::open(TABLE).map_err(|e| Fault::io(what(), e))?,
        };
        let places = read(&file)?;
        *seen = Some(Seen { file, places: places.clone() });
        Ok(places)
    }
}

fn what() -> String {
    format!("read the mount table {TABLE}")
}

/// Whether nothing was mounted or unmounted since the last poll (the first one: since it was opened).
fn is_unchanged(file: &File) -> bool {
    let mut wait = [PollFd::new(file, PollFlags::PRI)];
    poll(&mut wait, Some(&Timespec::default())).is_ok_and(|n| n == 0)
}

fn read(mut file: &File) -> Result<Arc<[MountPlace]>> {
    let mut text = Vec::with_capacity(16 << 10);
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|e| Fault::io(what(), e))?;
    let table = table::parse_mountinfo(&text)
        .ok_or_else(|| Fault::internal(what()).hint("a line of it has an unknown form"))?;
    Ok(table.into_iter().map(MountPlace::from).collect())
}
