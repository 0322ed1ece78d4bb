//! The mount table as the kernel writes it.

use super::MountEntry;
use larder_model::{Fault, Result};
use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// Reads a `mountinfo` file.
pub(super) fn read(path: &Path) -> Result<Vec<MountEntry>> {
    parsed(path, parse_mountinfo)
}

/// Reads what a `mountinfo` file says of one place. The lines of others, of which a node has
/// thousands, are not taken apart.
pub(super) fn read_at(path: &Path, target: &Path) -> Result<Vec<MountEntry>> {
    parsed(path, |text| at(text, target))
}

fn parsed(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Option<Vec<MountEntry>>,
) -> Result<Vec<MountEntry>> {
    let what = || format!("read the mount table {}", path.display());
    // The kernel gives no size, for which `std::fs::read` begins with 32 bytes at a time.
    let mut text = Vec::with_capacity(16 << 10);
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut text))
        .map_err(|e| Fault::io(what(), e))?;
    parse(&text).ok_or_else(|| Fault::internal(what()).hint("a line of it has an unknown form"))
}

pub(crate) fn at(text: &[u8], wanted: &Path) -> Option<Vec<MountEntry>> {
    let wanted = wanted.as_os_str().as_bytes();
    let is_there = |line: &&[u8]| match line.split(|b| *b == b' ').nth(4) {
        Some(field) if field.contains(&b'\\') => unescape(field) == wanted,
        Some(field) => field == wanted,
        // Whoever takes it apart complains.
        None => !line.is_empty(),
    };
    text.split(|b| *b == b'\n').filter(is_there).map(line).collect()
}

/// Parses the text of `/proc/PID/mountinfo`; None when a line has not the form of
/// proc_pid_mountinfo(5).
///
/// ```text
/// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
/// id parent dev root target options tags…    - type source    super options
/// ```
pub fn parse_mountinfo(text: &[u8]) -> Option<Vec<MountEntry>> {
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(line).collect()
}

fn line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let number = |field: Option<&[u8]>| std::str::from_utf8(field?).ok()?.parse::<u64>().ok();
    let id = number(fields.next())?;
    let parent = number(fields.next())?;
    let device = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = list(fields.next()?);
    // Tags (shared:N, master:N …) may be absent; a lone dash ends them.
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = list(fields.next()?);
    Some(MountEntry { id, parent, device, root, target, options, fs_type, source, super_options })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn list(field: &[u8]) -> Vec<String> {
    field.split(|b| *b == b',').filter(|o| !o.is_empty()).map(text).collect()
}

/// The kernel writes space, tab, newline, backslash and `#` as `\ooo`.
pub(super) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = |b: &u8| matches!(b, b'0'..=b'7').then(|| u32::from(b - b'0'));
        let code = match after {
            [a, b, c, ..] if *byte == b'\\' => {
                (|| u8::try_from(octal(a)? * 64 + octal(b)? * 8 + octal(c)?).ok())()
            }
            _ => None,
        };
        if let Some(code) = code {
            plain.push(code);
            rest = &after[3..];
        } else {
            plain.push(*byte);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceId;

    #[test]
    fn a_line_is_read_with_and_without_tags_and_with_escaped_names() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            37 36 0:45 / /a\\012b\\134c ro,nosuid - fuse.s3fs s3\\040x rw\n";
        let table = parse_mountinfo(text).unwrap();
        assert_eq!(table[0].target, Path::new("/mnt 2"));
        assert_eq!(table[0].device, DeviceId { major: 98, minor: 0 });
        assert_eq!(table[0].super_options, ["rw", "errors=continue"]);
        assert!(!table[0].is_read_only());
        assert_eq!(table[1].target, Path::new("/a\nb\\c"));
        assert_eq!((table[1].fs_type.as_str(), table[1].source.as_str()), ("fuse.s3fs", "s3 x"));
        assert!(table[1].is_mount_read_only());
    }

    #[test]
    fn one_place_is_looked_up_by_its_real_name_and_a_line_without_a_place_is_not_passed_over() {
        let text =
            b"36 35 98:0 / /mnt\\0402 rw - ext3 /dev/root rw\n37 36 0:45 / /mnt rw - tmpfs t rw\n\
            38 37 0:46 / /mnt rw - tmpfs u rw\n";
        let ids = |path: &str| -> Vec<_> {
            at(text, Path::new(path)).unwrap().iter().map(|m| m.id).collect()
        };
        assert_eq!((ids("/mnt 2"), ids("/mnt"), ids("/mn")), (vec![36], vec![37, 38], vec![]));
        assert_eq!(at(b"nonsense\n", Path::new("/mnt")), None);
    }

    #[test]
    fn a_line_of_another_form_is_not_guessed_at() {
        assert_eq!(parse_mountinfo(b"36 35 98:0 / /mnt rw shared:1 ext3 /dev/root rw\n"), None);
        assert_eq!(parse_mountinfo(b"nonsense\n"), None);
        assert_eq!(parse_mountinfo(b""), Some(vec![]));
    }

    #[test]
    fn the_table_of_this_machine_can_be_read() {
        let table = read(Path::new("/proc/self/mountinfo")).unwrap();
        assert!(table.iter().any(|m| m.target == Path::new("/")));
        assert!(table.iter().any(|m| m.fs_type == "proc"));
    }
}
