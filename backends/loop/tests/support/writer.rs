//! A workload whose every moment can be told from what it wrote.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its own part")]

use std::{
    fs::File,
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub(crate) const RECORD: usize = 4096;

/// Record `n`: its number and nothing else, so that a torn one shows.
fn record(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(RECORD / 8)
}

/// The number of an intact record.
#[track_caller]
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == record(n), "a torn record");
    n
}

/// The smallest and the largest number in a record.
pub(crate) fn numbers(bytes: &[u8]) -> RangeInclusive<u64> {
    let words = || bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words().min().unwrap()..=words().max().unwrap()
}

/// Writes record n to the first place and then to the second, for n = 1, 2, 3 … At every moment the
/// first holds what the second holds, or one more.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(first: (File, u64), second: (File, u64)) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, done) = (stop.clone(), written.clone());
        first.0.write_all_at(&record(0), first.1).unwrap();
        second.0.write_all_at(&record(0), second.1).unwrap();
        let thread = std::thread::spawn(move || {
            for n in 1.. {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                first.0.write_all_at(&record(n), first.1).unwrap();
                second.0.write_all_at(&record(n), second.1).unwrap();
                done.store(n, Ordering::SeqCst);
            }
        });
        Self { stop, written, thread: Some(thread) }
    }

    pub(crate) fn in_files(dir: &Path) -> Self {
        let file = |name: &str| (File::create(dir.join(name)).unwrap(), 0);
        Self::start(file("first"), file("second"))
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// Waits until more is written; fails when it stands still.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let (from, end) = (self.written(), Instant::now() + Duration::from_secs(60));
        while self.written() < from + 2 {
            assert!(Instant::now() < end, "writes are held back");
            std::thread::yield_now();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // A failing test does not wait for writes that may never go on.
        if !std::thread::panicking() {
            self.thread.take().unwrap().join().unwrap();
        }
    }
}
