//! The records are gone: the kernel and the backend know the rest. And the other way round: the
//! kernel has forgotten everything, and the records are of another boot.

use crate::world::{On, World, block, kind, mount, mount_as};
use larder_host::Unmount;
use larder_model::{AccessMode, Bytes, Cx, Kind, VolumeCapability};
use larder_volumes::node::{UnpublishRequest, UnstageRequest, VolumeStats};
use std::{collections::BTreeMap, fs};

type How = fn() -> VolumeCapability;
const KINDS: [(&str, How); 4] =
    [("image", mount), ("raw", block), ("dir-a", mount), ("net-a", mount)];

fn xfs() -> VolumeCapability {
    mount_as("xfs", AccessMode::SingleNodeWriter)
}

fn wipe(world: &mut World) {
    fs::remove_dir_all(world.state_dir()).unwrap();
    world.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_taken_back_without_records() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        for (name, how) in KINDS {
            world.volume(name);
            world.stage(name, how()).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            world.publish(name, 2, how()).await.unwrap();
        }
        wipe(&mut world);
        let told = world.engine.recover(&Cx::new()).await.unwrap();
        assert_eq!((told.live, told.left.len()), (0, 0));
        for (name, _) in KINDS {
            // What workloads still use is not let go, with or without records; but of a server's share
            // nobody can tell whose mount that is, and theirs goes on without the staging mount.
            if !name.starts_with("raw") && !name.starts_with("net") {
                assert_eq!(kind(world.unstage(name).await), Kind::Precondition, "{name}");
            }
            world.unpublish(name, 1).await.unwrap();
            world.unpublish(name, 2).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.assert_nothing_left();
    }
}

/// Who asks whose mount that is must not connect it for writing to find out.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_for_reading_is_taken_back_without_records() {
    let mut world = World::new(On::Real);
    for (name, how) in [("image", mount as How), ("raw", block)] {
        world.volume(name);
        world.stage(name, how()).await.unwrap();
        world.unstage(name).await.unwrap();
        let reading = || VolumeCapability { mode: AccessMode::MultiNodeReaderOnly, ..how() };
        world.stage(name, reading()).await.unwrap();
        world.publish(name, 1, reading()).await.unwrap();
        let loops = world.loops();
        wipe(&mut world);
        world.stats(name, &world.target(name, 1)).await.unwrap();
        assert_eq!(world.loops(), loops, "{name}: looking changed what is connected");
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_measured_and_grow_without_records() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        // Growth of a mounted ext4 needs more than some kernels allow root in a container.
        for (name, how) in [("image-xfs", xfs as How), ("raw", block), ("dir-a", mount)] {
            world.volume(name);
            world.stage(name, how()).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            let target = world.target(name, 1);
            let measured = world.stats(name, &target).await.unwrap();
            wipe(&mut world);
            let now = world.stats(name, &target).await.unwrap();
            if how().is_block() {
                assert_eq!(now, measured, "{name}");
            }
            let nowhere = world.stats(name, &world.target(name, 2)).await;
            assert_eq!(kind(nowhere), Kind::NotFound, "{name}");
            let to = Bytes::mib(if name.starts_with("dir") { 1 } else { 500 });
            if !name.starts_with("dir") {
                larder_host::image::grow(&world.backend.image(&world.id(name)), to).unwrap();
            }
            let grown = world.expand_with(name, to, &Cx::new()).await.unwrap();
            assert_eq!(grown, to, "{name}");
            if name.starts_with("image") {
                let VolumeStats::Mounted { bytes, .. } = world.stats(name, &target).await.unwrap()
                else {
                    panic!("{name} is mounted");
                };
                assert!(on == On::Fake || bytes.total > 420 << 20, "{name}: {bytes:?}");
            }
            assert_eq!(world.records(), BTreeMap::new(), "{name}: looking left a record");
            // Another volume is not at that path.
            world.volume("other");
            let other = world.stats("other", &target).await;
            assert_eq!(kind(other), Kind::NotFound, "{name}");
            fs::remove_file(world.backend.image(&world.id("other"))).unwrap();
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
            world.assert_nothing_left();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_volumes_go_on_being_staged_and_published_without_records() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        for (name, how) in KINDS.into_iter().filter(|(name, _)| *name != "raw") {
            world.volume(name);
            world.stage(name, how()).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            let before = world.snapshot();
            wipe(&mut world);
            // Kubelet repeats both after a restart; the records are as they were.
            world.stage(name, how()).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            assert_eq!(world.snapshot(), before, "{name}");
            wipe(&mut world);
            // Or another pod comes first.
            world.publish(name, 2, how()).await.unwrap();
            world.unpublish(name, 2).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            assert_eq!(world.snapshot(), before, "{name}");
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
            world.assert_nothing_left();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_records_a_foreign_mount_is_not_taken_for_the_volume() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        world.volume("image");
        world.volume("dir-a");
        world.volume("other");
        world.stage("other", mount()).await.unwrap();
        let bind = |name: &str, target: &std::path::Path| {
            fs::create_dir_all(target).unwrap();
            let request = larder_host::BindRequest {
                source: world.staging(name),
                target: target.to_owned(),
                ..Default::default()
            };
            world.host.mounts.bind(&request).unwrap();
        };
        // Another volume sits where these are said to be.
        for name in ["image", "dir-a"] {
            for path in [world.staging(name), world.target(name, 1)] {
                bind("other", &path);
            }
            let before = world.mounts();
            assert_eq!(kind(world.stage(name, mount()).await), Kind::Precondition, "{name}");
            assert_eq!(kind(world.publish(name, 1, mount()).await), Kind::Precondition, "{name}");
            assert_eq!(kind(world.unpublish(name, 1).await), Kind::Precondition, "{name}");
            assert_eq!(kind(world.unstage(name).await), Kind::Precondition, "{name}");
            assert_eq!(world.mounts(), before, "{name}");
            assert_eq!(world.records().len(), 1, "{name}: a record of a refused call is left");
            assert_eq!(world.loops().len(), 1, "{name}: its device is left connected");
            for path in [world.staging(name), world.target(name, 1)] {
                world.host.mounts.unmount(&path, Unmount::Normal).unwrap();
            }
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.unstage("other").await.unwrap();
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_old_records_say_nothing() {
    let mut world = World::new(On::Fake);
    for (name, how) in KINDS {
        world.volume(name);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
    }
    world.reboot();
    assert_eq!(kind(world.publish("image", 1, mount()).await), Kind::Precondition);
    world.stage("image", mount()).await.unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    let told = world.engine.recover(&Cx::new()).await.unwrap();
    assert_eq!((told.live, told.mended.len(), told.left.len()), (1, 3, 0), "{told:?}");
    assert_eq!(world.records().len(), 1);
    for (name, _) in KINDS {
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_read_are_set_aside_and_the_volume_works_again() {
    let mut world = World::new(On::Fake);
    world.volume("image");
    world.stage("image", mount()).await.unwrap();
    let record = fs::read_dir(world.state_dir()).unwrap().next().unwrap().unwrap().path();
    fs::write(&record, "{ half a rec").unwrap();
    fs::write(world.state_dir().join(".x.json.tmp-1-1-1"), "left by a killed writer").unwrap();
    assert_eq!(kind(world.unstage("image").await), Kind::Corrupt);
    world.restart();
    let told = world.engine.recover(&Cx::new()).await.unwrap();
    assert_eq!((told.mended.len(), told.left.len()), (1, 0), "{told:?}");
    assert_eq!(world.records(), BTreeMap::new());
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn vanished_mounts_and_devices_are_forgotten_at_the_next_start() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        for name in ["image", "image-2"] {
            world.volume(name);
            world.stage(name, mount()).await.unwrap();
            world.publish(name, 1, mount()).await.unwrap();
            world.publish(name, 2, mount()).await.unwrap();
        }
        // One loses a target, the other everything.
        world.host.mounts.unmount(&world.target("image", 1), Unmount::Normal).unwrap();
        let all =
            [world.target("image-2", 1), world.target("image-2", 2), world.staging("image-2")];
        for path in &all {
            world.host.mounts.unmount(path, Unmount::Normal).unwrap();
        }
        world.restart();
        let told = world.engine.recover(&Cx::new()).await.unwrap();
        assert_eq!((told.live, told.mended.len(), told.left.len()), (0, 2, 0), "{told:?}");
        assert!(world.records()["default/image"].contains("target-2"));
        assert!(!world.records().contains_key("default/image-2"));
        for name in ["image", "image-2"] {
            world.unpublish(name, 1).await.unwrap();
            world.unpublish(name, 2).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.assert_nothing_left();
    }
}

/// What a caller names by its own path needs neither records nor a server; what it names wrongly stays.
#[tokio::test(flavor = "multi_thread")]
async fn without_records_a_network_mount_is_let_go_by_its_path_and_never_another_volumes() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        world.volume("net-lost");
        world.stage("net-lost", mount()).await.unwrap();
        world.publish("net-lost", 1, mount()).await.unwrap();
        wipe(&mut world);
        world.volume("net-kept");
        world.stage("net-kept", mount()).await.unwrap();
        world.publish("net-kept", 1, mount()).await.unwrap();
        let before = world.mounts();
        let volume = world.id("net-lost").as_str().to_owned();
        for target_path in [world.target("net-kept", 1), world.staging("net-kept")] {
            let wrong =
                UnpublishRequest { volume: volume.clone(), target_path: target_path.clone() };
            world.engine.unpublish(wrong, &Cx::new()).await.unwrap_err();
            let wrong = UnstageRequest { volume: volume.clone(), staging_path: target_path };
            world.engine.unstage(wrong, &Cx::new()).await.unwrap_err();
        }
        assert_eq!(world.mounts(), before);
        for name in ["net-lost", "net-kept"] {
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.assert_nothing_left();
    }
}
