//! What is on a device.

use super::{Found, Identity};
use crate::{command::Command, sys::io_fault};
use larder_model::{Fault, FsType, Kind, Result};
use rustix::fs::{CWD, Mode, OFlags};
use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    time::Duration,
};

/// How much of each end of a device must be zeros: more than any format's first signature is deep.
const END: u64 = 4 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// See [`super::FileSystems::probe`].
pub(super) fn probe(device: &Path) -> Result<Found> {
    let file = open(device)?;
    let tags = signatures(device)?;
    if let Some(found) = judge(&tags) {
        return Ok(found);
    }
    Ok(match first_nonzero(&file, device)? {
        None => Found::Blank,
        Some(at) => Found::Other(format!("{}{at}", super::DATA)),
    })
}

/// See [`super::FileSystems::identity`].
pub(super) fn identity(device: &Path) -> Result<Identity> {
    open(device)?;
    let tags = signatures(device)?;
    let tag = |name: &str| tags.get(name).filter(|v| !v.is_empty()).cloned();
    Ok(Identity { label: tag("LABEL"), uuid: tag("UUID") })
}

/// Opens the device and forgets what the page cache holds of it: a shared disk may have been
/// written by another machine, an image by another way than this device.
pub(super) fn open(device: &Path) -> Result<File> {
    let what = || format!("probe {}", device.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, device, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| io_fault(what(), e))?;
    let meta = file.metadata().map_err(|e| Fault::io(what(), e))?;
    if meta.file_type().is_block_device() {
        flush_cache(&file).map_err(|e| io_fault(what(), e))?;
        Ok(file)
    } else {
        Err(Fault::precondition(format!("{}: it is no block device", what())))
    }
}

#[allow(unsafe_code, reason = "BLKFLSBUF has no safe wrapper")]
fn flush_cache(device: &File) -> rustix::io::Result<()> {
    const BLKFLSBUF: u32 = 0x1261;
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { crate::sys::ioctl_number(device, BLKFLSBUF, 0) }.map(drop)
}

type Tags = BTreeMap<String, String>;

/// All that blkid's low-level probe finds (`TYPE`, `USAGE`, `PTTYPE`, `UUID`, `LABEL` …).
fn signatures(device: &Path) -> Result<Tags> {
    let output = Command::new("blkid")
        .args(["--probe", "--output", "export", "--"])
        .arg(device)
        .deadline(DEADLINE)
        .run_any()?;
    match output.code() {
        Some(0) => Ok(parse(&output.text())),
        // Nothing found. The device itself was opened by us before, so it is no missing file.
        Some(2) => Ok(Tags::new()),
        // Several signatures that contradict each other.
        Some(8) => Ok(Tags::from([("TYPE".to_owned(), "several signatures".to_owned())])),
        code => Err(Fault::new(
            Kind::Internal,
            format!(
                "probe {}: blkid ended with {code:?}: {}",
                device.display(),
                output.stderr.trim()
            ),
        )),
    }
}

/// Lines `NAME=value`; blkid puts a backslash before what a shell would read.
fn parse(text: &str) -> Tags {
    let unescape = |value: &str| {
        let mut plain = String::with_capacity(value.len());
        let mut characters = value.chars();
        while let Some(c) = characters.next() {
            plain.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
        }
        plain
    };
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), unescape(value)))
        .collect()
}

/// None: no signature. A partition's own entry in its disk's table (`PART_ENTRY_…`) is none.
fn judge(tags: &Tags) -> Option<Found> {
    let kind = tags.get("TYPE").map(String::as_str);
    if let Some(table) = tags.get("PTTYPE") {
        return Some(Found::Other(match kind {
            Some(kind) => format!("{kind} and a partition table ({table})"),
            None => format!("partition table ({table})"),
        }));
    }
    let kind = kind?;
    let ours = FsType::ALL.into_iter().find(|fs| fs.as_str() == kind);
    Some(match ours {
        Some(fs) => Found::FileSystem(fs),
        None => Found::Other(match kind {
            "crypto_LUKS" => super::LUKS.to_owned(),
            kind => kind.to_owned(),
        }),
    })
}

/// Offset of the first byte that is not zero in the first and last 4 MiB.
fn first_nonzero(file: &File, device: &Path) -> Result<Option<u64>> {
    let what = |at: u64| format!("read {} at byte {at}", device.display());
    let size = crate::sys::block_device_size(file).map_err(|e| io_fault(what(0), e))?;
    let parts = [0..END.min(size), END.max(size.saturating_sub(END))..size.max(END)];
    let mut buffer = vec![0; 256 << 10];
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            let want = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(buffer.len());
            let n = file.read_at(&mut buffer[..want], at).map_err(|e| Fault::io(what(at), e))?;
            if n == 0 {
                // A device that ends before its size does: nothing about it is proven.
                return if at < size {
                    Err(Fault::internal(format!("{}: it ends there", what(at))))
                } else {
                    Ok(None)
                };
            }
            if let Some(offset) = buffer[..n].iter().position(|b| *b != 0) {
                return Ok(Some(at + offset as u64));
            }
            at += n as u64;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Option<Found> {
        judge(&parse(text))
    }

    #[test]
    fn what_blkid_says_is_understood() {
        let cases = [
            (
                "DEVNAME=/dev/loop0\nUUID=1\nTYPE=xfs\nUSAGE=filesystem\n",
                Some(Found::FileSystem(FsType::Xfs)),
            ),
            ("TYPE=ext3\nUSAGE=filesystem", Some(Found::Other("ext3".into()))),
            ("TYPE=crypto_LUKS\nUSAGE=crypto", Some(Found::Other("LUKS".into()))),
            ("PTUUID=7\nPTTYPE=dos", Some(Found::Other("partition table (dos)".into()))),
            (
                "TYPE=ext4\nPTTYPE=gpt",
                Some(Found::Other("ext4 and a partition table (gpt)".into())),
            ),
            ("DEVNAME=/dev/sda1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_NUMBER=1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(judged(text), expected, "{text}");
        }
        assert_eq!(parse("LABEL=a\\ b\\$").get("LABEL").map(String::as_str), Some("a b$"));
    }
}
