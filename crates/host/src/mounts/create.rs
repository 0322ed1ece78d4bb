//! Making a file system ready to be mounted: `fsopen`, with the kernel's own words on failure.

use super::{MountRequest, attributes::Sorted};
use crate::sys::io_fault;
use larder_model::{Fault, Kind, Result};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};
use std::ffi::CString;

/// The longest value that `fsconfig` takes (`strndup_user` in fs/fsopen.c).
const LONGEST_VALUE: usize = 255;

/// A detached mount of what is asked for; None where this kernel or an option needs the old
/// mount(2).
pub(crate) fn detached(request: &MountRequest, sorted: &Sorted) -> Result<Option<OwnedFd>> {
    let what = || {
        format!("mount {} ({}) at {}", request.source, request.fs_type, request.target.display())
    };
    let too_long = |value: &str| value.len() > LONGEST_VALUE;
    if too_long(&request.source)
        || sorted.fs.iter().any(|(_, v)| v.as_deref().is_some_and(too_long))
    {
        return Ok(None);
    }
    let context = match fsopen(request.fs_type.as_str(), FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Ok(None),
        Err(e) => return Err(kernel_fault(what(), e, &[], sorted)),
    };
    let configure = || {
        if !request.source.is_empty() {
            fsconfig_set_string(&context, "source", request.source.as_str())?;
        }
        if sorted.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            fsconfig_set_flag(&context, "ro")?;
        }
        set_options(&context, sorted)
    };
    // What the kernel refuses while it only reads options is the caller's mistake.
    configure().map_err(|e| {
        let fault = kernel_fault(what(), e, &words(&context), sorted);
        if e == Errno::INVAL { fault.with_kind(Kind::Invalid) } else { fault }
    })?;
    fsconfig_create(&context)
        .and_then(|()| fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, sorted.set))
        .map(Some)
        .map_err(|e| kernel_fault(what(), e, &words(&context), sorted))
}

/// Hands the file system's options to a context.
pub(crate) fn set_options(context: &OwnedFd, sorted: &Sorted) -> rustix::io::Result<()> {
    for (key, value) in &sorted.fs {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context, key.as_str())?,
        }
    }
    Ok(())
}

/// What the kernel has to say of a context: errors and warnings, without their prefix letter.
pub(crate) fn words(context: &OwnedFd) -> Vec<String> {
    let mut words = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        let text = text.trim();
        let text = match text.split_once(' ') {
            Some(("e" | "w" | "i", text)) => text,
            _ => text,
        };
        if n == 0 || words.len() > 16 {
            break;
        }
        words.push(text.to_owned());
    }
    words
}

/// A failed mount or remount, in the kernel's words. Values of options may be passwords (CSI calls
/// mount flags sensitive): they are shown neither by us nor where the kernel repeats them.
pub(crate) fn kernel_fault(what: String, error: Errno, words: &[String], sorted: &Sorted) -> Fault {
    let mut words = words.join("; ");
    for (_, value) in &sorted.fs {
        if let Some(value) = value.as_deref().filter(|value| value.len() > 2) {
            words = words.replace(value, "…");
        }
    }
    let what = if words.is_empty() { what } else { format!("{what}: {words}") };
    let fault = io_fault(what, error);
    match error {
        Errno::INVAL if !sorted.fs.is_empty() => fault
            .with_kind(Kind::Invalid)
            .hint(format!("check the mount options {} against mount(8)", sorted.names())),
        Errno::INVAL => fault
            .with_kind(Kind::Precondition)
            .hint("no such file system is there, or it is damaged; the kernel log may tell more"),
        Errno::UCLEAN | Errno::BADMSG => fault
            .with_kind(Kind::Corrupt)
            .hint("the file system is damaged: run its fsck with a person watching"),
        Errno::NODEV => fault
            .with_kind(Kind::Precondition)
            .hint("this kernel has no such file system; load its module"),
        Errno::BUSY => fault.with_kind(Kind::Precondition).hint(
            "the device is in use: mounted elsewhere with other options, or held by another device",
        ),
        Errno::NXIO | Errno::NOTBLK => fault.with_kind(Kind::Precondition),
        Errno::ACCESS | Errno::ROFS => fault
            .with_kind(Kind::Precondition)
            .hint("the device cannot be written; mount it read-only"),
        Errno::CONNREFUSED
        | Errno::TIMEDOUT
        | Errno::HOSTUNREACH
        | Errno::HOSTDOWN
        | Errno::NETUNREACH => fault.with_kind(Kind::Unavailable),
        Errno::PERM => fault.with_kind(Kind::Denied).hint("mounting needs CAP_SYS_ADMIN"),
        _ => fault,
    }
}

/// The old way, for kernels without `fsopen` and for option values longer than it takes.
pub(crate) fn with_mount2(request: &MountRequest, sorted: &Sorted, place: impl AsFd) -> Result<()> {
    let what = || {
        format!("mount {} ({}) at {}", request.source, request.fs_type, request.target.display())
    };
    let mut flags = MountFlags::empty();
    let pairs = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
    ];
    for (attribute, flag) in pairs {
        if sorted.set.contains(attribute) {
            flags |= flag;
        }
    }
    let data = CString::new(sorted.data())
        .map_err(|_| Fault::invalid(format!("{}: an option holds a NUL", what())))?;
    // Through the descriptor that was checked: the name may have been given to something else.
    let place = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
    let data = (!data.is_empty()).then_some(data.as_c_str());
    rustix::mount::mount(request.source.as_str(), place, request.fs_type.as_str(), flags, data)
        .map_err(|e| kernel_fault(what(), e, &[], sorted))
}
