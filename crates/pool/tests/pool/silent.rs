//! Pools whose server is dead: it is mounted, and answers nothing, for ever.

use crate::dead::mount_dead;
use crate::support::{Bench, Calls, copied, spec, volume};
use larder_model::{Backend, Connect, Fault, Kind, Provision, volume::ContentSource};
use larder_pool::LocalBackend;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

type Pools = LocalBackend<crate::support::FakeMedium>;

/// The deadline for one that answered before is five seconds.
const FIRST: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(4);

/// The call ends in time.
async fn timely<T>(what: &str, most: Duration, call: impl Future<Output = T>) -> T {
    tokio::time::timeout(most, call).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

async fn refused(backend: &Pools) -> Vec<Fault> {
    let mut faults = Vec::new();
    let id = volume("a/v");
    faults.push(timely("get", LATER, backend.get("a/v")).await.unwrap_err());
    faults.push(timely("create", LATER, backend.create(&spec("a/w"))).await.unwrap_err());
    faults.push(timely("delete", LATER, backend.delete("a/v")).await.unwrap_err());
    faults.push(timely("cut", LATER, backend.cut("a/s", "a/v")).await.unwrap_err());
    faults.push(timely("usage", LATER, backend.usage(&id)).await.unwrap_err());
    faults.push(timely("state", LATER, backend.format_state(&id)).await.unwrap_err());
    let clone = copied("b/c", ContentSource::Volume(id.clone()));
    faults.push(timely("clone", LATER, backend.create(&clone)).await.unwrap_err());
    let health = Provision::health(backend).unwrap();
    faults.push(timely("health", LATER, health.volume_health(&id)).await.unwrap_err());
    faults
}

fn processes_that_ask(pool: &Path) -> usize {
    let asks = |pid: &std::ffi::OsStr| {
        let line = fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).starts_with(&format!("stat\0{}\0", pool.display()))
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|e| asks(&e.file_name())).count()
}

#[tokio::test]
async fn a_dead_server_under_a_pool_blocks_neither_a_call_nor_a_thread_and_others_go_on() {
    let mut bench = Bench::default();
    bench.change("a", |config| config.shared = true);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let pool = bench.pool("a");
    let server = mount_dead(&pool);

    // Many at once: one question is asked for all of them.
    let begun = Instant::now();
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let backend = backend.clone();
            async move { timely("get", FIRST, backend.get("a/v")).await.unwrap_err() }
        })
        .collect();
    let asked = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        processes_that_ask(&pool)
    };
    let mut set = tokio::task::JoinSet::new();
    for call in calls {
        set.spawn(call);
    }
    assert_eq!(asked.await, 1);
    for fault in set.join_all().await {
        assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    }
    assert!(begun.elapsed() < FIRST);

    // From then on it is known, and told at once: which pool, and since when.
    for fault in refused(&backend).await {
        assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
        let text = fault.to_string();
        assert!(text.contains("pool a") && text.contains("since 20"), "{text}");
        assert!(fault.hint_text().is_some(), "{text}");
    }
    let status = timely("status", LATER, backend.pool_status()).await;
    assert!(status[0].fault.as_ref().unwrap().contains("does not answer"), "{status:?}");
    let health = timely("storage health", LATER, backend.storage_health()).await;
    assert!(health.iter().any(|h| h.unreachable), "{health:?}");
    // Others go on, and the driver is alive.
    timely("probe", LATER, backend.probe()).await.unwrap();
    timely("create elsewhere", LATER, backend.create(&spec("b/v"))).await.unwrap();
    timely("delete elsewhere", LATER, backend.delete("b/v")).await.unwrap();
    // What hangs does not keep the driver from stopping and starting.
    timely("stop", LATER, backend.stop()).await;
    let next = bench.stopped();
    timely("start", LATER, next.start(&larder_model::Cx::new())).await.unwrap();
    assert_eq!(timely("get", LATER, next.get("a/v")).await.unwrap_err().kind(), Kind::Unavailable);

    // It comes back, and is used again by itself.
    drop(server);
    bench.unmount(&pool);
    timely("get", LATER, next.get("a/v")).await.unwrap();
    timely("delete", LATER, next.delete("a/v")).await.unwrap();
    assert_eq!(processes_that_ask(&pool), 0);
}

#[tokio::test]
async fn probe_waits_for_no_server() {
    let bench = Bench::new(&["a"]);
    let backend = bench.start().await;
    let server = mount_dead(&bench.pool("a"));
    // Nothing is known yet; what is asked in the background is known later.
    timely("probe", LATER, backend.probe()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let fault = timely("probe", LATER, backend.probe()).await.unwrap_err();
    assert!(fault.to_string().contains("does not answer, since 20"), "{fault}");
    drop(server);
    bench.unmount(&bench.pool("a"));
    timely("probe", LATER, backend.probe()).await.unwrap();
}

/// Answers everything with ESTALE, as an NFS mount does after a failover that lost its file handles.
fn answer_stale(server: fs::File) -> std::thread::JoinHandle<()> {
    use std::io::{Read, Write};
    const INIT: u32 = 26;
    const ESTALE: i32 = 116;
    std::thread::spawn(move || {
        let mut request = vec![0; 1 << 17];
        // It ends with the mount.
        while (&server).read(&mut request).is_ok_and(|n| n >= 16) {
            let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
            let (opcode, unique) = (word(4), &request[8..16]);
            let (error, body) = match opcode {
                // fuse_init_out: protocol 7.31, and nothing that was offered.
                INIT => {
                    let mut body = vec![0; 64];
                    body[..4].copy_from_slice(&7_u32.to_ne_bytes());
                    body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
                    body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                    (0, body)
                }
                _ => (-ESTALE, Vec::new()),
            };
            let length = u32::try_from(16 + body.len()).unwrap();
            let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique].concat();
            let _ = (&server).write(&[head, body].concat());
        }
    })
}

#[tokio::test]
async fn a_pool_that_answers_stale_is_unavailable_and_used_again_once_it_is_mounted_anew() {
    let mut bench = Bench::default();
    bench.change("a", |config| config.shared = true);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let pool = bench.pool("a");
    let answering = answer_stale(mount_dead(&pool));
    for fault in refused(&backend).await {
        assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
        assert!(fault.to_string().contains("tale"), "{fault}");
    }
    timely("create elsewhere", LATER, backend.create(&spec("b/v"))).await.unwrap();
    bench.unmount(&pool);
    answering.join().unwrap();
    timely("get", LATER, backend.get("a/v")).await.unwrap();
    timely("delete", LATER, backend.delete("a/v")).await.unwrap();
}
