//! Copies of volumes that are in use are one moment of their write stream.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_backend_loop::FreezeLimits;
use larder_model::{Bytes, FsType, Kind, SnapshotId, VolumeId};
use rstest::rstest;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use support::{
    Ask, Ground, assert_files, consistency, restored, write_files,
    writer::{RECORD, Writer, number, numbers},
};

fn size(fs: FsType) -> Bytes {
    match fs {
        FsType::Ext4 => Bytes::mib(64),
        FsType::Xfs => Bytes::mib(300),
        FsType::Btrfs => Bytes::mib(256),
    }
}

#[rstest]
#[tokio::test]
async fn a_snapshot_of_a_mounted_volume_is_one_moment_of_all_its_files(
    #[values(FsType::Xfs, FsType::Btrfs, FsType::Ext4)] pool: FsType,
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let ground = Ground::on(pool, Bytes::gib(4));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", fs.as_str(), size(fs))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let writer = Writer::in_files(&staged.target);
    for n in 0..3 {
        writer.goes_on();
        let before = writer.written();
        let name = format!("s{n}");
        let snapshot = driver.snapshot(&volume.id, &name).await.unwrap();
        let after = writer.written();
        writer.goes_on();
        assert_eq!(consistency(&ground, &name), "frozen");

        let copy = restored(&driver, &snapshot.id, fs).await;
        let read = |name: &str| number(&std::fs::read(copy.target.join(name)).unwrap());
        let (first, second) = (read("first"), read("second"));
        assert!(second <= first && first <= second + 1, "first {first}, second {second}");
        // Nothing was fsynced, and all the same everything written before the call is in it. A record
        // is written a moment before it is counted.
        assert!(second >= before && second <= after + 1, "{before} <= {second} <= {after} + 1");
        driver.unstage(&copy).await.unwrap();
        driver.delete(&copy.volume.id).await.unwrap();
        driver.delete_snapshot(&snapshot.id).await.unwrap();
    }
    drop(writer);
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[rstest]
#[tokio::test]
async fn a_snapshot_of_a_raw_block_device_in_use_is_what_a_power_cut_would_leave(
    #[values(FsType::Xfs, FsType::Btrfs)] pool: FsType,
    #[values(true, false)] synced: bool,
) {
    const SECOND: u64 = 4 << 20;
    let ground = Ground::on(pool, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(16))).await.unwrap();
    let (device, attachment) = driver.block(&volume).await.unwrap();
    let open = || {
        const O_DSYNC: i32 = 0o10000;
        let flags = if synced { O_DSYNC } else { 0 };
        OpenOptions::new().write(true).custom_flags(flags).open(&device).unwrap()
    };
    let writer = Writer::start((open(), 0), (open(), SECOND));
    for n in 0..5 {
        writer.goes_on();
        let before = writer.written();
        let name = format!("s{n}");
        let snapshot = driver.snapshot(&volume.id, &name).await.unwrap();
        let after = writer.written();
        assert_eq!(consistency(&ground, &name), "crash");
        let image = ground.pool_path("default").join("snapshots").join(&name).join("image");
        let read = |at: u64| {
            let mut bytes = vec![0; RECORD];
            File::open(&image).unwrap().read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        let (first, second) = (read(0), read(SECOND));
        // Everything that was written before the call is in it, synced or not. A write that nobody
        // syncs may be torn: its page changes while it is on its way to the image.
        let (oldest, newest) = (*numbers(&second).start(), *numbers(&first).end());
        assert!(oldest >= before && newest <= after + 1, "{before} {oldest} {newest} {after}");
        if synced {
            let (first, second) = (number(&first), number(&second));
            assert!(second <= first && first <= second + 1, "first {first}, second {second}");
        }
        driver.delete_snapshot(&snapshot.id).await.unwrap();
    }
    drop(writer);
    let cx = larder_model::Cx::new();
    use larder_model::Connect;
    driver.backend.disconnect(&volume.id, Some(&attachment), &cx).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn where_blocks_cannot_be_shared_nothing_is_copied_that_does_not_hold_still() {
    let mut ground = Ground::on(FsType::Ext4, Bytes::gib(1));
    ground.limits = FreezeLimits { copied: Bytes::mib(8), ..FreezeLimits::default() };
    let driver = ground.driver().await;
    let raw = driver.create(&Ask::block("raw", Bytes::mib(16))).await.unwrap();
    let (_, attachment) = driver.block(&raw).await.unwrap();
    let clone_raw = Ask::block("c", Bytes::ZERO).clone_of(&raw.id);
    for refused in
        [driver.snapshot(&raw.id, "s").await.map(drop), driver.create(&clone_raw).await.map(drop)]
    {
        let fault = refused.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("raw block"), "{fault}");
        assert!(fault.hint_text().unwrap().contains("reflink"), "{fault}");
    }
    let cx = larder_model::Cx::new();
    use larder_model::Connect;
    driver.backend.disconnect(&raw.id, Some(&attachment), &cx).await.unwrap();
    driver.snapshot(&raw.id, "s").await.unwrap();

    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(64))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    // Little is allocated: held back for a moment.
    std::fs::write(staged.target.join("little"), "x").unwrap();
    driver.snapshot(&volume.id, "little").await.unwrap();
    assert_eq!(consistency(&ground, "little"), "frozen");
    let much = staged.target.join("much");
    std::fs::write(&much, support::pattern(1, 12 << 20)).unwrap();
    File::open(&much).unwrap().sync_all().unwrap();
    let fault = driver.snapshot(&volume.id, "much").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("the limit is 8Mi"), "{fault}");
    driver.unstage(&staged).await.unwrap();
    driver.snapshot(&volume.id, "much").await.unwrap();
    assert_eq!(consistency(&ground, "much"), "clean");
    ground.assert_clean();
}

#[tokio::test]
async fn the_file_system_that_holds_a_pool_is_never_frozen() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(256))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    // The volume's file system becomes a pool itself.
    let nested = ground.pool_path("nested");
    ground.mount(&staged.device, FsType::Ext4, &nested, &[]);
    use larder_model::Backend;
    driver.backend.stop().await;
    let driver = ground.driver().await;
    let fault = driver.snapshot(&volume.id, "s").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(ground.left_over().iter().all(|left| !left.contains("creating")));
    std::fs::write(nested.join("still-writable"), "x").unwrap();
    driver.backend.stop().await;
    driver.unmount(&nested).await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_process_killed_while_it_holds_writes_back_lets_them_go_on(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", fs.as_str(), size(fs))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 1);
    let writer = Writer::in_files(&staged.target);
    use larder_model::Backend;
    driver.backend.stop().await;
    let mut killed = 0;
    for step in 1.. {
        let ended = support::operate::run(&ground.path(), &["cut", "v", "s"], Some(step));
        // Long before the watchdog's deadline.
        writer.goes_on();
        if ended {
            break;
        }
        killed += 1;
    }
    assert!(killed > 5, "only {killed} steps");
    let driver = ground.driver().await;
    assert!(ground.left_over().iter().all(|left| !left.contains("creating")));
    let id = SnapshotId::new("default".parse().unwrap(), "s".parse().unwrap());
    let copy = restored(&driver, &id, fs).await;
    assert_files(&copy.target, 1);
    driver.unstage(&copy).await.unwrap();
    drop(writer);
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_copy_that_takes_longer_than_the_freeze_is_thrown_away() {
    let mut ground = Ground::on(FsType::Ext4, Bytes::gib(2));
    ground.limits = FreezeLimits { deadline: Duration::from_millis(1), copied: Bytes::gib(1) };
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(600))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let much = staged.target.join("much");
    std::fs::write(&much, support::pattern(1, 300 << 20)).unwrap();
    File::open(&much).unwrap().sync_all().unwrap();
    let writer = Writer::in_files(&staged.target);
    let fault = driver.snapshot(&volume.id, "s").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    writer.goes_on();
    drop(writer);
    let id = VolumeId::new("default".parse().unwrap(), "v".parse().unwrap());
    assert_eq!(id, volume.id);
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn snapshots_of_a_volume_that_comes_and_goes_are_whole() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = Arc::new(ground.driver().await);
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(64))).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let (node, used, ended) = (driver.clone(), volume.clone(), stop.clone());
    let mut workload = tokio::task::JoinSet::new();
    let count = rounds.clone();
    workload.spawn(async move {
        while !ended.load(Ordering::SeqCst) {
            let staged = node.stage(&used).await.unwrap();
            let writer = Writer::in_files(&staged.target);
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(writer);
            // A snapshot may hold the mount for a moment.
            node.unstage(&staged).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut cut = Vec::new();
    for n in 0.. {
        let enough = n >= 12 && cut.len() > 4 && rounds.load(Ordering::SeqCst) >= 4;
        if enough || workload.try_join_next().is_some() {
            break;
        }
        match driver.snapshot(&volume.id, &format!("s{n}")).await {
            Ok(snapshot) => cut.push((n, snapshot)),
            // Being formatted, or in use and out of use too often.
            Err(fault) => {
                assert!(matches!(fault.kind(), Kind::Aborted | Kind::Unavailable), "{fault}");
            }
        }
        tokio::time::sleep(Duration::from_millis(7 * (n % 12))).await;
    }
    stop.store(true, Ordering::SeqCst);
    workload.join_all().await;
    assert!(rounds.load(Ordering::SeqCst) >= 4);
    assert!(cut.len() > 4, "only {} snapshots", cut.len());
    for (n, snapshot) in cut.into_iter().take(12) {
        // Before it was formatted there is nothing to look at.
        if n == 0 {
            continue;
        }
        let copy = restored(&driver, &snapshot.id, FsType::Ext4).await;
        let read = |name: &str| std::fs::read(copy.target.join(name)).unwrap_or_default();
        let (first, second) = (read("first"), read("second"));
        // Files are made empty in each round; a whole record in the second follows the first.
        if second.len() == RECORD && consistency(&ground, &format!("s{n}")) != "crash" {
            let (first, second) = (number(&first), number(&second));
            assert!(second <= first && first <= second + 1, "first {first}, second {second}");
        }
        driver.unstage(&copy).await.unwrap();
    }
    ground.assert_clean();
}
