//! Memory that this process has freed and still holds.
//!
//! The C library keeps what was freed for the next time it is asked. After one answer of many
//! megabytes that next time may never come.

use crate::sys;
use larder_model::{Fault, Result};

/// How many bytes of this process are in memory that no file backs.
///
/// # Errors
/// I/O: `/proc` is not there.
pub fn anonymous() -> Result<u64> {
    const FILE: &str = "/proc/self/status";
    let text = std::fs::read_to_string(FILE).map_err(|e| Fault::io(format!("read {FILE}"), e))?;
    // proc_pid_status(5): in KiB, whatever a page is.
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Fault::internal(format!("find RssAnon in {FILE}")))
}

/// Gives freed memory back to the kernel. Takes milliseconds, in which others wait for memory.
pub fn give_back() {
    sys::trim_memory();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_in_small_pieces_is_given_back() {
        const MANY: u64 = 64 << 20;
        let before = anonymous().unwrap();
        let mut pieces: Vec<Vec<u8>> = (0..MANY / 1024).map(|_| vec![1; 1024]).collect();
        assert!(anonymous().unwrap() >= before + MANY);
        // The last stays, and with it the end of the heap.
        pieces.drain(..pieces.len() - 1);
        pieces.shrink_to_fit();
        give_back();
        // Tests beside this one take some.
        assert!(anonymous().unwrap() < before + MANY / 2);
    }
}
