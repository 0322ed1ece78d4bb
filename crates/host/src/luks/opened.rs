//! What is open, by sysfs.

use super::PREFIX;
use crate::DeviceId;
use larder_model::{Bytes, Fault, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// A device-mapper device with a name of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its name.
    pub name: String,
    /// Its node under `/dev`.
    pub path: PathBuf,
    /// Its number.
    pub device: DeviceId,
    /// The device that it decrypts; None: its opening was cut before it had one.
    pub below: Option<DeviceId>,
    /// UUID of the header it was opened with.
    pub luks: Option<Uuid>,
    /// Its size.
    pub size: Bytes,
    /// It refuses writing.
    pub read_only: bool,
}

/// What is open as `name`.
///
/// # Errors
/// See [`Fault::io`].
pub fn find(name: &str) -> Result<Option<Opened>> {
    Ok(list()?.into_iter().find(|opened| opened.name == name))
}

/// What of ours decrypts the device `below`.
///
/// # Errors
/// See [`Fault::io`].
pub fn on(below: DeviceId) -> Result<Option<Opened>> {
    Ok(list()?.into_iter().find(|opened| opened.below == Some(below)))
}

/// Whether it is a device-mapper device, whoever made it.
pub fn is_mapped(device: DeviceId) -> bool {
    PathBuf::from(format!("/sys/dev/block/{device}/dm")).exists()
}

/// Whether the device below has room for an `opened` that is larger.
///
/// # Errors
/// As [`super::data_offset`].
pub fn is_smaller(opened: &Opened) -> Result<bool> {
    let Some(below) = opened.below else { return Ok(false) };
    let what = || format!("look below {}", opened.name);
    let sys = PathBuf::from(format!("/sys/dev/block/{below}"));
    let link = fs::read_link(&sys).map_err(|e| Fault::io(what(), e))?;
    let sectors = read(&sys.join("size")).map_err(|e| Fault::io(what(), e))?;
    let sectors: u64 = sectors.and_then(|text| text.parse().ok()).unwrap_or(0);
    let name = link.file_name().map(|name| name.to_string_lossy().replace('!', "/"));
    let path = Path::new("/dev").join(name.unwrap_or_default());
    let room = sectors.saturating_mul(512).saturating_sub(super::data_offset(&path)?);
    // Whole sectors of any size.
    Ok(opened.size.get() + 4096 <= room)
}

/// Everything with a name of ours, in the order of names.
///
/// # Errors
/// See [`Fault::io`].
pub fn list() -> Result<Vec<Opened>> {
    named(PREFIX)
}

/// What cryptsetup left that was killed while it tried a passphrase: where the kernel offers no other
/// way, it maps the place of a key for a moment.
///
/// # Errors
/// See [`Fault::io`].
pub fn interrupted() -> Result<Vec<Opened>> {
    named("temporary-cryptsetup-")
}

fn named(prefix: &str) -> Result<Vec<Opened>> {
    let what = "list the block devices of this machine";
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").map_err(|e| Fault::io(what, e))? {
        let entry = entry.map_err(|e| Fault::io(what, e))?;
        if entry.file_name().as_encoded_bytes().starts_with(b"dm-") {
            // One that goes away while it is looked at is not open.
            found.extend(look(&entry.path(), prefix).map_err(|e| Fault::io(what, e))?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn look(sys: &Path, prefix: &str) -> io::Result<Option<Opened>> {
    let Some(name) = read(&sys.join("dm/name"))?.filter(|name| name.starts_with(prefix)) else {
        return Ok(None);
    };
    let Some(device) = read(&sys.join("dev"))?.and_then(|text| text.parse().ok()) else {
        return Ok(None);
    };
    let below = match fs::read_dir(sys.join("slaves")) {
        Ok(mut slaves) => slaves.next().transpose()?,
        Err(e) if gone(&e) => None,
        Err(e) => return Err(e),
    };
    let below = match below {
        Some(slave) => read(&slave.path().join("dev"))?.and_then(|text| text.parse().ok()),
        None => None,
    };
    let luks = read(&sys.join("dm/uuid"))?.and_then(|text| luks(&text));
    let sectors = read(&sys.join("size"))?.and_then(|text| text.parse::<u64>().ok());
    let read_only = read(&sys.join("ro"))?.is_some_and(|text| text == "1");
    let size = Bytes::new(sectors.unwrap_or(0).saturating_mul(512));
    let path = path_of(&name, device);
    Ok(Some(Opened { name, path, device, below, luks, size, read_only }))
}

/// The name that people know, where it leads to the device: a cut opening may have left none.
fn path_of(name: &str, device: DeviceId) -> PathBuf {
    let named = Path::new("/dev/mapper").join(name);
    match DeviceId::of_block_device(&named) {
        Ok(found) if found == device => named,
        _ => PathBuf::from(format!("/dev/dm-{}", device.minor)),
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the device went away while it was looked at, as others' do at any moment: device mapper says
/// EINVAL then.
fn gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let gone = [Errno::NODEV, Errno::NXIO, Errno::INVAL].map(|errno| Some(errno.raw_os_error()));
    error.kind() == io::ErrorKind::NotFound || gone.contains(&error.raw_os_error())
}

/// `CRYPT-LUKS2-<UUID without dashes>-<name>`, as cryptsetup gives it.
fn luks(text: &str) -> Option<Uuid> {
    text.strip_prefix("CRYPT-LUKS2-")?.get(..32)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let uuid = Uuid::from_u128(7);
        let text = format!("CRYPT-LUKS2-{}-larder-default-a", uuid.simple());
        assert_eq!(luks(&text), Some(uuid));
        assert_eq!(luks("LVM-abc"), None);
    }

    #[test]
    fn what_is_not_open_is_not_found() {
        assert_eq!(find("larder-no-such-thing").unwrap(), None);
        super::super::close("larder-no-such-thing").unwrap();
    }
}
