//! The node's records: one small file per volume that is in use here.
//!
//! The kernel is the truth about mounts; a record holds only what the kernel cannot tell: how a
//! volume was asked for, what its backend needs to let go of it, and what was begun. It is written
//! before the effect it speaks of, so an effect without a record does not exist, while a record
//! without its effect is normal after a crash and is looked at with that in mind.
//!
//! ```text
//!  (none) ─▶ Staging ─connect, mount─▶ Staged ─▶ Unstaging ─unmount, disconnect─▶ (none)
//! ```
//!
//! Invariants:
//! - mounts and loop devices die with the machine: a record of another boot says nothing, except
//!   that an inline volume may still exist;
//! - the directory may be wiped at any time (it is under /run): everything works without records,
//!   only slower and less talkative;
//! - mount flags may hold passwords, so a record holds their digest.

mod store;

pub(super) use store::{Damaged, Store};

use larder_host::{DeviceId, MountRoot, durable};
use larder_model::{
    AccessMode, AccessType, Fault, Handle, Kind, Result, VolumeCapability, VolumeId,
    backend::Attachment, params::RESERVED, volume::Attributes,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The format that this version writes. Older ones do not exist. A newer one is for what must not be
/// overlooked: its record is refused and stays where it is. What may be overlooked is a new key.
const FORMAT: u32 = 1;

/// What is known of one volume on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    format: u32,
    /// The boot in which its mounts and devices exist.
    pub(super) boot_id: String,
    /// The volume's id, as callers write it.
    pub(super) volume: String,
    /// Its staging, begun or done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) staged: Option<Staged>,
    /// Its publications, begun or done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) publications: Vec<Publication>,
    /// It lives and dies with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) inline: Option<Inline>,
    #[serde(flatten)]
    later: Later,
}

/// What a later release has added in the same format: kept, for when it comes back.
pub(super) type Later = serde_json::Map<String, serde_json::Value>;

/// How far staging is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Phase {
    /// Begun.
    Staging,
    /// Answered with success.
    Staged,
    /// Being taken back.
    Unstaging,
}

/// A volume's staging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Staged {
    /// How far it is.
    pub(super) phase: Phase,
    /// The staging directory.
    pub(super) path: PathBuf,
    /// How it was asked for.
    pub(super) terms: Terms,
    /// What `connect` left. None: it has not returned yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attachment: Option<Attachment>,
    /// What a mount of it looks like. None: not connected yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shows: Option<Shows>,
    /// What its staging mount showed when it was made; None for raw block and while not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) root: Option<Root>,
    /// Nothing is written through it.
    pub(super) reader: bool,
    /// What is used is the opened device above the one that was connected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) encrypted: bool,
    #[serde(flatten)]
    pub(super) later: Later,
}

/// What was asked for, as far as repeated calls are compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Terms {
    /// Raw block device.
    pub(super) block: bool,
    /// Access mode.
    pub(super) mode: AccessMode,
    /// As the caller wrote it.
    fs_type: String,
    /// Digest of the mount flags.
    flags: String,
    /// Group of new files.
    pub(super) group: Option<u32>,
    /// Digest of the volume context without the keys of Kubernetes (which hold tokens that change
    /// between repeats).
    context: String,
}

impl Terms {
    /// Those of a request.
    pub(super) fn new(capability: &VolumeCapability, context: &Attributes) -> Self {
        let (block, fs_type, flags, group) = match &capability.access {
            AccessType::Block => (true, String::new(), digest(&[]), None),
            AccessType::Mount(mount) => {
                let flags: Vec<&str> = mount.flags.iter().map(String::as_str).collect();
                (false, mount.fs_type.clone(), digest(&flags), mount.group)
            }
        };
        let own = context.iter().filter(|(key, _)| !key.starts_with(RESERVED));
        let own: Vec<&str> = own.flat_map(|(k, v)| [k.as_str(), v.as_str()]).collect();
        Self { block, mode: capability.mode, fs_type, flags, group, context: digest(&own) }
    }

    /// Whether staging on these terms serves a request with `other`. The group is no part of it:
    /// every workload brings its own, and it is applied when that is published.
    pub(super) fn stage_alike(&self, other: &Self) -> bool {
        Self { group: None, ..self.clone() } == Self { group: None, ..other.clone() }
    }

    /// In what they differ, for people.
    pub(super) fn difference(&self, other: &Self) -> String {
        let mut parts = Vec::new();
        if self.block != other.block {
            parts.push("access type".to_owned());
        }
        if self.mode != other.mode {
            parts.push(format!("access mode {} instead of {}", other.mode, self.mode));
        }
        if self.fs_type != other.fs_type {
            parts.push("file system".to_owned());
        }
        if self.flags != other.flags {
            parts.push("mount flags".to_owned());
        }
        if self.group != other.group {
            parts.push("mount group".to_owned());
        }
        if self.context != other.context {
            parts.push("volume context".to_owned());
        }
        parts.join(", ")
    }
}

/// Length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// A device number in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Number {
    major: u32,
    minor: u32,
}
impl From<DeviceId> for Number {
    fn from(id: DeviceId) -> Self {
        Self { major: id.major, minor: id.minor }
    }
}
impl From<Number> for DeviceId {
    fn from(number: Number) -> Self {
        Self { major: number.major, minor: number.minor }
    }
}

/// What a mount of a volume looks like in the mount table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(super) enum Shows {
    /// A file system on this device, or the device itself.
    Device {
        /// Its node under /dev.
        path: PathBuf,
        /// Its number.
        number: Number,
    },
    /// A bind mount of this directory.
    Directory {
        /// Device of the file system that holds it, as the mount table tells it.
        number: Number,
        /// Its path inside that file system.
        root: PathBuf,
    },
    /// A network file system.
    FileSystem {
        /// The kernel's name of its kind.
        fs_type: String,
        /// As in mount(2).
        source: String,
        /// How the kernel shows it, where that is otherwise: NFS 4 follows symlinks in a share's path
        /// itself, and shows where they led.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown: Option<String>,
        /// Nothing was at the staging path when it was begun to mount it there, and how it is shown is not
        /// known yet: whatever is there by now is what was mounted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        mounting: bool,
    },
}

impl Shows {
    /// Whether it may hang when its server is gone; only then is it detached lazily.
    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::FileSystem { .. })
    }

    /// Notes that it is being mounted.
    pub(super) fn begin_to_mount(&mut self) {
        if let Self::FileSystem { mounting, .. } = self {
            *mounting = true;
        }
    }

    /// Notes how it is shown now that it is mounted.
    pub(super) fn show_as(&mut self, text: String) {
        if let Self::FileSystem { source, shown, mounting, .. } = self {
            *mounting = false;
            *shown = (text != *source).then_some(text);
        }
    }

    /// With what is known of mounts of the same that were made earlier.
    pub(super) fn keeping(self, former: Option<&Self>) -> Self {
        match (&self, former) {
            (
                Self::FileSystem { fs_type, source, .. },
                Some(known @ Self::FileSystem { fs_type: kind, source: text, .. }),
            ) if fs_type == kind && source == text => known.clone(),
            _ => self,
        }
    }
}

/// What a mount point showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Root {
    number: Number,
    inode: u64,
}

impl Root {
    /// Whether `seen` is a mount of the same directory.
    pub(super) fn is_shown_by(&self, seen: &MountRoot) -> bool {
        Self::from(*seen) == *self
    }
}
impl From<MountRoot> for Root {
    fn from(seen: MountRoot) -> Self {
        Self { number: seen.device.into(), inode: seen.inode }
    }
}

/// One workload's view of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Publication {
    /// Where.
    pub(super) target: PathBuf,
    /// How it was asked for.
    pub(super) terms: Terms,
    /// The workload only reads.
    pub(super) readonly: bool,
    #[serde(flatten)]
    pub(super) later: Later,
}

/// A volume that is made for a pod and deleted with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inline {
    /// Our own handle of it.
    handle: String,
}

impl Inline {
    /// For volume `id`.
    pub(super) fn new(id: &VolumeId) -> Self {
        Self { handle: id.as_str().to_owned() }
    }
    /// Its id.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn id(&self) -> Result<VolumeId> {
        let handle: Handle = self.handle.parse().map_err(|e: Fault| e.with_kind(Kind::Corrupt))?;
        Ok(VolumeId(handle))
    }
}

/// The format of a record, whatever else is in it.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// Whether `text` is a record of a newer version.
pub(super) fn is_newer(path: &Path, text: &[u8]) -> bool {
    durable::json::<Version>(path, text).is_ok_and(|version| version.format > FORMAT)
}

impl Record {
    /// Understands the text of the record at `path`.
    ///
    /// # Errors
    /// `Corrupt`: it is none, or one of a newer version, which may lack what this one needs.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        if is_newer(path, text) {
            return Err(Fault::corrupt(format!(
                "understand the record {}: it was written by a newer version",
                path.display(),
            ))
            .hint("install that version again, or drain this node and remove the record"));
        }
        durable::json(path, text)
    }

    /// What its mounts look like.
    pub(super) fn shows_mut(&mut self) -> Option<&mut Shows> {
        self.staged.as_mut()?.shows.as_mut()
    }

    /// The publication at `target`.
    pub(super) fn publication(&self, target: &Path) -> Option<&Publication> {
        self.publications.iter().find(|p| p.target == target)
    }
    /// Forgets the publication at `target`.
    pub(super) fn unpublish(&mut self, target: &Path) {
        self.publications.retain(|p| p.target != target);
    }
    /// Notes a publication, in place of an older one at the same target.
    pub(super) fn publish(&mut self, publication: Publication) {
        self.unpublish(&publication.target);
        self.publications.push(publication);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::MountAccess;
    use std::fs;

    fn store(directory: &Path, boot: &str) -> Store {
        Store::new(directory.join("driver"), boot.to_owned())
    }
    fn mount(flags: &[&str], group: Option<u32>) -> VolumeCapability {
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        VolumeCapability {
            access: AccessType::Mount(MountAccess { fs_type: "xfs".to_owned(), flags, group }),
            mode: AccessMode::SingleNodeWriter,
        }
    }
    fn context(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_record_is_found_again_and_only_root_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "boot-1");
        assert_eq!(store.load("default/a").unwrap(), None);
        let mut record = store.blank("default/a");
        let terms = Terms::new(&mount(&["password=hunter2"], None), &context(&[("token", "x")]));
        record.publish(Publication {
            target: "/t".into(),
            terms: terms.clone(),
            readonly: false,
            later: Later::new(),
        });
        record.publish(Publication {
            target: "/t".into(),
            terms,
            readonly: true,
            later: Later::new(),
        });
        assert_eq!(record.publications.len(), 1);
        store.save(&record).unwrap();
        assert_eq!(store.load("default/a").unwrap().unwrap(), record);
        let path = store.path("default/a");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains("hunter2"));

        fs::remove_dir_all(dir.path().join("driver")).unwrap();
        assert_eq!(store.load("default/a").unwrap(), None);
        store.forget("default/a").unwrap();
        store.save(&record).unwrap();
        record.unpublish(Path::new("/t"));
        store.save_or_forget(&record).unwrap();
        assert_eq!(store.load("default/a").unwrap(), None);
    }

    #[test]
    fn of_another_boot_only_inline_volumes_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let before = store(dir.path(), "boot-1");
        let mut record = before.blank("default/a");
        let terms = Terms::new(&mount(&[], None), &context(&[]));
        record.publish(Publication {
            target: "/t".into(),
            terms,
            readonly: false,
            later: Later::new(),
        });
        before.save(&record).unwrap();
        record.volume = "csi-0123".to_owned();
        record.inline = Some(Inline::new(&VolumeId("default/x".parse().unwrap())));
        before.save(&record).unwrap();

        let after = store(dir.path(), "boot-2");
        assert_eq!(after.load("default/a").unwrap(), None);
        let left = after.load("csi-0123").unwrap().unwrap();
        assert!(left.publications.is_empty() && after.is_current(&left));
        assert_eq!(left.inline.unwrap().id().unwrap().as_str(), "default/x");
        assert_eq!(after.all().unwrap().0.len(), 2);
    }

    #[test]
    fn damaged_newer_and_misplaced_records_are_told_and_never_taken_for_absent() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "boot-1");
        store.save(&store.blank("default/a")).unwrap();
        let good = fs::read_to_string(store.path("default/a")).unwrap();
        fs::write(store.path("default/b"), &good).unwrap();
        fs::write(store.path("default/c"), &good[..good.len() / 2]).unwrap();
        fs::write(store.path("default/d"), good.replace("\"format\": 1", "\"format\": 2")).unwrap();
        // A newer one may lack what this version needs.
        fs::write(store.path("default/e"), r#"{"format": 3}"#).unwrap();
        let (records, damaged) = store.all().unwrap();
        assert_eq!((records.len(), damaged.len()), (1, 4));
        assert_eq!(damaged.iter().filter(|bad| bad.newer).count(), 2);
        for volume in ["default/c", "default/d", "default/e"] {
            assert_eq!(store.load(volume).unwrap_err().kind(), Kind::Corrupt, "{volume}");
        }
    }

    #[test]
    fn what_a_later_version_adds_in_this_format_is_kept_at_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "boot-1");
        let mut record = store.blank("default/a");
        let terms = Terms::new(&mount(&[], None), &context(&[]));
        let target = PathBuf::from("/t");
        record.publish(Publication { target, terms, readonly: false, later: Later::new() });
        let mut text = serde_json::to_value(&record).unwrap();
        let added = serde_json::json!({ "of": ["later", 1] });
        text["added"] = added.clone();
        text["publications"][0]["added"] = added.clone();
        fs::create_dir(dir.path().join("driver")).unwrap();
        fs::write(store.path("default/a"), text.to_string()).unwrap();

        let mut record = store.load("default/a").unwrap().unwrap();
        let terms = Terms::new(&mount(&[], None), &context(&[]));
        let target = PathBuf::from("/other");
        record.publish(Publication { target, terms, readonly: true, later: Later::new() });
        store.save(&record).unwrap();
        let text = fs::read_to_string(store.path("default/a")).unwrap();
        let text: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&text["added"], &text["publications"][0]["added"]), (&added, &added));
    }

    #[test]
    fn tokens_of_kubernetes_change_nothing_and_everything_else_is_named() {
        let pod = |token| {
            Terms::new(
                &mount(&["noatime"], None),
                &context(&[("fs", "xfs"), ("csi.storage.k8s.io/serviceAccount.tokens", token)]),
            )
        };
        assert_eq!(pod("one"), pod("two"));
        let base = pod("");
        let context = context(&[("fs", "xfs")]);
        let other = Terms::new(&mount(&["noatime", "ro"], None), &context);
        assert_eq!(base.difference(&other), "mount flags");
        assert!(!base.stage_alike(&other));
        let group = Terms::new(&mount(&["noatime"], Some(5)), &context);
        assert_eq!(base.difference(&group), "mount group");
        assert!(base.stage_alike(&group));
    }
}
