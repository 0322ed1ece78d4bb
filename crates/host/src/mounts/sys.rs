//! The mount system call that rustix lacks.

use rustix::{
    fd::{AsFd, AsRawFd},
    io::Result,
    mount::MountAttrFlags,
};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Changes the attributes of the mount that `mount` refers to (`open_tree`, `fsmount`, or an
/// `O_PATH` descriptor of a mount point); with `recursive` also of the mounts below it.
#[allow(unsafe_code, reason = "system call without a safe wrapper")]
pub(super) fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    set: MountAttrFlags,
    clear: MountAttrFlags,
) -> Result<()> {
    let attr = MountAttr {
        set: u64::from(set.bits()),
        clear: u64::from(clear.bits()),
        propagation: 0,
        user_namespace: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is borrowed for the call, the path is a NUL-terminated constant, and
    // `attr` outlives the call and is as large as its size says; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::sys::last_error()) }
}
