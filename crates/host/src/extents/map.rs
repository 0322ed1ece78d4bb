//! What a file is made of, run by run, in constant memory.

use super::sys;
use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{fs::SeekFrom, io::Errno};
use std::{
    collections::VecDeque,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
};

/// What is in a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// Zeros that nobody wrote: a hole, or space that is only reserved.
    Zeros,
    /// Data, stored as it is read; its first byte is at this address of the file system.
    At(u64),
    /// Data whose address tells nothing: compressed, in the inode, not yet placed, unknown.
    Data,
}

/// A run of bytes of one sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) content: Content,
}

impl Run {
    /// The part from `start` on.
    pub(super) fn from(self, start: u64) -> Self {
        let skipped = start - self.start;
        let content = match self.content {
            Content::At(address) => Content::At(address + skipped),
            other => other,
        };
        Self { start, content, ..self }
    }
}

/// The runs of a file in `start..end`: ascending, without gaps or overlaps. What is beyond the
/// file's end is zeros.
pub(super) struct Map<'a> {
    file: &'a File,
    begin: u64,
    at: u64,
    /// The file's own end, at most `end`.
    file_end: u64,
    end: u64,
    ready: VecDeque<Run>,
    /// The file system tells no extents, only what is data and what is not.
    seeks: bool,
    told: u64,
    digest: DefaultHasher,
}

impl<'a> Map<'a> {
    pub(super) fn new(file: &'a File, start: u64, end: u64) -> Result<Self> {
        let length = file.metadata().map_err(|e| Fault::io("look at a file's size", e))?.len();
        Ok(Self {
            file,
            begin: start,
            at: start,
            file_end: length.min(end),
            end,
            ready: VecDeque::new(),
            seeks: false,
            told: 0,
            digest: DefaultHasher::new(),
        })
    }

    /// The next run; None at the end.
    pub(super) fn next(&mut self) -> Result<Option<Run>> {
        if self.ready.is_empty() {
            self.fill()?;
        }
        let Some(run) = self.ready.pop_front() else { return Ok(None) };
        self.told += 1;
        run.hash(&mut self.digest);
        Ok(Some(run))
    }

    /// Whether the file is still made of the runs that were told of.
    pub(super) fn still_holds(&self) -> Result<bool> {
        let mut again = Self::new(self.file, self.begin, self.end)?;
        for _ in 0..self.told {
            if again.next()?.is_none() {
                return Ok(false);
            }
        }
        Ok(again.digest.finish() == self.digest.finish())
    }

    fn fill(&mut self) -> Result<()> {
        if self.at >= self.end {
            return Ok(());
        }
        if self.at >= self.file_end {
            self.push(self.end, Content::Zeros);
            return Ok(());
        }
        if !self.seeks {
            match sys::extents(self.file, self.at, self.file_end) {
                Ok(extents) => return self.take(&extents),
                // EBADR: it cannot write out first.
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::BADR) => {
                    self.seeks = true;
                }
                Err(e) => return Err(io_fault("read a file's extents", e)),
            }
        }
        self.seek()
    }

    fn take(&mut self, extents: &[sys::RawExtent]) -> Result<()> {
        let before = self.at;
        for extent in extents {
            let start = extent.logical.clamp(self.at, self.file_end);
            let end = extent.logical.saturating_add(extent.length).clamp(start, self.file_end);
            if end == start {
                continue;
            }
            self.push(start, Content::Zeros);
            self.push(end, content(extent, start));
        }
        if extents.is_empty() {
            self.push(self.file_end, Content::Zeros);
        }
        if self.at == before {
            return Err(Fault::internal("read a file's extents: the kernel repeats itself"));
        }
        Ok(())
    }

    fn seek(&mut self) -> Result<()> {
        let what = "find the data of a file";
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(self.at)) {
            Ok(start) => start.clamp(self.at, self.file_end),
            Err(Errno::NXIO) => self.file_end,
            // It cannot tell holes either: all may be data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.push(self.file_end, Content::Data);
                return Ok(());
            }
            Err(e) => return Err(io_fault(what, e)),
        };
        self.push(start, Content::Zeros);
        if start < self.file_end {
            let end = rustix::fs::seek(self.file, SeekFrom::Hole(start));
            let end = end.map_err(|e| io_fault(what, e))?.clamp(start + 1, self.file_end);
            self.push(end, Content::Data);
        }
        Ok(())
    }

    /// Everything up to `end` that was not told of is `content`.
    fn push(&mut self, end: u64, content: Content) {
        if end > self.at {
            self.ready.push_back(Run { start: self.at, end, content });
            self.at = end;
        }
    }
}

/// What an extent holds from `start` on. Flags that are not known here may mean anything.
fn content(extent: &sys::RawExtent, start: u64) -> Content {
    let known = sys::LAST | sys::MERGED | sys::SHARED;
    match extent.flags & !known {
        sys::UNWRITTEN => Content::Zeros,
        0 if extent.physical > 0 => {
            Content::At(extent.physical + start.saturating_sub(extent.logical))
        }
        _ => Content::Data,
    }
}
