//! Limits as the kernel holds them, measured: in a machine with version 2 cgroups, and with version 1 in
//! their place, where workloads of several pods use one volume at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "it measures for a while")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use support::{Site, shell};

const PODS: &str = "/sys/fs/cgroup/kubepods.slice";
const MIB: f64 = 1024.0 * 1024.0;

/// The cgroups of two pods, as kubelet makes them. A machine has them once, and its disk too: one test at
/// a time measures.
struct Pods {
    root: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Pods {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self::in_cgroup(Path::new(PODS), alone)
    }
    fn in_cgroup(root: &Path, alone: MutexGuard<'static, ()>) -> Self {
        for pod in ["pod-a", "pod-b"] {
            fs::create_dir_all(root.join(pod)).unwrap();
        }
        Self { root: root.to_owned(), _alone: alone }
    }
    fn limits() -> String {
        fs::read_to_string(format!("{PODS}/io.max")).unwrap_or_default()
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for pod in ["pod-a", "pod-b", ""] {
            let _ = fs::remove_dir(self.root.join(pod));
        }
    }
}

/// The blkio controller of version 1, which the machine gives where version 2 does not use io.
struct VersionOne(PathBuf);

impl VersionOne {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "-io").unwrap();
        // Cgroups of version 2 that were removed hold the controller until nothing is cached for them.
        let script = format!(
            "sync; echo 3 > /proc/sys/vm/drop_caches; mount -t cgroup -o blkio blkio '{}'",
            at.display()
        );
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let mounted = shell(&script).output().unwrap();
            if mounted.status.success() {
                return Self(at);
            }
            let said = String::from_utf8_lossy(&mounted.stderr);
            assert!(Instant::now() < until, "blkio cannot be mounted: {said}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for VersionOne {
    fn drop(&mut self) {
        let _ = shell(&format!("umount '{}'", self.0.display())).output();
    }
}

/// Workloads of both pods; they end with this.
struct Workloads(Vec<Child>);

impl Workloads {
    /// `dd`, two in each pod.
    fn start(pods: &Pods, arguments: impl Fn(u32) -> String) -> Self {
        let pods = pods.root.display();
        let one = |n: u32| {
            let pod = if n.is_multiple_of(2) { "pod-a" } else { "pod-b" };
            let script = format!(
                "echo $BASHPID > {pods}/{pod}/cgroup.procs; \
                 trap 'kill $!; wait $!; exit' TERM; while :; do dd status=none {} & wait $!; done",
                arguments(n)
            );
            shell(&script).spawn().unwrap()
        };
        let started = Self((0..4).map(one).collect());
        // Until they are where they belong, and what was let through at first is over.
        std::thread::sleep(Duration::from_millis(1500));
        started
    }
}

impl Drop for Workloads {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

struct Volume<'a> {
    site: &'a Site,
    name: &'static str,
    path: PathBuf,
}

/// What a device has done: reads, bytes read, writes, bytes written.
type Done = [f64; 4];

const READS: usize = 0;
const READ: usize = 1;
const WRITES: usize = 2;
const WRITTEN: usize = 3;

impl Volume<'_> {
    fn limits(&self) -> Value {
        let text = self.site.ok(&["volume", "show", self.name, "-o", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()["limits"].clone()
    }
    fn modify(&self, parameters: &[&str]) {
        let mut words = vec!["volume", "modify", self.name];
        for parameter in parameters {
            words.extend(["--param", parameter]);
        }
        self.site.ok(&words);
        assert_ne!(self.limits()["state"], "notHeld", "{}", self.limits());
        // A request that was held back under the former limits is let go by them.
        std::thread::sleep(Duration::from_millis(1500));
    }
    fn done(&self, device: &str) -> Done {
        let text = fs::read_to_string(format!("/sys/dev/block/{device}/stat")).unwrap();
        let field = |n: usize| text.split_whitespace().nth(n).unwrap().parse::<f64>().unwrap();
        [field(0), field(2) * 512.0, field(4), field(6) * 512.0]
    }
    /// How much of that in a second, by the machine's own clock.
    fn rate(&self, what: usize) -> f64 {
        let device = self.limits()["device"].as_str().unwrap().to_owned();
        let (before, began) = (self.done(&device)[what], Instant::now());
        std::thread::sleep(Duration::from_secs(6));
        let (after, took) = (self.done(&device)[what], began.elapsed());
        (after - before) / took.as_secs_f64()
    }
    /// Over several windows where one is not enough: an emulated machine on a busy host measures time
    /// and bytes unevenly. A limit that does not hold is missed in all of them.
    fn holds(&self, what: usize, asked: f64, when: &str) {
        let (unit, words) = if what.is_multiple_of(2) { (1.0, "/s") } else { (MIB, " MiB/s") };
        let mut sum = 0.0;
        for windows in 1..=5 {
            sum += self.rate(what);
            let rate = sum / f64::from(windows);
            println!("{when}: {:.2}{words} of {:.2} asked", rate / unit, asked / unit);
            if (rate / asked - 1.0).abs() <= 0.1 {
                return;
            }
        }
        panic!("{when}: not within a tenth of {:.2}{words}", asked / unit);
    }
}

fn writing(path: &Path) -> impl Fn(u32) -> String {
    let path = path.display().to_string();
    move |n| {
        let seek = n * 250;
        format!("if=/dev/zero of={path} bs=64k count=250 seek={seek} oflag=direct conv=notrunc")
    }
}

fn reading(path: &Path, block: &'static str) -> impl Fn(u32) -> String {
    let path = path.display().to_string();
    move |n| format!("if={path} of=/dev/null bs={block} skip={} iflag=direct", n * 100)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_all_pods_together_while_it_is_changed_and_across_a_kill() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    site.ok(&["volume", "create", "v", "--size", "64Mi", "--block", "--param", "maxWriteBps=1Mi"]);
    let path = site.path("device");
    let at = path.display().to_string();
    site.ok(&["volume", "mount", "v", &at, "--block"]);
    let volume = Volume { site: &site, name: "v", path };
    assert_eq!(volume.limits()["state"], "held");
    assert_eq!(volume.limits()["cgroup"], PODS);
    // From outside of the pods, so that the image has its blocks: what is measured is the limit, which
    // must be the slowest part also of an emulated machine.
    let fill = format!("dd if=/dev/zero of={at} bs=1M count=64 oflag=direct status=none");
    assert!(shell(&fill).status().unwrap().success());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, MIB, "writes of two pods");
    volume.modify(&["maxWriteBps=2Mi"]);
    volume.holds(WRITTEN, 2.0 * MIB, "changed while in use");
    server.kill();
    // The kernel holds it, not Larder.
    assert!(Pods::limits().contains("wbps=2097152"), "{}", Pods::limits());
    // Whatever somebody did meanwhile, the next start makes good.
    let device = Pods::limits().split(' ').next().unwrap().to_owned();
    fs::write(format!("{PODS}/io.max"), format!("{device} wbps=max")).unwrap();
    assert_eq!(Pods::limits(), "");
    let mut server = site.server();
    assert!(server.ready().await);
    std::thread::sleep(Duration::from_millis(1500));
    volume.holds(WRITTEN, 2.0 * MIB, "after kill -9 and a start");
    volume.modify(&["maxWriteBps=0"]);
    assert_eq!(Pods::limits(), "");
    let free = volume.rate(WRITTEN);
    println!("without limits: {:.2} MiB/s", free / MIB);
    assert!(free > 2.5 * MIB, "{:.2} MiB/s: too slow a machine to tell", free / MIB);
    volume.modify(&["maxWriteIops=40"]);
    volume.holds(WRITES, 40.0, "write operations");
    drop(writers);

    volume.modify(&["maxWriteIops=0", "maxReadBps=1M"]);
    let readers = Workloads::start(&pods, reading(&volume.path, "64k"));
    volume.holds(READ, 1_000_000.0, "reads of two pods");
    drop(readers);
    volume.modify(&["maxReadBps=0", "maxReadIops=50"]);
    let readers = Workloads::start(&pods, reading(&volume.path, "4k"));
    volume.holds(READS, 50.0, "read operations");
    drop(readers);

    site.ok(&["volume", "unmount", "v"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    assert_eq!(volume.limits()["state"], "notInUse");
    site.ok(&["volume", "rm", "v"]);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_writes_to_a_file_system_are_held_to_the_limit_too() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "f", "--size", "128Mi", "--fs", "ext4"]);
    let path = site.path("mounted");
    site.ok(&["volume", "mount", "f", &path.display().to_string()]);
    let volume = Volume { site: &site, name: "f", path };
    volume.modify(&["maxWriteBps=1Mi"]);
    let file = volume.path.display().to_string();
    let writers = Workloads::start(&pods, move |n| {
        format!("if=/dev/zero of={file}/{n} bs=64k count=250 conv=fsync")
    });
    // Until the kernel writes what it has cached.
    std::thread::sleep(Duration::from_secs(2));
    volume.holds(WRITTEN, MIB, "cached writes of two pods");
    // They end when what they have cached is written, which nobody shall wait for.
    volume.modify(&["maxWriteBps=0"]);
    drop(writers);
    volume.modify(&["maxWriteBps=1Mi"]);
    site.ok(&["volume", "unmount", "f"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    site.ok(&["volume", "rm", "f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_version_1_each_pod_is_held_to_the_limit_by_itself_as_is_said() {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let site = Site::new("loop", "xfs");
    let blkio = VersionOne::mount(site.path("blkio"));
    let root = blkio.0.join("pods");
    let pods = Pods::in_cgroup(&root, alone);
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("cgroup: {}\n{config}", root.display())).unwrap();

    site.ok(&["volume", "create", "v", "--size", "64Mi", "--block", "--param", "maxWriteBps=1Mi"]);
    let path = site.path("device");
    let at = path.display().to_string();
    site.ok(&["volume", "mount", "v", &at, "--block"]);
    let volume = Volume { site: &site, name: "v", path };
    let limits = volume.limits();
    assert_eq!(limits["state"], "held", "{limits}");
    assert!(limits["caveats"][0].as_str().unwrap().contains("version 1"), "{limits}");
    let fill = format!("dd if=/dev/zero of={at} bs=1M count=64 oflag=direct status=none");
    assert!(shell(&fill).status().unwrap().success());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, 2.0 * MIB, "version 1, two pods with 1 MiB/s each");
    volume.modify(&["maxWriteBps=0", "maxWriteIops=20"]);
    volume.holds(WRITES, 40.0, "version 1, two pods with 20 operations each");
    drop(writers);
    site.ok(&["volume", "unmount", "v"]);
    for group in [root.clone(), root.join("pod-a"), root.join("pod-b")] {
        for kind in ["write_bps", "write_iops"] {
            let file = group.join(format!("blkio.throttle.{kind}_device"));
            assert_eq!(fs::read_to_string(&file).unwrap(), "", "a limit outlived its volume");
        }
    }
    site.ok(&["volume", "rm", "v"]);
}

/// Its workloads write to the opened device, and the kernel's own threads to the one below: there a limit
/// would be nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_volume_is_limited_where_its_pods_write() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    encrypted(&site, "e", &["--block", "--param", "maxWriteBps=1Mi"]);
    let volume = Volume { site: &site, name: "e", path: site.path("device") };
    let (at, key) = (volume.path.display().to_string(), site.path("key").display().to_string());
    site.ok(&["volume", "mount", "e", &at, "--block", "--passphrase-file", &key]);
    let limits = volume.limits();
    assert_eq!(limits["state"], "held", "{limits}");
    let device = limits["device"].as_str().unwrap().to_owned();
    assert!(Path::new(&format!("/sys/dev/block/{device}/dm")).exists(), "{limits}");
    assert_eq!(Pods::limits().lines().count(), 1, "one device is limited: {}", Pods::limits());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, MIB, "writes to an encrypted volume");
    volume.modify(&["maxWriteBps=2Mi"]);
    // Growing it gives the device another table, and it stays limited.
    site.ok(&["volume", "expand", "e", "--size", "128Mi", "--passphrase-file", &key]);
    volume.holds(WRITTEN, 2.0 * MIB, "changed and grown while in use");
    server.kill();
    fs::write(format!("{PODS}/io.max"), format!("{device} wbps=max")).unwrap();
    let mut server = site.server();
    assert!(server.ready().await);
    assert_eq!(volume.limits()["state"], "held", "after kill -9 and a start");
    volume.modify(&["maxWriteBps=0", "maxReadBps=1M"]);
    drop(writers);
    let readers = Workloads::start(&pods, reading(&volume.path, "64k"));
    volume.holds(READ, 1_000_000.0, "reads of an encrypted volume");
    drop(readers);
    site.ok(&["volume", "unmount", "e"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    site.ok(&["volume", "rm", "e"]);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_number_that_another_encrypted_volume_has_by_now_keeps_that_ones_limits() {
    let _pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let key = {
        encrypted(&site, "a", &["--param", "maxWriteBps=1Mi"]);
        encrypted(&site, "b", &["--param", "maxWriteBps=2Mi"]);
        site.path("key").display().to_string()
    };
    let mount = |volume: &str| {
        let at = site.path(volume).display().to_string();
        site.ok(&["volume", "mount", volume, &at, "--passphrase-file", &key]);
    };
    mount("a");
    let of_a = Pods::limits();
    // By hand, past Larder: its number is free now, and given to the next.
    let script = "name=$(dmsetup ls | grep -o '^larder-default_a-[0-9a-f]*'); \
                  umount -A /dev/mapper/$name && cryptsetup close $name";
    let closed = shell(script).output().unwrap();
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    mount("b");
    let of_b = Pods::limits();
    assert_eq!(of_a.split(' ').next(), of_b.split(' ').next(), "it has another number");
    site.ok(&["volume", "unmount", "a"]);
    assert_eq!(Pods::limits(), of_b);
    site.ok(&["volume", "unmount", "b"]);
    assert_eq!(Pods::limits(), "");
    site.ok(&["volume", "rm", "a", "b"]);
}

/// Makes an encrypted volume that `key` opens.
fn encrypted(site: &Site, name: &str, more: &[&str]) {
    fs::write(site.path("key"), "a passphrase").unwrap();
    let words = ["volume", "create", name, "--size", "96Mi", "--param", "encryption=luks2"];
    site.ok(&[&words, ["--param", "encryptionMemory=4Mi"].as_slice(), more].concat());
}
