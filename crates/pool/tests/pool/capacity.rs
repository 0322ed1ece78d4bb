//! Promises, reserve, capacity, full disks.

use crate::support::{Bench, Calls, spec};
use larder_model::{Bytes, Kind};

#[tokio::test]
async fn promises_stay_below_the_limit_also_when_made_at_once() {
    let mut bench = Bench::new(&["a"]);
    let backend = bench.start().await;
    let free = backend.room("a").await.available;
    drop(backend);
    // Ten volumes of 1 GiB may be promised, whatever disk this runs on.
    let total = larder_host::Host::real().filesystems.usage(bench.dir.path()).unwrap().total;
    let factor = Bytes::gib(10).get() as f64 / total.get() as f64;
    bench.change("a", |config| config.overprovision = Some(factor * 1.001));
    let backend = bench.start().await;
    let mut set = tokio::task::JoinSet::new();
    for n in 0..16 {
        let backend = backend.clone();
        set.spawn(async move { backend.create(&spec(&format!("a/v{n}"))).await });
    }
    let results = set.join_all().await;
    let refused = results.iter().filter(|r| r.is_err()).count();
    assert!(refused >= 6, "{refused} refused");
    for n in 0..16 {
        let _ = backend.create(&spec(&format!("a/v{n}"))).await;
    }
    assert_eq!(backend.ids().await.len(), 10, "in the end all ten are given");
    let fault = backend.create(&spec("a/one-more")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    let full = backend.grow("a/v0", Bytes::gib(3)).await;
    let id = backend.ids().await[0].clone();
    let full = if full.is_ok() { backend.grow(&id, Bytes::gib(3)).await } else { full };
    assert!(matches!(full.unwrap_err().kind(), Kind::Exhausted | Kind::NotFound));
    let left = backend.room("a").await;
    assert!(left.available < Bytes::gib(1) && left.available < free, "{left:?}");
    assert_eq!(left.smallest, Some(Bytes::mib(1)));
}

#[tokio::test]
async fn the_reserve_is_left_alone() {
    let mut bench = Bench::new(&["a"]);
    bench.change("a", |config| config.reserve = Bytes::MAX);
    let backend = bench.start().await;
    let fault = backend.create(&spec("a/v")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    assert!(fault.to_string().contains("reserve"), "{fault}");
    drop(backend);
    bench.change("a", |config| config.reserve = Bytes::ZERO);
    bench.knobs().allocates = Bytes::MAX;
    let backend = bench.start().await;
    assert_eq!(backend.create(&spec("a/v")).await.unwrap_err().kind(), Kind::Exhausted);
    assert!(bench.state().is_empty());
}
