//! Mounts of file systems that are somewhere else.
//!
//! Mounting one asks its server, and so may binding it to another place. Both are done by a helper
//! process with a deadline ([`crate::internal`]): the thread that asks for it never hangs.
//!
//! For NFS this is also what mount.nfs(8) does before it calls the kernel, which knows neither names nor
//! versions: the server's name becomes `addr=`, and where no version is asked for, 4.2 is tried first, then
//! 4.1, 4.0 and 3. Nothing of nfs-common is needed for that.

use super::{BindRequest, MountRequest, Mounts, RealMounts, attributes, create};
use crate::{
    HelperProgram,
    command::{self, Command},
    filesystems::way::MOST_STUCK,
    remote::wire::Told,
};
use larder_model::{Fault, Kind, Result};
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::ToSocketAddrs,
    path::Path,
    process::ExitCode,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A server that does not answer by then is dead. Kubelet waits two minutes.
const MOUNTING: Duration = Duration::from_secs(25);
/// Binding what is mounted already touches its root at most.
const BINDING: Duration = Duration::from_secs(8);
/// As many helpers may wait for one server; more calls than that wait for these.
const AT_ONCE: usize = 4;
/// Newest first.
const VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];

/// What the helper is asked.
#[derive(Serialize, Deserialize)]
enum Work {
    Mount(MountRequest),
    Bind(BindRequest),
}

/// As [`Mounts::mount`], in a helper.
pub(super) fn mount(request: &MountRequest, helper: &HelperProgram) -> Result<()> {
    let what = || format!("mount {} at {}", request.source, request.target.display());
    let hint = "its server is gone, or a firewall drops what is sent to it; the call is repeated";
    run(&Work::Mount(request.clone()), helper, MOUNTING)
        .map_err(|fault| in_time(fault, MOUNTING, what, hint))
}

/// As [`Mounts::bind`], in a helper.
pub(super) fn bind(request: &BindRequest, helper: &HelperProgram) -> Result<()> {
    let what = || format!("show {} at {}", request.source.display(), request.target.display());
    let hint = "its server is gone; the call is repeated, and succeeds once it answers";
    run(&Work::Bind(request.clone()), helper, BINDING)
        .map_err(|fault| in_time(fault, BINDING, what, hint))
}

fn in_time(fault: Fault, time: Duration, what: impl Fn() -> String, hint: &str) -> Fault {
    if fault.kind() != Kind::Deadline {
        return fault;
    }
    Fault::unavailable(format!("{}: there was no answer in {} s", what(), time.as_secs()))
        .hint(hint)
}

/// Mounts that are under way, by server.
static UNDER_WAY: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());
static ENDED: Condvar = Condvar::new();

/// Leave to have a helper for one server.
struct Turn(String);

impl Turn {
    fn of(server: &str) -> Result<Self> {
        let end = Instant::now() + MOUNTING;
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        while under_way.get(server).is_some_and(|there| *there >= AT_ONCE) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::unavailable(format!(
                    "ask {server}: {AT_ONCE} calls wait for its answer already"
                ))
                .hint("its server is gone or overloaded; the call is repeated"));
            }
            under_way =
                ENDED.wait_timeout(under_way, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *under_way.entry(server.to_owned()).or_default() += 1;
        Ok(Self(server.to_owned()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = under_way.get_mut(&self.0) {
            *there -= 1;
            if *there == 0 {
                under_way.remove(&self.0);
            }
        }
        ENDED.notify_all();
    }
}

/// Whom it asks; of what is bound, all that is known is the path.
fn server_of(work: &Work) -> String {
    match work {
        Work::Mount(request) => {
            let at = if request.source.starts_with('[') { "]:" } else { ":" };
            let server = request.source.split_once(at).map_or(&*request.source, |(name, _)| name);
            server.to_owned()
        }
        Work::Bind(request) => request.source.display().to_string(),
    }
}

fn run(work: &Work, helper: &HelperProgram, deadline: Duration) -> Result<()> {
    let Some((program, arguments)) = helper.0.split_first() else {
        return Err(Fault::internal("mount a network file system: no helper program is known"));
    };
    let server = server_of(work);
    let _turn = Turn::of(&server)?;
    let question = Command::new(program).args(arguments).arg("mount").arg(&server);
    // While one hangs that cannot be killed, the answer is known, and another would hang beside it.
    if command::hangs(&question.line()) || command::stuck() >= MOST_STUCK {
        return Err(Fault::unavailable(format!(
            "ask {server}: a helper still hangs that asked before"
        ))
        .hint("its server is gone; the call is repeated, and succeeds once that helper is free"));
    }
    // Options may hold passwords, and anybody sees a command line.
    let text = serde_json::to_vec(work)
        .map_err(|e| Fault::internal("put a mount into words").because(e))?;
    let output = question.stdin(text).deadline(deadline).run_any()?;
    if output.code() == Some(0) {
        return Ok(());
    }
    Err(match serde_json::from_slice::<Told>(&output.stdout) {
        Ok(told) => told.into(),
        Err(_) => Fault::internal(format!("mount: helper: {}", output.stderr.trim())),
    })
}

/// What the helper process does.
#[allow(clippy::print_stdout, reason = "this is how the helper answers")]
pub(crate) fn main() -> ExitCode {
    let mut text = Vec::new();
    let done = match std::io::stdin().read_to_end(&mut text) {
        Ok(_) => serde_json::from_slice(&text)
            .map_err(|e| Fault::internal("understand what to mount").because(e)),
        Err(e) => Err(Fault::io("read what to mount", e)),
    };
    let done = done.and_then(|work| match work {
        Work::Bind(request) => RealMounts::new().bind(&request),
        Work::Mount(request) => attempts(&request, |one| RealMounts::new().mount(one)),
    });
    let Err(fault) = done else { return ExitCode::SUCCESS };
    if let Ok(text) = serde_json::to_string(&Told::from(&fault)) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    ExitCode::FAILURE
}

/// A detached mount of a network file system: no namespace shows it, and it ends with its last
/// descriptor. And whether its server copies files by itself.
pub(crate) fn detached(request: &MountRequest) -> Result<(OwnedFd, bool)> {
    attempts(request, |one| {
        // Since 4.2; for others the kernel fetches and sends every byte, and fills holes.
        let copies = one.options.iter().any(|option| {
            matches!(option.as_str(), "vers=4.2" | "nfsvers=4.2" | "v4.2" | "minorversion=2")
        });
        let sorted = attributes::sort(&one.options, one.read_only)?;
        let root = create::detached(one, &sorted)?.ok_or_else(|| {
            Fault::precondition(format!("mount {}", one.source))
                .hint("Linux 5.2 or newer is needed (fsopen), and options of at most 255 bytes")
        })?;
        Ok((root, copies))
    })
}

/// Tries one way after the other, until one works or the server says something that no other way changes.
fn attempts<T>(request: &MountRequest, mount: impl Fn(&MountRequest) -> Result<T>) -> Result<T> {
    if !is_nfs(&request.fs_type) {
        return mount(request);
    }
    let addressed = with_address(request)?;
    let versions: &[&str] = if names_version(&request.options) { &[""] } else { &VERSIONS };
    let mut failed = None;
    for version in versions {
        let mut one = addressed.clone();
        if !version.is_empty() {
            one.options.push(format!("vers={version}"));
        }
        match mount(&one) {
            Ok(mounted) => return Ok(mounted),
            Err(fault) => {
                let fault = explained(fault, request);
                let other_version = matches!(
                    fault.os_error(),
                    Some(libc::EPROTONOSUPPORT | libc::EPFNOSUPPORT | libc::EOPNOTSUPP)
                );
                if !other_version {
                    // Without version 4 a server's port may be closed to its next version's question; what
                    // the newest was told says more.
                    return Err(failed.unwrap_or(fault));
                }
                failed.get_or_insert(fault);
            }
        }
    }
    Err(failed.unwrap_or_else(|| Fault::internal("mount: there is no version to try")))
}

/// Whether mounting a file system of this kind asks a server.
pub(super) fn is_network(fs_type: &str) -> bool {
    is_nfs(fs_type)
        || matches!(fs_type, "cifs" | "smb3" | "ceph" | "9p" | "afs" | "lustre" | "orangefs")
}

/// Whether file systems of this kind are NFS.
fn is_nfs(fs_type: &str) -> bool {
    matches!(fs_type, "nfs" | "nfs4")
}

fn names_version(options: &[String]) -> bool {
    options.iter().any(|option| {
        let key = option.split('=').next().unwrap_or_default();
        matches!(key, "vers" | "nfsvers" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2" | "minorversion")
    })
}

/// The kernel knows addresses only.
fn with_address(request: &MountRequest) -> Result<MountRequest> {
    let mut request = request.clone();
    if request.options.iter().any(|option| option.starts_with("addr=")) {
        return Ok(request);
    }
    let what = || format!("find the server of {}", request.source);
    let server = match request.source.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").map(|(server, _)| server),
        None => request.source.split_once(':').map(|(server, _)| server),
    };
    let server = server
        .filter(|server| !server.is_empty())
        .ok_or_else(|| Fault::invalid(what()).hint("write server:/path"))?;
    let address = (server, 0)
        .to_socket_addrs()
        .map_err(|e| {
            Fault::unavailable(what())
                .because(e)
                .hint("is the name right, and does this machine's name service know it?")
        })?
        .next()
        .ok_or_else(|| Fault::unavailable(format!("{}: it has no address", what())))?;
    request.options.push(format!("addr={}", address.ip()));
    Ok(request)
}

/// What a server's refusal means, and what to do.
fn explained(fault: Fault, request: &MountRequest) -> Fault {
    let (kind, hint) = match fault.os_error() {
        Some(libc::ENOENT) => (
            Kind::Precondition,
            "the server does not export this path (any more), or there is no such directory below it: \
             compare it with exportfs -v there",
        ),
        Some(libc::EACCES | libc::EPERM) => (
            Kind::Precondition,
            "the server refuses this machine: compare its address with exportfs -v there, and where the \
             export asks for Kerberos mount with sec=",
        ),
        Some(libc::EPROTONOSUPPORT | libc::EPFNOSUPPORT | libc::EOPNOTSUPP) => (
            Kind::Precondition,
            "the server does not speak this version of NFS: leave vers out of the mount options, or name \
             one of cat /proc/fs/nfsd/versions there",
        ),
        Some(libc::ENODEV) => {
            (Kind::Precondition, "this kernel has no NFS client: modprobe nfs (nfsv4, nfsv3)")
        }
        Some(libc::ESTALE) => (
            Kind::Unavailable,
            "the server exports something else at this path than a moment ago; the call is repeated",
        ),
        Some(
            libc::ECONNREFUSED
            | libc::ETIMEDOUT
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENETUNREACH
            | libc::ECONNRESET
            | libc::EIO,
        ) => (
            Kind::Unavailable,
            "the server is down, or a firewall is between: NFS 4 needs TCP port 2049",
        ),
        _ => return fault,
    };
    let target = Path::new(&request.target);
    let gone = !target.as_os_str().is_empty() && !target.exists();
    // A missing mount point is no matter of the server.
    if gone { fault } else { fault.with_kind(kind).hint(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(source: &str, options: &[&str]) -> MountRequest {
        MountRequest {
            fs_type: "nfs".into(),
            source: source.into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..MountRequest::default()
        }
    }

    fn refused(code: i32) -> Fault {
        Fault::io("mount", std::io::Error::from_raw_os_error(code))
    }

    #[test]
    fn versions_are_tried_from_the_newest_until_one_is_spoken() {
        let tried = std::cell::RefCell::new(Vec::new());
        let mounted = attempts(&request("127.0.0.1:/x", &["hard"]), |one| {
            tried.borrow_mut().push(one.options.join(","));
            if one.options.contains(&"vers=4.0".to_owned()) {
                Ok(7)
            } else {
                Err(refused(libc::EPROTONOSUPPORT))
            }
        });
        assert_eq!(mounted.unwrap(), 7);
        let way = |version| format!("hard,addr=127.0.0.1,vers={version}");
        assert_eq!(tried.into_inner(), ["4.2", "4.1", "4.0"].map(way));
    }

    #[test]
    fn a_version_that_is_asked_for_is_the_only_one() {
        for option in ["vers=3", "nfsvers=4.1", "v4.2"] {
            let tried = std::cell::Cell::new(0);
            let fault = attempts(&request("127.0.0.1:/x", &[option]), |one| {
                tried.set(tried.get() + 1);
                assert_eq!(one.options, [option, "addr=127.0.0.1"]);
                Err::<(), _>(refused(libc::EPROTONOSUPPORT))
            });
            let fault = fault.unwrap_err();
            assert_eq!((tried.get(), fault.kind()), (1, Kind::Precondition));
            assert!(fault.to_string().contains("leave vers out"), "{fault}");
        }
    }

    #[test]
    fn what_a_server_says_has_a_kind_and_advice() {
        let said = |code| {
            attempts(&request("127.0.0.1:/x", &[]), |_| Err::<(), _>(refused(code))).unwrap_err()
        };
        for (code, kind, advice) in [
            (libc::ENOENT, Kind::Precondition, "does not export"),
            (libc::EACCES, Kind::Precondition, "refuses this machine"),
            (libc::ECONNREFUSED, Kind::Unavailable, "2049"),
            (libc::ETIMEDOUT, Kind::Unavailable, "2049"),
            (libc::ENODEV, Kind::Precondition, "modprobe"),
        ] {
            let fault = said(code);
            assert_eq!(fault.kind(), kind, "{fault}");
            assert!(fault.to_string().contains(advice), "{fault}");
        }
    }

    #[test]
    fn addresses_of_both_sorts_are_taken_from_the_source() {
        let address = |source| with_address(&request(source, &[])).unwrap().options;
        assert_eq!(address("127.0.0.1:/x"), ["addr=127.0.0.1"]);
        assert_eq!(address("[::1]:/x:y"), ["addr=::1"]);
        assert_eq!(with_address(&request("no-path", &[])).unwrap_err().kind(), Kind::Invalid);
        let unknown = with_address(&request("no-such-host.invalid:/x", &[])).unwrap_err();
        assert_eq!(unknown.kind(), Kind::Unavailable, "{unknown}");
    }

    /// Each would hang, and with it what other servers' volumes need.
    #[test]
    fn helpers_for_one_server_do_not_pile_up_and_others_are_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = format!("echo + $1 >> {0}; sleep 1; echo - $1 >> {0}; exit 0", log.display());
        let helper = HelperProgram(["/bin/sh", "-c", &script].map(Into::into).into());
        std::thread::scope(|scope| {
            for n in 0..10 {
                let (helper, server) = (&helper, if n == 9 { "live" } else { "busy" });
                scope.spawn(move || mount(&request(&format!("{server}:/x"), &[]), helper).unwrap());
            }
        });
        let log = std::fs::read_to_string(log).unwrap();
        let (mut there, mut most) = (0_usize, 0);
        for line in log.lines().filter(|line| line.ends_with("busy")) {
            there = if line.starts_with('+') { there + 1 } else { there - 1 };
            most = most.max(there);
        }
        assert!(most <= AT_ONCE && there == 0, "{log}");
        assert_eq!(log.lines().count(), 20, "{log}");
    }

    #[test]
    fn two_calls_with_helpers_do_not_stack_at_one_target() {
        let dir = tempfile::tempdir().unwrap();
        let began = dir.path().join("began");
        let script = format!(
            "echo >> {0}; read -r _; while [ -e {0} ]; do sleep 0.1; done",
            began.display()
        );
        let helper = HelperProgram(["/bin/sh", "-c", &script].map(Into::into).into());
        let mounts = RealMounts::with_helper(helper);
        let asked = MountRequest { target: dir.path().join("t"), ..request("s:/x", &[]) };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| mounts.mount(&asked));
            while !began.exists() {
                std::thread::yield_now();
            }
            assert_eq!(mounts.mount(&asked).unwrap_err().kind(), Kind::Aborted);
            std::fs::remove_file(&began).unwrap();
            first.join().unwrap().unwrap();
        });
    }
}
