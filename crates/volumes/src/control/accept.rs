//! What a request may ask for, decided from the backend's facts alone. Pure functions.

use larder_model::{
    AccessType, Encryption, Fault, FsType, Result, VolumeCapability,
    id::quoted,
    params::RESERVED,
    topology::TopologyRequirement,
    volume::{Attributes, Facts},
};

/// The longest map or list of mount flags, in bytes (CSI, "Size limits").
const MAX_MAP: usize = 4096;
/// The parameter that chooses a pool.
pub(super) const POOL: &str = "pool";
/// The parameter that chooses a file system.
pub(super) const FS: &str = "fs";

/// Refuses what no volume of this driver can do.
pub(super) fn capabilities(
    facts: &Facts,
    capabilities: &[VolumeCapability],
    parameters: &Attributes,
) -> Result<()> {
    if capabilities.is_empty() {
        return Err(Fault::invalid("accept no volume capability: at least one is needed"));
    }
    let mut wanted: Option<FsType> = match parameters.get(FS) {
        // Where volumes have no file system of their own, the backend refuses the parameter by name.
        Some(name) if !facts.file_systems.is_empty() => Some(file_system(facts, name)?),
        _ => None,
    };
    for capability in capabilities {
        if let Some(fs) = one(facts, capability)? {
            match wanted {
                Some(other) if other != fs => {
                    return Err(Fault::invalid(format!("use {fs} and {other} on one volume"))
                        .hint("ask for one file system, in parameter fs or in the capability"));
                }
                _ => wanted = Some(fs),
            }
        }
    }
    Ok(())
}

/// Refuses one capability, or returns the file system it asks for.
fn one(facts: &Facts, capability: &VolumeCapability) -> Result<Option<FsType>> {
    if !facts.access_modes.contains(&capability.mode) {
        let known: Vec<_> = facts.access_modes.iter().map(ToString::to_string).collect();
        return Err(Fault::invalid(format!("use access mode {}", capability.mode))
            .hint(format!("this driver supports {}", known.join(", "))));
    }
    let mount = match &capability.access {
        AccessType::Block if facts.block => return Ok(None),
        AccessType::Block => {
            return Err(Fault::invalid("use a raw block volume")
                .hint("volumes of this driver can only be mounted"));
        }
        AccessType::Mount(_) if !facts.mount => {
            return Err(Fault::invalid("use a mounted volume")
                .hint("volumes of this driver are raw block devices only"));
        }
        AccessType::Mount(mount) => mount,
    };
    if mount.group.is_some() && !facts.mount_group {
        return Err(Fault::invalid("mount for a group")
            .hint("this driver does not announce VOLUME_MOUNT_GROUP"));
    }
    // The flags themselves stay out of the message: they may be sensitive.
    if mount.flags.iter().map(String::len).sum::<usize>() > MAX_MAP {
        return Err(Fault::invalid(format!("use mount flags of more than {MAX_MAP} bytes")));
    }
    if mount.flags.iter().any(|flag| flag.contains(['\0', '\n'])) {
        return Err(Fault::invalid("use a mount flag that holds a line break or a NUL"));
    }
    match mount.fs_type.as_str() {
        "" => Ok(None),
        // Provisioners fill in a default for every driver (`--default-fstype=ext4` is in most
        // manifests). It says nothing to volumes that are directories, and the hostpath driver, whose
        // users these are, ignores it.
        name if facts.file_systems.is_empty() && name.parse::<FsType>().is_ok() => Ok(None),
        name => file_system(facts, name).map(Some),
    }
}

fn file_system(facts: &Facts, name: &str) -> Result<FsType> {
    let known: Vec<_> = facts.file_systems.iter().map(|fs| fs.as_str()).collect();
    let found = name.parse::<FsType>().ok().filter(|fs| facts.file_systems.contains(fs));
    found.ok_or_else(|| {
        let fault = Fault::invalid(format!("use file system {}", quoted(name)));
        match known.as_slice() {
            [] => fault.hint("volumes of this driver have no file system of their own"),
            known => fault.hint(format!("this driver makes {}", known.join(", "))),
        }
    })
}

/// Refuses parameters that are larger than CSI allows. Secrets and volume contexts are not
/// measured: certificates and service account tokens rightly exceed the limit.
pub(super) fn map_size(map: &Attributes, field: &str) -> Result<()> {
    let size: usize = map.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAX_MAP {
        return Err(Fault::invalid(format!(
            "accept {field} of {size} bytes: at most {MAX_MAP} are allowed"
        )));
    }
    Ok(())
}

/// The parameters that are the backend's: without the reserved keys.
pub(super) fn own(map: &Attributes) -> Attributes {
    map.iter()
        .filter(|(key, _)| !key.starts_with(RESERVED))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Takes what is about encryption out of the parameters: the node encrypts, not the backend.
pub(super) fn encryption(facts: &Facts, parameters: &mut Attributes) -> Result<Option<Encryption>> {
    let encryption = Encryption::take(parameters)?;
    if encryption.is_some() && !facts.block {
        return Err(Fault::invalid(
            "use parameter encryption: volumes of this driver are no devices",
        )
        .hint("choose a backend with block devices (loop), or encrypt the disk below the pool"));
    }
    Ok(encryption)
}

/// What is left of them: who the volume is for.
pub(super) fn reserved(map: &Attributes) -> Attributes {
    map.iter()
        .filter(|(key, _)| key.starts_with(RESERVED))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Refuses a requirement that says nothing, or that contradicts itself.
pub(super) fn topology(requirement: &TopologyRequirement) -> Result<()> {
    let TopologyRequirement { requisite, preferred } = requirement;
    if requisite.is_empty() && preferred.is_empty() {
        return Err(Fault::invalid(
            "accept accessibility requirements with neither requisite nor preferred topologies",
        ));
    }
    let listed = |place| requisite.iter().any(|r| r.satisfies(place) && place.satisfies(r));
    if !requisite.is_empty() && !preferred.iter().all(listed) {
        return Err(Fault::invalid("prefer a topology that is not among the requisite ones"));
    }
    Ok(())
}

/// The number of entries in a page; None: all.
pub(super) fn page_size(max: i32, field: &str) -> Result<Option<usize>> {
    match usize::try_from(max) {
        Ok(0) => Ok(None),
        Ok(max) => Ok(Some(max)),
        Err(_) => Err(Fault::invalid(format!("accept {field} {max}: it is negative"))),
    }
}
