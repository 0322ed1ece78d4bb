//! Work by hand on files: what the driver's work is held against.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::fs::OFlags;

use crate::bed;

/// What direct I/O must be aligned to.
pub(crate) const PAGE: usize = 4096;
/// As large as a record of a volume.
const RECORD_BYTES: usize = 600;

/// One durable record under a new name: write, fsync, rename, fsync of the folder.
pub(crate) fn record(folder: &Path, name: &str) -> Result<()> {
    let temporary = folder.join(".new");
    let mut file = File::create(&temporary)?;
    std::io::Write::write_all(&mut file, &[b'x'; RECORD_BYTES])?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Opens past the page cache.
pub(crate) fn direct(path: &Path) -> Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    options.open(path).with_context(|| format!("failed to open {}", path.display()))
}

/// Memory that direct I/O takes: bytes that do not compress, on a page's boundary.
pub(crate) struct Pages {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Pages {
    pub(crate) fn new(len: usize) -> Self {
        let mut random = Random::new(len as u64);
        let mut bytes = vec![0; len + PAGE];
        bytes
            .chunks_mut(8)
            .for_each(|c| c.copy_from_slice(&random.next().to_ne_bytes()[..c.len()]));
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, start, len }
    }

    pub(crate) fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The same numbers in every run (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Writes `blocks` blocks one after the other from the beginning, and makes them durable.
pub(crate) fn fill(path: &Path, blocks: u64, block: usize) -> Result<()> {
    let mut pages = Pages::new(block);
    let file = direct(path)?;
    for n in 0..blocks {
        file.write_all_at(pages.get(), n * block as u64)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Makes the file consist of more extents: single pages far from each other.
pub(crate) fn scatter(path: &Path, from: u64, stride: u64, count: u64) -> Result<()> {
    let mut page = Pages::new(PAGE);
    let file = direct(path)?;
    for n in 0..count {
        file.write_all_at(page.get(), from + n * stride)?;
    }
    file.sync_all()?;
    Ok(())
}

/// How many extents a file has, as the file system keeps them. (Without `-v` filefrag counts
/// neighbours on the disk as one, although they are far from each other in the file.)
pub(crate) fn extents(path: &Path) -> Result<u32> {
    let text = bed::output(Command::new("filefrag").arg("-v").arg(path))?;
    //    0:        0..     255:         24..       279:    256:             last,eof
    let extent = |line: &&str| {
        let number = line.split(':').next().unwrap_or_default().trim();
        line.contains("..") && number.parse::<u32>().is_ok()
    };
    Ok(u32::try_from(text.lines().filter(extent).count())?)
}
