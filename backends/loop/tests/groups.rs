//! Groups of snapshots: all volumes at one moment, all or none.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_backend_loop::FreezeLimits;
use larder_model::{
    AccessType, Backend, Bytes, Connect, Cx, FsType, Kind, MountAccess, Provision, SnapshotId,
    VolumeId,
    volume::{GroupSnapshot, Volume},
};
use rstest::rstest;
use std::{fs::File, time::Duration};
use support::{
    Ask, Driver, Ground, Staged, assert_files, consistency, cut_group, delete_group, operate,
    restored, write_files,
    writer::{Writer, number},
};

async fn created(driver: &Driver, name: &str, fs: FsType) -> Volume {
    let size = Bytes::mib(if fs == FsType::Xfs { 300 } else { 128 });
    driver.create(&Ask::mount(name, fs.as_str(), size)).await.unwrap()
}

async fn staged(driver: &Driver, name: &str, fs: FsType) -> Staged {
    driver.stage(&created(driver, name, fs).await).await.unwrap()
}

fn ids(staged: &[&Staged]) -> Vec<VolumeId> {
    staged.iter().map(|s| s.volume.id.clone()).collect()
}

fn member(group: &GroupSnapshot, of: &VolumeId) -> SnapshotId {
    group.snapshots.iter().find(|s| s.source == *of).unwrap().id.clone()
}

#[rstest]
#[tokio::test]
async fn a_group_is_one_moment_of_all_its_volumes(
    #[values(FsType::Xfs, FsType::Btrfs, FsType::Ext4)] pool: FsType,
) {
    let ground = Ground::on(pool, Bytes::gib(4));
    let driver = ground.driver().await;
    // Volumes of every file system, one of them not in use.
    let one = staged(&driver, "one", FsType::Ext4).await;
    let two = staged(&driver, "two", FsType::Btrfs).await;
    let three = staged(&driver, "three", FsType::Xfs).await;
    let idle = staged(&driver, "idle", FsType::Ext4).await;
    write_files(&idle.target, 7);
    driver.unstage(&idle).await.unwrap();
    let volumes = ids(&[&one, &two, &three, &idle]);
    // Written in this order, volume by volume: whatever is in the second is in the first.
    let file = |staged: &Staged, name| (File::create(staged.target.join(name)).unwrap(), 0);
    let writers = [
        Writer::start(file(&one, "a"), file(&two, "a")),
        Writer::start(file(&two, "b"), file(&three, "b")),
        Writer::start(file(&three, "c"), file(&one, "c")),
    ];
    for n in 0..3 {
        writers.iter().for_each(|writer| writer.goes_on());
        let before = writers.each_ref().map(Writer::written);
        let name = format!("g{n}");
        let group = cut_group(&driver, &name, &volumes).await.unwrap();
        let after = writers.each_ref().map(Writer::written);
        writers.iter().for_each(|writer| writer.goes_on());
        assert_eq!(consistency(&ground, &format!("{name}-one")), "frozen");
        assert_eq!(consistency(&ground, &format!("{name}-idle")), "clean");
        let mut copies = Vec::new();
        for (of, fs) in [(&one, FsType::Ext4), (&two, FsType::Btrfs), (&three, FsType::Xfs)] {
            copies.push(restored(&driver, &member(&group, &of.volume.id), fs).await);
        }
        for (n, (first, second, name)) in [(0, 1, "a"), (1, 2, "b"), (2, 0, "c")].iter().enumerate()
        {
            let read = |at: usize| number(&std::fs::read(copies[at].target.join(name)).unwrap());
            let (first, second) = (read(*first), read(*second));
            assert!(second <= first && first <= second + 1, "{name}: {first} then {second}");
            // A record is written a moment before it is counted.
            assert!(second >= before[n] && second <= after[n] + 1, "{name}: {second}");
        }
        let still = restored(&driver, &member(&group, &idle.volume.id), FsType::Ext4).await;
        assert_files(&still.target, 7);
        for copy in copies.iter().chain([&still]) {
            driver.unstage(copy).await.unwrap();
            driver.delete(&copy.volume.id).await.unwrap();
        }
        delete_group(&driver, &name, &volumes).await.unwrap();
    }
    drop(writers);
    for staged in [&one, &two, &three] {
        driver.unstage(staged).await.unwrap();
    }
    ground.assert_clean();
}

#[tokio::test]
async fn a_raw_block_device_in_use_cannot_be_cut_with_others() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let mounted = staged(&driver, "mounted", FsType::Ext4).await;
    let raw = driver.create(&Ask::block("raw", Bytes::mib(16))).await.unwrap();
    let (_, attachment) = driver.block(&raw).await.unwrap();
    let volumes = [mounted.volume.id.clone(), raw.id.clone()];
    let writer = Writer::in_files(&mounted.target);
    let fault = cut_group(&driver, "g", &volumes).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("volume default/raw"), "{fault}");
    assert!(fault.to_string().contains("raw block"), "{fault}");
    writer.goes_on();
    for folder in ["creating", "deleting", "groups", "snapshots"] {
        let left = std::fs::read_dir(ground.pool_path("default").join(folder)).unwrap().count();
        assert_eq!(left, 0, "left in {folder}");
    }
    // Nobody uses it: it holds still.
    driver.backend.disconnect(&raw.id, Some(&attachment), &Cx::new()).await.unwrap();
    let group = cut_group(&driver, "g", &volumes).await.unwrap();
    assert_eq!(group.snapshots.len(), 2);
    drop(writer);
    driver.unstage(&mounted).await.unwrap();
    ground.assert_clean();
}

/// It is attached before it is formatted and mounted: nobody has to act for that to pass.
#[tokio::test]
async fn a_volume_that_is_being_staged_is_cut_with_others_a_little_later() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("a", "ext4", Bytes::mib(16))).await.unwrap();
    let mount = AccessType::Mount(MountAccess::default());
    let (_, hold, attachment) = driver.connect(&volume, mount, false).await.unwrap();
    let ids = [volume.id.clone()];
    let fault = cut_group(&driver, "g", &ids).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    drop(hold);
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    cut_group(&driver, "g", &ids).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn where_blocks_cannot_be_shared_the_mounted_members_together_must_be_small() {
    let mut ground = Ground::on(FsType::Ext4, Bytes::gib(1));
    ground.limits = FreezeLimits { copied: Bytes::mib(16), ..FreezeLimits::default() };
    let driver = ground.driver().await;
    let one = staged(&driver, "one", FsType::Ext4).await;
    let two = staged(&driver, "two", FsType::Ext4).await;
    for staged in [&one, &two] {
        let much = staged.target.join("much");
        std::fs::write(&much, support::pattern(1, 8 << 20)).unwrap();
        File::open(&much).unwrap().sync_all().unwrap();
        driver.snapshot(&staged.volume.id, staged.volume.id.native().as_str()).await.unwrap();
    }
    let fault = cut_group(&driver, "g", &ids(&[&one, &two])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("the limit is 16Mi"), "{fault}");
    // Only what is mounted must be held back.
    driver.unstage(&two).await.unwrap();
    cut_group(&driver, "g", &ids(&[&one, &two])).await.unwrap();
    driver.unstage(&one).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn the_file_system_that_holds_a_pool_is_not_frozen_for_a_group() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let plain = staged(&driver, "plain", FsType::Ext4).await;
    let holds = staged(&driver, "holds", FsType::Ext4).await;
    // The volume's file system becomes a pool itself.
    let nested = ground.pool_path("nested");
    ground.mount(&holds.device, FsType::Ext4, &nested, &[]);
    driver.backend.stop().await;
    let driver = ground.driver().await;
    let fault = cut_group(&driver, "g", &ids(&[&plain, &holds])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    for target in [&plain.target, &nested] {
        std::fs::write(target.join("still-writable"), "x").unwrap();
    }
    assert!(ground.left_over().iter().all(|left| !left.contains("creating")));
    driver.backend.stop().await;
    driver.unmount(&nested).await.unwrap();
}

#[tokio::test]
async fn a_group_that_takes_longer_than_the_freeze_is_thrown_away() {
    let mut ground = Ground::on(FsType::Ext4, Bytes::gib(2));
    ground.limits = FreezeLimits { deadline: Duration::from_millis(1), copied: Bytes::gib(1) };
    let driver = ground.driver().await;
    let one = staged(&driver, "one", FsType::Ext4).await;
    let two = staged(&driver, "two", FsType::Ext4).await;
    let much = two.target.join("much");
    std::fs::write(&much, support::pattern(1, 96 << 20)).unwrap();
    File::open(&much).unwrap().sync_all().unwrap();
    let writer = Writer::in_files(&one.target);
    let fault = cut_group(&driver, "g", &ids(&[&one, &two])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    writer.goes_on();
    drop(writer);
    for staged in [&one, &two] {
        driver.unstage(staged).await.unwrap();
    }
    ground.assert_clean();
}

/// Kills the operation at step 1, 2, 3 … until it ends by itself, and looks each time.
#[tokio::test]
async fn killed_at_every_step_a_group_is_whole_or_absent_and_its_workloads_go_on() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let one = staged(&driver, "one", FsType::Ext4).await;
    let two = staged(&driver, "two", FsType::Ext4).await;
    let volumes = ids(&[&one, &two]);
    driver.backend.stop().await;
    let file = |staged: &Staged, name| (File::create(staged.target.join(name)).unwrap(), 0);
    let writer = Writer::start(file(&one, "a"), file(&two, "a"));
    for (operation, least) in [("cut-group", 12), ("delete-group", 8)] {
        for step in 1.. {
            let ended = operate::run(&ground.path(), &[operation, "g", "one", "two"], Some(step));
            // Long before the watchdog's deadline.
            writer.goes_on();
            let driver = ground.driver().await;
            assert!(ground.left_over().iter().all(|left| !left.contains("/creating/")));
            let groups = driver.backend.groups().unwrap();
            let (id, specs) = support::group_specs("g", &volumes);
            let snapshots = driver.backend.snapshots().unwrap();
            let mut there = 0;
            for spec in &specs {
                there += usize::from(snapshots.get_snapshot(&spec.id).await.is_ok());
            }
            match groups.get_group(&id).await {
                Ok(group) => assert_eq!((group.snapshots.len(), there), (2, 2), "step {step}"),
                Err(fault) => assert_eq!((fault.kind(), there), (Kind::NotFound, 0), "{step}"),
            }
            if ended {
                assert!(step > least, "{operation} has only {step} steps");
            }
            // Mended by the repeat; then as it was before.
            if operation == "cut-group" {
                let group = cut_group(&driver, "g", &volumes).await.unwrap();
                if ended {
                    let mut copies = Vec::new();
                    for volume in &volumes {
                        let copy = restored(&driver, &member(&group, volume), FsType::Ext4).await;
                        copies.push(copy);
                    }
                    let read =
                        |at: usize| number(&std::fs::read(copies[at].target.join("a")).unwrap());
                    let (first, second) = (read(0), read(1));
                    assert!(second <= first && first <= second + 1, "{first} then {second}");
                    for copy in &copies {
                        driver.unstage(copy).await.unwrap();
                    }
                } else {
                    delete_group(&driver, "g", &volumes).await.unwrap();
                }
            } else {
                delete_group(&driver, "g", &volumes).await.unwrap();
                assert_eq!(groups.get_group(&id).await.unwrap_err().kind(), Kind::NotFound);
                if !ended {
                    cut_group(&driver, "g", &volumes).await.unwrap();
                }
            }
            driver.backend.stop().await;
            if ended {
                break;
            }
        }
    }
    drop(writer);
    let driver = ground.driver().await;
    for staged in [&one, &two] {
        driver.unstage(staged).await.unwrap();
    }
    ground.assert_clean();
}
