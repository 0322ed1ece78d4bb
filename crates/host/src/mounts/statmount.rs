//! One mount, told by the kernel alone: statmount(2), which since Linux 6.15 tells all that a line of
//! the mount table does. The table of a node with a thousand mounts need not be written and read for
//! it.

use super::{DeviceId, MountEntry, table::unescape};
use rustix::{
    fd::AsFd,
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const MNT_OPTS: u64 = 0x80;
const FS_SUBTYPE: u64 = 0x100;
const SB_SOURCE: u64 = 0x200;
const SUPPORTED_MASK: u64 = 0x1000;
/// What a line of the mount table tells.
const LINE: u64 =
    SB_BASIC | MNT_BASIC | MNT_ROOT | MNT_POINT | FS_TYPE | MNT_OPTS | FS_SUBTYPE | SB_SOURCE;

/// `struct mnt_id_req`, as it was at first.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    wanted: u64,
}

/// Where `struct statmount` has its fields, in bytes, and its strings.
mod at {
    pub(super) const OPTIONS: usize = 4;
    pub(super) const MASK: usize = 8;
    pub(super) const MAJOR: usize = 16;
    pub(super) const MINOR: usize = 20;
    pub(super) const SUPER_FLAGS: usize = 32;
    pub(super) const FS_TYPE: usize = 36;
    pub(super) const ID: usize = 56;
    pub(super) const PARENT: usize = 60;
    pub(super) const ATTRIBUTES: usize = 64;
    pub(super) const ROOT: usize = 104;
    pub(super) const POINT: usize = 108;
    pub(super) const SUBTYPE: usize = 120;
    pub(super) const SOURCE: usize = 124;
    pub(super) const SUPPORTED: usize = 144;
    pub(super) const STRINGS: usize = 512;
}

/// With room for the strings: an overlay of many layers has more, and is read in the table.
const WORDS: usize = 1024;

/// This kernel does not tell enough.
static LACKING: AtomicBool = AtomicBool::new(false);

/// The topmost mount at `path` (a final symlink is not followed), None inside where nothing is mounted
/// there. None where the kernel cannot tell: then the mount table does.
#[allow(clippy::option_option, reason = "what is known, and whether it is")]
pub(super) fn top(path: &Path) -> Option<Option<MountEntry>> {
    if LACKING.load(Ordering::Relaxed) {
        return None;
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE | MNT_ID_UNIQUE).ok()?;
    if stat.stx_mask & MNT_ID_UNIQUE.bits() == 0 {
        LACKING.store(true, Ordering::Relaxed);
        return None;
    }
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Some(None);
    }
    told(stat.stx_mnt_id).map(Some)
}

/// The mount that an open file is on; None where the kernel cannot tell.
pub(crate) fn of_file(file: impl AsFd) -> Option<MountEntry> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(file, "", flags, MNT_ID_UNIQUE).ok()?;
    let is_unique = stat.stx_mask & MNT_ID_UNIQUE.bits() != 0;
    (is_unique && !LACKING.load(Ordering::Relaxed)).then(|| told(stat.stx_mnt_id))?
}

/// What the kernel tells of the mount with this id.
fn told(mount: u64) -> Option<MountEntry> {
    let mut buffer = [0; WORDS];
    match statmount(mount, &mut buffer) {
        Ok(()) => {}
        Err(Errno::NOSYS) => {
            LACKING.store(true, Ordering::Relaxed);
            return None;
        }
        // Unmounted just now, hidden by a container's rules, or too long.
        Err(_) => return None,
    }
    let answer = Answer(&buffer);
    if answer.long(at::MASK)? & SUPPORTED_MASK == 0 || answer.long(at::SUPPORTED)? & LINE != LINE {
        LACKING.store(true, Ordering::Relaxed);
        return None;
    }
    answer.entry()
}

#[allow(unsafe_code, reason = "system call without a safe wrapper")]
fn statmount(mount: u64, buffer: &mut [u64; WORDS]) -> rustix::io::Result<()> {
    /// Equal on all architectures.
    const SYS_STATMOUNT: libc::c_long = 457;
    let request = Request { size: 24, spare: 0, mount, wanted: LINE | SUPPORTED_MASK };
    // SAFETY: the request outlives the call, is as large as it says and is only read; the kernel writes
    // at most as many bytes into the buffer as it is told that it has.
    let result = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            buffer.as_mut_ptr(),
            size_of_val(buffer),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::sys::last_error()) }
}

/// What the kernel wrote.
struct Answer<'a>(&'a [u64; WORDS]);

impl Answer<'_> {
    fn long(&self, at: usize) -> Option<u64> {
        self.0.get(at / 8).copied()
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at / 8)?.to_ne_bytes();
        let half = bytes.get(at % 8..at % 8 + 4)?;
        half.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The string whose place the field at `at` tells; empty where the kernel wrote none.
    fn text(&self, at: usize, which: u64) -> Option<Vec<u8>> {
        if self.long(at::MASK)? & which == 0 {
            return Some(Vec::new());
        }
        let from = at::STRINGS + usize::try_from(self.word(at)?).ok()?;
        let bytes = self.0.iter().flat_map(|word| word.to_ne_bytes()).skip(from);
        Some(bytes.take_while(|byte| *byte != 0).collect())
    }

    fn path(&self, at: usize, which: u64) -> Option<PathBuf> {
        let text = self.text(at, which)?;
        (!text.is_empty()).then(|| PathBuf::from(OsString::from_vec(text)))
    }

    fn entry(&self) -> Option<MountEntry> {
        let needed = SB_BASIC | MNT_BASIC;
        if self.long(at::MASK)? & needed != needed {
            return None;
        }
        let string = |text: Vec<u8>| String::from_utf8_lossy(&text).into_owned();
        let subtype = string(self.text(at::SUBTYPE, FS_SUBTYPE)?);
        let mut fs_type = string(self.text(at::FS_TYPE, FS_TYPE)?);
        if !subtype.is_empty() {
            fs_type = format!("{fs_type}.{subtype}");
        }
        let source = string(self.text(at::SOURCE, SB_SOURCE)?);
        let options = self.text(at::OPTIONS, MNT_OPTS)?;
        let options = options.split(|b| *b == b',').filter(|o| !o.is_empty());
        let mut super_options = super_flags(self.word(at::SUPER_FLAGS)?);
        super_options.extend(options.map(|option| string(unescape(option))));
        Some(MountEntry {
            id: self.word(at::ID)?.into(),
            parent: self.word(at::PARENT)?.into(),
            device: DeviceId { major: self.word(at::MAJOR)?, minor: self.word(at::MINOR)? },
            root: self.path(at::ROOT, MNT_ROOT)?,
            target: self.path(at::POINT, MNT_POINT)?,
            options: attributes(self.long(at::ATTRIBUTES)?),
            fs_type,
            source: if source.is_empty() { "none".to_owned() } else { source },
            super_options,
        })
    }
}

/// `ro` or `rw`, and the words for the bits that are set.
fn words(read_only: bool, set: impl Fn(u64) -> bool, names: &[(u64, &str)]) -> Vec<String> {
    let first = if read_only { "ro" } else { "rw" };
    let others = names.iter().filter(|(bit, _)| set(*bit)).map(|(_, name)| *name);
    std::iter::once(first).chain(others).map(str::to_owned).collect()
}

/// The flags of a file system as the mount table words them.
fn super_flags(flags: u32) -> Vec<String> {
    let names = [(0x10, "sync"), (0x80, "dirsync"), (0x200_0000, "lazytime")];
    words(flags & 1 != 0, |bit| u64::from(flags) & bit != 0, &names)
}

/// The attributes of a mount as the mount table words them.
fn attributes(set: u64) -> Vec<String> {
    /// A field: none of its bits means relatime.
    const ACCESS_TIME: u64 = 0x70;
    const RELATIME: u64 = 1 << 63;
    let names = [
        (0x2, "nosuid"),
        (0x4, "nodev"),
        (0x8, "noexec"),
        (0x10, "noatime"),
        (0x80, "nodiratime"),
        (RELATIME, "relatime"),
        (0x20_0000, "nosymfollow"),
        (0x10_0000, "idmapped"),
    ];
    let relatime = if set & ACCESS_TIME == 0 { RELATIME } else { 0 };
    words(set & 1 != 0, |bit| (set | relatime) & bit != 0, &names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::{Mounts as _, RealMounts};

    #[test]
    fn every_mount_of_this_machine_is_told_as_in_the_mount_table() {
        let mounts = RealMounts::new();
        let mut told = 0;
        for entry in mounts.table().unwrap() {
            // Hidden below another one, or unmounted meanwhile by another test.
            let Some(Some(top)) = top(&entry.target) else { continue };
            if top.id != entry.id {
                continue;
            }
            // What others do meanwhile must not fail this.
            let again = mounts.mounts_at(&entry.target).unwrap().pop();
            if again.as_ref() == Some(&entry) {
                assert_eq!(top, entry);
                told += 1;
            }
        }
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
        // Since 6.15 it tells everything that is wanted.
        if (number(), number()) >= (6, 15) {
            assert!(told > 0, "the kernel can tell, and was not heard");
            assert!(!LACKING.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_told_and_what_is_absent_is_left_to_the_table() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(top(dir.path()), None | Some(None)));
        assert_eq!(top(&dir.path().join("no")), None);
    }
}
