//! Directories in the trash: with their limits, and out of the way of what needs their space.

use crate::support::{Bench, On, clone_of, file_names, settle_data, spec};
use larder_host::btrfs;
use larder_model::{Bytes, CapacityRange, Cx, volume::VolumeSpec};
use std::{fs, path::Path};

fn bench(on: On) -> Bench {
    let mut bench = Bench::on(on);
    bench.change("p", |config| config.trash = Some("24h".parse().unwrap()));
    bench
}

fn sized(id: &str, size: Bytes) -> VolumeSpec {
    VolumeSpec { capacity: CapacityRange { required: size, limit: None }, ..spec(id) }
}

/// Bytes that no file system can leave out.
fn fill(path: &Path, mib: usize) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(mib << 20);
    while bytes.len() < mib << 20 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_directory_comes_back_with_its_limit_and_its_clones_keep_their_blocks() {
    for on in On::HERE {
        let bench = bench(on);
        let dir = bench.start().await;
        dir.make(&sized("p/v", Bytes::mib(64))).await.unwrap();
        fill(&bench.data("p/v").join("file"), 4);
        settle_data(&bench.data("p/v"));
        let content = fs::read(bench.data("p/v").join("file")).unwrap();
        dir.make(&VolumeSpec {
            capacity: sized("p/c", Bytes::mib(64)).capacity,
            ..clone_of("p/c", "p/v")
        })
        .await
        .unwrap();
        dir.cut("p/s", "p/v").await.unwrap();
        dir.uncut("p/s").await.unwrap();
        dir.delete("p/v").await.unwrap();
        // Another one has its name meanwhile.
        dir.make(&sized("p/v", Bytes::mib(32))).await.unwrap();
        let trash = dir.0.trash().unwrap();
        let items = trash.list_trash().await.unwrap();
        assert_eq!(items.len(), 2, "{on:?}");
        assert!(items[0].allocated >= Bytes::mib(4), "{on:?}: {items:?}");
        for item in &items {
            let name = format!("back-{}", item.id).parse().unwrap();
            let id = trash.restore(&item.id, Some(&name), &Cx::new()).await.unwrap();
            let shelf = if item.source.is_some() { "snapshots" } else { "volumes" };
            let folder = bench.pool("p").join(shelf).join(id.strip_prefix("p/").unwrap());
            assert_eq!(fs::read(folder.join("data/file")).unwrap(), content, "{on:?}");
            if on == (On::Btrfs { quota: true }) && shelf == "volumes" {
                let held = btrfs::usage(&folder.join("data")).unwrap().total;
                assert_eq!(held, Bytes::mib(64), "{on:?}");
            }
        }
        dir.delete("p/v").await.unwrap();
        assert_eq!(trash.empty(None, &Cx::new()).await.unwrap().count, 1, "{on:?}");
        assert_eq!(fs::read(bench.data("p/c").join("file")).unwrap(), content, "{on:?}");
        bench.settled().await;
        bench.state();
    }
}

#[tokio::test]
async fn a_full_copy_takes_its_room_from_the_trash() {
    let mut bench = Bench::of_size(On::Ext4 { quota: false }, Bytes::mib(96));
    bench.change("p", |config| config.trash = Some("24h".parse().unwrap()));
    let dir = bench.start().await;
    for (id, mib) in [("p/old", 12), ("p/new", 12), ("p/v", 20)] {
        dir.make(&sized(id, Bytes::mib(64))).await.unwrap();
        fill(&bench.data(id).join("file"), mib);
    }
    settle_data(&bench.pool("p"));
    dir.delete("p/old").await.unwrap();
    dir.delete("p/new").await.unwrap();
    // What is left is less than a copy takes, and more than it lacks.
    let free = bench.host.filesystems.usage(&bench.pool("p")).unwrap().available;
    let spare = free.saturating_sub(Bytes::mib(12)).get() >> 20;
    fill(&bench.pool("p").parent().unwrap().join("filler"), usize::try_from(spare).unwrap());
    settle_data(&bench.pool("p"));
    dir.cut("p/s", "p/v").await.unwrap();
    assert_eq!(
        fs::read(bench.cut_data("p/s").join("file")).unwrap(),
        fs::read(bench.data("p/v").join("file")).unwrap()
    );
    let left = dir.0.trash().unwrap().list_trash().await.unwrap();
    let left: Vec<_> = left.into_iter().map(|item| item.origin).collect();
    assert_eq!(left, ["p/new"], "the older one was enough");
    bench.settled().await;
    assert_eq!(file_names(&bench.pool("p").join("trash")).len(), 2);
}

/// btrfs gives back the space of a deleted subvolume long after it was deleted.
#[tokio::test]
async fn one_subvolume_is_removed_from_the_trash_where_one_is_enough() {
    let mut bench = bench(On::Btrfs { quota: false });
    let dir = bench.start().await;
    for n in 0..5 {
        let id = format!("p/v{n}");
        dir.make(&sized(&id, Bytes::mib(64))).await.unwrap();
        fill(&bench.data(&id).join("file"), 32);
        settle_data(&bench.data(&id));
        dir.delete(&id).await.unwrap();
    }
    drop(dir);
    settle_data(&bench.pool("p"));
    let free = bench.host.filesystems.usage(&bench.pool("p")).unwrap().available;
    bench.change("p", |config| config.reserve = free.saturating_add(Bytes::mib(8)));
    // The emptier looks at once, and at the same time somebody finds no room.
    let dir = bench.start().await;
    dir.make(&sized("p/new", Bytes::mib(64))).await.unwrap();
    let trash = dir.0.trash().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let left = trash.list_trash().await.unwrap();
    let left: Vec<_> = left.into_iter().map(|item| item.origin).collect();
    assert_eq!(left, ["p/v4", "p/v3", "p/v2", "p/v1"]);
}
