//! Arguments for mkfs from outside.
//!
//! They come from a StorageClass or, for inline volumes, from whoever may write a pod. mkfs can
//! copy host directories into a file system (`mke2fs -d`, `mkfs.btrfs --rootdir`), write to other
//! devices (`-J device=`, `-l logdev=`, a second positional argument) and be forced: so only options
//! that shape the file system itself are let through, and nothing with a slash in it.

use crate::{
    capability::FsType,
    fault::{Fault, Result},
    id::quoted,
};

/// Options that are followed by a value, and options that stand alone.
struct Known {
    with_value: &'static [&'static str],
    alone: &'static [&'static str],
}

fn known(fs: FsType) -> Known {
    match fs {
        FsType::Ext4 => Known {
            with_value: &[
                "-b", "-C", "-e", "-E", "-g", "-G", "-i", "-I", "-J", "-L", "-m", "-N", "-O", "-T",
                "-U",
            ],
            alone: &["-j", "-K", "-q", "-v"],
        },
        FsType::Xfs => Known {
            with_value: &["-b", "-d", "-i", "-l", "-L", "-m", "-n", "-s"],
            alone: &["-K", "-q"],
        },
        FsType::Btrfs => Known {
            with_value: &[
                "-d",
                "--data",
                "-m",
                "--metadata",
                "-n",
                "--nodesize",
                "-s",
                "--sectorsize",
                "-O",
                "--features",
                "-R",
                "--runtime-features",
                "-L",
                "--label",
                "--csum",
                "--checksum",
                "-U",
                "--uuid",
            ],
            alone: &["-M", "--mixed", "-K", "--nodiscard", "-q", "--quiet", "-v", "--verbose"],
        },
    }
}

/// Sub-options (`-J device=…`) that name another device or file, or a place inside one, or a size
/// other than the device's.
const ELSEWHERE: &[&str] =
    &["device", "logdev", "rtdev", "name", "file", "offset", "location", "size_in_fs", "extent"];

/// Splits `text` at blanks and checks every argument for `fs`.
///
/// # Errors
/// `Invalid`, naming the argument.
pub fn options(text: &str, fs: FsType) -> Result<Vec<String>> {
    let Known { with_value, alone } = known(fs);
    let wrong = |argument: &str, why: &str| {
        Fault::invalid(format!("use mkfsOptions {} for {fs}: {why}", quoted(argument))).hint(
            format!("possible are {} and {}", with_value.join(" X, ") + " X", alone.join(", ")),
        )
    };
    let mut checked = Vec::new();
    let mut words = text.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (word, None),
        };
        if alone.contains(&option) && value.is_none() {
            checked.push(word.to_owned());
            continue;
        }
        if !with_value.contains(&option) {
            return Err(wrong(word, "it is not a known option"));
        }
        let separate = value.is_none();
        let value = match value {
            Some(value) => value,
            None => words.next().ok_or_else(|| wrong(word, "its value is missing"))?,
        };
        if value.is_empty() || value.starts_with('-') || value.contains('/') {
            return Err(wrong(word, "its value cannot be empty, begin with '-' or hold a '/'"));
        }
        let elsewhere = value
            .split(',')
            .map(|part| part.split_once('=').map_or(part, |(key, _)| key))
            .any(|key| ELSEWHERE.contains(&key));
        if elsewhere {
            return Err(wrong(word, "it leads to something outside the volume"));
        }
        checked.push(word.to_owned());
        if separate {
            checked.push(value.to_owned());
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn options_that_shape_the_file_system_pass() {
        let ok = |text, fs| options(text, fs).unwrap().join(" ");
        let ext4 = "-m 0 -E lazy_itable_init=1,nodiscard -O ^has_journal -L data -K";
        assert_eq!(ok(ext4, FsType::Ext4), ext4);
        assert_eq!(ok(" -m  reflink=1,crc=1 ", FsType::Xfs), "-m reflink=1,crc=1");
        assert_eq!(ok("--csum=xxhash -d single", FsType::Btrfs), "--csum=xxhash -d single");
        assert_eq!(ok("", FsType::Xfs), "");
    }

    #[test]
    fn options_that_reach_outside_the_volume_or_force_are_refused() {
        for (text, fs) in [
            ("-d etc", FsType::Ext4),
            ("-d /etc", FsType::Ext4),
            ("-F", FsType::Ext4),
            ("-S", FsType::Ext4),
            ("-n", FsType::Ext4),
            ("-z undo", FsType::Ext4),
            ("-J device=sda", FsType::Ext4),
            ("-J size=4,device=/dev/sda", FsType::Ext4),
            ("-E offset=4096", FsType::Ext4),
            ("-m -F", FsType::Ext4),
            ("-m", FsType::Ext4),
            ("-L x /dev/sda", FsType::Ext4),
            ("/dev/sda", FsType::Btrfs),
            ("sda", FsType::Btrfs),
            ("--rootdir etc", FsType::Btrfs),
            ("--rootdir=etc", FsType::Btrfs),
            ("-r etc", FsType::Btrfs),
            ("-f", FsType::Btrfs),
            ("--force", FsType::Btrfs),
            ("-f", FsType::Xfs),
            ("-p proto", FsType::Xfs),
            ("-l logdev=sda", FsType::Xfs),
            ("-r rtdev=sda", FsType::Xfs),
            ("-d name=sda", FsType::Xfs),
            ("-d file=1,name=x", FsType::Xfs),
            ("--", FsType::Xfs),
        ] {
            let fault = options(text, fs).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{fs} {text}");
        }
    }
}
