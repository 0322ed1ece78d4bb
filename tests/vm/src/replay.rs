//! What a power cut can leave on a disk.
//!
//! Killing QEMU loses what the guest had not written yet, but not what it had
//! written and not flushed: that is in the host's memory, which lives on. A real
//! disk's cache forgets it, in any order and in parts. So a [`Disk`] can record its
//! writes (QEMU's `blklogwrites`, the format of the kernel's dm-log-writes), and any
//! moment of the run becomes a disk that a cut at that moment could have left:
//!
//! ```text
//! entry   0 … f          f+1 … n-1                  n …
//!         ≤ last flush   after it                   after the cut
//!         all kept       FUA kept, others: none,    none kept
//!                        some, or some sectors
//! ```
//! Order of entries is order of completion, so every prefix is a possible history.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::disk::Disk;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// Torn writes are torn at this size in bytes: disks write a sector whole.
const SECTOR: u64 = 512;
/// How much is copied at once.
const CHUNK: usize = 1 << 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Byte offset on the disk.
    at: u64,
    /// Length in bytes.
    length: u64,
    flags: u64,
    /// Byte offset of the data in the log.
    data: u64,
}

/// All writes of one run.
#[derive(Clone, Debug)]
pub struct WriteLog {
    path: PathBuf,
    entries: Vec<Entry>,
}

/// One disk that a cut could have left.
#[derive(Clone, Debug)]
pub struct CrashState<'log> {
    log: &'log WriteLog,
    entries: usize,
    seed: Option<u64>,
}

impl WriteLog {
    /// Reads the entries of a log; the data stays in the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let context = || format!("failed to read the write log {}", path.display());
        let file = File::open(path).with_context(context)?;
        let end = file.metadata()?.len();
        let mut head = [0; 32];
        file.read_exact_at(&mut head, 0).with_context(context)?;
        ensure!(number(&head, 0) == MAGIC, "{} is no write log", path.display());
        let unit = number(&head, 3) & u64::from(u32::MAX);
        ensure!(unit.is_power_of_two() && unit >= SECTOR, "sector size {unit} in a write log");
        let mut entries = Vec::new();
        let mut at = unit;
        while at + unit <= end {
            file.read_exact_at(&mut head, at).with_context(context)?;
            let [sector, count, flags] = [0, 1, 2].map(|index| number(&head, index));
            // Not written when QEMU was killed: what follows completed later.
            if count == 0 && flags == 0 {
                break;
            }
            let length = count * unit;
            let data = at + unit;
            let stored = if flags & DISCARD == 0 { length } else { 0 };
            if data + stored > end {
                break;
            }
            entries.push(Entry { at: sector * unit, length, flags, data });
            at = data + stored;
        }
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Number of recorded writes, discards and flushes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The lengths of log that end with a flush.
    #[must_use]
    pub fn flushes(&self) -> Vec<usize> {
        let flush =
            |(index, entry): (usize, &Entry)| (entry.flags & FLUSH != 0).then_some(index + 1);
        self.entries.iter().enumerate().filter_map(flush).collect()
    }

    /// What the first `entries` entries wrote at byte `from` of the disk and behind it, one write
    /// after the other: a part of the disk where somebody only ever appends, so that this is what
    /// stood there at that moment.
    ///
    /// # Errors
    /// Reading the log failed.
    pub fn appended(&self, from: u64, entries: usize) -> Result<Vec<u8>> {
        let log = File::open(&self.path)?;
        let mut bytes = Vec::new();
        let history = self.entries.iter().take(entries);
        for entry in history.filter(|entry| entry.at >= from && entry.flags & DISCARD == 0) {
            let start = bytes.len();
            bytes.resize(start + usize::try_from(entry.length)?, 0);
            log.read_exact_at(&mut bytes[start..], entry.data)?;
        }
        Ok(bytes)
    }

    /// The disk after a cut behind the first `entries` entries (at most [`Self::len`]).
    /// Of the writes since the last flush nothing survives, or what the seed picks.
    #[must_use]
    pub fn crash_state(&self, entries: usize, seed: Option<u64>) -> CrashState<'_> {
        CrashState { log: self, entries: entries.min(self.entries.len()), seed }
    }
}

impl CrashState<'_> {
    /// Makes `disk`, a copy of the disk at the start of the recorded run, this state.
    ///
    /// # Errors
    /// Reading the log or writing the disk failed.
    pub fn apply_to(&self, disk: &Disk) -> Result<()> {
        let log = File::open(&self.log.path)?;
        let target = File::options().write(true).open(disk.path())?;
        let history = &self.log.entries[..self.entries];
        let durable =
            history.iter().rposition(|entry| entry.flags & FLUSH != 0).map_or(0, |i| i + 1);
        let mut random = Random(self.seed.unwrap_or_default());
        for (index, entry) in history.iter().enumerate() {
            if index < durable || entry.flags & FUA != 0 {
                entry.apply(&log, &target, |_| true)?;
            } else if self.seed.is_some() {
                match random.next() % 3 {
                    0 => {}
                    1 => entry.apply(&log, &target, |_| true)?,
                    _ => entry.apply(&log, &target, |_| random.next().is_multiple_of(2))?,
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Does the write, of those sectors that `keep` picks.
    fn apply(&self, log: &File, disk: &File, mut keep: impl FnMut(u64) -> bool) -> Result<()> {
        let sectors = self.length / SECTOR;
        let mut sector = 0;
        while sector < sectors {
            let start = sector;
            while sector < sectors && keep(sector) {
                sector += 1;
            }
            self.apply_range(log, disk, start * SECTOR, sector * SECTOR)?;
            // The one that was not picked, or one past the end.
            sector += 1;
        }
        Ok(())
    }

    /// Does the write's bytes from `start` to `end`.
    fn apply_range(&self, log: &File, disk: &File, start: u64, end: u64) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut at = start;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            if self.flags & DISCARD == 0 {
                log.read_exact_at(&mut buffer[..length], self.data + at)?;
            }
            disk.write_all_at(&buffer[..length], self.at + at)?;
            at += length as u64;
        }
        Ok(())
    }
}

/// The little-endian number at position `index` of 8 bytes each.
fn number(bytes: &[u8; 32], index: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
    u64::from_le_bytes(word)
}

/// splitmix64: equal seeds, equal choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of 512-byte sectors: (sector, fill byte of one sector, flags).
    fn log_of(dir: &Path, entries: &[(u64, u8, u64)]) -> WriteLog {
        let mut bytes = Vec::new();
        for word in [MAGIC, 1, 0, 512] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes.resize(512, 0);
        for &(sector, fill, flags) in entries {
            let count = u64::from(flags & FLUSH == 0);
            let start = bytes.len();
            for word in [sector, count, flags, 0] {
                bytes.extend(u64::to_le_bytes(word));
            }
            bytes.resize(start + 512, 0);
            if count == 1 && flags & DISCARD == 0 {
                bytes.extend([fill; 512]);
            }
        }
        let path = dir.join("log");
        std::fs::write(&path, bytes).unwrap();
        WriteLog::read(&path).unwrap()
    }

    /// First byte of each of the first four sectors after the crash.
    fn after(dir: &Path, state: &CrashState<'_>) -> [u8; 4] {
        let path = dir.join("disk");
        let _ = std::fs::remove_file(&path);
        let disk = Disk::new("data", &path, 2048).unwrap();
        state.apply_to(&disk).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        [0, 1, 2, 3].map(|sector| bytes[sector * 512])
    }

    #[test]
    fn what_was_flushed_survives_and_what_was_not_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, 0), (1, 2, 0), (0, 0, FLUSH), (2, 3, 0), (0, 9, 0)]);
        assert_eq!(log.len(), 5);
        assert_eq!(log.flushes(), [3]);
        assert_eq!(after(dir.path(), &log.crash_state(5, None)), [1, 2, 0, 0]);
    }

    #[test]
    fn a_forced_write_survives_without_a_flush_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, 0), (1, 2, FUA)]);
        assert_eq!(after(dir.path(), &log.crash_state(2, None)), [0, 2, 0, 0]);
    }

    #[test]
    fn nothing_after_the_cut_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, FUA), (1, 2, FUA), (0, 0, FLUSH)]);
        assert_eq!(after(dir.path(), &log.crash_state(1, Some(7))), [1, 0, 0, 0]);
    }

    #[test]
    fn a_flushed_discard_leaves_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, 0), (0, 0, DISCARD), (0, 0, FLUSH)]);
        assert_eq!(after(dir.path(), &log.crash_state(3, None)), [0; 4]);
    }

    #[test]
    fn what_was_appended_is_told_for_every_moment() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(2, 1, 0), (0, 9, 0), (3, 2, FUA), (0, 0, FLUSH)]);
        assert_eq!(log.appended(2 * SECTOR, 0).unwrap(), [0; 0]);
        assert_eq!(log.appended(2 * SECTOR, 2).unwrap(), [1; 512]);
        assert_eq!(log.appended(2 * SECTOR, 4).unwrap(), [[1; 512], [2; 512]].concat());
    }

    #[test]
    fn seeds_reach_every_subset_of_the_unflushed_writes() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, 0), (1, 2, 0)]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let state = after(dir.path(), &log.crash_state(2, Some(seed)));
            assert_eq!(state, after(dir.path(), &log.crash_state(2, Some(seed))));
            seen.insert(state);
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[test]
    fn a_log_that_was_cut_ends_before_the_torn_entry() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(dir.path(), &[(0, 1, 0), (1, 2, 0)]);
        let file = File::options().write(true).open(&log.path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(WriteLog::read(&log.path).unwrap().len(), 1);
    }

    #[test]
    fn another_file_is_no_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, [1; 4096]).unwrap();
        assert!(WriteLog::read(&path).is_err());
    }
}
