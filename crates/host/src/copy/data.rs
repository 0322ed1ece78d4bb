//! The contents of one file, holes kept.

use rustix::{fs::SeekFrom, io::Errno};
use std::{fs::File, io, os::unix::fs::FileExt};

const BUFFER: usize = 1 << 20;
/// So much is asked of a server at a time: it must answer while somebody waits.
const OFFLOADED: usize = 8 << 20;
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

/// As [`copy`], by the file system itself: a server copies without sending anything.
pub(super) fn offload(
    from: &File,
    to: &File,
    size: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, size)? {
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(OFFLOADED).min(OFFLOADED);
            let (mut source, mut target) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), want)
            {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    progress(n as u64);
                    at += n as u64;
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// What the kernel or a server answers that cannot copy by itself.
pub(super) fn cannot_offload(error: &io::Error) -> bool {
    let known = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EXDEV, libc::EINVAL, libc::ENOTTY];
    error.raw_os_error().is_some_and(|code| known.contains(&code))
}

/// The next run of data at or after `at`; all of the rest where the file system tells nothing.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Nothing but a hole up to the end, or it ends before `at` by now.
        Err(Errno::NXIO) if file.metadata()?.len() >= size => return Ok(None),
        Err(Errno::NXIO) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    if start >= size {
        return Ok(None);
    }
    Ok(Some((start, end_of_data(file, start)?.min(size))))
}

/// Where the data at `start` ends.
fn end_of_data(file: &File, start: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        // The file became shorter since the data was found.
        Err(Errno::NXIO) => Err(io::ErrorKind::UnexpectedEof.into()),
        result => Ok(result?),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_shorter_while_it_was_copied_is_no_unknown_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 0).unwrap();
        assert_eq!(next_data(&file, 0, 8192).unwrap(), Some((0, 8192)));
        file.set_len(100).unwrap();
        // Truncated between the two questions, and before the first one.
        assert_eq!(end_of_data(&file, 4096).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let short = next_data(&file, 4096, 8192).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        // A hole at the end is none of this.
        file.set_len(1 << 20).unwrap();
        assert_eq!(next_data(&file, 8192, 1 << 20).unwrap(), None);
    }
}
