//! Whole lives of volumes on a real kernel: every file system in every kind of pool.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{Bytes, Cx, FsType, Kind, Provision, backend::Connect, volume::context};
use rstest::rstest;
use std::{fs::File, os::unix::fs::FileExt};
use support::{Ask, Ground, assert_files, pattern, write_files};

const POOL: Bytes = Bytes::gib(4);

/// Least sizes, so that copies are cheap.
fn size(fs: FsType) -> Bytes {
    match fs {
        FsType::Ext4 => Bytes::mib(64),
        FsType::Xfs => Bytes::mib(320),
        FsType::Btrfs => Bytes::mib(256),
    }
}

#[rstest]
#[tokio::test]
async fn a_volume_lives_from_creation_to_deletion(
    #[values(FsType::Xfs, FsType::Btrfs, FsType::Ext4)] pool: FsType,
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let ground = Ground::on(pool, POOL);
    let driver = ground.driver().await;

    let volume = driver.create(&Ask::mount("data", fs.as_str(), size(fs))).await.unwrap();
    assert_eq!((volume.capacity, volume.context[context::FS].as_str()), (size(fs), fs.as_str()));
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 1);

    // Cut while mounted; what comes later is not in it.
    let snapshot = driver.snapshot(&volume.id, "before").await.unwrap();
    assert_eq!(snapshot.size, size(fs));
    write_files(&staged.target, 100);

    // Restored larger, mounted beside the original.
    let larger = Bytes::mib(512);
    let ask = Ask::mount("restored", "", larger).restore_of(&snapshot.id);
    let restored = driver.create(&ask).await.unwrap();
    assert_eq!((restored.capacity, restored.context[context::FS].as_str()), (larger, fs.as_str()));
    let restored = driver.stage(&restored).await.unwrap();
    assert_files(&restored.target, 1);
    let total = driver.available(&restored).get();
    assert!(total > Bytes::mib(400).get(), "the file system was not grown: {total}");

    // Cloned while mounted, mounted beside both.
    let clone = driver.create(&Ask::mount("clone", "", Bytes::ZERO).clone_of(&volume.id)).await;
    let clone = driver.stage(&clone.unwrap()).await.unwrap();
    assert_files(&clone.target, 100);
    write_files(&clone.target, 200);
    assert_files(&staged.target, 100);

    // A copy of a copy, with everything still mounted.
    let again = Ask::mount("again", "", Bytes::ZERO).clone_of(&clone.volume.id);
    let again = driver.stage(&driver.create(&again).await.unwrap()).await.unwrap();
    assert_files(&again.target, 200);

    // Grown: online, or for ext4 (whose growth online needs CAP_SYS_RESOURCE) between two mounts.
    assert_eq!(driver.expand(&volume.id, larger).await.unwrap(), larger);
    let staged = if fs == FsType::Ext4 {
        driver.unstage(&staged).await.unwrap();
        driver.stage(&driver.backend.get_volume(&volume.id).await.unwrap()).await.unwrap()
    } else {
        let now = driver.backend.refresh_size(&volume.id, &staged.attachment, &Cx::new()).await;
        assert_eq!(now.unwrap(), larger);
        driver.host.filesystems.grow(&staged.device, fs, Some(&staged.target)).unwrap();
        staged
    };
    assert!(driver.available(&staged).get() > Bytes::mib(400).get());
    assert_files(&staged.target, 100);

    // In use: not deleted, and it says where.
    let fault = driver.delete(&volume.id).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains(&staged.target.display().to_string()), "{fault}");

    for staged in [staged, restored, clone, again] {
        driver.unstage(&staged).await.unwrap();
        assert!(!driver.backend.is_connected(&staged.volume.id, &staged.attachment).await.unwrap());
        driver.unstage(&staged).await.unwrap();
        driver.delete(&staged.volume.id).await.unwrap();
        driver.delete(&staged.volume.id).await.unwrap();
    }
    driver.delete_snapshot(&snapshot.id).await.unwrap();
    ground.assert_clean();
}

#[rstest]
#[tokio::test]
async fn a_raw_block_volume_lives_from_creation_to_deletion(
    #[values(FsType::Xfs, FsType::Btrfs, FsType::Ext4)] pool: FsType,
) {
    let ground = Ground::on(pool, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("raw", Bytes::mib(8))).await.unwrap();
    assert!(!volume.context.contains_key(context::FS));
    let (device, attachment) = driver.block(&volume).await.unwrap();
    let open = || File::options().read(true).write(true).open(&device).unwrap();
    let read = |len: usize| {
        let mut bytes = vec![0; len];
        open().read_exact_at(&mut bytes, 1 << 20).unwrap();
        bytes
    };
    assert_eq!(read(1 << 20), vec![0; 1 << 20]);
    let written = pattern(7, 1 << 20);
    let file = open();
    file.write_all_at(&written, 1 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);

    // Workloads open and close it as they like.
    assert!(driver.backend.is_connected(&volume.id, &attachment).await.unwrap());
    assert_eq!(driver.block(&volume).await.unwrap(), (device.clone(), attachment.clone()));

    // Grown while connected.
    assert_eq!(driver.expand(&volume.id, Bytes::mib(16)).await.unwrap(), Bytes::mib(16));
    let now = driver.backend.refresh_size(&volume.id, &attachment, &Cx::new()).await.unwrap();
    assert_eq!(now, Bytes::mib(16));
    assert_eq!(read(1 << 20), written);

    // Open: neither disconnected nor deleted.
    let file = open();
    let attached = Some(&attachment);
    let fault = driver.backend.disconnect(&volume.id, attached, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    let fault = driver.delete(&volume.id).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("open in process"), "{fault}");
    assert!(driver.backend.is_connected(&volume.id, &attachment).await.unwrap());
    drop(file);

    driver.backend.disconnect(&volume.id, attached, &Cx::new()).await.unwrap();
    driver.backend.disconnect(&volume.id, attached, &Cx::new()).await.unwrap();
    let copy = Ask::block("copy", Bytes::ZERO).clone_of(&volume.id);
    let copy = driver.create(&copy).await.unwrap();
    assert_eq!(copy.capacity, Bytes::mib(16));
    let image = std::fs::read(driver.image(&copy.id)).unwrap();
    assert!(image[1 << 20..2 << 20] == written[..], "the clone lacks what was written");
    driver.delete(&volume.id).await.unwrap();
    driver.delete(&copy.id).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn sectors_of_4096_bytes_reach_the_workload_and_stay_with_copies() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    for fs in FsType::ALL {
        let name = format!("v-{fs}");
        let ask = Ask::mount(&name, fs.as_str(), size(fs)).parameter("sectorSize", "4096");
        let volume = driver.create(&ask).await.unwrap();
        assert_eq!(volume.context["sectorSize"], "4096");
        let staged = driver.stage(&volume).await.unwrap();
        write_files(&staged.target, 1);
        let info = driver.host.loops.find(&driver.image(&volume.id)).unwrap();
        assert_eq!(info[0].sector_size, 4096);

        let clone = Ask::mount(&format!("{name}-clone"), "", Bytes::ZERO).clone_of(&volume.id);
        let wrong = Ask { name: "wrong".into(), ..clone.clone() }.parameter("sectorSize", "512");
        let fault = driver.create(&wrong).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid);
        assert!(fault.to_string().contains("sectorSize"), "{fault}");
        let clone = driver.stage(&driver.create(&clone).await.unwrap()).await.unwrap();
        let info = driver.host.loops.find(&driver.image(&clone.volume.id)).unwrap();
        assert_eq!(info[0].sector_size, 4096);
        assert_files(&clone.target, 1);
        driver.unstage(&clone).await.unwrap();
        driver.unstage(&staged).await.unwrap();
    }
    ground.assert_clean();
}

#[tokio::test]
async fn a_volume_for_both_kinds_of_access_is_used_in_either_way() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let mut ask = Ask::mount("both", "ext4", Bytes::mib(32));
    ask.access.push(larder_model::AccessType::Block);
    let volume = driver.create(&ask).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 3);
    // The same device serves the raw access, and no longer goes away with the mount.
    let (device, attachment) = driver.block(&volume).await.unwrap();
    assert_eq!(device, staged.device);
    driver.unmount(&staged.target).await.unwrap();
    assert!(driver.backend.is_connected(&volume.id, &attachment).await.unwrap());
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    ground.assert_clean();
    let staged = driver.stage(&volume).await.unwrap();
    assert_files(&staged.target, 3);
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_static_image_is_mounted_as_it_is_and_never_deleted() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("origin", "ext4", Bytes::mib(32))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    write_files(&staged.target, 9);
    driver.unstage(&staged).await.unwrap();
    let place = ground.pool_path("default").join("static/old.img");
    std::fs::copy(driver.image(&volume.id), &place).unwrap();

    let id = larder_model::VolumeId("default/old".parse().unwrap());
    let found = driver.backend.get_volume(&id).await.unwrap();
    assert!(found.is_static);
    assert_eq!(found.capacity, Bytes::mib(32));
    let access = larder_model::AccessType::Mount(larder_model::MountAccess::default());
    let (device, hold, attachment) = driver.connect(&found, access, false).await.unwrap();
    let target = ground.folder("mounts/old");
    ground.mount(&device, FsType::Ext4, &target, &[]);
    drop(hold);
    assert_files(&target, 9);
    let snapshot = driver.snapshot(&id, "of-static").await.unwrap();
    let copy = Ask::mount("copy", "ext4", Bytes::ZERO).restore_of(&snapshot.id);
    assert_eq!(driver.create(&copy).await.unwrap().capacity, Bytes::mib(32));
    driver.unmount(&target).await.unwrap();
    driver.backend.disconnect(&id, Some(&attachment), &Cx::new()).await.unwrap();
    assert_eq!(driver.delete(&id).await.unwrap_err().kind(), Kind::Precondition);
    assert!(place.exists());
    ground.assert_clean();
}

/// Who lost the node's records asks about devices that workloads use.
#[tokio::test]
async fn what_is_connected_is_found_and_not_touched() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let block = || larder_model::AccessType::Block;
    let volume = driver.create(&Ask::block("raw", Bytes::mib(4))).await.unwrap();
    assert!(driver.backend.find(&volume.id).await.unwrap().is_none());
    ground.assert_clean();

    // Read-only, and (of a static image) with sectors that nobody asks for here.
    let place = ground.pool_path("default").join("static/large.img");
    larder_host::image::create_sparse(&place, Bytes::mib(4)).unwrap();
    let id = larder_model::VolumeId("default/large".parse().unwrap());
    let mut large = driver.backend.get_volume(&id).await.unwrap();
    large.context.insert("sectorSize".to_owned(), "4096".to_owned());
    for (volume, reading) in [(volume, true), (large, false)] {
        let (device, _, attachment) = driver.connect(&volume, block(), reading).await.unwrap();
        let before = driver.host.loops.find(&driver.image(&volume.id)).unwrap();
        let found = driver.backend.find(&volume.id).await.unwrap();
        let Some((larder_model::backend::Source::Device { path, hold }, same)) = found else {
            panic!("{} is not found", volume.id);
        };
        assert_eq!((path, hold.is_none(), same), (device, true, attachment.clone()));
        assert_eq!(driver.host.loops.find(&driver.image(&volume.id)).unwrap(), before);
        driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    }
    ground.assert_clean();
}

#[tokio::test]
async fn readers_get_a_device_that_refuses_writing() {
    let ground = Ground::on(FsType::Xfs, POOL);
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("raw", Bytes::mib(4))).await.unwrap();
    let block = larder_model::AccessType::Block;
    let (device, _, attachment) = driver.connect(&volume, block, true).await.unwrap();
    let file = File::options().write(true).open(&device);
    assert!(file.is_err() || file.unwrap().write_all_at(&[1; 512], 0).is_err());
    // Asked for writing later, and nobody reads any more: a writable device takes its place.
    let reader = File::open(&device).unwrap();
    let fault = driver.block(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("read-only"), "{fault}");
    drop(reader);
    let (device, second) = driver.block(&volume).await.unwrap();
    File::options().write(true).open(&device).unwrap().write_all_at(&[1; 512], 0).unwrap();
    // And the other way round: a writable device that is there is no reader's.
    let block = || larder_model::AccessType::Block;
    let writer = File::options().write(true).open(&device).unwrap();
    let fault = driver.connect(&volume, block(), true).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("for writing"), "{fault}");
    drop(writer);
    // Published counts as used, although nobody has it open just now.
    let target = ground.folder("pods").join("target");
    File::create(&target).unwrap();
    let request = larder_host::BindRequest {
        source: device.clone(),
        target: target.clone(),
        ..Default::default()
    };
    driver.host.mounts.bind(&request).unwrap();
    let fault = driver.connect(&volume, block(), true).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("published at"), "{fault}");
    driver.host.mounts.unmount(&target, larder_host::Unmount::Normal).unwrap();
    let (device, _, third) = driver.connect(&volume, block(), true).await.unwrap();
    let file = File::options().write(true).open(&device);
    assert!(file.is_err() || file.unwrap().write_all_at(&[1; 512], 0).is_err());
    driver.backend.disconnect(&volume.id, Some(&third), &Cx::new()).await.unwrap();
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    driver.backend.disconnect(&volume.id, Some(&second), &Cx::new()).await.unwrap();
    ground.assert_clean();
}
