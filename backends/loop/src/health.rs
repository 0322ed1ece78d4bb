//! What is wrong with a volume: with its image, its loop device, its file system.
//!
//! | reason | status | found by |
//! |---|---|---|
//! | `DataMissing` | data loss | there is no file of that name (found by the pool) |
//! | `ImageTruncated` | data loss | smaller than the volume's recorded size |
//! | `ImageReplaced` | inaccessible | the file at its name is not the one that is attached |
//! | `ImageDeleted` | data loss | attached, but deleted below the device: lost with the last unmount |
//! | `LoopDeviceLost` | inaccessible | the recorded device is gone or backs something else |
//! | `FileSystemErrors` | degraded | errors that the kernel or the superblock counts |
//! | `FileSystemReadOnly` | inaccessible | the kernel made the mounted file system read-only |
//! | `FileSystemShutDown` | inaccessible | the mounted file system answers nothing but errors |
//!
//! Looking never changes anything and never waits for the file system itself.

use crate::{
    devices::{self, Attached, Image},
    mounted,
};
use larder_host::{Host, LoopInfo, MountEntry, filesystems::errors};
use larder_model::{
    Bytes, Fault,
    backend::Attachment,
    volume::{HealthEntry, HealthStatus},
};
use std::path::Path;

/// The image alone, and the file system on it while it is not attached.
pub(crate) fn of_image(
    host: &Host,
    path: &Path,
    size: Bytes,
    attachment: Option<&Attachment>,
) -> Vec<HealthEntry> {
    let image = match Image::look(path) {
        Ok(Some(image)) => image,
        Ok(None) => {
            return vec![entry(
                HealthStatus::DataLoss,
                "ImageMissing",
                format!(
                    "the image {} is missing: put it back or restore the volume",
                    path.display()
                ),
            )];
        }
        Err(fault) => return vec![inaccessible(&fault)],
    };
    let mut found = Vec::new();
    if image.size < size {
        found.push(entry(
            HealthStatus::DataLoss,
            "ImageTruncated",
            format!(
                "the image {} has {} bytes and should have {}: its end is lost",
                path.display(),
                image.size.get(),
                size.get()
            ),
        ));
    }
    // Kubelet asks for every volume once a minute: looking through all devices of the machine for
    // each of them would take as long as all of them squared.
    if attachment.is_some_and(|known| is_attached(host, &image, known)) {
        return found;
    }
    match host.loops.find(path) {
        Ok(devices) if devices.is_empty() => found.extend(errors::on_image(path).map(file_system)),
        Ok(_) => {}
        Err(fault) => found.push(inaccessible(&fault)),
    }
    found
}

/// Whether the image is on the device that the node's record names.
fn is_attached(host: &Host, image: &Image, attachment: &Attachment) -> bool {
    let device = Attached::parse(attachment).and_then(|known| Ok((known, known.find(host)?)));
    matches!(device, Ok((known, Some(_))) if known.is(image))
}

/// The image's loop device as this node has it, and what is mounted from it.
pub(crate) fn of_device(host: &Host, path: &Path, attachment: &Attachment) -> Vec<HealthEntry> {
    let looked = Attached::parse(attachment)
        .and_then(|attached| Ok((attached, attached.find(host)?, Image::look(path)?)));
    let (attached, info, image) = match looked {
        Ok(looked) => looked,
        Err(fault) => return vec![inaccessible(&fault)],
    };
    let Some(info) = info else {
        return vec![entry(
            HealthStatus::Inaccessible,
            "LoopDeviceLost",
            format!(
                "loop device {} is not attached to {} any more: unpublish and publish the volume \
                 again",
                attached.number,
                path.display()
            ),
        )];
    };
    let mut found = Vec::new();
    match image {
        Some(image) if !attached.is(&image) => {
            return vec![entry(
                HealthStatus::Inaccessible,
                "ImageReplaced",
                format!(
                    "{} still uses the file that was at {} before; what is there now is not in use",
                    info.path.display(),
                    path.display()
                ),
            )];
        }
        None => found.push(entry(
            HealthStatus::DataLoss,
            "ImageDeleted",
            format!(
                "the image {} was deleted below {}: copy its data away before it is unmounted",
                path.display(),
                info.path.display()
            ),
        )),
        Some(_) => {}
    }
    found.extend(of_file_system(host, &info));
    found
}

fn of_file_system(host: &Host, info: &LoopInfo) -> Vec<HealthEntry> {
    let top = match mounted::Top::of(info) {
        Ok(top) => top,
        Err(fault) => return vec![inaccessible(&fault)],
    };
    let mut found: Vec<_> = errors::of_device(top.device).map(file_system).into_iter().collect();
    let mounts = match mounted::here(host, &top) {
        Ok(mounts) => mounts,
        Err(fault) => {
            found.push(inaccessible(&fault));
            return found;
        }
    };
    let option = |list: &[String], word: &str| list.iter().any(|o| o == word);
    // The mount is writable, the file system below it was made read-only: by the kernel.
    if let Some(mount) = mounts
        .iter()
        .find(|m| !info.read_only && !option(&m.options, "ro") && option(&m.super_options, "ro"))
    {
        found.push(entry(
            HealthStatus::Inaccessible,
            "FileSystemReadOnly",
            format!(
                "the kernel made the file system at {} read-only after errors: see dmesg, unmount \
                 and check it",
                mount.target.display()
            ),
        ));
    }
    let shut_down =
        |m: &&MountEntry| option(&m.super_options, "shutdown") || errors::is_shut_down(&m.target);
    if let Some(mount) = mounts.iter().find(shut_down) {
        found.push(entry(
            HealthStatus::Inaccessible,
            "FileSystemShutDown",
            format!(
                "the file system at {} has shut down after errors: see dmesg, unmount and mount it",
                mount.target.display()
            ),
        ));
    }
    found
}

/// A replaced image is worth telling also where no attachment is recorded.
pub(crate) fn of_former(host: &Host, path: &Path) -> Option<HealthEntry> {
    let image = Image::look(path).ok()??;
    let former = devices::former(host, &image).ok()??;
    Some(entry(
        HealthStatus::Inaccessible,
        "ImageReplaced",
        format!(
            "{} is attached to the file that was at {} before",
            former.path.display(),
            path.display()
        ),
    ))
}

fn entry(status: HealthStatus, reason: &'static str, message: String) -> HealthEntry {
    HealthEntry { status, reason, message }
}

fn file_system(what: String) -> HealthEntry {
    entry(
        HealthStatus::Degraded,
        "FileSystemErrors",
        format!("{what}: see dmesg, and check the file system while it is unmounted"),
    )
}

fn inaccessible(fault: &Fault) -> HealthEntry {
    entry(HealthStatus::Inaccessible, "ImageInaccessible", fault.to_string())
}
