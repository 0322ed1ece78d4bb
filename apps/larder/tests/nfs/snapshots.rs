//! Snapshots and clones, copied by a real server where it can.

use crate::{
    server::server,
    site::{Larder, Site, code},
    support,
};
use larder_proto::csi;
use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown},
    path::Path,
    time::{Duration, Instant},
};

const LARGE: u64 = 32 << 20;

const HOLE: u64 = 16 << 20;

fn large() -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 1..=32 {
        bytes.resize(usize::from(n) << 20, n);
    }
    bytes
}

/// What a workload may have written.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("deep")).unwrap();
    for n in 0..300 {
        fs::write(root.join(format!("deep/{n}")), n.to_string()).unwrap();
    }
    chown(root.join("deep/7"), Some(4711), Some(4712)).unwrap();
    fs::set_permissions(root.join("deep/7"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(root.join("deep/7"), root.join("same")).unwrap();
    std::os::unix::fs::symlink("../../outside", root.join("link")).unwrap();
    fs::write(root.join("large"), large()).unwrap();
    // A hole, and something behind it.
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"end", HOLE).unwrap();
}

fn assert_filled(root: &Path) {
    for n in 0..300 {
        assert_eq!(fs::read_to_string(root.join(format!("deep/{n}"))).unwrap(), n.to_string());
    }
    let seven = fs::metadata(root.join("deep/7")).unwrap();
    assert_eq!((seven.uid(), seven.gid(), seven.mode() & 0o7777), (4711, 4712, 0o4750));
    assert_eq!(seven.ino(), fs::metadata(root.join("same")).unwrap().ino());
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("../../outside"));
    assert!(fs::read(root.join("large")).unwrap() == large());
    let sparse = fs::metadata(root.join("sparse")).unwrap();
    assert_eq!(sparse.len(), HOLE + 3);
    assert!(sparse.blocks() * 512 < 1 << 20, "the hole is filled: {} blocks", sparse.blocks());
}

/// Bytes that went to the server and came from it.
fn sent() -> u64 {
    let read = |name: &str| {
        let path = format!("/sys/class/net/nfs0/statistics/{name}");
        fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap()
    };
    read("rx_bytes") + read("tx_bytes")
}

#[tokio::test]
async fn a_server_copies_snapshots_and_clones_by_itself_and_others_are_helped() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    for (options, by_itself) in [("vers=4.2", true), ("vers=3, nolock", false)] {
        let site = Site::new(&export, options);
        let larder = site.serve().await;
        let volume = larder.create("v", &[]).await.unwrap();
        fill(&export.join("v"));
        let before = sent();
        let snapshot = larder.snapshot("s", &volume).await.unwrap();
        let over_the_network = sent() - before;
        println!("{options}: {over_the_network} bytes on the network for a snapshot of {LARGE}");
        assert_eq!(over_the_network < LARGE / 4, by_itself, "{over_the_network}");
        fs::write(export.join("v/large"), "changed since").unwrap();
        larder.delete(&volume.volume_id).await.unwrap();
        let restored = larder.create_from("r", &snapshot).await.unwrap();
        assert_filled(&export.join("r"));
        let target = larder.publish(&restored).await.unwrap();
        fs::write(target.join("new"), "x").unwrap();
        fs::remove_file(export.join("r/new")).unwrap();
        let clone = larder.clone_of("c", &restored).await.unwrap();
        larder.unpublish(&restored).await.unwrap();
        larder.delete(&restored.volume_id).await.unwrap();
        assert_filled(&export.join("c"));
        let target = larder.publish(&clone).await.unwrap();
        assert_eq!(fs::read_to_string(target.join("deep/299")).unwrap(), "299");
        larder.unpublish(&clone).await.unwrap();
        larder.delete(&clone.volume_id).await.unwrap();
        larder.delete_snapshot(&snapshot).await.unwrap();
        let left: Vec<_> = fs::read_dir(&export).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [".larder"]);
        assert_eq!(fs::read_dir(export.join(".larder/snapshots")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(export.join(".larder/copying")).unwrap().count(), 0);
    }
}

/// Where the server's own file system can, a copy takes no room.
#[tokio::test]
async fn a_snapshot_on_a_server_with_xfs_shares_its_blocks() {
    let mut server = server();
    let export = server.small_export_on("mkfs.xfs -q -m reflink=1", 400);
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    let script =
        format!("dd if=/dev/zero of={}/large bs=1M count=150 conv=fsync", target.display());
    assert!(support::shell(&script).status().unwrap().success());
    // Two of these have no room but by sharing.
    for name in ["s1", "s2", "s3"] {
        larder.snapshot(name, &volume).await.unwrap();
    }
    larder.unpublish(&volume).await.unwrap();
}

/// Waits until a copy is being made.
async fn being_copied(export: &Path, key: &str) {
    let path = export.join(format!(".larder/copying/{key}.files"));
    let until = Instant::now() + Duration::from_secs(90);
    while !path.exists() {
        assert!(Instant::now() < until, "no copy began");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn snapshots(larder: &Larder<'_>) -> usize {
    let listed = larder.controller().list_snapshots(csi::ListSnapshotsRequest::default()).await;
    listed.unwrap().into_inner().entries.len()
}

#[tokio::test]
async fn a_copy_whose_larder_is_killed_is_shown_to_nobody_and_goes_on_when_asked_again() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let mut larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    fill(&export.join("v"));
    let mut killed = 0;
    for attempt in 0..3 {
        let (cut, ()) = {
            let request = larder.snapshot("s", &volume);
            let copying = async {
                being_copied(&export, "snapshot-s").await;
                tokio::time::sleep(Duration::from_millis(100 * attempt)).await;
                larder.kill_now();
            };
            tokio::join!(request, copying)
        };
        killed += u32::from(cut.is_err());
        drop(larder);
        larder = site.serve().await;
        if cut.is_err() {
            // Cut before it was written that it is complete.
            assert!(snapshots(&larder).await <= 1);
        } else {
            break;
        }
    }
    assert!(killed > 0, "it was never cut");
    let snapshot = larder.snapshot("s", &volume).await.unwrap();
    assert_eq!(snapshots(&larder).await, 1);
    larder.delete(&volume.volume_id).await.unwrap();
    larder.create_from("r", &snapshot).await.unwrap();
    assert_filled(&export.join("r"));
    assert_eq!(fs::read_dir(export.join(".larder/copying")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_copy_on_a_server_that_falls_silent_is_unavailable_and_goes_on_when_it_is_back() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    fill(&export.join("v"));
    let silent = async {
        being_copied(&export, "volume-c").await;
        server.fall_silent();
    };
    let (cut, ()) = tokio::join!(larder.clone_of("c", &volume), silent);
    // Else it was quicker than the silence.
    if let Err(status) = cut {
        assert_eq!(status.code(), code("UNAVAILABLE"), "{status:?}");
    }
    server.wake();
    let until = Instant::now() + Duration::from_secs(180);
    while larder.clone_of("c", &volume).await.is_err() {
        assert!(Instant::now() < until, "the server answers again, and the copy does not go on");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_filled(&export.join("c"));
}

#[tokio::test]
async fn a_snapshot_for_which_the_server_has_no_room_leaves_nothing() {
    let mut server = server();
    let export = server.small_export(32);
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("large"), vec![7; 18 << 20]).unwrap();
    fs::File::open(target.join("large")).unwrap().sync_all().unwrap();
    for _ in 0..2 {
        let status = larder.snapshot("s", &volume).await.unwrap_err();
        assert_eq!(status.code(), code("RESOURCE_EXHAUSTED"), "{status:?}");
        let status = larder.clone_of("c", &volume).await.unwrap_err();
        assert_eq!(status.code(), code("RESOURCE_EXHAUSTED"), "{status:?}");
    }
    assert_eq!(fs::read_dir(export.join(".larder/copying")).unwrap().count(), 0);
    assert_eq!(snapshots(&larder).await, 0);
    // The workload has the room that there was.
    fs::write(target.join("more"), vec![7; 4 << 20]).unwrap();
    assert!(fs::read(target.join("large")).unwrap() == vec![7; 18 << 20]);
    support::shell(&format!("truncate -s 1M {}", target.join("large").display())).status().unwrap();
    larder.snapshot("s", &volume).await.unwrap();
    larder.unpublish(&volume).await.unwrap();
}
