//! Growth: online, at the next stage, of every kind of volume.

use crate::world::{On, World, block, kind, mount, mount_as};
use larder_host::image;
use larder_model::{AccessMode, Bytes, CapacityRange, Cx, Kind, Secrets};
use larder_volumes::node::{ExpandRequest, VolumeStats};
use rustix::io::Errno;
use std::fs;

fn grow_image(world: &World, name: &str, size: Bytes) {
    image::grow(&world.backend.image(&world.id(name)), size).unwrap();
}

async fn total(world: &World, name: &str) -> u64 {
    match world.stats(name, &world.target(name, 1)).await.unwrap() {
        VolumeStats::Mounted { bytes, .. } => bytes.total,
        VolumeStats::Block { total } => total.get(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_grows_under_its_workload() {
    let world = World::new(On::Real);
    for (name, fs_type) in [("g-xfs", "xfs"), ("g-btrfs", "btrfs")] {
        let how = || mount_as(fs_type, AccessMode::SingleNodeWriter);
        world.volume(name);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        let open = fs::File::create(world.target(name, 1).join("open")).unwrap();
        let before = total(&world, name).await;
        let size = Bytes::mib(600);
        grow_image(&world, name, size);
        for _ in 0..2 {
            assert_eq!(world.expand_with(name, size, &Cx::new()).await.unwrap(), size);
            assert!(total(&world, name).await > before + (150 << 20), "{fs_type}");
        }
        drop(open);
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

/// A power cut must not find growth in the log alone (`tests/vm` cuts it).
#[tokio::test(flavor = "multi_thread")]
async fn a_grown_xfs_is_frozen_for_a_moment_and_others_are_not() {
    let world = World::new(On::Fake);
    let kernel = world.fake.as_ref().unwrap();
    for (name, fs_type) in [("g-xfs", "xfs"), ("g-ext4", "ext4")] {
        world.volume(name);
        let how = || mount_as(fs_type, AccessMode::SingleNodeWriter);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        let staging = world.staging(name);
        for (size, refused) in [(Bytes::mib(600), false), (Bytes::mib(900), true)] {
            kernel.clear_log();
            if refused && fs_type == "xfs" {
                kernel.fail_next("freeze", Errno::BUSY);
            }
            grow_image(&world, name, size);
            assert_eq!(world.expand_with(name, size, &Cx::new()).await.unwrap(), size);
            let log = kernel.log();
            let frozen = log.contains(&format!("freeze {}", staging.display()));
            assert_eq!(frozen, fs_type == "xfs" && !refused, "{fs_type}: {log:#?}");
            assert!(kernel.frozen().is_empty());
        }
        // The first answer was lost with the process: who grew it may not have come so far.
        kernel.clear_log();
        world.expand_with(name, Bytes::mib(900), &Cx::new()).await.unwrap();
        let log = kernel.log();
        let frozen = log.contains(&format!("freeze {}", staging.display()));
        assert_eq!(frozen, fs_type == "xfs", "{fs_type}: {log:#?}");
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_grew_while_it_was_not_staged_is_whole_at_the_next_stage() {
    let world = World::new(On::Real);
    // Where CAP_SYS_RESOURCE is missing, ext4 grows before it is mounted.
    for fs_type in ["xfs", "ext4"] {
        let how = || mount_as(fs_type, AccessMode::SingleNodeWriter);
        let name = &format!("g-{fs_type}");
        world.volume(name);
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        fs::write(world.target(name, 1).join("kept"), "kept").unwrap();
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
        grow_image(&world, name, Bytes::mib(600));
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        assert!(total(&world, name).await > 500 << 20, "{fs_type}");
        assert_eq!(fs::read_to_string(world.target(name, 1).join("kept")).unwrap(), "kept");
        world.unpublish(name, 1).await.unwrap();
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_grows_and_a_directory_takes_its_backends_word() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        world.volume("raw");
        world.stage("raw", block()).await.unwrap();
        world.publish("raw", 1, block()).await.unwrap();
        grow_image(&world, "raw", Bytes::mib(96));
        let size = world.expand_with("raw", Bytes::mib(96), &Cx::new()).await.unwrap();
        assert_eq!(size, Bytes::mib(96));
        assert_eq!(total(&world, "raw").await, Bytes::mib(96).get());
        world.unpublish("raw", 1).await.unwrap();
        world.unstage("raw").await.unwrap();

        world.volume("dir-a");
        world.stage("dir-a", mount()).await.unwrap();
        world.publish("dir-a", 1, mount()).await.unwrap();
        let size = world.expand_with("dir-a", Bytes::ZERO, &Cx::new()).await.unwrap();
        assert_eq!(size, Bytes::mib(1));
        world.unpublish("dir-a", 1).await.unwrap();
        world.unstage("dir-a").await.unwrap();
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_that_cannot_be_is_refused_with_the_codes_of_csi() {
    let world = World::new(On::Fake);
    world.volume("image");
    let expand = async |path: std::path::PathBuf, required, limit, capability| {
        let request = ExpandRequest {
            volume: world.id("image").as_str().to_owned(),
            volume_path: path,
            staging_path: None,
            range: CapacityRange { required, limit },
            capability,
            secrets: Secrets::default(),
        };
        world.engine.expand(request, &Cx::new()).await
    };
    let (staging, target) = (world.staging("image"), world.target("image", 1));
    assert_eq!(kind(expand(staging.clone(), Bytes::ZERO, None, None).await), Kind::NotFound);
    let unknown = world.expand_with("none", Bytes::ZERO, &Cx::new()).await;
    assert_eq!(kind(unknown), Kind::NotFound);

    world.stage("image", mount()).await.unwrap();
    let (size, more) = (Bytes::mib(64), Bytes::mib(65));
    assert_eq!(expand(staging.clone(), Bytes::ZERO, None, None).await.unwrap(), size);
    assert_eq!(expand(staging.clone(), size, Some(size), Some(mount())).await.unwrap(), size);
    assert_eq!(kind(expand(target, size, None, None).await), Kind::NotFound);
    assert_eq!(kind(expand(staging.clone(), more, None, None).await), Kind::OutOfRange);
    let least = Some(Bytes::mib(1));
    assert_eq!(kind(expand(staging.clone(), Bytes::ZERO, least, None).await), Kind::OutOfRange);
    assert_eq!(kind(expand(staging.clone(), size, None, Some(block())).await), Kind::Invalid);
    world.unstage("image").await.unwrap();

    let reader = mount_as("", AccessMode::SingleNodeReaderOnly);
    world.stage("image", reader).await.unwrap();
    grow_image(&world, "image", Bytes::mib(96));
    assert_eq!(kind(expand(staging, Bytes::mib(96), None, None).await), Kind::Precondition);
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}
