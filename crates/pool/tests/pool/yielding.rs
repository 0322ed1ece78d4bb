//! What the trash gives to what finds no room: nothing that would not help, and one thing at a time.

use crate::{
    filler::Filler,
    support::{Bench, Calls, FakeMedium, copied, file_names, spec, volume},
    trash::{bench, trash},
};
use larder_model::{Bytes, Cx, Kind, trash::Trash as _, volume::ContentSource};
use larder_pool::LocalBackend;
use std::{fs, time::Duration};

type Backend = LocalBackend<FakeMedium>;

/// `count` volumes of `weight` bytes in the trash of a pool of `size`.
async fn prepared(size: &str, weight: usize, count: usize) -> (Bench, Backend) {
    let bench = bench(|_| {});
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &[&format!("size={size}")]);
    let backend = bench.start().await;
    bench.knobs().weight = weight;
    for n in 0..count {
        let name = format!("a/v{n}");
        backend.create(&spec(&name)).await.unwrap();
        backend.delete(&name).await.unwrap();
    }
    bench.knobs().weight = 0;
    (bench, backend)
}

#[tokio::test]
async fn what_all_of_the_trash_could_not_make_room_for_removes_nothing() {
    let (bench, backend) = prepared("16m", 1 << 20, 3).await;
    // Above the file system, and above what is free and what is in the trash.
    let filler = Filler::space(&bench.pool("a"), 16);
    for asked in [Bytes::gib(10), Bytes::mib(5)] {
        bench.knobs().allocates = asked;
        let fault = backend.create(&spec("a/huge")).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
        assert_eq!(trash(&backend).await.len(), 3, "{fault}");
    }
    bench.knobs().allocates = Bytes::new(1_900_000);
    backend.create(&spec("a/fits")).await.unwrap();
    assert_eq!(trash(&backend).await.len(), 1, "two of them were enough");
    filler.remove();
    bench.state();
}

#[tokio::test]
async fn a_file_system_that_is_full_elsewhere_takes_nothing_from_the_trash() {
    let (bench, backend) = prepared("64m", 1 << 20, 2).await;
    let elsewhere = bench.path().join("tickets");
    bench.mount("tmpfs", "tmpfs", &elsewhere, &["size=64k", "nr_inodes=2"]);
    fs::write(elsewhere.join("last"), "").unwrap();
    let fault = backend.create(&spec("a/new")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(trash(&backend).await.len(), 2, "{fault}");
    bench.unmount(&elsewhere);
    bench.state();
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the hook runs in a blocking task")]
async fn room_that_calls_under_way_hold_is_waited_for() {
    let (bench, backend) = prepared("8m", 256 << 10, 2).await;
    backend.create(&spec("a/source")).await.unwrap();
    bench.knobs().allocates = Bytes::mib(5);
    let (begun, copying) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    bench.knobs().while_copying = Some(Box::new(move || {
        begun.take().unwrap().send(()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    }));
    let clone = copied("a/x", ContentSource::Volume(volume("a/source")));
    let second = async {
        copying.await.unwrap();
        backend.create(&spec("a/y")).await
    };
    let (first, second) = tokio::join!(backend.create(&clone), second);
    first.unwrap();
    second.unwrap();
    assert_eq!(trash(&backend).await.len(), 2);
}

#[tokio::test]
async fn calls_that_find_no_room_at_one_time_remove_no_more_than_one_would() {
    let (bench, backend) = prepared("16m", 2 << 20, 5).await;
    let filler = Filler::space(&bench.pool("a"), 32);
    bench.knobs().allocates = Bytes::new(400 << 10);
    let call = async |name: &str| backend.create(&spec(name)).await.map(drop).unwrap();
    tokio::join!(call("a/n0"), call("a/n1"), call("a/n2"), call("a/n3"));
    assert_eq!(trash(&backend).await.len(), 4);
    filler.remove();
    bench.state();
}

#[tokio::test]
async fn one_unreadable_entry_in_the_trash_keeps_no_pool_away() {
    let (bench, backend) = prepared("16m", 0, 1).await;
    backend.create(&spec("a/alive")).await.unwrap();
    drop(backend);
    let folder = bench.pool("a").join("trash");
    fs::create_dir(folder.join("x.json")).unwrap();
    std::os::unix::fs::symlink("loop.json", folder.join("loop.json")).unwrap();
    let backend = bench.start().await;
    assert_eq!(backend.ids().await, ["a/alive"]);
    assert_eq!(trash(&backend).await.len(), 1);
    let warnings = &larder_model::Backend::pool_status(&backend).await[0].warnings;
    assert!(warnings.iter().any(|text| text.contains("x.json")), "{warnings:?}");
    assert!(warnings.iter().any(|text| text.contains("loop.json")), "{warnings:?}");
    fs::remove_dir(folder.join("x.json")).unwrap();
    fs::remove_file(folder.join("loop.json")).unwrap();
    bench.state();
}

#[tokio::test]
async fn what_nothing_proves_to_be_what_was_deleted_stays_and_keeps_nothing_else() {
    let (bench, backend) = prepared("16m", 1 << 20, 3).await;
    let folder = bench.pool("a").join("trash");
    let folders: Vec<_> =
        file_names(&folder).into_iter().filter(|n| !n.ends_with(".json")).collect();
    // The oldest without a record, the second with half of one.
    let [oldest, second] = [0, 1].map(|n| folder.join(&folders[n]).join("record.json"));
    let records = [fs::read(&oldest).unwrap(), fs::read(&second).unwrap()];
    fs::remove_file(&oldest).unwrap();
    fs::write(&second, &records[1][..records[1].len() / 2]).unwrap();
    for item in &trash(&backend).await[1..] {
        let fault = backend.remove(&item.id, &Cx::new()).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Corrupt, "{fault}");
    }
    let filler = Filler::space(&bench.pool("a"), 16);
    bench.knobs().allocates = Bytes::new(900_000);
    backend.create(&spec("a/new")).await.unwrap();
    let left: Vec<_> = trash(&backend).await.into_iter().map(|item| item.origin).collect();
    assert_eq!(left, ["a/v1", "a/v0"]);
    fs::write(&oldest, &records[0]).unwrap();
    fs::write(&second, &records[1]).unwrap();
    filler.remove();
    assert_eq!(backend.empty(None, &Cx::new()).await.unwrap().count, 2);
    assert_eq!(bench.state().len(), 1);
}
