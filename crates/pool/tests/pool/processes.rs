//! Real processes on one pool: hand-over, `kill -9`, never two at a time.
//!
//! A test starts this very test program again, asking for the same test by name; the environment
//! tells the copy that it is the other process.

use crate::support::{
    Bench, Calls, FakeMedium, copied, file_names, settled, sized, snapshot, snapshot_spec, spec,
    volume,
};
use larder_host::Host;
use larder_model::{
    Backend, Bytes, Cx, Provision, Secrets,
    volume::{ContentSource, VolumeSpec},
};
use larder_pool::{LocalBackend, OwnerNote, PoolConfig};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

const DIR: &str = "LARDER_TEST_DIR";

/// The copy's part: the directory of the parent's bench.
fn called() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

#[allow(clippy::disallowed_methods, reason = "the test program itself, which has no fixed place")]
fn start(test: &str, bench: &Bench, environment: &[(&str, String)]) -> Process {
    let output =
        File::options().create(true).append(true).open(bench.path().join("output")).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("processes::{test}"), "--nocapture", "--test-threads=1"])
        .env(DIR, bench.path())
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .unwrap();
    Process(child)
}

/// Never outlives the test.
struct Process(Child);

impl Process {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A backend of the copy, over the parent's pools and tickets.
fn other(dir: &Path, shared: bool) -> LocalBackend<FakeMedium> {
    let note = OwnerNote::this("other.example", Some("unix:///other.sock".to_owned()));
    let pools: BTreeMap<_, _> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let config = PoolConfig { create: true, shared, ..PoolConfig::new(dir.join(name)) };
            (name.parse().unwrap(), config)
        })
        .collect();
    let medium = FakeMedium::new(&dir.join("tickets"));
    LocalBackend::new(medium, Host::real(), note, pools).unwrap()
}

fn say(dir: &Path, line: &str) {
    let mut log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    log.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn log(bench: &Bench) -> Vec<String> {
    let text = std::fs::read_to_string(bench.path().join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// What the copies have to say is shown when it does not happen.
async fn wait_for(what: &str, bench: &Bench, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        let output = || std::fs::read_to_string(bench.path().join("output")).unwrap_or_default();
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} did not happen: {}", output());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_successor_waits_and_takes_over_when_the_owner_is_killed() {
    if let Some(dir) = called() {
        let backend = other(&dir, false);
        backend.start(&Cx::new()).await.unwrap();
        backend.create(&spec("a/theirs")).await.unwrap();
        say(&dir, "serving");
        std::future::pending::<()>().await;
    }
    let bench = Bench::default();
    let mut process =
        start("a_successor_waits_and_takes_over_when_the_owner_is_killed", &bench, &[]);
    wait_for("serving", &bench, || log(&bench) == ["serving"]).await;
    let owner = larder_pool::owner(&bench.pool("a")).unwrap().unwrap();
    assert_eq!(owner.pid, process.0.id());
    assert_eq!(owner.driver, "other.example");
    assert_eq!(owner.endpoint.as_deref(), Some("unix:///other.sock"));

    let backend = bench.stopped();
    let (starting, pause) = (backend.clone(), Duration::from_millis(400));
    let waiting = tokio::time::timeout(pause, async move { starting.start(&Cx::new()).await });
    waiting.await.expect_err("it waits while the owner lives");
    assert!(backend.get("a/theirs").await.is_err(), "and serves nothing meanwhile");

    let mut starting = tokio::task::JoinSet::new();
    let successor = backend.clone();
    starting.spawn(async move { successor.start(&Cx::new()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    process.kill();
    starting.join_next().await.unwrap().unwrap().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(20), "took {:?}", killed.elapsed());
    backend.get("a/theirs").await.unwrap();
    backend.create(&spec("a/ours")).await.unwrap();
    let owner = larder_pool::owner(&bench.pool("a")).unwrap().unwrap();
    assert_eq!(owner.pid, std::process::id());
}

#[tokio::test]
async fn many_processes_own_the_pool_one_after_the_other() {
    if let Some(dir) = called() {
        let me = std::process::id();
        for round in 0..3 {
            let backend = other(&dir, false);
            backend.start(&Cx::new()).await.unwrap();
            say(&dir, &format!("{me} begins"));
            backend.create(&spec(&format!("a/v{me}-{round}"))).await.unwrap();
            say(&dir, &format!("{me} ends"));
            backend.stop().await;
        }
        say(&dir, "done");
        return;
    }
    let bench = Bench::default();
    let name = "many_processes_own_the_pool_one_after_the_other";
    let mut all: Vec<_> = (0..4).map(|_| start(name, &bench, &[])).collect();
    wait_for("the end", &bench, || log(&bench).iter().filter(|line| *line == "done").count() == 4)
        .await;
    all.iter_mut().for_each(Process::kill);
    let log: Vec<_> = log(&bench).into_iter().filter(|line| line != "done").collect();
    assert_eq!(log.len(), 24);
    for pair in log.chunks(2) {
        let (begins, ends) = (pair[0].split_once(' ').unwrap(), pair[1].split_once(' ').unwrap());
        assert_eq!((begins.0, begins.1, ends.1), (ends.0, "begins", "ends"), "{log:?}");
    }
    let backend = bench.start().await;
    assert_eq!(backend.ids().await.len(), 12);
    assert_eq!(bench.state().len(), 12);
}

/// A life of a few volumes; each line of the log is an acknowledgement.
async fn life(backend: &LocalBackend<FakeMedium>, dir: &Path) {
    let cx = Cx::new();
    let restore = VolumeSpec {
        source: Some(ContentSource::Snapshot(snapshot("a/s"))),
        ..sized("b/restored", Bytes::mib(16), None)
    };
    let clone = copied("a/clone", ContentSource::Volume(volume("a/v")));
    let snapshots = backend.snapshots().unwrap();
    let expand = backend.expand().unwrap();
    let secrets = Secrets::default();
    backend.ensure_volume(&sized("a/v", Bytes::mib(8), None), &cx).await.unwrap();
    say(dir, "v");
    snapshots.ensure_snapshot(&snapshot_spec("a/s", "a/v"), &cx).await.unwrap();
    say(dir, "s");
    backend.ensure_volume(&clone, &cx).await.unwrap();
    say(dir, "clone");
    backend.ensure_volume(&restore, &cx).await.unwrap();
    say(dir, "restored");
    let range = larder_model::CapacityRange { required: Bytes::mib(32), limit: None };
    expand.expand_volume(&volume("a/v"), range, &secrets, &cx).await.unwrap();
    say(dir, "grown");
    backend.delete_volume(&volume("a/clone"), &secrets, &cx).await.unwrap();
    say(dir, "clone gone");
    snapshots.delete_snapshot(&snapshot("a/s"), &secrets, &cx).await.unwrap();
    say(dir, "s gone");
}

#[tokio::test]
async fn a_process_killed_at_any_step_loses_nothing_it_has_acknowledged() {
    let name = "a_process_killed_at_any_step_loses_nothing_it_has_acknowledged";
    if let Some(dir) = called() {
        let backend = other(&dir, false);
        backend.start(&Cx::new()).await.unwrap();
        life(&backend, &dir).await;
        say(&dir, "end");
        return;
    }
    let mut crashes = 0;
    for step in 1.. {
        let bench = Bench::default();
        let at = [("LARDER_CRASH_AT", step.to_string())];
        let mut process = start(name, &bench, &at);
        let status = process.0.wait().unwrap();
        let acknowledged = log(&bench);
        if acknowledged.last().is_some_and(|line| line == "end") {
            break;
        }
        assert!(!status.success(), "killed");
        crashes += 1;
        let backend = bench.start().await;
        let said = |line: &str| acknowledged.iter().any(|said| said == line);
        let (ids, snapshots) = (backend.ids().await, backend.snapshot_ids().await);
        let has = |id: &str| ids.iter().any(|there| there == id);
        assert!(has("a/v") || !said("v"), "step {step}");
        assert!(has("a/clone") || !said("clone") || acknowledged.len() >= 5, "step {step}");
        assert!(has("b/restored") || !said("restored"), "step {step}");
        assert!(!has("a/clone") || !said("clone gone"), "step {step}");
        assert!(!snapshots.is_empty() || !said("s") || acknowledged.len() >= 6, "step {step}");
        if said("grown") {
            assert_eq!(backend.get("a/v").await.unwrap().capacity, Bytes::mib(32));
        }
        // The callers ask again for everything; it comes to the same.
        if !has("b/restored") || has("a/clone") || !snapshots.is_empty() {
            life(&backend, &bench.path()).await;
        }
        settled(&bench).await;
        let state = bench.state();
        assert_eq!(state.keys().collect::<Vec<_>>(), ["volumes a/v", "volumes b/restored"]);
    }
    assert!(crashes > 30, "but {crashes} steps");
}

#[tokio::test]
async fn two_processes_share_a_shared_pool() {
    let name = "two_processes_share_a_shared_pool";
    if let Some(dir) = called() {
        let backend = other(&dir, true);
        backend.start(&Cx::new()).await.unwrap();
        let me = std::process::id();
        for n in 0..20 {
            // All of us want `same`; each gets it, made once. `own` is ours.
            for asked in [spec(&format!("a/same{n}")), spec(&format!("a/own{n}-{me}"))] {
                while let Err(fault) = backend.create(&asked).await {
                    assert_eq!(fault.kind(), larder_model::Kind::Unavailable, "{fault}");
                }
            }
            backend.delete(&format!("a/own{n}-{me}")).await.unwrap();
        }
        say(&dir, "done");
        return;
    }
    let mut bench = Bench::default();
    for pool in ["a", "b"] {
        bench.change(pool, |config| config.shared = true);
    }
    let all: Vec<_> = (0..3).map(|_| start(name, &bench, &[])).collect();
    let backend = bench.start().await;
    wait_for("the end", &bench, || log(&bench).len() == 3).await;
    drop(all);
    assert_eq!(backend.ids().await.len(), 20, "what the others made is seen at once");
    assert_eq!(larder_pool::owner(&bench.pool("a")).unwrap(), None);
    settled(&bench).await;
    assert_eq!(bench.state().len(), 20);
    let locks = file_names(&bench.pool("a").join(".larder/locks"));
    assert!(locks.iter().all(|lock| lock.contains("same")), "locks go with volumes: {locks:?}");
}

#[tokio::test]
async fn a_node_of_a_shared_pool_leaves_the_others_work_alone() {
    let name = "a_node_of_a_shared_pool_leaves_the_others_work_alone";
    if let Some(dir) = called() {
        let backend = other(&dir, true);
        backend.start(&Cx::new()).await.unwrap();
        backend.create(&spec("a/v")).await.unwrap();
        let log_dir = dir.clone();
        backend.medium().knobs.lock().unwrap().while_copying = Some(Box::new(move || {
            say(&log_dir, "copying");
            while !log_dir.join("go").exists() {
                std::hint::spin_loop();
            }
        }));
        let clone = copied("a/clone", ContentSource::Volume(volume("a/v")));
        backend.create(&clone).await.unwrap();
        say(&dir, "copied");
        std::future::pending::<()>().await;
    }
    let mut bench = Bench::default();
    for pool in ["a", "b"] {
        bench.change(pool, |config| config.shared = true);
    }
    let mut process = start(name, &bench, &[]);
    wait_for("copying", &bench, || log(&bench) == ["copying"]).await;
    let backend = bench.start().await;
    let site = bench.pool("a").join("creating/volume-clone");
    assert!(site.exists(), "a start does not clear what another node is building");
    // Neither is its source deleted, nor its name taken.
    let fault = backend.delete("a/v").await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Unavailable, "{fault}");
    let fault = backend.create(&spec("a/clone")).await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Unavailable, "{fault}");
    std::fs::write(bench.path().join("go"), "").unwrap();
    wait_for("copied", &bench, || log(&bench).len() == 2).await;
    backend.get("a/clone").await.unwrap();
    process.kill();
    backend.delete("a/v").await.unwrap();
    // What a killed node left is cleared by the next start of any.
    std::fs::create_dir(bench.pool("a").join("creating/volume-dead")).unwrap();
    let missing = copied("a/never", ContentSource::Volume(volume("a/none")));
    backend.create(&missing).await.unwrap_err();
    drop(backend);
    let _backend = bench.start().await;
    settled(&bench).await;
    assert_eq!(bench.state().len(), 1);
    let locks = bench.pool("a").join(".larder/locks");
    let only = || file_names(&locks).iter().map(String::as_str).eq(["volume-clone.use"]);
    wait_for("the end of locks without volumes", &bench, only).await;
}
