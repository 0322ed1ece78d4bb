//! The mount table.

use larder_host::{MountEntry, fuzzing::mounts_at, mounts::parse_mountinfo};
use std::{collections::BTreeSet, os::unix::ffi::OsStrExt, path::Path};

/// A table that is understood can be written as the kernel would and is understood as the same; and
/// asking for one place answers what the whole table says of it.
pub fn check(data: &[u8]) {
    let table = parse_mountinfo(data);
    let targets: BTreeSet<_> = table.iter().flatten().map(|entry| entry.target.clone()).collect();
    let absent = [Path::new("/nowhere"), Path::new(""), Path::new("/")];
    for target in targets.iter().map(|target| target.as_path()).chain(absent) {
        let there = mounts_at(data, target);
        if let Some(table) = &table {
            // By their bytes: the kernel writes a path in one way only, and is asked for that.
            let same = |entry: &&MountEntry| entry.target.as_os_str() == target.as_os_str();
            let all: Vec<_> = table.iter().filter(same).cloned().collect();
            assert_eq!(there, Some(all), "at {}", target.display());
        }
    }
    if let Some(table) = table {
        let text = table.iter().flat_map(written).collect::<Vec<u8>>();
        assert_eq!(parse_mountinfo(&text), Some(table), "{}", String::from_utf8_lossy(&text));
    }
}

fn written(entry: &MountEntry) -> Vec<u8> {
    let mut line =
        format!("{} {} {}:{} ", entry.id, entry.parent, entry.device.major, entry.device.minor)
            .into_bytes();
    let escaped = |text: &[u8]| {
        let mut out = Vec::new();
        for byte in text {
            if matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#' | b',') {
                out.extend(format!("\\{byte:03o}").bytes());
            } else {
                out.push(*byte);
            }
        }
        out
    };
    let list = |all: &[String]| {
        all.iter().map(|one| escaped(one.as_bytes())).collect::<Vec<_>>().join(&b","[..])
    };
    let fields = [
        escaped(entry.root.as_os_str().as_bytes()),
        escaped(entry.target.as_os_str().as_bytes()),
        list(&entry.options),
        b"shared:1".to_vec(),
        b"-".to_vec(),
        escaped(entry.fs_type.as_bytes()),
        escaped(entry.source.as_bytes()),
        list(&entry.super_options),
    ];
    line.extend(fields.join(&b" "[..]));
    line.push(b'\n');
    line
}
