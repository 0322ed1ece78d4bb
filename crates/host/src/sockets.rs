//! Files of Unix sockets: whether somebody serves them, and removal of those that nobody does.

use crate::sys::io_fault;
use larder_model::{Fault, Result};
use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// What is at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketFile {
    /// Nothing.
    Absent,
    /// Something else.
    Other,
    /// A socket that somebody serves.
    Served,
    /// A socket whose server is gone.
    Dead,
}

/// Looks at `path`; the server, if there is one, sees a connection that ends at once.
///
/// # Errors
/// See [`Fault::io`].
pub fn look(path: &Path) -> Result<SocketFile> {
    match open_folder(path)? {
        Some((folder, name)) => look_at(&folder, &name, path),
        None => Ok(SocketFile::Absent),
    }
}

/// Removes the socket at `path` if nobody serves it. Whoever makes sockets of ours holds the lock of
/// their folder, and so does this: a new one is never taken for a left-over.
///
/// # Errors
/// `Precondition` where it is served, or no socket.
pub fn remove_dead(path: &Path) -> Result<()> {
    let what = || format!("remove the socket {}", path.display());
    let Some((folder, name)) = open_folder(path)? else { return Ok(()) };
    rustix::fs::flock(&folder, FlockOperation::LockExclusive).map_err(|e| io_fault(what(), e))?;
    match look_at(&folder, &name, path)? {
        SocketFile::Absent => Ok(()),
        SocketFile::Dead => {
            rustix::fs::unlinkat(&folder, &name, AtFlags::empty()).map_err(|e| io_fault(what(), e))
        }
        SocketFile::Served => Err(Fault::precondition(format!("{}: it is served", what()))),
        SocketFile::Other => Err(Fault::precondition(format!("{}: it is none", what()))),
    }
}

fn open_folder(path: &Path) -> Result<Option<(OwnedFd, PathBuf)>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::invalid(format!("use {} as a socket", path.display())));
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, folder, flags, Mode::empty()) {
        Ok(folder) => Ok(Some((folder, name.into()))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(io_fault(format!("open folder {}", folder.display()), e)),
    }
}

fn look_at(folder: &OwnedFd, name: &Path, path: &Path) -> Result<SocketFile> {
    let what = || format!("look at socket {}", path.display());
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(SocketFile::Absent),
        Err(e) => return Err(io_fault(what(), e)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Ok(SocketFile::Other);
        }
        Ok(_) => {}
    }
    // Through the descriptor the address stays below the 108 bytes of sun_path.
    let name: &OsStr = name.as_os_str();
    let address = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    let probe = || -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&address)?)
    };
    match probe() {
        // So many are waiting there that one more does not fit.
        Ok(()) | Err(Errno::AGAIN) => Ok(SocketFile::Served),
        Err(Errno::CONNREFUSED) => Ok(SocketFile::Dead),
        Err(Errno::NOENT) => Ok(SocketFile::Absent),
        Err(e) => Err(io_fault(what(), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_removed_only_when_nobody_serves_it() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than an address can be.
        let folder = dir.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("s.sock");
        assert_eq!(look(&path).unwrap(), SocketFile::Absent);
        assert_eq!(look(&dir.path().join("no/such.sock")).unwrap(), SocketFile::Absent);
        remove_dead(&path).unwrap();

        let short = dir.path().join("s.sock");
        let listener = UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, &path).unwrap();
        assert_eq!(look(&path).unwrap(), SocketFile::Served);
        assert_eq!(remove_dead(&path).unwrap_err().kind(), Kind::Precondition);
        drop(listener);
        assert_eq!(look(&path).unwrap(), SocketFile::Dead);
        remove_dead(&path).unwrap();
        assert_eq!(look(&path).unwrap(), SocketFile::Absent);

        std::fs::write(&path, "precious").unwrap();
        assert_eq!(look(&path).unwrap(), SocketFile::Other);
        assert_eq!(remove_dead(&path).unwrap_err().kind(), Kind::Precondition);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
