//! `larder demo`, as root and as anybody else: it works, and nothing of it is left, however it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start the program as a user would")]

use larder_host::Host;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const ANYBODY: &str = "12345";

/// A folder for temporary files that holds nothing else.
struct Temporary(tempfile::TempDir);

impl Temporary {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("larder-test-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("TMPDIR", self.path()).stdin(Stdio::null());
        command
    }

    fn demo(&self) -> Command {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_larder")));
        command.args(["demo", "-o", "json"]);
        command
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Files, mounts and loop devices of demos in this folder.
    fn left(&self) -> Vec<String> {
        let host = Host::real();
        let mut left: Vec<_> = self.entries().iter().map(|p| p.display().to_string()).collect();
        let mounts = host.mounts.table().unwrap().into_iter().map(|mount| mount.target);
        left.extend(
            mounts.filter(|t| t.starts_with(self.path())).map(|t| format!("mount {}", t.display())),
        );
        for info in host.loops.list().unwrap() {
            let file = info.backing_file.unwrap_or_default();
            if file.starts_with(self.path()) {
                left.push(format!("loop device {} over {}", info.number, file.display()));
            }
        }
        left
    }

    /// Mounts and devices go when the last process of the demo has ended.
    #[track_caller]
    fn assert_empty(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.left().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.left(), [""; 0]);
    }
}

#[track_caller]
fn report(output: &Output) -> serde_json::Value {
    let error = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("no report ({e}); it said: {error}"));
    assert!(output.status.success(), "{error}\n{report:#}");
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.len() > 10 && steps.iter().all(|s| s["ok"] == true), "{report:#}");
    report
}

/// Waits until the demo has come as far as that step's work.
fn until_there_is(temporary: &Temporary, name: &str, demo: &mut Child) {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let is_there = |folder: &PathBuf| {
            // Its mounts are seen only by it.
            let root = PathBuf::from(format!("/proc/{}/root", demo.id()));
            root.join(folder.strip_prefix("/").unwrap()).join(name).exists()
        };
        if temporary.entries().iter().any(is_there) {
            return;
        }
        assert_eq!(demo.try_wait().unwrap(), None, "the demo ended before there was {name}");
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the demo never made {name}");
}

#[test]
fn as_root_every_step_holds_and_nothing_is_left() {
    let temporary = Temporary::new();
    let report = report(&temporary.demo().output().unwrap());
    assert_eq!(report["leftOut"].as_array().unwrap().len(), 0);
    assert!(report.to_string().contains("raw") || report.to_string().contains("--block"));
    temporary.assert_empty();
}

#[test]
fn an_ordinary_user_is_shown_what_needs_no_root_and_told_the_rest() {
    let temporary = Temporary::new();
    // The build's folder may be closed to others.
    let program = tempfile::Builder::new().prefix("larder-test-").tempdir().unwrap();
    std::fs::set_permissions(program.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = program.path().join("larder");
    std::fs::copy(env!("CARGO_BIN_EXE_larder"), &copy).unwrap();
    let output = temporary
        .command(Path::new("setpriv"))
        .args(["--reuid", ANYBODY, "--regid", ANYBODY, "--clear-groups", "--"])
        .arg(&copy)
        .args(["demo", "-o", "json"])
        .current_dir("/")
        .output()
        .unwrap();
    let report = report(&output);
    let left_out = report["leftOut"].to_string();
    assert!(left_out.contains("raw block") && left_out.contains("quota"), "{left_out}");
    temporary.assert_empty();
}

#[test]
fn a_demo_that_is_told_to_end_cleans_up() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let temporary = Temporary::new();
        let mut demo =
            temporary.demo().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until_there_is(&temporary, "pool/volumes/data", &mut demo);
        kill_process(Pid::from_child(&demo), signal).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(1), "{signal:?}");
        temporary.assert_empty();
    }
}

#[test]
fn what_a_killed_demo_leaves_is_removed_by_the_next() {
    let temporary = Temporary::new();
    // Amid work on files, with a raw block device in use, and while its server is being killed.
    for moment in ["pool/snapshots", "disk", "pool/volumes/k0-0"] {
        let mut demo =
            temporary.demo().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until_there_is(&temporary, moment, &mut demo);
        demo.kill().unwrap();
        demo.wait().unwrap();
    }
    let end = Instant::now() + Duration::from_secs(60);
    let mounted = || {
        let left = temporary.left();
        left.iter().any(|l| l.starts_with("mount"))
    };
    while mounted() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let folders = temporary.entries().len();
    assert!(folders > 0, "nothing was left, so nothing is shown");
    // Not a demo's: no lock, so nobody can say that it is free.
    let foreign = temporary.path().join("larder-demo-of-mine");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis"), "x").unwrap();
    report(&temporary.demo().output().unwrap());
    assert_eq!(std::fs::read(foreign.join("thesis")).unwrap(), b"x");
    std::fs::remove_dir_all(&foreign).unwrap();
    temporary.assert_empty();
}
