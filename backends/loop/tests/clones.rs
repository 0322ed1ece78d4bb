//! Copies that mount beside their original, on any kernel; and how devices are attached.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

pub(crate) mod support;

use larder_model::{Bytes, Cx, FsType, VolumeId, backend::Connect};
use rstest::rstest;
use std::fs::File;
use support::{Ask, Ground, assert_files, run, write_files};

#[tokio::test]
async fn a_btrfs_cut_with_a_log_tree_mounts_beside_its_original() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "btrfs", Bytes::mib(256))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 1);
    run("sync", &["--file-system", &staged.target.display().to_string()]);
    // Synced since the last commit: these are only in the log tree.
    write_files(&staged.target.join("."), 50);
    let device = File::open(&staged.device).unwrap();
    device.sync_all().unwrap();
    drop(device);

    // What a power cut at this moment would leave, put there by an administrator.
    let image = ground.pool_path("default").join("static/cut.img");
    let original = driver.image(&volume.id).display().to_string();
    run("cp", &["--reflink=always", &original, &image.display().to_string()]);
    let dump = run("btrfs", &["inspect-internal", "dump-super", &image.display().to_string()]);
    let log = dump.lines().find_map(|l| l.strip_prefix("log_root\t")).unwrap().trim();
    assert_ne!(log, "0", "the copy has no log tree: this proves nothing");

    let cut = VolumeId("default/cut".parse().unwrap());
    let copy = Ask::mount("c", "btrfs", Bytes::mib(300)).clone_of(&cut);
    let copy = driver.create(&copy).await.unwrap();
    // Known of a static image is only what its owner says.
    let state = larder_model::volume::FormatState::Formatted { fs: FsType::Btrfs };
    driver.backend.set_format_state(&copy.id, state).await.unwrap();
    let copy = driver.stage(&copy).await.unwrap();
    assert_files(&copy.target, 50);
    // And both again, in the other order.
    driver.unstage(&staged).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    assert_files(&staged.target, 50);
    driver.unstage(&copy).await.unwrap();
    driver.unstage(&staged).await.unwrap();
    let image = driver.image(&copy.volume.id).display().to_string();
    run("btrfs", &["check", "--readonly", &image]);
    ground.assert_clean();
}

#[tokio::test]
async fn a_raw_block_copy_is_the_same_byte_for_byte() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(128))).await.unwrap();
    // A btrfs that is the workload's own affair keeps its fsid.
    let image = driver.image(&volume.id);
    run("mkfs.btrfs", &["-q", &image.display().to_string()]);
    let copy = driver.create(&Ask::block("c", Bytes::ZERO).clone_of(&volume.id)).await.unwrap();
    let same = std::fs::read(&image).unwrap() == std::fs::read(driver.image(&copy.id)).unwrap();
    assert!(same, "the copy of a raw block volume was changed");
}

#[rstest]
#[case::auto("auto", FsType::Xfs, true)]
#[case::auto_on_btrfs("auto", FsType::Btrfs, false)]
#[case::always("always", FsType::Xfs, true)]
#[case::never("never", FsType::Xfs, false)]
#[tokio::test]
async fn direct_io_is_used_where_it_is_asked_for_and_safe(
    #[case] value: &'static str,
    #[case] pool: FsType,
    #[case] direct: bool,
) {
    let ground = Ground::on(pool, Bytes::mib(400));
    let driver = ground.driver().await;
    let ask = Ask::block("v", Bytes::mib(4)).parameter("directIo", value);
    let volume = driver.create(&ask).await.unwrap();
    let (_, attachment) = driver.block(&volume).await.unwrap();
    let device = driver.host.loops.find(&driver.image(&volume.id)).unwrap().remove(0);
    assert_eq!(device.direct_io, direct);
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    ground.assert_clean();
}
