//! The mounts of this machine.

use super::{
    BindRequest, DeviceId, DeviceUser, MountEntry, MountPlace, MountRequest, MountRoot, Mounts,
    Unmount,
    attributes::{self, Sorted},
    create, detach, network, shown, statmount, sys, table, users,
    watched::Watched,
};
use crate::{HelperProgram, alive, sys::io_fault};
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{
        FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_reconfigure, fsconfig_set_flag, fspick, move_mount, open_tree,
    },
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The mounts of this machine, in the mount namespace of this process.
#[derive(Debug, Default)]
pub struct RealMounts {
    /// Held between "nothing is mounted there" and putting a mount there, so that two callers of
    /// this process cannot stack.
    placing: Mutex<()>,
    /// Targets at which a helper is putting a mount, for the same end.
    helped: Mutex<BTreeSet<PathBuf>>,
    places: Watched,
    /// Touches what may hang; None: this is such a helper, or nothing here may hang.
    helper: Option<HelperProgram>,
}

impl RealMounts {
    /// The mounts of this machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same; whatever asks a server is done by a helper process, in time.
    pub fn with_helper(helper: HelperProgram) -> Self {
        Self { helper: Some(helper), ..Self::default() }
    }

    /// Keeps others of this process from a target until it is dropped.
    fn claim(&self, target: &Path) -> Result<Claim<'_>> {
        let mut helped = self.helped.lock().unwrap_or_else(PoisonError::into_inner);
        if helped.insert(target.to_owned()) {
            return Ok(Claim { helped: &self.helped, target: target.to_owned() });
        }
        Err(Fault::aborted(format!(
            "mount at {}: another call is mounting there just now",
            target.display()
        )))
    }

    /// Moves a detached mount to its place.
    fn place(&self, detached: &OwnedFd, target: &Path) -> Result<()> {
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let place = open_target(target)?;
        place.refuse_to_stack(target)?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(detached, "", &place.fd, "", flags)
            .map_err(|e| io_fault(format!("mount at {}", target.display()), e))
    }
}

/// A target at which nobody else of this process mounts.
struct Claim<'a> {
    helped: &'a Mutex<BTreeSet<PathBuf>>,
    target: PathBuf,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.helped.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}

impl Mounts for RealMounts {
    fn table(&self) -> Result<Vec<MountEntry>> {
        table::read(Path::new("/proc/self/mountinfo"))
    }

    fn is_mount_point(&self, path: &Path) -> Result<bool> {
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        match rustix::fs::statx(CWD, path, at, StatxFlags::TYPE) {
            Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
                Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            // A mount whose server or daemon is dead answers with all kinds of errors; the table
            // still knows it.
            Ok(_) | Err(_) => Ok(!self.mounts_at(path)?.is_empty()),
        }
    }

    fn mount_root(&self, path: &Path) -> Result<Option<MountRoot>> {
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
        match rustix::fs::statx(CWD, path, at, wanted) {
            Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
                if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
                    return Ok(None);
                }
                let device = DeviceId { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
                let (mount, inode) = (stat.stx_mnt_id, stat.stx_ino);
                Ok(Some(MountRoot { mount, device, inode }))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            // As in `is_mount_point`.
            Ok(_) | Err(_) => {
                let top = self.mounts_at(path)?.pop();
                Ok(top.map(|m| MountRoot { mount: m.id, device: m.device, inode: 0 }))
            }
        }
    }

    fn mounts_at(&self, path: &Path) -> Result<Vec<MountEntry>> {
        let path = resolve_parent(path);
        Ok(bottom_to_top(table::read_at(Path::new("/proc/self/mountinfo"), &path)?))
    }

    fn top_at(&self, path: &Path) -> Result<Option<MountEntry>> {
        match statmount::top(path) {
            Some(top) => Ok(top),
            None => Ok(self.mounts_at(path)?.pop()),
        }
    }

    fn places(&self) -> Result<Arc<[MountPlace]>> {
        self.places.now()
    }

    fn mount(&self, request: &MountRequest) -> Result<()> {
        if let Some(helper) = self.helper.as_ref().filter(|_| network::is_network(&request.fs_type))
        {
            let _claim = self.claim(&request.target)?;
            return network::mount(request, helper);
        }
        let sorted = attributes::sort(&request.options, request.read_only)?;
        let place = open_target(&request.target)?;
        place.refuse_to_stack(&request.target)?;
        if place.kind != FileType::Directory {
            return Err(Fault::precondition(format!(
                "mount at {}: it is no directory",
                request.target.display()
            )));
        }
        drop(place);
        match create::detached(request, &sorted)? {
            Some(detached) => self.place(&detached, &request.target),
            None => {
                let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
                let place = open_target(&request.target)?;
                place.refuse_to_stack(&request.target)?;
                create::with_mount2(request, &sorted, &place.fd)
            }
        }
    }

    fn bind(&self, request: &BindRequest) -> Result<()> {
        if let Some(helper) = self.helper.as_ref().filter(|_| alive::may_hang(&request.source)) {
            let _claim = self.claim(&request.target)?;
            return network::bind(request, helper);
        }
        let BindRequest { source, target, .. } = request;
        let what = || format!("show {} at {}", source.display(), target.display());
        let sorted = attributes::sort(&request.options, request.read_only)?;
        if let Some((word, _)) = sorted.fs.first() {
            return Err(Fault::invalid(format!(
                "{}: option {word} is none of a bind mount",
                what()
            ))
            .hint("a bind mount takes ro, nosuid, nodev, noexec, noatime and the like only"));
        }
        let from = open_source(source)?;
        let place = open_target(target)?;
        place.refuse_to_stack(target)?;
        if (from.kind == FileType::Directory) != (place.kind == FileType::Directory) {
            return Err(Fault::precondition(format!(
                "{}: a directory can only be shown at a directory, anything else at a file",
                what()
            )));
        }
        drop(place);
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_NO_AUTOMOUNT;
        if sorted.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let detached = open_tree(&from.fd, "", flags).map_err(|e| io_fault(what(), e))?;
        // Before anybody can see it: no moment in which a read-only volume could be written.
        set_attributes(&detached, &sorted).map_err(|e| e.during(what()))?;
        self.place(&detached, target)
    }

    fn remount(&self, target: &Path, read_only: bool, options: &[String]) -> Result<()> {
        let what = || format!("remount {}", target.display());
        let mut sorted = attributes::sort(options, read_only)?;
        if !read_only {
            sorted.set -= MountAttrFlags::MOUNT_ATTR_RDONLY;
            sorted.clear |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let place = open_target(target)?;
        if !place.is_mount_point {
            return Err(Fault::precondition(format!("{}: nothing is mounted there", what())));
        }
        let top = self.top_at(target)?;
        let file_system_read_only =
            top.as_ref().is_some_and(|m| m.super_options.iter().any(|o| o == "ro"));
        let make_writable = !read_only && file_system_read_only;
        if make_writable || !sorted.fs.is_empty() {
            reconfigure(&place.fd, &sorted, make_writable, &what)?;
        }
        set_attributes(&place.fd, &sorted).map_err(|e| e.during(what()))
    }

    fn unmount(&self, target: &Path, how: Unmount) -> Result<()> {
        let what = || format!("unmount {}", target.display());
        if let (Some(helper), Unmount::Lazy) = (&self.helper, how)
            && let Some(top) = self.mounts_at(target)?.pop()
            && detach::may_hang(&top.fs_type)
        {
            return detach::detach(target, &top, helper);
        }
        let flags = match how {
            Unmount::Normal => UnmountFlags::NOFOLLOW,
            Unmount::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        let end = Instant::now() + users::PASSING;
        loop {
            match rustix::mount::unmount(target, flags) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                // Not a mount point; or one that a more privileged namespace has locked here.
                Err(Errno::INVAL) if !self.is_mount_point(target)? => return Ok(()),
                Err(Errno::INVAL) => {
                    return Err(Fault::precondition(format!("{}: it is locked", what())).hint(
                        "it was mounted by a more privileged mount namespace; unmount it there",
                    ));
                }
                Err(Errno::BUSY) => {}
                Err(e) => return Err(io_fault(what(), e)),
            }
            let resolved = resolve_parent(target);
            let users = users::of_mount(&resolved, &self.table()?);
            let names = users.names.join(", ");
            let (kind, hint) = if users.we {
                let hint = "Larder itself works on it, to cut a snapshot or to copy it: repeat the \
                            call when that has ended";
                (Kind::Aborted, format!("{hint} (it is used by {names})"))
            } else if names.is_empty() {
                (Kind::Precondition, "something uses it that cannot be seen from here".to_owned())
            } else {
                (Kind::Precondition, format!("it is used by {names}"))
            };
            // What we do with it ourselves passes, and so does the look of whoever goes through /proc,
            // as monitoring does and we do.
            let passes = users.we || names.is_empty();
            if !passes || Instant::now() >= end {
                return Err(io_fault(what(), Errno::BUSY).with_kind(kind).hint(hint));
            }
            crate::sys::sleep(Duration::from_millis(10));
        }
    }

    fn users_of_device(&self, device: DeviceId) -> Result<Vec<DeviceUser>> {
        users::of_device(device)
    }

    fn users_of_directory(&self, dir: &Path) -> Result<Vec<DeviceUser>> {
        shown::everywhere(dir, &self.table()?)
    }
}

/// A path that was opened without following its last component.
struct Place {
    fd: OwnedFd,
    kind: FileType,
    is_mount_point: bool,
}

impl Place {
    fn refuse_to_stack(&self, target: &Path) -> Result<()> {
        if self.is_mount_point {
            return Err(Fault::precondition(format!(
                "mount at {}: something is mounted there already",
                target.display()
            ))
            .hint("unmount it first; a second mount is never put over it"));
        }
        Ok(())
    }
}

fn open_target(target: &Path) -> Result<Place> {
    let what = || format!("open mount target {}", target.display());
    let place = open_path(target, OFlags::NOFOLLOW, &what)?;
    if place.kind == FileType::Symlink {
        return Err(Fault::precondition(format!(
            "use {} as mount target: it is a symlink",
            target.display()
        ))
        .hint("remove the symlink; targets are never followed"));
    }
    Ok(place)
}

/// Opens what shall be shown elsewhere. A symlink is followed only to a block device (`/dev/VG/LV`).
fn open_source(source: &Path) -> Result<Place> {
    let what = || format!("open mount source {}", source.display());
    let place = open_path(source, OFlags::NOFOLLOW, &what)?;
    if place.kind != FileType::Symlink {
        return Ok(place);
    }
    let device = open_path(source, OFlags::empty(), &what)?;
    if device.kind == FileType::BlockDevice {
        return Ok(device);
    }
    Err(Fault::precondition(format!("use {} as mount source: it is a symlink", source.display())))
}

fn open_path(path: &Path, flags: OFlags, what: &impl Fn() -> String) -> Result<Place> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    let fd =
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| io_fault(what(), e))?;
    let at = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&fd, "", at, StatxFlags::TYPE).map_err(|e| io_fault(what(), e))?;
    Ok(Place {
        fd,
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        is_mount_point: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

fn set_attributes(mount: impl AsFd, sorted: &Sorted) -> Result<()> {
    if !sorted.has_attributes() {
        return Ok(());
    }
    sys::mount_setattr(mount, sorted.recursive, sorted.set, sorted.clear).map_err(|e| match e {
        Errno::NOSYS => io_fault("set mount attributes", e)
            .with_kind(Kind::Precondition)
            .hint("Linux 5.12 or newer is needed (mount_setattr)"),
        Errno::BUSY => io_fault("make it read-only", e)
            .with_kind(Kind::Precondition)
            .hint("files in it are open for writing; stop their users first"),
        _ => io_fault("set mount attributes", e),
    })
}

/// Changes the file system behind a mount point.
fn reconfigure(
    mount: &OwnedFd,
    sorted: &Sorted,
    make_writable: bool,
    what: &impl Fn() -> String,
) -> Result<()> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mount, "", flags).map_err(|e| io_fault(what(), e))?;
    let apply = || {
        if make_writable {
            fsconfig_set_flag(&context, "rw")?;
        }
        create::set_options(&context, sorted)?;
        fsconfig_reconfigure(&context)
    };
    apply().map_err(|e| create::kernel_fault(what(), e, &create::words(&context), sorted))
}

/// The path with everything but its last component resolved, as the kernel writes it into the
/// mount table. The last one is not looked at: it may be a dead mount.
fn resolve_parent(path: &Path) -> PathBuf {
    let resolved = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    resolved().unwrap_or_else(|| path.to_owned())
}

/// Mounts at one target in the order in which they lie on each other.
fn bottom_to_top(mut found: Vec<MountEntry>) -> Vec<MountEntry> {
    let mut stack: Vec<MountEntry> = Vec::with_capacity(found.len());
    while !found.is_empty() {
        // The lowest one does not sit on any other that is left; there is one, as ids form a tree.
        let lowest = found
            .iter()
            .position(|m| found.iter().all(|other| other.id == m.id || other.id != m.parent))
            .unwrap_or(0);
        stack.push(found.remove(lowest));
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_of_mounts_is_told_bottom_to_top() {
        let entry = |id, parent| MountEntry {
            id,
            parent,
            device: DeviceId { major: 0, minor: 0 },
            root: "/".into(),
            target: "/x".into(),
            options: vec![],
            fs_type: String::new(),
            source: String::new(),
            super_options: vec![],
        };
        let order: Vec<u64> = bottom_to_top(vec![entry(9, 5), entry(5, 7), entry(7, 1)])
            .iter()
            .map(|m| m.id)
            .collect();
        assert_eq!(order, [7, 5, 9]);
    }
}
