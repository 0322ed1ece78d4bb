//! A real server over a real pool, for the tests of the program.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests start the program as a user would")]

pub(crate) mod leaks;
pub(crate) mod pool;

use larder_csi::{Client, Endpoint};
use larder_proto::csi::{self, volume_capability::access_mode::Mode};
use pool::Pool;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

pub(crate) const DRIVER: &str = "test.csi.larder.dev";

/// A pool, a configuration, and the paths that belong to it.
pub(crate) struct Site {
    pub(crate) pool: Pool,
    pub(crate) backend: &'static str,
    pub(crate) driver: String,
    pub(crate) dir: tempfile::TempDir,
    /// The file system of the pool.
    disk: u64,
}

impl Site {
    /// A site of `backend` on a new file system of that kind.
    pub(crate) fn new(backend: &'static str, fs: &str) -> Self {
        Self::named(DRIVER, backend, fs)
    }

    /// The same, on a file system of that size.
    pub(crate) fn sized(backend: &'static str, fs: &str, size: larder_model::Bytes) -> Self {
        Self::made(DRIVER, backend, |folder| Pool::sized(folder, fs, size))
    }

    /// The same, with a driver of that name.
    pub(crate) fn named(driver: &str, backend: &'static str, fs: &str) -> Self {
        Self::made(driver, backend, |folder| Pool::new(folder, fs))
    }

    /// The same with its disk in memory, where there is enough: for tests that ask what is done, not what
    /// a power cut leaves, of many sites.
    pub(crate) fn in_memory(backend: &'static str, fs: &str) -> Self {
        const ENOUGH: u64 = 4 << 30;
        let memory = Path::new("/dev/shm");
        let free = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail * s.f_frsize);
        let folder = if free >= ENOUGH { memory.to_owned() } else { std::env::temp_dir() };
        Self::made_in(&folder, DRIVER, backend, |folder| Pool::new(folder, fs))
    }

    fn made(driver: &str, backend: &'static str, pool: impl FnOnce(&Path) -> Pool) -> Self {
        Self::made_in(&std::env::temp_dir(), driver, backend, pool)
    }

    fn made_in(
        folder: &Path,
        driver: &str,
        backend: &'static str,
        pool: impl FnOnce(&Path) -> Pool,
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("larder-test-").tempdir_in(folder).unwrap();
        let pool = pool(&dir.path().join("disk"));
        let disk = std::fs::metadata(pool.path().parent().unwrap()).unwrap().dev();
        let site = Self { pool, backend, driver: driver.to_owned(), dir, disk };
        site.configure(&site.config(), &site.endpoint());
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// The device number of the file system that holds its pool.
    pub(crate) fn disk(&self) -> u64 {
        self.disk
    }
    pub(crate) fn config(&self) -> PathBuf {
        self.path("config.yaml")
    }
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.path("run/csi.sock").to_str().unwrap().parse().unwrap()
    }

    /// Writes a configuration for this pool with another endpoint.
    pub(crate) fn configure(&self, file: &Path, endpoint: &Endpoint) {
        // Not ext4: growing it while mounted takes CAP_SYS_RESOURCE, which not every machine gives.
        let fs = if self.backend == "loop" { ", fs: xfs" } else { "" };
        let cgroup = match self.path("cgroup") {
            path if path.is_dir() => format!("cgroup: {}\n", path.display()),
            _ => String::new(),
        };
        let yaml = format!(
            "node: n1\nstateDir: {}\n{cgroup}drivers:\n- name: {}\n  backend: {}\n  endpoint: {endpoint}\n  \
             pools:\n    default: {{ path: {}, create: true{fs} }}\n",
            self.path("state").display(),
            self.driver,
            self.backend,
            self.pool.path().display(),
        );
        std::fs::write(file, yaml).unwrap();
    }

    /// Has limits written into files of its own that look like a cgroup's, whatever this machine has.
    pub(crate) fn limit_in_files(&self) {
        std::fs::create_dir(self.path("cgroup")).unwrap();
        for kind in ["read_bps", "write_bps", "read_iops", "write_iops"] {
            let file = format!("cgroup/blkio.throttle.{kind}_device");
            std::fs::write(self.path(&file), "").unwrap();
        }
        self.configure(&self.config(), &self.endpoint());
    }
    /// What they say of bytes read.
    pub(crate) fn read_limits(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.path("cgroup/blkio.throttle.read_bps_device"));
        let numbers = text.unwrap_or_default();
        let numbers = numbers.lines().filter_map(|line| line.split_once(' ')?.1.parse().ok());
        numbers.filter(|number| *number > 0).collect()
    }

    /// Runs `larder ARGUMENTS` against this site.
    pub(crate) fn larder(&self, arguments: &[&str]) -> Output {
        larder(&self.config(), arguments)
    }

    /// The same; it must succeed. Returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.larder(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "larder {}: {error}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same; it must fail with that exit status. Returns what it said.
    pub(crate) fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.larder(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "larder {}: {error}", arguments.join(" "));
        error
    }

    pub(crate) fn server(&self) -> Server {
        Server::start(&self.config(), &self.endpoint(), &[])
    }

    /// Stages a volume at `staging` and publishes it at `target`, as kubelet does.
    pub(crate) async fn stage_and_publish(
        &self,
        server: &Server,
        volume: &csi::Volume,
        capability: &csi::VolumeCapability,
        target: &Path,
    ) {
        let staging = self.path("staging").display().to_string();
        let stage = csi::NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.clone(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        server.client.node().node_stage_volume(stage).await.unwrap();
        let publish = csi::NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging,
            target_path: target.display().to_string(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        server.client.node().node_publish_volume(publish).await.unwrap();
    }

    /// A server that kills itself at its `n`-th step.
    pub(crate) fn server_that_crashes_at(&self, n: u32) -> Server {
        let at = n.to_string();
        Server::spawn(&self.config(), &self.endpoint(), &[("LARDER_CRASH_AT", &at)])
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        leaks::release(self.dir.path(), self.disk);
    }
}

pub(crate) fn larder(config: &Path, arguments: &[&str]) -> Output {
    program().args(arguments).env("LARDER_CONFIG", config).output().unwrap()
}

/// A shell, for what only a shell can be asked.
pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

/// The program, with nothing of this process's environment that changes what it does.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    for variable in
        ["LARDER_CONFIG", "LARDER_DRIVER", "LARDER_LOG", "CSI_ENDPOINT", "NODE_NAME", "NO_COLOR"]
    {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// A running `larder serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    endpoint: Endpoint,
    pub(crate) client: Client,
}

impl Server {
    pub(crate) fn spawn(config: &Path, endpoint: &Endpoint, env: &[(&str, &str)]) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(config.with_extension("log"))
            .unwrap();
        let mut command = program();
        command.args(["serve", "--config"]).arg(config).envs(env.iter().copied());
        Self::run(command.stderr(log), endpoint)
    }

    /// Starts that command, which serves `endpoint`.
    pub(crate) fn run(command: &mut Command, endpoint: &Endpoint) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Self { child, endpoint: endpoint.clone(), client: Client::connect(endpoint).unwrap() }
    }

    pub(crate) fn start(config: &Path, endpoint: &Endpoint, env: &[(&str, &str)]) -> Self {
        Self::spawn(config, endpoint, env)
    }

    /// Waits until it is ready. False: it ended.
    pub(crate) async fn ready(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // A connection that failed once backs off: ask through a new one.
            self.client = Client::connect(&self.endpoint).unwrap();
            let probe = self.client.identity().probe(csi::ProbeRequest {}).await;
            if probe.is_ok_and(|p| p.into_inner().ready == Some(true)) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server did not get ready");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }
    /// Waits for its end without asking for it.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One way of using a volume, for the requests below.
pub(crate) fn capability(block: bool, fs: &str) -> csi::VolumeCapability {
    match block {
        true => csi::VolumeCapability::raw_block(Mode::SingleNodeWriter),
        false => csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter),
    }
}

pub(crate) fn create(
    name: &str,
    bytes: i64,
    capability: csi::VolumeCapability,
) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        ..Default::default()
    }
}

/// What `written` holds has the shape of the sample, as far as that goes. Returns the sample with
/// what only this machine can know, where it says `$`.
pub(crate) fn filled(sample: &Value, written: &Value, at: &str) -> Value {
    match (sample, written) {
        (Value::String(any), _) if any == "$" => written.clone(),
        (Value::Object(sample), Value::Object(written)) => {
            let of = |(key, value): (&String, &Value)| {
                let at = format!("{at}.{key}");
                let written = written.get(key).unwrap_or_else(|| panic!("{at} is not written"));
                (key.clone(), filled(value, written, &at))
            };
            sample.iter().map(of).collect::<serde_json::Map<_, _>>().into()
        }
        (Value::Array(sample), Value::Array(written)) => {
            assert_eq!(sample.len(), written.len(), "{at}");
            let both = sample.iter().zip(written);
            both.map(|(sample, written)| filled(sample, written, at)).collect()
        }
        _ => {
            assert_eq!(sample, written, "{at}");
            sample.clone()
        }
    }
}
