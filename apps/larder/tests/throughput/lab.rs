//! Pods with workloads, and what a volume does meanwhile.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::support::{Site, shell};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub(crate) const PODS: &str = "/sys/fs/cgroup/kubepods.slice";
pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// The cgroups of two pods, as kubelet makes them. A machine has them once, and its disk too: one test at
/// a time measures.
pub(crate) struct Pods {
    pub(crate) root: PathBuf,
    pub(crate) _alone: MutexGuard<'static, ()>,
}

pub(crate) static ALONE: Mutex<()> = Mutex::new(());

impl Pods {
    pub(crate) fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self::in_cgroup(Path::new(PODS), alone)
    }
    pub(crate) fn in_cgroup(root: &Path, alone: MutexGuard<'static, ()>) -> Self {
        for pod in ["pod-a", "pod-b"] {
            fs::create_dir_all(root.join(pod)).unwrap();
        }
        Self { root: root.to_owned(), _alone: alone }
    }
    pub(crate) fn limits() -> String {
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

/// Workloads of both pods; they end with this.
pub(crate) struct Workloads(Vec<Child>);

impl Workloads {
    /// `dd`, two in each pod.
    pub(crate) fn start(pods: &Pods, arguments: impl Fn(u32) -> String) -> Self {
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

pub(crate) struct Volume<'a> {
    pub(crate) site: &'a Site,
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
}

/// What a device has done: reads, bytes read, writes, bytes written.
pub(crate) type Done = [f64; 4];

pub(crate) const READS: usize = 0;
pub(crate) const READ: usize = 1;
pub(crate) const WRITES: usize = 2;
pub(crate) const WRITTEN: usize = 3;

impl Volume<'_> {
    pub(crate) fn limits(&self) -> Value {
        let text = self.site.ok(&["volume", "show", self.name, "-o", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()["limits"].clone()
    }
    pub(crate) fn modify(&self, parameters: &[&str]) {
        let mut words = vec!["volume", "modify", self.name];
        for parameter in parameters {
            words.extend(["--param", parameter]);
        }
        self.site.ok(&words);
        assert_ne!(self.limits()["state"], "notHeld", "{}", self.limits());
        // A request that was held back under the former limits is let go by them.
        std::thread::sleep(Duration::from_millis(1500));
    }
    pub(crate) fn done(&self, device: &str) -> Done {
        let text = fs::read_to_string(format!("/sys/dev/block/{device}/stat")).unwrap();
        let field = |n: usize| text.split_whitespace().nth(n).unwrap().parse::<f64>().unwrap();
        [field(0), field(2) * 512.0, field(4), field(6) * 512.0]
    }
    /// How much of that in a second, by the machine's own clock.
    pub(crate) fn rate(&self, what: usize) -> f64 {
        let device = self.limits()["device"].as_str().unwrap().to_owned();
        let (before, began) = (self.done(&device)[what], Instant::now());
        std::thread::sleep(Duration::from_secs(6));
        let (after, took) = (self.done(&device)[what], began.elapsed());
        (after - before) / took.as_secs_f64()
    }
    /// Over several windows where one is not enough: an emulated machine on a busy host measures time
    /// and bytes unevenly. A limit that does not hold is missed in all of them.
    pub(crate) fn holds(&self, what: usize, asked: f64, when: &str) {
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

pub(crate) fn writing(path: &Path) -> impl Fn(u32) -> String {
    let path = path.display().to_string();
    move |n| {
        let seek = n * 250;
        format!("if=/dev/zero of={path} bs=64k count=250 seek={seek} oflag=direct conv=notrunc")
    }
}

pub(crate) fn reading(path: &Path, block: &'static str) -> impl Fn(u32) -> String {
    let path = path.display().to_string();
    move |n| format!("if={path} of=/dev/null bs={block} skip={} iflag=direct", n * 100)
}
