//! Mount flags from outside, checked before they come near a mount.
//!
//! Every flag is one option: the kernel gets each by itself, so a comma inside one could only be
//! meant to smuggle in a second. Words that are not options but commands to mount(8) (`remount`,
//! `bind` …) are refused, as are options that make the kernel open *another* device. Flags may hold
//! passwords: faults name a flag by its number, never by its text.

use larder_model::{Fault, Result};

/// Checked mount flags.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Flags {
    /// Each one option, in the caller's order, without `ro`, `rw` and what only mount(8) reads.
    pub(super) options: Vec<String>,
    /// `ro` was among them.
    pub(super) read_only: bool,
    /// `rw` was among them.
    read_write: bool,
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} options, read_only: {}]", self.options.len(), self.read_only)
    }
}

/// Commands to mount(8), not options: they would turn our mount into another operation, or run a
/// program, or ask for a loop device behind our back.
const COMMANDS: &[&str] = &[
    "remount",
    "bind",
    "rbind",
    "move",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "loop",
    "offset",
    "sizelimit",
    "encryption",
    "helper",
    "uhelper",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "source",
];
/// Options that name a second device or file, which would be outside the volume.
const ELSEWHERE: &[&str] = &[
    "logdev",
    "rtdev",
    "journal_dev",
    "journal_path",
    "device",
    "upperdir",
    "lowerdir",
    "workdir",
];
/// Notes that mount(8) and systemd read in fstab and never hand to the kernel.
const NOTES: &[&str] = &["defaults", "auto", "noauto", "nofail", "_netdev", "_rnetdev"];
/// Options of a mount, not of its file system: all that a bind mount can have.
const PER_MOUNT: &[&str] = &[
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "symfollow",
    "nosymfollow",
];

impl Flags {
    /// Checks the flags of a capability.
    ///
    /// # Errors
    /// `Invalid`, naming the flag by its number.
    pub(super) fn parse(flags: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for (n, flag) in flags.iter().enumerate() {
            let wrong = |why: &str| {
                Fault::invalid(format!("accept mount flag number {}: {why}", n + 1))
                    .hint("write each mount option as an item of its own")
            };
            let option = unquoted(flag).ok_or_else(|| {
                wrong("it is empty, or holds a comma outside quotes or a control character")
            })?;
            let key = option.split_once('=').map_or(option.as_str(), |(key, _)| key);
            if COMMANDS.contains(&key) || key.starts_with("X-") {
                return Err(wrong(&format!("{key:?} is not an option for a volume")));
            }
            if ELSEWHERE.contains(&key) {
                return Err(wrong(&format!("{key:?} leads to something outside the volume")));
            }
            match key {
                "ro" => parsed.read_only = true,
                "rw" => parsed.read_write = true,
                key if NOTES.contains(&key) || key.starts_with("x-") || key == "comment" => {}
                _ => parsed.options.push(option),
            }
        }
        if parsed.read_only && parsed.read_write {
            return Err(Fault::invalid("accept mount flags: both ro and rw are among them"));
        }
        Ok(parsed)
    }

    /// Refuses `rw` for a volume that nobody may write.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn check_reader(&self, reader_only: bool) -> Result<()> {
        if reader_only && self.read_write {
            return Err(Fault::invalid("mount with flag rw: the access mode allows only reading"));
        }
        Ok(())
    }

    /// Those of the options that belong to a mount and not to its file system.
    pub(super) fn per_mount(&self) -> Vec<String> {
        self.options.iter().filter(|o| PER_MOUNT.contains(&o.as_str())).cloned().collect()
    }

    /// The options for a bind mount, which has no file system of its own to set options for.
    ///
    /// # Errors
    /// `Invalid` when one is for a file system.
    pub(super) fn for_bind(&self) -> Result<Vec<String>> {
        if let Some(n) = self.options.iter().position(|o| !PER_MOUNT.contains(&o.as_str())) {
            return Err(Fault::invalid(format!(
                "accept mount flag number {} of those for the kernel: this volume is a directory and \
                 has no file system of its own",
                n + 1
            ))
            .hint(format!("possible are ro, rw, {}", PER_MOUNT.join(", "))));
        }
        Ok(self.options.clone())
    }
}

/// The option without double quotes (kubelet quotes SELinux labels, which hold commas:
/// `context="system_u:object_r:container_file_t:s0:c1,c2"`); None for what cannot be one option.
fn unquoted(flag: &str) -> Option<String> {
    let mut inside = false;
    let mut option = String::with_capacity(flag.len());
    for c in flag.chars() {
        match c {
            '"' => inside = !inside,
            ',' if !inside => return None,
            c if c.is_control() => return None,
            c => option.push(c),
        }
    }
    (!inside && !option.is_empty() && !option.starts_with('=') && option.trim() == option)
        .then_some(option)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    fn parse(flags: &[&str]) -> Result<Flags> {
        Flags::parse(&flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_kept_in_order_and_notes_for_fstab_are_not_for_the_kernel() {
        let flags =
            parse(&["noatime", "_netdev", "defaults", "x-systemd.automount", "discard"]).unwrap();
        assert_eq!(flags.options, ["noatime", "discard"]);
        assert!(!flags.read_only);
        let flags = parse(&["ro"]).unwrap();
        assert!(flags.read_only && flags.options.is_empty());
    }

    #[test]
    fn an_selinux_label_keeps_its_commas_and_loses_its_quotes() {
        let flags = parse(&["context=\"system_u:object_r:container_file_t:s0:c1,c2\""]).unwrap();
        assert_eq!(flags.options, ["context=system_u:object_r:container_file_t:s0:c1,c2"]);
    }

    #[test]
    fn tricks_are_refused_and_the_fault_shows_no_text_of_the_flag() {
        for wrong in [
            "noatime,remount",
            "remount",
            "bind",
            "rbind=1",
            "move",
            "shared",
            "loop=/dev/loop0",
            "logdev=/dev/sda",
            "device=/dev/sda",
            "journal_path=/dev/sda",
            "helper=x",
            "user",
            "X-mount.mkdir",
            "",
            " ",
            "=x",
            "a\nb",
            "a\0b",
            "password=hunter2,x",
            "context=\"open",
            "noatime ",
            "lowerdir=/etc",
            "source=/dev/sda",
            "offset=4096",
        ] {
            let fault = parse(&[wrong]).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{wrong:?}");
            assert!(!fault.to_string().contains("hunter2"), "{fault}");
            assert!(!fault.to_string().contains("/dev/"), "{fault}");
        }
        assert_eq!(parse(&["ro", "rw"]).unwrap_err().kind(), Kind::Invalid);
        assert!(!format!("{:?}", parse(&["password=hunter2"]).unwrap()).contains("hunter2"));
    }

    #[test]
    fn a_bind_takes_only_options_of_mounts() {
        assert_eq!(parse(&["nosuid", "noexec"]).unwrap().for_bind().unwrap(), ["nosuid", "noexec"]);
        assert_eq!(parse(&["discard"]).unwrap().for_bind().unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn rw_contradicts_a_mode_for_readers() {
        parse(&["rw"]).unwrap().check_reader(false).unwrap();
        assert_eq!(parse(&["rw"]).unwrap().check_reader(true).unwrap_err().kind(), Kind::Invalid);
    }
}
