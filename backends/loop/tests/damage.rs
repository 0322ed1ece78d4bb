//! Images that are truncated, replaced or deleted under us, devices that are lost, file systems with
//! errors: refused with what was found, told as health, and nothing changed.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{
    Bytes, Cx, FsType, Kind,
    backend::{Attachment, Connect, Health},
    volume::HealthStatus,
};
use std::{fs::File, os::unix::fs::FileExt, path::Path};
use support::{Ask, Driver, Ground, assert_files, run, write_files};

const POOL: Bytes = Bytes::gib(2);

async fn reasons(driver: &Driver, id: &larder_model::VolumeId) -> Vec<&'static str> {
    let found = driver.backend.volume_health(id).await.unwrap();
    found.into_iter().map(|entry| entry.reason).collect()
}

async fn node_reasons(
    driver: &Driver,
    id: &larder_model::VolumeId,
    attachment: &Attachment,
) -> Vec<&'static str> {
    let found = driver.backend.node_health(id, Some(attachment)).await.unwrap();
    let mut pairs: Vec<_> = found.iter().map(|entry| (entry.status, entry.reason)).collect();
    pairs.sort_by_key(|(_, reason)| *reason);
    let all = pairs.len();
    pairs.dedup();
    assert_eq!(pairs.len(), all, "status and reason are unique together");
    found.into_iter().map(|entry| entry.reason).collect()
}

fn detach(driver: &Driver, image: &Path) {
    for info in driver.host.loops.find(image).unwrap() {
        driver.host.loops.detach(info.number, info.backing()).unwrap();
    }
}

#[tokio::test]
async fn a_truncated_image_is_refused_and_left_as_it_is() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    let image = driver.image(&volume.id);
    assert_eq!(reasons(&driver, &volume.id).await, Vec::<&str>::new());
    File::options().write(true).open(&image).unwrap().set_len(4 << 20).unwrap();

    let fault = driver.block(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt);
    assert!(fault.to_string().contains("4194304 bytes and should have 8388608"), "{fault}");
    for refused in [
        driver.snapshot(&volume.id, "s").await.map(drop),
        driver.create(&Ask::block("c", Bytes::ZERO).clone_of(&volume.id)).await.map(drop),
        driver.expand(&volume.id, Bytes::mib(16)).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::Corrupt);
    }
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 4 << 20);
    assert_eq!(reasons(&driver, &volume.id).await, ["ImageTruncated"]);
    ground.assert_clean();
    driver.delete(&volume.id).await.unwrap();
}

#[tokio::test]
async fn an_image_replaced_under_its_device_is_refused_until_somebody_decided() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    let image = driver.image(&volume.id);
    let (device, attachment) = driver.block(&volume).await.unwrap();
    File::options().write(true).open(&device).unwrap().write_all_at(b"old", 0).unwrap();
    let other = image.with_extension("new");
    File::create(&other).unwrap().set_len(8 << 20).unwrap();
    std::fs::rename(&other, &image).unwrap();

    // Its device is the last place of the former data: a start must not take it back as lost.
    assert!(driver.backend.is_connected(&volume.id, &attachment).await.unwrap());
    let fault = driver.block(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("replaced"), "{fault}");
    let cx = Cx::new();
    let fault = driver.backend.refresh_size(&volume.id, &attachment, &cx).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert_eq!(node_reasons(&driver, &volume.id, &attachment).await, ["ImageReplaced"]);
    // The device still shows the former data, and only its own record lets go of it.
    let mut start = [0; 3];
    File::open(&device).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"old");
    driver.backend.disconnect(&volume.id, Some(&attachment), &cx).await.unwrap();
    let (device, attachment) = driver.block(&volume).await.unwrap();
    File::open(&device).unwrap().read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, &[0; 3]);
    driver.backend.disconnect(&volume.id, Some(&attachment), &cx).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_deleted_image_is_told_and_its_device_can_still_be_released() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(32))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 1);
    std::fs::remove_file(driver.image(&volume.id)).unwrap();

    let found = node_reasons(&driver, &volume.id, &staged.attachment).await;
    assert_eq!(found, ["DataMissing", "ImageDeleted"]);
    let entries = driver.backend.volume_health(&volume.id).await.unwrap();
    assert_eq!(entries[0].status, HealthStatus::DataLoss);
    assert!(driver.backend.is_connected(&volume.id, &staged.attachment).await.unwrap());
    let fault = driver.stage(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt);
    assert!(fault.to_string().contains("missing"), "{fault}");
    // In use by its former file: not deleted, though there is nothing left to delete.
    assert_eq!(driver.delete(&volume.id).await.unwrap_err().kind(), Kind::Precondition);
    assert_files(&staged.target, 1);
    driver.unstage(&staged).await.unwrap();
    driver.delete(&volume.id).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_loop_number_that_became_somebody_elses_is_never_touched() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let first = driver.create(&Ask::block("first", Bytes::mib(8))).await.unwrap();
    let second = driver.create(&Ask::block("second", Bytes::mib(8))).await.unwrap();
    let (device, stale) = driver.block(&first).await.unwrap();
    detach(&driver, &driver.image(&first.id));
    assert_eq!(node_reasons(&driver, &first.id, &stale).await, ["LoopDeviceLost"]);
    // The record of the first, with the number that the second has now.
    let (_, current) = driver.block(&second).await.unwrap();
    let mut stale = stale;
    stale.insert("loop".into(), current["loop"].clone());
    assert!(!driver.backend.is_connected(&first.id, &stale).await.unwrap());
    let cx = Cx::new();
    let refused = driver.backend.refresh_size(&first.id, &stale, &cx).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Precondition);
    driver.backend.disconnect(&first.id, Some(&stale), &cx).await.unwrap();
    assert!(driver.backend.is_connected(&second.id, &current).await.unwrap());
    // A record that says nothing: the device is found by the image.
    let (again, _) = driver.block(&first).await.unwrap();
    assert!(again.exists() && device.starts_with("/dev"));
    let garbage = Attachment::from([("loop".into(), "x".into())]);
    assert!(!driver.backend.is_connected(&first.id, &garbage).await.unwrap());
    driver.backend.disconnect(&first.id, Some(&garbage), &cx).await.unwrap();
    driver.backend.disconnect(&second.id, None, &cx).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_second_device_made_by_hand_is_taken_away_or_refused() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    let image = driver.image(&volume.id);
    let image_text = image.display().to_string();
    let by_hand = run("losetup", &["--find", "--show", &image_text]).trim().to_owned();
    // One: taken over, whoever made it.
    let (device, attachment) = driver.block(&volume).await.unwrap();
    assert_eq!(device, Path::new(&by_hand));
    // Two, one of them open: that one.
    let open = File::open(&device).unwrap();
    run("losetup", &["--find", &image_text]);
    assert_eq!(driver.block(&volume).await.unwrap().0, device);
    // Two, both open: writing through both would destroy the data.
    let second = run("losetup", &["--find", "--show", &image_text]).trim().to_owned();
    let also = File::open(&second).unwrap();
    let fault = driver.block(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains(&second), "{fault}");
    drop((open, also));
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_device_published_but_not_open_keeps_its_volume_from_deletion() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    let (device, attachment) = driver.block(&volume).await.unwrap();
    let target = ground.path().join("target");
    File::create(&target).unwrap();
    let bind = larder_host::BindRequest {
        source: device,
        target: target.clone(),
        read_only: false,
        options: Vec::new(),
    };
    driver.host.mounts.bind(&bind).unwrap();
    let fault = driver.delete(&volume.id).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("published at"), "{fault}");
    // Nor is it detached, with its record or (wiped) without: its number would soon be another's.
    for attachment in [Some(&attachment), None] {
        let done = driver.backend.disconnect(&volume.id, attachment, &Cx::new()).await;
        let fault = done.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert!(fault.to_string().contains("published at"), "{fault}");
    }
    File::options().write(true).open(&target).unwrap().write_all_at(b"mine", 0).unwrap();
    driver.unmount(&target).await.unwrap();
    // Nobody uses what is left: a killed process left it.
    driver.delete(&volume.id).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn errors_of_the_file_system_are_told() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("e", "ext4", Bytes::mib(32))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let health = async || node_reasons(&driver, &volume.id, &staged.attachment).await;
    assert_eq!(health().await, Vec::<&str>::new());
    let name = staged.device.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "on purpose").unwrap();
    assert!(health().await.contains(&"FileSystemErrors"), "{:?}", health().await);
    driver.unmount(&staged.target).await.unwrap();
    driver.backend.disconnect(&volume.id, Some(&staged.attachment), &Cx::new()).await.unwrap();
    // Also while nothing is attached, from the superblock.
    assert_eq!(reasons(&driver, &volume.id).await, ["FileSystemErrors"]);

    let volume = driver.create(&Ask::mount("x", "xfs", Bytes::mib(300))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    assert_eq!(node_reasons(&driver, &volume.id, &staged.attachment).await, Vec::<&str>::new());
    run("xfs_io", &["-x", "-c", "shutdown", &staged.target.display().to_string()]);
    assert_eq!(node_reasons(&driver, &volume.id, &staged.attachment).await, ["FileSystemShutDown"]);
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_start_makes_no_files_beside_a_pools_own_folders() {
    let ground = Ground::on(FsType::Xfs, POOL);
    drop(ground.driver().await);
    // Nothing can be made in the pool's own directory now, not even for a moment.
    let pool = ground.pool_path("default").display().to_string();
    run("chattr", &["+i", &pool]);
    let driver = ground.driver().await;
    let made = driver.create(&Ask::block("v", Bytes::mib(8))).await;
    run("chattr", &["-i", &pool]);
    let volume = made.unwrap();
    assert!(driver.backend.pool(&"default".parse().unwrap()).unwrap().traits().warnings.is_empty());
    driver.delete(&volume.id).await.unwrap();
}
