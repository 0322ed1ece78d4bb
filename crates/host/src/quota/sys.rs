//! The system call and the ioctls of quotas (`include/uapi/linux/quota.h`, `dqblk_xfs.h`, `fs.h`).

#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use rustix::{
    fd::{AsFd, AsRawFd},
    io::{Errno, Result},
    ioctl::{Opcode, Setter, Updater, ioctl, opcode},
};

/// Project quotas, the third kind.
const PROJECT: u32 = 2;
const GET_QUOTA: u32 = 0x80_0007;
const SET_QUOTA: u32 = 0x80_0008;
const GET_NEXT_QUOTA: u32 = 0x80_0009;
/// `Q_XGETQSTAT`, answered by ext4 too.
const GET_STATE: u32 = (b'X' as u32) << 8 | 5;
const ACCOUNTED: u16 = 1 << 4;
const ENFORCED: u16 = 1 << 5;
/// Block limits are in units of this, usage is in bytes.
pub(super) const BLOCK: u64 = 1024;

/// `struct if_nextdqblk`, which begins like `struct if_dqblk`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) blocks_hard: u64,
    pub(super) blocks_soft: u64,
    /// Bytes.
    pub(super) space: u64,
    pub(super) inodes_hard: u64,
    pub(super) inodes_soft: u64,
    pub(super) inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
    pub(super) id: u32,
}

impl Quota {
    /// Nothing used, nothing limited.
    pub(super) fn is_empty(self) -> bool {
        let Self { blocks_hard, blocks_soft, space, inodes_hard, inodes_soft, inodes, .. } = self;
        [blocks_hard, blocks_soft, space, inodes_hard, inodes_soft, inodes] == [0; 6]
    }
}

/// `struct fs_quota_stat`
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    flags: u16,
    pad: i8,
    files: [[u64; 3]; 2],
    rest: [u32; 6],
}

/// `struct fsxattr`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    pub(super) project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

const PROJECT_INHERITED: u32 = 0x200;
const GET_ATTRIBUTES: Opcode = opcode::read::<Attributes>(b'X', 31);
const SET_ATTRIBUTES: Opcode = opcode::write::<Attributes>(b'X', 32);

const _: () = {
    assert!(size_of::<Quota>() == 72);
    assert!(size_of::<State>() == 80);
    assert!(size_of::<Attributes>() == 28);
};

/// `quotactl_fd`: the file system is told by a descriptor in it, so no path of its device is needed
/// (which a container may not have).
fn quotactl<T>(inside: impl AsFd, command: u32, id: u32, data: &mut T) -> Result<()> {
    // SAFETY: the descriptor is borrowed for the call; every caller in this module passes the
    // structure that the command reads or writes, `repr(C)` and valid for any bytes in it, and the
    // kernel does not keep the pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            inside.as_fd().as_raw_fd(),
            command << 8 | PROJECT,
            id,
            std::ptr::from_mut(data),
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::sys::last_error()) }
}

/// Whether project quota is counted, and whether limits hold.
///
/// # Errors
/// `ENOSYS` where the kernel or the file system has no quota, or it is off.
pub(super) fn state(inside: impl AsFd) -> Result<(bool, bool)> {
    let mut state = State { version: 1, ..State::default() };
    quotactl(inside, GET_STATE, 0, &mut state)?;
    Ok((state.flags & ACCOUNTED != 0, state.flags & ENFORCED != 0))
}

/// Usage and limits of a project; all zero for one that was never seen.
pub(super) fn get(inside: impl AsFd, id: u32) -> Result<Quota> {
    let mut quota = Quota::default();
    match quotactl(inside, GET_QUOTA, id, &mut quota) {
        // xfs keeps nothing of an id that was never used.
        Ok(()) | Err(Errno::NOENT) => Ok(quota),
        Err(e) => Err(e),
    }
}

/// Usage and limits of the first project from `id` on; None: there is none.
pub(super) fn next(inside: impl AsFd, id: u32) -> Result<Option<Quota>> {
    let mut quota = Quota::default();
    match quotactl(inside, GET_NEXT_QUOTA, id, &mut quota) {
        Ok(()) => Ok(Some(quota)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets the hard limits of a project, in blocks and inodes; 0: no limit.
pub(super) fn set(inside: impl AsFd, id: u32, blocks: u64, inodes: u64) -> Result<()> {
    const BLOCK_LIMITS: u32 = 1;
    const INODE_LIMITS: u32 = 4;
    let mut quota = Quota {
        blocks_hard: blocks,
        inodes_hard: inodes,
        valid: BLOCK_LIMITS | INODE_LIMITS,
        ..Quota::default()
    };
    quotactl(inside, SET_QUOTA, id, &mut quota)
}

/// The attributes that hold the project.
pub(super) fn attributes(file: impl AsFd) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel fills the structure that the opcode names; it is `repr(C)`, of the size
    // that the opcode says (asserted above), and any bytes are valid in it.
    unsafe { ioctl(file, Updater::<GET_ATTRIBUTES, _>::new(&mut attributes)) }?;
    Ok(attributes)
}

/// Gives a file or directory a project; directories hand it down.
pub(super) fn set_project(file: impl AsFd, id: u32, is_dir: bool) -> Result<()> {
    let before = attributes(file.as_fd())?;
    let flags = if is_dir { before.flags | PROJECT_INHERITED } else { before.flags };
    if before.project == id && before.flags == flags {
        return Ok(());
    }
    let wanted = Attributes { flags, project: id, ..before };
    // SAFETY: the kernel only reads the structure that the opcode names, of the size asserted above.
    unsafe { ioctl(file, Setter::<SET_ATTRIBUTES, _>::new(wanted)) }
}
