//! Events on a disk whose writes are recorded. A mark stands in the record behind everything that
//! led to its event, so that the part of a record up to any moment tells what was acknowledged then.

use std::{fs::File, os::unix::fs::FileExt as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;

use crate::ledger::Event;

/// The size of a mark, which lies on its boundary.
pub const BLOCK: u64 = 4096;

/// Writes marks, one behind the other.
#[derive(Debug)]
pub struct Marks {
    disk: File,
    next: u64,
    /// Direct I/O wants its memory aligned.
    buffer: Vec<u8>,
}

impl Marks {
    /// From this byte of the disk on, which nothing else may use.
    pub fn new(disk: &Path, from: u64) -> Result<Self> {
        let flags = i32::try_from((OFlags::DIRECT | OFlags::CLOEXEC).bits())?;
        let disk = File::options().write(true).custom_flags(flags).open(disk);
        let block = usize::try_from(BLOCK)?;
        Ok(Self {
            disk: disk.context("failed to open the disk")?,
            next: from,
            buffer: vec![0; 2 * block],
        })
    }

    /// Writes one. It is on its way to the disk when this returns; nobody says that it is durable.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        let block = usize::try_from(BLOCK)?;
        let start = self.buffer.as_ptr().align_offset(block);
        let mark = &mut self.buffer[start..start + block];
        let text = format!("{event}\n");
        ensure!(text.len() <= block, "an event of {} bytes", text.len());
        mark.fill(0);
        mark[..text.len()].copy_from_slice(text.as_bytes());
        self.disk.write_all_at(mark, self.next).context("failed to write a mark")?;
        self.next += BLOCK;
        Ok(())
    }
}

/// The events of marks that were found in a record, in their order.
pub fn events(marks: &[u8]) -> Result<Vec<Event>> {
    let blocks = marks.chunks(usize::try_from(BLOCK)?);
    let line = |block: &[u8]| -> Result<Event> {
        let end = block.iter().position(|byte| *byte == b'\n').context("no mark")?;
        str::from_utf8(&block[..end])?.parse()
    };
    blocks.map(line).collect()
}
