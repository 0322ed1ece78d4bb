//! The driver's socket.
//!
//! ```text
//!  folder locked ─▶ something at the path? ─ no ──────────────▶ bind beside it, listen, rename over it
//!                          │ socket that refuses: left over ───▶ the same (the rename replaces it)
//!                          │ socket that answers: live ────────▶ wait or give up, never replaced
//!                          └ anything else ────────────────────▶ give up
//! ```
//!
//! Invariants:
//! - The socket is 0600 from its first moment (the mode is set before bind) and accepts from its
//!   first moment (it appears by rename, after listen).
//! - Check and bind happen under a lock on the folder itself, so no further file stands beside the
//!   socket (CSI asks for that) and two starters cannot both replace a left-over.
//! - While served, a socket file that vanished (kubelet emptied the folder) is made again; one that
//!   another process put there is left alone.

use crate::endpoint::Endpoint;
use larder_model::{Fault, Result};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// How often the socket's file is looked at while it is served.
const WATCH: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 1024;

/// Identity of a file: device and inode.
type FileId = (u64, u64);

/// A listening socket and the file that leads to it.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    file: FileId,
    listener: UnixListener,
}

/// Why a socket could not be had.
#[derive(Debug)]
pub enum BindError {
    /// Another process answers there.
    Live(Fault),
    /// Anything else.
    Fault(Fault),
}

impl From<Fault> for BindError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Socket {
    /// Takes the endpoint; its folder is made (0700) where it is missing.
    ///
    /// # Errors
    /// [`BindError::Live`] when another process is serving there.
    pub fn bind(endpoint: &Endpoint) -> std::result::Result<Self, BindError> {
        let path = endpoint.path();
        let io = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |e: Errno| Fault::io(what.clone(), e.into())
        };
        let (folder, name) = match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => (folder, name),
            _ => return Err(Fault::invalid(format!("serve {endpoint}: it names no file")).into()),
        };
        make_folder(folder)?;
        let dir = rustix::fs::open(
            folder,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(io("open the folder of socket"))?;
        rustix::fs::flock(&dir, FlockOperation::LockExclusive)
            .map_err(io("lock the folder of socket"))?;

        // Through the descriptor the address stays below the 108 bytes of sun_path.
        let at = |name: &std::ffi::OsStr| {
            let mut address = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            address.push(name);
            SocketAddrUnix::new(address).map_err(io("address socket"))
        };
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(io("look at socket")(e).into()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(Fault::precondition(format!(
                    "serve {endpoint}: what is there is not a socket"
                ))
                .hint("remove it, or choose another endpoint")
                .into());
            }
            Ok(_) => {
                let probe = stream_socket().map_err(io("open a socket for"))?;
                match rustix::net::connect(&probe, &at(name)?) {
                    Err(Errno::CONNREFUSED) => {}
                    Ok(()) | Err(Errno::AGAIN) => {
                        return Err(BindError::Live(
                            Fault::precondition(format!(
                                "serve {endpoint}: another process serves it"
                            ))
                            .hint("stop it first, or choose another endpoint"),
                        ));
                    }
                    Err(e) => return Err(io("probe socket")(e).into()),
                }
            }
        }

        let mut temporary = std::ffi::OsString::from(format!(".{}.", std::process::id()));
        temporary.push(name);
        let _ = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
        let socket = stream_socket().map_err(io("open socket"))?;
        // Linux takes the mode of the file from the socket's own at bind.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io("protect socket"))?;
        rustix::net::bind(&socket, &at(&temporary)?).map_err(io("bind socket"))?;
        let rest = || -> rustix::io::Result<FileId> {
            rustix::net::listen(&socket, BACKLOG)?;
            let stat = rustix::fs::statat(&dir, &temporary, AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::renameat(&dir, &temporary, &dir, name)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let file = rest().map_err(|e| {
            let _ = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
            io("publish socket")(e)
        })?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(|e| Fault::io(format!("listen on {endpoint}"), e))?;
        Ok(Self { path: path.to_owned(), file, listener })
    }

    /// Takes the endpoint, waiting while another process serves it (a predecessor that drains).
    ///
    /// # Errors
    /// Whatever [`Socket::bind`] cannot do; `Unavailable` when `stop` came first.
    pub async fn bind_when_free(endpoint: &Endpoint, stop: &CancellationToken) -> Result<Self> {
        let mut told = false;
        loop {
            match Self::bind(endpoint) {
                Ok(socket) => return Ok(socket),
                Err(BindError::Fault(fault)) => return Err(fault),
                Err(BindError::Live(fault)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%endpoint, "another process serves this socket: waiting for it to end");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Err(fault.with_kind(larder_model::Kind::Unavailable)),
                        () = tokio::time::sleep(Duration::from_millis(200)) => {}
                    }
                }
            }
        }
    }

    fn is_ours(&self) -> Option<bool> {
        match rustix::fs::lstat(&self.path) {
            Ok(stat) => Some((stat.st_dev, stat.st_ino) == self.file),
            Err(_) => None,
        }
    }

    /// Accepts until `stop`, making the file again when it vanishes; then removes the file.
    /// Connections go to `out`.
    pub async fn accept(
        mut self,
        endpoint: Endpoint,
        out: mpsc::Sender<std::io::Result<UnixStream>>,
        stop: CancellationToken,
    ) {
        let mut watch = tokio::time::interval(WATCH);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = out.closed() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if out.send(Ok(stream)).await.is_err() {
                            break;
                        }
                    }
                    Err(error) => {
                        // Out of descriptors: the backlog holds callers while others close.
                        tracing::warn!(%endpoint, %error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                _ = watch.tick() => match self.is_ours() {
                    Some(true) => told = false,
                    Some(false) if told => {}
                    Some(false) => {
                        told = true;
                        tracing::error!(%endpoint, "another process has put its socket in the place of ours");
                    }
                    None => match Self::bind(&endpoint) {
                        Ok(socket) => {
                            tracing::warn!(%endpoint, "the socket's file had vanished and was made again");
                            self = socket;
                        }
                        Err(BindError::Live(fault) | BindError::Fault(fault)) => {
                            if !std::mem::replace(&mut told, true) {
                                tracing::error!(%endpoint, %fault, "the socket's file has vanished");
                            }
                        }
                    },
                },
            }
        }
        if self.is_ours() == Some(true) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn make_folder(folder: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Fault::io(format!("make the socket's folder {}", folder.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn endpoint(dir: &tempfile::TempDir, name: &str) -> Endpoint {
        dir.path().join(name).to_str().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_socket_is_private_and_stands_alone_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, "deep/er/csi.sock");
        let _socket = Socket::bind(&endpoint).unwrap();
        let meta = std::fs::symlink_metadata(endpoint.path()).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o600);
        let folder = endpoint.path().parent().unwrap();
        assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn paths_longer_than_an_address_work() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, &format!("{}/{}/csi.sock", "a".repeat(100), "b".repeat(100)));
        Socket::bind(&endpoint).unwrap();
    }

    #[tokio::test]
    async fn a_left_over_is_replaced_and_a_live_one_never() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, "csi.sock");
        let first = Socket::bind(&endpoint).unwrap();
        assert!(matches!(Socket::bind(&endpoint), Err(BindError::Live(_))));
        drop(first); // as a crash does: the file stays
        assert!(endpoint.path().exists());
        Socket::bind(&endpoint).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, "csi.sock");
        std::fs::write(endpoint.path(), "mine").unwrap();
        assert!(matches!(Socket::bind(&endpoint), Err(BindError::Fault(_))));
        assert_eq!(std::fs::read(endpoint.path()).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_vanished_socket_comes_back_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, "in/csi.sock");
        let (out, mut streams) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let socket = Socket::bind(&endpoint).unwrap();
        let served = socket.accept(endpoint.clone(), out, stop.clone());
        let test = async {
            std::fs::remove_dir_all(endpoint.path().parent().unwrap()).unwrap();
            for _ in 0..100 {
                if UnixStream::connect(endpoint.path()).await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            streams.recv().await.unwrap().unwrap();
            stop.cancel();
        };
        tokio::join!(served, test);
        assert!(!endpoint.path().exists());
    }

    #[tokio::test]
    async fn a_successor_gets_the_socket_as_soon_as_its_predecessor_ends() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir, "csi.sock");
        let first = Socket::bind(&endpoint).unwrap();
        let stop = CancellationToken::new();
        let release = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(Socket::bind_when_free(&endpoint, &stop), release);
        second.unwrap();
    }
}
