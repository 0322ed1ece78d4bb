//! StorageClass parameters, and what a volume was decided to be.
//!
//! ```text
//! parameters + capabilities + pool's fs + origin ──decide──▶ Shape (record) + context (callers)
//! ```
//! A [`Shape`] is written into the volume's record and never changes: an image that was written
//! with 4096-byte sectors holds file systems that cannot be read with other ones.

use larder_model::{
    AccessType, Bytes, Fault, FsType, LimitsChange, Params, Result, VolumeCapability,
    backend::Parameter,
    encryption, limits,
    volume::{Attributes, FormatState, VolumeSpec, context},
};
use larder_pool::{Origin, PlanRequest};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The StorageClass parameters, for help and docs.
pub const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: FS,
        what: "File system of mounted volumes: ext4, xfs or btrfs. A file system in the capability \
               (csi.storage.k8s.io/fstype) says the same; two different ones are refused.",
        default: "the pool's fs, else ext4",
    },
    Parameter {
        name: MKFS_OPTIONS,
        what: "Further arguments for mkfs, separated by blanks.",
        default: "",
    },
    Parameter {
        name: ALLOCATION,
        what: "sparse: the image takes space as it is written. preallocated: all its space is \
               reserved when it is made.",
        default: "sparse",
    },
    Parameter {
        name: SECTOR_SIZE,
        what: "Logical sector size of the device in bytes: 512 or 4096.",
        default: "512",
    },
    Parameter {
        name: DIRECT_IO,
        what: "auto: bypass the page cache of the pool's file system where that is safe (everywhere \
               but on btrfs). always, never.",
        default: "auto",
    },
    limits::PARAMETERS[0],
    limits::PARAMETERS[1],
    limits::PARAMETERS[2],
    limits::PARAMETERS[3],
];

const FS: &str = context::FS;
const MKFS_OPTIONS: &str = context::MKFS_OPTIONS;
const ALLOCATION: &str = "allocation";
const SECTOR_SIZE: &str = "sectorSize";
const DIRECT_IO: &str = "directIo";

/// Size of a volume when the caller asks for none.
pub(crate) const DEFAULT_SIZE: Bytes = Bytes::gib(1);
/// The least raw block volume.
pub(crate) const MIN_SIZE: Bytes = Bytes::mib(1);
/// Sizes are whole pages: a multiple of every sector size, and of what direct I/O can address.
pub(crate) const SIZE_STEP: Bytes = Bytes::new(4096);

/// The least volume that holds a file system one can work with: what mkfs of xfsprogs 6.1 (300 MiB)
/// insists on, what the kernel grows a btrfs to at least, and for ext4 what leaves room for a journal.
pub(crate) const fn least(fs: FsType) -> Bytes {
    match fs {
        FsType::Ext4 => Bytes::mib(16),
        FsType::Xfs => Bytes::mib(300),
        FsType::Btrfs => Bytes::mib(256),
    }
}

/// Defines a parameter that takes one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub(crate) enum $name {
            $($(#[$vdoc])* $variant),+
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("choose one of {}", [$($word),+].join(", "))),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}

words! {
    /// When an image's space is taken.
    Allocation {
        /// As it is written.
        #[default]
        Sparse = "sparse",
        /// At once.
        Preallocated = "preallocated",
    }
}

words! {
    /// Whether the device bypasses the page cache of the pool's file system.
    DirectIo {
        /// Where that is safe.
        #[default]
        Auto = "auto",
        /// Always; where the file system cannot, the kernel goes through the page cache.
        Always = "always",
        /// Never.
        Never = "never",
    }
}

/// Logical sector size in bytes: 512 or 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(crate) struct SectorSize(u32);

impl SectorSize {
    pub(crate) fn get(self) -> u32 {
        self.0
    }
}
impl Default for SectorSize {
    fn default() -> Self {
        Self(512)
    }
}
impl TryFrom<u32> for SectorSize {
    type Error = String;
    fn try_from(n: u32) -> Result<Self, String> {
        match n {
            512 | 4096 => Ok(Self(n)),
            _ => Err("choose 512 or 4096".to_owned()),
        }
    }
}
impl From<SectorSize> for u32 {
    fn from(size: SectorSize) -> Self {
        size.0
    }
}
impl FromStr for SectorSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u32>().unwrap_or_default().try_into()
    }
}
impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a volume is, in its record. Every field has a default, so that later releases can add some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Shape {
    /// Logical sector size.
    pub(crate) sector_size: SectorSize,
    /// Page cache.
    pub(crate) direct_io: DirectIo,
    /// When space is taken.
    pub(crate) allocation: Allocation,
    /// It may be mounted (and not only be used as a raw block device).
    pub(crate) mount: bool,
}

/// Parameters, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Asked {
    fs: Option<FsType>,
    mkfs_options: Option<String>,
    allocation: Option<Allocation>,
    sector_size: Option<SectorSize>,
    direct_io: Option<DirectIo>,
}

impl Asked {
    /// Understands StorageClass parameters.
    pub(crate) fn parse(parameters: &Attributes) -> Result<Self> {
        let mut params = Params::new(parameters);
        let asked = Self::take(&mut params)?;
        // The pool keeps them.
        LimitsChange::take(&mut params)?;
        params.finish()?;
        asked.check_mkfs_options(asked.fs.unwrap_or(FsType::Ext4))?;
        Ok(asked)
    }

    /// The node would refuse them later, where nobody who reads the class looks.
    fn check_mkfs_options(&self, fs: FsType) -> Result<()> {
        let text = self.mkfs_options.as_deref().unwrap_or_default();
        larder_model::mkfs::options(text, fs).map(drop)
    }

    /// Understands what a volume context (of a static volume, written by hand) says.
    pub(crate) fn of_context(context: &Attributes) -> Result<Self> {
        Self::take(&mut Params::new(context))
    }

    fn take(params: &mut Params) -> Result<Self> {
        Ok(Self {
            fs: params.parse(FS)?,
            mkfs_options: params.take(MKFS_OPTIONS).filter(|text| !text.trim().is_empty()),
            allocation: params.parse(ALLOCATION)?,
            sector_size: params.parse(SECTOR_SIZE)?,
            direct_io: params.parse(DIRECT_IO)?,
        })
    }

    /// What `shape` becomes where this says otherwise.
    pub(crate) fn over(&self, shape: Shape) -> Shape {
        Shape {
            sector_size: self.sector_size.unwrap_or(shape.sector_size),
            direct_io: self.direct_io.unwrap_or(shape.direct_io),
            ..shape
        }
    }
}

/// What a new volume will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) shape: Shape,
    pub(crate) size: Bytes,
    pub(crate) context: Attributes,
}

/// Decides what a new volume will be; `pool_fs` is the pool's file system for volumes that name
/// none.
pub(crate) fn decide(request: &PlanRequest<'_>, pool_fs: Option<FsType>) -> Result<Decision> {
    let spec = request.spec;
    let mut parameters = spec.parameters.clone();
    parameters.extend(spec.mutable_parameters.clone());
    let asked = Asked::parse(&parameters)?;
    let named = named_fs(spec, &asked)?;
    let mount = spec.capabilities.iter().any(|c| !c.is_block());
    let fs = match request
        .origin
        .and_then(|o| Some((o, o.file_system().and_then(FormatState::file_system)?)))
    {
        Some((origin, has)) => match named {
            Some(named) if mount && named != has => {
                return Err(Fault::invalid(format!(
                    "make volume {} with {named} from {}, which holds {has}",
                    spec.id,
                    origin.describe()
                ))
                .hint(format!("ask for {has}, or leave the file system out")));
            }
            _ => has,
        },
        None => named.or(pool_fs).unwrap_or(FsType::Ext4),
    };
    if mount {
        asked.check_mkfs_options(fs)?;
    }
    let shape = Shape {
        sector_size: sector_size(request, &asked)?,
        direct_io: asked.direct_io.unwrap_or_default(),
        allocation: asked.allocation.unwrap_or_default(),
        mount,
    };
    let min = if mount { least(fs) } else { MIN_SIZE };
    let min = match spec.encryption {
        Some(_) => min.saturating_add(encryption::HEADER),
        None => min,
    };
    let size = request.size(DEFAULT_SIZE, min, SIZE_STEP).map_err(|fault| {
        if mount && spec.capacity.limit.is_some_and(|limit| limit < min) {
            fault.hint(format!("{fs} needs at least {min}"))
        } else {
            fault
        }
    })?;
    let mut context = Attributes::from([
        (SECTOR_SIZE.to_owned(), shape.sector_size.to_string()),
        (DIRECT_IO.to_owned(), shape.direct_io.to_string()),
        (ALLOCATION.to_owned(), shape.allocation.to_string()),
    ]);
    if mount {
        context.insert(FS.to_owned(), fs.to_string());
        context.extend(asked.mkfs_options.map(|options| (MKFS_OPTIONS.to_owned(), options)));
    }
    Ok(Decision { shape, size, context })
}

/// The file system that the caller names, in capabilities or parameters. They must agree.
fn named_fs(spec: &VolumeSpec, asked: &Asked) -> Result<Option<FsType>> {
    let mut named: Option<FsType> = None;
    for fs in spec.capabilities.iter().filter_map(fs_type) {
        let fs = fs.parse()?;
        match named {
            Some(other) if other != fs => {
                return Err(Fault::invalid(format!(
                    "make volume {}: one capability asks for {other}, another for {fs}",
                    spec.id
                )));
            }
            _ => named = Some(fs),
        }
    }
    match (named, asked.fs) {
        (Some(fs), Some(param)) if fs != param => Err(Fault::invalid(format!(
            "make volume {}: the capability asks for {fs}, parameter {FS} for {param}",
            spec.id
        ))
        .hint("name the file system once: csi.storage.k8s.io/fstype is enough")),
        (named, param) => Ok(named.or(param)),
    }
}

/// The file system that a capability names.
pub(crate) fn fs_type(capability: &VolumeCapability) -> Option<&str> {
    match &capability.access {
        AccessType::Mount(mount) if !mount.fs_type.is_empty() => Some(&mount.fs_type),
        _ => None,
    }
}

/// A copy keeps the sector size that its data was written with: an xfs with 512-byte sectors cannot
/// be mounted from a device with 4096-byte ones.
fn sector_size(request: &PlanRequest<'_>, asked: &Asked) -> Result<SectorSize> {
    let Some(origin) = request.origin else { return Ok(asked.sector_size.unwrap_or_default()) };
    let has = origin_shape(origin)?.sector_size;
    match asked.sector_size {
        Some(asked) if asked != has => Err(Fault::invalid(format!(
            "make volume {} with {SECTOR_SIZE}={asked} from {}, which was written with {has}-byte sectors",
            request.spec.id,
            origin.describe()
        ))
        .hint(format!("leave {SECTOR_SIZE} out, or use {has}"))),
        _ => Ok(has),
    }
}

fn origin_shape(origin: &Origin) -> Result<Shape> {
    origin.volume_medium()
}
