//! `larder serve`: without a file, its pages, its signals, its logs, its end.

use crate::support::{Server, Site, program};
use larder_csi::Endpoint;
use larder_proto::csi;
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// A log file of a server, read as it grows.
struct Log(std::path::PathBuf);

impl Log {
    fn of(dir: &Path) -> Self {
        Self(dir.join("serve.log"))
    }
    fn write_into(&self, command: &mut Command) {
        command.stderr(std::fs::File::create(&self.0).unwrap());
    }
    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }
    /// Waits for a line with that in it.
    async fn line(&self, wanted: &str) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(line) = self.text().lines().find(|line| line.contains(wanted)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {wanted:?} in\n{}", self.text());
    }
}

fn endpoint(dir: &Path) -> Endpoint {
    dir.join("run/csi.sock").to_str().unwrap().parse().unwrap()
}

/// `larder serve` without a file, over a directory of its own.
fn serve(dir: &Path, more: &[&str]) -> Command {
    let mut command = program();
    command.args(["serve", "--backend", "dir", "--node", "n1", "--pool"]).arg(dir.join("pool"));
    command.arg("--state-dir").arg(dir.join("state")).args(more);
    command
}

/// Status and body of a page.
fn get(address: &str, page: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

async fn address(log: &Log) -> String {
    let line = log.line("http is served").await;
    line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_backend_a_pool_and_an_endpoint_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(dir.path());
    let socket = endpoint.to_string();
    // Once by flag and once by environment, as sidecars and csi-sanity do.
    for by_flag in [true, false] {
        let mut command = serve(dir.path(), &["--name", "my.driver"]);
        match by_flag {
            true => command.args(["--endpoint", &socket]),
            false => command.env("CSI_ENDPOINT", &socket),
        };
        let log = Log::of(dir.path());
        log.write_into(&mut command);
        let mut server = Server::run(&mut command, &endpoint);
        assert!(server.ready().await, "{}", log.text());
        assert!(dir.path().join("pool/larder-pool.json").exists());
        let info = server.client.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await;
        assert_eq!(info.unwrap().into_inner().name, "my.driver");
        let node = server.client.node().node_get_info(csi::NodeGetInfoRequest {}).await;
        assert_eq!(node.unwrap().into_inner().node_id, "n1");
        assert!(server.stop().success());
        assert!(!endpoint.path().exists(), "the socket stayed");
    }
}

#[tokio::test]
async fn its_pages_tell_metrics_life_and_readiness() {
    let dir = tempfile::tempdir().unwrap();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let pool = dir.path().join("pool");
    let init = program().args(["pool", "init", "--backend", "dir", "--path"]).arg(&pool).output();
    assert!(init.unwrap().status.success());
    std::fs::create_dir_all(pool.join(".larder")).unwrap();
    let lock = pool.join(".larder/lock");
    let held = larder_host::lock::FileLock::try_exclusive(&lock).unwrap().unwrap();

    let socket = endpoint.to_string();
    let mut command = serve(dir.path(), &["--endpoint", &socket, "--http", "127.0.0.1:0"]);
    log.write_into(&mut command);
    let mut server = Server::run(&mut command, &endpoint);
    let address = address(&log).await;
    // Alive, but it waits for the pool: killing it would not help.
    assert_eq!(get(&address, "/healthz").0, 200);
    let (status, why) = get(&address, "/readyz");
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("dir.csi.larder.dev"), "{why}");

    drop(held);
    assert!(server.ready().await);
    assert_eq!(get(&address, "/readyz").0, 200);
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, 200);
    for wanted in [
        "application/openmetrics-text",
        "csi_plugin_operations_seconds_count{driver_name=\"dir.csi.larder.dev\",\
         method_name=\"/csi.v1.Identity/Probe\",grpc_status_code=\"OK\"}",
        "larder_calls_running{driver_name=\"dir.csi.larder.dev\"} 0",
        "# EOF",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in\n{metrics}");
    }
    assert_eq!(get(&address, "/nonsense").0, 404);
    assert!(server.stop().success());
}

#[tokio::test]
async fn sighup_raises_the_log_level_and_the_next_one_restores_what_was_configured() {
    let dir = tempfile::tempdir().unwrap();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let socket = endpoint.to_string();
    let level = "warn,larder=info";
    let mut command = serve(dir.path(), &["--endpoint", &socket, "--log-level", level]);
    log.write_into(&mut command);
    let mut server = Server::run(&mut command, &endpoint);
    assert!(server.ready().await);
    assert!(!log.text().contains("call done"), "{}", log.text());

    server.signal(Signal::HUP);
    log.line("level=\"debug\"").await;
    assert!(server.ready().await);
    log.line("call done").await;

    server.signal(Signal::HUP);
    let until = Instant::now() + Duration::from_secs(60);
    let admin = || server.client.admin();
    loop {
        // Setting what it is tells what it was.
        let asked = larder_proto::larder::SetLogLevelRequest { filter: level.to_owned() };
        let before = admin().set_log_level(asked).await.unwrap().into_inner().previous;
        let mut parts: Vec<_> = before.split(',').collect();
        parts.sort_unstable();
        if parts == ["larder=info", "warn"] {
            break;
        }
        assert!(before == "debug" && Instant::now() < until, "{before}");
        server.signal(Signal::HUP);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.stop().success());
}

#[tokio::test]
async fn logs_in_a_file_have_no_colours_and_no_warnings_of_what_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let socket = endpoint.to_string();
    let mut command = serve(dir.path(), &["--endpoint", &socket]);
    log.write_into(&mut command);
    let mut server = Server::run(&mut command, &endpoint);
    assert!(server.ready().await);
    let mut controller = server.client.controller();
    let unknown = csi::ControllerModifyVolumeRequest {
        volume_id: "default/a".to_owned(),
        ..Default::default()
    };
    let status = controller.controller_modify_volume(unknown).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    let absent = csi::ControllerGetVolumeRequest { volume_id: "default/absent".to_owned() };
    assert!(controller.controller_get_volume(absent).await.is_err());
    assert!(server.stop().success());
    let text = log.text();
    assert!(text.contains("code=\"NotFound\""), "{text}");
    assert!(!text.contains("Unimplemented"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn json_logs_are_one_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let socket = endpoint.to_string();
    let mut command = serve(dir.path(), &["--endpoint", &socket, "--log-format", "json"]);
    log.write_into(&mut command);
    let mut server = Server::run(&mut command, &endpoint);
    assert!(server.ready().await);
    assert!(server.stop().success());
    let lines: Vec<serde_json::Value> =
        log.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ready = lines.iter().find(|line| line["message"] == "ready").unwrap();
    assert_eq!(ready["driver"], "dir.csi.larder.dev");
    assert_eq!(ready["level"], "INFO");
}

#[tokio::test]
async fn what_cannot_be_served_ends_it_with_a_status_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("run"), "a file where the socket's folder would be").unwrap();
    let log = Log::of(dir.path());
    let endpoint = endpoint(dir.path());
    let mut command = serve(dir.path(), &["--endpoint", &endpoint.to_string()]);
    log.write_into(&mut command);
    let status = Server::run(&mut command, &endpoint).wait();
    assert!(!status.success(), "{}", log.text());
    let last = log.text().lines().last().unwrap().to_owned();
    assert!(last.starts_with("larder: failed to serve driver dir.csi.larder.dev"), "{last}");
    assert!(last.contains("run"), "{last}");
}

#[test]
fn one_endpoint_cannot_be_that_of_two_drivers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let driver = |name: &str| {
        format!(
            "- {{name: {name}, backend: dir, endpoint: '{0}/{name}/s.sock', pools: {{p: {{path: '{0}/{name}-pool'}}}}}}\n",
            dir.path().display()
        )
    };
    std::fs::write(&file, format!("node: n\ndrivers:\n{}{}", driver("a"), driver("b"))).unwrap();
    let endpoint = endpoint(dir.path()).to_string();
    for by_flag in [true, false] {
        let mut command = program();
        command.args(["serve", "--config"]).arg(&file);
        match by_flag {
            true => command.args(["--endpoint", &endpoint]),
            false => command.env("CSI_ENDPOINT", &endpoint),
        };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains("2 drivers") && said.contains("CSI_ENDPOINT"), "{said}");
    }
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = endpoint(dir.path());
    let mut best = Duration::MAX;
    // Machines are busy at times; one good stop proves that nothing waits for a clock.
    for _ in 0..5 {
        let log = Log::of(dir.path());
        let mut command = serve(dir.path(), &["--endpoint", &endpoint.to_string()]);
        log.write_into(&mut command);
        let mut server = Server::run(&mut command, &endpoint);
        log.line("ready").await;
        let start = Instant::now();
        assert!(server.stop().success());
        best = best.min(start.elapsed());
        if best < Duration::from_millis(500) {
            return;
        }
    }
    panic!("the fastest stop took {best:?}");
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_nothing_that_keeps_the_next_one_away() {
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    site.ok(&["volume", "create", "a"]);
    let here = site.path("here");
    site.ok(&["volume", "mount", "a", here.to_str().unwrap()]);
    std::fs::write(here.join("file"), "precious").unwrap();
    server.kill();
    assert!(site.endpoint().path().exists(), "nobody removes the socket of a killed process");
    // Without a server, with the socket's left-over in place.
    assert!(site.ok(&["volume", "ls"]).contains("here"));
    let mut next = site.server();
    assert!(next.ready().await);
    assert_eq!(std::fs::read(here.join("file")).unwrap(), b"precious");
    site.ok(&["volume", "unmount", "a"]);
    assert!(next.stop().success());
}

#[tokio::test]
async fn an_http_address_that_is_taken_ends_it_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let socket = endpoint.to_string();
    let mut command = serve(dir.path(), &["--endpoint", &socket, "--http", &address]);
    log.write_into(&mut command);
    assert_eq!(Server::run(&mut command, &endpoint).wait().code(), Some(5));
    let last = log.text().lines().last().unwrap().to_owned();
    assert!(last.contains(&address) && last.contains("--http"), "{last}");
    assert!(!endpoint.path().exists());
}

#[tokio::test]
async fn a_server_that_waits_for_a_pool_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    let init = program().args(["pool", "init", "--backend", "dir", "--path"]).arg(&pool).output();
    assert!(init.unwrap().status.success());
    std::fs::create_dir_all(pool.join(".larder")).unwrap();
    let lock = pool.join(".larder/lock");
    let held = larder_host::lock::FileLock::try_exclusive(&lock).unwrap().unwrap();
    let (log, endpoint) = (Log::of(dir.path()), endpoint(dir.path()));
    let mut command = serve(dir.path(), &["--endpoint", &endpoint.to_string()]);
    log.write_into(&mut command);
    let mut server = Server::run(&mut command, &endpoint);
    log.line("listening").await;
    assert!(server.stop().success(), "{}", log.text());
    assert!(!endpoint.path().exists());
    drop(held);
}

#[tokio::test]
async fn a_server_writes_no_core_file_since_secrets_of_requests_would_be_in_it() {
    let site = Site::new("dir", "ext4");
    let mut server = site.server();
    assert!(server.ready().await);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(server.stop().success());
}
