//! Errors that the kernel has met on a file system, as it counts and records them.
//!
//! ext4 counts errors in sysfs and in its superblock, where they stay until e2fsck; btrfs counts
//! them per device; xfs counts nothing, but shuts the file system down when it cannot go on. Reading
//! these costs no I/O on the file system itself and never waits for it.

use crate::mounts::DeviceId;
use rustix::{
    fs::{AtFlags, CWD, StatxFlags},
    io::Errno,
};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// What is counted for the file system mounted from `device`, in words; None: nothing.
pub fn of_device(device: DeviceId) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{device}")).ok()?;
    let name = link.file_name()?.to_str()?.to_owned();
    ext4(Path::new("/sys/fs/ext4"), &name).or_else(|| btrfs(Path::new("/sys/fs/btrfs"), &name))
}

/// What is recorded in the ext4 superblock of an image (or device) that is not mounted; None:
/// nothing, or no ext4.
pub fn on_image(image: &Path) -> Option<String> {
    // Kernel: fs/ext4/ext4.h, struct ext4_super_block.
    const AT: u64 = 1024;
    const MAGIC: usize = 0x38;
    const STATE: usize = 0x3a;
    const ERRORS: usize = 0x194;
    const HAS_ERRORS: u16 = 2;
    let mut block = [0; 1024];
    File::open(image).ok()?.read_exact_at(&mut block, AT).ok()?;
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    if half(MAGIC) != 0xef53 {
        return None;
    }
    let count = u32::from_le_bytes([
        block[ERRORS],
        block[ERRORS + 1],
        block[ERRORS + 2],
        block[ERRORS + 3],
    ]);
    match (count, half(STATE) & HAS_ERRORS != 0) {
        (0, false) => None,
        (0, true) => Some("its superblock says that the ext4 file system has errors".to_owned()),
        (n, _) => Some(format!("its superblock counts {n} errors of the ext4 file system")),
    }
}

/// Whether the file system mounted at `path` has shut down: it answers nothing but `EIO`. xfs says so
/// already when its root is looked at, which needs no I/O, so that a device that stands still holds
/// up nobody.
pub fn is_shut_down(path: &Path) -> bool {
    let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let looked = rustix::fs::statx(CWD, path, at, StatxFlags::TYPE);
    matches!(looked, Err(Errno::IO | Errno::SHUTDOWN))
}

fn read(path: PathBuf) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn ext4(sysfs: &Path, name: &str) -> Option<String> {
    let dir = sysfs.join(name);
    let count = read(dir.join("errors_count"))?;
    if count == "0" {
        return None;
    }
    let function = read(dir.join("last_error_func")).filter(|f| !f.is_empty());
    let place = function.map(|f| format!(", the last in {f}")).unwrap_or_default();
    Some(format!("the kernel counts {count} errors of the ext4 file system{place}"))
}

fn btrfs(sysfs: &Path, name: &str) -> Option<String> {
    for entry in std::fs::read_dir(sysfs).ok()?.flatten() {
        if !entry.path().join("devices").join(name).exists() {
            continue;
        }
        let devices = std::fs::read_dir(entry.path().join("devinfo")).ok()?;
        let mut bad = Vec::new();
        for device in devices.flatten() {
            let stats = read(device.path().join("error_stats")).unwrap_or_default();
            bad.extend(stats.lines().filter(|line| !line.ends_with(" 0")).map(str::to_owned));
        }
        return (!bad.is_empty()).then(|| {
            format!("the kernel counts errors of the btrfs file system ({})", bad.join(", "))
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn counted_errors_are_told_and_zeros_are_not() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("loop3/errors_count"), "0\n");
        assert_eq!(ext4(dir.path(), "loop3"), None);
        assert_eq!(ext4(dir.path(), "loop4"), None);
        put(dir.path().join("loop3/errors_count"), "2\n");
        put(dir.path().join("loop3/last_error_func"), "ext4_lookup\n");
        let told = ext4(dir.path(), "loop3").unwrap();
        assert!(told.contains("2 errors") && told.contains("ext4_lookup"), "{told}");

        let fs = dir.path().join("0a-1b");
        put(fs.join("devices/loop5"), "");
        put(fs.join("devinfo/1/error_stats"), "write_errs 0\nread_errs 0\n");
        assert_eq!(btrfs(dir.path(), "loop5"), None);
        put(fs.join("devinfo/1/error_stats"), "write_errs 0\ncorruption_errs 10\n");
        assert!(btrfs(dir.path(), "loop5").unwrap().contains("corruption_errs 10"));
        assert_eq!(btrfs(dir.path(), "loop6"), None);
    }

    #[test]
    fn errors_in_a_superblock_are_told_and_other_data_is_not_mistaken_for_one() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let told = || on_image(image.path());
        assert_eq!(told(), None);
        image.as_file().set_len(1 << 20).unwrap();
        image.as_file().write_all_at(&7_u32.to_le_bytes(), 1024 + 0x194).unwrap();
        assert_eq!(told(), None);
        image.as_file().write_all_at(&0xef53_u16.to_le_bytes(), 1024 + 0x38).unwrap();
        assert!(told().unwrap().contains("7 errors"));
    }

    #[test]
    fn a_working_directory_is_not_shut_down() {
        assert!(!is_shut_down(tempfile::tempdir().unwrap().path()));
        assert!(!is_shut_down(Path::new("/nowhere")));
    }
}
