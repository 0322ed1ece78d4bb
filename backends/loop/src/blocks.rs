//! Allocated and changed blocks of images, as they lie on the device that a workload has.
//!
//! ```text
//! image of an encrypted volume   │ header │ ciphertext …                    │
//! what is told                            │ 0 …              size - header  │
//! ```
//! A backup reads the volume through its device, in which an encrypted volume's header is not seen. So
//! nothing of the header is told, and all else by its place there: dm-crypt writes each sector to one place.
//! What was never written reads as noise and is told as not allocated, as of any other volume.

use crate::devices::Image;
use larder_host::{extents, luks};
use larder_model::{
    Bytes, Fault, Result,
    backend::FoundExtents,
    volume::{Extent, FormatState},
};
use larder_pool::{Blocks, SnapshotEntry};

/// How many bytes of two images are compared before an answer is given: seconds.
const LOOK: u64 = 256 << 20;

/// See [`larder_pool::Medium::blocks`].
pub(crate) fn of(
    base: Option<&SnapshotEntry>,
    target: &SnapshotEntry,
    wanted: Blocks,
) -> Result<FoundExtents> {
    let image = Image::sound(&target.data, target.record.size)?;
    let header = header(target)?;
    let (whole, max) = (target.record.size.get(), wanted.max);
    let size = Bytes::new(whole.saturating_sub(header));
    if wanted.offset > size.get() {
        return Err(Fault::out_of_range(format!("start at byte {}: it has {size}", wanted.offset)));
    }
    let offset = wanted.offset + header;
    let told = match base {
        None => extents::allocated(&image.path, whole, offset, max)?,
        Some(base) => {
            let before = Image::sound(&base.data, base.record.size)?;
            check_comparable(base, target, header)?;
            extents::changed(&before.path, &image.path, whole, offset, max, LOOK)?
        }
    };
    let extents = told.extents.into_iter().map(|extent| {
        let begin = extent.offset.max(header);
        Extent { offset: begin - header, length: extent.offset + extent.length - begin }
    });
    Ok(FoundExtents { extents: extents.collect(), size, next: told.next - header })
}

/// Refuses snapshots of which one place is not the same place on both devices.
fn check_comparable(base: &SnapshotEntry, target: &SnapshotEntry, header: u64) -> Result<()> {
    let refuse = |why: &str, hint: &str| {
        Err(Fault::precondition(format!("compare the snapshots: {why}")).hint(hint))
    };
    match (base.record.file_system, is_encrypted(target)) {
        (Some(FormatState::Encrypted { .. }), _) if self::header(base)? != header => refuse(
            "their encryption headers are of different lengths",
            "the volume was encrypted anew between them: back it up in full",
        ),
        // Nothing was on it yet: all that it holds by now is new.
        (Some(FormatState::Encrypted { .. } | FormatState::Unformatted), _) | (_, false) => Ok(()),
        _ => refuse("only the later one is known to be encrypted", "back the volume up in full"),
    }
}

fn is_encrypted(snapshot: &SnapshotEntry) -> bool {
    matches!(snapshot.record.file_system, Some(FormatState::Encrypted { .. }))
}

/// How much of the image its encryption header takes.
fn header(snapshot: &SnapshotEntry) -> Result<u64> {
    if !is_encrypted(snapshot) {
        return Ok(0);
    }
    luks::data_offset(&snapshot.data)
}
