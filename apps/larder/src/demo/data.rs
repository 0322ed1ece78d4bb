//! The demo's data: files that cannot be compressed or guessed, and their checksums.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Checksums by path.
pub(crate) type Sums = BTreeMap<PathBuf, String>;

/// Pseudo-random bytes (xorshift64*): fast, different for each seed.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Writes `bytes` of noise to `file`, synced.
pub(crate) fn write(file: &Path, seed: u64, bytes: usize) -> Result<()> {
    let mut noise = Noise(seed | 1);
    let mut buffer = vec![0; 1 << 20];
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .with_context(|| format!("failed to open {}", file.display()))?;
    let mut left = bytes;
    while left > 0 {
        let n = left.min(buffer.len());
        noise.fill(&mut buffer[..n]);
        out.write_all(&buffer[..n])
            .with_context(|| format!("failed to write {}", file.display()))?;
        left -= n;
    }
    out.sync_all().with_context(|| format!("failed to sync {}", file.display()))
}

/// Writes `files` files of `bytes` each into `folder`.
pub(crate) fn write_files(folder: &Path, files: usize, bytes: usize, seed: u64) -> Result<()> {
    for i in 0..files {
        let sub = folder.join(format!("d{}", i % 4));
        fs::create_dir_all(&sub)?;
        write(
            &sub.join(format!("f{i}")),
            seed.wrapping_add(i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            bytes,
        )?;
    }
    Ok(())
}

/// The checksum of the first `limit` bytes of a file or device.
pub(crate) fn sum(file: &Path, limit: u64) -> Result<String> {
    let mut reader = fs::File::open(file)
        .with_context(|| format!("failed to open {}", file.display()))?
        .take(limit);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader
            .read(&mut buffer)
            .with_context(|| format!("failed to read {}", file.display()))?;
        if n == 0 {
            return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        hash.update(&buffer[..n]);
    }
}

/// The checksums of all files below `folder`, but for the file system's own `lost+found`.
pub(crate) fn sums(folder: &Path) -> Result<Sums> {
    let mut found = Sums::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("failed to read {}", next.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "lost+found") {
                    folders.push(path);
                }
            } else {
                let relative = path.strip_prefix(folder)?.to_owned();
                found.insert(relative, sum(&path, u64::MAX)?);
            }
        }
    }
    Ok(found)
}

/// Deletes everything in `folder`, but for `lost+found`.
pub(crate) fn destroy(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "lost+found") {
                fs::remove_dir_all(&path)?;
            }
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
