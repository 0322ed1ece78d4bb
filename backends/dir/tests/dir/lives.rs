//! Whole lives of volumes, on every file system.

use crate::support::{Bench, On, clone_of, file_names, map, mount, restore_of, spec, volume, with};
use larder_model::{
    AccessMode, AccessType, Bytes, CapacityRange, Kind, VolumeCapability,
    volume::{Attributes, Page, VolumeSpec},
};
use rstest::rstest;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

#[rstest]
#[tokio::test]
async fn a_volume_lives_from_creation_to_deletion(
    #[values(
        On::Ext4 { quota: false },
        On::Xfs { quota: false },
        On::Btrfs { quota: false },
        On::Btrfs { quota: true }
    )]
    on: On,
) {
    let bench = Bench::on(on);
    let dir = bench.start().await;

    let made = dir.make(&spec("p/v")).await.unwrap();
    assert_eq!(made.capacity, Bytes::mib(64));
    assert_eq!(made.context, map(&[("enforced", if on.quota() { "true" } else { "false" })]));
    assert_eq!(dir.make(&spec("p/v")).await.unwrap(), made, "a repeat");

    let data = dir.connect("p/v").await.unwrap();
    assert_eq!(file_names(&data).len(), 0, "a new volume is empty");
    let staged = bench.bind(&data, "staged");
    fs::write(staged.join("file"), "first").unwrap();

    let cut = dir.cut("p/s", "p/v").await.unwrap();
    assert!(cut.ready);
    assert_eq!((cut.size, cut.source), (Bytes::mib(64), volume("p/v")));
    fs::write(staged.join("file"), "second").unwrap();

    assert_eq!(dir.grow("p/v", Bytes::mib(128)).await.unwrap(), Bytes::mib(128));
    let larger = CapacityRange { required: Bytes::mib(200), limit: None };
    let larger = VolumeSpec { capacity: larger, ..clone_of("p/c", "p/v") };
    assert_eq!(dir.make(&larger).await.unwrap().capacity, Bytes::mib(200), "a clone may be larger");
    dir.make(&restore_of("p/r", "p/s")).await.unwrap();
    let read = |data: std::path::PathBuf| fs::read_to_string(data.join("file")).unwrap();
    assert_eq!(read(dir.connect("p/c").await.unwrap()), "second");
    assert_eq!(read(dir.connect("p/r").await.unwrap()), "first");
    fs::write(dir.connect("p/c").await.unwrap().join("file"), "clone").unwrap();
    assert_eq!(read(staged.clone()), "second", "the original does not see it");

    // Snapshots and copies outlive what they were made from.
    bench.unmount(&staged);
    dir.delete("p/v").await.unwrap();
    dir.delete("p/v").await.unwrap();
    dir.make(&restore_of("p/r2", "p/s")).await.unwrap();
    assert_eq!(read(dir.connect("p/r2").await.unwrap()), "first");

    for id in ["p/c", "p/r", "p/r2"] {
        dir.delete(id).await.unwrap();
    }
    dir.uncut("p/s").await.unwrap();
    dir.uncut("p/s").await.unwrap();
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn everything_is_found_again_by_the_next_process() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let made = dir.make(&spec("p/v")).await.unwrap();
        let cut = dir.cut("p/s", "p/v").await.unwrap();
        drop(dir);
        let dir = bench.start().await;
        assert_eq!(dir.0.provision().get_volume(&volume("p/v")).await.unwrap(), made);
        let page = Page::default();
        let listed = dir.0.provision().list().unwrap().list_volumes(&page).await.unwrap();
        assert_eq!(listed.items, [made]);
        assert_eq!(dir.cut("p/s", "p/v").await.unwrap(), cut);
    }
}

#[tokio::test]
async fn mode_owner_and_group_of_the_top_directory_are_as_asked() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/plain")).await.unwrap();
        let class = [("mode", "3770"), ("uid", "1000"), ("gid", "2000")];
        dir.make(&with("p/own", &class)).await.unwrap();
        let seen = |id: &str| {
            let meta = fs::metadata(bench.data(id)).unwrap();
            (meta.permissions().mode() & 0o7777, meta.uid(), meta.gid())
        };
        assert_eq!(seen("p/plain"), (0o777, 0, 0));
        assert_eq!(seen("p/own"), (0o3770, 1000, 2000));
        // A copy looks like its original, whatever its own class says.
        dir.make(&clone_of("p/clone", "p/own")).await.unwrap();
        assert_eq!(seen("p/clone"), (0o3770, 1000, 2000));
        // Nobody comes past the folder above, whatever the volume's own permissions.
        let folder = fs::metadata(bench.data("p/plain").parent().unwrap()).unwrap();
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    }
}

#[tokio::test]
async fn what_a_directory_cannot_be_is_refused_and_changes_nothing() {
    let bench = Bench::on(On::Btrfs { quota: true });
    let dir = bench.start().await;
    let block = VolumeCapability { access: AccessType::Block, mode: AccessMode::SingleNodeWriter };
    let wrong = [
        VolumeSpec { capabilities: vec![block.clone()], ..spec("p/v") },
        VolumeSpec { capabilities: vec![mount(), block.clone()], ..spec("p/v") },
        with("p/v", &[("mode", "rwx")]),
        with("p/v", &[("fs", "xfs")]),
        with("p/v", &[("inodes", "100")]),
    ];
    for spec in wrong {
        let fault = dir.make(&spec).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{fault}");
    }
    let tight = CapacityRange { required: Bytes::new(1), limit: Some(Bytes::new(2)) };
    let fault = dir.make(&VolumeSpec { capacity: tight, ..spec("p/v") }).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::OutOfRange, "{fault}");
    assert!(bench.state().is_empty());
    dir.make(&spec("p/v")).await.unwrap();
    let fault = dir.connect_as("p/v", block).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains("loop backend"), "{fault}");
    assert_eq!(dir.connect("p/absent").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_copy_is_never_smaller_than_its_source() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    dir.cut("p/s", "p/v").await.unwrap();
    let small = CapacityRange { required: Bytes::mib(1), limit: Some(Bytes::mib(32)) };
    for spec in [clone_of("p/c", "p/v"), restore_of("p/c", "p/s")] {
        let fault = dir.make(&VolumeSpec { capacity: small, ..spec }).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::OutOfRange, "{fault}");
    }
    let any = CapacityRange::default();
    let made = dir.make(&VolumeSpec { capacity: any, ..clone_of("p/c", "p/v") }).await.unwrap();
    assert_eq!(made.capacity, Bytes::mib(64));
}

#[tokio::test]
async fn a_volume_that_is_mounted_anywhere_is_not_deleted_and_the_message_says_where() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let data = dir.connect("p/v").await.unwrap();
        fs::create_dir(data.join("sub")).unwrap();
        let staged = bench.bind(&data, "globalmount");
        let subpath = bench.bind(&data.join("sub"), "subpath");
        let fault = dir.delete("p/v").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains(staged.to_str().unwrap()), "{fault}");
        bench.unmount(&staged);
        let fault = dir.delete("p/v").await.unwrap_err();
        assert!(fault.to_string().contains(subpath.to_str().unwrap()), "{fault}");
        assert!(data.join("sub").is_dir(), "nothing was removed");
        bench.unmount(&subpath);
        dir.delete("p/v").await.unwrap();
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn an_administrators_directory_is_a_volume_that_is_never_deleted() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let there = bench.pool("p").join("static/old-data");
        fs::create_dir(&there).unwrap();
        fs::write(there.join("file"), "precious").unwrap();
        let found = dir.0.provision().get_volume(&volume("p/old-data")).await.unwrap();
        assert!(found.is_static);
        assert_eq!(found.context, map(&[("enforced", "false")]));
        let data = dir.connect("p/old-data").await.unwrap();
        assert_eq!(fs::read(data.join("file")).unwrap(), b"precious");
        dir.cut("p/s", "p/old-data").await.unwrap();
        dir.make(&restore_of("p/r", "p/s")).await.unwrap();
        let restored = dir.connect("p/r").await.unwrap();
        assert_eq!(fs::read(restored.join("file")).unwrap(), b"precious");
        let fault = dir.delete("p/old-data").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert!(there.join("file").exists());

        fs::write(bench.pool("p").join("static/file"), "").unwrap();
        assert_eq!(dir.connect("p/file").await.unwrap_err().kind(), Kind::Precondition);
        symlink("/etc", bench.pool("p").join("static/link")).unwrap();
        assert_eq!(dir.connect("p/link").await.unwrap_err().kind(), Kind::Precondition);
    }
}

#[tokio::test]
async fn a_static_volume_may_be_a_mount_of_its_own() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir = bench.start().await;
    let other = bench.dir("other");
    fs::write(other.join("file"), "x").unwrap();
    let place = bench.pool("p").join("static/mounted");
    fs::create_dir(&place).unwrap();
    bench.bind(&other, place.strip_prefix(bench.path()).unwrap().to_str().unwrap());
    assert!(dir.connect("p/mounted").await.unwrap().join("file").exists());
}

#[tokio::test]
async fn a_shared_pool_serves_every_node_and_mode_and_is_not_mixed_with_others() {
    let mut bench = Bench::empty();
    let (one, two) = (bench.dir("one"), bench.dir("two"));
    bench.add_directory("one", &one);
    bench.change("one", |config| config.shared = true);
    let dir = bench.start().await;
    assert_eq!(dir.0.facts().scope.segments(), None);
    assert_eq!(dir.0.facts().access_modes, AccessMode::ALL);
    let everybody = VolumeCapability { mode: AccessMode::MultiNodeMultiWriter, ..mount() };
    let made = VolumeSpec { capabilities: vec![everybody.clone()], ..spec("one/v") };
    assert_eq!(dir.make(&made).await.unwrap().topology, []);
    // Another node, at the same time.
    let other = bench.start().await;
    let there = other.connect_as("one/v", everybody).await.unwrap();
    fs::write(there.join("file"), "x").unwrap();
    other.make(&clone_of("one/c", "one/v")).await.unwrap();
    assert!(dir.connect("one/c").await.unwrap().join("file").exists());
    dir.delete("one/c").await.unwrap();
    other.delete("one/v").await.unwrap();
    assert!(bench.state().is_empty());

    bench.add_directory("two", &two);
    let fault = bench.unstarted().map(drop).unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("two drivers"), "{fault}");
}

#[tokio::test]
async fn a_pool_is_not_given_a_file_system_for_its_volumes() {
    let mut bench = Bench::empty();
    let path = bench.dir("p");
    bench.add_directory("p", &path);
    bench.change("p", |config| config.fs = Some(larder_model::FsType::Xfs));
    let fault = bench.unstarted().map(drop).unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid, "{fault}");
}

#[tokio::test]
async fn a_pool_tells_what_it_lies_on_and_what_that_means() {
    for (on, storage, warnings) in [
        (On::Ext4 { quota: false }, "ext4, full copies, sizes not enforced", 2),
        (On::Xfs { quota: false }, "xfs, reflink, sizes not enforced", 1),
        (On::Btrfs { quota: false }, "btrfs, subvolumes, sizes not enforced", 1),
        (On::Btrfs { quota: true }, "btrfs, subvolumes, qgroups", 0),
    ] {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let status = dir.0.pool_status().await.remove(0);
        assert_eq!(status.storage, storage);
        assert_eq!(status.warnings.len(), warnings, "{:?}", status.warnings);
        assert_eq!(status.fault, None);
        let capacity = dir.0.provision().capacity().unwrap();
        let free = capacity.capacity(&"p".parse().unwrap(), &Attributes::new()).await.unwrap();
        assert!(free.available > Bytes::mib(500) && free.available <= status.total, "{free:?}");
    }
}

#[tokio::test]
async fn a_volume_whose_directory_is_gone_is_damaged_and_can_be_deleted() {
    for on in [On::Xfs { quota: false }, On::Btrfs { quota: true }] {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let before = bench.state();
        dir.make(&spec("p/v")).await.unwrap();
        dir.cut("p/s", "p/v").await.unwrap();
        fs::rename(bench.data("p/v"), bench.path().join("kept")).unwrap_or_else(|_| {
            fs::remove_dir(bench.data("p/v")).unwrap();
        });
        let faults = [
            dir.connect("p/v").await.map(drop),
            dir.grow("p/v", Bytes::mib(128)).await.map(drop),
            dir.cut("p/t", "p/v").await.map(drop),
            dir.make(&clone_of("p/c", "p/v")).await.map(drop),
        ];
        for fault in faults {
            let fault = fault.unwrap_err();
            assert_eq!(fault.kind(), Kind::Corrupt, "{fault}");
            assert!(fault.hint_text().is_some());
        }
        assert_eq!(dir.health("p/v").await, ["DataMissing"]);
        dir.delete("p/v").await.unwrap();
        let name = || fs::exists(bench.pool("p").join("volumes/v")).unwrap();
        assert!(!name(), "OK, and the volume is really gone");
        dir.make(&restore_of("p/v", "p/s")).await.expect("its name is free again");
        dir.delete("p/v").await.unwrap();
        dir.uncut("p/s").await.unwrap();
        bench.settled().await;
        assert_eq!(bench.state(), before);
    }
}

#[tokio::test]
async fn a_copy_of_a_directory_without_a_size_gets_the_default() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir = bench.start().await;
    let old = bench.pool("p").join("static/old");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("file"), "theirs").unwrap();
    let any = CapacityRange { required: Bytes::ZERO, limit: None };
    let copy = VolumeSpec { capacity: any, ..clone_of("p/copy", "p/old") };
    assert_eq!(dir.make(&copy).await.unwrap().capacity, Bytes::gib(1));
    dir.cut("p/s", "p/old").await.unwrap();
    let back = VolumeSpec { capacity: any, ..restore_of("p/back", "p/s") };
    assert_eq!(dir.make(&back).await.unwrap().capacity, Bytes::gib(1));
    assert_eq!(fs::read(dir.connect("p/back").await.unwrap().join("file")).unwrap(), b"theirs");
    let exact = CapacityRange { required: Bytes::mib(5), limit: Some(Bytes::mib(5)) };
    let small = VolumeSpec { capacity: exact, ..clone_of("p/small", "p/old") };
    assert_eq!(dir.make(&small).await.unwrap().capacity, Bytes::mib(5));
}
