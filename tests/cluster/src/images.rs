//! The images that every cluster has: what holds a pod's namespaces, and a busybox.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::oci::{Image, Layer};

/// Holds the namespaces of a pod.
pub(crate) const PAUSE: &str = "larder.test/pause:1";
/// The image for test pods: busybox, its applets on `PATH`, as root.
pub const BUSYBOX: &str = "larder.test/busybox:1";

/// Where Debian's busybox-static has it.
const BINARY: &str = "/bin/busybox";

/// Folders that mounts in pods want.
const DIRS: &[&str] = &["bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var"];

/// The archives of both, cached under the binary's hash.
pub(crate) fn archives(cache: &Path) -> Result<Vec<PathBuf>> {
    let binary = fs::read(BINARY).with_context(|| format!("failed to read {BINARY}"))?;
    ensure!(
        wants_loader(&binary) == Some(false),
        "{BINARY} is not static (hint: apt-get install busybox-static)"
    );
    let mut hash = Sha256::new();
    hash.update(&binary);
    hash.update(APPLETS.join(" "));
    let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let dir = cache.join("images");
    fs::create_dir_all(&dir)?;
    let mut paths = Vec::new();
    for (name, reference) in [("pause", PAUSE), ("busybox", BUSYBOX)] {
        let path = dir.join(format!("{name}-{key}.tar"));
        if !path.exists() {
            let image = busybox(&binary)?;
            let image = if name == "pause" { image.entrypoint(PAUSED) } else { image };
            let file = tempfile::NamedTempFile::new_in(&dir)?;
            image.write(reference, File::create(file.path())?)?;
            file.persist(&path)?;
        }
        paths.push(path);
    }
    Ok(paths)
}

/// Whether a 64-bit program asks for a dynamic loader; none when it is no such program.
fn wants_loader(elf: &[u8]) -> Option<bool> {
    const INTERPRETER: usize = 3;
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = elf.get(at..at + bytes)?;
        let digits = field.iter().rev().map(|byte| usize::from(*byte));
        Some(digits.fold(0, |sum, byte| sum << 8 | byte))
    };
    (elf.get(..6)? == b"\x7fELF\x02\x01").then_some(())?;
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let kinds = (0..count).map(|index| number(table + index * size, 4));
    let kinds = kinds.collect::<Option<Vec<_>>>()?;
    Some(kinds.contains(&INTERPRETER))
}

/// Sleeps, collects orphans, and ends when asked.
const PAUSED: [&str; 3] =
    ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done"];

fn busybox(binary: &[u8]) -> Result<Image> {
    let mut layer = Layer::new();
    for dir in DIRS {
        layer.dir(dir, if *dir == "tmp" { 0o1777 } else { 0o755 })?;
    }
    layer.file("bin/busybox", 0o755, binary)?;
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\n")?;
    for applet in APPLETS {
        layer.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    Ok(Image::new().layer(layer)?.env("PATH", "/bin").command(["sh"]))
}

/// The programs by which tests call busybox.
#[rustfmt::skip]
const APPLETS: &[&str] = &[
    "awk", "base64", "basename", "blockdev", "cat", "chgrp", "chmod", "chown", "cmp", "cp", "cut",
    "date", "dd", "df", "diff", "dirname", "dmesg", "du", "echo", "env", "expr", "false", "find",
    "grep", "head", "hexdump", "hostname", "id", "ip", "kill", "losetup", "ls", "md5sum", "mkdir", "mknod",
    "mktemp", "mount", "mountpoint", "mv", "nc", "nproc", "od", "ping", "ps", "pwd", "readlink",
    "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync", "tail", "tar",
    "tee", "test", "timeout", "touch", "tr", "true", "truncate", "umount", "uname", "uniq", "wc",
    "wget", "xargs", "yes",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_wants_a_dynamic_loader_is_told_from_others() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert_eq!(wants_loader(&own), Some(true));
        assert_eq!(wants_loader(b"#!/bin/sh"), None);
    }
}
