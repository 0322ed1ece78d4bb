//! The rules that fields of requests obey, each written once.
//!
//! A rule takes the field's name for the message and the value off the wire, and gives the value
//! that engines work with, or `Invalid` (`OutOfRange` for a capacity whose limit is below its
//! requirement). Values are shown only where they cannot be credentials.
//!
//! Limits are those of the CSI specification; where we differ, docs/semantics.md says why.

use larder_model::{
    AccessMode, AccessType, CapacityRange, Fault, Kind, MountAccess, RequestedName, Result,
    Secrets, VolumeCapability,
    id::{MAX_TEXT, quoted},
    params::RESERVED,
    topology::{Segments, TopologyRequirement},
    volume::Attributes,
};
use larder_proto::csi;
use std::{
    fmt::Display,
    path::{Component, Path, PathBuf},
};

/// The general limit of a map, keys and values together, in bytes.
pub(crate) const MAX_MAP: usize = 4096;
/// The limit of what Kubernetes itself adds to a map: pod and claim names, tokens of service
/// accounts (1 to 2 KiB for each audience).
pub(crate) const MAX_RESERVED: usize = 64 * 1024;
/// The limit of secrets: a certificate with its chain and key does not fit into 4 KiB.
pub(crate) const MAX_SECRETS: usize = 64 * 1024;
/// The limit of all mount flags together, in bytes.
pub(crate) const MAX_FLAGS: usize = 4096;
/// The longest path, without its terminating NUL (Linux, PATH_MAX).
pub(crate) const MAX_PATH: usize = 4095;
/// The longest name in a path (Linux, NAME_MAX).
const MAX_NAME: usize = 255;
/// The longest node id.
pub(crate) const MAX_NODE_ID: usize = 256;
/// The longest part of a topology key, and the longest topology value.
const MAX_SEGMENT: usize = 63;

fn wrong(field: impl Display, why: impl Display) -> Fault {
    Fault::invalid(format!("accept {field}: {why}"))
}

/// A field that must be set.
pub(crate) fn missing(field: impl Display) -> Fault {
    wrong(field, "it is required and not set")
}

/// Text of at most `max` bytes without control characters; may be empty.
fn bounded(field: impl Display, value: String, max: usize) -> Result<String> {
    if value.len() > max {
        return Err(wrong(field, format_args!("it has {} bytes", value.len()))
            .hint(format!("at most {max} are allowed")));
    }
    if value.chars().any(char::is_control) {
        return Err(wrong(field, format_args!("{} has a control character", quoted(&value))));
    }
    Ok(value)
}

/// Text within the general limit; may be empty.
pub(crate) fn text(field: impl Display, value: String) -> Result<String> {
    bounded(field, value, MAX_TEXT)
}

/// The id of a volume, snapshot or group. Whether it can be one of ours is for the engines to say.
pub(crate) fn id(field: impl Display, value: String) -> Result<String> {
    let value = bounded(&field, value, MAX_TEXT)?;
    if value.is_empty() { Err(missing(field)) } else { Ok(value) }
}

/// Ids, at least one. They are a set: one that is there twice is there once.
pub(crate) fn ids(field: &str, values: Vec<String>) -> Result<Vec<String>> {
    if values.is_empty() { Err(missing(field)) } else { each(field, values, |f, v| id(f, v)) }
}

/// Ids, perhaps none.
pub(crate) fn any_ids(field: &str, values: Vec<String>) -> Result<Vec<String>> {
    if values.is_empty() { Ok(values) } else { ids(field, values) }
}

/// The name of a volume, snapshot or group that shall exist.
pub(crate) fn name(value: String) -> Result<String> {
    if value.is_empty() {
        return Err(missing("name"));
    }
    value.parse::<RequestedName>()?;
    Ok(value)
}

/// The id of a node; empty means all nodes.
pub(crate) fn optional_node_id(value: String) -> Result<String> {
    bounded("node_id", value, MAX_NODE_ID)
}

/// The id of a node that must be given.
pub(crate) fn node_id(value: String) -> Result<String> {
    let value = optional_node_id(value)?;
    if value.is_empty() { Err(missing("node_id")) } else { Ok(value) }
}

/// A path, where the caller gave one: absolute, without `..` and within the system's limits.
pub(crate) fn optional_path(field: &str, value: String) -> Result<Option<PathBuf>> {
    let value = bounded(field, value, MAX_PATH)?;
    if value.is_empty() {
        return Ok(None);
    }
    let path = Path::new(&value);
    if !path.is_absolute() {
        return Err(wrong(field, format_args!("{} is not an absolute path", quoted(&value))));
    }
    for part in path.components() {
        match part {
            Component::ParentDir => {
                return Err(wrong(field, format_args!("{} contains ..", quoted(&value))));
            }
            Component::Normal(part) if part.len() > MAX_NAME => {
                return Err(wrong(
                    field,
                    format_args!("{} has a name above {MAX_NAME} bytes", quoted(&value)),
                ));
            }
            _ => {}
        }
    }
    if path.file_name().is_none() {
        return Err(wrong(field, "it is the root directory"));
    }
    Ok(Some(value.into()))
}

/// A path that must be set.
pub(crate) fn path(field: &str, value: String) -> Result<PathBuf> {
    optional_path(field, value)?.ok_or_else(|| missing(field))
}

/// A path at which a volume is said to be already. No volume of ours is ever at a relative one:
/// `NotFound`, as csi-sanity asks (it looks for volumes at `some/path`).
pub(crate) fn place(field: &str, value: String) -> Result<PathBuf> {
    let value = bounded(field, value, MAX_PATH)?;
    if !value.is_empty() && !value.starts_with('/') {
        return Err(Fault::not_found(format!("find a volume at {field} {}", quoted(&value)))
            .hint("volumes are staged and published at absolute paths"));
    }
    path(field, value)
}

/// A map of parameters or of a context.
///
/// What Kubernetes adds under its own prefix has a limit of its own: kubelet does not look at the
/// general one before it puts the tokens of service accounts there.
pub(crate) fn attributes(field: &str, map: Attributes) -> Result<Attributes> {
    check_map(field, &map, MAX_MAP)?;
    Ok(map)
}

/// A map of secrets. Only keys are ever shown.
pub(crate) fn secrets(map: Attributes) -> Result<Secrets> {
    check_map("secrets", &map, MAX_SECRETS)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    for key in map.keys().filter(|key| !key.starts_with(RESERVED)) {
        if key.is_empty() || !key.chars().all(allowed) {
            return Err(wrong("secrets", format_args!("key {} is not allowed", quoted(key)))
                .hint("use letters, digits, '-', '_' and '.'"));
        }
    }
    Ok(Secrets::new(map))
}

fn check_map(field: &str, map: &Attributes, own: usize) -> Result<()> {
    let size = |reserved: bool| -> usize {
        map.iter()
            .filter(|(key, _)| key.starts_with(RESERVED) == reserved)
            .map(|(key, value)| key.len() + value.len())
            .sum()
    };
    let sizes =
        [(size(false), own, "it"), (size(true), MAX_RESERVED, "what Kubernetes added to it")];
    for (size, max, what) in sizes {
        if size > max {
            return Err(wrong(field, format_args!("{what} has {size} bytes"))
                .hint(format!("at most {max} are allowed, keys and values together")));
        }
    }
    if let Some(key) = map.keys().find(|key| key.chars().any(char::is_control)) {
        return Err(wrong(field, format_args!("key {} has a control character", quoted(key))));
    }
    if let Some((key, _)) = map.iter().find(|(_, value)| value.contains('\0')) {
        return Err(wrong(field, format_args!("the value of {} has a NUL", quoted(key))));
    }
    Ok(())
}

/// Applies `rule` to each value, under a name with its index.
fn each<T, U>(field: &str, values: Vec<T>, rule: impl Fn(&str, T) -> Result<U>) -> Result<Vec<U>> {
    let named = |(n, value)| rule(&format!("{field}[{n}]"), value);
    values.into_iter().enumerate().map(named).collect()
}

/// Ways of using a volume, at least one, that do not contradict each other.
///
/// Together they mean AND: one volume must be usable in each of the ways. Its device holds one file
/// system at most.
pub(crate) fn capabilities(
    field: &str,
    values: Vec<csi::VolumeCapability>,
) -> Result<Vec<VolumeCapability>> {
    if values.is_empty() {
        return Err(missing(field));
    }
    optional_capabilities(field, values)
}

/// The same, where none need be given.
pub(crate) fn optional_capabilities(
    field: &str,
    values: Vec<csi::VolumeCapability>,
) -> Result<Vec<VolumeCapability>> {
    let list = each(field, values, |field, value| capability(field, Some(value)))?;
    let mut named = list.iter().filter_map(|capability| match &capability.access {
        AccessType::Mount(mount) if !mount.fs_type.is_empty() => Some(&mount.fs_type),
        _ => None,
    });
    if let Some(first) = named.next()
        && let Some(other) = named.find(|other| *other != first)
    {
        return Err(wrong(
            field,
            format_args!(
                "one volume cannot hold file system {} and {}",
                quoted(first),
                quoted(other)
            ),
        ));
    }
    Ok(list)
}

/// One way of using a volume, which must be given.
pub(crate) fn capability(
    field: &str,
    value: Option<csi::VolumeCapability>,
) -> Result<VolumeCapability> {
    use csi::volume_capability::AccessType as Wire;
    let value = value.ok_or_else(|| missing(field))?;
    let mode = value.access_mode.ok_or_else(|| missing(format_args!("{field}.access_mode")))?;
    let mode = access_mode(field, mode.mode)?;
    let access = match value.access_type {
        None => {
            return Err(missing(format_args!("{field}.access_type"))
                .hint("say whether the volume is a block device or is mounted"));
        }
        Some(Wire::Block(_)) => AccessType::Block,
        Some(Wire::Mount(mount)) => AccessType::Mount(MountAccess {
            fs_type: bounded(format_args!("{field}.mount.fs_type"), mount.fs_type, MAX_TEXT)?,
            flags: mount_flags(field, mount.mount_flags)?,
            group: mount_group(field, &mount.volume_mount_group)?,
        }),
    };
    Ok(VolumeCapability { access, mode })
}

/// The same, where none need be given.
pub(crate) fn optional_capability(
    field: &str,
    value: Option<csi::VolumeCapability>,
) -> Result<Option<VolumeCapability>> {
    value.map(|value| capability(field, Some(value))).transpose()
}

fn access_mode(field: &str, number: i32) -> Result<AccessMode> {
    use csi::volume_capability::access_mode::Mode;
    match Mode::try_from(number) {
        Ok(Mode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
        Ok(Mode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(Mode::MultiNodeReaderOnly) => Ok(AccessMode::MultiNodeReaderOnly),
        Ok(Mode::MultiNodeSingleWriter) => Ok(AccessMode::MultiNodeSingleWriter),
        Ok(Mode::MultiNodeMultiWriter) => Ok(AccessMode::MultiNodeMultiWriter),
        Ok(Mode::SingleNodeSingleWriter) => Ok(AccessMode::SingleNodeSingleWriter),
        Ok(Mode::SingleNodeMultiWriter) => Ok(AccessMode::SingleNodeMultiWriter),
        Ok(Mode::Unknown) => Err(missing(format_args!("{field}.access_mode.mode"))),
        Err(_) => Err(wrong(
            format_args!("{field}.access_mode.mode"),
            format_args!("{number} is not a mode that this version knows"),
        )),
    }
}

/// Flags may hold passwords: neither they nor parts of them are shown.
fn mount_flags(field: &str, flags: Vec<String>) -> Result<Vec<String>> {
    let field = format_args!("{field}.mount.mount_flags");
    let size: usize = flags.iter().map(String::len).sum();
    if size > MAX_FLAGS {
        return Err(wrong(field, format_args!("they have {size} bytes"))
            .hint(format!("at most {MAX_FLAGS} are allowed, all flags together")));
    }
    for (n, flag) in flags.iter().enumerate() {
        if flag.is_empty() {
            return Err(wrong(field, format_args!("flag {n} is empty")));
        }
        if flag.chars().any(char::is_control) {
            return Err(wrong(field, format_args!("flag {n} has a control character")));
        }
    }
    Ok(flags)
}

fn mount_group(field: &str, text: &str) -> Result<Option<u32>> {
    let gid = || -> Option<u32> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        // The largest number is the kernel's "no change".
        text.parse().ok().filter(|gid| digits && *gid != u32::MAX)
    };
    match text {
        "" => Ok(None),
        _ => gid().map(Some).ok_or_else(|| {
            wrong(
                format_args!("{field}.mount.volume_mount_group"),
                format_args!("{} is not a group id", quoted(text)),
            )
            .hint("write the number of the group")
        }),
    }
}

/// A range of sizes, where the caller gave one.
pub(crate) fn optional_range(
    field: &str,
    value: Option<csi::CapacityRange>,
) -> Result<Option<CapacityRange>> {
    let Some(csi::CapacityRange { required_bytes, limit_bytes }) = value else { return Ok(None) };
    if (required_bytes, limit_bytes) == (0, 0) {
        return Err(wrong(field, "neither required_bytes nor limit_bytes is set"));
    }
    let named = |fault: Fault| fault.during(field);
    CapacityRange::from_csi(required_bytes, limit_bytes).map(Some).map_err(named)
}

/// A range of sizes that must be given.
pub(crate) fn range(field: &str, value: Option<csi::CapacityRange>) -> Result<CapacityRange> {
    optional_range(field, value)?.ok_or_else(|| missing(field))
}

/// One place.
pub(crate) fn segments(field: &str, value: csi::Topology) -> Result<Segments> {
    let word = |text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool| {
        let bytes = text.as_bytes();
        bytes.len() <= MAX_SEGMENT
            && bytes.first().copied().is_some_and(edge)
            && bytes.last().copied().is_some_and(edge)
            && bytes.iter().all(|b| inner(*b))
    };
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let alphanumeric = |b: u8| b.is_ascii_alphanumeric();
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let mut seen: Vec<String> = Vec::with_capacity(value.segments.len());
    for (key, value) in &value.segments {
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key.as_str()),
        };
        if prefix.is_some_and(|p| !word(p, lower, domain)) || !word(name, alphanumeric, inside) {
            return Err(wrong(field, format_args!("{} is not a topology key", quoted(key)))
                .hint("keys have the form prefix.example.com/name, each part at most 63 bytes"));
        }
        if !word(value, alphanumeric, inside) {
            return Err(wrong(
                field,
                format_args!("{} is not a topology value", quoted(value)),
            )
            .hint("use at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends"));
        }
        seen.push(key.to_ascii_lowercase());
    }
    seen.sort_unstable();
    match seen.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(wrong(
            field,
            format_args!("key {} is there twice, in different case", quoted(&pair[0])),
        )),
        None => Ok(Segments(value.segments)),
    }
}

/// What the caller asks of a place, where it asks anything.
pub(crate) fn topology(
    value: Option<csi::TopologyRequirement>,
) -> Result<Option<TopologyRequirement>> {
    let field = "accessibility_requirements";
    let Some(value) = value else { return Ok(None) };
    if value.requisite.is_empty() && value.preferred.is_empty() {
        return Err(wrong(field, "neither requisite nor preferred is set"));
    }
    let requisite = each(&format!("{field}.requisite"), value.requisite, segments)?;
    let preferred = each(&format!("{field}.preferred"), value.preferred, segments)?;
    if !requisite.is_empty() && preferred.iter().any(|place| !requisite.contains(place)) {
        return Err(wrong(field, "a preferred place is not among the requisite ones"));
    }
    Ok(Some(TopologyRequirement { requisite, preferred }))
}

/// The most items of a page; 0: as many as fit.
pub(crate) fn max(field: &str, value: i32) -> Result<i32> {
    if value < 0 { Err(wrong(field, format_args!("{value} is negative"))) } else { Ok(value) }
}

/// Where a listing goes on.
///
/// A token that we cannot have given is `Aborted`, whatever is wrong with it: that is the code at
/// which callers begin the listing again.
pub(crate) fn token(value: String) -> Result<String> {
    text("starting_token", value).map_err(|fault| {
        fault.with_kind(Kind::Aborted).hint("start again with an empty starting_token")
    })
}
