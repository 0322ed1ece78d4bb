//! A real NFS server, the kernel's, in a network of its own, so that it can fall silent.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Its address.
pub(crate) const ADDRESS: &str = "10.99.0.2";
/// Where its exports are.
const ROOT: &str = "/scratch/nfs";

/// As `nfs-kernel-server` sets it up, with a short time of grace after a start.
const SET_UP: &str = r"
ip netns add server
ip link add nfs0 type veth peer name nfs1 netns server
ip addr add 10.99.0.1/24 dev nfs0; ip link set nfs0 up
ip netns exec server ip link set lo up
ip netns exec server ip addr add 10.99.0.2/24 dev nfs1
ip netns exec server ip link set nfs1 up
# A silent server does not even tell that nobody has its address.
ip neigh replace 10.99.0.2 lladdr $(ip netns exec server cat /sys/class/net/nfs1/address) dev nfs0
";
const START: &str = r"
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /run/rpcbind /var/lib/nfs/{v4recovery,rpc_pipefs,nfsdcltrack,sm} /run/sendsigs.omit.d
: > /var/lib/nfs/etab; : > /var/lib/nfs/rmtab
rpcbind -w || true
echo 10 > /proc/fs/nfsd/nfsv4gracetime; echo 10 > /proc/fs/nfsd/nfsv4leasetime
rpc.mountd
rpc.nfsd --no-udp --grace-time 10 --lease-time 10 4
";

pub(crate) struct NfsServer {
    _shell: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    exports: u32,
}

static SERVER: Mutex<Option<NfsServer>> = Mutex::new(None);

/// The one server of this machine, for one test at a time.
pub(crate) struct Served(MutexGuard<'static, Option<NfsServer>>);

/// Waits for its turn.
pub(crate) fn server() -> Served {
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if server.is_none() {
        *server = Some(NfsServer::start());
    }
    let mut served = Served(server);
    served.wake(); // A failed test may have left it silent.
    served
}

impl NfsServer {
    fn start() -> Self {
        let modules = "modprobe -a nfsd nfs nfsv3 nfsv4 veth loop";
        let done = Command::new("bash").args(["-exc", &format!("{modules}\n{SET_UP}")]).status();
        assert!(done.unwrap().success(), "the server's network");
        let mut shell = Command::new("ip")
            .args(["netns", "exec", "server", "bash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = shell.stdin.take().unwrap();
        let stdout = BufReader::new(shell.stdout.take().unwrap());
        let mut server = Self { _shell: shell, stdin, stdout, exports: 0 };
        server.run(START);
        server
    }

    fn run(&mut self, script: &str) {
        // In a group of its own, so that a failing line ends the script and not the server's shell.
        writeln!(self.stdin, "( set -ex\n{script}\n) >&2 </dev/null; echo DONE $?").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "DONE 0", "{script}");
    }
}

impl Served {
    /// Runs a script on the server's side.
    pub(crate) fn run(&mut self, script: &str) {
        self.0.as_mut().unwrap().run(script);
    }

    /// A new, empty export, with options as in exports(5).
    pub(crate) fn export(&mut self, options: &str) -> PathBuf {
        self.0.as_mut().unwrap().exports += 1;
        let n = self.0.as_ref().unwrap().exports;
        let path = Path::new(ROOT).join(format!("export{n}"));
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("{options},no_subtree_check,fsid={n}");
        self.run(&format!("exportfs -o {options} '*:{}'", path.display()));
        path
    }

    /// The same on a file system of its own, of so many MiB.
    pub(crate) fn small_export(&mut self, mib: u32) -> PathBuf {
        self.small_export_on("mkfs.ext4 -q -m 0", mib)
    }

    /// As [`Served::small_export`], on whatever that command makes.
    pub(crate) fn small_export_on(&mut self, mkfs: &str, mib: u32) -> PathBuf {
        let n = self.0.as_ref().unwrap().exports + 1;
        let path = Path::new(ROOT).join(format!("export{n}"));
        std::fs::create_dir_all(&path).unwrap();
        let path = path.display();
        let script = format!(
            "truncate -s {mib}M {path}.img\n{mkfs} {path}.img\nmount -o loop {path}.img {path}"
        );
        let done = Command::new("bash").args(["-ec", &script]).status().unwrap();
        assert!(done.success());
        // The server's shell has mounts of its own.
        self.run(&format!("mount -o loop {path}.img {path}"));
        self.export("rw,no_root_squash")
    }

    /// The export is no more; what is in it stays.
    pub(crate) fn withdraw(&mut self, export: &Path) {
        self.run(&format!("exportfs -u '*:{0}'; exportfs -f; ls {0}", export.display()));
    }

    /// It is exported again, as the same.
    pub(crate) fn export_again(&mut self, export: &Path) {
        let path = export.display().to_string();
        let n = path.rsplit_once("export").unwrap().1.to_owned();
        let options = format!("rw,no_root_squash,no_subtree_check,fsid={n}");
        self.run(&format!("exportfs -o {options} '*:{path}'"));
    }

    /// Nothing that is sent to it is answered, not even refused.
    pub(crate) fn fall_silent(&mut self) {
        self.run("ip addr del 10.99.0.2/24 dev nfs1");
    }

    /// It answers again.
    pub(crate) fn wake(&mut self) {
        self.run("ip addr replace 10.99.0.2/24 dev nfs1");
    }

    /// As in a reboot: it forgets who it talked to.
    pub(crate) fn restart(&mut self) {
        self.run("rpc.nfsd 0\nrpc.nfsd --no-udp --grace-time 10 --lease-time 10 4");
    }
}
