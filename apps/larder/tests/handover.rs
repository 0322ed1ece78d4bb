//! Two processes on one pool, and the replacement of one by the other: nobody works in a pool that
//! somebody else owns, and no mount is ever disturbed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "the workload is a thread of its own")]

mod support;

use larder_proto::csi;
use rstest::rstest;
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use support::{Server, Site, capability, create};
use tonic::Code;

const SIZE: i64 = 320 << 20;
const MOST: Duration = Duration::from_secs(60);

/// A workload: appends and syncs, again and again, and counts.
struct Workload {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Workload {
    fn on(file: PathBuf) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let is_device = std::fs::metadata(&file).is_ok_and(|m| m.file_type().is_block_device());
            let mut open = OpenOptions::new().create(!is_device).write(true).open(&file)?;
            while !stopped.load(Ordering::SeqCst) {
                open.write_all(&[7; 4096])?;
                open.sync_data()?;
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        Self { stop, done, thread: Some(thread) }
    }

    /// Waits until more is written.
    async fn goes_on(&self) {
        let (from, end) = (self.done.load(Ordering::SeqCst), Instant::now() + MOST);
        while self.done.load(Ordering::SeqCst) < from + 3 {
            assert!(Instant::now() < end, "the workload stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it: not one write may have failed.
    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A site whose volume `a` is published at `pods/target`.
async fn in_use(backend: &'static str, fs: &str, block: bool) -> (Site, Server) {
    let site = Site::new(backend, fs);
    for made in ["staging", "pods"] {
        std::fs::create_dir_all(site.path(made)).unwrap();
    }
    let mut server = site.server();
    assert!(server.ready().await);
    let capability = capability(block, "");
    let mut controller = server.client.controller();
    let made = controller.create_volume(create("a", SIZE, capability.clone())).await.unwrap();
    let volume = made.into_inner().volume.unwrap();
    site.stage_and_publish(&server, &volume, &capability, &target(&site)).await;
    (site, server)
}

fn target(site: &Site) -> PathBuf {
    site.path("pods/target")
}

async fn put_away(site: &Site, server: &Server) {
    let volume_id = "default/a".to_owned();
    let target_path = target(site).display().to_string();
    let request = csi::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
    server.client.node().node_unpublish_volume(request).await.unwrap();
    let staging_target_path = site.path("staging").display().to_string();
    let request =
        csi::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
    server.client.node().node_unstage_volume(request).await.unwrap();
    let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
    server.client.controller().delete_volume(request).await.unwrap();
}

/// How many volumes a server lists.
async fn count(server: &Server) -> usize {
    let request = csi::ListVolumesRequest::default();
    let listed = server.client.controller().list_volumes(request).await.unwrap();
    listed.into_inner().entries.len()
}

fn log_of(config: &Path) -> String {
    std::fs::read_to_string(config.with_extension("log")).unwrap_or_default()
}

#[rstest]
#[case::dir("dir", "xfs", false)]
#[case::loop_mount("loop", "xfs", false)]
#[case::loop_block("loop", "xfs", true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_replacement_disturbs_no_mount(
    #[case] backend: &'static str,
    #[case] fs: &str,
    #[case] block: bool,
) {
    let (site, mut server) = in_use(backend, fs, block).await;
    let file = if block { target(&site) } else { target(&site).join("log") };
    let workload = Workload::on(file);
    for orderly in [true, false, true] {
        // The successor starts while its predecessor serves, at the same socket.
        let mut successor = site.server();
        workload.goes_on().await;
        if orderly {
            assert!(server.stop().success());
        } else {
            server.kill();
        }
        assert!(successor.ready().await);
        workload.goes_on().await;
        server = successor;
    }
    // The successor knows the volume as its own: it grows under the workload.
    let request = csi::ControllerExpandVolumeRequest {
        volume_id: "default/a".to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = server.client.controller().controller_expand_volume(request).await.unwrap();
    if grown.into_inner().node_expansion_required {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: "default/a".to_owned(),
            volume_path: target(&site).display().to_string(),
            staging_target_path: site.path("staging").display().to_string(),
            volume_capability: Some(capability(block, "")),
            ..Default::default()
        };
        server.client.node().node_expand_volume(request).await.unwrap();
    }
    workload.goes_on().await;
    workload.end();
    put_away(&site, &server).await;
    assert!(server.stop().success());
    let left = support::leaks::find(site.dir.path(), site.pool.path());
    assert!(left.is_empty(), "{left:#?}");
}

#[tokio::test]
async fn the_second_process_on_a_pool_waits_names_the_first_and_takes_over_when_it_dies() {
    let site = Site::new("loop", "xfs");
    let mut first = site.server();
    assert!(first.ready().await);
    let (config, socket) = (site.path("second.yaml"), site.path("second/csi.sock"));
    site.configure(&config, &socket.to_str().unwrap().parse().unwrap());
    let mut second = Server::start(&config, &socket.to_str().unwrap().parse().unwrap(), &[]);
    let owner = format!("process {}", first.id());
    let end = Instant::now() + MOST;
    while !log_of(&config).contains(&owner) {
        assert!(Instant::now() < end, "it does not say who owns the pool: {}", log_of(&config));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is alive, not ready, and refuses work.
    let probe = second.client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(false));
    let mut controller = second.client.controller();
    let refused = controller.create_volume(create("b", SIZE, capability(true, ""))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    // The command line asks whoever owns the pool, by whichever configuration.
    let made = support::larder(&site.config(), &["volume", "create", "a", "--size", "16Mi"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    first.kill();
    assert!(second.ready().await);
    assert_eq!(count(&second).await, 1, "what the first acknowledged is there");
    assert!(second.stop().success());
}

#[tokio::test]
async fn a_command_beside_a_waiting_server_gets_the_pool_or_the_server_and_never_fails() {
    let site = Site::new("dir", "xfs");
    site.ok(&["pool", "init"]);
    for round in 0..5 {
        let mut server = site.server();
        // At the same moment: whoever is first has the pool.
        let names: Vec<_> = (0..4).map(|n| format!("v{round}-{n}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| site.ok(&["volume", "create", name, "--size", "1Mi"]));
            }
        });
        assert!(server.ready().await);
        assert!(server.stop().success());
    }
    let listed: Vec<serde_json::Value> =
        serde_json::from_str(&site.ok(&["volume", "ls", "-o", "json"])).unwrap();
    assert_eq!(listed.len(), 20);
}

#[tokio::test]
async fn calls_that_run_at_sigterm_are_finished_and_answered() {
    let site = Site::new("loop", "ext4");
    let mut server = site.server();
    assert!(server.ready().await);
    let block = capability(true, "");
    let mut running = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (client, block) = (server.client.clone(), block.clone());
        running.spawn(async move {
            let request = csi::CreateVolumeRequest {
                parameters: [("allocation".to_owned(), "preallocated".to_owned())].into(),
                ..create(&format!("v{n}"), 64 << 20, block)
            };
            client.controller().create_volume(request).await.map(|_| n)
        });
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    let mut acknowledged = Vec::new();
    for answer in running.join_all().await {
        match answer {
            Ok(n) => acknowledged.push(format!("default/v{n}")),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    assert!(stopping.await.unwrap().success());
    let listed: Vec<serde_json::Value> =
        serde_json::from_str(&site.ok(&["volume", "ls", "-o", "json"])).unwrap();
    for id in &acknowledged {
        assert!(listed.iter().any(|v| v["id"] == **id), "{id} was acknowledged and is lost");
    }
    // What was not acknowledged is there whole, or not at all.
    let half = std::fs::read_dir(site.pool.path().join("creating")).unwrap().count();
    assert_eq!(half, 0);
}

#[tokio::test]
async fn processes_that_share_a_pool_work_side_by_side() {
    let site = Site::new("dir", "xfs");
    let (one, two) = (site.path("one.yaml"), site.path("two.yaml"));
    let (first, second) = (site.path("one/csi.sock"), site.path("two/csi.sock"));
    for (config, socket, node) in [(&one, &first, "n1"), (&two, &second, "n2")] {
        let yaml = format!(
            "node: {node}\nstateDir: {state}\ndrivers:\n- name: {driver}\n  backend: dir\n  endpoint: \
             unix://{socket}\n  pools:\n    default: {{ path: {pool}, create: true, shared: true }}\n",
            state = site.path(&format!("state-{node}")).display(),
            driver = support::DRIVER,
            socket = socket.display(),
            pool = site.pool.path().display(),
        );
        std::fs::write(config, yaml).unwrap();
    }
    let endpoint = |socket: &PathBuf| socket.to_str().unwrap().parse().unwrap();
    let mut servers =
        [Server::start(&one, &endpoint(&first), &[]), Server::start(&two, &endpoint(&second), &[])];
    for server in &mut servers {
        assert!(server.ready().await);
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..10 {
        for server in &servers {
            let client = server.client.clone();
            calls.spawn(async move {
                let request = || create(&format!("v{n}"), 1 << 20, capability(false, ""));
                loop {
                    // The same name from both: who is second may be told to wait.
                    match client.controller().create_volume(request()).await {
                        Ok(made) => return made.into_inner().volume.unwrap().volume_id,
                        Err(status) if status.code() == Code::Aborted => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        Err(status) => panic!("v{n}: {status}"),
                    }
                }
            });
        }
    }
    let mut ids = calls.join_all().await;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 10, "each name is one volume: {ids:?}");
    for server in &servers {
        assert_eq!(count(server).await, 10);
    }
    // What one made the other deletes, and the first sees that.
    for id in ids {
        let request = csi::DeleteVolumeRequest { volume_id: id, ..Default::default() };
        servers[1].client.controller().delete_volume(request).await.unwrap();
    }
    assert_eq!(count(&servers[0]).await, 0);
}

#[tokio::test]
async fn a_live_socket_is_never_taken_and_a_dead_ones_file_is_replaced() {
    let site = Site::new("dir", "xfs");
    let mut first = site.server();
    assert!(first.ready().await);
    let inode = |path: PathBuf| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().ino()
    };
    let before = inode(site.path("run/csi.sock"));
    let mut second = site.server();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(inode(site.path("run/csi.sock")), before);
    second.kill();
    let probe = first.client.identity().probe(csi::ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(true), "the first goes on");
    first.kill();
    assert!(site.path("run/csi.sock").exists(), "a killed process leaves its socket");
    let mut third = site.server();
    assert!(third.ready().await);
    assert!(third.stop().success());
    assert!(!site.path("run/csi.sock").exists());
}
