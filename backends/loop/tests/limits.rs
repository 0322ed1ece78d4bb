//! Sizes, parameters, full pools, and many at a time.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{
    AccessType, Backend, Bytes, FsType, Kind, MountAccess, Provision,
    backend::GetCapacity,
    volume::{Attributes, context},
};
use larder_pool::PoolConfig;
use rstest::rstest;
use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
};
use support::{Ask, Ground, pattern};

#[rstest]
#[case::ext4("ext4", 16)]
#[case::xfs("xfs", 300)]
#[case::btrfs("btrfs", 256)]
#[tokio::test]
async fn a_mounted_volume_is_never_smaller_than_its_file_system_can_be(
    #[case] fs: &str,
    #[case] least: u64,
) {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", fs, Bytes::new(1))).await.unwrap();
    assert_eq!(volume.capacity, Bytes::mib(least));
    // And that least one works.
    let staged = driver.stage(&volume).await.unwrap();
    std::fs::write(staged.target.join("f"), "x").unwrap();
    driver.unstage(&staged).await.unwrap();

    let ask = Ask::mount("w", fs, Bytes::new(1)).limit(Bytes::mib(least - 1));
    let fault = driver.create(&ask).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::OutOfRange);
    assert!(fault.to_string().contains(&format!("{fs} needs at least {least}Mi")), "{fault}");
    let raw = driver.create(&Ask::block("raw", Bytes::new(1)).limit(Bytes::mib(1))).await.unwrap();
    assert_eq!(raw.capacity, Bytes::mib(1));
    ground.assert_clean();
}

#[tokio::test]
async fn sizes_are_whole_pages() {
    let ground = Ground::on(FsType::Xfs, Bytes::mib(400));
    let driver = ground.driver().await;
    let odd = Bytes::new((1 << 20) + 1);
    let volume = driver.create(&Ask::block("a", odd)).await.unwrap();
    assert_eq!(volume.capacity.get(), (1 << 20) + 4096);
    let fault = driver.create(&Ask::block("b", odd).limit(odd)).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::OutOfRange);
    let unasked = driver.create(&Ask::block("c", Bytes::ZERO)).await.unwrap();
    assert_eq!(unasked.capacity, Bytes::gib(1));
    let huge = driver.create(&Ask::block("d", Bytes::MAX)).await.unwrap_err();
    assert_eq!(huge.kind(), Kind::OutOfRange);
    ground.assert_clean();
}

#[rstest]
#[case::unknown("fsType", "xfs", "\"fsType\"")]
#[case::fs("fs", "ntfs", "fs=\"ntfs\"")]
#[case::allocation("allocation", "thick", "sparse, preallocated")]
#[case::sectors("sectorSize", "1024", "512 or 4096")]
#[case::sectors_no_number("sectorSize", "big", "512 or 4096")]
#[case::direct_io("directIo", "maybe", "auto, always, never")]
#[case::another_device("mkfsOptions", "-m 0 /dev/sda", "mkfsOptions")]
#[case::force("mkfsOptions", "-F", "mkfsOptions")]
#[tokio::test]
async fn parameters_that_cannot_be_are_refused_by_name(
    #[case] key: &'static str,
    #[case] value: &'static str,
    #[case] says: &str,
) {
    let ground = Ground::new();
    ground.pool_path("default");
    let driver = ground.driver().await;
    let ask = Ask::mount("v", "", Bytes::ZERO).parameter(key, value);
    let fault = driver.create(&ask).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains(says), "{fault}");
    let parameters = Attributes::from([(key.to_owned(), value.to_owned())]);
    assert_eq!(driver.backend.check_parameters(&parameters).unwrap_err().kind(), Kind::Invalid);
    ground.assert_clean();
}

#[tokio::test]
async fn the_file_system_is_the_capabilitys_or_the_parameters_or_the_pools_but_never_two() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let mut pools = ground.pools();
    for config in pools.values_mut() {
        config.fs = Some(FsType::Btrfs);
    }
    let driver = ground.driver_with(pools).await.unwrap();
    let fs = async |name: &str, capability: &str, parameter: Option<&'static str>| {
        let mut ask = Ask::mount(name, capability, Bytes::mib(320));
        ask.parameters.extend(parameter.map(|fs| ("fs", fs)));
        driver.create(&ask).await.map(|v| v.context[context::FS].clone())
    };
    assert_eq!(fs("a", "", None).await.unwrap(), "btrfs");
    assert_eq!(fs("b", "", Some("xfs")).await.unwrap(), "xfs");
    assert_eq!(fs("c", "ext4", None).await.unwrap(), "ext4");
    assert_eq!(fs("d", "ext4", Some("ext4")).await.unwrap(), "ext4");
    assert_eq!(fs("e", "ext4", Some("xfs")).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(fs("f", "ntfs", None).await.unwrap_err().kind(), Kind::Invalid);
    let mut two = Ask::mount("g", "ext4", Bytes::mib(320));
    let xfs = MountAccess { fs_type: "xfs".into(), ..MountAccess::default() };
    two.access.push(AccessType::Mount(xfs));
    assert_eq!(driver.create(&two).await.unwrap_err().kind(), Kind::Invalid);
    // A copy has the file system of its source.
    let source = driver.create(&Ask::mount("c", "ext4", Bytes::mib(320))).await.unwrap();
    let staged = driver.stage(&source).await.unwrap();
    driver.unstage(&staged).await.unwrap();
    let copy = Ask::mount("h", "xfs", Bytes::ZERO).clone_of(&source.id);
    let fault = driver.create(&copy).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("which holds ext4"), "{fault}");
    let copy = driver.create(&Ask::mount("h", "", Bytes::ZERO).clone_of(&source.id)).await;
    assert_eq!(copy.unwrap().context[context::FS], "ext4");
    ground.assert_clean();
}

#[tokio::test]
async fn options_for_mkfs_reach_mkfs() {
    let ground = Ground::on(FsType::Xfs, Bytes::mib(400));
    let driver = ground.driver().await;
    let ask = Ask::mount("v", "ext4", Bytes::mib(32)).parameter("mkfsOptions", "-L tasty -b 1024");
    let volume = driver.create(&ask).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let identity = driver.host.filesystems.identity(&staged.device).unwrap();
    assert_eq!(identity.label.as_deref(), Some("tasty"));
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[rstest]
#[tokio::test]
async fn a_full_pool_is_told_and_nothing_is_left_behind(
    #[values(FsType::Xfs, FsType::Ext4)] pool: FsType,
) {
    let ground = Ground::on(pool, Bytes::mib(400));
    let driver = ground.driver().await;
    let source = driver.create(&Ask::block("source", Bytes::mib(120))).await.unwrap();
    let image = driver.image(&source.id);
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&pattern(1, 120 << 20), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let free = || driver.host.filesystems.usage(&ground.pool_path("default")).unwrap().available;
    let filler = ground.path().join("pools/default/filler");
    let most = free().get() - (40 << 20);
    larder_host::image::preallocate(&filler, Bytes::new(most)).unwrap();
    let before = free();

    let preallocated = Ask::block("p", Bytes::mib(100)).parameter("allocation", "preallocated");
    let copy = preallocated.clone().clone_of(&source.id);
    let mut asks = vec![preallocated, Ask { name: "q".into(), ..copy }];
    if pool == FsType::Ext4 {
        asks.push(Ask::block("r", Bytes::ZERO).clone_of(&source.id));
        let fault = driver.snapshot(&source.id, "s").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    } else {
        // Blocks that are shared take no space.
        let snapshot = driver.snapshot(&source.id, "s").await.unwrap();
        driver.delete_snapshot(&snapshot.id).await.unwrap();
    }
    for ask in asks {
        let fault = driver.create(&ask).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
        let gone = driver.backend.get_volume(&ask.spec().id).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
    }
    let grown = Ask::block("g", Bytes::mib(1)).parameter("allocation", "preallocated");
    let grown = driver.create(&grown).await.unwrap();
    let fault = driver.expand(&grown.id, Bytes::mib(200)).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(std::fs::metadata(driver.image(&grown.id)).unwrap().len(), 1 << 20);
    assert_eq!(driver.backend.get_volume(&grown.id).await.unwrap().capacity, Bytes::mib(1));
    ground.assert_clean();
    driver.delete(&grown.id).await.unwrap();
    assert!(free().get() + (2 << 20) > before.get(), "space was lost");
    // A sparse volume takes nothing and can still be promised.
    driver.create(&Ask::block("sparse", Bytes::gib(2))).await.unwrap();
    // Not a byte left: a driver that starts now serves the pool all the same, and can empty it.
    driver.backend.stop().await;
    let brim = ground.pool_path("default").join("brim");
    let mut brim = File::create(brim).unwrap();
    while std::io::Write::write_all(&mut brim, &[1; 4096]).is_ok() {}
    brim.sync_all().unwrap_or_default();
    let driver = ground.driver().await;
    assert_eq!(driver.backend.pool_status().await[0].fault, None);
    driver.delete(&source.id).await.unwrap();
    driver.create(&Ask::block("after", Bytes::mib(4))).await.unwrap();
}

#[tokio::test]
async fn a_limit_on_promises_holds_and_capacity_tells_the_truth() {
    let ground = Ground::on(FsType::Xfs, Bytes::mib(400));
    let config = PoolConfig {
        create: true,
        overprovision: Some(2.0),
        ..PoolConfig::new(ground.pool_path("default"))
    };
    let driver = ground.driver_with([("default".parse().unwrap(), config)].into()).await.unwrap();
    let pool = driver.backend.default_pool().unwrap();
    let capacity = async || {
        let none = Attributes::new();
        GetCapacity::capacity(&driver.backend, &pool, &none).await.unwrap().available
    };
    let first = capacity().await;
    let whole = Bytes::new(first.get() / 4096 * 4096);
    let above = driver.create(&Ask::block("a", Bytes::new(whole.get() + (64 << 20)))).await;
    assert_eq!(above.unwrap_err().kind(), Kind::Exhausted);
    // As much as it says can be had.
    let volume = driver.create(&Ask::block("a", whole)).await.unwrap();
    let fault = driver.create(&Ask::block("b", Bytes::mib(64))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    assert!(capacity().await < Bytes::mib(64));
    driver.delete(&volume.id).await.unwrap();
    // xfs keeps a few blocks of its own for longer or shorter.
    assert!(capacity().await.get().abs_diff(first.get()) < 1 << 20, "space was lost");
    ground.assert_clean();
}

#[rstest]
#[tokio::test]
async fn a_preallocated_volume_owns_its_space_also_as_a_copy(
    #[values(FsType::Xfs, FsType::Btrfs, FsType::Ext4)] pool: FsType,
) {
    let ground = Ground::on(pool, Bytes::gib(2));
    let driver = ground.driver().await;
    let thick = |name: &str| {
        Ask::mount(name, "ext4", Bytes::mib(64)).parameter("allocation", "preallocated")
    };
    let allocated =
        |id: &larder_model::VolumeId| std::fs::metadata(driver.image(id)).unwrap().blocks() * 512;
    let volume = driver.create(&thick("v")).await.unwrap();
    assert!(allocated(&volume.id) >= 64 << 20);
    let staged = driver.stage(&volume).await.unwrap();
    support::write_files(&staged.target, 5);
    // Of a live volume, larger than that.
    let larger = Ask { size: Bytes::mib(96), ..thick("w") };
    let copy = driver.create(&larger.clone_of(&volume.id)).await.unwrap();
    assert!(allocated(&copy.id) >= 96 << 20);
    let copy = driver.stage(&copy).await.unwrap();
    support::assert_files(&copy.target, 5);
    driver.unstage(&copy).await.unwrap();
    driver.unstage(&staged).await.unwrap();
    driver.expand(&volume.id, Bytes::mib(128)).await.unwrap();
    assert!(allocated(&volume.id) >= 128 << 20);
    // What the workload gives back is taken again at the next use.
    let staged = driver.stage(&volume).await.unwrap();
    support::run("fstrim", &[&staged.target.display().to_string()]);
    driver.unstage(&staged).await.unwrap();
    assert!(allocated(&volume.id) < 64 << 20, "fstrim gave nothing back");
    let staged = driver.stage(&volume).await.unwrap();
    assert!(allocated(&volume.id) >= 128 << 20);
    support::assert_files(&staged.target, 5);
    driver.unstage(&staged).await.unwrap();
    // A deleted volume's space is given back, and its data never shown to the next one.
    driver.delete(&volume.id).await.unwrap();
    let next = driver.create(&thick("next")).await.unwrap();
    let data = std::fs::read(driver.image(&next.id)).unwrap();
    assert!(data.iter().all(|b| *b == 0), "a new volume shows old data");
    ground.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_a_time_get_a_device_each() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = std::sync::Arc::new(ground.driver().await);
    let source = driver.create(&Ask::block("source", Bytes::mib(4))).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..24 {
        let (driver, source) = (driver.clone(), source.id.clone());
        tasks.spawn(async move {
            let ask = Ask::block(&format!("v{n}"), Bytes::mib(4));
            let ask = if n % 3 == 0 { ask.clone_of(&source) } else { ask };
            let volume = driver.create(&ask).await.unwrap();
            let (device, attachment) = driver.block(&volume).await.unwrap();
            let mine = pattern(n, 65536);
            let file = File::options().read(true).write(true).open(&device).unwrap();
            file.write_all_at(&mine, 0).unwrap();
            file.sync_all().unwrap();
            drop(file);
            (volume, device, attachment, mine)
        });
    }
    let all = tasks.join_all().await;
    let devices: BTreeSet<_> = all.iter().map(|(_, device, ..)| device.clone()).collect();
    assert_eq!(devices.len(), all.len());
    for (volume, _, attachment, mine) in all {
        use larder_model::{Connect, Cx};
        driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
        let mut data = vec![0; mine.len()];
        File::open(driver.image(&volume.id)).unwrap().read_exact_at(&mut data, 0).unwrap();
        assert!(data == mine, "{} holds another volume's data", volume.id);
        driver.delete(&volume.id).await.unwrap();
    }
    ground.assert_clean();
}

#[tokio::test]
async fn clones_go_from_one_pool_to_another() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    ground.mount_pool("other", FsType::Ext4, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(64))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    support::write_files(&staged.target, 5);
    let ask = Ask::mount("w", "", Bytes::ZERO).pool("other").clone_of(&volume.id);
    let copy = driver.create(&ask).await.unwrap();
    let copy = driver.stage(&copy).await.unwrap();
    support::assert_files(&copy.target, 5);
    // And back, from a pool that cannot share blocks.
    let ask = Ask::mount("x", "", Bytes::ZERO).clone_of(&copy.volume.id);
    let back = driver.stage(&driver.create(&ask).await.unwrap()).await.unwrap();
    support::assert_files(&back.target, 5);
    for staged in [staged, copy, back] {
        driver.unstage(&staged).await.unwrap();
    }
    ground.assert_clean();
}

#[tokio::test]
async fn a_shared_pool_is_refused() {
    let ground = Ground::new();
    let mut pools = ground.pools();
    let path = ground.pool_path("default");
    let config = PoolConfig { shared: true, create: true, ..PoolConfig::new(path) };
    pools.insert("default".parse().unwrap(), config);
    let fault = ground.driver_with(pools).await.err().unwrap();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("shared"), "{fault}");
}

#[tokio::test]
async fn a_pool_in_memory_works_and_says_what_it_is() {
    let ground = Ground::new();
    let path = ground.pool_path("default");
    support::run("mount", &["-t", "tmpfs", "-o", "size=64m", "none", &path.display().to_string()]);
    let driver = ground.driver().await;
    let status = driver.backend.pool_status().await.remove(0);
    assert_eq!(status.storage, "tmpfs without reflink");
    let said = |word: &str| status.warnings.iter().any(|w| w.contains(word));
    assert!(said("memory") && said("full copies"), "{:?}", status.warnings);
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(16))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    support::write_files(&staged.target, 1);
    let snapshot = driver.snapshot(&volume.id, "s").await.unwrap();
    let restored = Ask::mount("r", "", Bytes::ZERO).restore_of(&snapshot.id);
    let restored = driver.stage(&driver.create(&restored).await.unwrap()).await.unwrap();
    support::assert_files(&restored.target, 1);
    driver.unstage(&restored).await.unwrap();
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_pool_that_became_read_only_serves_readers() {
    let ground = Ground::on(FsType::Xfs, Bytes::mib(400));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(4))).await.unwrap();
    driver.backend.stop().await;
    let path = ground.pool_path("default");
    support::run("mount", &["-o", "remount,ro", &path.display().to_string()]);
    let driver = ground.driver().await;
    let fault = driver.create(&Ask::block("w", Bytes::mib(4))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    let fault = driver.block(&volume).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    let (_, _, attachment) = driver.connect(&volume, AccessType::Block, true).await.unwrap();
    use larder_model::{Connect, Cx};
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    let health = larder_model::backend::Health::volume_health(&driver.backend, &volume.id).await;
    assert_eq!(health.unwrap()[0].reason, "PoolReadOnly");
    ground.assert_clean();
}
