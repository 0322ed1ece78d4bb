//! Which bytes of a file hold data, and in which bytes two files differ.
//!
//! ```text
//!  base    ──A──│────B────│  hole   │        what their extents say of the same bytes:
//!  target  ──A──│────C────│────D────│        same address: same data, nothing is read
//!               └──────changed──────┘        other address: changed
//! ```
//! Files that share blocks (xfs, btrfs) are compared by the addresses of their extents. That is sound
//! for files that nobody writes: an address that both have at one moment is one block with one
//! content. Since a file system may move data (btrfs balance), the extents are read twice, before
//! and after, and must be the same. Elsewhere, and where an address says nothing (compressed, inline,
//! delayed or unknown extents), the bytes are read and compared.
//!
//! The answer never leaves out a byte that differs. It may name bytes that do not: blocks that were
//! written anew with the same content.
//!
//! Memory is constant, however fragmented the files are.

mod map;
mod sys;

use crate::{image, sys::io_fault};
use larder_model::{Fault, Result, volume::Extent};
use map::{Content, Map, Run};
use std::{
    fs::File,
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

/// Bytes are compared in blocks of this size.
const GRAIN: u64 = 4096;
/// How much is read at a time.
const BUFFER: usize = 256 << 10;
/// How often a file's blocks may be moved during one comparison by address.
const ATTEMPTS: u32 = 3;

/// `f_type` of statfs(2) of file systems whose files share blocks by address.
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683E;

/// What was found, up to where it was looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Ascending, none touching another.
    pub extents: Vec<Extent>,
    /// All before this byte is told of. Whoever asks on from here is told the rest.
    pub next: u64,
}

/// Up to `max` runs of bytes of `file` that hold data, from `offset` to `size`, ascending, none
/// touching another. Space that is reserved and was never written holds none.
///
/// # Errors
/// See [`Fault::io`].
pub fn allocated(file: &Path, size: u64, offset: u64, max: usize) -> Result<Told> {
    let target = image::open(file, true)?;
    let mut found = Found::new(max);
    let mut map = Map::new(&target, offset, size)?;
    while let Some(run) = map.next().map_err(|fault| during(fault, file))? {
        if run.content != Content::Zeros {
            found.add(run.start, run.end);
        }
        if found.is_full(run.end) {
            return Ok(found.finish());
        }
    }
    Ok(found.finish_at(size))
}

/// Up to `max` runs of bytes in which `target` may differ from `base`, from `offset` to `size`,
/// ascending, none touching another. Nobody may write to either file. What is beyond a file's end
/// counts as zeros. Where bytes have to be compared, it ends after `look` of them, so that no call
/// reads for hours.
///
/// # Errors
/// See [`Fault::io`].
pub fn changed(
    base: &Path,
    target: &Path,
    size: u64,
    offset: u64,
    max: usize,
    look: u64,
) -> Result<Told> {
    let files = (image::open(base, true)?, image::open(target, true)?);
    let mut by_address = addresses_tell(&files.0, &files.1)?;
    let mut attempts = 0;
    loop {
        let mut maps = (Map::new(&files.0, offset, size)?, Map::new(&files.1, offset, size)?);
        let mut found = Found::new(max);
        let sides = ((&files.0, &mut maps.0), (&files.1, &mut maps.1));
        let stopped = compare(sides.0, sides.1, by_address, look, &mut found)
            .map_err(|fault| during(fault, target))?;
        // By bytes it makes no difference where they are.
        if !by_address || (maps.0.still_holds()? && maps.1.still_holds()?) {
            return Ok(match stopped {
                Stop::Full => found.finish(),
                Stop::At(byte) => found.finish_at(byte),
                Stop::End => found.finish_at(size),
            });
        }
        attempts += 1;
        by_address = attempts < ATTEMPTS;
    }
}

/// A file and what it is made of.
type Side<'a, 'b> = (&'a File, &'b mut Map<'a>);

/// Why a comparison is over.
enum Stop {
    /// All that was wanted is found.
    Full,
    /// Enough was read; all before this byte is known.
    At(u64),
    /// There is no more.
    End,
}

fn compare(
    base: Side<'_, '_>,
    target: Side<'_, '_>,
    by_address: bool,
    look: u64,
    found: &mut Found,
) -> Result<Stop> {
    let mut reader = None;
    let (mut left, mut right) = (base.1.next()?, target.1.next()?);
    while let (Some(a), Some(b)) = (left, right) {
        let end = a.end.min(b.end);
        match verdict(a, b, by_address) {
            Verdict::Same => {}
            Verdict::Changed => found.add(b.start, end),
            Verdict::Look => {
                let reader = reader.get_or_insert_with(|| Reader::new(look));
                if let Some(stop) = reader.compare((base.0, a), (target.0, b), end, found)? {
                    return Ok(stop);
                }
            }
        }
        if found.is_full(end) {
            return Ok(Stop::Full);
        }
        left = if a.end == end { base.1.next()? } else { Some(a.from(end)) };
        right = if b.end == end { target.1.next()? } else { Some(b.from(end)) };
    }
    Ok(Stop::End)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Changed,
    /// Only the bytes can tell.
    Look,
}

/// What is known of two runs that begin at the same byte.
fn verdict(a: Run, b: Run, by_address: bool) -> Verdict {
    match (a.content, b.content) {
        (Content::Zeros, Content::Zeros) => Verdict::Same,
        _ if !by_address => Verdict::Look,
        (Content::At(a), Content::At(b)) if a == b => Verdict::Same,
        (Content::At(_) | Content::Zeros, Content::At(_) | Content::Zeros) => Verdict::Changed,
        (Content::Data, _) | (_, Content::Data) => Verdict::Look,
    }
}

/// Whether one address in both files is one block: they are on one device of one file system, one
/// that lets files share blocks and tells where they are.
fn addresses_tell(base: &File, target: &File) -> Result<bool> {
    let what = "look at the file system of two files";
    let device = |file: &File| file.metadata().map(|m| m.dev()).map_err(|e| Fault::io(what, e));
    if device(base)? != device(target)? {
        return Ok(false);
    }
    let fs = rustix::fs::fstatfs(target).map_err(|e| io_fault(what, e))?.f_type;
    let realtime = |file: &File| sys::is_realtime(file).unwrap_or(true);
    Ok(match fs {
        BTRFS => true,
        XFS => !realtime(base) && !realtime(target),
        _ => false,
    })
}

/// Reads two files at the same place.
struct Reader {
    base: Vec<u8>,
    target: Vec<u8>,
    /// How much may be read still. The first read is always made: whoever asks on gets on.
    left: u64,
}

impl Reader {
    fn new(look: u64) -> Self {
        Self { base: vec![0; BUFFER], target: vec![0; BUFFER], left: look.max(1) }
    }

    /// Adds the blocks that differ between two runs, up to `end`; None: all is seen and more is wanted.
    fn compare(
        &mut self,
        base: (&File, Run),
        target: (&File, Run),
        end: u64,
        found: &mut Found,
    ) -> Result<Option<Stop>> {
        let mut at = target.1.start;
        while at < end {
            if self.left == 0 {
                return Ok(Some(Stop::At(at)));
            }
            // Reads begin where blocks do.
            let most = BUFFER as u64 - at % GRAIN;
            let length = usize::try_from((end - at).min(most)).unwrap_or(BUFFER);
            read(base, at, &mut self.base[..length])?;
            read(target, at, &mut self.target[..length])?;
            self.left = self.left.saturating_sub(length as u64);
            if self.base[..length] == self.target[..length] {
                at += length as u64;
                if found.is_full(at) {
                    return Ok(Some(Stop::Full));
                }
                continue;
            }
            let mut done = 0;
            while done < length {
                let start = at + done as u64;
                let block = usize::try_from(GRAIN - start % GRAIN).unwrap_or(BUFFER);
                let next = (done + block).min(length);
                if self.base[done..next] != self.target[done..next] {
                    found.add(start, at + next as u64);
                }
                done = next;
                if found.is_full(at + done as u64) {
                    return Ok(Some(Stop::Full));
                }
            }
            at += length as u64;
        }
        Ok(None)
    }
}

/// The bytes of a run at `at`; zeros beyond the end of the file.
fn read((file, run): (&File, Run), at: u64, buffer: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() && run.content != Content::Zeros {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::io(format!("read at byte {at}"), e)),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// What was found, runs that touch joined.
struct Found {
    extents: Vec<Extent>,
    /// The last one, which may grow.
    open: Option<(u64, u64)>,
    max: usize,
}

impl Found {
    fn new(max: usize) -> Self {
        Self { extents: Vec::new(), open: None, max: max.max(1) }
    }

    fn add(&mut self, start: u64, end: u64) {
        match &mut self.open {
            Some((_, last)) if *last == start => *last = end,
            _ => {
                self.close();
                self.open = Some((start, end));
            }
        }
    }

    /// Whether the last of all that are wanted ended before `at`, up to where all is known.
    fn is_full(&mut self, at: u64) -> bool {
        if self.open.is_some_and(|(_, end)| end < at) {
            self.close();
        }
        self.extents.len() >= self.max
    }

    fn close(&mut self) {
        if let Some((offset, end)) = self.open.take() {
            self.extents.push(Extent { offset, length: end - offset });
        }
    }

    /// Full: the rest begins behind the last one.
    fn finish(mut self) -> Told {
        self.close();
        self.extents.truncate(self.max);
        let next = self.extents.last().map_or(0, |last| last.offset + last.length);
        Told { extents: self.extents, next }
    }

    /// All before `next` is looked at.
    fn finish_at(mut self, next: u64) -> Told {
        self.close();
        if self.extents.len() > self.max {
            return self.finish();
        }
        Told { extents: self.extents, next }
    }
}

fn during(fault: Fault, path: &Path) -> Fault {
    fault.during(format!("look for the data of {}", path.display()))
}
