//! What a workload sees of a volume, from its first use to its last.

use crate::world::{On, World, block, kind, mount, mount_as, reader, with_group};
use larder_host::command::Command;
use larder_model::{AccessMode, Bytes, Cx, Kind, volume::FormatState};
use larder_volumes::node::{HealthRequest, UnstageRequest, VolumeStats};
use std::{
    fs,
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_file_system_is_made_once_and_keeps_its_data() {
    let world = World::new(On::Real);
    for (name, fs_type) in [("a-ext4", "ext4"), ("a-xfs", "xfs"), ("a-btrfs", "btrfs")] {
        world.volume(name);
        let how = || mount_as(fs_type, AccessMode::SingleNodeWriter);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        world.publish(name, 2, how()).await.unwrap();
        fs::write(world.target(name, 1).join("file"), "precious").unwrap();
        assert_eq!(fs::read(world.target(name, 2).join("file")).unwrap(), b"precious");

        let stats = world.stats(name, &world.target(name, 1)).await.unwrap();
        assert_eq!(stats, world.stats(name, &world.staging(name)).await.unwrap());
        let VolumeStats::Mounted { bytes, inodes } = stats else { panic!("{stats:?}") };
        let size = world.backend.image(&world.id(name)).metadata().unwrap().len();
        assert!(bytes.total > size / 2 && bytes.total <= size, "{fs_type}: {bytes:?}");
        assert!(bytes.used > 0 && bytes.available < bytes.total, "{fs_type}: {bytes:?}");
        assert!(fs_type == "btrfs" || (inodes.total > 0 && inodes.used > 0), "{inodes:?}");

        for n in [1, 2] {
            world.unpublish(name, n).await.unwrap();
            assert!(!world.target(name, n).exists());
        }
        world.unstage(name).await.unwrap();
        world.assert_nothing_left();

        world.stage(name, mount()).await.unwrap();
        assert_eq!(fs::read(world.staging(name).join("file")).unwrap(), b"precious");
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

/// Somebody unmounted the staging path while pods run; kubelet stages again for the next pod. No tool
/// may look at a file system that is mounted, and none has to.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_staging_mount_is_restored_under_its_workload() {
    let world = World::new(On::Real);
    for (name, fs_type) in [("a-ext4", "ext4"), ("a-xfs", "xfs"), ("a-btrfs", "btrfs")] {
        world.volume(name);
        let how = || mount_as(fs_type, AccessMode::SingleNodeWriter);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        let mut open = fs::File::create(world.target(name, 1).join("file")).unwrap();
        open.write_all(b"before ").unwrap();
        let staging = world.staging(name);
        world.host.mounts.unmount(&staging, larder_host::Unmount::Normal).unwrap();
        world.stage(name, how()).await.unwrap();
        open.write_all(b"and after").unwrap();
        world.publish(name, 2, how()).await.unwrap();
        assert_eq!(fs::read(world.target(name, 2).join("file")).unwrap(), b"before and after");
        drop(open);
        for n in [1, 2] {
            world.unpublish(name, n).await.unwrap();
        }
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

/// An autoclear device goes with its last mount, and the next volume gets its number.
#[tokio::test(flavor = "multi_thread")]
async fn the_mounts_of_a_volume_that_got_its_device_number_keep_nobody_staged() {
    let mut world = World::new(On::Fake);
    world.volume("image");
    world.volume("other");
    world.stage("image", mount()).await.unwrap();
    let device = world.loops();
    world.host.mounts.unmount(&world.staging("image"), larder_host::Unmount::Normal).unwrap();
    // A process that a test beside this one starts just now has the device open until its exec.
    let until = Instant::now() + Duration::from_secs(60);
    while !world.loops().is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stage("other", mount()).await.unwrap();
    world.publish("other", 1, mount()).await.unwrap();
    assert_eq!(world.loops(), device, "the number was not used again: this test proves nothing");
    world.unstage("image").await.unwrap();
    assert_eq!(world.mounts().len(), 2, "{:?}", world.mounts());
    world.restart();
    world.unpublish("other", 1).await.unwrap();
    world.unstage("other").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_that_is_another_volumes_by_now_is_not_measured() {
    let world = World::new(On::Fake);
    world.volume("raw");
    world.volume_of("raw-other", Bytes::mib(32));
    world.stage("raw", block()).await.unwrap();
    world.publish("raw", 1, block()).await.unwrap();
    world.stats("raw", &world.target("raw", 1)).await.unwrap();
    let device = world.loops();
    let image = world.backend.image(&world.id("raw"));
    let there = world.host.loops.find(&image).unwrap().pop().unwrap();
    world.host.loops.detach(there.number, there.backing()).unwrap();
    world.stage("raw-other", block()).await.unwrap();
    assert_eq!(world.loops(), device, "the number was not used again: this test proves nothing");
    let stats = world.stats("raw", &world.target("raw", 1)).await;
    assert_eq!(kind(stats), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_is_written_through_its_target_and_keeps_its_data() {
    let world = World::new(On::Real);
    world.volume("raw");
    world.stage("raw", block()).await.unwrap();
    assert_eq!(fs::read_dir(world.staging("raw")).unwrap().count(), 0);
    world.publish("raw", 1, block()).await.unwrap();
    let target = world.target("raw", 1);
    assert!(fs::metadata(&target).unwrap().file_type().is_block_device());
    let mut device = fs::File::options().write(true).open(&target).unwrap();
    device.seek(SeekFrom::Start(30 << 20)).unwrap();
    device.write_all(b"precious").unwrap();
    device.sync_all().unwrap();
    drop(device);
    let stats = world.stats("raw", &target).await.unwrap();
    assert_eq!(stats, VolumeStats::Block { total: Bytes::mib(64) });
    // Kubelet asks at a bind mount of its own, or at a link.
    let link = world.root.join("pods/raw/link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(world.stats("raw", &link).await.unwrap(), stats);
    fs::remove_file(&link).unwrap();

    world.unpublish("raw", 1).await.unwrap();
    assert!(!target.exists());
    world.unstage("raw").await.unwrap();
    world.assert_nothing_left();
    let mut image = fs::File::open(world.backend.image(&world.id("raw"))).unwrap();
    image.seek(SeekFrom::Start(30 << 20)).unwrap();
    let mut data = [0; 8];
    image.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_network_file_systems_are_mounted_and_measured() {
    let world = World::new(On::Real);
    for name in ["dir-a", "net-a"] {
        world.volume(name);
        world.stage(name, mount()).await.unwrap();
        world.publish(name, 1, mount()).await.unwrap();
        fs::write(world.target(name, 1).join("file"), "x").unwrap();
        assert!(world.staging(name).join("file").exists());
        let stats = world.stats(name, &world.target(name, 1)).await.unwrap();
        assert!(matches!(stats, VolumeStats::Mounted { bytes, .. } if bytes.total > 0));
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
    }
    assert!(world.root.join("pool/dir-a/file").exists());
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_publication_cannot_be_written_beside_one_that_can() {
    let world = World::new(On::Real);
    for name in ["image", "dir-a"] {
        world.volume(name);
        world.stage(name, mount()).await.unwrap();
        let mut request = world.publish_request(name, 1, mount());
        request.readonly = true;
        world.engine.publish(request.clone(), &Cx::new()).await.unwrap();
        world.publish(name, 2, mount()).await.unwrap();
        let write = |n| fs::write(world.target(name, n).join("file"), "x");
        assert_eq!(write(1).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        write(2).unwrap();
        world.engine.publish(request, &Cx::new()).await.unwrap();
        let other = world.publish_request(name, 1, mount());
        assert_eq!(kind(world.engine.publish(other, &Cx::new()).await), Kind::Conflict);
        for n in [1, 2] {
            world.unpublish(name, n).await.unwrap();
        }
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_for_readers_changes_no_byte_of_a_device_with_a_dirty_log() {
    let world = World::new(On::Real);
    for (name, fs_type) in [("r-ext4", "ext4"), ("r-xfs", "xfs"), ("r-btrfs", "btrfs")] {
        world.volume(name);
        let image = world.backend.image(&world.id(name));
        world.stage(name, mount_as(fs_type, AccessMode::SingleNodeWriter)).await.unwrap();
        fs::write(world.staging(name).join("file"), "x").unwrap();
        fs::File::open(world.staging(name).join("file")).unwrap().sync_all().unwrap();
        // As a power cut would leave it: copied while it is mounted and its log is dirty.
        larder_host::durable::sync_file(&image).unwrap();
        let dirty = kept(&image);
        world.unstage(name).await.unwrap();
        copy(dirty.path(), &image);

        let how = || mount_as(fs_type, AccessMode::SingleNodeReaderOnly);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        let target = world.target(name, 1);
        let written = fs::write(target.join("other"), "x").unwrap_err();
        assert_eq!(written.kind(), ErrorKind::ReadOnlyFilesystem, "{fs_type}");
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
        assert!(is_same(dirty.path(), &image), "{fs_type}: a reader wrote");

        // A writer replays it.
        world.stage(name, mount()).await.unwrap();
        assert_eq!(fs::read(world.staging(name).join("file")).unwrap(), b"x", "{fs_type}");
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

/// A copy of an image, to compare it with later. cp and cmp know holes and compare fast.
pub(crate) fn kept(image: &Path) -> tempfile::NamedTempFile {
    let copy_of = tempfile::NamedTempFile::new().unwrap();
    copy(image, copy_of.path());
    copy_of
}

fn copy(from: &Path, to: &Path) {
    Command::new("cp").arg("--sparse=always").arg(from).arg(to).run().unwrap();
}

pub(crate) fn is_same(kept: &Path, image: &Path) -> bool {
    Command::new("cmp").arg("-s").arg(kept).arg(image).run_any().unwrap().code() == Some(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_xfs_volume_is_mounted_beside_its_original() {
    let world = World::new(On::Real);
    world.volume("xfs-a");
    world.volume("xfs-b");
    let how = || mount_as("xfs", AccessMode::SingleNodeWriter);
    world.stage("xfs-a", how()).await.unwrap();
    fs::write(world.staging("xfs-a").join("file"), "x").unwrap();
    world.unstage("xfs-a").await.unwrap();
    let (a, b) = (world.id("xfs-a"), world.id("xfs-b"));
    fs::copy(world.backend.image(&a), world.backend.image(&b)).unwrap();
    world.backend.write_state(&b, world.backend.read_state(&a));
    world.stage("xfs-a", how()).await.unwrap();
    world.stage("xfs-b", how()).await.unwrap();
    assert!(world.staging("xfs-b").join("file").exists());
    world.unstage("xfs-a").await.unwrap();
    world.unstage("xfs-b").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_workload_belong_to_its_group_whatever_its_umask() {
    let world = World::new(On::Real);
    world.volume("image");
    world.stage("image", with_group(4321)).await.unwrap();
    world.publish("image", 1, with_group(4321)).await.unwrap();
    let file = world.target("image", 1).join("file");
    // The umask of the test is 022.
    fs::write(&file, "x").unwrap();
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o060), (4321, 0o060));
    // A second workload brings another group; it is published, not staged again.
    world.publish("image", 2, with_group(99)).await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().gid(), 99);
    assert_eq!(kind(world.publish("image", 2, with_group(98)).await), Kind::Conflict);
    for n in [1, 2] {
        world.unpublish("image", n).await.unwrap();
    }
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();

    let world = World::new(On::Fake).with_facts(|facts| facts.mount_group = false);
    world.volume("image");
    assert_eq!(kind(world.stage("image", with_group(1)).await), Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_changed_is_told_as_ill_health() {
    let world = World::new(On::Real);
    world.volume("image");
    let health = async || {
        let volume = world.id("image").as_str().to_owned();
        let request = HealthRequest { volume, publish_path: None, staging_path: None };
        let found = world.engine.volume_health(request).await.unwrap();
        found.into_iter().map(|entry| entry.reason).collect::<Vec<_>>()
    };
    assert_eq!(health().await, Vec::<&str>::new());
    world.stage("image", mount()).await.unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    assert_eq!(health().await, Vec::<&str>::new());

    let (staging, target) = (world.staging("image"), world.target("image", 1));
    world.host.mounts.remount(&target, true, &[]).unwrap();
    assert_eq!(health().await, ["MountReadOnly"]);
    world.host.mounts.unmount(&target, larder_host::Unmount::Normal).unwrap();
    assert_eq!(health().await, ["TargetMountMissing"]);
    world.host.mounts.unmount(&staging, larder_host::Unmount::Normal).unwrap();
    // The loop device had only these mounts to live for, and a copy in a mount namespace that another
    // test makes meanwhile.
    let lost = ["StagingMountMissing", "TargetMountMissing", "LoopDeviceLost"];
    for _ in 0..400 {
        if health().await == lost {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(health().await, lost);
    assert_eq!(kind(world.stats("image", &target).await), Kind::NotFound);

    // Repeated calls mend it.
    world.stage("image", mount()).await.unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    assert_eq!(health().await, Vec::<&str>::new());
    world.unpublish("image", 1).await.unwrap();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();

    let unknown =
        HealthRequest { volume: "default/none".to_owned(), publish_path: None, staging_path: None };
    assert_eq!(kind(world.engine.volume_health(unknown).await), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_there_is_taken_back_without_a_word() {
    let world = World::new(On::Fake);
    world.volume("image");
    for _ in 0..2 {
        world.unpublish("image", 1).await.unwrap();
        world.unstage("image").await.unwrap();
    }
    fs::create_dir_all(world.root.join("pods/gone")).unwrap();
    world.unpublish("gone", 1).await.unwrap();
    world.unstage("gone").await.unwrap();
    for volume in ["not ours", "other-pool/x", "csi-0123"] {
        let request =
            UnstageRequest { volume: volume.to_owned(), staging_path: world.staging("image") };
        world.engine.unstage(request, &Cx::new()).await.unwrap();
    }
    assert_eq!(world.backend.read_state(&world.id("image")), FormatState::Unformatted);
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_and_node_info_come_from_the_facts() {
    let world = World::new(On::Fake);
    let info = world.engine.info();
    assert_eq!((info.node_id.as_str(), info.max_volumes), ("node-1", Some(7)));
    assert_eq!(info.topology.unwrap().0["topology.larder.dev/node"], "node-1");
    let can = world.engine.capabilities();
    assert!(can.stage_unstage && can.expand && can.mount_group && can.single_node_multi_writer);
    let world = World::new(On::Fake).with_facts(|facts| {
        facts.node_expansion = false;
        facts.mount_group = false;
        facts.access_modes = vec![AccessMode::SingleNodeWriter];
    });
    let can = world.engine.capabilities();
    assert!(can.stage_unstage && !can.expand && !can.mount_group && !can.single_node_multi_writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_the_storage_lacks_is_refused_and_nothing_is_done() {
    let world = World::new(On::Fake).with_facts(|facts| {
        facts.access_modes = vec![AccessMode::SingleNodeWriter];
        facts.block = false;
    });
    world.volume("image");
    assert_eq!(kind(world.stage("image", reader()).await), Kind::Precondition);
    assert_eq!(kind(world.stage("image", block()).await), Kind::Precondition);
    let wrong = mount_as("ntfs", AccessMode::SingleNodeWriter);
    assert_eq!(kind(world.stage("image", wrong).await), Kind::Invalid);
    world.assert_nothing_left();
}
