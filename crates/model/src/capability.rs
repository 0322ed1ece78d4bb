//! How a volume may be used: access modes, access types, file systems.

use crate::{
    fault::{Fault, Result},
    id::VolumeId,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// CSI access modes (`VolumeCapability.AccessMode.Mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessMode {
    /// One node, read-write (ReadWriteOnce for callers that do not know the two below).
    SingleNodeWriter,
    /// One node, read-only.
    SingleNodeReaderOnly,
    /// Many nodes, read-only (ReadOnlyMany).
    MultiNodeReaderOnly,
    /// Many nodes, one of them read-write.
    MultiNodeSingleWriter,
    /// Many nodes, read-write (ReadWriteMany).
    MultiNodeMultiWriter,
    /// One workload on one node (ReadWriteOncePod).
    SingleNodeSingleWriter,
    /// Several workloads on one node (ReadWriteOnce).
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// The modes that stay on one node: what node-local storage offers.
    pub const SINGLE_NODE: [Self; 4] = [
        Self::SingleNodeWriter,
        Self::SingleNodeReaderOnly,
        Self::SingleNodeSingleWriter,
        Self::SingleNodeMultiWriter,
    ];
    /// Every mode.
    pub const ALL: [Self; 7] = [
        Self::SingleNodeWriter,
        Self::SingleNodeReaderOnly,
        Self::MultiNodeReaderOnly,
        Self::MultiNodeSingleWriter,
        Self::MultiNodeMultiWriter,
        Self::SingleNodeSingleWriter,
        Self::SingleNodeMultiWriter,
    ];
    /// Whether no workload may write.
    pub fn is_reader_only(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }
    /// Whether more than one node may use the volume at a time.
    pub fn is_multi_node(self) -> bool {
        matches!(
            self,
            Self::MultiNodeReaderOnly | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter
        )
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SingleNodeWriter => "SINGLE_NODE_WRITER",
            Self::SingleNodeReaderOnly => "SINGLE_NODE_READER_ONLY",
            Self::MultiNodeReaderOnly => "MULTI_NODE_READER_ONLY",
            Self::MultiNodeSingleWriter => "MULTI_NODE_SINGLE_WRITER",
            Self::MultiNodeMultiWriter => "MULTI_NODE_MULTI_WRITER",
            Self::SingleNodeSingleWriter => "SINGLE_NODE_SINGLE_WRITER",
            Self::SingleNodeMultiWriter => "SINGLE_NODE_MULTI_WRITER",
        })
    }
}

/// The file systems that the node engine makes on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// btrfs
    Btrfs,
}

impl FsType {
    /// Every file system.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];
    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}
impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl FromStr for FsType {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|fs| fs.as_str() == text).ok_or_else(|| {
            Fault::invalid(format!("use file system {}", crate::id::quoted(text)))
                .hint("supported are ext4, xfs and btrfs")
        })
    }
}

/// How a volume appears to the workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessType {
    /// A raw block device.
    Block,
    /// A mounted directory.
    Mount(MountAccess),
}

/// The details of a mount.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MountAccess {
    /// The file system asked for, as the caller wrote it; empty: the driver's default.
    pub fs_type: String,
    /// Mount options, in the caller's order. May be sensitive: never logged.
    pub flags: Vec<String>,
    /// The group id that new files shall belong to (decimal), with VOLUME_MOUNT_GROUP.
    pub group: Option<u32>,
}

/// Mount flags may hold passwords (CSI, "sensitive"), so only their number is shown.
impl fmt::Debug for MountAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountAccess")
            .field("fs_type", &self.fs_type)
            .field("flags", &format_args!("[{} options]", self.flags.len()))
            .field("group", &self.group)
            .finish()
    }
}

/// One way of using a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VolumeCapability {
    /// Block device or mounted directory.
    pub access: AccessType,
    /// Who may use it at a time.
    pub mode: AccessMode,
}

impl VolumeCapability {
    /// Whether it is a raw block device.
    pub fn is_block(&self) -> bool {
        matches!(self.access, AccessType::Block)
    }
}

/// What a volume was made for.
///
/// It is kept to that: a volume that was made to be mounted and is handed out raw before its first
/// mount could never be formatted afterwards, because nobody knows what was written where no probe
/// looks; and one that was made for raw access may hold what looks blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// To be mounted.
    pub mount: bool,
    /// To be a raw block device.
    pub block: bool,
}

impl Uses {
    /// Whatever its kind of storage can do: volumes that were not created through us.
    pub const ANY: Self = Self { mount: true, block: true };

    /// What `capabilities` ask for.
    pub fn of(capabilities: &[VolumeCapability]) -> Self {
        let block = capabilities.iter().any(VolumeCapability::is_block);
        Self { mount: capabilities.iter().any(|c| !c.is_block()), block }
    }

    /// Refuses a way of using volume `id` that it was not made for.
    ///
    /// # Errors
    /// `Precondition`, as CSI wants it from a node.
    pub fn check(self, id: &VolumeId, capability: &VolumeCapability) -> Result<()> {
        let (made, asked) = match capability.is_block() {
            true if !self.block => ("to be mounted", "a raw block device"),
            false if !self.mount => ("to be a raw block device", "a mounted volume"),
            _ => return Ok(()),
        };
        Err(Fault::precondition(format!("use volume {id} as {asked}: it was made {made}")).hint(
            "use it so, or copy it: a clone or a restored snapshot may be asked for in the other way",
        ))
    }
}
