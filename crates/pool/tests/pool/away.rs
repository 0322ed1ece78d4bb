//! Pools that are not there, go away, come back, or come back as something else.

use crate::support::{Bench, Calls, copied, file_names, spec, volume};
use larder_host::{BindRequest, Host};
use larder_model::{
    Backend, Connect, Cx, Fault, Kind, Provision,
    volume::{ContentSource, FormatState, Page},
};
use larder_pool::{LocalBackend, MountRule};
use std::fs;

type Pools = LocalBackend<crate::support::FakeMedium>;

/// What every call for a volume or snapshot in `a` answers.
async fn answers(backend: &Pools) -> Vec<(&'static str, Fault)> {
    let mut faults = Vec::new();
    let mut say =
        |what, result: larder_model::Result<()>| faults.extend(result.err().map(|f| (what, f)));
    say("create", backend.create(&spec("a/v")).await.map(drop));
    say("create another", backend.create(&spec("a/other")).await.map(drop));
    say("get", backend.get("a/v").await.map(drop));
    say("delete", backend.delete("a/v").await);
    say("delete none", backend.delete("a/none").await);
    say("grow", backend.grow("a/v", larder_model::Bytes::gib(2)).await.map(drop));
    say("cut", backend.cut("a/t", "a/v").await.map(drop));
    say("uncut", backend.uncut("a/s").await);
    say("clone", {
        let clone = copied("b/c", ContentSource::Volume(volume("a/v")));
        backend.create(&clone).await.map(drop)
    });
    say("health", backend.volume_health_of("a/v").await);
    say("state", backend.format_state(&volume("a/v")).await.map(drop));
    say("note", backend.set_format_state(&volume("a/v"), FormatState::Raw).await);
    say("capacity", {
        let capacity = Provision::capacity(backend).unwrap();
        capacity.capacity(&"a".parse().unwrap(), &Default::default()).await.map(drop)
    });
    faults
}

trait More {
    async fn volume_health_of(&self, id: &str) -> larder_model::Result<()>;
}
impl More for Pools {
    async fn volume_health_of(&self, id: &str) -> larder_model::Result<()> {
        Provision::health(self).unwrap().volume_health(&volume(id)).await.map(drop)
    }
}

async fn all_unavailable(backend: &Pools) {
    let faults = answers(backend).await;
    assert_eq!(faults.len(), 13, "every call failed: {faults:?}");
    for (call, fault) in faults {
        assert_eq!(fault.kind(), Kind::Unavailable, "{call}: {fault}");
        assert!(fault.hint_text().is_some(), "{call}: {fault}");
    }
    let status = &backend.pool_status().await[0];
    assert!(status.fault.is_some(), "{status:?}");
    assert!(backend.storage_health().await.iter().any(|h| h.unreachable));
}

async fn prepared(bench: &Bench) -> Pools {
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    backend
}

#[tokio::test]
async fn while_a_pool_is_away_every_call_says_so_and_nothing_is_made() {
    let bench = Bench::default();
    let backend = prepared(&bench).await;
    let (pool, aside) = (bench.pool("a"), bench.path().join("aside"));
    let before = bench.state();
    // Away altogether, a file, the empty directory below an unmounted file system.
    for round in 0..3 {
        fs::rename(&pool, &aside).unwrap();
        match round {
            0 => {}
            1 => fs::write(&pool, "").unwrap(),
            _ => fs::create_dir(&pool).unwrap(),
        }
        all_unavailable(&backend).await;
        let listed = backend.list().unwrap().list_volumes(&Page::default()).await;
        let fault = listed.unwrap_err();
        assert_eq!(fault.kind(), Kind::Unavailable, "a list without a/v would say it is gone");
        assert!(fault.to_string().contains("pool a"), "{fault}");
        backend.probe().await.unwrap();
        match round {
            0 => assert!(!pool.exists(), "nothing was made"),
            1 => fs::remove_file(&pool).unwrap(),
            _ => {
                assert!(file_names(&pool).is_empty(), "nothing was made: {:?}", file_names(&pool));
                fs::remove_dir(&pool).unwrap();
            }
        }
        fs::rename(&aside, &pool).unwrap();
        assert_eq!(backend.ids().await, ["a/v"], "it is back without a restart");
        assert_eq!(bench.state(), before);
    }
    backend.create(&spec("a/w")).await.unwrap();
    backend.delete("a/w").await.unwrap();
    assert!(backend.pool_status().await[0].fault.is_none());
    assert_eq!(bench.knobs().inspected, 2, "it was the same all the time: not loaded again");
}

#[tokio::test]
async fn a_list_without_any_readable_pool_is_not_an_empty_list() {
    let bench = Bench::new(&["a"]);
    let backend = prepared(&bench).await;
    fs::rename(bench.pool("a"), bench.path().join("aside")).unwrap();
    for after in [None, Some("a/a".to_owned())] {
        let page = Page { after, max: None };
        let volumes = backend.list().unwrap().list_volumes(&page).await;
        assert_eq!(volumes.unwrap_err().kind(), Kind::Unavailable);
        let snapshots = backend.snapshots().unwrap().list_snapshots(None, &page).await;
        assert_eq!(snapshots.unwrap_err().kind(), Kind::Unavailable);
    }
    assert_eq!(backend.probe().await.unwrap_err().kind(), Kind::Precondition);
}

#[tokio::test]
async fn a_list_fails_when_it_comes_to_a_pool_that_is_away_and_not_before_or_after() {
    let bench = Bench::default();
    let backend = prepared(&bench).await;
    for id in ["a/w", "b/x", "b/y"] {
        backend.create(&spec(id)).await.unwrap();
    }
    backend.cut("b/t", "b/x").await.unwrap();
    let page = |after: Option<&str>, max| Page { after: after.map(str::to_owned), max };
    let volumes = async |after: Option<&str>, max| {
        let listed = backend.list().unwrap().list_volumes(&page(after, max)).await?;
        let ids: Vec<_> = listed.items.iter().map(|v| v.id.to_string()).collect();
        Ok::<_, Fault>(ids.join(" "))
    };
    let snapshots = async |source| {
        let source = volume(source);
        let all = Page::default();
        let listed = backend.snapshots().unwrap().list_snapshots(Some(&source), &all).await?;
        Ok::<_, Fault>(listed.items.len())
    };
    let (pool, aside) = (bench.pool("b"), bench.path().join("aside"));
    fs::rename(&pool, &aside).unwrap();
    assert_eq!(volumes(None, Some(1)).await.unwrap(), "a/v", "the page ends before pool b");
    for (after, max) in [(None, None), (None, Some(2)), (Some("a/w"), Some(1)), (Some("b/x"), None)]
    {
        let kind = volumes(after, max).await.unwrap_err().kind();
        assert_eq!(kind, Kind::Unavailable, "{after:?} {max:?}");
    }
    assert_eq!(snapshots("a/v").await.unwrap(), 1);
    assert_eq!(snapshots("b/x").await.unwrap_err().kind(), Kind::Unavailable);
    fs::rename(&aside, &pool).unwrap();
    let (pool, aside) = (bench.pool("a"), bench.path().join("aside"));
    fs::rename(&pool, &aside).unwrap();
    assert_eq!(volumes(Some("b/x"), None).await.unwrap(), "b/y", "the walk is past pool a");
    assert_eq!(volumes(Some("a/v"), None).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(snapshots("b/x").await.unwrap(), 1);
    fs::rename(&aside, &pool).unwrap();
}

#[tokio::test]
async fn a_pool_that_is_away_at_the_start_is_opened_when_it_comes() {
    let mut bench = Bench::default();
    drop(prepared(&bench).await);
    bench.change("a", |config| config.create = false);
    let (pool, aside) = (bench.pool("a"), bench.path().join("aside"));
    fs::rename(&pool, &aside).unwrap();
    let backend = bench.start().await;
    all_unavailable(&backend).await;
    fs::rename(&aside, &pool).unwrap();
    backend.get("a/v").await.unwrap();
    // It is owned from then on.
    let owner = larder_pool::owner(&pool).unwrap().expect("somebody owns it");
    assert_eq!(owner.pid, std::process::id());
}

#[tokio::test]
async fn a_pool_without_identity_is_never_taken_for_a_new_one() {
    let mut bench = Bench::default();
    let backend = prepared(&bench).await;
    let identity = bench.pool("a").join("larder-pool.json");
    let text = fs::read(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    all_unavailable(&backend).await;
    drop(backend);
    // Not even by a start that may make pools: this directory is not empty.
    let backend = bench.start().await;
    all_unavailable(&backend).await;
    assert!(!identity.exists());
    fs::write(&identity, text).unwrap();
    backend.get("a/v").await.unwrap();
    drop(backend);
    bench.change("a", |config| config.create = false);
    bench.start().await.get("a/v").await.unwrap();
}

#[tokio::test]
async fn another_pool_in_its_place_is_refused_until_a_restart() {
    let bench = Bench::default();
    let backend = prepared(&bench).await;
    let (pool, aside) = (bench.pool("a"), bench.path().join("aside"));
    fs::rename(&pool, &aside).unwrap();
    larder_pool::init(&pool, "fake", false).unwrap();
    all_unavailable(&backend).await;
    let text = backend.get("a/v").await.unwrap_err().to_string();
    assert!(text.contains("it was") && text.contains("restart"), "{text}");
    assert_eq!(file_names(&pool).len(), 1, "only its identity: nothing was made in it");
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.get("a/v").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_pool_of_another_backend_or_release_is_refused() {
    let bench = Bench::default();
    let identity = bench.pool("a").join("larder-pool.json");
    larder_pool::init(&bench.pool("a"), "loop", false).unwrap();
    let backend = bench.start().await;
    all_unavailable(&backend).await;
    let text = backend.get("a/v").await.unwrap_err().to_string();
    assert!(text.contains("backend loop"), "{text}");
    drop(backend);
    let newer = fs::read_to_string(&identity).unwrap().replace("\"format\": 1", "\"format\": 2");
    fs::write(&identity, newer.replace("loop", "fake")).unwrap();
    let backend = bench.start().await;
    all_unavailable(&backend).await;
    let text = backend.get("a/v").await.unwrap_err().to_string();
    assert!(text.contains("format 2"), "{text}");
}

#[tokio::test]
async fn a_handle_of_a_pool_that_is_not_configured_is_unavailable() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let get = backend.get("nowhere/v").await.unwrap_err();
    let delete = backend.delete("nowhere/v").await.unwrap_err();
    let uncut = backend.uncut("nowhere/s").await.unwrap_err();
    let create = backend.create(&spec("nowhere/v")).await.unwrap_err();
    for fault in [get, delete, uncut, create] {
        assert_eq!(fault.kind(), Kind::Unavailable);
        assert!(fault.to_string().contains("configured are: a, b"), "{fault}");
    }
}

#[tokio::test]
async fn before_start_and_after_stop_nothing_is_served() {
    let bench = Bench::default();
    let backend = bench.stopped();
    assert_eq!(backend.get("a/v").await.unwrap_err().kind(), Kind::Unavailable);
    assert!(!bench.pool("a").exists(), "nothing is made before the start");
    backend.start(&Cx::new()).await.unwrap();
    backend.create(&spec("a/v")).await.unwrap();
    backend.stop().await;
    assert_eq!(backend.get("a/v").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(backend.create(&spec("a/w")).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(larder_pool::owner(&bench.pool("a")).unwrap(), None, "the pool is free");
    let next = bench.start().await;
    next.get("a/v").await.unwrap();
}

#[tokio::test]
async fn a_pool_that_must_be_a_mount_is_away_while_nothing_is_mounted() {
    let mut bench = Bench::default();
    let store = bench.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::create_dir(bench.pool("a")).unwrap();
    bench.change("a", |config| config.mount = MountRule::Required);
    let pool = bench.pool("a");
    let backend = bench.start().await;
    all_unavailable(&backend).await;
    assert!(file_names(&pool).is_empty(), "`create` makes no pool in a mount point");
    larder_pool::init(&store, "fake", false).unwrap();
    bench.bind(&store, &pool);
    backend.create(&spec("a/v")).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    bench.unmount(&pool);
    all_unavailable(&backend).await;
    assert!(file_names(&pool).is_empty());
    bench.bind(&store, &pool);
    backend.get("a/v").await.unwrap();
    // Somebody puts an empty file system over it.
    bench.mount("tmpfs", "tmpfs", &pool.join("volumes"), &[]);
    bench.unmount(&pool.join("volumes"));
    bench.unmount(&pool);
    bench.mount("tmpfs", "tmpfs", &pool, &[]);
    all_unavailable(&backend).await;
    assert!(file_names(&pool).is_empty());
    bench.unmount(&pool);
    bench.bind(&store, &pool);
    assert_eq!(backend.ids().await, ["a/v"]);
}

#[tokio::test]
async fn a_read_only_pool_is_read_and_mended_when_it_becomes_writable() {
    let bench = Bench::default();
    drop(prepared(&bench).await);
    let (pool, store) = (bench.pool("a"), bench.path().join("store"));
    fs::rename(&pool, &store).unwrap();
    fs::create_dir(&pool).unwrap();
    let left = store.join("creating/volume-half");
    fs::create_dir(&left).unwrap();
    let host = Host::real();
    let (source, target) = (store.clone(), pool.clone());
    let read_only = BindRequest { source, target, read_only: true, options: Vec::new() };
    host.mounts.bind(&read_only).unwrap();

    let backend = bench.start().await;
    assert_eq!(backend.ids().await, ["a/v"]);
    assert_eq!(backend.snapshot_ids().await, ["a/s"]);
    backend.create(&spec("a/v")).await.expect("it exists: nothing to write");
    for fault in [
        backend.create(&spec("a/w")).await.map(drop),
        backend.cut("a/t", "a/v").await.map(drop),
        backend.delete("a/v").await,
        backend.uncut("a/s").await,
        backend.set_format_state(&volume("a/v"), FormatState::Raw).await,
    ] {
        assert_eq!(fault.as_ref().unwrap_err().kind(), Kind::Precondition, "{fault:?}");
    }
    // Whose precondition is an unused volume: callers would wait for that.
    let fault = backend.grow("a/v", larder_model::Bytes::gib(2)).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault:?}");
    assert_eq!(backend.room("a").await.available, larder_model::Bytes::ZERO);
    let status = &backend.pool_status().await[0];
    assert!(status.warnings.iter().any(|w| w.contains("read-only")), "{status:?}");
    let health = Provision::health(&backend).unwrap().volume_health(&volume("a/v")).await.unwrap();
    assert_eq!(health[0].reason, "PoolReadOnly");

    host.mounts.remount(&pool, false, &[]).unwrap();
    backend.create(&spec("a/w")).await.unwrap();
    assert!(larder_pool::owner(&pool).unwrap().is_some(), "it is locked now");
    crate::support::settled(&bench).await;
    assert!(!left.exists(), "what was left was mended");

    // And the other way round: the kernel does that when a disk fails.
    bench.unmount(&pool);
    host.mounts.bind(&read_only).unwrap();
    assert_eq!(backend.create(&spec("a/x")).await.unwrap_err().kind(), Kind::Precondition);
    assert_eq!(backend.delete("a/w").await.unwrap_err().kind(), Kind::Precondition);
    backend.get("a/w").await.unwrap();
    host.mounts.remount(&pool, false, &[]).unwrap();
    backend.delete("a/w").await.unwrap();
    assert_eq!(bench.state().len(), 2);
}

#[tokio::test]
async fn what_began_before_a_pool_was_replaced_does_not_appear_in_the_new_one() {
    let bench = Bench::default();
    let backend = prepared(&bench).await;
    let (pool, aside) = (bench.pool("a"), bench.path().join("aside"));
    // The same pool, restored from a backup while a clone is made.
    let (other, runtime) = (backend.clone(), tokio::runtime::Handle::current());
    let (from, to) = (pool.clone(), aside.clone());
    bench.knobs().while_copying = Some(Box::new(move || {
        larder_host::command::Command::new("cp").arg("-a").arg(&from).arg(&to).run().unwrap();
        fs::rename(&from, from.with_extension("old")).unwrap();
        fs::rename(&to, &from).unwrap();
        assert_eq!(runtime.block_on(other.ids()), ["a/v"], "the copy is open");
    }));
    let clone = copied("a/clone", ContentSource::Volume(volume("a/v")));
    let fault = backend.create(&clone).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    assert_eq!(backend.ids().await, ["a/v"]);
    assert_eq!(bench.knobs().inspected, 3, "it was opened anew");
    backend.create(&clone).await.unwrap();
    assert_eq!(backend.ids().await, ["a/clone", "a/v"]);
    // The old copy is not owned any more.
    assert_eq!(larder_pool::owner(&pool.with_extension("old")).unwrap(), None);
}

#[tokio::test]
async fn a_lock_file_that_is_removed_does_not_let_two_in() {
    let bench = Bench::default();
    let first = prepared(&bench).await;
    let lock = bench.pool("a").join(".larder/lock");
    fs::remove_file(&lock).unwrap();
    // The second takes the pool; the first notices at its next call and stays out.
    let second = bench.stopped();
    fs::remove_file(bench.pool("b").join(".larder/lock")).unwrap();
    second.start(&Cx::new()).await.unwrap();
    second.create(&spec("a/w")).await.unwrap();
    all_unavailable(&first).await;
    let text = first.get("a/v").await.unwrap_err().to_string();
    assert!(text.contains("fake.example") && text.contains("owns it"), "{text}");
    second.stop().await;
    assert_eq!(first.ids().await, ["a/v", "a/w"], "when it is free again it is loaded anew");
}

#[tokio::test]
async fn one_pool_under_two_names_is_served_under_one() {
    let mut bench = Bench::default();
    let link = bench.path().join("link");
    std::os::unix::fs::symlink(bench.pool("a"), &link).unwrap();
    bench.change("b", |config| config.path = link);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let fault = backend.get("b/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable);
    assert!(fault.to_string().contains("same as pool a"), "{fault}");
    backend.get("a/v").await.unwrap();
    let twice = bench.pool("a");
    bench.change("b", |config| config.path = twice);
    let note = larder_pool::OwnerNote::default();
    let twice = LocalBackend::new(bench.medium.clone(), Host::real(), note, bench.pools.clone());
    assert_eq!(twice.unwrap_err().kind(), Kind::Invalid);
}
