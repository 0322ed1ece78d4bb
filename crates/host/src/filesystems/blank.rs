//! Whether a device that others made holds anything at all: every byte of it is looked at.
//!
//! A probe knows signatures and both ends. What a database, a virtual machine or a damaged file system
//! left in the middle has neither, so for a device that is not known to be new only reading all of it
//! proves that nothing is lost by formatting it. A loop device over a sparse image is read only where
//! the image has blocks; a terabyte of holes takes no time.

use super::probe::open;
use crate::{loops, sys::io_fault};
use larder_model::{Cx, Fault, Result};
use rustix::{
    fs::{Advice, SeekFrom},
    io::Errno,
};
use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

/// What is read at once: all the memory that this takes.
const PIECE: usize = 1 << 20;
/// How much is kept in the page cache, which others need more.
const KEPT: u64 = 64 << 20;

/// See [`super::FileSystems::first_data`].
pub(super) fn first_data(device: &Path, cx: &Cx) -> Result<Option<u64>> {
    let file = open(device)?;
    let what = || format!("read all of {}", device.display());
    let size = crate::sys::block_device_size(&file).map_err(|e| io_fault(what(), e))?;
    cx.expect(size);
    // The image behind it; what the device had in its cache was written to it when it was opened.
    let image = loops::image_behind(&file, device);
    let mut at = 0;
    while at < size {
        let Some(part) = next_part(image.as_ref(), at, size) else { break };
        cx.advance(part.start - at);
        if let Some(found) = read_zeros(&file, &part, device, cx)? {
            return Ok(Some(found));
        }
        at = part.end;
    }
    Ok(None)
}

/// The next part from `at` on that may hold something; None: nothing does up to the end.
fn next_part(image: Option<&File>, at: u64, size: u64) -> Option<Range<u64>> {
    let whole = Some(at..size);
    let Some(image) = image else { return whole };
    let start = match rustix::fs::seek(image, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return None,
        // A file system that cannot tell: everything is read.
        Err(_) => return whole,
    };
    if start >= size {
        return None;
    }
    match rustix::fs::seek(image, SeekFrom::Hole(start)) {
        Ok(end) if end > start => Some(start..end.min(size)),
        _ => Some(start..size),
    }
}

/// Reads `part`; the offset of its first byte that is not zero.
fn read_zeros(file: &File, part: &Range<u64>, device: &Path, cx: &Cx) -> Result<Option<u64>> {
    let what = |at: u64| format!("read {} at byte {at}", device.display());
    let mut buffer = vec![0; PIECE];
    let (mut at, mut cached) = (part.start, part.start);
    while at < part.end {
        let want = usize::try_from(part.end - at).unwrap_or(PIECE).min(PIECE);
        let n = file.read_at(&mut buffer[..want], at).map_err(|e| Fault::io(what(at), e))?;
        if n == 0 {
            // A device that ends before its size does: nothing about it is proven.
            return Err(Fault::internal(format!("{}: it ends there", what(at))));
        }
        if let Some(offset) = buffer[..n].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + offset as u64));
        }
        at += n as u64;
        cx.advance(n as u64);
        if at - cached >= KEPT || at >= part.end {
            let length = std::num::NonZeroU64::new(at - cached);
            // Only advice: nothing depends on it.
            let _ = rustix::fs::fadvise(file, cached, length, Advice::DontNeed);
            cached = at;
        }
    }
    Ok(None)
}
