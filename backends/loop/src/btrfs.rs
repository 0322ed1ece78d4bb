//! A copy of a btrfs file system gets an fsid of its own, so that it mounts beside the original.
//!
//! The kernel tells btrfs file systems apart by the fsid in their superblock. A reflinked image has
//! the original's, and mounting it while the original is mounted fails with `EEXIST` (before Linux
//! 6.7, which invents a temporary fsid for single-device file systems). The on-disk feature
//! `METADATA_UUID` (Linux 5.0) lets the superblock carry a new fsid while every tree block keeps the
//! old one, so that only the superblock's copies change: a constant-time edit.
//!
//! `btrfstune -m` makes the same change, but inside a transaction of its own, which moves the
//! generation on. A file system that was cut with a log tree (anything that called fsync since the
//! last commit) cannot be mounted afterwards: replay fails with "parent transid verify failed".
//! The edit here leaves generation, trees and log as they are. It is made on the private copy of an
//! image that is not a volume yet; when it is cut, the copy is thrown away and made again.

use larder_model::{Fault, Result};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

/// Where the superblock and its mirrors are (`btrfs_sb_offset` of the kernel).
const OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const SIZE: usize = 4096;
const MAGIC: &[u8; 8] = b"_BHRfS_M";

// Offsets in `struct btrfs_super_block` (kernel: include/uapi/linux/btrfs_tree.h).
const CSUM: std::ops::Range<usize> = 0..4;
const SUMMED: std::ops::RangeFrom<usize> = 32..;
const FSID: std::ops::Range<usize> = 32..48;
const BYTENR: usize = 48;
const FLAGS: usize = 56;
const MAGIC_AT: std::ops::Range<usize> = 64..72;
const NUM_DEVICES: usize = 136;
const INCOMPAT: usize = 188;
const CSUM_TYPE: std::ops::Range<usize> = 196..198;
const METADATA_UUID: std::ops::Range<usize> = 571..587;

/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`.
const INCOMPAT_METADATA_UUID: u64 = 1 << 10;
/// `BTRFS_SUPER_FLAG_CHANGING_FSID` and `_V2`: somebody's change was cut half-way.
const CHANGING: u64 = 1 << 35 | 1 << 36;

/// One superblock, as read.
struct Super(Box<[u8; SIZE]>);

impl Super {
    /// The superblock at `offset`; None where there is none (no magic, or past the end).
    fn read(file: &File, offset: u64) -> std::io::Result<Option<Self>> {
        let mut block = Box::new([0; SIZE]);
        match file.read_exact_at(&mut *block, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let found = Self(block);
        Ok((&found.0[MAGIC_AT] == MAGIC && found.number(BYTENR) == offset).then_some(found))
    }

    fn number(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn sum(&self) -> u32 {
        crc32c(&self.0[SUMMED])
    }

    fn is_intact(&self) -> bool {
        self.0[CSUM] == self.sum().to_le_bytes()
    }

    fn rename(&mut self, fsid: &[u8; 16]) {
        let incompat = self.number(INCOMPAT);
        if incompat & INCOMPAT_METADATA_UUID == 0 {
            let old: [u8; 16] = std::array::from_fn(|i| self.0[FSID.start + i]);
            self.0[METADATA_UUID].copy_from_slice(&old);
            let incompat = (incompat | INCOMPAT_METADATA_UUID).to_le_bytes();
            self.0[INCOMPAT..INCOMPAT + 8].copy_from_slice(&incompat);
        }
        self.0[FSID].copy_from_slice(fsid);
        let sum = self.sum().to_le_bytes();
        self.0[CSUM].copy_from_slice(&sum);
    }
}

/// Gives the btrfs file system in `image` the fsid `fsid` and syncs the image; an image that holds
/// no btrfs is left alone. Returns whether there was one.
///
/// # Errors
/// `Corrupt` (superblock damaged), `Precondition` (several devices, a checksum other than crc32c,
/// an unfinished `btrfstune`), I/O errors.
pub(crate) fn give_fsid(image: &Path, fsid: [u8; 16]) -> Result<bool> {
    let io = |e| Fault::io(format!("give the copy {} its own fsid", image.display()), e);
    let file = OpenOptions::new().read(true).write(true).open(image).map_err(io)?;
    let Some(mut first) = Super::read(&file, OFFSETS[0]).map_err(io)? else { return Ok(false) };
    if first.0[CSUM_TYPE] != [0, 0] {
        return Err(Fault::precondition(
            "copy a btrfs file system whose checksums are not crc32c: its copy cannot be given an fsid of its own",
        )
        .hint("make volumes that will be copied without --csum in mkfsOptions"));
    }
    if !first.is_intact() {
        return Err(Fault::corrupt("copy a btrfs file system: its superblock is damaged")
            .hint("see btrfs rescue super-recover"));
    }
    if first.number(NUM_DEVICES) != 1 {
        return Err(Fault::precondition("copy a btrfs file system that spans several devices"));
    }
    if first.number(FLAGS) & CHANGING != 0 {
        return Err(Fault::precondition("copy a btrfs file system whose fsid is being changed")
            .hint("let btrfstune finish on the original"));
    }
    let old: [u8; 16] = std::array::from_fn(|i| first.0[FSID.start + i]);
    // Mirrors first: the first superblock is the one that the kernel believes.
    for offset in &OFFSETS[1..] {
        if let Some(mut mirror) = Super::read(&file, *offset).map_err(io)?
            && mirror.is_intact()
            && mirror.0[FSID] == old
        {
            mirror.rename(&fsid);
            file.write_all_at(&*mirror.0, *offset).map_err(io)?;
        }
    }
    first.rename(&fsid);
    file.write_all_at(&*first.0, OFFSETS[0]).map_err(io)?;
    file.sync_all().map_err(io)?;
    Ok(true)
}

/// CRC-32C (Castagnoli), bit by bit: three blocks per copied volume do not ask for more.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    fn image(content: &[(u64, &[u8])], len: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        for (at, bytes) in content {
            file.as_file().write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn block(bytenr: u64) -> Super {
        let mut block = Super(Box::new([0; SIZE]));
        block.0[FSID].copy_from_slice(&[7; 16]);
        block.0[BYTENR..BYTENR + 8].copy_from_slice(&bytenr.to_le_bytes());
        block.0[MAGIC_AT].copy_from_slice(MAGIC);
        block.0[NUM_DEVICES] = 1;
        let sum = block.sum().to_le_bytes();
        block.0[CSUM].copy_from_slice(&sum);
        block
    }

    #[test]
    fn every_superblock_gets_the_new_fsid_and_remembers_the_first_old_one() {
        let (first, mirror) = (block(OFFSETS[0]), block(OFFSETS[1]));
        let file = image(&[(OFFSETS[0], &*first.0), (OFFSETS[1], &*mirror.0)], 65 << 20);
        assert!(give_fsid(file.path(), [8; 16]).unwrap());
        assert!(give_fsid(file.path(), [9; 16]).unwrap());
        for offset in &OFFSETS[..2] {
            let found = Super::read(file.as_file(), *offset).unwrap().unwrap();
            assert!(found.is_intact());
            assert_eq!((&found.0[FSID], &found.0[METADATA_UUID]), (&[9; 16][..], &[7; 16][..]));
        }
    }

    #[test]
    fn what_is_no_btrfs_is_left_alone() {
        let file = image(&[], 1 << 20);
        assert!(!give_fsid(file.path(), [8; 16]).unwrap());
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![0; 1 << 20]);
        assert!(!give_fsid(image(&[], 10).path(), [8; 16]).unwrap());
    }

    #[test]
    fn a_damaged_or_spanning_file_system_is_refused_unchanged() {
        let mut damaged = block(OFFSETS[0]);
        damaged.0[3000] = 1;
        let mut spanning = block(OFFSETS[0]);
        spanning.0[NUM_DEVICES] = 2;
        let sum = spanning.sum().to_le_bytes();
        spanning.0[CSUM].copy_from_slice(&sum);
        for (block, kind) in [(damaged, Kind::Corrupt), (spanning, Kind::Precondition)] {
            let file = image(&[(OFFSETS[0], &*block.0)], 1 << 20);
            let before = std::fs::read(file.path()).unwrap();
            assert_eq!(give_fsid(file.path(), [8; 16]).unwrap_err().kind(), kind);
            assert_eq!(std::fs::read(file.path()).unwrap(), before);
        }
    }
}
