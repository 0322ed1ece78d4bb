//! The trash: nothing that was deleted is lost before its time, and nothing stands in the way of what
//! is new.

use crate::{
    filler::Filler,
    support::{
        Bench, Calls, FakeMedium, copied, file_names, settled, sized, snapshot, spec, volume,
    },
};
use larder_model::{
    Backend as _, Bytes, Cx, Kind, Result,
    trash::{Sort, Trash, Trashed},
    volume::{ContentSource, VolumeSpec},
};
use larder_pool::{LocalBackend, PoolConfig, TrashRecord};
use rstest::rstest;
use std::{fs, path::PathBuf, time::Duration};

type Backend = LocalBackend<FakeMedium>;

const RECORD: &str = include_str!("samples/format-1/trash.json");

/// Two pools, the first with a trash.
pub fn bench(change: impl FnOnce(&mut PoolConfig)) -> Bench {
    let mut bench = Bench::default();
    bench.change("a", |config| {
        config.trash = Some("24h".parse().unwrap());
        change(config);
    });
    bench
}

pub async fn trash(backend: &Backend) -> Vec<Trashed> {
    backend.list_trash().await.unwrap()
}

async fn origins(backend: &Backend) -> Vec<String> {
    trash(backend).await.into_iter().map(|item| item.origin).collect()
}

pub async fn restore(backend: &Backend, id: &str, name: Option<&str>) -> Result<String> {
    let name = name.map(|name| name.parse().unwrap());
    backend.restore(id, name.as_ref(), &Cx::new()).await
}

fn content(bench: &Bench, volume: &str) -> PathBuf {
    bench.pool("a").join("volumes").join(volume).join("data/content")
}

#[tokio::test]
async fn a_deleted_volume_frees_its_name_at_once_and_can_come_back_whole() {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    let first = backend.create(&sized("a/Data Base", Bytes::mib(8), None)).await;
    let first = first.unwrap_or_else(|_| panic!());
    fs::write(content(&bench, first.id.native().as_str()), "precious").unwrap();
    let id = first.id.to_string();
    backend.delete(&id).await.unwrap();
    assert!(backend.ids().await.is_empty());
    assert_eq!(backend.get(&id).await.unwrap_err().kind(), Kind::NotFound);
    backend.delete(&id).await.unwrap();
    let [item] = &trash(&backend).await[..] else { panic!("it is there once") };
    assert_eq!((item.sort, item.origin.as_str()), (Sort::Volume, id.as_str()));
    assert_eq!((item.name.as_str(), item.size), ("Data Base", Bytes::mib(8)));
    assert!(item.due.is_some_and(|due| due > item.deleted));

    backend.create(&spec("a/Data Base")).await.unwrap();
    let fault = restore(&backend, &item.id, None).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
    assert!(fault.to_string().contains("--as NAME"), "{fault}");
    assert_eq!(restore(&backend, &item.id, Some("rescued")).await.unwrap(), "a/rescued");
    assert_eq!(fs::read_to_string(content(&bench, "rescued")).unwrap(), "precious");
    let rescued = backend.get("a/rescued").await.unwrap();
    assert_eq!((rescued.name.as_str(), rescued.capacity), ("rescued", Bytes::mib(8)));
    assert!(trash(&backend).await.is_empty());
    // What creates it again under its new name finds it.
    backend.create(&sized("a/rescued", Bytes::mib(8), None)).await.unwrap();
    let fault = restore(&backend, &item.id, None).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::NotFound, "{fault}");

    backend.delete("a/rescued").await.unwrap();
    let item = &trash(&backend).await[0];
    assert_eq!(restore(&backend, &item.id, None).await.unwrap(), "a/rescued");
    drop(backend);
    let backend = bench.start().await;
    backend.get("a/rescued").await.unwrap();
    assert_eq!(bench.state().len(), 2);
}

#[tokio::test]
async fn a_deleted_snapshot_comes_back_and_is_a_source_again() {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    backend.uncut("a/s").await.unwrap();
    assert!(backend.snapshot_ids().await.is_empty());
    let item = trash(&backend).await.remove(0);
    assert_eq!((item.sort, item.source.as_deref()), (Sort::Snapshot, Some("a/v")));
    backend.delete("a/v").await.unwrap();
    assert_eq!(origins(&backend).await, ["a/v", "a/s"], "the latest first");
    restore(&backend, &item.id, None).await.unwrap();
    let copy = copied("a/w", ContentSource::Snapshot(snapshot("a/s")));
    backend.create(&copy).await.unwrap();
    assert_eq!(bench.state().len(), 3);
}

#[tokio::test]
async fn what_nobody_would_want_back_is_removed_at_once() {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    // Of a pod, without data, and in a pool without trash.
    let inline = VolumeSpec { ephemeral: true, ..spec("a/inline") };
    backend.create(&inline).await.unwrap();
    backend.delete("a/inline").await.unwrap();
    backend.create(&spec("b/v")).await.unwrap();
    backend.delete("b/v").await.unwrap();
    assert!(trash(&backend).await.is_empty());
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn what_was_removed_from_the_trash_is_gone_and_so_is_what_belonged_to_it() {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    for name in ["a/x", "a/y", "a/z"] {
        backend.create(&spec(name)).await.unwrap();
        backend.delete(name).await.unwrap();
    }
    let items = trash(&backend).await;
    backend.remove(&items[0].id, &Cx::new()).await.unwrap();
    backend.remove(&items[0].id, &Cx::new()).await.unwrap();
    assert_eq!(origins(&backend).await, ["a/y", "a/x"]);
    let none = backend.empty(Some("1h".parse().unwrap()), &Cx::new()).await.unwrap();
    assert_eq!(none.count, 0);
    assert_eq!(backend.empty(None, &Cx::new()).await.unwrap().count, 2);
    assert!(bench.state().is_empty(), "tickets included");
}

#[tokio::test]
async fn the_trash_is_emptied_when_its_time_is_over_also_after_a_restart() {
    let bench = bench(|config| config.trash = Some("2s".parse().unwrap()));
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.delete("a/v").await.unwrap();
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(trash(&backend).await.len(), 1, "a restart makes nothing older");
    for _ in 0..100 {
        if trash(&backend).await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    settled(&bench).await;
    for _ in 0..100 {
        if file_names(&bench.pool("a").join("trash")).is_empty() && bench.tickets().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.state().is_empty());
    backend.stop().await;
}

/// Changes what a record in the trash says.
fn rewrite(bench: &Bench, change: impl Fn(&mut TrashRecord)) {
    let trash = bench.pool("a").join("trash");
    for name in file_names(&trash).iter().filter(|name| name.ends_with(".json")) {
        let text = fs::read(trash.join(name)).unwrap();
        let mut record = serde_json::from_slice(&text).unwrap();
        change(&mut record);
        fs::write(trash.join(name), serde_json::to_vec(&record).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn what_a_jump_of_the_clock_made_old_stays() {
    let bench = bench(|config| config.trash = Some("3s".parse().unwrap()));
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.delete("a/v").await.unwrap();
    drop(backend);
    // As if the wall clock had been years behind at the deletion, in this boot.
    rewrite(&bench, |record| record.deleted = jiff::Timestamp::from_second(1_000_000).unwrap());
    let backend = bench.start().await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(trash(&backend).await.len(), 1);
}

#[tokio::test]
async fn a_pool_that_has_no_trash_any_more_removes_nothing_by_itself() {
    let mut bench = bench(|config| config.trash = Some("1s".parse().unwrap()));
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.delete("a/v").await.unwrap();
    drop(backend);
    bench.change("a", |config| config.trash = None);
    let backend = bench.start().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let items = trash(&backend).await;
    assert_eq!((items.len(), items[0].due), (1, None));
    backend.create(&spec("a/w")).await.unwrap();
    backend.delete("a/w").await.unwrap();
    assert_eq!(origins(&backend).await, ["a/v"], "what is deleted now is gone");
    restore(&backend, &items[0].id, None).await.unwrap();
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Create,
    Clone,
    Restore,
    Cut,
    Planned,
    Grow,
}

#[rstest]
#[tokio::test]
async fn whoever_finds_no_room_empties_the_trash_oldest_first(
    #[values(Call::Create, Call::Clone, Call::Restore, Call::Cut, Call::Planned, Call::Grow)]
    call: Call,
) {
    let bench = bench(|_| {});
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=4m"]);
    let backend = bench.start().await;
    bench.knobs().weight = 256 << 10;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    for name in ["a/old", "a/new"] {
        backend.create(&spec(name)).await.unwrap();
        backend.delete(name).await.unwrap();
    }
    let filler = Filler::space(&bench.pool("a"), 0);
    match call {
        Call::Create => backend.create(&spec("a/x")).await.map(drop),
        Call::Planned => {
            bench.knobs().allocates = Bytes::new(128 << 10);
            backend.create(&spec("a/x")).await.map(drop)
        }
        Call::Clone => {
            let clone = copied("a/x", ContentSource::Volume(volume("a/v")));
            backend.create(&clone).await.map(drop)
        }
        Call::Restore => {
            let restore = copied("a/x", ContentSource::Snapshot(snapshot("a/s")));
            backend.create(&restore).await.map(drop)
        }
        Call::Cut => backend.cut("a/x", "a/v").await.map(drop),
        Call::Grow => backend.grow("a/v", Bytes::mib(64)).await.map(drop),
    }
    .unwrap_or_else(|fault| panic!("{call:?}: {fault}"));
    let left = origins(&backend).await;
    if matches!(call, Call::Planned | Call::Grow) {
        assert_eq!(left, ["a/new"], "{call:?}: the older one was enough");
    } else {
        assert!(left.is_empty() || left == ["a/new"], "{call:?}: {left:?}");
    }
    filler.remove();
    bench.state();
}

#[tokio::test]
async fn what_does_not_help_is_not_thrown_away() {
    let bench = bench(|config| config.overprovision = Some(1.0));
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=4m"]);
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(3), None)).await.unwrap();
    backend.delete("a/v").await.unwrap();
    // Not promised any more.
    backend.create(&sized("a/w", Bytes::mib(3), None)).await.unwrap();
    let fault = backend.create(&sized("a/x", Bytes::mib(3), None)).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    let item = trash(&backend).await.remove(0);
    let fault = restore(&backend, &item.id, None).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(origins(&backend).await, ["a/v"]);
    backend.delete("a/w").await.unwrap();
    restore(&backend, &item.id, None).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_when_the_trash_is_empty_and_deletes_all_the_same() {
    let bench = bench(|_| {});
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=1m"]);
    let backend = bench.start().await;
    bench.knobs().weight = 64 << 10;
    backend.create(&spec("a/v")).await.unwrap();
    let filler = Filler::space(&bench.pool("a"), 0);
    let fault = backend.create(&spec("a/x")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    // Not even the trash's record fits, and nothing else can make room.
    backend.delete("a/v").await.unwrap();
    assert!(trash(&backend).await.is_empty());
    filler.remove();
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn the_trash_counts_as_free() {
    let bench = bench(|config| config.reserve = Bytes::mib(1));
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=8m"]);
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let data = content(&bench, "v");
    fs::write(&data, vec![7; 2 << 20]).unwrap();
    let before = backend.room("a").await.available;
    backend.delete("a/v").await.unwrap();
    let after = backend.room("a").await.available;
    // But for the record of the deletion.
    let more = after.saturating_sub(before);
    assert!(more >= Bytes::new((2 << 20) - (64 << 10)), "{before} {after}");
    assert!(after <= Bytes::mib(7), "{after}");
}

#[tokio::test]
async fn the_reserve_is_taken_from_the_trash() {
    let bench = bench(|config| {
        config.trash = Some("2s".parse().unwrap());
        config.reserve = Bytes::mib(2);
    });
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=8m"]);
    let backend = bench.start().await;
    bench.knobs().weight = 2 << 20;
    for name in ["a/old", "a/new"] {
        backend.create(&spec(name)).await.unwrap();
        backend.delete(name).await.unwrap();
    }
    // A workload writes.
    fs::write(bench.pool("a").join("written"), vec![1; 3 << 20]).unwrap();
    for _ in 0..100 {
        if origins(&backend).await == ["a/new"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(origins(&backend).await, ["a/new"], "before its time, the older one");
}

#[tokio::test]
async fn a_stop_does_not_wait_until_the_trash_is_emptied() {
    let bench = bench(|config| config.trash = Some("1s".parse().unwrap()));
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let data = bench.pool("a").join("volumes/v/data");
    for folder in 0..200 {
        let folder = data.join(folder.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 0..500 {
            fs::File::create(folder.join(file.to_string())).unwrap();
        }
    }
    backend.delete("a/v").await.unwrap();
    for _ in 0..400 {
        if trash(&backend).await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = std::time::Instant::now();
    backend.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(backend);
    let _backend = bench.start().await;
    for _ in 0..1000 {
        if bench.tickets().is_empty() && file_names(&bench.pool("a").join("deleting")).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn what_others_put_into_the_trash_stays_and_is_named() {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.delete("a/v").await.unwrap();
    let id = trash(&backend).await.remove(0).id;
    drop(backend);
    let folder = bench.pool("a").join("trash");
    fs::create_dir(folder.join("mine")).unwrap();
    fs::write(folder.join("mine/file"), "precious").unwrap();
    fs::write(folder.join("volume-w.0123456789ab.json"), "{}").unwrap();
    let backend = bench.start().await;
    let status = &backend.pool_status().await[0];
    assert_eq!(status.warnings.len(), 2, "{:?}", status.warnings);
    // Another volume in the place of the one that was deleted is not removed for it.
    let held = folder.join(format!("volume-v.{id}"));
    let text = fs::read_to_string(held.join("record.json")).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record["id"] = uuid::Uuid::new_v4().to_string().into();
    fs::write(held.join("record.json"), record.to_string()).unwrap();
    let fault = backend.remove(&id, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt, "{fault}");
    fs::write(held.join("record.json"), text).unwrap();
    assert_eq!(backend.empty(None, &Cx::new()).await.unwrap().count, 1);
    assert_eq!(fs::read_to_string(folder.join("mine/file")).unwrap(), "precious");
    assert!(folder.join("volume-w.0123456789ab.json").exists());
}

#[tokio::test]
async fn a_record_in_the_trash_has_the_fields_of_its_format() {
    let sample: TrashRecord = serde_json::from_str(RECORD).unwrap();
    let value: serde_json::Value = serde_json::from_str(RECORD).unwrap();
    assert_eq!(serde_json::to_value(&sample).unwrap(), value);
    let bench = bench(|_| {});
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.delete("a/v").await.unwrap();
    drop(backend);
    rewrite(&bench, |record| {
        assert!(record.rest.is_empty(), "{record:?}");
    });
    // As the sample says, it is read.
    let folder = bench.pool("a").join("trash");
    let id = file_names(&folder).into_iter().find(|n| !n.ends_with(".json")).unwrap();
    fs::rename(folder.join(id), folder.join("snapshot-db.monday.0f1e2d3c4b5a")).unwrap();
    fs::write(folder.join("snapshot-db.monday.0f1e2d3c4b5a.json"), RECORD).unwrap();
    let backend = bench.start().await;
    let item = trash(&backend).await.remove(0);
    assert_eq!((item.origin.as_str(), item.source.as_deref()), ("a/db.monday", Some("a/db")));
}
