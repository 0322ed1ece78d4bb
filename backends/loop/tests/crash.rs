//! Killed (SIGKILL) at every step of every operation: nothing is leaked, and a repeat ends as one
//! clean run would.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{
    Backend, Bytes, Connect, Cx, FsType, Kind, Provision, SnapshotId, VolumeId, backend::Snapshots,
};
use std::path::Path;
use support::{Ask, Driver, Ground, Staged, assert_files, operate, write_files};

fn volume(name: &str) -> VolumeId {
    VolumeId::new("default".parse().unwrap(), name.parse().unwrap())
}

fn snapshot(name: &str) -> SnapshotId {
    SnapshotId::new("default".parse().unwrap(), name.parse().unwrap())
}

/// Kills `args` at step 1, 2, 3 … until it ends by itself. Before each try `before` runs, after each
/// a driver is started on what is left, and `mended` repeats the operation on it and looks.
async fn killed_at_every_step(
    ground: &Ground,
    args: &[&str],
    before: impl AsyncFn(&Driver),
    mended: impl AsyncFn(&Driver),
) {
    for step in 1..100 {
        let driver = ground.driver().await;
        before(&driver).await;
        driver.backend.stop().await;
        let ended = operate::run(&ground.path(), args, Some(step));
        let driver = ground.driver().await;
        for left in ground.left_over() {
            let unfinished = left.contains("/creating/") || left.contains("/deleting/");
            // What was moved aside is removed in a thread of its own.
            assert!(!left.contains("/creating/"), "{args:?} at step {step} left {left}");
            assert!(
                unfinished || !Path::new(&left).is_dir() || left.contains("/mounts/"),
                "{left}"
            );
        }
        mended(&driver).await;
        driver.backend.stop().await;
        if ended {
            assert!(step > 3, "{args:?} has only {step} steps");
            return;
        }
    }
    unreachable!("{args:?} never ends");
}

/// A volume with files, not mounted.
async fn with_files(driver: &Driver, ask: &Ask, seed: u64) {
    let staged = driver.stage(&driver.create(ask).await.unwrap()).await.unwrap();
    write_files(&staged.target, seed);
    driver.unstage(&staged).await.unwrap();
}

async fn staged(driver: &Driver, name: &str) -> Staged {
    driver.stage(&driver.backend.get_volume(&volume(name)).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn creation() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let mended = async |driver: &Driver| {
        let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
        assert_eq!(volume.capacity, Bytes::mib(8));
        assert_eq!(std::fs::metadata(driver.image(&volume.id)).unwrap().len(), 8 << 20);
        driver.delete(&volume.id).await.unwrap();
    };
    let args = ["create", "v", "block", "8Mi"];
    killed_at_every_step(&ground, &args, async |_| {}, mended).await;
    ground.assert_clean();
}

#[tokio::test]
async fn clones_of_mounted_volumes() {
    for fs in [FsType::Btrfs, FsType::Ext4] {
        let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
        let driver = ground.driver().await;
        let ask = Ask::mount("v", fs.as_str(), Bytes::mib(128));
        let original = driver.stage(&driver.create(&ask).await.unwrap()).await.unwrap();
        write_files(&original.target, 1);
        driver.backend.stop().await;
        let mended = async |driver: &Driver| {
            let ask = Ask::mount("c", "", Bytes::ZERO).clone_of(&volume("v"));
            let clone = driver.stage(&driver.create(&ask).await.unwrap()).await.unwrap();
            assert_files(&clone.target, 1);
            std::fs::write(original.target.join("probe"), "x").unwrap();
            driver.unstage(&clone).await.unwrap();
            driver.delete(&clone.volume.id).await.unwrap();
        };
        killed_at_every_step(&ground, &["clone", "c", "v"], async |_| {}, mended).await;
        let driver = ground.driver().await;
        driver.unstage(&original).await.unwrap();
        ground.assert_clean();
    }
}

#[tokio::test]
async fn snapshots_by_full_copy() {
    let ground = Ground::on(FsType::Ext4, Bytes::gib(1));
    let driver = ground.driver().await;
    with_files(&driver, &Ask::mount("v", "ext4", Bytes::mib(64)), 4).await;
    driver.backend.stop().await;
    let mended = async |driver: &Driver| {
        let snapshot = driver.snapshot(&volume("v"), "s").await.unwrap();
        let ask = Ask::mount("r", "", Bytes::ZERO).restore_of(&snapshot.id);
        let restored = driver.stage(&driver.create(&ask).await.unwrap()).await.unwrap();
        assert_files(&restored.target, 4);
        driver.unstage(&restored).await.unwrap();
        driver.delete(&restored.volume.id).await.unwrap();
        driver.delete_snapshot(&snapshot.id).await.unwrap();
    };
    killed_at_every_step(&ground, &["cut", "v", "s"], async |_| {}, mended).await;
    ground.assert_clean();
}

#[tokio::test]
async fn growth() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    with_files(&driver, &Ask::mount("v", "ext4", Bytes::mib(32)), 2).await;
    driver.backend.stop().await;
    let before = async |driver: &Driver| {
        let _ = driver.delete(&volume("v")).await;
        with_files(driver, &Ask::mount("v", "ext4", Bytes::mib(32)), 2).await;
    };
    let mended = async |driver: &Driver| {
        assert_eq!(driver.expand(&volume("v"), Bytes::mib(96)).await.unwrap(), Bytes::mib(96));
        let staged = staged(driver, "v").await;
        assert_files(&staged.target, 2);
        assert!(driver.available(&staged) > Bytes::mib(70));
        driver.unstage(&staged).await.unwrap();
    };
    killed_at_every_step(&ground, &["expand", "v", "96Mi"], before, mended).await;
    ground.assert_clean();
}

#[tokio::test]
async fn deletion_also_of_a_volume_whose_device_was_left_attached() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let before = async |driver: &Driver| {
        let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
        driver.block(&volume).await.unwrap();
    };
    let mended = async |driver: &Driver| {
        driver.delete(&volume("v")).await.unwrap();
        let gone = driver.backend.get_volume(&volume("v")).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
        ground.assert_clean();
    };
    killed_at_every_step(&ground, &["delete", "v"], before, mended).await;
    let before = async |driver: &Driver| {
        let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
        driver.snapshot(&volume.id, "s").await.unwrap();
    };
    let mended = async |driver: &Driver| {
        driver.delete_snapshot(&snapshot("s")).await.unwrap();
        let gone = driver.backend.get_snapshot(&snapshot("s")).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
    };
    killed_at_every_step(&ground, &["delete-snapshot", "s"], before, mended).await;
}

#[tokio::test]
async fn connecting_and_disconnecting() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let raw = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    driver.backend.stop().await;
    for step in 1..20 {
        let done = operate::run(&ground.path(), &["connect", "v"], Some(step));
        let driver = ground.driver().await;
        // The node was killed before it could note the device: it is found by its image.
        let (_, attachment) = driver.block(&raw).await.unwrap();
        let devices = driver.host.loops.find(&driver.image(&raw.id)).unwrap();
        assert_eq!(devices.len(), 1);
        driver.backend.stop().await;
        let undone = operate::run(&ground.path(), &["disconnect", "v"], Some(step));
        let driver = ground.driver().await;
        driver.backend.disconnect(&raw.id, None, &Cx::new()).await.unwrap();
        driver.backend.disconnect(&raw.id, Some(&attachment), &Cx::new()).await.unwrap();
        ground.assert_clean();
        driver.backend.stop().await;
        if done && undone {
            return;
        }
    }
    unreachable!("it never ends");
}
