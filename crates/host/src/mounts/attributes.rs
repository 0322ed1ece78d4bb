//! Mount options sorted: what belongs to the mount, what to the file system, what to nobody.
//!
//! `mount -o` mixes three kinds of words. Attributes of the one mount (`nosuid`) go to `fsmount` or
//! `mount_setattr`; words of the file system go to `fsconfig`; words for fstab and its readers mean
//! nothing here and are dropped, as mount(8) drops them.

use larder_model::{Fault, Result};
use rustix::mount::MountAttrFlags as Attr;

/// Options, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// Attributes to set on the mount.
    pub(crate) set: Attr,
    /// Attributes to clear on the mount.
    pub(crate) clear: Attr,
    /// What is left for the file system: key and value, or a flag.
    pub(crate) fs: Vec<(String, Option<String>)>,
    /// `rbind`: take the mounts below along.
    pub(crate) recursive: bool,
}

impl Sorted {
    /// Whether anything is said of the mount's attributes.
    pub(crate) fn has_attributes(&self) -> bool {
        !(self.set | self.clear).is_empty()
    }
    /// The names of the file system's options, without values that may be passwords.
    pub(crate) fn names(&self) -> String {
        self.fs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", ")
    }
    /// The file system's options as mount(2) takes them.
    pub(crate) fn data(&self) -> String {
        let word = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        };
        self.fs.iter().map(word).collect::<Vec<_>>().join(",")
    }
}

/// Sorts options; later ones win over earlier ones.
///
/// # Errors
/// `Invalid` for words that ask for another operation (`remount`, `loop`, propagation) or hold NUL.
pub(crate) fn sort(options: &[String], read_only: bool) -> Result<Sorted> {
    let mut sorted =
        Sorted { set: Attr::empty(), clear: Attr::empty(), fs: Vec::new(), recursive: false };
    for option in options.iter().map(|o| o.trim()).filter(|o| !o.is_empty()) {
        if option.contains('\0') {
            return Err(Fault::invalid(format!("use mount option {option:?}: it holds a NUL")));
        }
        match option {
            "ro" => sorted.on(Attr::MOUNT_ATTR_RDONLY),
            "rw" => sorted.off(Attr::MOUNT_ATTR_RDONLY),
            "nosuid" => sorted.on(Attr::MOUNT_ATTR_NOSUID),
            "suid" => sorted.off(Attr::MOUNT_ATTR_NOSUID),
            "nodev" => sorted.on(Attr::MOUNT_ATTR_NODEV),
            "dev" => sorted.off(Attr::MOUNT_ATTR_NODEV),
            "noexec" => sorted.on(Attr::MOUNT_ATTR_NOEXEC),
            "exec" => sorted.off(Attr::MOUNT_ATTR_NOEXEC),
            "nodiratime" => sorted.on(Attr::MOUNT_ATTR_NODIRATIME),
            "diratime" => sorted.off(Attr::MOUNT_ATTR_NODIRATIME),
            "nosymfollow" => sorted.on(Attr::MOUNT_ATTR_NOSYMFOLLOW),
            "symfollow" => sorted.off(Attr::MOUNT_ATTR_NOSYMFOLLOW),
            "noatime" => sorted.access_time(Attr::MOUNT_ATTR_NOATIME),
            "strictatime" => sorted.access_time(Attr::MOUNT_ATTR_STRICTATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => {
                sorted.access_time(Attr::MOUNT_ATTR_RELATIME);
            }
            "rbind" => sorted.recursive = true,
            // For readers of fstab, or the way things are anyway.
            "bind" | "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "nouser"
            | "nousers" | "noowner" | "nogroup" => {}
            _ if ["x-", "X-", "comment="].iter().any(|p| option.starts_with(p)) => {}
            "remount" | "loop" | "move" | "private" | "rprivate" | "shared" | "rshared"
            | "slave" | "rslave" | "unbindable" | "runbindable" => {
                return Err(Fault::invalid(format!("use mount option {option}"))
                    .hint("it asks for another operation than mounting a volume; leave it out"));
            }
            _ => sorted.fs.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
    }
    if read_only {
        sorted.on(Attr::MOUNT_ATTR_RDONLY);
    }
    Ok(sorted)
}

impl Sorted {
    fn on(&mut self, attribute: Attr) {
        self.set |= attribute;
        self.clear -= attribute;
    }
    fn off(&mut self, attribute: Attr) {
        self.clear |= attribute;
        self.set -= attribute;
    }
    /// The access time rule is one field of several bits: it is cleared whole, then set.
    fn access_time(&mut self, rule: Attr) {
        self.set -= Attr::MOUNT_ATTR__ATIME;
        self.set |= rule;
        self.clear |= Attr::MOUNT_ATTR__ATIME;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn words_for_the_mount_and_for_the_file_system_are_told_apart() {
        let sorted =
            sort(&words("nosuid,discard,size=5m,noatime,_netdev,x-systemd.automount,rw"), true)
                .unwrap();
        let expected = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NOATIME | Attr::MOUNT_ATTR_RDONLY;
        assert_eq!(sorted.set, expected);
        assert_eq!(sorted.clear, Attr::MOUNT_ATTR__ATIME);
        assert_eq!(sorted.data(), "discard,size=5m");
    }

    #[test]
    fn the_later_word_wins() {
        let sorted = sort(&words("noexec,exec,noatime,strictatime,nodev"), false).unwrap();
        assert_eq!(sorted.set, Attr::MOUNT_ATTR_STRICTATIME | Attr::MOUNT_ATTR_NODEV);
        assert_eq!(sorted.clear, Attr::MOUNT_ATTR_NOEXEC | Attr::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn words_that_ask_for_another_operation_are_refused() {
        for word in ["remount", "loop", "shared", "a\0b"] {
            let fault = sort(&words(word), false).unwrap_err();
            assert_eq!(fault.kind(), larder_model::Kind::Invalid, "{word:?}");
        }
    }
}
