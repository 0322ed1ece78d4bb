//! Full file systems.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// Takes all that is left of a file system but a little.
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Leaves `pages` of 4 KiB.
    pub(crate) fn space(dir: &Path, pages: u64) -> Self {
        let path = dir.join("filler");
        let mut file = File::create(&path).unwrap();
        let mut size = 1 << 20;
        let chunk = vec![7_u8; size];
        loop {
            match file.write(&chunk[..size]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull && size > 4096 => size /= 2,
                Err(e) if e.kind() == ErrorKind::StorageFull => break,
                Err(e) => panic!("{e}"),
            }
        }
        // Delayed allocation may find the end only now.
        let _ = file.sync_all();
        let written = file.metadata().unwrap().len();
        file.set_len(written.saturating_sub(pages * 4096)).unwrap();
        Self(path)
    }

    /// Leaves `count` inodes.
    pub(crate) fn inodes(dir: &Path, count: usize) -> Self {
        let path = dir.join("filler");
        std::fs::create_dir(&path).unwrap();
        let make = |n: usize| File::create(path.join(n.to_string()));
        let made = (0..).take_while(|n| make(*n).is_ok()).count();
        for n in made - count.min(made)..made {
            std::fs::remove_file(path.join(n.to_string())).unwrap();
        }
        Self(path)
    }

    pub(crate) fn remove(self) {
        if self.0.is_dir() {
            std::fs::remove_dir_all(&self.0).unwrap();
        } else {
            std::fs::remove_file(&self.0).unwrap();
        }
    }
}
