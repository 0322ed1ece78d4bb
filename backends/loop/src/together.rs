//! Snapshots of several volumes at one moment.
//!
//! ```text
//!  copy those that nobody uses ─▶ freeze all that are mounted ─▶ copy these ─▶ thaw ─▶ look again
//! ```
//! The moment is the freeze: one call of the [`Freezer`](larder_host::freeze::Freezer) holds every
//! mounted member back, under one record, one watchdog and one deadline. What nobody uses has no
//! other moments; that nobody used it until the end is proven afterwards, otherwise everything is
//! made anew. A raw block device cannot be held back, only copied as it is at some moment: in a group
//! that would be another moment than the others', so it is refused.

use crate::copying::{Consistency, Copier, Seen, Sharing, remove};
use larder_host::copy;
use larder_model::{Bytes, Cx, Fault, Kind, Result};
use std::path::Path;

/// How often the use of one of the volumes may change during one attempt to cut them.
const ATTEMPTS: u32 = 6;

/// One image to copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Twin<'a> {
    /// The image.
    pub(crate) from: &'a Path,
    /// Whose image it is, for messages.
    pub(crate) whose: &'a str,
    /// A name that does not exist.
    pub(crate) to: &'a Path,
    /// It may be handed out as a raw block device. A device that is attached and not mounted is
    /// otherwise being staged or unstaged.
    pub(crate) raw: bool,
}

impl Copier {
    /// Copies several images at one moment, durably; tells what each copy is worth.
    ///
    /// # Errors
    /// `Precondition` (writes cannot be held back together), `Exhausted`, `Unavailable` (they came into
    /// use again and again), I/O. Nothing is left at any target.
    pub(crate) fn copy_together(
        &self,
        twins: &[Twin<'_>],
        sharing: Sharing,
        cx: &Cx,
    ) -> Result<Vec<Consistency>> {
        let mut sharing = sharing;
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            cx.step("look who uses the volumes")?;
            let seen = self.observe_all(twins)?;
            decide(twins, &seen, sharing, self.limits.copied)?;
            let done = self.copy_all(twins, &seen, sharing, cx);
            if let Err(fault) = &done
                && fault.is_simulated_crash()
            {
                return Err(fault.clone());
            }
            let after = self.observe_all(twins)?;
            let same_use = seen.iter().zip(&after).all(|(a, b)| a.use_of() == b.use_of());
            let unwritten = seen
                .iter()
                .zip(&after)
                .all(|(a, b)| !a.writers.is_empty() || a.version == b.version);
            match done {
                Ok(true) if same_use && unwritten => {
                    let worth = |seen: &Seen| match seen.writers.is_empty() {
                        true => Consistency::Clean,
                        false => Consistency::Frozen,
                    };
                    return Ok(seen.iter().map(worth).collect());
                }
                Ok(true) => {}
                // The pool cannot share the blocks of one of these files.
                Ok(false) => sharing = Sharing::Impossible,
                Err(fault) if same_use => {
                    remove_all(twins)?;
                    return Err(fault);
                }
                Err(fault) => failed = Some(fault),
            }
            remove_all(twins)?;
        }
        Err(failed.unwrap_or_else(|| {
            Fault::unavailable(
                "cut volumes together: they came into use, or went out of it, meanwhile",
            )
            .hint("ask again")
        }))
    }

    fn observe_all(&self, twins: &[Twin<'_>]) -> Result<Vec<Seen>> {
        twins.iter().map(|twin| self.observe(twin.from)).collect()
    }

    /// Copies; false where blocks cannot be shared after all.
    fn copy_all(
        &self,
        twins: &[Twin<'_>],
        seen: &[Seen],
        sharing: Sharing,
        cx: &Cx,
    ) -> Result<bool> {
        let mut copied = true;
        let mut copy_those = |used: bool| -> Result<()> {
            for (twin, seen) in twins.iter().zip(seen) {
                if copied && seen.writers.is_empty() != used {
                    copied = copy_one(twin, sharing, cx)
                        .map_err(|fault| fault.during(format!("copy {}", twin.whose)))?;
                }
            }
            Ok(())
        };
        copy_those(false)?;
        let frozen = self.freeze(seen.iter().flat_map(|seen| &seen.writers), cx)?;
        copy_those(true)?;
        if let Some(frozen) = frozen {
            cx.step("let writes go on")?;
            frozen.thaw()?;
        }
        Ok(copied)
    }
}

/// Refuses what cannot be cut at one moment.
fn decide(twins: &[Twin<'_>], seen: &[Seen], sharing: Sharing, limit: Bytes) -> Result<()> {
    let mut held = Bytes::ZERO;
    for (twin, seen) in twins.iter().zip(seen) {
        let attached = seen.writers.iter().find(|device| !device.is_mounted());
        if let Some(device) = attached.filter(|_| !twin.raw) {
            return Err(Fault::unavailable(format!(
                "cut {} together with others: it is attached ({}) and not mounted, as while it is \
                 staged or unstaged",
                twin.whose,
                device.info.path.display()
            ))
            .hint("ask again when that has ended"));
        }
        if let Some(raw) = attached {
            return Err(Fault::precondition(format!(
                "cut {} together with others: it is in use as a raw block device ({}), whose writes \
                 cannot be held back",
                twin.whose,
                raw.info.path.display()
            ))
            .hint("stop its workload first, or leave it out of the group"));
        }
        if !seen.writers.is_empty() {
            held = held.saturating_add(seen.allocated);
        }
    }
    if sharing == Sharing::Impossible && held > limit {
        return Err(Fault::new(
            Kind::Precondition,
            format!(
                "cut {} volumes together: their pool cannot share blocks, and copying the {held} of \
                 those that are mounted would stop their workloads for too long (the limit is \
                 {limit})",
                twins.len()
            ),
        )
        .hint("stop the workloads first, or keep volumes in a pool on xfs (with reflink) or btrfs"));
    }
    Ok(())
}

fn copy_one(twin: &Twin<'_>, sharing: Sharing, cx: &Cx) -> Result<bool> {
    if sharing == Sharing::Direct {
        cx.step("share the image's blocks")?;
        return copy::reflink(twin.from, twin.to);
    }
    cx.step("copy the image")?;
    copy::sparse(twin.from, twin.to, cx).map(|()| true)
}

fn remove_all(twins: &[Twin<'_>]) -> Result<()> {
    twins.iter().try_for_each(|twin| remove(twin.to))
}
