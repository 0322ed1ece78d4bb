//! The contents of one file, holes kept.

use rustix::{fs::SeekFrom, io::Errno};
use std::{fs::File, io, os::unix::fs::FileExt};

const BUFFER: usize = 1 << 20;
/// Zeros of this length that are aligned to it become a hole.
const GRAIN: usize = 64 << 10;

/// Copies the first `size` bytes of `from` into `to`, which is empty but has that size already. Tells
/// `progress` how much was read. Blocks are never shared: `copy_file_range` would do that.
pub(super) fn copy(
    from: &File,
    to: &File,
    size: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, size)? {
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
            // Reads stay aligned, so that holes do.
            let want = want.min(BUFFER - usize::try_from(at % BUFFER as u64).unwrap_or(0));
            let n = match from.read_at(&mut buffer[..want], at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            write_nonzero(to, &buffer[..n], at)?;
            progress(n as u64);
            at += n as u64;
        }
    }
    Ok(())
}

/// The next run of data at or after `at`; all of the rest where the file system tells nothing.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(size))))
}

fn write_nonzero(to: &File, data: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    let mut run = None;
    for chunk in data.chunks(GRAIN) {
        if chunk.iter().all(|b| *b == 0) {
            if let Some(start) = run.take() {
                to.write_all_at(&data[start..done], at + start as u64)?;
            }
        } else if run.is_none() {
            run = Some(done);
        }
        done += chunk.len();
    }
    match run {
        Some(start) => to.write_all_at(&data[start..], at + start as u64),
        None => Ok(()),
    }
}
