//! Loop devices over the images of volumes.
//!
//! ```text
//!            connect (mount)                    engine mounts, drops the hold
//!  no device ───────────────▶ autoclear + hold ─────────────────────────────▶ kept by the mount
//!      ▲                                                                           │
//!      └────────────── last unmount: the kernel removes it by itself ◀─────────────┘
//!
//!            connect (block)
//!  no device ───────────────▶ without autoclear: openers come and go ── disconnect ──▶ no device
//! ```
//! Invariants:
//! - **one image, one device.** Two devices over one image have two caches; writing through both
//!   destroys a file system. A device that is there already is used again, also when it was made
//!   before a restart;
//! - an [`Attachment`] is a loop number *and* the identity of the image behind it. The kernel is
//!   asked before every use: a number that backs something else by now is never touched;
//! - an image that is missing, truncated or replaced under an attached device is refused with what
//!   was found, and nothing is changed: the old inode may be all that is left of the data.

use crate::params::{DirectIo, Shape};
use larder_host::{Backing, Host, LoopInfo, LoopRequest};
use larder_model::{
    Bytes, Cx, Fault, Result,
    backend::{Attachment, Source},
};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

/// An image that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) backing: Backing,
    pub(crate) size: Bytes,
}

impl Image {
    /// Looks at an image; None: there is none.
    ///
    /// # Errors
    /// `Precondition` where something else has its name.
    pub(crate) fn look(path: &Path) -> Result<Option<Self>> {
        let what = || format!("look at image {}", path.display());
        let meta = match std::fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io(what(), e)),
        };
        if !meta.is_file() {
            return Err(Fault::precondition(format!("{}: it is no ordinary file", what())));
        }
        Ok(Some(Self {
            path: path.to_owned(),
            backing: Backing { device: meta.dev(), inode: meta.ino() },
            size: Bytes::new(meta.len()),
        }))
    }

    /// Looks at the image of a volume of `size`.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or smaller.
    pub(crate) fn sound(path: &Path, size: Bytes) -> Result<Self> {
        let Some(image) = Self::look(path)? else {
            return Err(Fault::corrupt(format!("use image {}: it is missing", path.display()))
                .hint("put the file back, or restore the volume from a snapshot or backup"));
        };
        if image.size < size {
            return Err(Fault::corrupt(format!(
                "use image {}: it has {} bytes and should have {}",
                path.display(),
                image.size.get(),
                size.get()
            ))
            .hint(
                "its end is lost; nothing was changed: restore the volume from a snapshot or backup",
            ));
        }
        Ok(image)
    }

    pub(crate) fn is_behind(&self, info: &LoopInfo) -> bool {
        info.backing() == self.backing
    }
}

/// A loop device, as recorded by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) number: u32,
    backing: Backing,
}

impl Attached {
    const LOOP: &str = "loop";
    const DEVICE: &str = "backingDevice";
    const INODE: &str = "backingInode";

    fn of(number: u32, image: &Image) -> Self {
        Self { number, backing: image.backing }
    }

    /// For the node's record.
    pub(crate) fn record(self) -> Attachment {
        Attachment::from([
            (Self::LOOP.to_owned(), self.number.to_string()),
            (Self::DEVICE.to_owned(), self.backing.device.to_string()),
            (Self::INODE.to_owned(), self.backing.inode.to_string()),
        ])
    }

    /// From the node's record.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn parse(attachment: &Attachment) -> Result<Self> {
        let read = || {
            Some(Self {
                number: attachment.get(Self::LOOP)?.parse().ok()?,
                backing: Backing {
                    device: attachment.get(Self::DEVICE)?.parse().ok()?,
                    inode: attachment.get(Self::INODE)?.parse().ok()?,
                },
            })
        };
        read().ok_or_else(|| {
            Fault::corrupt("read the node's record of a loop device")
                .hint("unpublish and unstage the volume; its device is then found by its image")
        })
    }

    /// The device, if it is still the recorded one.
    pub(crate) fn find(self, host: &Host) -> Result<Option<LoopInfo>> {
        let info = host.loops.info(self.number)?;
        Ok(info.filter(|info| info.backing() == self.backing))
    }

    fn over(info: &LoopInfo) -> Self {
        Self { number: info.number, backing: info.backing() }
    }

    pub(crate) fn is(self, image: &Image) -> bool {
        self.backing == image.backing
    }
}

/// How a volume shall be attached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) shape: Shape,
    pub(crate) read_only: bool,
    pub(crate) block: bool,
    /// Direct I/O is safe in this pool.
    pub(crate) direct_io_safe: bool,
}

/// Attaches an image, or takes the device that it has.
///
/// # Errors
/// `Precondition` (in use in another way, image replaced), `Exhausted` (no free device).
pub(crate) fn attach(
    host: &Host,
    image: &Image,
    wanted: Wanted,
    cx: &Cx,
) -> Result<(Source, Attachment)> {
    refuse_replaced(host, image)?;
    // An autoclear device may go away between being found and being held.
    for _ in 0..8 {
        cx.step("find the volume's loop device")?;
        let (source, number) = match only_one(host, image)? {
            None => {
                cx.step("attach the image to a loop device")?;
                attach_new(host, image, wanted)?
            }
            Some(info) => match reuse(host, image, &info, wanted, cx)? {
                Some(source) => (source, info.number),
                None => continue,
            },
        };
        return Ok((source, Attached::of(number, image).record()));
    }
    Err(Fault::unavailable(format!("attach {}: its device comes and goes", image.path.display()))
        .hint("see losetup -l for who else attaches it"))
}

fn attach_new(host: &Host, image: &Image, wanted: Wanted) -> Result<(Source, u32)> {
    let direct_io = match wanted.shape.direct_io {
        DirectIo::Auto => wanted.direct_io_safe,
        DirectIo::Always => true,
        DirectIo::Never => false,
    };
    let device = host.loops.attach(&LoopRequest {
        image: image.path.clone(),
        read_only: wanted.read_only,
        autoclear: !wanted.block,
        direct_io,
        sector_size: wanted.shape.sector_size.get(),
    })?;
    // The path was opened anew by the kernel's door: it must still be the image that was examined.
    let info = host.loops.info(device.number)?;
    if !info.is_some_and(|info| image.is_behind(&info)) {
        drop(device.hold);
        return Err(Fault::unavailable(format!(
            "attach {}: the file was replaced at this moment",
            image.path.display()
        )));
    }
    let hold = (!wanted.block).then_some(device.hold);
    Ok((Source::Device { path: device.path, hold }, device.number))
}

/// Takes a device that is there already; None: it is gone by now.
fn reuse(
    host: &Host,
    image: &Image,
    info: &LoopInfo,
    wanted: Wanted,
    cx: &Cx,
) -> Result<Option<Source>> {
    let other = if info.sector_size != wanted.shape.sector_size.get() {
        Some(format!("with {}-byte sectors", info.sector_size))
    } else if info.read_only && !wanted.read_only {
        Some("read-only".to_owned())
    } else if !info.read_only && wanted.read_only {
        // Of a raw device nothing but the device itself keeps a reader from writing.
        Some("for writing".to_owned())
    } else {
        None
    };
    if let Some(other) = other {
        cx.step("detach the device that was attached in another way")?;
        detach(host, info).map_err(|fault| {
            fault.during(format!(
                "attach {}: it is attached {other} as {}",
                image.path.display(),
                info.path.display()
            ))
        })?;
        return Ok(None);
    }
    let hold = match File::open(&info.path) {
        Ok(file) => OwnedFd::from(file),
        Err(e) if e.raw_os_error() == Some(ENXIO) => return Ok(None),
        Err(e) => return Err(Fault::io(format!("open {}", info.path.display()), e)),
    };
    // Only what is asked *after* it is held cannot change any more.
    let now = host.loops.info(info.number)?.filter(|now| image.is_behind(now));
    let Some(now) = now else { return Ok(None) };
    if wanted.block && now.autoclear {
        cx.step("keep the loop device without openers")?;
        host.loops.set_autoclear(info.number, false)?;
    }
    if now.size < image.size {
        cx.step("take over the image's size")?;
        host.loops.set_capacity(info.number)?;
    }
    let hold = (!wanted.block).then_some(hold);
    Ok(Some(Source::Device { path: info.path.clone(), hold }))
}

/// `ENXIO`: a device without an image.
const ENXIO: i32 = 6;

/// The device over the image. Left-over ones that nobody uses are detached when there are several.
fn only_one(host: &Host, image: &Image) -> Result<Option<LoopInfo>> {
    let mut found = host.loops.find(&image.path)?;
    if found.len() > 1 {
        for info in &found {
            // Errors are for the count below to tell: in use means that it stays.
            let _ = detach(host, info);
        }
        found = host.loops.find(&image.path)?;
    }
    match found.as_slice() {
        [] => Ok(None),
        [info] => Ok(Some(info.clone())),
        several => Err(Fault::precondition(format!(
            "attach {}: it is attached as {} and all are in use",
            image.path.display(),
            several.iter().map(|i| i.path.display().to_string()).collect::<Vec<_>>().join(" and ")
        ))
        .hint(
            "somebody attached it by hand; writing through two devices destroys data: detach one",
        )),
    }
}

/// Detaches a device unless it is open, mounted or published. A workload opens a published one when it
/// likes, and would then write to whatever volume has the number by then.
///
/// # Errors
/// `Precondition` while it is in use.
pub(crate) fn detach(host: &Host, info: &LoopInfo) -> Result<()> {
    match published(host, info)? {
        None => host.loops.detach(info.number, info.backing()),
        Some(place) => Err(Fault::precondition(format!(
            "detach {}: it is published at {}",
            info.path.display(),
            place.display()
        ))
        .hint("unpublish the volume there first")),
    }
}

/// Where the device's file under `/dev` is shown to a workload.
pub(crate) fn published(host: &Host, info: &LoopInfo) -> Result<Option<PathBuf>> {
    let name = info.path.file_name();
    let table = host.mounts.table()?;
    let place = table.into_iter().find(|entry| {
        entry.root.file_name() == name
            && host.mounts.block_device(&entry.target).is_ok_and(|device| device == info.device)
    });
    Ok(place.map(|entry| entry.target))
}

/// The device over an image, or over the former file of its name, without touching it.
///
/// # Errors
/// `Precondition` where there are several.
pub(crate) fn find(host: &Host, path: &Path) -> Result<Option<(Source, Attachment)>> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let image = Image::look(path)?;
    let all = host.loops.list()?;
    let mut found: Vec<_> =
        all.iter().filter(|info| image.as_ref().is_some_and(|i| i.is_behind(info))).collect();
    if found.is_empty() {
        found = all.iter().filter(|i| i.backing_file.as_deref() == Some(&*real)).collect();
    }
    match found.as_slice() {
        [] => Ok(None),
        [info] => {
            let source = Source::Device { path: info.path.clone(), hold: None };
            Ok(Some((source, Attached::over(info).record())))
        }
        several => Err(Fault::precondition(format!(
            "find the device of {}: it is attached as {}",
            path.display(),
            several.iter().map(|i| i.path.display().to_string()).collect::<Vec<_>>().join(" and ")
        ))
        .hint("detach what nobody uses (losetup -d)")),
    }
}

/// Refuses an image whose name belonged to another file when that was attached.
fn refuse_replaced(host: &Host, image: &Image) -> Result<()> {
    match former(host, image)? {
        None => Ok(()),
        Some(info) => Err(Fault::precondition(format!(
            "attach {}: the file was replaced while {} is attached to the former one",
            image.path.display(),
            info.path.display()
        ))
        .hint(format!(
            "nothing was changed; when the former data is not needed any more, stop its workload \
             and run losetup -d {}",
            info.path.display()
        ))),
    }
}

/// A device over another file that had the name of this image when it was attached.
pub(crate) fn former(host: &Host, image: &Image) -> Result<Option<LoopInfo>> {
    // The kernel tells the real path; the configured one may lead through symlinks.
    let real = std::fs::canonicalize(&image.path).unwrap_or_else(|_| image.path.clone());
    let devices = host.loops.list()?;
    Ok(devices.into_iter().find(|info| {
        info.backing_file.as_deref() == Some(real.as_path()) && !image.is_behind(info)
    }))
}

/// Detaches every device over the image that nobody uses.
///
/// # Errors
/// `Precondition` while one is in use.
pub(crate) fn detach_all(host: &Host, image: &Path) -> Result<()> {
    let devices = match host.loops.find(image) {
        Ok(devices) => devices,
        Err(fault) if fault.kind() == larder_model::Kind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
    };
    devices.iter().try_for_each(|info| detach(host, info))
}
