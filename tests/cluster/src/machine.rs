//! A machine of a cluster: namespaces around a process 1 that only reaps.
//!
//! ```text
//! harness ─ unshare ─► init.sh (1) waits for "go"
//!    └─ writes down who it is ─ "go" ─► own root, /run/larder-machine says ready
//!    └─ nsenter ─► services: children of 1, logs on the host
//! kill 1 ─► the kernel ends all of its processes; mounts and network go with them
//! ```

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::process::{self, Process};

const INIT: &str = include_str!("../machine/init.sh");
/// Written into the machine by its process 1 when its root is complete.
const READY: &str = "run/larder-machine";
/// How long a root takes to be made, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// One machine of a cluster: the control plane, or a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    name: String,
    logs: PathBuf,
    /// Outside of the namespaces; only waits for `init`.
    outer: Process,
    /// Process 1.
    init: Process,
}

impl Machine {
    /// Starts a machine with its disk in `dir`, in which the folders `binds` of the host
    /// are seen. `record` writes it down, before it does anything.
    pub(crate) fn start(
        name: &str,
        dir: &Path,
        logs: &Path,
        binds: &[&Path],
        record: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        fs::create_dir_all(dir.join("root"))?;
        fs::create_dir_all(dir.join("var"))?;
        let script = dir.join("init.sh");
        fs::write(&script, INIT)?;
        let log = open_log(logs, name, "init")?;
        let binds: Vec<_> = binds.iter().map(|path| path.to_string_lossy()).collect();
        let mut child = Command::new("setsid")
            .args(["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "bash"])
            .arg(&script)
            .env("NAME", name)
            .env("HOME_", dir)
            .env("BINDS", binds.join("\n"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to start unshare")?;
        let outer = Process::of(i32::try_from(child.id())?).context("unshare ended at once")?;
        let failed = || format!("no namespaces for {name}: see {}", logs.display());
        let init = outer.child().with_context(failed)?;
        let machine = Self { name: name.into(), logs: logs.into(), outer, init };
        record(&machine)?;
        let mut stdin = child.stdin.take().context("no pipe to unshare")?;
        stdin.write_all(b"go\n").with_context(failed)?;
        drop(stdin);
        let look = || {
            ensure!(machine.is_alive(), "its first process ended");
            Ok(machine.root().join(READY).exists().then_some(()))
        };
        process::wait_for(PATIENCE, look)
            .with_context(|| format!("{name} did not start: {}", machine.log_end("init")))?;
        Ok(machine)
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process by whose namespaces the host knows it.
    pub(crate) fn pid(&self) -> i32 {
        self.init.pid()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.init.is_alive()
    }

    /// Its root folder, seen from the host.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init.pid()))
    }

    /// A command that will run in the machine, as root.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.pid().to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"]).arg(program);
        // Nothing of the host's: with the KUBECONFIG of the tests, a program on a node would be
        // administrator, whatever its own configuration says.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in the machine; what it printed.
    ///
    /// # Errors
    /// It failed; the message has its standard error.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, words: I) -> Result<String> {
        let mut words = words.into_iter();
        let program = words.next().context("no program")?;
        process::output(self.command(program).args(words))
            .with_context(|| format!("in {}", self.name))
    }

    /// Starts a service. Its output goes to the log of its name.
    ///
    /// # Errors
    /// It runs already, or it cannot be started.
    pub fn start_service<I: IntoIterator<Item: AsRef<OsStr>>>(
        &self,
        service: &str,
        words: I,
    ) -> Result<()> {
        ensure!(!self.is_running(service), "{service} runs in {} already", self.name);
        let words: Vec<_> = words
            .into_iter()
            .map(|word| word.as_ref().to_str().map(str::to_owned).context("not UTF-8"))
            .collect::<Result<_>>()?;
        fs::write(self.root().join(words_file(service)), serde_json::to_vec(&words)?)?;
        let log = open_log(&self.logs, &self.name, service)?;
        // The shell ends at once, and process 1 takes over.
        let script = r#"pid=$1; shift; ulimit -n 65536 || true; setsid "$@" & echo $! >"$pid""#;
        let status = self
            .command("sh")
            .args(["-c", script, "sh", &format!("/{}", pid_file(service))])
            .args(words)
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("failed to start nsenter")?;
        ensure!(status.success(), "{service} of {} cannot be started: {status}", self.name);
        Ok(())
    }

    /// Ends a service with a signal, if it runs, and starts it as it was started before.
    ///
    /// # Errors
    /// It was never started, does not end, or cannot be started.
    pub fn restart_service(&self, service: &str, signal: &str) -> Result<()> {
        let words = fs::read(self.root().join(words_file(service)))
            .with_context(|| format!("{service} was never started in {}", self.name))?;
        let words: Vec<String> = serde_json::from_slice(&words)?;
        self.stop_service(service, signal)?;
        self.start_service(service, words)
    }

    /// Whether a service runs.
    #[must_use]
    pub fn is_running(&self, service: &str) -> bool {
        let root = self.root();
        let Ok(pid) = fs::read_to_string(root.join(pid_file(service))) else { return false };
        let stat = root.join("proc").join(pid.trim()).join("stat");
        fs::read_to_string(stat).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Ends a service with a signal, such as `TERM` or `KILL`, and waits until it has ended.
    ///
    /// # Errors
    /// It was never started, or does not end within half a minute.
    pub fn stop_service(&self, service: &str, signal: &str) -> Result<()> {
        let pid = fs::read_to_string(self.root().join(pid_file(service)))
            .with_context(|| format!("{service} was never started in {}", self.name))?;
        if self.is_running(service) {
            self.run(["kill", &format!("-{signal}"), pid.trim()])?;
        }
        // Gone, not only a zombie: other threads of one may still hold its sockets.
        let process = self.root().join("proc").join(pid.trim());
        let ended = || Ok((!process.exists()).then_some(()));
        process::wait_for(Duration::from_secs(30), ended)
            .with_context(|| format!("{service} of {} ignores {signal}", self.name))
    }

    /// The number of a service's process, as the host sees it.
    #[must_use]
    pub fn service_pid(&self, service: &str) -> Option<i32> {
        let inside = fs::read_to_string(self.root().join(pid_file(service))).ok()?;
        let inside = inside.trim();
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.pid())).ok()?;
        let numbers = fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_it = |pid: &i32| {
            let same = fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == namespace);
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            same && own.and_then(|numbers| numbers.split_whitespace().last()) == Some(inside)
        };
        numbers.into_iter().find(is_it)
    }

    /// The file on the host with what a service printed.
    #[must_use]
    pub fn log(&self, service: &str) -> PathBuf {
        log_path(&self.logs, &self.name, service)
    }

    /// The last lines of a service's log, for messages.
    #[must_use]
    pub fn log_end(&self, service: &str) -> String {
        let path = self.log(service);
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        let end: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of {}:\n{}", path.display(), end.join("\n"))
    }

    /// Copies images from an archive into the node's containerd.
    ///
    /// # Errors
    /// The archive is not one, or containerd does not run.
    pub fn import_image(&self, archive: &Path, snapshotter: &str) -> Result<()> {
        let file =
            File::open(archive).with_context(|| format!("failed to open {}", archive.display()))?;
        let words =
            ["--namespace", "k8s.io", "images", "import", "--snapshotter", snapshotter, "-"];
        let output = self.command("ctr").args(words).stdin(file).output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{} does not take {}: {}", self.name, archive.display(), stderr.trim());
        }
        Ok(())
    }

    /// Ends it with all that runs in it.
    pub(crate) fn kill(&self) -> Result<()> {
        self.init.kill()?;
        self.outer.kill()
    }
}

fn pid_file(service: &str) -> String {
    format!("run/larder-{service}.pid")
}

fn words_file(service: &str) -> String {
    format!("run/larder-{service}.json")
}

fn log_path(logs: &Path, machine: &str, service: &str) -> PathBuf {
    logs.join(format!("{machine}-{service}.log"))
}

fn open_log(logs: &Path, machine: &str, service: &str) -> Result<File> {
    fs::create_dir_all(logs)?;
    let path = log_path(logs, machine, service);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))
}
