//! Copies of directories within an export: snapshots, restored and cloned volumes.
//!
//! ```text
//! .larder/copying/KEY.files  the copy, until it is complete: then it is renamed to its place
//! .larder/copying/KEY.boot   the boot of the machine that copies
//! ```
//! The server copies where it can (NFS 4.2: blocks are shared, or copied without passing the network), else
//! the helper does, several files at a time, in constant memory. A copy that was cut goes on where it was;
//! what another boot has left begins anew, since its last files may never have reached a disk. A source that
//! is written meanwhile is copied file by file, each at its own moment: nobody can hold back the writers of
//! other machines.

use crate::place::OURS;
use larder_host::remote::{Thing, Visit};
use larder_model::{Cx, Fault, Kind, Native, Result};

/// A copy in the making.
pub(crate) struct Copy(String);

impl Copy {
    pub(crate) fn of_volume(native: &Native) -> Self {
        Self(format!("{}/volume-{native}", folder()))
    }

    pub(crate) fn of_snapshot(native: &Native) -> Self {
        Self(format!("{}/snapshot-{native}", folder()))
    }

    fn boot(&self) -> String {
        format!("{}.boot", self.0)
    }

    fn files(&self) -> String {
        format!("{}.files", self.0)
    }

    /// Copies directory `from`, or goes on with that.
    ///
    /// # Errors
    /// `Precondition` when `from` is gone, or the server refuses something; `Exhausted`.
    pub(crate) fn make(&self, visit: &Visit, from: &str, cx: &Cx) -> Result<()> {
        if !matches!(visit.look(from)?, Some(Thing::Directory)) {
            return Err(Fault::precondition(format!("copy {from}: the directory is gone"))
                .hint("restore it on the server, or take another source"));
        }
        let boot = larder_host::boot_id();
        if visit.read(&self.boot())?.is_none_or(|found| found.trim() != boot) {
            self.discard(visit, cx)?;
            visit.make_dir(&folder(), 0o700, 0o700)?;
            visit.write(&self.boot(), &format!("{boot}\n"))?;
        }
        let done = visit.copy_tree(from, &self.files(), cx)?;
        tracing::debug!(
            from,
            files = done.entries,
            shared = done.reflinked,
            bytes = done.bytes,
            "copied"
        );
        Ok(())
    }

    /// Whether anything of it is here, and not in its place.
    pub(crate) fn is_here(&self, visit: &Visit) -> Result<bool> {
        Ok(visit.look(&self.files())?.is_some())
    }

    /// Gives the complete copy its name. Repeated: it has it.
    ///
    /// # Errors
    /// `Precondition` when something else has that name.
    pub(crate) fn publish(&self, visit: &Visit, to: &str) -> Result<()> {
        if let Some((above, _)) = to.rsplit_once('/') {
            visit.make_dir(above, 0o755, 0o755)?;
        }
        let moved = visit.rename(&self.files(), to).map_err(|fault| match fault.kind() {
            Kind::Conflict => fault
                .with_kind(Kind::Precondition)
                .hint("somebody made it meanwhile: remove it, or choose another subDir"),
            _ => fault,
        })?;
        if !moved && visit.look(to)?.is_none() {
            return Err(Fault::corrupt(format!("move a copy to {to}: the copy is gone"))
                .hint("delete what was being made, and make it again"));
        }
        visit.remove_file(&self.boot())
    }

    /// The opposite of [`Copy::publish`]; false: nothing is there.
    pub(crate) fn take_back(&self, visit: &Visit, from: &str) -> Result<bool> {
        visit.make_dir(&folder(), 0o700, 0o700)?;
        visit.rename(from, &self.files())
    }

    /// Removes what there is of it.
    pub(crate) fn discard(&self, visit: &Visit, cx: &Cx) -> Result<()> {
        visit.remove_tree(&self.files(), cx)?;
        visit.remove_file(&self.boot())
    }
}

fn folder() -> String {
    format!("{OURS}/copying")
}

/// How many copies are in the making, or were.
pub(crate) fn unfinished(visit: &Visit) -> Result<usize> {
    Ok(visit.names(&folder())?.iter().filter(|name| name.ends_with(".files")).count())
}

/// Whether a copy that failed so may go on later: its server was away, or this process ended.
pub(crate) fn may_go_on(fault: &Fault) -> bool {
    fault.is_simulated_crash()
        || matches!(fault.kind(), Kind::Unavailable | Kind::Aborted | Kind::Deadline)
}
